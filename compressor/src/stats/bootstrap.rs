//! Bootstrap intervals (B. Efron, 1979): samples are drawn with replacement and the statistic is taken
//! anew. Resampling whole samples keeps what the two models have in common on each of them, which is
//! what makes a comparison *paired*.
//!
//! A resample is a count per sample, not a list of picks, so that a statistic of sums, of a confusion
//! table and of ranks (whose order is sorted once) each cost one pass.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use super::distribution::{normal_cdf, normal_quantile};
use super::{Evidence, Plan, StatsError, open_unit, positive};

/// The most samples that are resampled.
pub const MAX_RESAMPLED: usize = 10_000_000;
/// The fewest resamples from which an interval is taken.
pub const MIN_RESAMPLES: usize = 100;
/// The largest share of resamples on which the statistic may be undefined.
pub const MAX_UNDEFINED_SHARE: f64 = 0.05;
/// The most parts that the jackknife of BCa leaves out, one at a time. With more samples than that a
/// part holds several, which estimates the same acceleration.
const JACKKNIFE_PARTS: usize = 512;
/// Halvings when a p value is sought: finer than any number of resamples.
const HALVINGS: usize = 40;

/// A value with its interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// The estimate.
    pub value: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// Which interval is taken from the resampled values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// Their quantiles as they are.
    Percentile,
    /// Bias-corrected and accelerated (B. Efron, JASA 82, 1987): quantiles moved by how far the values
    /// lie to one side of the estimate, and by how the spread changes with it.
    Bca,
}

/// How to resample.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Resampling {
    /// Number of resamples.
    pub resamples: usize,
    /// Seed of the draws.
    pub seed: u64,
    /// Which interval.
    pub method: Method,
}

impl Default for Resampling {
    /// 2000 resamples and BCa.
    fn default() -> Self {
        Self { resamples: 2000, seed: 0, method: Method::Bca }
    }
}

/// The resampled values of a statistic, from which intervals and p values are read.
#[derive(Debug, Clone, PartialEq)]
pub struct Bootstrap {
    samples: usize,
    value: f64,
    /// Sorted, finite, at least one.
    values: Vec<f64>,
    bias: f64,
    acceleration: f64,
}

impl Bootstrap {
    /// Resamples a statistic of `samples` samples, which is given how often each is drawn.
    ///
    /// A statistic that is undefined (NaN) on a few resamples, as AUC is without a positive, is left
    /// out of them.
    ///
    /// # Errors
    /// There are no samples or too many, the statistic is undefined on all of them together or on too
    /// many resamples, or the options make no sense.
    pub fn new(
        samples: usize,
        options: &Resampling,
        mut statistic: impl FnMut(&[u32]) -> f64,
    ) -> Result<Self, StatsError> {
        check(samples, options)?;
        let mut counts = vec![1u32; samples];
        let value = statistic(&counts);
        if !value.is_finite() {
            return Err(undefined(1, 1));
        }
        let mut rng = StdRng::seed_from_u64(options.seed);
        let mut values = Vec::with_capacity(options.resamples);
        for _ in 0..options.resamples {
            draw(&mut rng, &mut counts);
            values.push(statistic(&counts));
        }
        values.retain(|v| v.is_finite());
        let missing = options.resamples - values.len();
        if missing as f64 > MAX_UNDEFINED_SHARE * options.resamples as f64 {
            return Err(undefined(missing, options.resamples));
        }
        values.sort_by(f64::total_cmp);
        let (bias, acceleration) = match options.method {
            Method::Percentile => (0.0, 0.0),
            Method::Bca => (bias(&values, value), acceleration(&mut counts, &mut statistic)),
        };
        Ok(Self { samples, value, values, bias, acceleration })
    }

    /// Of the mean of `candidate − original` over samples scored by both, as far as both go.
    ///
    /// # Errors
    /// See [`Self::new`].
    pub fn of_mean_difference(
        original: &[f64],
        candidate: &[f64],
        options: &Resampling,
    ) -> Result<Self, StatsError> {
        let differences: Vec<f64> = candidate.iter().zip(original).map(|(c, o)| c - o).collect();
        Self::new(differences.len(), options, |counts| {
            weighted_sums(&differences, 1, counts)[0] / differences.len() as f64
        })
    }

