//! How large the weights of a unit are, with batch normalizations folded into what stands in front of them.
//!
//! A normalization behind a convolution rescales it, so that the size of its raw weights says nothing: what counts is
//! `w·γ/√(σ² + ε)`, and `(b − μ)·γ/√(σ² + ε) + β` for the bias, which is what an exporter that folds would have
//! written. A normalization that folds into nothing counts with its own scale and shift so written. Variances and other
//! divisors do not count by themselves.

use std::collections::HashMap;

use graph::{Graph, Group, NodeId, Op, Role, Slice};

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
        let norms = norms(graph, group)?;
        let mut total = vec![0.0; group.width];
        for slice in group.slices.iter().filter(|s| s.role != Role::Divisor) {
            if norms.contains_key(&slice.node) {
                continue;
            }
            let by_index = match folded_into(graph, &norms, slice) {
                Some((norm, Part::Weight)) => self.of_weight(graph, slice, Some(norm))?,
                Some((norm, Part::Bias)) => norm.shifts(&constant(graph, slice)?, *self),
                None => self.of_weight(graph, slice, None)?,
            };
            add(&mut total, slice, &by_index);
        }
        for (slice, norm) in norms.values() {
            let mut by_index = vec![0.0; norm.scale.len()];
            if !norm.folded {
                by_index.iter_mut().zip(&norm.scale).for_each(|(s, w)| *s += self.size(*w));
            }
            if !norm.biased {
                let own = norm.shifts(&[], *self);
                by_index.iter_mut().zip(own).for_each(|(s, w)| *s += w);
            }
            add(&mut total, slice, &by_index);
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

    /// Sizes along a slice's axis, each index times what a norm behind it makes of it.
    fn of_weight(
        self,
        graph: &Graph,
        slice: &Slice,
        norm: Option<&Norm>,
    ) -> Result<Vec<f64>, String> {
        let mut by_index = along(graph, slice, |v| self.size(v))?;
        if let Some(norm) = norm {
            by_index.iter_mut().zip(&norm.scale).for_each(|(sum, s)| *sum *= self.size(*s));
        }
        Ok(by_index)
    }
}

/// A batch normalization as the product and the sum that it is at inference.
#[derive(Debug, Clone)]
struct Norm {
    /// γ/√(σ² + ε).
    scale: Vec<f64>,
    mean: Vec<f64>,
    beta: Vec<f64>,
    /// Whether it folds into weights of the group that stand in front of it, and into their bias.
    folded: bool,
    biased: bool,
}

impl Norm {
    /// Sizes of `(b − μ)·s + β`, for b zero where `bias` ends.
    fn shifts(&self, bias: &[f32], by: Magnitude) -> Vec<f64> {
        let bias = bias.iter().map(|b| f64::from(*b)).chain(std::iter::repeat(0.0));
        let parts = self.scale.iter().zip(&self.mean).zip(&self.beta).zip(bias);
        parts.map(|(((s, m), beta), b)| by.size((b - m) * s + beta)).collect()
    }
}

/// What a constant is to the layer that a norm stands behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Weight,
    Bias,
}

/// The batch normalizations of the group at inference, by node, each with the slice of its scale.
fn norms<'g>(
    graph: &Graph,
    group: &'g Group,
) -> Result<HashMap<NodeId, (&'g Slice, Norm)>, String> {
    let mut norms = HashMap::new();
    for slice in group.slices.iter().filter(|s| s.slot == 1) {
        let node = graph.node(slice.node);
        let Op::BatchNormalization { epsilon, training: false } = &node.op else { continue };
        let read = |slot: usize| -> Option<Vec<f64>> {
            let tensor = graph.constant(node.input(slot)?)?;
            Some(tensor.to_f32_vec().ok()?.into_iter().map(f64::from).collect())
        };
        let (Some(gamma), Some(beta), Some(mean), Some(variance)) =
            (read(1), read(2), read(3), read(4))
        else {
            continue;
        };
        let root = |v: &f64| (v + f64::from(*epsilon)).max(f64::MIN_POSITIVE).sqrt();
        let scale = gamma.iter().zip(&variance).map(|(g, v)| g / root(v)).collect();
        norms.insert(slice.node, (slice, Norm { scale, mean, beta, folded: false, biased: false }));
    }
    let found: Vec<(NodeId, Part)> = group
        .slices
        .iter()
        .filter_map(|slice| {
            let (norm, part) = behind(graph, slice)?;
            Some((norm, part)).filter(|_| norms.contains_key(&norm))
        })
        .collect();
    for (node, part) in found {
        if let Some((_, norm)) = norms.get_mut(&node) {
            norm.folded |= part == Part::Weight;
            norm.biased |= part == Part::Bias;
        }
    }
    Ok(norms)
}

