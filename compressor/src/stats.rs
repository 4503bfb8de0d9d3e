//! Whether one model is as good as another on the same samples.
//!
//! Everything here is a function of counts and scores: no file, no engine, no clock. Randomness comes
//! from a seed, so that the same scores give the same answer.
//!
//! - [`mcnemar`]: the exact test on discordant pairs.
//! - [`noninferiority`]: Tango's score test and interval for a paired difference of proportions, and
//!   the number of samples it needs.
//! - [`bootstrap`]: percentile and BCa intervals of any statistic of the samples.
//! - [`holm`]: the step-down correction for several candidates.
//!
//! A difference is always *candidate minus original*, so that a loss is negative.

pub mod bootstrap;
pub mod distribution;
pub mod holm;
pub mod mcnemar;
pub mod noninferiority;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use bootstrap::{Bootstrap, Interval, Resampling};
pub use holm::adjust;
pub use mcnemar::McNemar;
pub use noninferiority::{Paired, Plan};

/// Why a question has no answer.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[allow(missing_docs)]
pub enum StatsError {
    #[error("there are no samples to compare")]
    NoSamples,
    #[error("{lost} samples lost and {gained} gained are more than the {samples} compared")]
    Counts { lost: u64, gained: u64, samples: u64 },
    #[error("{what} is {value}; it must be {wanted}")]
    Argument { what: &'static str, value: f64, wanted: &'static str },
    #[error(
        "the metric is undefined on {undefined} of {resamples} resamples, more than \
         MAX_UNDEFINED_SHARE = {allowed}; a class or outcome is too rare in these samples"
    )]
    Undefined { undefined: usize, resamples: usize, allowed: f64 },
    #[error("{found} samples are more than MAX_RESAMPLED = {allowed}")]
    TooMany { found: usize, allowed: usize },
}

/// What the samples say about a candidate, at a margin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum Verdict {
    /// The loss is less than the margin, with confidence.
    NonInferior,
    /// The loss is more than the margin, with confidence.
    Inferior,
    /// The samples are too few to tell.
    Undecided {
        /// Samples in all with which the test would have its power, if the rates seen so far hold;
        /// `None` if the loss seen is the margin or more, which no number of samples would excuse.
        samples_needed: Option<u64>,
    },
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NonInferior => f.write_str("non-inferior"),
            Self::Inferior => f.write_str("inferior"),
            Self::Undecided { samples_needed: Some(n) } => {
                write!(f, "undecided: about {n} samples are needed")
            }
            Self::Undecided { samples_needed: None } => {
                f.write_str("undecided: the loss seen is the margin or more")
            }
        }
    }
}

/// What a test of one candidate found at a margin: the difference (candidate minus original, signed so
/// that a loss is negative) and how well it excludes each side of the margin.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// The difference with its two-sided interval at confidence 1 − 2α.
    pub difference: Interval,
    /// One-sided p value of "the loss is the margin or more".
    pub p_noninferior: f64,
    /// One-sided p value of "the loss is the margin or less".
    pub p_inferior: f64,
    /// Samples in all that would decide, as in [`Verdict::Undecided`].
    pub samples_needed: Option<u64>,
}

impl Evidence {
    /// The verdict on a candidate that is the only one.
    pub fn verdict(&self, alpha: f64) -> Verdict {
        self.settle(self.p_noninferior, self.p_inferior, alpha)
    }

    fn settle(&self, good: f64, bad: f64, alpha: f64) -> Verdict {
        if good <= alpha {
            Verdict::NonInferior
        } else if bad <= alpha {
            Verdict::Inferior
        } else {
            Verdict::Undecided { samples_needed: self.samples_needed }
        }
    }
}

/// Verdicts on several candidates for one place, with Holm's correction of both sides, so that trying
/// many candidates does not make it likelier that a bad one is accepted.
pub fn verdicts(candidates: &[Evidence], alpha: f64) -> Vec<Verdict> {
    let adjusted = |p: fn(&Evidence) -> f64| adjust(&candidates.iter().map(p).collect::<Vec<_>>());
    let (good, bad) = (adjusted(|e| e.p_noninferior), adjusted(|e| e.p_inferior));
    let each = candidates.iter().zip(good.iter().zip(&bad));
    each.map(|(c, (good, bad))| c.settle(*good, *bad, alpha)).collect()
}

fn positive(what: &'static str, value: f64) -> Result<(), StatsError> {
    if value > 0.0 && value.is_finite() {
        return Ok(());
    }
    Err(StatsError::Argument { what, value, wanted: "above 0" })
}

fn open_unit(what: &'static str, value: f64) -> Result<(), StatsError> {
    if value > 0.0 && value < 1.0 {
        return Ok(());
    }
    Err(StatsError::Argument { what, value, wanted: "between 0 and 1" })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "stats_tests.rs"]
mod tests;
