//! What narrowing costs in quality: the loss of single groups at a few widths (*sensitivity curves*), and of whole
//! choices.
//!
//! A model at some widths is the original cut to the best rated units, its sums scaled back, and nothing re-fitted: a
//! re-fit takes longer than all else. Its loss is taken on the first samples of the calibration data: for each output
//! the Kullback-Leibler divergence from the original's answer where rows are classes, else the square of the distance
//! as a share of the original's square; the mean over outputs and samples. Each loss is kept in a [`Store`] as soon
//! as it is known.

pub(crate) mod store;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;

use super::apply::apply;
use super::judge::{self, Answers};
use super::observe::Original;
use super::repair::Fitting;
use super::shop::{Shop, Source, save};
use super::{Progress, kinds, norms};
use crate::allocate::sampled_widths;
use crate::error::CompressError;
use crate::plan::{GroupChoice, Plan, Refusal, Repair, RepairKind, ScoreKind};
use crate::quality::{Answer, Compared, Comparison, divergence};
use crate::score;
use store::{Store, Widths};

/// The largest loss of a sample: what is not a number, or farther off, counts as this.
pub(crate) const MAX_LOSS: f64 = 1e6;

/// Where the losses of a curve come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LossOf {
    /// Measured on samples.
    Samples,
    /// The share of the squared ratings of its units that goes: modelled, where there are no samples.
    Ratings,
}

/// The loss of one group at one width, all others whole.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct CurvePoint {
    /// Units kept.
    pub width: usize,
    /// What that loses.
    pub loss: f64,
}

/// What narrowing one group loses.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Curve {
    /// Id of the group in the source model.
    pub group: u32,
    /// What people call it.
    pub label: String,
    /// Units before.
    pub width: usize,
    /// Where the losses come from.
    pub loss_of: LossOf,
    /// From wide to narrow; the whole group loses nothing and is left out.
    pub points: Vec<CurvePoint>,
}

/// A [`Progress`] that can be told to pass on nothing but the wish to stop: what makes one point has stages of its
/// own, and the bar is for points.
pub(crate) struct Muted<'a> {
    inner: &'a dyn Progress,
    muted: AtomicBool,
}

impl<'a> Muted<'a> {
    pub(crate) fn new(inner: &'a dyn Progress) -> Self {
        Self { inner, muted: AtomicBool::new(false) }
    }

    fn heard(&self) -> Option<&dyn Progress> {
        (!self.muted.load(Ordering::Relaxed)).then_some(self.inner)
    }

    /// Calls `work` unheard.
    fn during<T>(&self, work: impl FnOnce() -> T) -> T {
        let before = self.muted.swap(true, Ordering::Relaxed);
        let done = work();
        self.muted.store(before, Ordering::Relaxed);
        done
    }
}

impl Progress for Muted<'_> {
    fn stage(&self, name: &str, total: u64) {
        if let Some(inner) = self.heard() {
            inner.stage(name, total);
        }
    }
    fn step(&self, done: u64) {
        if let Some(inner) = self.heard() {
            inner.step(done);
        }
    }
    fn note(&self, text: &str) {
        if let Some(inner) = self.heard() {
            inner.note(text);
        }
    }
    fn cancelled(&self) -> bool {
        self.inner.cancelled()
    }
}

/// What the original answers on the first samples, and how answers are compared.
struct Yardstick {
    outputs: Vec<String>,
    compared: Vec<Compared>,
    answers: Vec<Vec<Answer>>,
}

impl Yardstick {
    /// On the first `samples` samples; on fewer where their answers take too much memory.
    fn new(shop: &Shop<'_>, samples: usize) -> Result<(Self, Vec<Refusal>), CompressError> {
        let (outputs, others) = judge::outputs(shop)?;
        let samples = samples.min(shop.calibration.len());
        shop.progress.stage("answers of the original", samples as u64);
        let (mut answers, mut bytes) = (Vec::new(), 0);
        let take = &mut |batch| {
            for answer in judge::split(&batch, &outputs)? {
                bytes += answer.iter().map(|a| a.data.len() * 4).sum::<usize>();
                answers.push(answer);
            }
            Ok(if bytes < judge::MAX_ANSWER_BYTES {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            })
        };
        let data = &shop.calibration;
        shop.runner.run(&shop.source.path, data, 0..samples, shop.progress, take)?;
        let first = answers.first().cloned().into_iter().collect();
        let known = Answers::new(&shop.calibration, &outputs).with(0, first);
        let (compared, mut refused) = kinds::comparisons(shop, &outputs, &others, &known);
        if answers.len() < samples {
            refused.push(Refusal::new(
                "curves",
                format!("{} of {samples} samples", samples - answers.len()),
                "the original's answers take more than MAX_ANSWER_BYTES; losses are means over fewer samples",
            ));
        }
        Ok((Self { outputs, compared, answers }, refused))
    }

