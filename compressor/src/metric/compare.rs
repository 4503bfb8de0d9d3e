//! Whether a candidate's metric is as good as the original's, by the test that the metric allows.
//!
//! Samples that are right or wrong as wholes (top-k accuracy, agreement of one row a sample) go to the
//! exact and score tests on counts; everything else is bootstrapped over samples.

use serde::{Deserialize, Serialize};

use super::external::Evaluation;
use super::{Against, Meter, Statistic};
use crate::stats::{
    Bootstrap, Evidence, Interval, McNemar, Paired, Plan, Resampling, StatsError, Verdict, verdicts,
};

/// Which test decided.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Test {
    /// Tango's score test on counts, with the exact McNemar test of any difference beside it.
    Score {
        /// Samples that only the original has right.
        lost: u64,
        /// Samples that only the candidate has right.
        gained: u64,
        /// p values that there is any difference at all.
        mcnemar: McNemar,
    },
    /// The paired bootstrap.
    Bootstrap,
    /// None: one value of each model, and nothing of their samples.
    Point,
}

/// A candidate beside the original.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// The metric's name.
    pub metric: String,
    /// Whether more of it is better.
    pub higher_is_better: bool,
    /// The original's value; the perfect one for metrics that compare with the original.
    pub original: f64,
    /// The candidate's value.
    pub candidate: f64,
    /// Samples compared.
    pub samples: u64,
    /// The loss that is accepted, in the metric's unit.
    pub margin: f64,
    /// The chance to accept a candidate that loses the margin.
    pub alpha: f64,
    /// Which test decided.
    pub test: Test,
    /// The difference, signed so that a loss is negative, and its p values.
    pub evidence: Evidence,
    /// What follows.
    pub verdict: Verdict,
}

/// Without digits that say nothing.
fn percent(share: f64) -> String {
    ((share * 100_000.0).round() / 1000.0).to_string()
}

/// Why two models cannot be compared.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[allow(missing_docs)]
pub enum CompareError {
    #[error(transparent)]
    Stats(#[from] StatsError),
    #[error("{metric} needs the original's own values, which were not given")]
    NoOriginal { metric: String },
    #[error("the original has {original} samples of {metric}, the candidate {candidate}")]
    Samples { metric: String, original: usize, candidate: usize },
    #[error("the original was measured by {original}, the candidate by {candidate}")]
    Metrics { original: String, candidate: String },
    #[error("of {metric}, more is better for one of the two models and less for the other")]
    Direction { metric: String },
}

impl Comparison {
    /// The loss seen, in the metric's unit; a gain is negative.
    pub fn loss(&self) -> f64 {
        -self.evidence.difference.value
    }

    /// What the test found, in words.
    pub fn sentence(&self) -> String {
        let (loss, margin) = (self.amount(self.loss()), self.amount(self.margin));
        let interval = &self.evidence.difference;
        let seen = format!(
            "{}: {} where the original has {}, a loss of {loss}",
            self.metric,
            self.amount(self.candidate),
            self.amount(self.original),
        );
        if self.test == Test::Point {
            return format!(
                "{seen} (margin {margin}; untested: no value for each sample was given)"
            );
        }
        format!(
            "{seen} ({} % interval {} to {}, {} samples): {} at a margin of {margin} with {} % confidence",
            percent(1.0 - 2.0 * self.alpha),
            self.amount(-interval.high),
            self.amount(-interval.low),
            self.samples,
            self.verdict,
            percent(1.0 - self.alpha),
        )
    }

