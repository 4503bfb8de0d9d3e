//! The pass over the calibration samples that shows what the original computes.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::ControlFlow;

use graph::ValueId;
use runtime::{ElementType, Tensor};

use super::shop::{Shop, save};
use crate::calibrate::{Batch, observed};
use crate::error::CompressError;
use crate::plan::Refusal;
use crate::refit::{self, MAX_GRAM_WORK, MAX_INPUTS, Site};
use crate::rescale::{self, Sum};
use crate::score::{self, AxisMoments, Deviations};

/// Samples that suffice for sums, and for rating where it needs passes of its own.
pub(crate) const RATING_SAMPLES: usize = 256;
/// Activations observed in one pass, to bound memory.
const VALUES_PER_PASS: usize = 16;
/// The most consumers re-fitted in one candidate: each costs a pass over the calibration samples.
const MAX_SITES: usize = 8;
/// The most bytes of the original's outputs that are kept.
const MAX_TARGET_BYTES: usize = 512 << 20;

/// What the original computes on the calibration samples, as far as rating and repairing need it.
pub(crate) struct Original {
    /// Places that may be re-fitted.
    pub(crate) sites: Vec<Site>,
    /// The compared output, whole, for each sample.
    pub(crate) outputs: Vec<Vec<f32>>,
    /// How much the activations that consumers read vary.
    pub(crate) deviations: Deviations,
    /// For each site and batch, sampled rows of what it computes.
    pub(crate) rows: Vec<Vec<Vec<f32>>>,
    pub(crate) strides: Vec<usize>,
    pub(crate) sums: Vec<Sum>,
    /// For each batch of the first samples, what each sum computes.
    pub(crate) sum_values: Vec<Vec<Vec<f32>>>,
}

/// Runs the original over all calibration samples and keeps what rates units and what repairs are fitted
/// to. Activations beyond the first few are rated in passes of their own, to bound memory.
pub(crate) fn observe(
    shop: &Shop<'_>,
    output: ValueId,
) -> Result<(Original, Vec<Refusal>), CompressError> {
    let (sites, mut refused) = sites(shop);
    let wanted = wanted(shop);
    let first = &wanted[..wanted.len().min(VALUES_PER_PASS)];
    let mut pass = Pass::new(shop, sites, first, output);
    let samples = shop.calibration.len();
    shop.progress.stage("observing the original", samples as u64);
    run(shop, &pass.values.clone(), samples, &mut |batch| pass.take(shop, &batch))?;
    let Pass { found: mut original, mut spreads, .. } = pass;
    for chunk in wanted[first.len()..].chunks(VALUES_PER_PASS) {
        let mut more = Spreads::new(chunk);
        let values = distinct(chunk.iter().map(|(v, _)| *v));
        let samples = RATING_SAMPLES.min(samples);
        shop.progress.stage("rating units", samples as u64);
        run(shop, &values, samples, &mut |batch| more.take(&values, &batch))?;
        spreads.extend(more);
    }
    let (deviations, unseen) = spreads.deviations();
    original.deviations = deviations;
    let graph = &shop.source.model.graph;
    refused.extend(unseen.into_iter().map(|value| {
        let why = "its activation is no f32 tensor with that axis; weights alone rate its units";
        Refusal::new("score", graph.value(value).name.clone(), why)
    }));
    Ok((original, refused))
}

/// Runs the source with `values` for outputs.
fn run(
    shop: &Shop<'_>,
    values: &[ValueId],
    samples: usize,
    sink: &mut dyn FnMut(Batch) -> Result<(), CompressError>,
) -> Result<(), CompressError> {
    let path = shop.work.join("observed.onnx");
    save(&observed(&shop.source.model, values)?, &path)?;
    shop.runner.run(&path, &shop.calibration, 0..samples, shop.progress, &mut |batch| {
        sink(batch).map(ControlFlow::Continue)
    })
}

/// The activations, and their axes, by which units are rated.
fn wanted(shop: &Shop<'_>) -> Vec<(ValueId, usize)> {
    let graph = &shop.source.model.graph;
    let groups = shop.source.observable();
    let wanted: BTreeSet<_> = groups.flat_map(|group| score::wanted(graph, group)).collect();
    wanted.into_iter().collect()
}

