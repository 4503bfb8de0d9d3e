//! Whether a candidate's metric is as good as the original's, by the test that the metric allows.
//!
//! Samples that are right or wrong as wholes (top-k accuracy, agreement of one row a sample) go to the
//! exact and score tests on counts; everything else is bootstrapped over samples.

use serde::{Deserialize, Serialize};

use super::{Against, Meter, Statistic};
use crate::stats::{
    Bootstrap, Evidence, McNemar, Paired, Plan, Resampling, StatsError, Verdict, verdicts,
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
    /// Which test decided.
    pub test: Test,
    /// The difference, signed so that a loss is negative, and its p values.
    pub evidence: Evidence,
    /// What follows.
    pub verdict: Verdict,
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
    #[error(
        "{metric} has no value that an unchanged model would have, so no loss can be told; \
         compare by cosine, KL or agreement"
    )]
    NoPerfect { metric: String },
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
        test,
        evidence,
        verdict: Verdict::Undecided { samples_needed: evidence.samples_needed },
    })
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
            let perfect = metric
                .perfect()
                .ok_or_else(|| CompareError::NoPerfect { metric: metric.name() })?;
            Box::new(move |counts| sign * (after(counts) - perfect))
        }
    };
    Ok(Bootstrap::new(candidate.len(), resampling, difference)?)
}