    /// A number in the metric's unit.
    pub fn amount(&self, value: f64) -> String {
        let share = ["accuracy", "agreement", "F1"].iter().any(|name| self.metric.ends_with(name));
        if share {
            format!("{:.1} %", value * 100.0)
        } else if self.metric == "SNR" {
            format!("{value:.1} dB")
        } else {
            format!("{value:.4}")
        }
    }
}

/// Compares one candidate; see [`compare_all`].
///
/// # Errors
/// See [`CompareError`].
pub fn compare(
    original: Option<&Meter>,
    candidate: &Meter,
    margin: f64,
    plan: Plan,
    resampling: &Resampling,
) -> Result<Comparison, CompareError> {
    let mut comparison = weigh(original, candidate, margin, plan, resampling)?;
    comparison.verdict = comparison.evidence.verdict(plan.alpha);
    Ok(comparison)
}

/// Compares candidates for one place with the original, whose meter took the same samples in the same
/// order; metrics that compare with the original need none. Verdicts are Holm's.
///
/// # Errors
/// See [`CompareError`].
pub fn compare_all(
    original: Option<&Meter>,
    candidates: &[Meter],
    margin: f64,
    plan: Plan,
    resampling: &Resampling,
) -> Result<Vec<Comparison>, CompareError> {
    let mut all = candidates
        .iter()
        .map(|candidate| weigh(original, candidate, margin, plan, resampling))
        .collect::<Result<Vec<_>, _>>()?;
    let evidence: Vec<Evidence> = all.iter().map(|c| c.evidence).collect();
    for (comparison, verdict) in all.iter_mut().zip(verdicts(&evidence, plan.alpha)) {
        comparison.verdict = verdict;
    }
    Ok(all)
}

fn weigh(
    original: Option<&Meter>,
    candidate: &Meter,
    margin: f64,
    plan: Plan,
    resampling: &Resampling,
) -> Result<Comparison, CompareError> {
    let metric = candidate.metric();
    let original = match metric.against() {
        Against::Original => None,
        Against::Classes | Against::Texts => Some(matching(original, candidate)?),
    };
    let (test, evidence) = match by_counts(original, candidate)? {
        Some(pair) => {
            let (lost, gained) = (pair.lost(), pair.gained());
            let mcnemar = McNemar::exact(lost, gained);
            (Test::Score { lost, gained, mcnemar }, pair.evidence(margin, plan)?)
        }
        None => {
            let bootstrap = by_resampling(original, candidate, resampling)?;
            (Test::Bootstrap, bootstrap.evidence(margin, plan)?)
        }
    };
    let undefined = StatsError::Undefined { undefined: 1, resamples: 1, allowed: 0.0 };
    let value = |meter: &Meter| meter.value().ok_or(undefined.clone());
    Ok(Comparison {
        metric: metric.name(),
        higher_is_better: metric.higher_is_better(),
        original: match original {
            Some(original) => value(original)?,
            None => metric.perfect().unwrap_or(f64::NAN),
        },
        candidate: value(candidate)?,
        samples: candidate.len() as u64,
        margin,
        alpha: plan.alpha,
        test,
        evidence,
        verdict: Verdict::Undecided { samples_needed: evidence.samples_needed },
    })
}

/// Compares how often each sample's rows agree with the original's, which agrees with itself everywhere: by counts
/// where every sample agrees or does not, else by the bootstrap.
///
/// # Errors
/// See [`CompareError`].
pub fn compare_agreement(
    shares: &[f64],
    margin: f64,
    plan: Plan,
    resampling: &Resampling,
) -> Result<Comparison, CompareError> {
    if !(margin > 0.0 && margin < 1.0) {
        let what = "the margin of agreement";
        return Err(StatsError::Argument { what, value: margin, wanted: "between 0 and 1" }.into());
    }
    let perfect = vec![1.0; shares.len()];
    let (test, evidence) = by_values(&perfect, shares, 1.0, margin, plan, resampling)?;
    Ok(Comparison {
        metric: "agreement".into(),
        higher_is_better: true,
        original: 1.0,
        candidate: shares.iter().sum::<f64>() / shares.len().max(1) as f64,
        samples: shares.len() as u64,
        margin,
        alpha: plan.alpha,
        test,
        evidence,
        verdict: evidence.verdict(plan.alpha),
    })
}

/// Compares what an evaluator printed for the two models: by counts where its values for samples are 0 and 1, else
/// by the bootstrap of their mean; without such values there is no test.
///
/// # Errors
/// See [`CompareError`].
pub fn compare_evaluations(
    original: &Evaluation,
    candidate: &Evaluation,
    margin: f64,
    plan: Plan,
    resampling: &Resampling,
) -> Result<Comparison, CompareError> {
    let metric = "the evaluator's metric".to_owned();
    if original.higher_is_better != candidate.higher_is_better {
        return Err(CompareError::Direction { metric });
    }
    let sign = if original.higher_is_better { 1.0 } else { -1.0 };
    let (samples, test, evidence) = match (&original.per_sample, &candidate.per_sample) {
        (Some(before), Some(after)) if before.len() == after.len() => {
            let (test, evidence) = by_values(before, after, sign, margin, plan, resampling)?;
            (before.len(), test, evidence)
        }
        (Some(before), Some(after)) => {
            let (original, candidate) = (before.len(), after.len());
            return Err(CompareError::Samples { metric, original, candidate });
        }
        _ => (0, Test::Point, untested(sign * (candidate.metric - original.metric))),
    };
    Ok(Comparison {
        metric,
        higher_is_better: original.higher_is_better,
        original: original.metric,
        candidate: candidate.metric,
        samples: samples as u64,
        margin,
        alpha: plan.alpha,
        test,
        evidence,
        verdict: evidence.verdict(plan.alpha),
    })
}

/// Values of each sample, of both models; more is better where `sign` is 1, less where it is −1.
fn by_values(
    original: &[f64],
    candidate: &[f64],
    sign: f64,
    margin: f64,
    plan: Plan,
    resampling: &Resampling,
) -> Result<(Test, Evidence), CompareError> {
    let binary = |values: &[f64]| values.iter().all(|v| *v == 0.0 || *v == 1.0);
    if margin < 1.0 && binary(original) && binary(candidate) {
        let right = |value: f64| (value == 1.0) == (sign > 0.0);
        let pairs = original.iter().zip(candidate).map(|(o, c)| (right(*o), right(*c)));
        let pair = Paired::count(pairs)?;
        let (lost, gained) = (pair.lost(), pair.gained());
        let mcnemar = McNemar::exact(lost, gained);
        return Ok((Test::Score { lost, gained, mcnemar }, pair.evidence(margin, plan)?));
    }
    let signed = |values: &[f64]| values.iter().map(|v| sign * v).collect::<Vec<f64>>();
    let bootstrap =
        Bootstrap::of_mean_difference(&signed(original), &signed(candidate), resampling)?;
    Ok((Test::Bootstrap, bootstrap.evidence(margin, plan)?))
}

/// A difference of which nothing more is known.
fn untested(difference: f64) -> Evidence {
    Evidence {
        difference: Interval { value: difference, low: difference, high: difference },
        p_noninferior: 1.0,
        p_inferior: 1.0,
        samples_needed: None,
    }
}

fn matching<'a>(original: Option<&'a Meter>, candidate: &Meter) -> Result<&'a Meter, CompareError> {
    let metric = candidate.metric().name();
    let original = original.ok_or_else(|| CompareError::NoOriginal { metric: metric.clone() })?;
    if original.metric() != candidate.metric() {
        return Err(CompareError::Metrics {
            original: original.metric().name(),
            candidate: metric,
        });
    }
    if original.len() != candidate.len() {
        return Err(CompareError::Samples {
            metric,
            original: original.len(),
            candidate: candidate.len(),
        });
    }
    Ok(original)
}

/// Counts where every sample is right or wrong; without an original it is always right.
fn by_counts(original: Option<&Meter>, candidate: &Meter) -> Result<Option<Paired>, CompareError> {
    let Some(hits) = candidate.hits() else { return Ok(None) };
    let before = original.map_or_else(|| Some(vec![true; hits.len()]), Meter::hits);
    let Some(before) = before else { return Ok(None) };
    Ok(Some(Paired::count(before.into_iter().zip(hits))?))
}

fn by_resampling(
    original: Option<&Meter>,
    candidate: &Meter,
    resampling: &Resampling,
) -> Result<Bootstrap, CompareError> {
    let metric = candidate.metric();
    let sign = if metric.higher_is_better() { 1.0 } else { -1.0 };
    let after = candidate.resampled();
    let difference: Statistic<'_> = match original {
        Some(original) => {
            let before = original.resampled();
            Box::new(move |counts| sign * (after(counts) - before(counts)))
        }
        None => {
            let perfect = metric.perfect().unwrap_or(f64::NAN);
            Box::new(move |counts| sign * (after(counts) - perfect))
        }
    };
    Ok(Bootstrap::new(candidate.len(), resampling, difference)?)
}
