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
//! Not done: convolutions, and weights that are not constants.

mod ridge;

pub use ridge::{
    CROSS_VALIDATED_INPUTS, FOLDS, Fit, Gram, RIDGES, Solution, WIDE_RIDGE, solve, target_energy,
};

use graph::{Graph, Model, NodeId, Op, Tensor, ValueId};

use crate::plan::Refusal;

/// The widest consumer whose Gram matrices are kept (f64, `k·k` for each fold).
pub const MAX_INPUTS: usize = 4096;
/// The most bytes that the moments of one consumer take, all folds together.
pub const MAX_GRAM_BYTES: usize = 2 << 30;
/// The most multiply-adds spent on one Gram matrix; it bounds the rows that are used.
pub const MAX_GRAM_WORK: f64 = 4e10;

/// A MatMul or Gemm that can be re-fitted.
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

/// Whether `node` can be re-fitted, and how.
///
/// # Errors
/// The reason why it cannot.
pub fn site(graph: &Graph, node: NodeId) -> Result<Site, String> {
    let n = graph.node(node);
    let (alpha, beta, transposed) = match &n.op {
        Op::MatMul => (1.0, 1.0, false),
        Op::Gemm(g) if g.trans_a => return Err("its activations arrive transposed".into()),
        Op::Gemm(g) => (f64::from(g.alpha), f64::from(g.beta), g.trans_b),
        Op::Conv(_) | Op::ConvTranspose(_) => {
            return Err("convolutions are not re-fitted".into());
        }
        _ => return Err(format!("{} is not re-fitted", n.op_type)),
    };
    let slot = |at: usize| n.inputs.get(at).copied().flatten();
    let (Some(input), Some(weight)) = (slot(0), slot(1)) else {
        return Err("it lacks an input".into());
    };
    let tensor = graph.constant(weight).ok_or("its second factor is no constant")?;
    if graph.constant(input).is_some() {
        return Err("its weight is the first factor".into());
    }
    if tensor.dims.len() != 2 || tensor.dtype != graph::DType::F32 {
        return Err(format!(
            "its weight is {:?} of dims {:?}; f32 matrices are re-fitted",
            tensor.dtype, tensor.dims
        ));
    }
    if alpha == 0.0 {
        return Err("its alpha is zero".into());
    }
    let outputs = tensor.dims[usize::from(!transposed)];
    let output = n.outputs.first().copied().flatten().ok_or("it has no output")?;
    let mut site = Site {
        node,
        label: label(graph, node),
        input,
        weight,
        transposed,
        alpha,
        bias: None,
        beta,
        output,
    };
    if let Op::Gemm(_) = n.op {
        site.bias =
            slot(2).filter(|c| beta != 0.0 && is_row(graph, *c, outputs)).map(|c| (node, 2, c));
    } else if let Some((add, at, bias)) = bias_add(graph, output, outputs) {
        site.bias = Some((add, at, bias));
        site.output = graph.node(add).outputs[0].unwrap_or(output);
    }
    Ok(site)
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

/// The MatMul or Gemm nodes with constant weights from which the outputs are reached through nothing
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
    if values.len() != fit.weight.len() || weight.dims.len() != 2 {
        return Err(format!("its weight has dims {:?} now", weight.dims));
    }
    let (rows, columns) = (weight.dims[0], weight.dims[1]);
    for (at, value) in values.iter_mut().enumerate() {
        let from = if site.transposed { (at % columns) * rows + at / columns } else { at };
        *value = (f64::from(*value) + fit.weight[from] / site.alpha) as f32;
    }
    let weight = Tensor::from_f32(weight.dims.clone(), &values).map_err(|e| e.to_string())?;
    let bias = match (&site.bias, &fit.bias) {
        (Some((_, _, value)), Some(correction)) => {
            let old = graph.constant(*value).ok_or("its bias is gone")?;
            let values: Vec<f32> = old
                .to_f32_vec()
                .map_err(|e| e.to_string())?
                .iter()
                .zip(correction)
                .map(|(v, c)| (f64::from(*v) + c / site.beta) as f32)
                .collect();
            Some(Tensor::from_f32(old.dims.clone(), &values).map_err(|e| e.to_string())?)
        }
        _ => None,
    };
    Ok((weight, bias))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "refit_tests.rs"]
mod tests;
