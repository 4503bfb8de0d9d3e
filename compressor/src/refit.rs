//! Repair without training: what a consumer of removed units computes is fitted to what the original
//! computed, by regularised least squares on calibration activations.
//!
//! With X the activations that reach the consumer in the *pruned* model (rows by inputs), and R what its
//! output lacks there against the original's, the correction D of its weights and d of its bias solve
//!
//! ```text
//! min ‖R − X·D − d‖² + λ·tr(XᵀX)/k·‖D‖²
//! ```
//!
//! so that the ridge pulls towards the *original* weights, never towards zero, and directions that the
//! calibration set does not show keep what training taught them (Hoerl & Kennard 1970, shifted prior).
//! X and R are centred where there is a bias to take up the means. λ is chosen by cross-validation over
//! folds of the calibration set. Only the Gram matrices XᵀX and XᵀR are kept, in f64, one pair per fold:
//! memory does not grow with the samples.
//!
//! A convolution is the product of its windows with its weight, one for each group ([`Windows`]); where it has no bias
//! it is given one, because the means of what was removed have to go somewhere.
//!
//! Not done: transposed convolutions, and weights that are not constants.

mod ridge;
mod windows;

pub use ridge::{
    CROSS_VALIDATED_INPUTS, FOLDS, Fit, Gram, RIDGES, Solution, WIDE_RIDGE, solve, target_energy,
};

pub use windows::Windows;

use graph::{ConvAttrs, Graph, Model, NodeId, Op, Tensor, ValueId};

use crate::plan::Refusal;

/// The widest consumer whose Gram matrices are kept (f64, `k·k` for each fold).
pub const MAX_INPUTS: usize = 4096;
/// The most bytes that the moments of one consumer take, all folds together.
pub const MAX_GRAM_BYTES: usize = 2 << 30;
/// Rows that are fitted to for each input of a product, where there are as many: more of them cost time in
/// proportion and no longer move the fit.
pub const ROWS_PER_INPUT: usize = 32;
/// The least rows that are fitted to, where there are as many.
pub const LEAST_ROWS: usize = 4096;
/// The least samples that rows are taken from, where there are as many.
pub const LEAST_FITTED: usize = 256;

/// A MatMul, Gemm or Conv that can be re-fitted.
#[derive(Debug, Clone, PartialEq)]
pub struct Site {
    /// The node.
    pub node: NodeId,
    /// What people call it.
    pub label: String,
    /// Activations that reach it.
    pub input: ValueId,
    /// Its weight.
    pub weight: ValueId,
    /// Of a convolution, whose weight lies outputs by windows.
    pub conv: Option<ConvAttrs>,
    /// Whether it is what a recurrent layer makes of its input: the rows of all gates and directions are its outputs,
    /// and the first half of each direction's bias is its bias.
    pub recurrent: bool,
    /// Whether the weight lies transposed (outputs by inputs).
    pub transposed: bool,
    /// Factor of the product (`alpha` of a Gemm).
    pub alpha: f64,
    /// Its bias: the node and slot that read it, and the constant.
    pub bias: Option<(NodeId, usize, ValueId)>,
    /// Factor of the bias (`beta` of a Gemm).
    pub beta: f64,
    /// What it computes, the bias included.
    pub output: ValueId,
}

/// Where a convolution reads its bias.
pub const CONV_BIAS: usize = 2;
/// Where a recurrent layer reads its bias: for each direction that of the input, then that of the recurrence.
const RECURRENT_BIAS: usize = 3;

impl Site {
    /// Products that are fitted apart: the groups of a convolution, else one.
    pub fn groups(&self) -> usize {
        self.conv.as_ref().map_or(1, |attrs| attrs.group.max(1))
    }

    /// Inputs of one product and outputs of all, for a weight of `dims`.
    pub fn size(&self, dims: &[usize]) -> (usize, usize) {
        if self.recurrent {
            let rows = dims.iter().take(2).product();
            return (dims.get(2).copied().unwrap_or(0), rows);
        }
        let outputs = dims.get(usize::from(!self.transposed)).copied().unwrap_or(0);
        match self.conv {
            Some(_) => (dims.iter().skip(1).product(), outputs),
            None => (dims.get(usize::from(self.transposed)).copied().unwrap_or(0), outputs),
        }
    }

    /// Axis of the outputs in what it computes, of `rank` axes.
    pub fn axis(&self, rank: usize) -> usize {
        if self.conv.is_some() { 1 } else { rank.saturating_sub(1) }
    }

    /// Whether a fit may move the mean of what it computes.
    pub fn takes_bias(&self) -> bool {
        self.bias.is_some() || self.conv.is_some()
    }
}

