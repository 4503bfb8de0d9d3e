//! What the core is configured with.

use std::collections::BTreeMap;

use wire::{Birth, Budgets};

use super::trial::ProbationRules;
use super::window::DownloadRules;

/// Everything the core is configured with. It never changes while it runs, but for the budgets.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Who the device is; published as its birth message.
    pub birth: Birth,
    /// Threads of an inference, told in re-compression requests.
    pub threads: u32,
    /// Budgets by model.
    pub budgets: BTreeMap<String, Budgets>,
    /// When a budget counts as broken.
    pub breach: BreachRules,
    /// When requests count as drifted.
    pub drift: DriftRules,
    /// How an install is judged.
    pub install: InstallRules,
    /// When a new model counts as worse than it may be.
    pub probation: ProbationRules,
    /// When downloads may move.
    pub download: DownloadRules,
    /// What is wrong with the device for as long as the agent runs.
    pub trouble: Option<String>,
}

/// When a budget counts as broken, and what else can be the cause.
#[derive(Clone, Debug, PartialEq)]
pub struct BreachRules {
    /// Windows over the budget that make a breach.
    pub windows_over: u32,
    /// Out of how many.
    pub windows_seen: u32,
    /// Requests a window needs to be evidence; smaller ones are added together.
    pub min_requests: u64,
    /// Time between two reports of the same breach, and before asking again after an answer.
    pub cooldown_ms: u64,
    /// A breach ends below the limit by this share.
    pub hysteresis: f64,
    /// How long an unanswered request stays open.
    pub request_timeout_ms: u64,
    /// Stolen CPU time from which a slow window is the hypervisor's fault.
    pub steal_percent: f64,
    /// Pages swapped in during a window from which a slow window is the swap's fault.
    pub swap_in_pages: u64,
}

impl Default for BreachRules {
    fn default() -> Self {
        Self {
            windows_over: 3,
            windows_seen: 5,
            min_requests: 20,
            cooldown_ms: 60_000,
            hysteresis: 0.05,
            request_timeout_ms: 900_000,
            steal_percent: 10.0,
            swap_in_pages: 64,
        }
    }
}

/// When requests count as drifted.
#[derive(Clone, Debug, PartialEq)]
pub struct DriftRules {
    /// The chance that a day without drift brings a drift breach of a model, at most.
    pub false_alarms_per_day: f64,
    /// The least time that requests are pooled before a test.
    pub pool_ms: u64,
    /// The fewest requests of a test.
    pub min_requests: u64,
    /// How long an unanswered request for a model that fits stays open.
    pub request_timeout_ms: u64,
}

/// The largest level of one test, however few tests a day has.
const MAX_LEVEL: f64 = 0.05;
const DAY_MS: f64 = 86_400_000.0;

impl DriftRules {
    /// The chance with which one test may be over its thresholds without drift. A day has at most
    /// T = day / `pool_ms` tests, and a breach in it needs N over among these and the M before them, so
    /// its chance is at most (T + M) level / N (Markov), whatever tests have in common.
    #[must_use]
    pub fn level(&self, breach: &BreachRules) -> f64 {
        #[allow(clippy::cast_precision_loss)]
        let tests = DAY_MS / self.pool_ms.max(1) as f64 + f64::from(breach.windows_seen);
        (self.false_alarms_per_day * f64::from(breach.windows_over) / tests).min(MAX_LEVEL)
    }
}

impl Default for DriftRules {
    fn default() -> Self {
        Self {
            false_alarms_per_day: 0.01,
            pool_ms: 600_000,
            min_requests: 200,
            request_timeout_ms: 86_400_000,
        }
    }
}

/// How an install is judged.
#[derive(Clone, Debug, PartialEq)]
pub struct InstallRules {
    /// Live requests to compare before the switch; 0 switches without.
    pub shadow_requests: u64,
    /// How long to wait for them.
    pub shadow_timeout_ms: u64,
    /// Windows with evidence that a new model is watched for.
    pub probation_windows: u32,
    /// The largest bundle taken, bytes.
    pub max_bundle_bytes: u64,
    /// The most models on the device.
    pub max_models: usize,
    /// How much slower than the model before it, or than predicted, a new one may be; likewise for memory
    /// and energy.
    pub regress_ratio: f64,
    /// The share of failing requests from which a new model is taken back.
    pub max_error_rate: f64,
    /// How long one step other than the download may take.
    pub step_timeout_ms: u64,
    /// Attempts at a step that fails for reasons outside the bundle.
    pub max_attempts: u32,
    /// How often the agent starts over with an install it was stopped in.
    pub max_restarts: u32,
}

impl Default for InstallRules {
    fn default() -> Self {
        Self {
            shadow_requests: 50,
            shadow_timeout_ms: 60_000,
            probation_windows: 3,
            max_bundle_bytes: 2 << 30,
            max_models: 8,
            regress_ratio: 1.25,
            max_error_rate: 0.02,
            step_timeout_ms: 600_000,
            max_attempts: 12,
            max_restarts: 10,
        }
    }
}
