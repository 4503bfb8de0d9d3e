//! Windows: told outside, and held against the budgets and against probation.

use wire::{BudgetKind, Cause, DriftTest, Histogram, InferWindow, ResourceWindow};

use super::Core;
use super::effect::Report;
use super::event::{Millis, ModelFacts, WindowFacts};
use super::gauge::Seen;
use super::judge::{self, Verdict};
use super::live::Evidence;
use super::record::InstallState;
use super::report::blank;
use super::settings::BreachRules;

/// The share of the processor time in use from which a model among others draws the power.
const POWER_SHARE: f64 = 0.5;

impl Core {
    pub(super) fn on_window(&mut self, now: Millis, facts: &WindowFacts) {
        if let Some(resources) = &facts.resources {
            self.publish(Report::Resources(resources.clone()));
            self.report_throttle(now, resources);
        }
        if let Some(power) = &facts.power {
            self.publish(Report::Power(power.clone()));
        }
        for model in &facts.models {
            // A window that began under another bundle says nothing about this one.
            let own = self.active_digest(&model.model).as_deref() == Some(&model.digest);
            let drift = if own { self.test_drift(now, model) } else { None };
            if model.requests + model.rejected > 0 || drift.is_some() {
                let window = infer_window(model, facts.window_ms, drift.clone());
                self.publish(Report::Infer(window));
            }
            if own {
                self.on_model_window(now, model, facts);
            }
            if let Some(test) = drift {
                self.on_drift(now, &model.model, &test);
            }
        }
    }

    fn on_model_window(&mut self, now: Millis, facts: &ModelFacts, window: &WindowFacts) {
        let model = facts.model.as_str();
        self.live(model).pss_bytes = facts.pss_bytes;
        let cause = attribute(facts, window.resources.as_ref(), &self.settings.breach);
        let evidence = self.gather(facts, cause);
        match self.install(model).map(|own| own.state) {
            None | Some(InstallState::Offered | InstallState::Downloading) => {
                self.hold_against_budgets(now, facts, window, evidence, cause);
            }
            Some(InstallState::Probation) => self.on_probation(now, facts, evidence),
            // Our own loading, testing and shadowing disturb the model: no evidence.
            Some(_) => self.live(model).pending = Evidence::default(),
        }
    }

    /// Adds a window to those too small to be evidence, until together they are large enough.
    fn gather(&mut self, facts: &ModelFacts, cause: Cause) -> Option<Evidence> {
        let enough = self.settings.breach.min_requests.max(1);
        let pending = &mut self.live(&facts.model).pending;
        pending.compute.merge(&facts.compute);
        pending.queue.merge(&facts.queue);
        pending.requests += facts.requests;
        pending.errors += facts.errors;
        pending.rejected += facts.rejected;
        if pending.cause == Cause::Model {
            pending.cause = cause;
        }
        (pending.compute.count() >= enough).then(|| std::mem::take(pending))
    }

    fn hold_against_budgets(
        &mut self,
        now: Millis,
        facts: &ModelFacts,
        window: &WindowFacts,
        evidence: Option<Evidence>,
        cause: Cause,
    ) {
        let model = facts.model.as_str();
        let budgets = self.budgets(model);
        if let Some(evidence) = evidence {
            let keep = self.settings.breach.windows_seen as usize;
            let recent = &mut self.live(model).recent;
            recent.push_back(evidence.clone());
            while recent.len() > keep {
                recent.pop_front();
            }
            if let Some(limit) = budgets.limit(BudgetKind::LatencyP95) {
                let seen = latency(&evidence, limit);
                self.gauge(now, model, BudgetKind::LatencyP95, limit, seen);
            }
        }
        let draws = self.draws_the_power(facts, window);
        for (budget, observed) in scalars(facts, window) {
            if let (Some(limit), Some(observed)) = (budgets.limit(budget), observed) {
                let seen = Seen {
                    observed,
                    over: observed > limit,
                    cause: scalar_cause(budget, cause, draws),
                    times: Histogram::default(),
                };
                self.gauge(now, model, budget, limit, seen);
            }
        }
    }

    /// Whether the device's power is the model's doing: it is the only one at work, or its inferences
    /// make up most of the processor time in use. What is known of that time is how long they took
    /// and on how many threads, which is the most they can have used.
    #[allow(clippy::cast_precision_loss)]
    fn draws_the_power(&self, facts: &ModelFacts, window: &WindowFacts) -> bool {
        if window.models.iter().all(|other| other.model == facts.model || other.requests == 0) {
            return true;
        }
        let busy = window.resources.as_ref().and_then(|resources| resources.cpu_percent);
        let (Some(busy), Some(mean_us)) = (busy, facts.compute.mean()) else {
            return false;
        };
        let used_us =
            mean_us * facts.compute.count() as f64 * f64::from(self.settings.threads.max(1));
        let cpus = f64::from(self.settings.birth.cpus.max(1));
        let there_us = window.window_ms.max(1) as f64 * 1000.0 * cpus;
        used_us / there_us >= POWER_SHARE * busy / 100.0
    }

