//! Batch normalizations that stay separate nodes: their means and variances, taken anew from a narrowed model.
//!
//! What a cut took away changes the mean and the variance of everything behind it, while the normalizations still
//! divide by those of the original. With m and s the mean and deviation of what a normalization reads on the samples,
//! in the original (0) and in the narrowed model (1), it gets
//!
//! ```text
//! σ' = σ·s₁/s₀        μ' = m₁ − σ'·(m₀ − μ)/σ
//! ```
//!
//! after which what it computes has the mean and the deviation that it had in the original. Where the samples are like
//! the training set (m₀ = μ, s₀ = σ) these are the mean and deviation themselves; where they are not, taking those would
//! normalize away what sets the samples apart. Normalizations are taken one after the other, in the graph's order and
//! each behind those that were taken before it; those that do not depend on each other share a pass.

use std::collections::{HashMap, HashSet};
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use graph::{Cause, Graph, Model, NodeId, Op, ValueId};
use runtime::Tensor;

use super::observe::{distinct, floats, output_of};
use super::passes::Passes;
use super::relay::Relay;
use super::repair::{Fitting, replace};
use super::shop::{Source, save};
use super::takeover::removed_of_constant;
use crate::calibrate::{Batch, observed};
use crate::error::CompressError;
use crate::plan::{GroupChoice, NodeRef, NormStep, Refusal};
use crate::refit;
use crate::score::AxisMoments;

/// Why there may be nothing to re-estimate.
pub(crate) const NONE: &str = "no batch normalization stands behind what was narrowed; exporters often fold them into \
    the convolutions, and then gram or ls repair";
/// Samples that suffice for mean and variance: with twice as many no accuracy changed by more than chance.
const MOST_SAMPLES: usize = 128;
/// Slots of the mean and the variance.
const MEAN: usize = 3;
const VARIANCE: usize = 4;
/// A channel whose variance falls below this share of what it was has lost its input, and keeps the variance.
const DEAD: f64 = 1e-6;

/// The batch normalizations behind what `groups` narrow, in the graph's order.
pub(crate) fn behind(source: &Source, groups: &[GroupChoice]) -> Vec<NodeRef> {
    let graph = &source.model.graph;
    let chosen = groups.iter().filter_map(|c| source.grouping.groups.get(c.group as usize));
    let chosen = chosen.filter(|group| group.scope.is_main());
    let changed: HashSet<NodeId> =
        chosen.flat_map(|group| &group.consumers).map(|c| c.node).collect();
    let mut touched: HashSet<ValueId> = HashSet::new();
    let mut norms = Vec::new();
    for (id, node) in graph.nodes() {
        let reads = || node.inputs.iter().flatten().any(|v| touched.contains(v));
        if !changed.contains(&id) && !reads() {
            continue;
        }
        touched.extend(node.outputs.iter().flatten());
        if Norm::of(graph, id).is_some() {
            norms.push(NodeRef { node: id.0, label: refit::label(graph, id) });
        }
    }
    norms
}

/// Whether the model has a batch normalization that can be taken anew.
pub(crate) fn any(source: &Source) -> bool {
    let graph = &source.model.graph;
    graph.nodes().any(|(id, _)| Norm::of(graph, id).is_some())
}

/// A batch normalization at inference, with constants for mean and variance.
struct Norm {
    node: NodeId,
    input: ValueId,
    mean: Vec<f32>,
    variance: Vec<f32>,
    epsilon: f32,
}

impl Norm {
    fn of(graph: &Graph, id: NodeId) -> Option<Self> {
        let node = graph.get_node(id)?;
        let Op::BatchNormalization { epsilon, training: false } = node.op else { return None };
        let read = |slot: usize| -> Option<Vec<f32>> {
            let tensor = graph.constant(node.input(slot)?)?;
            (tensor.dtype == graph::DType::F32).then(|| tensor.to_f32_vec().ok())?
        };
        let (mean, variance) = (read(MEAN)?, read(VARIANCE)?);
        (mean.len() == variance.len()).then_some(())?;
        Some(Self { node: id, input: node.input(0)?, mean, variance, epsilon })
    }

