//! Host latency of candidates beside the model they are compared with, and what it predicts for a
//! device.
//!
//! Only *ratios* are trusted: both models run in turns in the same engine with the same threads, so that
//! what else the host does falls on both.

use bundle::{Estimate, Quality};
use runtime::measure::LatencyStats;
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
    /// From the times of interleaved rounds of a candidate and its reference.
    ///
    /// The ratio is of the means of each one's fastest quarter of rounds: what else a busy host does only
    /// ever adds time, and rarely to all rounds. The interval spans the ratios of four
    /// stretches of the rounds.
    pub fn of(candidate_us: &[f64], reference_us: &[f64]) -> Self {
        let rounds = candidate_us.len().min(reference_us.len());
        let (c, r) = (&candidate_us[..rounds], &reference_us[..rounds]);
        let ratio = undisturbed(c) / undisturbed(r);
        let stretch = rounds.div_ceil(STRETCHES).max(1);
        let stretches = c.chunks(stretch).zip(r.chunks(stretch));
        let ratios = stretches.map(|(c, r)| undisturbed(c) / undisturbed(r));
        let (low, high) = ratios.fold((ratio, ratio), |(low, high), v| (low.min(v), high.max(v)));
        let mut sorted = c.to_vec();
        sorted.sort_by(f64::total_cmp);
        Self {
            p50_us: rank(&sorted, 0.50),
            p95_us: rank(&sorted, 0.95),
            ratio,
            ratio_low: low,
            ratio_high: high,
            rounds,
        }
    }

    /// The ratio at which [`Self::predict`] reaches `budget_us` with a share of `margin` left under it.
    pub fn limit(
        budget_us: u64,
        margin: f64,
        reference: &LatencyStats,
        baseline: Option<DeviceBaseline>,
    ) -> f64 {
        let base = baseline.map_or(reference.p95_us, |device| device.p95_us as f64);
        budget_us as f64 / (1.0 + margin) / base.max(f64::MIN_POSITIVE)
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

/// How fast a model is beside the one that it was made from, on this host.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Speed {
    /// The engine.
    pub engine: runtime::EngineKind,
    /// Threads of one inference.
    pub threads: usize,
    /// Median of the original, in microseconds, measured alone.
    pub original_p50_us: f64,
    /// Both in turns.
    #[serde(flatten)]
    pub host: HostLatency,
    /// Whether it is measurably faster: even the upper end of the ratio's interval says so.
    pub faster: bool,
}

impl Speed {
    /// Of a comparison in the engine of `options`; what takes at most a share of `pays` counts as faster.
    pub fn of(
        options: &runtime::EngineOptions,
        original: &LatencyStats,
        host: HostLatency,
        pays: f64,
    ) -> Self {
        Self {
            engine: options.kind,
            threads: options.threads,
            original_p50_us: original.p50_us,
            host,
            faster: host.ratio_high < pays,
        }
    }
}

/// Nearest rank of `share` in `sorted`.
fn rank(sorted: &[f64], share: f64) -> f64 {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
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

    fn stats(us: u64) -> LatencyStats {
        LatencyStats::of(&[std::time::Duration::from_micros(us)]).unwrap()
    }

    #[test]
    fn the_prediction_scales_the_devices_own_percentile_and_is_modelled() {
        let host = HostLatency::of(&[60.0; 20], &[100.0; 20]);
        let device = DeviceBaseline::latency(1000, 2000);
        let estimate = host.predict(&stats(100), Some(device));
        assert!((estimate.value - 1200.0).abs() < 1e-6);
        assert_eq!(estimate.quality, Quality::Modelled);
        let local = host.predict(&stats(100), None);
        assert!((local.value - 60.0).abs() < 1e-6);
        assert_eq!(local.quality, Quality::Measured);
    }

    #[test]
    fn only_what_is_clearly_under_the_original_counts_as_faster() {
        let options = runtime::EngineOptions::new(runtime::EngineKind::Tract);
        let speed = |us| {
            let host = HostLatency::of(&[us; 20], &[100.0; 20]);
            Speed::of(&options, &stats(100), host, 0.98)
        };
        assert!(speed(90.0).faster && !speed(99.0).faster && !speed(130.0).faster);
        let json = serde_json::to_value(speed(90.0)).unwrap();
        assert_eq!((&json["ratio"], &json["faster"]), (&0.9.into(), &true.into()));
    }

    #[test]
    fn disturbed_rounds_move_neither_ratio_nor_interval() {
        let mut values = vec![50.0; 20];
        for (at, value) in values.iter_mut().enumerate().filter(|(at, _)| at % 5 < 3) {
            *value *= 2.0 + at as f64;
        }
        let host = HostLatency::of(&values, &[100.0; 20]);
        assert!((host.ratio - 0.5).abs() < 1e-9, "{host:?}");
        assert!((host.ratio_low - 0.5).abs() < 1e-9 && (host.ratio_high - 0.5).abs() < 1e-9);
    }

    #[test]
    fn a_drift_that_moves_one_model_only_widens_the_interval() {
        let drifting: Vec<f64> = (0..20).map(|i| 50.0 + f64::from(i)).collect();
        let host = HostLatency::of(&drifting, &[100.0; 20]);
        assert!(host.ratio_low <= host.ratio && host.ratio < host.ratio_high);
    }

    #[test]
    fn a_ratio_at_the_limit_predicts_the_budget_less_the_margin() {
        let device = DeviceBaseline::latency(1000, 2000);
        let limit = HostLatency::limit(1400, 0.07, &stats(100), Some(device));
        let host = HostLatency::of(&[100.0 * limit; 8], &[100.0; 8]);
        let predicted = host.predict(&stats(100), Some(device)).value;
        assert!((predicted * 1.07 - 1400.0).abs() < 1e-6);
    }
}
