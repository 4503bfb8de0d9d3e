//! Latencies as fixed logarithmic buckets, so that windows can be merged without losing anything.
//!
//! Values are microseconds. Below 64 us every value has a bucket of its own; above, each power of
//! two is cut into 32 equal buckets (the scheme of HdrHistogram with five bits), so that a bucket is
//! between 1/64 and 1/32 (3.1 %) of its values wide. The last bucket starts just under 100 s and
//! holds everything longer. Because the buckets are the same everywhere, the histogram of a union is
//! the sum of the histograms.
//!
//! **Error bound.** [`Histogram::quantile`] gives the middle of the bucket that holds the value of
//! that rank (nearest rank), hence is off by at most 1/64 (1.6 %) of it for values up to 99.6 s.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Longest time with a bucket of its own, microseconds.
pub const MAX_TRACKED_US: u64 = 100_000_000;
/// Number of buckets.
pub const BUCKETS: usize = index_of(MAX_TRACKED_US) + 1;

const SUB_BITS: u32 = 5;
const SUB_BUCKETS: usize = 1 << SUB_BITS;
const LINEAR: usize = 2 * SUB_BUCKETS;

/// A latency histogram, microseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "Sparse", into = "Sparse")]
pub struct Histogram {
    /// Counts up to the highest bucket in use: the last one is never zero.
    counts: Vec<u64>,
    count: u64,
    sum_us: u64,
    max_us: u64,
}

/// Why a histogram was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HistogramError {
    /// Another unit than `us`.
    #[error("histogram unit {0:?} is not \"us\"")]
    Unit(String),
    /// A bucket outside the fixed range.
    #[error("histogram bucket {0} does not exist: there are {BUCKETS}")]
    Index(u64),
    /// The same bucket twice, or buckets out of order.
    #[error("histogram bucket {0} is out of order or given twice")]
    Order(u64),
    /// A bucket with a count of zero.
    #[error("histogram bucket {0} is given with a count of zero")]
    Empty(u64),
    /// The counts do not fit 64 bits together.
    #[error("the histogram's counts overflow")]
    Overflow,
    /// `max_us` is not in the highest bucket given.
    #[error("histogram max_us {max_us} is not in its highest bucket {index}")]
    Max {
        /// The value given.
        max_us: u64,
        /// The highest bucket given.
        index: usize,
    },
    /// `sum_us` cannot be the sum of values in these buckets.
    #[error("histogram sum_us {sum_us} cannot come from its buckets ({low} to {high})")]
    Sum {
        /// The value given.
        sum_us: u64,
        /// The lowest sum possible.
        low: u128,
        /// The highest sum possible.
        high: u128,
    },
}

impl Histogram {
    /// Counts one duration.
    pub fn record(&mut self, us: u64) {
        let index = index_of(us);
        if self.counts.len() <= index {
            self.counts.resize(index + 1, 0);
        }
        self.counts[index] = self.counts[index].saturating_add(1);
        self.count = self.count.saturating_add(1);
        self.sum_us = self.sum_us.saturating_add(us);
        self.max_us = self.max_us.max(us);
    }

    /// Adds all of another histogram's durations.
    pub fn merge(&mut self, other: &Histogram) {
        if self.counts.len() < other.counts.len() {
            self.counts.resize(other.counts.len(), 0);
        }
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine = mine.saturating_add(*theirs);
        }
        self.count = self.count.saturating_add(other.count);
        self.sum_us = self.sum_us.saturating_add(other.sum_us);
        self.max_us = self.max_us.max(other.max_us);
    }

    /// How many durations were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Whether nothing was counted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The duration of nearest rank `q` (0 to 1), microseconds, within 1/64 of the true one; nothing
    /// for an empty histogram or a `q` that is no number between 0 and 1.
    #[must_use]
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    pub fn quantile(&self, q: f64) -> Option<u64> {
        if self.count == 0 || !(0.0..=1.0).contains(&q) {
            return None;
        }
        let rank = ((q * self.count as f64).ceil() as u64).clamp(1, self.count);
        let mut seen = 0u64;
        for (index, count) in self.counts.iter().enumerate() {
            seen = seen.saturating_add(*count);
            if seen >= rank {
                return Some(self.middle_of(index));
            }
        }
        Some(self.max_us)
    }

    /// The longest duration, exactly, microseconds.
    #[must_use]
    pub fn max(&self) -> Option<u64> {
        (self.count > 0).then_some(self.max_us)
    }

    /// The mean duration, exactly, microseconds.
    #[must_use]
    #[allow(clippy::cast_precision_loss)]
    pub fn mean(&self) -> Option<f64> {
        (self.count > 0).then(|| self.sum_us as f64 / self.count as f64)
    }

    /// The sum of all durations, microseconds (saturating).
    #[must_use]
    pub fn sum(&self) -> u64 {
        self.sum_us
    }

    /// The buckets in use, as (lowest value, highest value, count).
    pub fn buckets(&self) -> impl Iterator<Item = (u64, u64, u64)> + '_ {
        let used = self.counts.iter().enumerate().filter(|(_, count)| **count > 0);
        used.map(|(index, count)| (low_of(index), high_of(index), *count))
    }

    fn middle_of(&self, index: usize) -> u64 {
        if index == BUCKETS - 1 {
            return self.max_us;
        }
        let low = low_of(index);
        (low + (high_of(index) - low) / 2).min(self.max_us)
    }
}

