//! How large the weights of a unit are, with batch normalizations folded into what stands in front of them.
//!
//! A normalization behind a convolution rescales it, so that the size of its raw weights says nothing: what counts is
//! `w·γ/√(σ² + ε)`, and `(b − μ)·γ/√(σ² + ε) + β` for the bias, which is what an exporter that folds would have
//! written, consumers of the unit included. A normalization that folds into nothing counts with its own scale and shift
//! so written. Variances and other divisors do not count by themselves.

use std::sync::Arc;

use graph::{Graph, NodeId, Op, Role, Slice, Tensor};

use super::{Score, Scored, Subject};

/// Which norm is taken over all slices that go with a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Magnitude {
    /// Sum of absolute values.
    L1,
    /// Root of the sum of squares.
    L2,
}

impl Score for Magnitude {
    fn rate(&self, subject: &Subject<'_>) -> Result<Scored, String> {
        let (graph, group) = (subject.graph, subject.group);
        let mut total = vec![0.0; group.width];
        for slice in group.slices.iter().filter(|s| s.role != Role::Divisor) {
            let Some(values) = counted(graph, slice)? else { continue };
            let by_index = along(&values, slice.axis, |v| self.size(v));
            for (unit, sum) in total.iter_mut().enumerate() {
                *sum += owned(slice, unit, &by_index);
            }
        }
        let units = match self {
            Self::L1 => total,
            Self::L2 => total.into_iter().map(f64::sqrt).collect(),
        };
        Ok(Scored::Units(units))
    }
}

impl Magnitude {
    /// What one number adds before the root.
    fn size(self, value: f64) -> f64 {
        match self {
            Self::L1 => value.abs(),
            Self::L2 => value * value,
        }
    }
}

/// A constant as it counts.
struct Values {
    dims: Vec<usize>,
    values: Vec<f64>,
}

/// What a slice's constant counts as: weights and biases with the normalization behind their layer folded in, and of a
/// normalization what is not counted there. None for what does not count at all.
fn counted(graph: &Graph, slice: &Slice) -> Result<Option<Values>, String> {
    let node = graph.node(slice.node);
    if let Some(norm) = Norm::of(graph, slice.node) {
        let layer = node.input(0).and_then(|x| graph.producer(x));
        let layer = layer.filter(|layer| norm_behind(graph, *layer) == Some(slice.node));
        let biased = layer.is_some_and(|layer| graph.node(layer).input(2).is_some());
        let values = match slice.slot {
            1 if layer.is_none() => norm.scale,
            2 if !biased => norm.shifted(&[]),
            _ => return Ok(None),
        };
        return Ok(Some(Values { dims: vec![values.len()], values }));
    }
    let tensor = constant(graph, slice)?;
    let read = read(graph, slice, &tensor)?;
    let mut counted = Values { dims: tensor.dims.clone(), values: read };
    let norm = norm_behind(graph, slice.node).and_then(|norm| Norm::of(graph, norm));
    match (slice.slot, norm, out_axis(&node.op)) {
        (1, Some(norm), Some(axis)) if counted.dims.get(axis) == Some(&norm.scale.len()) => {
            counted.scale(axis, &norm.scale);
        }
        (2, Some(norm), _) if counted.values.len() == norm.scale.len() => {
            counted.values = norm.shifted(&counted.values);
        }
        _ => {}
    }
    Ok(Some(counted))
}

impl Values {
    /// Multiplies by one factor for each index of `axis`.
    fn scale(&mut self, axis: usize, factors: &[f64]) {
        let inner: usize = self.dims.iter().skip(axis + 1).product();
        for (block, values) in self.values.chunks_mut(inner.max(1)).enumerate() {
            let factor = factors[block % factors.len()];
            values.iter_mut().for_each(|v| *v *= factor);
        }
    }
}

/// A batch normalization as the product and the sum that it is at inference.
struct Norm {
    /// γ/√(σ² + ε).
    scale: Vec<f64>,
    mean: Vec<f64>,
    beta: Vec<f64>,
}