    /// Writes mean and variance anew. `before` is what was read in the original, of which `columns` are left; `after`
    /// what is read now.
    fn renew(
        &self,
        model: &mut Model,
        before: &AxisMoments,
        columns: &[usize],
        after: &AxisMoments,
    ) -> Result<NormStep, String> {
        let (old, new) = (Read::of(before)?, Read::of(after)?);
        if columns.len() != self.mean.len() || columns.iter().any(|c| *c >= old.means.len()) {
            return Err("its channels are not a part of the original's".into());
        }
        let (mut means, mut variances) = (Vec::new(), Vec::new());
        let (mut kept, mut moved, mut ratio) = (0, 0.0, 0.0);
        for (at, column) in columns.iter().enumerate() {
            let (mean, variance) = (f64::from(self.mean[at]), f64::from(self.variance[at]));
            let full = (variance + f64::from(self.epsilon)).max(f64::MIN_POSITIVE);
            let (s0, s1) = (old.deviations[*column], new.deviations[at]);
            let dead = s1 * s1 <= DEAD * s0 * s0;
            kept += usize::from(dead);
            let share = if dead { 1.0 } else { (s1 / s0).powi(2) };
            let renewed = (full * share - f64::from(self.epsilon)).max(0.0);
            let share = ((renewed + f64::from(self.epsilon)) / full).sqrt();
            let renewed_mean = new.means[at] - share * (old.means[*column] - mean);
            moved += (renewed_mean - mean).powi(2) / full;
            ratio += share * share;
            means.push(renewed_mean as f32);
            variances.push(if dead { self.variance[at] } else { renewed as f32 });
        }
        let label = refit::label(&model.graph, self.node);
        let cause = Cause::new("norm", label.clone());
        for (slot, what, values) in [(MEAN, "mean", means), (VARIANCE, "variance", variances)] {
            let tensor =
                graph::Tensor::from_f32(vec![values.len()], &values).map_err(|e| e.to_string())?;
            replace(&mut model.graph, self.node, slot, format!("{label}_{what}"), tensor, &cause)?;
        }
        let count = columns.len().max(1) as f64;
        Ok(NormStep {
            node: label,
            mean_moved: (moved / count).sqrt(),
            variance_ratio: ratio / count,
            rows: after.count(),
            note: (kept > 0).then(|| {
                format!("{kept} channels no longer vary on the samples and keep their variance")
            }),
        })
    }
}

/// What a norm reads, along its channels.
type Seen = Result<AxisMoments, String>;

/// What the norms of the original read, a few norms in each pass.
#[derive(Default)]
pub(crate) struct NormsBefore {
    seen: HashMap<NodeId, Seen>,
    /// Samples of a batch.
    batch: usize,
    norms: Vec<Norm>,
    /// Of `norms`, what the pass that runs looks at; none behind it was looked at yet.
    open: Range<usize>,
}

impl NormsBefore {
    /// Of all norms of `graph`, with nothing seen.
    fn of(graph: &Graph) -> Self {
        let norms = graph.nodes().filter_map(|(id, _)| Norm::of(graph, id)).collect();
        Self { norms, ..Self::default() }
    }

    /// Whether every norm was looked at.
    fn is_done(&self) -> bool {
        self.open.end == self.norms.len()
    }

    /// Begins a pass over as many norms as there is room for; what they read.
    fn begin(&mut self, passes: &Passes) -> Vec<ValueId> {
        let start = self.open.end;
        let (next, _) = passes.split(&self.norms[start..], |norm| norm.input);
        self.open = start..start + next.len();
        self.norms[self.open.clone()].iter().map(|norm| norm.input).collect()
    }

    /// Takes a batch whose outputs are `values`.
    fn take(&mut self, values: &[ValueId], batch: &Batch) -> Result<(), CompressError> {
        self.batch = self.batch.max(batch.samples.len());
        for norm in &self.norms[self.open.clone()] {
            let at = values.iter().position(|v| *v == norm.input);
            let tensor = output_of(batch, at.unwrap_or(usize::MAX))?;
            let seen = self.seen.entry(norm.node).or_insert_with(|| nothing_seen(norm));
            look(seen, tensor)?;
        }
        Ok(())
    }
}

