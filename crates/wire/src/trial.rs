//! What the probation of a new model has found.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::budget::{number, vocabulary};

/// The most metrics in one trial.
pub const MAX_TRIAL_METRICS: usize = 16;

vocabulary! {
    /// What a new model is watched for.
    Metric {
        /// 95th percentile of the compute time, microseconds.
        LatencyP95 = "latency_p95",
        /// Proportional set size of its worker, bytes.
        Memory = "memory",
        /// Energy per inference, millijoules.
        Energy = "energy",
        /// Share of requests that failed, 0 to 1.
        Errors = "errors",
        /// Deaths of its worker.
        Crashes = "crashes",
        /// Share of answers equal to those of the model before it, 0 to 1.
        Agreement = "agreement",
    }
}

vocabulary! {
    /// What a model is held against.
    Reference {
        /// The record of the model before it.
        Previous = "previous",
        /// What its bundle predicts.
        Predicted = "predicted",
        /// The device's budget.
        Budget = "budget",
        /// A rule of the device's configuration.
        Rule = "rule",
    }
}

/// What a probation has found: per metric what was predicted and what was seen, and the evidence that the
/// model is worse than it may be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Trial {
    /// The chance that a model which is no worse is taken back, at most, over all metrics.
    #[serde(with = "number")]
    #[schemars(with = "Option<f64>")]
    pub false_rollback_rate: f64,
    /// Windows with evidence.
    pub windows: u32,
    /// Requests answered.
    pub requests: u64,
    /// The metrics, at most [`MAX_TRIAL_METRICS`].
    pub metrics: Vec<TrialMetric>,
}

/// One metric of a trial, in the metric's unit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TrialMetric {
    /// Which.
    pub metric: Metric,
    /// What the bundle predicts.
    #[serde(default)]
    pub predicted: Option<f64>,
    /// What was measured.
    #[serde(default)]
    pub measured: Option<f64>,
    /// The same of the model before it.
    #[serde(default)]
    pub before: Option<f64>,
    /// `measured / predicted - 1`: by how much it is over what was predicted.
    #[serde(default)]
    pub prediction_error: Option<f64>,
    /// What the evidence is counted against: of all references the one that the model is least worse
    /// than.
    #[serde(default)]
    pub reference: Option<Reference>,
    /// From where an observation counts as over.
    #[serde(default)]
    pub limit: Option<f64>,
    /// The share of observations that may be over, 0 to 1.
    #[serde(default)]
    pub allowed: Option<f64>,
    /// Observations, as independent ones.
    #[serde(with = "number")]
    #[schemars(with = "Option<f64>")]
    pub observations: f64,
    /// Of these, over the limit.
    #[serde(with = "number")]
    #[schemars(with = "Option<f64>")]
    pub over: f64,
    /// The evidence: its chance to be ever this large is at most 1 / `e_value` for a model that is no
    /// worse.
    #[serde(with = "number")]
    #[schemars(with = "Option<f64>")]
    pub e_value: f64,
    /// The evidence from which the model is taken back.
    #[serde(with = "number")]
    #[schemars(with = "Option<f64>")]
    pub e_needed: f64,
}

impl Trial {
    /// One of its metrics.
    #[must_use]
    pub fn metric(&self, metric: Metric) -> Option<&TrialMetric> {
        self.metrics.iter().find(|of| of.metric == metric)
    }

    /// Whether a receiver takes it, or why not.
    pub(crate) fn check(&self) -> Result<(), String> {
        let metrics = self.metrics.len();
        if metrics > MAX_TRIAL_METRICS {
            return Err(format!(
                "{metrics} metrics are over the limit of {MAX_TRIAL_METRICS} (MAX_TRIAL_METRICS)"
            ));
        }
        Ok(())
    }
}
