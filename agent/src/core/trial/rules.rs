//! What a trial is configured with, and how its rate is divided.

/// The metrics over which the rate is divided.
const METRICS: f64 = 6.0;
/// Requests in a row that may fail for one reason: those that a dying worker had.
const FAIL_TOGETHER: f64 = 4.0;

/// When a new model counts as worse than it may be.
#[derive(Clone, Debug, PartialEq)]
pub struct ProbationRules {
    /// The chance that a model which is no worse is taken back or turned away, at most.
    pub false_rollback_rate: f64,
    /// Requests within this time count as one for latency: what slows the one may slow the other.
    pub correlation_ms: u64,
    /// A p95 that is higher by less is not worse, microseconds.
    pub latency_floor_us: u64,
    /// Memory that is more by less is not worse, bytes.
    pub memory_floor_bytes: u64,
    /// Energy per inference that is more by less is not worse, millijoules.
    pub energy_floor_mj: f64,
}

impl Default for ProbationRules {
    fn default() -> Self {
        Self {
            false_rollback_rate: 0.01,
            correlation_ms: 1000,
            latency_floor_us: 1000,
            memory_floor_bytes: 4 << 20,
            energy_floor_mj: 1.0,
        }
    }
}

impl ProbationRules {
    /// Each metric's part of the rate.
    pub(in crate::core) fn level(&self) -> f64 {
        self.false_rollback_rate / METRICS
    }

    /// The level of a shadow's agreement after so many restarts of the agent, each of which begins the
    /// shadow anew: half of what is left each time, so that all together stay within the metric's part.
    pub(in crate::core) fn shadow_level(&self, restarts: u32) -> f64 {
        self.level() / 2_f64.powi(restarts.saturating_add(1).min(64).cast_signed())
    }

    /// What one of `requests` in a window counts as an observation of latency: 1/d, where d of them fall
    /// into the time in which they have things in common.
    #[allow(clippy::cast_precision_loss)]
    pub(in crate::core) fn weight(&self, requests: u64, window_ms: u64) -> f64 {
        let alike = requests as f64 * self.correlation_ms as f64 / window_ms.max(1) as f64;
        1.0 / alike.ceil().max(1.0)
    }

    /// What one request counts as an observation of errors.
    pub(in crate::core) fn error_weight() -> f64 {
        1.0 / FAIL_TOGETHER
    }
}

#[cfg(test)]
#[allow(clippy::float_cmp)]
mod tests {
    use super::*;

    #[test]
    fn requests_that_are_close_count_together_and_lonely_ones_for_themselves() {
        let rules = ProbationRules::default();
        assert_eq!(rules.weight(1000, 10_000), 0.01);
        assert_eq!(rules.weight(20, 10_000), 0.5);
        assert_eq!(rules.weight(10, 10_000), 1.0);
        assert_eq!(rules.weight(1, 10_000), 1.0);
        assert_eq!(rules.weight(5, 0), 1.0 / 5000.0);
    }

    #[test]
    fn all_restarts_of_a_shadow_together_have_one_metrics_part() {
        let rules = ProbationRules::default();
        let all: f64 = (0..100).map(|restarts| rules.shadow_level(restarts)).sum();
        assert!(all <= rules.level() * (1.0 + 1e-9));
    }
}