/// Mean and deviation of what a norm reads, by channel.
struct Read {
    means: Vec<f64>,
    deviations: Vec<f64>,
}

impl Read {
    fn of(moments: &AxisMoments) -> Result<Self, String> {
        let read = Self { means: moments.means(), deviations: moments.deviations() };
        let finite = read.means.iter().chain(&read.deviations).all(|v| v.is_finite());
        if moments.count() == 0 || !finite {
            return Err("what it reads is empty or not finite".into());
        }
        Ok(read)
    }
}

impl Fitting<'_> {
    /// Takes mean and variance of the batch normalizations `wanted` of `model`, which `groups` narrowed, anew on the
    /// first `samples` samples, of which [`MOST_SAMPLES`] suffice.
    pub(crate) fn renew_norms(
        &self,
        model: &mut Model,
        groups: &[GroupChoice],
        wanted: &[NodeRef],
        samples: usize,
    ) -> Result<(Vec<NormStep>, Vec<Refusal>), CompressError> {
        let (mut steps, mut refused) = (Vec::new(), Vec::new());
        let samples = samples.min(MOST_SAMPLES);
        let before = self.norms_before(samples)?;
        self.shop.progress.stage("re-estimating normalizations", samples as u64);
        let mut relay = Relay::new(self.shop, samples, before.batch);
        for layer in layers(&model.graph, wanted) {
            self.shop.check("repair")?;
            let norms = norms_of(&model.graph, &layer);
            if norms.len() < layer.len() {
                let gone = layer.iter().filter(|at| norms.iter().all(|n| n.node.0 != at.node));
                let why = "it is no batch normalization with constants in the narrowed model";
                refused.extend(gone.map(|at| Refusal::new("norm", at.label.clone(), why)));
            }
            let seen = moments_now(model, &norms, &mut relay)?;
            for (norm, after) in norms.iter().zip(seen) {
                let step = before.seen.get(&norm.node).map_or_else(
                    || Err("the source has no such norm".to_owned()),
                    |before| {
                        let columns = self.columns(groups, norm.node)?;
                        norm.renew(model, before.as_ref().map_err(Clone::clone)?, &columns, &after?)
                    },
                );
                match step {
                    Ok(step) => steps.push(step),
                    Err(why) => {
                        let label = refit::label(&model.graph, norm.node);
                        refused.push(Refusal::new("norm", label, why));
                    }
                }
            }
        }
        Ok((steps, refused))
    }

    /// Channels of a norm that a plan leaves.
    fn columns(&self, groups: &[GroupChoice], node: NodeId) -> Result<Vec<usize>, String> {
        let source = &self.shop.source;
        let gone = removed_of_constant(source, groups, (node, MEAN), 0)?;
        let norm = Norm::of(&source.model.graph, node).ok_or("the source has no such norm")?;
        Ok((0..norm.mean.len()).filter(|c| !gone.contains(c)).collect())
    }

    /// What the norms of the original read on the first `samples` samples. In passes of their own, which are the same
    /// whenever a plan is done again: what else is looked at can change the last bits of what an engine computes.
    fn norms_before(&self, samples: usize) -> Result<Arc<NormsBefore>, CompressError> {
        if let Some(known) = self.original.norms.borrow().get(&samples) {
            return Ok(Arc::clone(known));
        }
        let shop = self.shop;
        let mut before = NormsBefore::of(&shop.source.model.graph);
        let passes = Passes::of(shop)?;
        while !before.is_done() {
            let values = distinct(before.begin(&passes));
            shop.progress.stage("observing normalizations", samples as u64);
            let path = shop.work.join("norms.onnx");
            save(&observed(&shop.source.model, &values)?, &path)?;
            shop.runner.run(&path, &shop.calibration, 0..samples, shop.progress, &mut |batch| {
                before.take(&values, &batch)?;
                Ok(ControlFlow::Continue(()))
            })?;
        }
        let before = Arc::new(before);
        self.original.norms.borrow_mut().insert(samples, Arc::clone(&before));
        Ok(before)
    }
}