/// The norm of the group that a slice folds into, and what it is in front of it.
fn folded_into<'n>(
    graph: &Graph,
    norms: &'n HashMap<NodeId, (&Slice, Norm)>,
    slice: &Slice,
) -> Option<(&'n Norm, Part)> {
    let (node, part) = behind(graph, slice)?;
    norms.get(&node).map(|(_, norm)| (norm, part))
}

/// The node that alone reads what the slice's layer computes, where the slice lies along its outputs.
fn behind(graph: &Graph, slice: &Slice) -> Option<(NodeId, Part)> {
    let node = graph.node(slice.node);
    let output = node.output(0)?;
    let axis = match &node.op {
        Op::Conv(_) => 0,
        Op::ConvTranspose(attrs) if attrs.group <= 1 => 1,
        Op::Gemm(attrs) => usize::from(!attrs.trans_b),
        _ => return None,
    };
    let part = match slice.slot {
        1 if slice.axis == axis => Part::Weight,
        2 => Part::Bias,
        _ => return None,
    };
    match graph.consumers(output).as_slice() {
        [(norm, 0)] if !graph.outputs().contains(&output) => Some((*norm, part)),
        _ => None,
    }
}

/// Adds what each index of a slice's axis has to the units that own it.
fn add(total: &mut [f64], slice: &Slice, by_index: &[f64]) {
    for (unit, sum) in total.iter_mut().enumerate().take(slice.map.units()) {
        *sum += owned(slice, unit, by_index);
    }
}

fn owned(slice: &Slice, unit: usize, by_index: &[f64]) -> f64 {
    slice.map.unit(unit).iter().filter_map(|i| by_index.get(*i as usize)).sum()
}

/// Sum of squares of what `slice` takes of its constant, for each unit.
pub(super) fn unit_squares(graph: &Graph, slice: &Slice) -> Result<Vec<f64>, String> {
    let by_index = along(graph, slice, |v| v.powi(2))?;
    Ok((0..slice.map.units()).map(|unit| owned(slice, unit, &by_index)).collect())
}

/// Sums of `size` of the elements of a slice's constant, for each index of its axis.
fn along(graph: &Graph, slice: &Slice, size: impl Fn(f64) -> f64) -> Result<Vec<f64>, String> {
    let values = constant(graph, slice)?;
    let dims = graph.constant(slice.value).map(|t| t.dims.clone()).unwrap_or_default();
    let width = dims.get(slice.axis).copied().unwrap_or(1);
    let inner: usize = dims.iter().skip(slice.axis + 1).product();
    let mut by_index = vec![0.0; width];
    for (block, chunk) in values.chunks(inner.max(1)).enumerate() {
        by_index[block % width.max(1)] += chunk.iter().map(|v| size(f64::from(*v))).sum::<f64>();
    }
    Ok(by_index)
}

fn constant(graph: &Graph, slice: &Slice) -> Result<Vec<f32>, String> {
    let name = &graph.value(slice.value).name;
    let tensor =
        graph.constant(slice.value).ok_or_else(|| format!("constant \"{name}\" is gone"))?;
    tensor.to_f32_vec().map_err(|e| format!("constant \"{name}\": {e}"))
}