    /// Mean loss of the model at `path`.
    fn loss(&self, shop: &Shop<'_>, path: &Path) -> Result<f64, CompressError> {
        let (mut sum, mut count) = (0.0, 0usize);
        let all = 0..self.answers.len();
        shop.runner.run(path, &shop.calibration, all, shop.progress, &mut |batch| {
            for (sample, answer) in batch.samples.iter().zip(judge::split(&batch, &self.outputs)?) {
                let known = self.answers.get(*sample).map_or(&[][..], Vec::as_slice);
                sum += sample_loss(&self.compared, known, &answer);
                count += 1;
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(sum / count.max(1) as f64)
    }
}

/// Mean over outputs.
fn sample_loss(compared: &[Compared], original: &[Answer], answer: &[Answer]) -> f64 {
    let pairs = compared.iter().zip(original.iter().zip(answer));
    let losses = pairs.map(|(compared, (a, b))| output_loss(compared, a, b));
    losses.sum::<f64>() / compared.len().max(1) as f64
}

fn output_loss(compared: &Compared, original: &Answer, answer: &Answer) -> f64 {
    if original.shape != answer.shape || answer.data.iter().any(|v| !v.is_finite()) {
        return MAX_LOSS;
    }
    let loss = match compared.by {
        Comparison::Class => mean_divergence(compared.axis, original, answer),
        _ => {
            let square = |v: f64| v * v;
            let pairs = original.data.iter().zip(&answer.data);
            let off: f64 = pairs.map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
            let whole: f64 = original.data.iter().map(|a| square(f64::from(*a))).sum();
            if off == 0.0 { 0.0 } else { off / whole }
        }
    };
    // What is no number is no small loss.
    if loss <= MAX_LOSS { loss } else { MAX_LOSS }
}

/// Mean Kullback-Leibler divergence of rows, in nats.
fn mean_divergence(axis: Option<usize>, original: &Answer, answer: &Answer) -> f64 {
    let mut rows: Vec<Vec<f32>> = Vec::new();
    original.rows(axis, &mut |_, row| rows.push(row.to_vec()));
    let mut sum = 0.0;
    answer.rows(axis, &mut |number, row| {
        sum += rows.get(number).map_or(MAX_LOSS, |known| divergence(known, row));
    });
    sum / rows.len().max(1) as f64
}

/// Where points are measured.
pub(crate) struct Field<'a> {
    shop: &'a Shop<'a>,
    progress: &'a Muted<'a>,
    original: &'a Original,
    /// For each group, the ratings of its units.
    units: &'a [Vec<f64>],
    score: ScoreKind,
    /// Repairs of a point; of least squares only the sums that are scaled back.
    kinds: Vec<RepairKind>,
    yardstick: Yardstick,
    pub(crate) store: Store,
    /// Points measured in this run.
    pub(crate) measured: usize,
    pub(crate) refused: Vec<Refusal>,
}

/// What a [`Field`] is opened with.
pub(crate) struct Ground<'a> {
    pub(crate) shop: &'a Shop<'a>,
    /// The same that the shop has.
    pub(crate) progress: &'a Muted<'a>,
    pub(crate) original: &'a Original,
    pub(crate) units: &'a [Vec<f64>],
    pub(crate) score: ScoreKind,
    /// How the finished model will be repaired.
    pub(crate) kinds: &'a [RepairKind],
}

/// The cheap part of a repair, with which points are measured: channels take over, normalizations are renewed and sums
/// scaled back; nothing is re-fitted.
pub(crate) fn cheap(source: &Source, kinds: &[RepairKind]) -> Vec<RepairKind> {
    if kinds.is_empty() {
        return Vec::new();
    }
    let norms = norms::any(source).then_some(RepairKind::Bn);
    let sums = kinds.contains(&RepairKind::Ls).then_some(RepairKind::Ls);
    [RepairKind::Gram].into_iter().chain(norms).chain(sums).collect()
}

impl<'a> Field<'a> {
    /// On the first `samples` calibration samples, with what `store` holds.
    pub(crate) fn open(
        ground: &Ground<'a>,
        samples: usize,
        store: Store,
    ) -> Result<Self, CompressError> {
        let (yardstick, refused) = Yardstick::new(ground.shop, samples)?;
        if store.len() > 0 {
            let from = store.path().display();
            ground.progress.note(&format!("{} measurements are taken from {from}", store.len()));
        }
        Ok(Self {
            shop: ground.shop,
            progress: ground.progress,
            original: ground.original,
            units: ground.units,
            score: ground.score,
            kinds: cheap(&ground.shop.source, ground.kinds),
            yardstick,
            store,
            measured: 0,
            refused,
        })
    }

