//! A model that is repaired front to back, run front to back: what was computed in front of one repair is where the
//! run to the next one starts.
//!
//! Repairs that go one after the other each need what the repairs before them left. Running the model from its inputs
//! for each of them costs as many passes as there are repairs; a relay holds the activations that cross the place of
//! the last repair, and so all of them together cost about one pass.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use graph::{Cause, DType, Dim, Edit, Given, Graph, Model, NodeId, TensorType, ValueId};
use runtime::{ElementType, EngineError, Tensor};

use super::observe::distinct;
use super::shop::{Shop, save};
use crate::error::CompressError;

/// The most bytes of activations that are held; where more cross a place, the run to the next one starts further back.
const MAX_HELD_BYTES: usize = 256 << 20;

/// Takes the number of a batch and what was computed on it.
pub(crate) type Sink<'s> = &'s mut dyn FnMut(usize, &[&Tensor]) -> Result<(), CompressError>;

/// Activations of a model up to some place, for each batch of samples.
pub(crate) struct Relay<'a> {
    shop: &'a Shop<'a>,
    batches: Vec<Vec<usize>>,
    /// What is held of every batch.
    held: Vec<HashMap<ValueId, Tensor>>,
    /// Position of the node in front of which all that is held was computed.
    place: usize,
    limit: usize,
}

impl<'a> Relay<'a> {
    /// Over the first `samples` samples in batches of `size`, at the model's inputs.
    pub(crate) fn new(shop: &'a Shop<'a>, samples: usize, size: usize) -> Self {
        let batches = shop.calibration.batches(0..samples, size.max(1));
        let held = vec![HashMap::new(); batches.len()];
        Self { shop, batches, held, place: 0, limit: MAX_HELD_BYTES }
    }

    /// Samples of a batch.
    pub(crate) fn size(&self) -> usize {
        self.batches.first().map_or(1, Vec::len)
    }

    /// Computes `values` on every batch and gives them to `sink` with the batch's number, then holds what crosses the
    /// place in front of `nodes`. From here on, `model` may change in `nodes` and behind the first of them, not in
    /// front of it.
    pub(crate) fn run(
        &mut self,
        model: &Model,
        nodes: &[NodeId],
        values: &[ValueId],
        sink: Sink<'_>,
    ) -> Result<(), CompressError> {
        let values = distinct(values.iter().copied());
        let place = place(&model.graph, nodes);
        if place < self.place {
            self.held.iter_mut().for_each(HashMap::clear);
        }
        self.place = place;
        let crossing = crossing(&model.graph, place);
        let mut done = 0;
        let first = self.run_from_here(model, &values, &crossing, &mut |at, seen| {
            done += 1;
            sink(at, seen)
        });
        match first {
            // A part can be one that cannot be cut out, or that the engine does not take, where it takes the whole.
            Err(CompressError::Engine { .. } | CompressError::Graph { .. }) if done == 0 => {
                self.held.iter_mut().for_each(HashMap::clear);
                self.run_from_here(model, &values, &[], sink)
            }
            outcome => outcome,
        }
    }