/// The bucket of a duration.
#[allow(clippy::cast_possible_truncation)]
const fn index_of(us: u64) -> usize {
    let us = if us > MAX_TRACKED_US { MAX_TRACKED_US } else { us };
    if us < LINEAR as u64 {
        return us as usize;
    }
    let exponent = 63 - us.leading_zeros();
    let sub = (us >> (exponent - SUB_BITS)) as usize - SUB_BUCKETS;
    LINEAR + (exponent as usize - SUB_BITS as usize - 1) * SUB_BUCKETS + sub
}

/// The lowest duration of a bucket.
const fn low_of(index: usize) -> u64 {
    if index < LINEAR {
        return index as u64;
    }
    let octave = (index - LINEAR) / SUB_BUCKETS;
    let sub = (index - LINEAR) % SUB_BUCKETS;
    ((SUB_BUCKETS + sub) as u64) << (octave + 1)
}

/// The highest duration of a bucket.
const fn high_of(index: usize) -> u64 {
    if index + 1 >= BUCKETS { u64::MAX } else { low_of(index + 1) - 1 }
}

/// The form on the wire: only the buckets in use, in order.
#[derive(Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Histogram")]
struct Sparse {
    /// Always `us`.
    unit: String,
    /// Pairs of bucket index and count, indices rising, counts above zero.
    buckets: Vec<(u64, u64)>,
    /// The sum of all durations.
    sum_us: u64,
    /// The longest duration; 0 when there is none.
    max_us: u64,
}

impl From<Histogram> for Sparse {
    fn from(histogram: Histogram) -> Self {
        let used = histogram.counts.iter().enumerate().filter(|(_, count)| **count > 0);
        Self {
            unit: "us".to_owned(),
            buckets: used.map(|(index, count)| (index as u64, *count)).collect(),
            sum_us: histogram.sum_us,
            max_us: histogram.max_us,
        }
    }
}

impl TryFrom<Sparse> for Histogram {
    type Error = HistogramError;

    fn try_from(sparse: Sparse) -> Result<Self, HistogramError> {
        if sparse.unit != "us" {
            return Err(HistogramError::Unit(sparse.unit.chars().take(32).collect()));
        }
        let mut histogram =
            Histogram { max_us: sparse.max_us, sum_us: sparse.sum_us, ..Histogram::default() };
        for (given, count) in sparse.buckets {
            let index = usize::try_from(given).ok().filter(|index| *index < BUCKETS);
            let index = index.ok_or(HistogramError::Index(given))?;
            if index < histogram.counts.len() {
                return Err(HistogramError::Order(given));
            }
            if count == 0 {
                return Err(HistogramError::Empty(given));
            }
            histogram.counts.resize(index, 0);
            histogram.counts.push(count);
            histogram.count = histogram.count.checked_add(count).ok_or(HistogramError::Overflow)?;
        }
        histogram.check()?;
        Ok(histogram)
    }
}

impl Histogram {
    /// Whether maximum and sum can come from the buckets.
    fn check(&self) -> Result<(), HistogramError> {
        let Some(last) = self.counts.len().checked_sub(1) else {
            return match (self.max_us, self.sum_us) {
                (0, 0) => Ok(()),
                (0, sum_us) => Err(HistogramError::Sum { sum_us, low: 0, high: 0 }),
                (max_us, _) => Err(HistogramError::Max { max_us, index: 0 }),
            };
        };
        if index_of(self.max_us) != last {
            return Err(HistogramError::Max { max_us: self.max_us, index: last });
        }
        let (mut low, mut high) = (0u128, 0u128);
        for (index, count) in self.counts.iter().enumerate() {
            low += u128::from(*count) * u128::from(low_of(index));
            high += u128::from(*count) * u128::from(high_of(index).min(self.max_us));
        }
        let saturated = self.sum_us == u64::MAX && high >= u128::from(u64::MAX);
        if saturated || (low..=high).contains(&u128::from(self.sum_us)) {
            return Ok(());
        }
        Err(HistogramError::Sum { sum_us: self.sum_us, low, high })
    }
}