    /// The curve of every group.
    pub(crate) fn curves(&mut self) -> Result<Vec<Curve>, CompressError> {
        let source = &self.shop.source;
        let widths: Vec<Vec<usize>> = source.widths().into_iter().map(sampled_widths).collect();
        let total: usize = widths.iter().map(Vec::len).sum();
        self.progress.stage("measuring curves", total as u64);
        let (mut curves, mut done) = (Vec::new(), 0);
        for (group, widths) in widths.into_iter().enumerate() {
            let mut points = Vec::new();
            for width in widths {
                if let Some(loss) = self.loss(&vec![(group, width)])? {
                    points.push(CurvePoint { width, loss });
                }
                done += 1;
                self.progress.step(done);
            }
            curves.push(curve(source, group, LossOf::Samples, points));
        }
        Ok(curves)
    }

    /// The loss at these widths; none where such a model cannot be made or run, which is refused.
    pub(crate) fn loss(&mut self, widths: &Widths) -> Result<Option<f64>, CompressError> {
        if widths.is_empty() {
            return Ok(Some(0.0));
        }
        if let Some(known) = self.store.loss(widths) {
            return Ok(Some(known));
        }
        self.check()?;
        match self.progress.during(|| self.measure(widths)) {
            Ok(loss) => {
                self.store.keep_loss(widths, loss)?;
                self.measured += 1;
                Ok(Some(loss))
            }
            Err(error) => {
                let why = self.told(error).of_candidate()?;
                self.refuse(widths, why);
                Ok(None)
            }
        }
    }

    pub(crate) fn refuse(&mut self, widths: &Widths, why: String) {
        let name = |(group, width): &(usize, usize)| {
            format!("{} at {width}", self.shop.source.group_label(*group))
        };
        let what: Vec<String> = widths.iter().map(name).collect();
        self.refused.push(Refusal::new("curves", what.join(", "), why));
    }

    /// An error if the caller asked to stop, which says what is kept.
    pub(crate) fn check(&self) -> Result<(), CompressError> {
        self.shop.check("measuring curves").map_err(|error| self.told(error))
    }

    /// A wish to stop says what is kept.
    fn told(&self, error: CompressError) -> CompressError {
        match error {
            CompressError::Cancelled(stage) => CompressError::Cancelled(format!(
                "{stage}; {} measurements are kept in {}, and the same command goes on from there",
                self.store.len(),
                self.store.path().display()
            )),
            other => other,
        }
    }

    fn measure(&self, widths: &Widths) -> Result<f64, CompressError> {
        let shop = self.shop;
        let samples = self.yardstick.answers.len();
        let groups = choices(&shop.source, self.units, widths);
        let repair = (!self.kinds.is_empty()).then(|| {
            let (repair, _) = self.original.repair(shop, samples, &self.kinds, &groups);
            let few = repair.rescale_samples.min(samples);
            Repair { refit: Vec::new(), rescale_samples: few, ..repair }
        });
        let plan = Plan {
            source_sha256: shop.source.digest.to_string(),
            keep_ratio: 1.0,
            score: self.score,
            seed: shop.job.seed,
            groups,
            repair,
            quantize: None,
        };
        let fitting = Fitting { shop, original: self.original };
        let made = apply(&shop.source, &plan, Some(fitting))?;
        let path = shop.work.join("point.onnx");
        save(&made.model, &path)?;
        self.yardstick.loss(shop, &path)
    }
}

/// The best rated units of each narrowed group.
pub(crate) fn choices(source: &Source, units: &[Vec<f64>], widths: &Widths) -> Vec<GroupChoice> {
    let best = |(group, width): &(usize, usize)| {
        let units = units.get(*group)?;
        Some(source.choice(*group, score::best(units, *width)))
    };
    widths.iter().filter_map(best).collect()
}

/// Curves from ratings alone: the share of their squares that goes with the worst rated units.
pub(crate) fn of_ratings(source: &Source, units: &[Vec<f64>]) -> Vec<Curve> {
    let points = |units: &Vec<f64>| {
        let mut squares: Vec<f64> = units.iter().map(|v| v * v).collect();
        squares.sort_by(f64::total_cmp);
        let whole: f64 = squares.iter().sum();
        let gone = |width: usize| squares.iter().take(units.len() - width).sum::<f64>();
        let share = |width| if whole > 0.0 { gone(width) / whole } else { 0.0 };
        let widths = sampled_widths(units.len()).into_iter();
        widths.map(|width| CurvePoint { width, loss: share(width) }).collect()
    };
    let all = units.iter().enumerate();
    all.map(|(group, units)| curve(source, group, LossOf::Ratings, points(units))).collect()
}

fn curve(source: &Source, group: usize, loss_of: LossOf, points: Vec<CurvePoint>) -> Curve {
    let width = source.widths().get(group).copied().unwrap_or(0);
    Curve { group: group as u32, label: source.group_label(group), width, loss_of, points }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "curves_tests.rs"]
mod tests;