impl Norm {
    fn of(graph: &Graph, id: NodeId) -> Option<Self> {
        let node = graph.get_node(id)?;
        let Op::BatchNormalization { epsilon, training: false } = &node.op else { return None };
        let read = |slot: usize| -> Option<Vec<f64>> {
            let values = graph.constant(node.input(slot)?)?.to_f32_vec().ok()?;
            Some(values.into_iter().map(f64::from).collect())
        };
        let (gamma, beta, mean, variance) = (read(1)?, read(2)?, read(3)?, read(4)?);
        let width = gamma.len();
        ([&beta, &mean, &variance].iter().all(|v| v.len() == width) && width > 0).then_some(())?;
        let root = |v: &f64| (v + f64::from(*epsilon)).max(f64::MIN_POSITIVE).sqrt();
        let scale = gamma.iter().zip(&variance).map(|(g, v)| g / root(v)).collect();
        Some(Self { scale, mean, beta })
    }

    /// (b − μ)·s + β, for b zero where `bias` ends.
    fn shifted(&self, bias: &[f64]) -> Vec<f64> {
        let bias = bias.iter().copied().chain(std::iter::repeat(0.0));
        let parts = self.scale.iter().zip(&self.mean).zip(&self.beta).zip(bias);
        parts.map(|(((s, m), beta), b)| (b - m) * s + beta).collect()
    }
}

/// Axis of the outputs in the weight of a layer that a normalization folds into.
fn out_axis(op: &Op) -> Option<usize> {
    match op {
        Op::Conv(_) => Some(0),
        Op::ConvTranspose(attrs) if attrs.group <= 1 => Some(1),
        Op::Gemm(attrs) => Some(usize::from(!attrs.trans_b)),
        _ => None,
    }
}

/// The batch normalization at inference that alone reads what a layer computes.
fn norm_behind(graph: &Graph, layer: NodeId) -> Option<NodeId> {
    let node = graph.get_node(layer)?;
    out_axis(&node.op)?;
    let output = node.output(0)?;
    match graph.consumers(output).as_slice() {
        [(norm, 0)] if !graph.outputs().contains(&output) => {
            let op = &graph.node(*norm).op;
            matches!(op, Op::BatchNormalization { training: false, .. }).then_some(*norm)
        }
        _ => None,
    }
}

fn owned(slice: &Slice, unit: usize, by_index: &[f64]) -> f64 {
    slice.map.unit(unit).iter().filter_map(|i| by_index.get(*i as usize)).sum()
}

/// Sum of squares of what `slice` takes of its constant, for each unit.
pub(super) fn unit_squares(graph: &Graph, slice: &Slice) -> Result<Vec<f64>, String> {
    let tensor = constant(graph, slice)?;
    let values = Values { dims: tensor.dims.clone(), values: read(graph, slice, &tensor)? };
    let by_index = along(&values, slice.axis, |v| v.powi(2));
    Ok((0..slice.map.units()).map(|unit| owned(slice, unit, &by_index)).collect())
}

/// Sums of `size` of the elements for each index of `axis`.
fn along(of: &Values, axis: usize, size: impl Fn(f64) -> f64) -> Vec<f64> {
    let width = of.dims.get(axis).copied().unwrap_or(1);
    let inner: usize = of.dims.iter().skip(axis + 1).product();
    let mut by_index = vec![0.0; width];
    for (block, chunk) in of.values.chunks(inner.max(1)).enumerate() {
        by_index[block % width.max(1)] += chunk.iter().map(|v| size(*v)).sum::<f64>();
    }
    by_index
}

fn constant(graph: &Graph, slice: &Slice) -> Result<Arc<Tensor>, String> {
    let name = &graph.value(slice.value).name;
    let tensor = graph.constant(slice.value);
    tensor.ok_or_else(|| format!("constant \"{name}\" is gone"))
}

fn read(graph: &Graph, slice: &Slice, tensor: &Tensor) -> Result<Vec<f64>, String> {
    let name = &graph.value(slice.value).name;
    let values = tensor.to_f32_vec().map_err(|e| format!("constant \"{name}\": {e}"))?;
    Ok(values.into_iter().map(f64::from).collect())
}
