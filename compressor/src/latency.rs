//! Host latency of candidates beside the model they are compared with, and what it predicts for a
//! device.
//!
//! Only *ratios* are trusted: both models run in turns in the same engine with the same threads, so that
//! what else the host does falls on both.

use bundle::{Estimate, Quality};
use runtime::measure::{Interleaved, LatencyStats};
use serde::{Deserialize, Serialize};

use crate::pipeline::DeviceBaseline;

/// What the host measured of one candidate.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct HostLatency {
    /// Of the candidate.
    pub p50_us: f64,
    /// Of the candidate.
    pub p95_us: f64,
    /// Candidate over reference: the median over rounds of the ratio of that round's medians.
    pub ratio: f64,
    /// Lower end of the ratio's 95 % interval.
    pub ratio_low: f64,
    /// Upper end of the ratio's 95 % interval.
    pub ratio_high: f64,
    /// Rounds measured.
    pub rounds: usize,
}

impl HostLatency {
    /// From interleaved rounds of a candidate and its reference.
    pub fn of(candidate: &Interleaved, reference: &Interleaved) -> Self {
        let mut ratios: Vec<f64> = candidate
            .round_p50_us
            .iter()
            .zip(&reference.round_p50_us)
            .map(|(c, r)| c / r)
            .collect();
        ratios.sort_by(f64::total_cmp);
        let (low, high) = median_interval(&ratios);
        Self {
            p50_us: candidate.stats.p50_us,
            p95_us: candidate.stats.p95_us,
            ratio: candidate.ratio_to(reference),
            ratio_low: low,
            ratio_high: high,
            rounds: ratios.len(),
        }
    }

    /// The reference itself.
    pub fn reference(stats: &LatencyStats) -> Self {
        Self {
            p50_us: stats.p50_us,
            p95_us: stats.p95_us,
            ratio: 1.0,
            ratio_low: 1.0,
            ratio_high: 1.0,
            rounds: stats.runs,
        }
    }

    /// The 95th percentile to hold against the goal.
    ///
    /// With a baseline it is the device's own percentile times the host's ratio, hence modelled;
    /// without one it is the reference's percentile on this host times the ratio, hence measured.
    pub fn predict(&self, reference: &LatencyStats, baseline: Option<DeviceBaseline>) -> Estimate {
        let (base, quality) = match baseline {
            Some(device) => (device.p95_us as f64, Quality::Modelled),
            None => (reference.p95_us, Quality::Measured),
        };
        Estimate {
            value: base * self.ratio,
            low: base * self.ratio_low,
            high: base * self.ratio_high,
            quality,
        }
    }
}

/// A distribution-free 95 % interval of the median by order statistics: ranks n/2 ± 1.96·√n/2.
fn median_interval(sorted: &[f64]) -> (f64, f64) {
    let (Some(&first), Some(&last)) = (sorted.first(), sorted.last()) else {
        return (f64::NAN, f64::NAN);
    };
    let n = sorted.len() as f64;
    let half = 0.98 * n.sqrt();
    let low = (n / 2.0 - half).floor();
    let high = (n / 2.0 + half).ceil();
    let at = |rank: f64| sorted.get(rank as usize).copied();
    (
        if low < 1.0 { first } else { at(low - 1.0).unwrap_or(first) },
        at(high).unwrap_or(last),
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn rounds(values: &[f64]) -> Interleaved {
        let durations: Vec<_> = values
            .iter()
            .map(|us| std::time::Duration::from_secs_f64(us / 1e6))
            .collect();
        Interleaved {
            stats: LatencyStats::of(&durations).unwrap(),
            round_p50_us: values.to_vec(),
        }
    }

    #[test]
    fn the_prediction_scales_the_devices_own_percentile_and_is_modelled() {
        let reference = rounds(&[100.0; 20]);
        let host = HostLatency::of(&rounds(&[60.0; 20]), &reference);
        let device = DeviceBaseline {
            p50_us: 1000,
            p95_us: 2000,
        };
        let estimate = host.predict(&reference.stats, Some(device));
        assert!((estimate.value - 1200.0).abs() < 1e-6);
        assert_eq!(estimate.quality, Quality::Modelled);
        let local = host.predict(&reference.stats, None);
        assert!((local.value - 60.0).abs() < 1e-6);
        assert_eq!(local.quality, Quality::Measured);
    }

    #[test]
    fn the_interval_holds_the_median_and_ignores_one_disturbed_round() {
        let mut values = vec![50.0; 21];
        values[3] = 5000.0;
        let host = HostLatency::of(&rounds(&values), &rounds(&[100.0; 21]));
        assert!((host.ratio - 0.5).abs() < 1e-9);
        assert!(host.ratio_low <= host.ratio && host.ratio <= host.ratio_high);
        assert!(host.ratio_high < 1.0);
    }

    #[test]
    fn few_rounds_give_their_whole_range() {
        let host = HostLatency::of(&rounds(&[40.0, 50.0, 60.0]), &rounds(&[100.0; 3]));
        assert!((host.ratio_low - 0.4).abs() < 1e-9 && (host.ratio_high - 0.6).abs() < 1e-9);
    }
}
