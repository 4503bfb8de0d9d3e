//! Non-inferiority of a paired proportion: Tango's score test (T. Tango, Statistics in Medicine 17,
//! 1998, 891-908; the same statistic as J. Nam's, Biometrics 53, 1997, 1422-1430), its interval, and
//! Nam's number of samples.
//!
//! Of n samples, the original alone has `lost` right and the candidate alone `gained`; the difference
//! is λ = (gained − lost) / n. Under a hypothesis λ₀ the share lost has the maximum-likelihood estimate
//!
//! q = (√(B² − 4AC) − B) / 2A,  A = 2n,  B = −(gained + lost) + (2n − gained + lost) λ₀,
//! C = −lost · λ₀ (1 − λ₀),
//!
//! and Z(λ₀) = (gained − lost − n λ₀) / √(n (2q + λ₀ (1 − λ₀))) is standard normal. The test is
//! asymptotic: its true level is near the nominal one (see the tests for how near), not under it always.
//!
//! Agreement with the original is the special case without gains: every sample that differs is lost.

use serde::{Deserialize, Serialize};

use super::distribution::{normal_cdf, normal_quantile};
use super::{Evidence, Interval, StatsError, open_unit};

/// Halvings of an interval's bracket: beyond them f64 has no digits left.
const HALVINGS: usize = 60;

/// The error probabilities of a test.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Chance to accept a candidate that loses the margin.
    pub alpha: f64,
    /// Chance to accept one that is as good as it seems.
    pub power: f64,
}

impl Default for Plan {
    /// One in twenty, and four in five.
    fn default() -> Self {
        Self { alpha: 0.05, power: 0.8 }
    }
}

impl Plan {
    pub(super) fn check(self) -> Result<(), StatsError> {
        if !(self.alpha > 0.0 && self.alpha < 0.5) {
            let wanted = "between 0 and 0.5";
            return Err(StatsError::Argument { what: "alpha", value: self.alpha, wanted });
        }
        open_unit("the power", self.power)
    }

    /// Confidence of the two-sided interval each of whose ends is a one-sided bound at alpha.
    pub fn confidence(self) -> f64 {
        1.0 - 2.0 * self.alpha
    }
}

/// The outcome of two models on the same samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Paired {
    samples: u64,
    lost: u64,
    gained: u64,
}

impl Paired {
    /// `lost` and `gained` of `samples`.
    ///
    /// # Errors
    /// There are no samples, or fewer than are lost and gained.
    pub fn new(samples: u64, lost: u64, gained: u64) -> Result<Self, StatsError> {
        if samples == 0 {
            return Err(StatsError::NoSamples);
        }
        if lost.checked_add(gained).is_none_or(|all| all > samples) {
            return Err(StatsError::Counts { lost, gained, samples });
        }
        Ok(Self { samples, lost, gained })
    }

    /// Counts pairs of *(original right, candidate right)*.
    ///
    /// # Errors
    /// There are none.
    pub fn count(pairs: impl IntoIterator<Item = (bool, bool)>) -> Result<Self, StatsError> {
        let (mut samples, mut lost, mut gained) = (0, 0, 0);
        for (original, candidate) in pairs {
            samples += 1;
            lost += u64::from(original && !candidate);
            gained += u64::from(!original && candidate);
        }
        Self::new(samples, lost, gained)
    }

    /// Samples compared.
    pub fn samples(&self) -> u64 {
        self.samples
    }

    /// Samples that only the original has right.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// Samples that only the candidate has right.
    pub fn gained(&self) -> u64 {
        self.gained
    }

    /// λ = (gained − lost) / n.
    pub fn difference(&self) -> f64 {
        (self.gained as f64 - self.lost as f64) / self.samples as f64
    }

    /// (gained + lost) / n.
    pub fn discordance(&self) -> f64 {
        (self.gained as f64 + self.lost as f64) / self.samples as f64
    }

    /// Z(λ₀); see the module. Exchanging the models turns its sign, near the ends too, where rounding would not.
    fn score(&self, hypothesis: f64) -> f64 {
        let mirrored = Self { samples: self.samples, lost: self.gained, gained: self.lost };
        if self.lost > self.gained || (self.lost == self.gained && hypothesis < 0.0) {
            return -mirrored.score_of_more_gained(-hypothesis);
        }
        self.score_of_more_gained(hypothesis)
    }

    fn score_of_more_gained(&self, hypothesis: f64) -> f64 {
        let n = self.samples as f64;
        let distance = self.gained as f64 - self.lost as f64 - n * hypothesis;
        let spread = n * restricted_variance(self.shares(), hypothesis);
        if spread > 0.0 { distance / spread.sqrt() } else { distance.signum() * f64::INFINITY }
    }

