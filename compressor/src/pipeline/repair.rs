//! Passes over the calibration samples: what units do, what the original computes, and the repairs
//! that bring a narrowed model back to it.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::ControlFlow;

use graph::{Cause, Edit, Model, ValueId};
use runtime::{ElementType, Tensor};

use super::shop::{Shop, save};
use crate::calibrate::{Batch, observed};
use crate::error::CompressError;
use crate::plan::{RefitStep, Refusal, RescaleStep};
use crate::refit::{self, FOLDS, Gram, MAX_GRAM_WORK, MAX_INPUTS, Site, Solution};
use crate::rescale::{self, Moments, Sum};
use crate::score::{self, AxisMoments, Deviations};

/// Samples that suffice to rate units.
pub(crate) const RATING_SAMPLES: usize = 256;
/// Activations observed in one pass, to bound memory.
const VALUES_PER_PASS: usize = 16;
/// The most consumers re-fitted in one candidate: each costs a pass over the calibration samples.
pub(crate) const MAX_SITES: usize = 8;
/// A sum whose relative change is under this is left alone.
const SUM_UNCHANGED: f64 = 1e-5;
/// The most bytes of the original's outputs that are kept.
const MAX_TARGET_BYTES: usize = 512 << 20;

/// Observes the activations that [`score::wanted`] names, over the first calibration samples.
pub(crate) fn deviations(shop: &Shop<'_>) -> Result<(Deviations, Vec<Refusal>), CompressError> {
    let graph = &shop.source.model.graph;
    let wanted: BTreeSet<(ValueId, usize)> =
        shop.source.grouping.groups.iter().flat_map(|group| score::wanted(graph, group)).collect();
    let wanted: Vec<(ValueId, usize)> = wanted.into_iter().collect();
    let samples = RATING_SAMPLES.min(shop.calibration.len());
    let mut found = Deviations::new();
    let mut refused = Vec::new();
    for chunk in wanted.chunks(VALUES_PER_PASS) {
        shop.progress.stage("rating units", samples as u64);
        let values = distinct(chunk.iter().map(|(v, _)| *v));
        let model = observed(&shop.source.model, &values)?;
        let path = shop.work.join("observed.onnx");
        save(&model, &path)?;
        let mut moments: HashMap<(ValueId, usize), AxisMoments> = HashMap::new();
        shop.runner.run(&path, &shop.calibration, 0..samples, shop.progress, &mut |batch| {
            for (value, axis) in chunk {
                let at = values.iter().position(|v| v == value);
                let Some((_, tensor)) = at.and_then(|at| batch.outputs.get(at)) else {
                    continue;
                };
                let Some(&width) = tensor.shape.get(*axis) else {
                    continue;
                };
                if tensor.dtype != ElementType::F32 {
                    continue;
                }
                let data = floats(tensor)?;
                moments.entry((*value, *axis)).or_insert_with(|| AxisMoments::new(width)).push(
                    &tensor.shape,
                    *axis,
                    &data,
                );
            }
            Ok(ControlFlow::Continue(()))
        })?;
        for (value, axis) in chunk {
            match moments.remove(&(*value, *axis)) {
                Some(m) => drop(found.insert((*value, *axis), m.deviations())),
                None => refused.push(Refusal::new(
                    "score",
                    graph.value(*value).name.clone(),
                    "its activation is no f32 tensor with that axis; weights alone rate its units",
                )),
            }
        }
    }
    Ok((found, refused))
}

/// What the original computes at the sums over units, over the first calibration samples.
pub(crate) struct Sums {
    sums: Vec<Sum>,
    /// For each batch and sum.
    values: Vec<Vec<Vec<f32>>>,
}

/// Observes the sums over the units of every group in the original.
pub(crate) fn sums(shop: &Shop<'_>) -> Result<Sums, CompressError> {
    let graph = &shop.source.model.graph;
    let mut sums: Vec<Sum> = Vec::new();
    for group in &shop.source.grouping.groups {
        for sum in rescale::sums(graph, &shop.source.shapes, group) {
            if !sums.contains(&sum) {
                sums.push(sum);
            }
        }
    }
    let values = sum_values(shop, &shop.source.model, &sums)?;
    Ok(Sums { sums, values })
}