/// What the norms of the narrowed model read now.
fn moments_now(
    model: &Model,
    norms: &[Norm],
    relay: &mut Relay<'_>,
) -> Result<Vec<Seen>, CompressError> {
    let mut seen: Vec<Seen> = norms.iter().map(nothing_seen).collect();
    let nodes: Vec<NodeId> = norms.iter().map(|norm| norm.node).collect();
    let inputs: Vec<ValueId> = norms.iter().map(|norm| norm.input).collect();
    let values = distinct(inputs.iter().copied());
    relay.run(model, &nodes, &inputs, &mut |_, tensors| {
        for (input, seen) in inputs.iter().zip(&mut seen) {
            let at = values.iter().position(|v| v == input);
            let Some(tensor) = at.and_then(|at| tensors.get(at)) else { continue };
            look(seen, tensor)?;
        }
        Ok(())
    })?;
    Ok(seen)
}

fn nothing_seen(norm: &Norm) -> Seen {
    Ok(AxisMoments::new(norm.mean.len()))
}

/// Takes a batch of what a norm reads.
fn look(seen: &mut Seen, tensor: &Tensor) -> Result<(), CompressError> {
    let data = floats(tensor)?;
    if seen.as_mut().is_ok_and(|moments| !moments.push(&tensor.shape, 1, &data)) {
        *seen = Err(format!("it reads {:?}, without its channels", tensor.shape));
    }
    Ok(())
}

fn norms_of(graph: &Graph, wanted: &[NodeRef]) -> Vec<Norm> {
    wanted.iter().filter_map(|at| Norm::of(graph, NodeId(at.node))).collect()
}

/// The norms in layers, each of which depends on those before it alone.
fn layers(graph: &Graph, wanted: &[NodeRef]) -> Vec<Vec<NodeRef>> {
    let known: HashMap<u32, &NodeRef> = wanted.iter().map(|at| (at.node, at)).collect();
    let mut depth: HashMap<ValueId, usize> = HashMap::new();
    let mut layers: Vec<Vec<NodeRef>> = Vec::new();
    for (id, node) in graph.nodes() {
        let captured = graph.captures(id);
        let inputs = node.inputs.iter().flatten().chain(&captured);
        let mut own = inputs.filter_map(|v| depth.get(v)).copied().max().unwrap_or(0);
        if let Some(at) = known.get(&id.0) {
            layers.resize(layers.len().max(own + 1), Vec::new());
            layers[own].push((*at).clone());
            own += 1;
        }
        depth.extend(node.outputs.iter().flatten().map(|v| (*v, own)));
    }
    layers.retain(|layer| !layer.is_empty());
    layers
}

/// Factor and summand for each column of what stands in front of a norm, where the norm of the narrowed `model` is not
/// the original's: what makes the new norm compute what the original one did, `s = σ'/σ` and `μ' − s·μ`. `columns` are
/// the channels that are left.
pub(crate) fn moved(
    source: &Graph,
    model: &Graph,
    output: ValueId,
    columns: &[usize],
) -> Option<Vec<(f64, f64)>> {
    let only = |graph: &Graph| match graph.consumers(output).as_slice() {
        [(node, 0)] => Norm::of(graph, *node),
        _ => None,
    };
    let (old, new) = (only(source)?, only(model)?);
    if old.node != new.node || new.mean.len() != columns.len() {
        return None;
    }
    let mut same = true;
    let mut all = Vec::with_capacity(columns.len());
    for (at, column) in columns.iter().enumerate() {
        let (mean, variance) = (*old.mean.get(*column)?, *old.variance.get(*column)?);
        same &= mean == new.mean[at] && variance == new.variance[at];
        let root = |v: f32, epsilon: f32| f64::from(v + epsilon).max(f64::MIN_POSITIVE).sqrt();
        let s = root(new.variance[at], new.epsilon) / root(variance, old.epsilon);
        all.push((s, f64::from(new.mean[at]) - s * f64::from(mean)));
    }
    (!same).then_some(all)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "norms_tests.rs"]
mod tests;