    fn shares(&self) -> (f64, f64) {
        let n = self.samples as f64;
        (self.lost as f64 / n, self.gained as f64 / n)
    }

    /// One-sided p value of "the candidate loses `margin` or more".
    ///
    /// # Errors
    /// The margin is not between 0 and 1.
    pub fn p_noninferior(&self, margin: f64) -> Result<f64, StatsError> {
        open_unit("the margin", margin)?;
        Ok(normal_cdf(-self.score(-margin)))
    }

    /// One-sided p value of "the candidate loses `margin` or less".
    ///
    /// # Errors
    /// The margin is not between 0 and 1.
    pub fn p_inferior(&self, margin: f64) -> Result<f64, StatsError> {
        open_unit("the margin", margin)?;
        Ok(normal_cdf(self.score(-margin)))
    }

    /// Tango's two-sided interval of the difference: every λ₀ with |Z(λ₀)| below the normal quantile.
    ///
    /// # Errors
    /// The confidence is not between 0 and 1.
    pub fn interval(&self, confidence: f64) -> Result<Interval, StatsError> {
        open_unit("the confidence", confidence)?;
        let z = normal_quantile(0.5 + 0.5 * confidence);
        let value = self.difference();
        Ok(Interval { value, low: self.bound(-1.0, value, z), high: self.bound(1.0, value, -z) })
    }

    /// The hypothesis between `outside` and the difference whose score is `z`; Z falls with λ₀.
    fn bound(&self, outside: f64, difference: f64, z: f64) -> f64 {
        let (mut out, mut inside) = (outside, difference);
        for _ in 0..HALVINGS {
            let middle = 0.5 * (out + inside);
            let beyond = if z > 0.0 { self.score(middle) > z } else { self.score(middle) < z };
            if beyond { out = middle } else { inside = middle }
        }
        0.5 * (out + inside)
    }

    /// What these counts say at a margin.
    ///
    /// # Errors
    /// The margin is not between 0 and 1, or the plan's numbers are not.
    pub fn evidence(&self, margin: f64, plan: Plan) -> Result<Evidence, StatsError> {
        plan.check()?;
        Ok(Evidence {
            difference: self.interval(plan.confidence())?,
            p_noninferior: self.p_noninferior(margin)?,
            p_inferior: self.p_inferior(margin)?,
            samples_needed: self.samples_needed(margin, plan)?,
        })
    }

    /// Samples in all that the test needs, at the discordance seen and at the difference seen or at
    /// none, whichever is worse; `None` if that difference is the margin or more.
    ///
    /// Nam 1997: n = (z₁₋α √w₀ + z_power √w₁)² / (margin + λ₁)², with w₁ = ψ − λ₁² and w₀ the
    /// restricted variance that the test would estimate.
    ///
    /// # Errors
    /// The margin is not between 0 and 1, or the plan's numbers are not.
    pub fn samples_needed(&self, margin: f64, plan: Plan) -> Result<Option<u64>, StatsError> {
        open_unit("the margin", margin)?;
        plan.check()?;
        let psi = self.discordance();
        let difference = self.difference().min(0.0);
        let room = margin + difference;
        if room <= 0.0 {
            return Ok(None);
        }
        let expected = (0.5 * (psi - difference), 0.5 * (psi + difference));
        let w0 = restricted_variance(expected, -margin).max(0.0);
        let w1 = (psi - difference * difference).max(0.0);
        let (z_alpha, z_power) = (normal_quantile(1.0 - plan.alpha), normal_quantile(plan.power));
        let needed = ((z_alpha * w0.sqrt() + z_power * w1.sqrt()) / room).powi(2).ceil();
        Ok(Some(needed.max(1.0) as u64))
    }
}

/// 2q + λ₀ (1 − λ₀): the variance of one pair's difference where the shares `(lost, gained)` are bent to
/// the hypothesis.
fn restricted_variance((lost, gained): (f64, f64), hypothesis: f64) -> f64 {
    let a = 2.0;
    let b = -(gained + lost) + (2.0 - gained + lost) * hypothesis;
    let c = -lost * hypothesis * (1.0 - hypothesis);
    let root = (b * b - 4.0 * a * c).max(0.0).sqrt();
    // The larger root, in the form that does not cancel.
    let q = if b <= 0.0 {
        (root - b) / (2.0 * a)
    } else if root + b > 0.0 {
        -2.0 * c / (root + b)
    } else {
        0.0
    };
    // Rounding alone leaves these bounds.
    let q = q.clamp((-hypothesis).max(0.0), (0.5 * (1.0 - hypothesis)).max(0.0));
    2.0 * q + hypothesis * (1.0 - hypothesis)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "noninferiority_tests.rs"]
mod tests;