fn sum_values(
    shop: &Shop<'_>,
    model: &Model,
    sums: &[Sum],
) -> Result<Vec<Vec<Vec<f32>>>, CompressError> {
    if sums.is_empty() {
        return Ok(Vec::new());
    }
    let samples = RATING_SAMPLES.min(shop.calibration.len());
    shop.progress.stage("observing sums", samples as u64);
    let values: Vec<ValueId> = sums.iter().map(|s| s.output).collect();
    let path = shop.work.join("sums.onnx");
    save(&observed(model, &values)?, &path)?;
    let mut all = Vec::new();
    shop.runner.run(&path, &shop.calibration, 0..samples, shop.progress, &mut |batch| {
        let outputs = batch.outputs.iter();
        all.push(outputs.map(|(_, t)| floats(t)).collect::<Result<_, _>>()?);
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(all)
}

/// Scales every sum in `model` that lost units back to the original's.
pub(crate) fn rescale(
    shop: &Shop<'_>,
    original: &Sums,
    model: &mut Model,
) -> Result<(Vec<RescaleStep>, Vec<Refusal>), CompressError> {
    let left = sum_values(shop, model, &original.sums)?;
    let (mut steps, mut refused) = (Vec::new(), Vec::new());
    for (at, sum) in original.sums.iter().enumerate() {
        let mut moments = Moments::default();
        for (was, is) in original.values.iter().zip(&left) {
            moments.push(&was[at], &is[at]);
        }
        if moments.residual(1.0) < SUM_UNCHANGED {
            continue;
        }
        let factor = moments.factor();
        match factor.and_then(|f| rescale::apply(model, sum, f).map(|()| f)) {
            Ok(factor) => steps.push(RescaleStep {
                node: sum.label.clone(),
                factor,
                residual_before: moments.residual(1.0),
                residual_after: moments.residual(factor),
            }),
            Err(why) => refused.push(Refusal::new("rescale", sum.label.clone(), why)),
        }
    }
    Ok((steps, refused))
}

/// What the original computes at every place that may be re-fitted, on sampled rows.
pub(crate) struct Targets {
    pub(crate) sites: Vec<Site>,
    /// One set of rows for each site and batch.
    rows: Vec<Vec<Vec<f32>>>,
    strides: Vec<usize>,
    /// The compared output, whole, for each sample.
    pub(crate) outputs: Vec<Vec<f32>>,
}

/// Places that may be re-fitted in any candidate: consumers of any group, and the heads, in the graph's
/// order; and those that cannot, with the reason.
pub(crate) fn sites(shop: &Shop<'_>) -> (Vec<Site>, Vec<Refusal>) {
    let graph = &shop.source.model.graph;
    let mut wanted: HashSet<graph::NodeId> = refit::heads(graph).into_iter().collect();
    for group in &shop.source.grouping.groups {
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

/// Runs the original over all calibration samples and keeps what repairs are fitted to.
pub(crate) fn targets(
    shop: &Shop<'_>,
    sites: Vec<Site>,
    output: ValueId,
) -> Result<Targets, CompressError> {
    let samples = shop.calibration.len();
    shop.progress.stage("observing the original", samples as u64);
    let values = distinct(sites.iter().map(|s| s.output).chain([output]));
    let model = observed(&shop.source.model, &values)?;
    let path = shop.work.join("targets.onnx");
    save(&model, &path)?;
    let place = |value: ValueId| values.iter().position(|v| *v == value).unwrap_or(0);
    let places: Vec<usize> = sites.iter().map(|s| place(s.output)).collect();
    let output_at = place(output);
    let mut targets = Targets {
        rows: vec![Vec::new(); sites.len()],
        strides: vec![0; sites.len()],
        sites,
        outputs: Vec::with_capacity(samples),
    };
    let mut bytes = 0usize;
    shop.runner.run(&path, &shop.calibration, 0..samples, shop.progress, &mut |batch| {
        for (site, at) in places.iter().enumerate() {
            let tensor = output_of(&batch, *at)?;
            let columns = tensor.shape.last().copied().unwrap_or(1).max(1);
            let data = floats(tensor)?;
            if targets.strides[site] == 0 {
                let rows = data.len() / columns / batch.samples.len().max(1);
                let inputs = width(shop, &targets.sites[site]);
                targets.strides[site] = stride(rows, samples, inputs);
            }
            let rows = sampled(&data, columns, targets.strides[site]);
            bytes += rows.len() * 4;
            targets.rows[site].push(rows);
        }
        let tensor = output_of(&batch, output_at)?;
        let data = floats(tensor)?;
        bytes += data.len() * 4;
        let per = data.len() / batch.samples.len().max(1);
        targets.outputs.extend(data.chunks(per.max(1)).map(<[f32]>::to_vec));
        if bytes > MAX_TARGET_BYTES {
            return Err(too_many(bytes));
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(targets)
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

fn sampled(data: &[f32], columns: usize, stride: usize) -> Vec<f32> {
    data.chunks_exact(columns).step_by(stride).flatten().copied().collect()
}

/// Re-fits `model` in place on the first `samples` calibration samples (whole batches, or all), one site
/// after the other, each on what the repairs before it left.
pub(crate) fn repair(
    shop: &Shop<'_>,
    targets: &Targets,
    model: &mut Model,
    samples: usize,
) -> Result<(Vec<RefitStep>, Vec<Refusal>), CompressError> {
    let (mut steps, mut refused) = (Vec::new(), Vec::new());
    for (at, site) in targets.sites.iter().enumerate() {
        shop.check("repair")?;
        shop.progress.stage(&format!("fitting {}", site.label), samples as u64);
        let folds = accumulate(shop, targets, at, model, samples)?;
        let outcome = refit::solve(&folds, site.bias.is_some())
            .and_then(|solution| write(model, site, &solution).map(|()| solution));
        match outcome {
            Ok(solution) => steps.push(step(site, &folds, &solution)),
            Err(why) => refused.push(refit::refusal(&site.label, why)),
        }
    }
    Ok((steps, refused))
}

fn step(site: &Site, folds: &[Gram], solution: &Solution) -> RefitStep {
    let scale = refit::target_energy(folds).max(f64::MIN_POSITIVE);
    RefitStep {
        node: site.label.clone(),
        ridge: solution.ridge,
        residual_before: (solution.before / scale).sqrt(),
        residual_after: (solution.cross_validated.unwrap_or(solution.after) / scale).sqrt(),
        rows: solution.rows,
        note: solution.note.clone(),
    }
}

fn accumulate(
    shop: &Shop<'_>,
    targets: &Targets,
    at: usize,
    model: &Model,
    samples: usize,
) -> Result<Vec<Gram>, CompressError> {
    let site = &targets.sites[at];
    let values = distinct([site.input, site.output]);
    let path = shop.work.join("fitted.onnx");
    save(&observed(model, &values)?, &path)?;
    let mut folds: Vec<Gram> = Vec::new();
    let mut number = 0;
    let stride = targets.strides[at];
    shop.runner.run(&path, &shop.calibration, 0..samples, shop.progress, &mut |batch| {
        let (x, z) = (output_of(&batch, 0)?, output_of(&batch, values.len() - 1)?);
        let k = x.shape.last().copied().unwrap_or(1).max(1);
        let m = z.shape.last().copied().unwrap_or(1).max(1);
        if folds.is_empty() {
            folds = vec![Gram::new(k, m); FOLDS];
        }
        let x = sampled(&floats(x)?, k, stride);
        let z = sampled(&floats(z)?, m, stride);
        let y = targets.rows[at].get(number).map_or(&[][..], Vec::as_slice);
        if y.len() != z.len() || x.len() / k != z.len() / m {
            return Err(CompressError::Graph {
                stage: "refit",
                what: format!(
                    "{}: the pruned model's rows do not line up with the original's",
                    site.label
                ),
            });
        }
        let fold = &mut folds[number % FOLDS];
        for ((x, z), y) in x.chunks_exact(k).zip(z.chunks_exact(m)).zip(y.chunks_exact(m)) {
            fold.push_target(x, z, y);
        }
        number += 1;
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(folds)
}

fn write(model: &mut Model, site: &Site, solution: &Solution) -> Result<(), String> {
    let (weight, bias) = refit::corrected(model, site, &solution.fit)?;
    let cause = Cause::new("refit", site.label.clone());
    let graph = &mut model.graph;
    let mut replace = |node, slot, old: ValueId, tensor| -> Result<(), String> {
        let name = format!("{}_refit", graph.value(old).name);
        let added = graph::apply(graph, Edit::AddConstant { name, tensor }, &cause)
            .map_err(|e| e.to_string())?;
        let value = added.value().ok_or("the constant was not added")?;
        graph::apply(graph, Edit::ReplaceInput { node, slot, value: Some(value) }, &cause)
            .map(drop)
            .map_err(|e| e.to_string())
    };
    replace(site.node, 1, site.weight, weight)?;
    if let (Some((node, slot, value)), Some(bias)) = (site.bias, bias) {
        replace(node, slot, value, bias)?;
    }
    Ok(())
}

fn output_of(batch: &Batch, at: usize) -> Result<&Tensor, CompressError> {
    batch.outputs.get(at).map(|(_, tensor)| tensor).ok_or_else(|| CompressError::Graph {
        stage: "observe",
        what: format!("the engine gave {} outputs, no number {at}", batch.outputs.len()),
    })
}

/// The numbers of a tensor that must be f32.
pub(crate) fn floats(tensor: &Tensor) -> Result<Vec<f32>, CompressError> {
    tensor.to_f32().map_err(CompressError::engine("reading an activation"))
}

fn distinct(values: impl IntoIterator<Item = ValueId>) -> Vec<ValueId> {
    let mut seen = HashSet::new();
    values.into_iter().filter(|v| seen.insert(*v)).collect()
}