/// Moments of some activations along some axes.
struct Spreads {
    axes: Vec<(ValueId, usize)>,
    moments: HashMap<(ValueId, usize), AxisMoments>,
}

impl Spreads {
    fn new(axes: &[(ValueId, usize)]) -> Self {
        Self { axes: axes.to_vec(), moments: HashMap::new() }
    }

    /// Takes a batch whose outputs are `values`.
    fn take(&mut self, values: &[ValueId], batch: &Batch) -> Result<(), CompressError> {
        for (value, axis) in &self.axes {
            let at = values.iter().position(|v| v == value);
            let Some((_, tensor)) = at.and_then(|at| batch.outputs.get(at)) else { continue };
            let Some(&width) = tensor.shape.get(*axis) else { continue };
            if tensor.dtype != ElementType::F32 {
                continue;
            }
            let moments = self.moments.entry((*value, *axis));
            let moments = moments.or_insert_with(|| AxisMoments::new(width));
            moments.push(&tensor.shape, *axis, &floats(tensor)?);
        }
        Ok(())
    }

    fn extend(&mut self, other: Self) {
        self.axes.extend(other.axes);
        self.moments.extend(other.moments);
    }

    /// The deviations, and the values that showed none.
    fn deviations(self) -> (Deviations, Vec<ValueId>) {
        let unseen = self.axes.iter().filter(|key| !self.moments.contains_key(key));
        let unseen = unseen.map(|(value, _)| *value).collect();
        let seen = self.moments.into_iter().map(|(key, m)| (key, m.deviations()));
        (seen.collect(), unseen)
    }
}

/// The one pass over all calibration samples.
struct Pass {
    values: Vec<ValueId>,
    spreads: Spreads,
    output: ValueId,
    found: Original,
    samples: usize,
    bytes: usize,
}

impl Pass {
    fn new(
        shop: &Shop<'_>,
        sites: Vec<Site>,
        wanted: &[(ValueId, usize)],
        output: ValueId,
    ) -> Self {
        let sums = sums(shop);
        let values = sites
            .iter()
            .map(|s| s.output)
            .chain([output])
            .chain(sums.iter().map(|s| s.output))
            .chain(wanted.iter().map(|(v, _)| *v));
        Self {
            values: distinct(values),
            spreads: Spreads::new(wanted),
            output,
            samples: 0,
            bytes: 0,
            found: Original {
                outputs: Vec::new(),
                deviations: Deviations::new(),
                rows: vec![Vec::new(); sites.len()],
                strides: vec![0; sites.len()],
                sites,
                sums,
                sum_values: Vec::new(),
            },
        }
    }

    fn tensor<'b>(&self, batch: &'b Batch, value: ValueId) -> Result<&'b Tensor, CompressError> {
        let at = self.values.iter().position(|v| *v == value);
        output_of(batch, at.unwrap_or(usize::MAX))
    }

    fn take(&mut self, shop: &Shop<'_>, batch: &Batch) -> Result<(), CompressError> {
        self.spreads.take(&self.values, batch)?;
        for site in 0..self.found.sites.len() {
            self.take_site(shop, batch, site)?;
        }
        let data = floats(self.tensor(batch, self.output)?)?;
        self.bytes += data.len() * 4;
        let per = (data.len() / batch.samples.len().max(1)).max(1);
        self.found.outputs.extend(data.chunks(per).map(<[f32]>::to_vec));
        if self.samples < RATING_SAMPLES {
            let sums = self.found.sums.iter();
            let values = sums.map(|sum| floats(self.tensor(batch, sum.output)?));
            let values: Vec<Vec<f32>> = values.collect::<Result<_, _>>()?;
            self.bytes += values.iter().map(|v| v.len() * 4).sum::<usize>();
            self.found.sum_values.push(values);
        }
        self.samples += batch.samples.len();
        if self.bytes > MAX_TARGET_BYTES {
            return Err(too_many(self.bytes));
        }
        Ok(())
    }

    fn take_site(
        &mut self,
        shop: &Shop<'_>,
        batch: &Batch,
        site: usize,
    ) -> Result<(), CompressError> {
        let tensor = self.tensor(batch, self.found.sites[site].output)?;
        let columns = tensor.shape.last().copied().unwrap_or(1).max(1);
        let data = floats(tensor)?;
        if self.found.strides[site] == 0 {
            let rows = data.len() / columns / batch.samples.len().max(1);
            let inputs = width(shop, &self.found.sites[site]);
            self.found.strides[site] = stride(rows, shop.calibration.len(), inputs);
        }
        let rows = sampled(&data, columns, self.found.strides[site]);
        self.bytes += rows.len() * 4;
        self.found.rows[site].push(rows);
        Ok(())
    }
}

