//! Sums over units, after units were removed from them.
//!
//! A normalization that an exporter wrote out (`ReduceSum`, times `1/width`, and so on) sums over the units of a
//! group. With units gone the sum is too small, and with it the mean and the variance that everything
//! behind them is scaled by. One factor for each such sum brings it back:
//!
//! ```text
//! a = Σ s·t / Σ t²    with s the sum in the original and t what is left of it
//! ```
//!
//! which is the least-squares fit of `s ≈ a·t` over calibration samples. The factor goes into the
//! scalar constant that the sum is multiplied by next, where there is one, and into a `Mul` of its own
//! elsewhere. It changes no shape and costs nothing.
//!
//! Not done: operators that divide by the width themselves (`ReduceMean`, `LayerNormalization`), which the
//! graph's groups do not narrow.

use graph::{
    BinaryOp, Cause, DType, Edit, Graph, Group, Model, Node, NodeId, Op, ReduceKind, Shapes,
    Tensor, ValueId,
};

use crate::refit;

/// A factor outside of this range is no repair but a sign that the sum lost its meaning.
pub const SANE: std::ops::RangeInclusive<f64> = 0.1..=100.0;

/// A sum over the units of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sum {
    /// The node.
    pub node: NodeId,
    /// What people call it.
    pub label: String,
    /// What it computes.
    pub output: ValueId,
}

/// The sums over the units of `group`, in the graph's order.
pub fn sums(graph: &Graph, shapes: &Shapes, group: &Group) -> Vec<Sum> {
    graph
        .nodes()
        .filter(|(_, node)| sums_over(graph, shapes, group, node))
        .filter_map(|(id, node)| {
            Some(Sum { node: id, label: refit::label(graph, id), output: node.output(0)? })
        })
        .collect()
}

fn sums_over(graph: &Graph, shapes: &Shapes, group: &Group, node: &Node) -> bool {
    let Op::Reduce { kind: ReduceKind::Sum | ReduceKind::SumSquare, axes, .. } = &node.op else {
        return false;
    };
    let Some(input) = node.input(0) else {
        return false;
    };
    let from_input = || graph.constant_ints(node.input(1)?);
    let Some(axes) = axes.clone().or_else(from_input) else {
        return false;
    };
    let rank = shapes.rank(input).and_then(|r| i64::try_from(r).ok());
    let absolute = |axis: i64| -> Option<usize> {
        let axis = if axis < 0 { axis + rank? } else { axis };
        axis.try_into().ok()
    };
    let axes: Vec<usize> = axes.into_iter().filter_map(absolute).collect();
    let mut carried = group.values.iter();
    carried.any(|(value, axis, _)| *value == input && axes.contains(axis))
}

/// What a factor is fitted from.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Moments {
    st: f64,
    tt: f64,
    ss: f64,
    rows: u64,
}

impl Moments {
    /// Adds what the original computes and what is left of it.
    pub fn push(&mut self, original: &[f32], left: &[f32]) {
        for (s, t) in original.iter().zip(left) {
            let (s, t) = (f64::from(*s), f64::from(*t));
            self.st += s * t;
            self.tt += t * t;
            self.ss += s * s;
            self.rows += 1;
        }
    }

    /// Sums seen.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// The factor.
    ///
    /// # Errors
    /// A sentence: nothing is left to scale, or the factor is out of range.
    pub fn factor(&self) -> Result<f64, String> {
        if self.tt <= 0.0 || !self.tt.is_finite() || !self.st.is_finite() {
            return Err("nothing of the sum is left to scale".into());
        }
        let factor = self.st / self.tt;
        if SANE.contains(&factor) {
            return Ok(factor);
        }
        Err(format!(
            "the factor {factor:.3} is outside of {} to {}: what is left does not follow the original",
            SANE.start(),
            SANE.end()
        ))
    }

    /// The part of the sum that `a·t` does not explain, as a share of the sum (root of squares).
    pub fn residual(&self, factor: f64) -> f64 {
        let left = self.ss - 2.0 * factor * self.st + factor * factor * self.tt;
        (left.max(0.0) / self.ss.max(f64::MIN_POSITIVE)).sqrt()
    }
}

/// Multiplies what `sum` computes by `factor`, in place.
///
/// # Errors
/// A sentence: an edit was refused.
pub fn apply(model: &mut Model, sum: &Sum, factor: f64) -> Result<(), String> {
    let graph = &mut model.graph;
    let cause = Cause::new("rescale", format!("{}: {factor:.4}", sum.label));
    let consumers = graph.consumers(sum.output);
    if let [(node, slot)] = consumers.as_slice()
        && let Some((at, tensor)) = scalar_factor(graph, *node, *slot)
    {
        let scaled = scaled(&tensor, factor)?;
        let value = constant(graph, &sum.label, scaled, &cause)?;
        return replace(graph, *node, at, value, &cause);
    }
    let scalar = Tensor::from_f32(vec![], &[factor as f32]).map_err(|e| e.to_string())?;
    let scalar = constant(graph, &sum.label, scalar, &cause)?;
    let name = format!("{}_rescaled", sum.label);
    let node = Node::new("Mul", name.clone(), vec![Some(sum.output), Some(scalar)], vec![]);
    let edit = Edit::AddNode { node, outputs: vec![name] };
    let added = graph::apply(graph, edit, &cause).map_err(|e| e.to_string())?;
    let value = added.value().ok_or("the product was not added")?;
    for (node, slot) in consumers {
        replace(graph, node, slot, value, &cause)?;
    }
    Ok(())
}