    /// Of `metric(candidate) − metric(original)` where a metric is a function of sums: rows of `width`
    /// numbers per sample (edits and characters for a CER, hits for an accuracy).
    ///
    /// # Errors
    /// See [`Self::new`].
    pub fn of_sums_difference(
        original: &[f64],
        candidate: &[f64],
        width: usize,
        options: &Resampling,
        metric: impl Fn(&[f64]) -> f64,
    ) -> Result<Self, StatsError> {
        let samples = original.len().min(candidate.len()) / width.max(1);
        Self::new(samples, options, |counts| {
            metric(&weighted_sums(candidate, width, counts))
                - metric(&weighted_sums(original, width, counts))
        })
    }

    /// The statistic of the samples as they are.
    pub fn value(&self) -> f64 {
        self.value
    }

    /// The two-sided interval.
    ///
    /// # Errors
    /// The confidence is not between 0 and 1.
    pub fn interval(&self, confidence: f64) -> Result<Interval, StatsError> {
        open_unit("the confidence", confidence)?;
        let tail = 0.5 * (1.0 - confidence);
        Ok(Interval { value: self.value, low: self.bound(tail), high: self.bound(1.0 - tail) })
    }

    /// The one-sided lower bound at error `p`; it rises with `p`.
    fn bound(&self, p: f64) -> f64 {
        quantile(&self.values, moved(p, self.bias, self.acceleration))
    }

    /// One-sided p value of "the statistic is `limit` or less": the smallest error at which the lower
    /// bound lies above it, never under one in (resamples + 1).
    pub fn p_at_most(&self, limit: f64) -> f64 {
        let (mut low, mut high) = (0.0, 1.0);
        for _ in 0..HALVINGS {
            let middle = 0.5 * (low + high);
            if self.bound(middle) > limit { high = middle } else { low = middle }
        }
        high.max(self.resolution())
    }

    /// One-sided p value of "the statistic is `limit` or more".
    pub fn p_at_least(&self, limit: f64) -> f64 {
        let (mut low, mut high) = (0.0, 1.0);
        for _ in 0..HALVINGS {
            let middle = 0.5 * (low + high);
            if self.bound(1.0 - middle) < limit { high = middle } else { low = middle }
        }
        high.max(self.resolution())
    }

    fn resolution(&self) -> f64 {
        1.0 / (self.values.len() + 1) as f64
    }

    /// What these values say of a difference at a margin.
    ///
    /// `samples_needed` scales the lower half of the interval with 1/√n:
    /// n' = n · (s (z₁₋α + z_power) / (d + margin))², s = (d − low) / z₁₋α. Under [`fewest_samples`]
    /// nothing is accepted: an interval of a few samples that happen to agree has no width.
    ///
    /// # Errors
    /// The margin is not above 0, or the plan's numbers make no sense.
    pub fn evidence(&self, margin: f64, plan: Plan) -> Result<Evidence, StatsError> {
        plan.check()?;
        positive("the margin", margin)?;
        let difference = self.interval(plan.confidence())?;
        let fewest = fewest_samples(margin, plan.alpha);
        let few = (self.samples as u64) < fewest;
        Ok(Evidence {
            difference,
            p_noninferior: if few { 1.0 } else { self.p_at_most(-margin) },
            p_inferior: self.p_at_least(-margin),
            samples_needed: self.samples_needed(&difference, margin, plan).map(|n| n.max(fewest)),
        })
    }

    fn samples_needed(&self, difference: &Interval, margin: f64, plan: Plan) -> Option<u64> {
        let room = self.value.min(0.0) + margin;
        let z_alpha = normal_quantile(1.0 - plan.alpha);
        let spread = (self.value - difference.low).max(0.0) / z_alpha;
        let ratio = spread * (z_alpha + normal_quantile(plan.power)) / room;
        (room > 0.0).then(|| (self.samples as f64 * ratio * ratio).ceil() as u64)
    }
}