    fn run_from_here(
        &mut self,
        model: &Model,
        values: &[ValueId],
        crossing: &[ValueId],
        sink: Sink<'_>,
    ) -> Result<(), CompressError> {
        let wanted = distinct(values.iter().chain(crossing).copied());
        let wanted: Vec<ValueId> = wanted.into_iter().filter(|v| !self.holds(v)).collect();
        let mut next: Vec<HashMap<ValueId, Tensor>> = Vec::new();
        let (mut bytes, mut samples) = (0, 0);
        let mut take = |at: usize, outputs: Vec<(String, Tensor)>| {
            let found = outputs.into_iter().map(|(_, tensor)| tensor);
            let mut found: HashMap<ValueId, Tensor> = wanted.iter().copied().zip(found).collect();
            let seen = values.iter().map(|v| found.get(v).or_else(|| self.held[at].get(v)));
            let seen: Option<Vec<&Tensor>> = seen.collect();
            let lost = || CompressError::Graph { stage: "repair", what: "a value is lost".into() };
            sink(at, &seen.ok_or_else(lost)?)?;
            samples += self.batches[at].len() as u64;
            self.shop.progress.step(samples);
            found.retain(|value, _| crossing.contains(value));
            let kept = self.held[at].iter().filter(|(value, _)| crossing.contains(value));
            let kept = kept.map(|(_, tensor)| tensor.data.len()).sum::<usize>();
            bytes += kept + found.values().map(|t| t.data.len()).sum::<usize>();
            if bytes <= self.limit {
                next.push(found);
            } else {
                next.clear();
            }
            Ok(())
        };
        if wanted.is_empty() {
            (0..self.batches.len()).try_for_each(|at| take(at, Vec::new()))?;
        } else {
            self.compute(model, &wanted, &mut take)?;
        }
        self.advance(next, crossing);
        Ok(())
    }

    /// Whether a value is held, of every batch.
    fn holds(&self, value: &ValueId) -> bool {
        self.held.iter().all(|held| held.contains_key(value))
    }

    /// Holds what crosses the new place, unless that is too much: what was held before still serves.
    fn advance(&mut self, next: Vec<HashMap<ValueId, Tensor>>, crossing: &[ValueId]) {
        if next.len() < self.batches.len() {
            return;
        }
        for (held, mut found) in self.held.iter_mut().zip(next) {
            let kept = std::mem::take(held);
            found.extend(kept.into_iter().filter(|(value, _)| crossing.contains(value)));
            *held = found;
        }
    }

