//! Asking for a smaller model, or one that fits its requests: at most once per model and budget, until the
//! question is settled.

use wire::{BudgetBreach, BudgetKind, Cause, DriftTest, Histogram, RecompressRequest};

use super::Core;
use super::effect::Report;
use super::event::Millis;
use super::gauge::Breach;
use super::record::Record;
use super::report::blank;

impl Core {
    /// A gauge calls a breach: tell it, and ask for another model if that is what it takes.
    pub(super) fn on_breach(
        &mut self,
        now: Millis,
        model: &str,
        budget: BudgetKind,
        limit: f64,
        breach: &Breach,
    ) {
        let Some(digest) = self.active_digest(model) else {
            return;
        };
        // No device can mend drift; whoever has newer data may.
        let answerable = breach.cause == Cause::Model || budget == BudgetKind::Drift;
        let recompress = answerable && self.may_request(model, budget);
        let drift = self.drift_evidence(model, budget);
        self.publish(Report::Breach(BudgetBreach {
            header: blank::<BudgetBreach>(),
            model: model.to_owned(),
            digest,
            budget,
            cause: breach.cause,
            limit,
            observed: breach.observed,
            windows_over: breach.windows_over,
            windows_seen: breach.windows_seen,
            recompress,
            drift,
        }));
        if recompress {
            self.request(now, model, budget, breach);
        }
    }

    fn drift_evidence(&mut self, model: &str, budget: BudgetKind) -> Option<DriftTest> {
        self.live(model).drift_test.clone().filter(|_| budget == BudgetKind::Drift)
    }

    fn may_request(&self, model: &str, budget: BudgetKind) -> bool {
        let Some(durable) = self.durable.models.get(model) else {
            return false;
        };
        durable.install.is_none() && !durable.requests.contains_key(budget.as_str())
    }

    fn request(&mut self, now: Millis, model: &str, budget: BudgetKind, breach: &Breach) {
        let Some(active) = self.durable.models.get(model).and_then(|m| m.active.clone()) else {
            return;
        };
        let birth = self.settings.birth.clone();
        let boot = &birth.header.boot_id;
        let request_id = format!("{}-{boot}-{}", birth.device, self.durable.next_request);
        let budgets = self.budgets(model);
        let drift = self.drift_evidence(model, budget);
        let live = self.live(model);
        let workers_pss_bytes = live.pss_bytes;
        let mut times = Histogram::default();
        live.recent.iter().for_each(|seen| times.merge(&seen.compute));
        let request = RecompressRequest {
            header: blank::<RecompressRequest>(),
            request_id: request_id.clone(),
            device: birth.device,
            model: model.to_owned(),
            digest: active.digest.clone(),
            sequence: active.sequence,
            device_class: birth.device_class,
            runtime: birth.runtime,
            arch: birth.arch,
            threads: self.settings.threads,
            budgets,
            budget,
            cause: breach.cause,
            p50_us: times.quantile(0.5).unwrap_or(0),
            p95_us: times.quantile(0.95).unwrap_or(0),
            windows_over: breach.windows_over,
            windows_seen: breach.windows_seen,
            workers_pss_bytes,
            emulated: birth.emulated,
            drift,
        };
        self.record(Record::Requested {
            model: model.to_owned(),
            budget,
            request_id,
            digest: active.digest,
            request: Some(Box::new(request.clone())),
        });
        self.live(model).requested.insert(budget.as_str(), now);
        self.publish(Report::Recompress(request));
    }

    /// Closes every open request of a model, and waits a cooldown before asking again.
    pub(super) fn close_requests(&mut self, now: Millis, model: &str, reason: &str) {
        for budget in BudgetKind::ALL {
            self.close_request(model, *budget, reason);
        }
        let gauges = self.live(model).gauges.values_mut();
        gauges.for_each(|gauge| gauge.hold(now));
    }

    pub(super) fn close_request(&mut self, model: &str, budget: BudgetKind, reason: &str) {
        let Some(durable) = self.durable.models.get(model) else {
            return;
        };
        if !durable.requests.contains_key(budget.as_str()) {
            return;
        }
        self.record(Record::RequestClosed {
            model: model.to_owned(),
            budget,
            reason: reason.to_owned(),
        });
        self.live(model).requested.remove(budget.as_str());
    }

    /// Requests that were open when the agent stopped are said again, for the agent may have been
    /// stopped between writing one down and handing it over; their number tells a repetition. They
    /// wait their whole time again.
    pub(super) fn recover_requests(&mut self, now: Millis, model: &str) {
        for budget in BudgetKind::ALL {
            let durable = self.durable.models.get(model);
            let Some(open) = durable.and_then(|m| m.requests.get(budget.as_str())).cloned() else {
                continue;
            };
            self.live(model).requested.insert(budget.as_str(), now);
            if let Some(request) = open.request {
                self.publish(Report::Recompress(*request));
            }
        }
    }

    pub(super) fn tick_requests(&mut self, now: Millis, model: &str) {
        for budget in BudgetKind::ALL {
            let (timeout, key) = match budget {
                BudgetKind::Drift => {
                    (self.settings.drift.request_timeout_ms, "drift.request_timeout_ms")
                }
                _ => (self.settings.breach.request_timeout_ms, "breach.request_timeout_ms"),
            };
            let since = self.live(model).requested.get(budget.as_str()).copied();
            if since.is_some_and(|since| now.since(since) >= timeout) {
                let reason = format!("no answer in {timeout} ms ({key})");
                self.close_request(model, *budget, &reason);
            }
        }
    }
}