/// Whether `node` can be re-fitted, and how.
///
/// # Errors
/// The reason why it cannot.
pub fn site(graph: &Graph, node: NodeId) -> Result<Site, String> {
    let n = graph.node(node);
    let slot = |at: usize| n.inputs.get(at).copied().flatten();
    let (Some(input), Some(weight)) = (slot(0), slot(1)) else {
        return Err("it lacks an input".into());
    };
    let mut site = Site {
        node,
        label: label(graph, node),
        input,
        weight,
        conv: None,
        recurrent: false,
        transposed: false,
        alpha: 1.0,
        bias: None,
        beta: 1.0,
        output: n.outputs.first().copied().flatten().ok_or("it has no output")?,
    };
    match &n.op {
        Op::MatMul => {}
        Op::Gemm(g) if g.trans_a => return Err("its activations arrive transposed".into()),
        Op::Gemm(g) => {
            (site.alpha, site.beta) = (f64::from(g.alpha), f64::from(g.beta));
            site.transposed = g.trans_b;
        }
        Op::Conv(attrs) => (site.conv, site.transposed) = (Some(attrs.clone()), true),
        Op::ConvTranspose(_) => return Err("transposed convolutions are not re-fitted".into()),
        _ => return Err(format!("{} is not re-fitted", n.op_type)),
    }
    let tensor = graph.constant(weight).ok_or("its second factor is no constant")?;
    if graph.constant(input).is_some() {
        return Err("its weight is the first factor".into());
    }
    let fits = if site.conv.is_some() { tensor.dims.len() >= 3 } else { tensor.dims.len() == 2 };
    if !fits || tensor.dtype != graph::DType::F32 {
        return Err(format!(
            "its weight is {:?} of dims {:?}; f32 matrices and filters are re-fitted",
            tensor.dtype, tensor.dims
        ));
    }
    if site.alpha == 0.0 {
        return Err("its alpha is zero".into());
    }
    let (_, outputs) = site.size(&tensor.dims);
    find_bias(graph, &mut site, outputs)?;
    Ok(site)
}

/// Finds the constant that a change of the mean goes into.
fn find_bias(graph: &Graph, site: &mut Site, outputs: usize) -> Result<(), String> {
    let n = graph.node(site.node);
    let given = n.inputs.get(CONV_BIAS).copied().flatten();
    match (&n.op, given) {
        (Op::Conv(_), Some(bias)) if !is_row(graph, bias, outputs) => {
            return Err("its bias is no f32 constant".into());
        }
        (Op::Conv(_), given) => site.bias = given.map(|bias| (site.node, CONV_BIAS, bias)),
        (Op::Gemm(_), given) => {
            let bias = given.filter(|c| site.beta != 0.0 && is_row(graph, *c, outputs));
            site.bias = bias.map(|bias| (site.node, 2, bias));
        }
        _ => {
            if let Some((add, at, bias)) = bias_add(graph, site.output, outputs) {
                site.bias = Some((add, at, bias));
                site.output = graph.node(add).outputs[0].unwrap_or(site.output);
            }
        }
    }
    Ok(())
}

/// What reads channels linearly: a [`site`], or the input weight of a recurrent layer, whose gates no value of the
/// graph shows, so that it can take over channels and cannot be fitted.
///
/// # Errors
/// The reason why it is neither.
pub fn linear(graph: &Graph, node: NodeId) -> Result<Site, String> {
    let n = graph.node(node);
    let Op::Recurrent(_) = n.op else { return site(graph, node) };
    let slot = |at: usize| n.inputs.get(at).copied().flatten();
    let (Some(input), Some(weight)) = (slot(0), slot(1)) else {
        return Err("it lacks an input".into());
    };
    let matrix = |value: ValueId, rank: usize| {
        graph.constant(value).is_some_and(|t| t.dtype == graph::DType::F32 && t.dims.len() == rank)
    };
    if !matrix(weight, 3) {
        return Err("its input weight is no f32 constant".into());
    }
    let bias = slot(RECURRENT_BIAS).filter(|bias| matrix(*bias, 2));
    Ok(Site {
        node,
        label: label(graph, node),
        input,
        weight,
        conv: None,
        recurrent: true,
        transposed: true,
        alpha: 1.0,
        bias: bias.map(|bias| (node, RECURRENT_BIAS, bias)),
        beta: 1.0,
        output: n.outputs.iter().flatten().next().copied().ok_or("it has no output")?,
    })
}