    pub(super) fn gauge(
        &mut self,
        now: Millis,
        model: &str,
        budget: BudgetKind,
        limit: f64,
        seen: Seen,
    ) {
        let rules = self.settings.breach.clone();
        let gauge = self.live(model).gauges.entry(budget.as_str()).or_default();
        if let Some(breach) = gauge.push(now, limit, seen, &rules) {
            self.on_breach(now, model, budget, limit, &breach);
        }
    }

    fn on_probation(&mut self, now: Millis, facts: &ModelFacts, evidence: Option<Evidence>) {
        let model = facts.model.as_str();
        let limit = self.budgets(model).latency_p95_us;
        let before = self.install(model).and_then(|own| own.baseline);
        let replaces = self.durable.models.get(model).is_some_and(|m| m.previous.is_some());
        let rules = self.settings.install.clone();
        let seen = &mut self.live(model).install.probation;
        seen.windows += 1;
        let windows = seen.windows;
        seen.requests += facts.requests;
        seen.errors += facts.errors;
        if let Some(evidence) = evidence.filter(|evidence| evidence.cause == Cause::Model) {
            seen.evidence += 1;
            seen.times.merge(&evidence.compute);
        }
        let verdict = judge::probation(seen, &before.unwrap_or_default(), limit, &rules);
        let down = self.live(model).down.is_some();
        match verdict {
            Verdict::Watch => {}
            // Silence from a dead worker is no sign of health.
            Verdict::Keep if down => {}
            Verdict::Back(reason) if replaces => self.roll_back(now, model, &reason, true),
            Verdict::Keep => self.commit(now, model),
            // With nothing to go back to, it stays once its time is over.
            Verdict::Back(_) if windows >= rules.probation_windows => self.commit(now, model),
            Verdict::Back(_) => {}
        }
    }
}

/// Whom a window's slowness is to be attributed to, before the model itself.
fn attribute(facts: &ModelFacts, resources: Option<&ResourceWindow>, rules: &BreachRules) -> Cause {
    let over = |limit: f64| move |value: f64| value >= limit;
    match resources {
        Some(r) if r.throttled => Cause::Thermal,
        Some(r) if r.steal_percent.is_some_and(over(rules.steal_percent)) => Cause::Steal,
        Some(r) if r.swap_in_pages.is_some_and(|n| n >= rules.swap_in_pages) => Cause::Swap,
        _ if facts.cold => Cause::ColdStart,
        _ => Cause::Model,
    }
}

/// Whom a budget that is one number per window is held against. A worker's memory is its own whatever
/// the device is going through, but for the moments of loading; power belongs to whoever draws it.
fn scalar_cause(budget: BudgetKind, cause: Cause, draws_the_power: bool) -> Cause {
    match (budget, cause) {
        (BudgetKind::Memory, Cause::ColdStart) => Cause::ColdStart,
        (BudgetKind::Memory, _) => Cause::Model,
        (BudgetKind::Power, Cause::Model) if !draws_the_power => Cause::Steal,
        (_, cause) => cause,
    }
}

/// Holds a window against a latency budget. The budget is on the time in the engine; a request that
/// waits too long for a fast engine is overload, which no smaller model was asked to mend.
#[allow(clippy::cast_precision_loss)]
fn latency(evidence: &Evidence, limit: f64) -> Seen {
    let p95 = |times: &Histogram| times.quantile(0.95).unwrap_or(0) as f64;
    let (compute, queue) = (p95(&evidence.compute), p95(&evidence.queue));
    let overloaded = compute <= limit && (compute + queue > limit || evidence.rejected > 0);
    Seen {
        observed: if overloaded { compute + queue } else { compute },
        over: overloaded || compute > limit,
        cause: if overloaded { Cause::Overload } else { evidence.cause },
        times: evidence.compute.clone(),
    }
}

/// The budgets that are one number per window.
#[allow(clippy::cast_precision_loss)]
fn scalars(facts: &ModelFacts, window: &WindowFacts) -> [(BudgetKind, Option<f64>); 3] {
    let busy = facts.requests > 0;
    let power = window.power.as_ref().filter(|_| busy);
    let alone = window.models.len() == 1;
    let own = |model: &Option<String>| match model {
        Some(name) => *name == facts.model,
        None => alone,
    };
    let energy = power.filter(|power| own(&power.model));
    [
        (BudgetKind::Memory, facts.pss_bytes.map(|bytes| bytes as f64)),
        (BudgetKind::Power, power.and_then(|power| power.power_mw)),
        (BudgetKind::Energy, energy.and_then(|power| power.energy_per_inference_mj)),
    ]
}

fn infer_window(facts: &ModelFacts, window_ms: u64, drift: Option<DriftTest>) -> InferWindow {
    let times = &facts.compute;
    InferWindow {
        header: blank::<InferWindow>(),
        model: facts.model.clone(),
        digest: facts.digest.clone(),
        window_ms,
        windows: 1,
        requests: facts.requests,
        errors: facts.errors,
        rejected: facts.rejected,
        p50_us: times.quantile(0.5),
        p95_us: times.quantile(0.95),
        p99_us: times.quantile(0.99),
        max_us: times.max(),
        mean_us: times.mean(),
        queue_p95_us: facts.queue.quantile(0.95),
        compute: times.clone(),
        drift,
    }
}
