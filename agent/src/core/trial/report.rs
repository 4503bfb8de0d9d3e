//! A trial as it is told: what was predicted, what was seen, and how sure that is.

use wire::{Metric, Reference, TrialMetric, finite};

use super::{CRASHES, Prediction, Predictions, Trial, as_float};
use crate::core::record::Baseline;

/// The largest evidence that is told; beyond it only the number of digits grows.
const MOST_EVIDENCE: f64 = 1e12;

impl Trial {
    /// What goes out with the end of an install.
    pub(in crate::core) fn report(
        &self,
        before: &Baseline,
        predicted: &Predictions,
    ) -> wire::Trial {
        wire::Trial {
            false_rollback_rate: self.rate,
            windows: self.windows,
            requests: self.requests,
            metrics: Metric::ALL.iter().map(|m| self.metric(*m, before, predicted)).collect(),
        }
    }

    /// Why a metric takes the model back.
    pub(super) fn reason(&self, metric: Metric) -> String {
        let Some((count, ln)) = self.least(metric) else {
            return format!("{metric} is worse than allowed");
        };
        let evidence = format!(
            "evidence {:.0} of {:.0} needed for probation.false_rollback_rate {}",
            ln.exp().min(MOST_EVIDENCE),
            self.needed(metric),
            self.rate
        );
        let percent = count.allowed * 100.0;
        if metric == Metric::Errors {
            let (errors, requests) = (self.errors, self.requests);
            return format!(
                "{errors} of {requests} requests failed in probation, where {percent:.1} % may ({evidence})"
            );
        }
        let seen = self.measured(metric).unwrap_or_default();
        let share = 100.0 * count.over / count.seen.max(f64::MIN_POSITIVE);
        let (limit, reference) = (count.limit, told(count.reference));
        let unit = unit(metric);
        format!(
            "{metric} is {seen:.0} {unit} in probation: {share:.1} % of what was seen is over {limit:.0} \
             {unit}, where {percent:.1} % may be by {reference} ({evidence})"
        )
    }

    fn metric(&self, metric: Metric, before: &Baseline, predicted: &Predictions) -> TrialMetric {
        let measured = match metric {
            Metric::Agreement => before.agreement,
            _ => self.measured(metric),
        };
        let (predicted, record) = references(metric, before, predicted);
        let predicted = predicted.and_then(|p| finite(p.value));
        let error = |measured: f64, predicted: f64| finite(measured / predicted - 1.0);
        let least = self.least(metric);
        let told = TrialMetric {
            metric,
            predicted,
            measured,
            before: record,
            prediction_error: measured.zip(predicted).and_then(|(m, p)| error(m, p)),
            reference: least.map(|(count, _)| count.reference),
            limit: least.map(|(count, _)| count.limit),
            allowed: least.map(|(count, _)| count.allowed),
            observations: least.map_or(0.0, |(count, _)| count.seen),
            over: least.map_or(0.0, |(count, _)| count.over),
            e_value: least.map_or(1.0, |(_, ln)| ln.exp().min(MOST_EVIDENCE)),
            e_needed: self.needed(metric),
        };
        match metric {
            Metric::Errors => TrialMetric { limit: None, ..told },
            Metric::Crashes => self.crashes(told),
            Metric::Agreement => {
                TrialMetric { observations: as_float(before.shadow_requests), ..told }
            }
            _ => told,
        }
    }

    /// A rule in the words of a test: it says nothing, or all.
    fn crashes(&self, told: TrialMetric) -> TrialMetric {
        let deaths = f64::from(self.deaths);
        TrialMetric {
            reference: Some(Reference::Rule),
            limit: Some(f64::from(CRASHES - 1)),
            observations: deaths,
            over: deaths,
            e_value: if self.deaths >= CRASHES { told.e_needed } else { 0.0 },
            ..told
        }
    }

    fn measured(&self, metric: Metric) -> Option<f64> {
        match metric {
            Metric::LatencyP95 => self.times.quantile(0.95).map(as_float),
            Metric::Memory => self.memory_bytes.map(as_float),
            Metric::Energy => (self.energy.1 > 0).then(|| self.energy.0 / f64::from(self.energy.1)),
            Metric::Errors => {
                (self.requests > 0).then(|| as_float(self.errors) / as_float(self.requests))
            }
            Metric::Crashes => Some(f64::from(self.deaths)),
            Metric::Agreement => None,
        }
    }
}

/// What is predicted of a metric, and what the model before had of it.
fn references(
    metric: Metric,
    before: &Baseline,
    predicted: &Predictions,
) -> (Option<Prediction>, Option<f64>) {
    match metric {
        Metric::LatencyP95 => (predicted.latency_p95_us, before.p95_us.map(as_float)),
        Metric::Memory => (predicted.memory_bytes, before.memory_bytes.map(as_float)),
        Metric::Energy => (predicted.energy_mj, before.energy_mj),
        Metric::Errors => (None, (before.requests > 0.0).then_some(before.error_rate)),
        Metric::Agreement => (predicted.agreement, None),
        Metric::Crashes => (None, None),
    }
}

fn told(reference: Reference) -> &'static str {
    match reference {
        Reference::Previous => "the record of the model before it",
        Reference::Predicted => "what its bundle predicts",
        Reference::Budget => "the budget",
        Reference::Rule => "install.max_error_rate",
    }
}

fn unit(metric: Metric) -> &'static str {
    match metric {
        Metric::LatencyP95 => "us",
        Metric::Memory => "bytes",
        Metric::Energy => "mJ",
        Metric::Errors | Metric::Crashes | Metric::Agreement => "",
    }
}