/// The other factor of a product with one f32 element: its slot and tensor.
fn scalar_factor(graph: &Graph, node: NodeId, slot: usize) -> Option<(usize, Tensor)> {
    let node = graph.node(node);
    if node.op != Op::Binary(BinaryOp::Mul) || node.inputs.len() != 2 {
        return None;
    }
    let other = 1 - slot;
    let tensor = graph.constant(node.input(other)?)?;
    (tensor.len() == 1 && tensor.dtype == DType::F32).then(|| (other, (*tensor).clone()))
}

fn scaled(tensor: &Tensor, factor: f64) -> Result<Tensor, String> {
    let values = tensor.to_f32_vec().map_err(|e| e.to_string())?;
    let values: Vec<f32> = values.iter().map(|v| (f64::from(*v) * factor) as f32).collect();
    Tensor::from_f32(tensor.dims.clone(), &values).map_err(|e| e.to_string())
}

fn constant(
    graph: &mut Graph,
    label: &str,
    tensor: Tensor,
    cause: &Cause,
) -> Result<ValueId, String> {
    let name = format!("{label}_rescale");
    graph::apply(graph, Edit::AddConstant { name, tensor }, cause)
        .map_err(|e| e.to_string())?
        .value()
        .ok_or_else(|| "a constant was not added".into())
}

fn replace(
    graph: &mut Graph,
    node: NodeId,
    slot: usize,
    value: ValueId,
    cause: &Cause,
) -> Result<(), String> {
    let edit = Edit::ReplaceInput { node, slot, value: Some(value) };
    graph::apply(graph, edit, cause).map(drop).map_err(|e| e.to_string())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use graph::{AttributeValue, Builder, Dim};

    use super::*;

    #[test]
    fn the_factor_is_the_least_squares_one_and_its_residual_what_it_leaves() {
        let mut moments = Moments::default();
        moments.push(&[2.0, 4.0], &[1.0, 2.0]);
        assert!((moments.factor().unwrap() - 2.0).abs() < 1e-12);
        assert!(moments.residual(2.0) < 1e-7);
        assert!((moments.residual(0.0) - 1.0).abs() < 1e-12);
        moments.push(&[1.0], &[2.0]);
        let factor = moments.factor().unwrap();
        for near in [factor - 0.01, factor + 0.01] {
            assert!(moments.residual(factor) < moments.residual(near));
        }
    }

    #[test]
    fn a_sum_of_which_nothing_is_left_and_one_that_turned_around_are_refused() {
        let mut nothing = Moments::default();
        nothing.push(&[1.0], &[0.0]);
        assert!(nothing.factor().unwrap_err().contains("nothing"));
        let mut turned = Moments::default();
        turned.push(&[1.0], &[-1.0]);
        assert!(turned.factor().unwrap_err().contains("outside"));
    }

    /// `x · w` summed over its four units; then times a scalar, or not.
    fn summed(times: Option<f32>) -> Model {
        let mut builder = Builder::new(12);
        let x = builder.input("x", DType::F32, vec![Dim::Symbol("N".into()), Dim::Fixed(2)]);
        let w = Tensor::from_f32(vec![2, 4], &[1.0; 8]).unwrap();
        let w = builder.constant("w", w).unwrap();
        let y = builder.node("MatMul", &[x, w], []).unwrap();
        let axes = ("axes", AttributeValue::Ints(vec![1]));
        let mut y = builder.node("ReduceSum", &[y], [axes]).unwrap();
        if let Some(times) = times {
            let c = Tensor::from_f32(vec![], &[times]).unwrap();
            let c = builder.constant("c", c).unwrap();
            y = builder.node("Mul", &[c, y], []).unwrap();
        }
        let y = builder.node("Relu", &[y], []).unwrap();
        builder.finish(&[y]).unwrap()
    }

    fn scalars(model: &Model) -> Vec<f32> {
        let graph = &model.graph;
        let muls = graph.nodes().filter(|(_, n)| n.op_type == "Mul");
        muls.flat_map(|(_, n)| n.inputs.iter().flatten().collect::<Vec<_>>())
            .filter_map(|v| graph.constant(*v))
            .map(|t| t.to_f32_vec().unwrap()[0])
            .collect()
    }

    #[test]
    fn a_factor_goes_into_the_scalar_that_follows_or_into_a_product_of_its_own() {
        for (times, expected, nodes) in [(Some(0.25), 0.5, 4), (None, 2.0, 4)] {
            let mut model = summed(times);
            let shapes = graph::infer(&model);
            let grouping = graph::find(&model, &shapes);
            let found = sums(&model.graph, &shapes, &grouping.groups[0]);
            assert_eq!(found.len(), 1, "{grouping:?}");
            apply(&mut model, &found[0], 2.0).unwrap();
            model.verify().unwrap();
            assert_eq!(scalars(&model), vec![expected]);
            assert_eq!(model.graph.nodes().count(), nodes);
        }
    }
}
