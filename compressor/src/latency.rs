//! Host latency of candidates beside the model they are compared with, and what it predicts for a
//! device.
//!
//! Only *ratios* are trusted: both models run in turns in the same engine with the same threads, so that
//! what else the host does falls on both.

use bundle::{Estimate, Quality};
use runtime::measure::{Interleaved, LatencyStats};
use serde::{Deserialize, Serialize};

use crate::pipeline::DeviceBaseline;

/// Parts of a measurement that are compared with each other for the interval.
const STRETCHES: usize = 4;

/// What the host measured of one candidate.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct HostLatency {
    /// Of the candidate.
    pub p50_us: f64,
    /// Of the candidate.
    pub p95_us: f64,
    /// Candidate over reference, undisturbed.
    pub ratio: f64,
    /// The lowest ratio of a stretch of the rounds.
    pub ratio_low: f64,
    /// The highest ratio of a stretch of the rounds.
    pub ratio_high: f64,
    /// Rounds measured.
    pub rounds: usize,
}

impl HostLatency {
    /// From interleaved rounds of a candidate and its reference.
    ///
    /// The ratio is of the means of each one's fastest quarter of rounds: what else a busy host does only
    /// ever adds time, and rarely to all rounds. The interval spans the ratios of four
    /// stretches of the rounds.
    pub fn of(candidate: &Interleaved, reference: &Interleaved) -> Self {
        let (c, r) = (&candidate.round_p50_us, &reference.round_p50_us);
        let rounds = c.len().min(r.len());
        let ratio = undisturbed(&c[..rounds]) / undisturbed(&r[..rounds]);
        let stretch = rounds.div_ceil(STRETCHES).max(1);
        let stretches = c[..rounds].chunks(stretch).zip(r[..rounds].chunks(stretch));
        let ratios = stretches.map(|(c, r)| undisturbed(c) / undisturbed(r));
        let (low, high) = ratios.fold((ratio, ratio), |(low, high), v| (low.min(v), high.max(v)));
        Self {
            p50_us: candidate.stats.p50_us,
            p95_us: candidate.stats.p95_us,
            ratio,
            ratio_low: low,
            ratio_high: high,
            rounds,
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

/// Mean of the fastest quarter.
fn undisturbed(times: &[f64]) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    let fastest = &sorted[..sorted.len().div_ceil(4)];
    fastest.iter().sum::<f64>() / fastest.len().max(1) as f64
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn rounds(values: &[f64]) -> Interleaved {
        let durations: Vec<_> =
            values.iter().map(|us| std::time::Duration::from_secs_f64(us / 1e6)).collect();
        Interleaved { stats: LatencyStats::of(&durations).unwrap(), round_p50_us: values.to_vec() }
    }

    #[test]
    fn the_prediction_scales_the_devices_own_percentile_and_is_modelled() {
        let reference = rounds(&[100.0; 20]);
        let host = HostLatency::of(&rounds(&[60.0; 20]), &reference);
        let device = DeviceBaseline { p50_us: 1000, p95_us: 2000 };
        let estimate = host.predict(&reference.stats, Some(device));
        assert!((estimate.value - 1200.0).abs() < 1e-6);
        assert_eq!(estimate.quality, Quality::Modelled);
        let local = host.predict(&reference.stats, None);
        assert!((local.value - 60.0).abs() < 1e-6);
        assert_eq!(local.quality, Quality::Measured);
    }

    #[test]
    fn disturbed_rounds_move_neither_ratio_nor_interval() {
        let mut values = vec![50.0; 20];
        for (at, value) in values.iter_mut().enumerate().filter(|(at, _)| at % 5 < 3) {
            *value *= 2.0 + at as f64;
        }
        let host = HostLatency::of(&rounds(&values), &rounds(&[100.0; 20]));
        assert!((host.ratio - 0.5).abs() < 1e-9, "{host:?}");
        assert!((host.ratio_low - 0.5).abs() < 1e-9 && (host.ratio_high - 0.5).abs() < 1e-9);
    }

    #[test]
    fn a_drift_that_moves_one_model_only_widens_the_interval() {
        let drifting: Vec<f64> = (0..20).map(|i| 50.0 + f64::from(i)).collect();
        let host = HostLatency::of(&rounds(&drifting), &rounds(&[100.0; 20]));
        assert!(host.ratio_low <= host.ratio && host.ratio < host.ratio_high);
    }
}