/// Samples of which at least one shows a loss that falls on a share `margin` of them, with probability
/// 1 − α: ln α / ln (1 − margin).
pub fn fewest_samples(margin: f64, alpha: f64) -> u64 {
    if margin >= 1.0 {
        return 1;
    }
    (alpha.ln() / (-margin).ln_1p()).ceil().max(1.0) as u64
}

/// The sums of rows of `width` numbers, each row as often as it is counted.
pub fn weighted_sums(rows: &[f64], width: usize, counts: &[u32]) -> Vec<f64> {
    let mut sums = vec![0.0; width];
    for (row, count) in rows.chunks_exact(width.max(1)).zip(counts).filter(|(_, c)| **c > 0) {
        for (sum, value) in sums.iter_mut().zip(row) {
            *sum += f64::from(*count) * value;
        }
    }
    sums
}

fn check(samples: usize, options: &Resampling) -> Result<(), StatsError> {
    if samples == 0 {
        return Err(StatsError::NoSamples);
    }
    if samples > MAX_RESAMPLED {
        return Err(StatsError::TooMany { found: samples, allowed: MAX_RESAMPLED });
    }
    if options.resamples < MIN_RESAMPLES {
        return Err(StatsError::Argument {
            what: "the number of resamples",
            value: options.resamples as f64,
            wanted: "MIN_RESAMPLES = 100 or more",
        });
    }
    Ok(())
}

fn undefined(undefined: usize, resamples: usize) -> StatsError {
    StatsError::Undefined { undefined, resamples, allowed: MAX_UNDEFINED_SHARE }
}

fn draw(rng: &mut StdRng, counts: &mut [u32]) {
    counts.fill(0);
    for _ in 0..counts.len() {
        let at = rng.random_range(0..counts.len());
        counts[at] += 1;
    }
}

/// z₀ = Φ⁻¹(share of resampled values below the estimate), equal ones counted half and neither end
/// taken as certain.
fn bias(values: &[f64], value: f64) -> f64 {
    let below = values.partition_point(|v| *v < value) as f64;
    let up_to = values.partition_point(|v| *v <= value) as f64;
    let n = values.len() as f64;
    normal_quantile((0.5 * (below + up_to) / n).clamp(0.5 / n, 1.0 - 0.5 / n))
}

/// a = Σ d³ / 6 (Σ d²)^{3/2}, with d the mean of the jackknife values minus each of them.
fn acceleration(counts: &mut [u32], statistic: &mut impl FnMut(&[u32]) -> f64) -> f64 {
    let parts = counts.len().min(JACKKNIFE_PARTS);
    let mut values = Vec::with_capacity(parts);
    for part in 0..parts {
        counts.fill(1);
        counts.iter_mut().skip(part).step_by(parts).for_each(|c| *c = 0);
        values.push(statistic(counts));
    }
    values.retain(|v| v.is_finite());
    let mean = values.iter().sum::<f64>() / values.len().max(1) as f64;
    let power = |n: i32| values.iter().map(|v| (mean - v).powi(n)).sum::<f64>();
    let spread = power(2);
    if spread > 0.0 { power(3) / (6.0 * spread.powf(1.5)) } else { 0.0 }
}

/// Φ(z₀ + (z₀ + z) / (1 − a (z₀ + z))), z = Φ⁻¹(p).
fn moved(p: f64, bias: f64, acceleration: f64) -> f64 {
    let z = bias + normal_quantile(p);
    let scale = 1.0 - acceleration * z;
    if scale <= 0.0 {
        return if z > 0.0 { 1.0 } else { 0.0 };
    }
    normal_cdf(bias + z / scale)
}

/// The quantile of sorted values, linear between neighbours.
fn quantile(sorted: &[f64], p: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let at = p.clamp(0.0, 1.0) * last as f64;
    let (below, part) = (at.floor() as usize, at.fract());
    let above = (below + 1).min(last);
    sorted[below] + part * (sorted[above] - sorted[below])
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "bootstrap_tests.rs"]
mod tests;
