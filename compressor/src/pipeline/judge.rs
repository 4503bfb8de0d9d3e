//! Passes that compare a candidate's answers with the original's.

use std::ops::{ControlFlow, Range};
use std::path::Path;

use runtime::ElementType;

use super::gauge;
use super::observe::floats;
use super::shop::Shop;
use crate::calibrate::Batch;
use crate::data::Dataset;
use crate::error::CompressError;
use crate::quality::{Answer, Compared, Judge, QualityReport};

/// Samples between two looks at whether the floor is still in reach.
const LOOK_EVERY: usize = 64;
/// The most bytes of the original's answers that are kept; of more, a stretch at a time is kept, and the original
/// runs again beside each candidate.
pub(crate) const MAX_ANSWER_BYTES: usize = 512 << 20;

/// The outputs that can be compared, those of type f32, and those that cannot.
pub(crate) fn outputs(shop: &Shop<'_>) -> Result<(Vec<String>, Vec<String>), CompressError> {
    let all = shop.specs.1.iter();
    let (floats, others): (Vec<_>, Vec<_>) = all.partition(|o| o.dtype == ElementType::F32);
    if floats.is_empty() {
        return Err(CompressError::Model {
            path: shop.source.path.clone(),
            what: "has no f32 output to compare candidates by".into(),
        });
    }
    let names = |specs: Vec<&runtime::IoSpec>| specs.into_iter().map(|o| o.name.clone()).collect();
    Ok((names(floats), names(others)))
}

/// What the original answers on a set of samples: kept while it is small, run again where it is not.
pub(crate) struct Answers<'a> {
    data: &'a Dataset,
    outputs: Vec<String>,
    /// The most bytes held.
    limit: usize,
    /// Samples whose answers are held.
    held: Range<usize>,
    /// For each held sample, its answer at each output.
    answers: Vec<Vec<Answer>>,
}

impl<'a> Answers<'a> {
    /// Of `outputs` on `data`, with nothing run yet.
    pub(crate) fn new(data: &'a Dataset, outputs: &[String]) -> Self {
        Self::limited(data, outputs, MAX_ANSWER_BYTES)
    }

    fn limited(data: &'a Dataset, outputs: &[String], limit: usize) -> Self {
        let outputs = outputs.to_vec();
        Self { data, outputs, limit, held: 0..0, answers: Vec::new() }
    }

    /// With the answers of samples from `start` on known already.
    pub(crate) fn with(mut self, start: usize, answers: Vec<Vec<Answer>>) -> Self {
        self.held = start..start + answers.len();
        self.answers = answers;
        self
    }

    /// The answers held, from the first sample on; none where it is not among them.
    pub(crate) fn into_first(self) -> Vec<Vec<Answer>> {
        if self.held.start == 0 { self.answers } else { Vec::new() }
    }

    /// The first of the answers held.
    pub(crate) fn first(&self) -> Option<&[Answer]> {
        self.answers.first().map(Vec::as_slice)
    }

    /// Holds the answers of `from` and as many samples up to `end` as the limit allows.
    pub(crate) fn hold(
        &mut self,
        shop: &Shop<'_>,
        from: usize,
        end: usize,
    ) -> Result<(), CompressError> {
        if self.held.contains(&from) || from >= end {
            return Ok(());
        }
        self.answers.clear();
        self.held = from..from;
        shop.progress.stage("answers of the original", (end - from) as u64);
        let (mut bytes, limit) = (0, self.limit);
        let (outputs, answers) = (&self.outputs, &mut self.answers);
        shop.runner.run(&shop.source.path, self.data, from..end, shop.progress, &mut |batch| {
            for answer in split(&batch, outputs)? {
                bytes += answer.iter().map(Answer::bytes).sum::<usize>();
                answers.push(answer);
            }
            Ok(if bytes >= limit { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        self.held.end = from + self.answers.len();
        if self.held.is_empty() {
            return Err(CompressError::Graph {
                stage: "judge",
                what: format!("the original gave no answers for sample {from}"),
            });
        }
        Ok(())
    }
}

/// Takes a sample's number and the answers of the original and of the candidate.
type Each<'a> = dyn FnMut(usize, &[Answer], &[Answer]) -> Result<(), CompressError> + 'a;

/// Compares the model at `path` over `range`, and stops early once even the upper end of the
/// agreement's interval is under `floor`.
pub(crate) fn judge(
    shop: &Shop<'_>,
    path: &Path,
    original: &mut Answers<'_>,
    compared: &[Compared],
    range: Range<usize>,
    floor: Option<f64>,
) -> Result<QualityReport, CompressError> {
    judge_with(shop, path, original, compared, range, floor, &mut |_, _, _| Ok(()))
}

/// As [`judge`], and shows `each` sample's answers of the original and of the candidate.
pub(crate) fn judge_with(
    shop: &Shop<'_>,
    path: &Path,
    original: &mut Answers<'_>,
    compared: &[Compared],
    range: Range<usize>,
    floor: Option<f64>,
    each: &mut Each<'_>,
) -> Result<QualityReport, CompressError> {
    let mut judge = Judge::new(compared);
    let (mut seen, mut stopped, mut from) = (0usize, false, range.start);
    let data = original.data;
    let outputs: Vec<String> = compared.iter().map(|c| c.output.clone()).collect();
    while from < range.end && !stopped {
        original.hold(shop, from, range.end)?;
        let stretch = from..original.held.end.min(range.end);
        from = stretch.end;
        shop.runner.run(path, data, stretch, shop.progress, &mut |batch| {
            for (sample, answer) in batch.samples.iter().zip(split(&batch, &outputs)?) {
                let known = &original.answers[*sample - original.held.start];
                let label = data.labels().and_then(|l| l.get(*sample)).copied();
                judge.push(known, &answer, label);
                each(*sample, known, &answer)?;
                seen += 1;
                let hopeless = floor.is_some_and(|floor| judge.agreement().high < floor);
                stopped = seen.is_multiple_of(LOOK_EVERY) && hopeless;
                if stopped {
                    return Ok(ControlFlow::Break(()));
                }
            }
            Ok(ControlFlow::Continue(()))
        })?;
    }
    let mut report = judge.report(stopped);
    report.tests.extend(gauge::agreement(shop, judge.shares()));
    Ok(report)
}

/// A batch's answers, sample by sample, at each of `outputs`.
pub(crate) fn split(batch: &Batch, outputs: &[String]) -> Result<Vec<Vec<Answer>>, CompressError> {
    let count = batch.samples.len().max(1);
    let mut samples = vec![Vec::with_capacity(outputs.len()); count];
    for name in outputs {
        let found = batch.outputs.iter().find(|(output, _)| output == name);
        let (_, tensor) = found.ok_or_else(|| CompressError::Graph {
            stage: "judge",
            what: format!("the engine gave no output \"{name}\""),
        })?;
        let data = floats(tensor)?;
        let per = data.len() / count;
        let mut shape = tensor.shape.clone();
        match shape.first_mut() {
            Some(first) if count > 1 && first.is_multiple_of(count) => *first /= count,
            _ if count > 1 => shape = vec![per],
            _ => {}
        }
        for (at, sample) in samples.iter_mut().enumerate() {
            let data = data[at * per..(at + 1) * per].to_vec();
            sample.push(Answer { shape: shape.clone(), data });
        }
    }
    Ok(samples)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "judge_tests.rs"]
mod tests;