/// The node's name, or its output's.
pub fn label(graph: &Graph, node: NodeId) -> String {
    let n = graph.node(node);
    if !n.name.is_empty() {
        return n.name.clone();
    }
    match n.outputs.iter().flatten().next() {
        Some(output) => graph.value(*output).name.clone(),
        None => format!("{} {}", n.op_type, node.0),
    }
}

/// The MatMul, Gemm or Conv nodes with constant weights from which the outputs are reached through nothing
/// but other kinds of nodes.
pub fn heads(graph: &Graph) -> Vec<NodeId> {
    let mut heads = Vec::new();
    let mut seen = std::collections::HashSet::new();
    let mut todo: Vec<ValueId> = graph.outputs().to_vec();
    while let Some(value) = todo.pop() {
        let graph::Origin::Node(node, _) = graph.value(value).origin else {
            continue;
        };
        if !seen.insert(node) {
            continue;
        }
        if site(graph, node).is_ok() {
            heads.push(node);
        } else {
            todo.extend(graph.node(node).inputs.iter().flatten());
        }
    }
    heads
}

fn bias_add(graph: &Graph, output: ValueId, width: usize) -> Option<(NodeId, usize, ValueId)> {
    let consumers = graph.consumers(output);
    let [(add, slot)] = consumers.as_slice() else {
        return None;
    };
    if graph.outputs().contains(&output) {
        return None;
    }
    let node = graph.node(*add);
    if node.op != Op::Binary(graph::BinaryOp::Add) || node.inputs.len() != 2 {
        return None;
    }
    let other = 1 - *slot;
    let bias = node.inputs[other]?;
    is_row(graph, bias, width).then_some((*add, other, bias))
}

/// Whether `value` is a constant f32 vector along the last axis only.
fn is_row(graph: &Graph, value: ValueId, width: usize) -> bool {
    graph.constant(value).is_some_and(|t| {
        t.dtype == graph::DType::F32
            && t.dims.last() == Some(&width)
            && t.dims.iter().product::<usize>() == width
    })
}

/// The refusal of a re-fit.
pub fn refusal(label: &str, why: impl Into<String>) -> Refusal {
    Refusal::new("refit", label, why)
}

/// The weight and bias constants of `site` in `model` with `fit` added.
///
/// # Errors
/// The constants are not there or do not have the fit's shape.
pub fn corrected(
    model: &Model,
    site: &Site,
    fit: &Fit,
) -> Result<(Tensor, Option<Tensor>), String> {
    let graph = &model.graph;
    let weight = graph.constant(site.weight).ok_or("its weight is gone")?;
    let mut values = weight.to_f32_vec().map_err(|e| e.to_string())?;
    let (inputs, outputs) = site.size(&weight.dims);
    if values.len() != fit.weight.len() || inputs * outputs != values.len() {
        return Err(format!("its weight has dims {:?} now", weight.dims));
    }
    for (at, value) in values.iter_mut().enumerate() {
        let from = if site.transposed { (at % inputs) * outputs + at / inputs } else { at };
        *value = (f64::from(*value) + fit.weight[from] / site.alpha) as f32;
    }
    let weight = Tensor::from_f32(weight.dims.clone(), &values).map_err(|e| e.to_string())?;
    let bias = fit.bias.as_deref().filter(|_| site.takes_bias());
    let bias = bias.map(|correction| corrected_bias(graph, site, correction)).transpose()?;
    Ok((weight, bias))
}

/// The bias with `correction` added; of a convolution without one, the correction itself.
fn corrected_bias(graph: &Graph, site: &Site, correction: &[f64]) -> Result<Tensor, String> {
    let Some((_, _, value)) = site.bias else {
        let values: Vec<f32> = correction.iter().map(|c| *c as f32).collect();
        return Tensor::from_f32(vec![values.len()], &values).map_err(|e| e.to_string());
    };
    let old = graph.constant(value).ok_or("its bias is gone")?;
    let mut values = old.to_f32_vec().map_err(|e| e.to_string())?;
    if site.recurrent {
        let directions = old.dims.first().copied().unwrap_or(1).max(1);
        let rows = correction.len() / directions;
        for (bias, own) in
            values.chunks_exact_mut((2 * rows).max(1)).zip(correction.chunks(rows.max(1)))
        {
            bias.iter_mut().zip(own).for_each(|(v, c)| *v = (f64::from(*v) + c) as f32);
        }
        return Tensor::from_f32(old.dims.clone(), &values).map_err(|e| e.to_string());
    }
    let moved = values.iter().zip(correction);
    let values: Vec<f32> = moved.map(|(v, c)| (f64::from(*v) + c / site.beta) as f32).collect();
    Tensor::from_f32(old.dims.clone(), &values).map_err(|e| e.to_string())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "refit_tests.rs"]
mod tests;
