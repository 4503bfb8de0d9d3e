//! The repairs that bring a narrowed model back to the original, as passes over the calibration samples.

use std::ops::ControlFlow;

use graph::{Cause, Edit, Model, ValueId};

use super::observe::{Original, RATING_SAMPLES, distinct, floats, output_of, sampled};
use super::shop::{Shop, save};
use crate::calibrate::observed;
use crate::error::CompressError;
use crate::plan::{RefitStep, Refusal, RescaleStep};
use crate::refit::{self, FOLDS, Gram, Site, Solution};
use crate::rescale::{self, Moments, Sum};

/// A sum whose relative change is under this is left alone.
const SUM_UNCHANGED: f64 = 1e-5;

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
    original: &Original,
    model: &mut Model,
) -> Result<(Vec<RescaleStep>, Vec<Refusal>), CompressError> {
    let left = sum_values(shop, model, &original.sums)?;
    let (mut steps, mut refused) = (Vec::new(), Vec::new());
    for (at, sum) in original.sums.iter().enumerate() {
        let mut moments = Moments::default();
        for (was, is) in original.sum_values.iter().zip(&left) {
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

/// Re-fits `model` in place on the first `samples` calibration samples (whole batches, or all), one site
/// after the other, each on what the repairs before it left.
pub(crate) fn repair(
    shop: &Shop<'_>,
    targets: &Original,
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
    targets: &Original,
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