    fn compute(
        &self,
        model: &Model,
        wanted: &[ValueId],
        sink: &mut dyn FnMut(usize, Vec<(String, Tensor)>) -> Result<(), CompressError>,
    ) -> Result<(), CompressError> {
        let shop = self.shop;
        let wrong = |what: String| CompressError::Graph { stage: "repair", what };
        let mut part = graph::extract(model, &self.given(), wanted).map_err(wrong)?;
        self.fix_inputs(&mut part)?;
        let path = shop.work.join("part.onnx");
        save(&part, &path)?;
        let reads = |value: &ValueId| part.graph.inputs().contains(value);
        let names: Vec<(ValueId, &str)> = self
            .held
            .first()
            .into_iter()
            .flat_map(HashMap::keys)
            .filter(|value| reads(value))
            .map(|value| (*value, part.graph.value(*value).name.as_str()))
            .collect();
        let own = part.graph.inputs().len() > names.len();
        let feed = |at: usize| -> Result<Vec<(String, Cow<'_, Tensor>)>, EngineError> {
            let held = names.iter().filter_map(|(value, name)| {
                Some(((*name).to_owned(), Cow::Borrowed(self.held[at].get(value)?)))
            });
            let mut inputs: Vec<(String, Cow<'_, Tensor>)> = held.collect();
            if own {
                let samples = shop.calibration.batch(&self.batches[at])?;
                let read = |name: &str| part.graph.value_by_name(name).is_some_and(|v| reads(&v));
                let samples = samples.into_iter().filter(|(name, _)| read(name));
                inputs.extend(samples.map(|(name, tensor)| (name, Cow::Owned(tensor))));
            }
            Ok(inputs)
        };
        shop.runner.run_fed(&path, self.batches.len(), &feed, shop.progress, sink)
    }

    /// Declares the model's own inputs as they come, where all batches are alike: engines plan by sizes that they know.
    fn fix_inputs(&self, part: &mut Model) -> Result<(), CompressError> {
        let Some(first) = self.batches.first() else { return Ok(()) };
        let own = part.graph.inputs().iter().any(|value| !self.holds(value));
        if !own || self.batches.iter().any(|batch| batch.len() != first.len()) {
            return Ok(());
        }
        let file = self.shop.calibration.file().display();
        let samples = self.shop.calibration.batch(first);
        let samples = samples.map_err(CompressError::engine(format!("reading {file}")))?;
        for (name, tensor) in samples {
            let value = part.graph.value_by_name(&name);
            let value = value.filter(|value| part.graph.inputs().contains(value));
            let (Some(value), Some(dtype)) = (value, dtype(tensor.dtype)) else { continue };
            let dims = tensor.shape.iter().map(|size| Dim::Fixed(*size)).collect();
            let ty = Some(TensorType { dtype, dims: Some(dims) });
            let cause = Cause::new("repair", "what the samples are");
            graph::apply(&mut part.graph, Edit::SetType { value, ty }, &cause)
                .map_err(|e| CompressError::Graph { stage: "repair", what: e.to_string() })?;
        }
        Ok(())
    }

    /// What is held: what is no floating-point number and the same for all batches is a constant, since engines plan by
    /// sizes that they know.
    fn given(&self) -> Vec<(ValueId, Given)> {
        let Some(first) = self.held.first() else { return Vec::new() };
        let mut given: Vec<(ValueId, Given)> = first
            .iter()
            .filter_map(|(value, tensor)| {
                let all = || self.held.iter().filter_map(|held| held.get(value));
                let ty =
                    TensorType { dtype: dtype(tensor.dtype)?, dims: Some(shared(tensor, all)) };
                let number = matches!(tensor.dtype, ElementType::I32 | ElementType::I64);
                let constant = number && all().all(|other| other == tensor);
                let constant = constant.then(|| {
                    graph::Tensor::new(ty.dtype, tensor.shape.clone(), tensor.data.clone()).ok()
                });
                let how = constant.flatten().map_or(Given::Fed(ty), Given::Constant);
                Some((*value, how))
            })
            .collect();
        given.sort_by_key(|(value, _)| *value);
        given
    }
}

/// The dimensions of `tensor`, as far as `all` have them.
fn shared<'t, I: Iterator<Item = &'t Tensor>>(tensor: &Tensor, all: impl Fn() -> I) -> Vec<Dim> {
    let same = |axis: usize, size: usize| all().all(|t| t.shape.get(axis) == Some(&size));
    let axes = tensor.shape.iter().enumerate();
    axes.map(|(axis, size)| if same(axis, *size) { Dim::Fixed(*size) } else { Dim::Unknown })
        .collect()
}

/// Position of the first of `nodes`.
fn place(graph: &Graph, nodes: &[NodeId]) -> usize {
    let mut order = graph.nodes().map(|(id, _)| id);
    order.position(|id| nodes.contains(&id)).unwrap_or(0)
}

/// Values computed in front of position `place` that are read behind it, constants aside.
fn crossing(graph: &Graph, place: usize) -> Vec<ValueId> {
    let before: HashSet<ValueId> = graph
        .nodes()
        .take(place)
        .flat_map(|(_, node)| node.outputs.iter().flatten().copied())
        .collect();
    let read = graph.nodes().skip(place).flat_map(|(id, node)| {
        let captured = if node.has_subgraphs() { graph.captures(id) } else { Vec::new() };
        node.inputs.iter().flatten().copied().chain(captured).collect::<Vec<_>>()
    });
    distinct(read.filter(|v| before.contains(v) && graph.constant(*v).is_none()))
}

/// The graph's name of an element type.
pub(crate) fn dtype(element: ElementType) -> Option<DType> {
    Some(match element {
        ElementType::F32 => DType::F32,
        ElementType::F64 => DType::F64,
        ElementType::F16 => DType::F16,
        ElementType::Bf16 => DType::Bf16,
        ElementType::I8 => DType::I8,
        ElementType::I16 => DType::I16,
        ElementType::I32 => DType::I32,
        ElementType::I64 => DType::I64,
        ElementType::U8 => DType::U8,
        ElementType::U16 => DType::U16,
        ElementType::U32 => DType::U32,
        ElementType::U64 => DType::U64,
        ElementType::Bool => DType::Bool,
        ElementType::String => return None,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "relay_tests.rs"]
mod tests;
