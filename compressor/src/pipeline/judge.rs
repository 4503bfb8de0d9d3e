//! Passes that compare a candidate's answers with the original's.

use std::ops::{ControlFlow, Range};
use std::path::Path;

use graph::ValueId;

use super::observe::floats;
use super::shop::Shop;
use crate::data::Dataset;
use crate::error::CompressError;
use crate::quality::{Judge, QualityReport};

/// Samples between two looks at whether the floor is still in reach.
const LOOK_EVERY: usize = 64;

/// Which output is compared: the first of type f32.
pub(crate) fn compared_output(shop: &Shop<'_>) -> Result<(ValueId, String), CompressError> {
    let graph = &shop.source.model.graph;
    let name = shop
        .specs
        .1
        .iter()
        .find(|o| o.dtype == runtime::ElementType::F32)
        .map(|o| o.name.clone())
        .ok_or_else(|| CompressError::Model {
            path: shop.source.path.clone(),
            what: "has no f32 output to compare candidates by".into(),
        })?;
    graph.value_by_name(&name).map(|value| (value, name.clone())).ok_or_else(|| {
        CompressError::Model {
            path: shop.source.path.clone(),
            what: format!("has no value named \"{name}\""),
        }
    })
}

/// The compared output of the model at `path`, whole, for each sample of `data`.
pub(crate) fn answers(
    shop: &Shop<'_>,
    path: &Path,
    data: &Dataset,
    output: &str,
) -> Result<Vec<Vec<f32>>, CompressError> {
    let mut answers = Vec::with_capacity(data.len());
    shop.progress.stage("answers of the original", data.len() as u64);
    pass(shop, path, data, 0..data.len(), output, &mut |_, row| {
        answers.push(row.to_vec());
        ControlFlow::Continue(())
    })?;
    Ok(answers)
}

/// Length of a row of the compared output: its last axis, if the model fixes it, else a whole answer.
pub(crate) fn row(shop: &Shop<'_>, output: &str, answers: &[Vec<f32>]) -> usize {
    let spec = shop.specs.1.iter().find(|o| o.name == output);
    let fixed = spec.filter(|s| s.dims.len() > 1).and_then(|s| s.dims.last().copied().flatten());
    let whole = answers.first().map_or(1, Vec::len);
    fixed.unwrap_or(whole).max(1)
}

/// What a candidate's answers are compared with.
pub(crate) struct Reference<'a> {
    pub(crate) data: &'a Dataset,
    pub(crate) output: &'a str,
    /// The original's answers, by sample.
    pub(crate) answers: &'a [Vec<f32>],
    /// Length of a row of the output.
    pub(crate) row: usize,
}

/// Compares the model at `path` over `range`, and stops early once even the upper end of the
/// agreement's interval is under `floor`.
pub(crate) fn judge(
    shop: &Shop<'_>,
    path: &Path,
    reference: &Reference<'_>,
    range: Range<usize>,
    floor: Option<f64>,
) -> Result<QualityReport, CompressError> {
    let mut judge = Judge::default();
    let mut seen = 0usize;
    let mut stopped = false;
    let labels = reference.data.labels();
    pass(shop, path, reference.data, range, reference.output, &mut |sample, answer| {
        let original = reference.answers.get(sample).map_or(&[][..], Vec::as_slice);
        let rows = original.len() / reference.row.max(1);
        for (o, c) in original
            .chunks_exact(reference.row.max(1))
            .zip(answer.chunks_exact(reference.row.max(1)))
        {
            let label = labels.filter(|_| rows == 1).and_then(|l| l.get(sample));
            judge.push(o, c, label.copied());
        }
        seen += 1;
        let hopeless = floor.is_some_and(|floor| judge.agreement().high < floor);
        stopped = seen.is_multiple_of(LOOK_EVERY) && hopeless;
        if stopped { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    Ok(judge.report(reference.output, seen as u64, stopped))
}

/// Runs a model over `range` and hands out the compared output of each sample.
fn pass(
    shop: &Shop<'_>,
    path: &Path,
    data: &Dataset,
    range: Range<usize>,
    output: &str,
    sink: &mut dyn FnMut(usize, &[f32]) -> ControlFlow<()>,
) -> Result<(), CompressError> {
    shop.runner.run(path, data, range, shop.progress, &mut |batch| {
        let tensor = batch
            .outputs
            .iter()
            .find(|(name, _)| name == output)
            .map(|(_, tensor)| tensor)
            .ok_or_else(|| CompressError::Graph {
                stage: "judge",
                what: format!("the engine gave no output \"{output}\""),
            })?;
        let data = floats(tensor)?;
        let per = (data.len() / batch.samples.len().max(1)).max(1);
        for (sample, answer) in batch.samples.iter().zip(data.chunks(per)) {
            if sink(*sample, answer).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    })
}