/// The sums over the units of every group.
fn sums(shop: &Shop<'_>) -> Vec<Sum> {
    let graph = &shop.source.model.graph;
    let mut sums: Vec<Sum> = Vec::new();
    for group in shop.source.observable() {
        for sum in rescale::sums(graph, &shop.source.shapes, group) {
            if !sums.contains(&sum) {
                sums.push(sum);
            }
        }
    }
    sums
}

/// Places that may be re-fitted in any candidate: consumers of any group, and the heads, in the graph's
/// order; and those that cannot, with the reason.
fn sites(shop: &Shop<'_>) -> (Vec<Site>, Vec<Refusal>) {
    let graph = &shop.source.model.graph;
    let mut wanted: HashSet<graph::NodeId> = refit::heads(graph).into_iter().collect();
    for group in shop.source.observable() {
        wanted.extend(group.consumers.iter().map(|c| c.node));
    }
    let (mut sites, mut refused) = (Vec::new(), Vec::new());
    for (node, _) in graph.nodes().filter(|(id, _)| wanted.contains(id)) {
        match refit::site(graph, node) {
            Ok(site) if width(shop, &site) > MAX_INPUTS => refused.push(refit::refusal(
                &site.label,
                format!("it has more than MAX_INPUTS = {MAX_INPUTS} inputs"),
            )),
            Ok(site) => sites.push(site),
            Err(why) => refused.push(refit::refusal(&refit::label(graph, node), why)),
        }
    }
    // The last ones see the sum of all that was lost before them.
    for extra in sites.drain(..sites.len().saturating_sub(MAX_SITES)) {
        refused.push(refit::refusal(
            &extra.label,
            format!("only the last MAX_SITES = {MAX_SITES} consumers are re-fitted"),
        ));
    }
    (sites, refused)
}

/// Inputs of a site's weight in the source.
fn width(shop: &Shop<'_>, site: &Site) -> usize {
    let weight = shop.source.model.graph.constant(site.weight);
    weight.map_or(0, |w| w.dims[usize::from(site.transposed)])
}

fn too_many(bytes: usize) -> CompressError {
    CompressError::Graph {
        stage: "observe",
        what: format!(
            "the original's outputs take {bytes} bytes, more than MAX_TARGET_BYTES = {MAX_TARGET_BYTES}; give fewer calibration samples"
        ),
    }
}

/// Every how-manieth row is used, so that one Gram matrix costs at most [`MAX_GRAM_WORK`].
fn stride(rows_per_sample: usize, samples: usize, inputs: usize) -> usize {
    let affordable = (MAX_GRAM_WORK / (inputs.max(1) as f64).powi(2)).clamp(256.0, 1e6);
    let all = (rows_per_sample * samples) as f64;
    ((all / affordable).ceil() as usize).max(1)
}

pub(crate) fn sampled(data: &[f32], columns: usize, stride: usize) -> Vec<f32> {
    data.chunks_exact(columns).step_by(stride).flatten().copied().collect()
}

pub(crate) fn output_of(batch: &Batch, at: usize) -> Result<&Tensor, CompressError> {
    batch.outputs.get(at).map(|(_, tensor)| tensor).ok_or_else(|| CompressError::Graph {
        stage: "observe",
        what: format!("the engine gave {} outputs, no number {at}", batch.outputs.len()),
    })
}

/// The numbers of a tensor that must be f32.
pub(crate) fn floats(tensor: &Tensor) -> Result<Vec<f32>, CompressError> {
    tensor.to_f32().map_err(CompressError::engine("reading an activation"))
}

pub(crate) fn distinct(values: impl IntoIterator<Item = ValueId>) -> Vec<ValueId> {
    let mut seen = HashSet::new();
    values.into_iter().filter(|v| seen.insert(*v)).collect()
}
