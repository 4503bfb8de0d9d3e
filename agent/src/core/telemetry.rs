//! Windows: told outside, and held against the budgets and against probation.

use wire::{BudgetKind, Cause, DriftTest, Histogram, InferWindow, PowerWindow, Quality};

use super::Core;
use super::attribution::{Machine, attribute, scalar_cause};
use super::effect::Report;
use super::event::{InstallId, Millis, ModelFacts, WindowFacts};
use super::gauge::Seen;
use super::live::Evidence;
use super::record::{InstallState, Record};
use super::report::blank;
use super::trial::{Observation, Trial, Verdict};

/// The share of the processor time in use from which a model among others draws the power.
const POWER_SHARE: f64 = 0.5;
/// A probation without evidence, or with a suspicion, ends after this many times its windows.
const PATIENCE: u32 = 4;
/// One-sided 95 % quantile of the normal distribution: a figure with an error is over a limit only where
/// it would be so in 19 of 20 cases.
const Z: f64 = 1.645;
/// The share of itself up to which an energy may be off to be evidence in a probation.
const ENERGY_ERROR: f64 = 0.1;

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
        let birth = &self.settings.birth;
        let machine = Machine { cpus: birth.cpus, threads: self.settings.threads };
        let cause = attribute(facts, window, machine, &self.settings.breach);
        let evidence = self.gather(facts, window, cause);
        match self.install(model).map(|own| own.state) {
            None | Some(InstallState::Offered | InstallState::Downloading) => {
                self.hold_against_budgets(now, facts, window, evidence, cause);
            }
            Some(InstallState::Probation) => {
                self.on_probation(now, facts, window, cause, evidence.as_ref());
            }
            // Our own loading, testing and shadowing disturb the model: no evidence.
            Some(_) => self.live(model).pending = Evidence::default(),
        }
    }

    /// Adds a window to those too small to be evidence, until together they are large enough.
    fn gather(
        &mut self,
        facts: &ModelFacts,
        window: &WindowFacts,
        cause: Cause,
    ) -> Option<Evidence> {
        let weight = self.settings.probation.weight(facts.compute.count(), window.window_ms);
        let enough = self.settings.breach.min_requests.max(1);
        let pending = &mut self.live(&facts.model).pending;
        pending.compute.merge(&facts.compute);
        pending.queue.merge(&facts.queue);
        pending.requests += facts.requests;
        pending.errors += facts.errors.saturating_sub(facts.late);
        pending.rejected += facts.rejected;
        pending.weight = pending.weight.min(weight);
        pending.memory_bytes = pending.memory_bytes.max(loaded_memory(facts, cause));
        let energy = measured_energy(facts, window, cause);
        pending.energy_mj = match (pending.energy_mj, energy) {
            (Some(most), Some(energy)) => Some(most.max(energy)),
            (most, energy) => most.or(energy),
        };
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
        for (budget, figure) in scalars(facts, window) {
            if let (Some(limit), Some(figure)) = (budgets.limit(budget), figure) {
                let seen = Seen {
                    observed: figure.value,
                    over: figure.value - Z * figure.error > limit,
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

    fn on_probation(
        &mut self,
        now: Millis,
        facts: &ModelFacts,
        window: &WindowFacts,
        cause: Cause,
        evidence: Option<&Evidence>,
    ) {
        let model = facts.model.as_str();
        let Some((install, mut trial)) = self.trial(model) else {
            return;
        };
        let counts = evidence.is_some_and(|evidence| evidence.cause == Cause::Model);
        if counts {
            trial.count_window();
        }
        // What nobody asks anything is neither fast nor small.
        if facts.requests > 0 {
            trial.observe(&Observation {
                window_ms: window.window_ms,
                times: (cause == Cause::Model).then_some(&facts.compute),
                requests: facts.requests,
                // Who asks for an answer at once does not say that the model is bad: how long it takes is looked at.
                errors: facts.errors.saturating_sub(facts.late),
                memory_bytes: loaded_memory(facts, cause),
                energy_mj: measured_energy(facts, window, cause),
            });
        }
        if counts || facts.requests > 0 {
            self.watched(model, install, trial.clone());
        }
        let windows = &mut self.live(model).install.windows;
        *windows = windows.saturating_add(1);
        self.judge_trial(now, model, &trial);
    }

    /// Ends a probation that has seen enough: at once where it is against the model, else after its
    /// windows; later where there is a suspicion, or no traffic.
    fn judge_trial(&mut self, now: Millis, model: &str, trial: &Trial) {
        let live = self.live(model);
        let (down, windows) = (live.down.is_some(), live.install.windows);
        let wanted = self.settings.install.probation_windows;
        let replaces = self.durable.models.get(model).is_some_and(|m| m.previous.is_some());
        let late = windows >= wanted.saturating_mul(PATIENCE);
        let enough = trial.windows() >= wanted;
        match trial.verdict() {
            Verdict::Back(reason) if replaces => self.roll_back(now, model, &reason, true),
            // Silence from a dead worker is no sign of health.
            _ if down => {}
            // With nothing to go back to, it stays once its time is over.
            Verdict::Back(_) | Verdict::Clean if enough || late => self.commit(now, model),
            Verdict::Suspect if late => self.commit(now, model),
            Verdict::Back(_) | Verdict::Clean | Verdict::Suspect => {}
        }
    }

    /// The trial of the model that is on probation, and its install.
    pub(super) fn trial(&self, model: &str) -> Option<(InstallId, Trial)> {
        let own = self.install(model).filter(|own| own.state == InstallState::Probation)?;
        // Journals of earlier versions do not have it.
        let trial = own.trial.as_deref().cloned();
        Some((own.id, trial.unwrap_or_else(|| self.begin_trial(own))))
    }

    pub(super) fn watched(&mut self, model: &str, install: InstallId, trial: Trial) {
        let (model, trial) = (model.to_owned(), Box::new(trial));
        self.record(Record::Watched { model, install, trial });
    }
}

/// The memory of a worker that is not loading.
fn loaded_memory(facts: &ModelFacts, cause: Cause) -> Option<u64> {
    facts.pss_bytes.filter(|_| scalar_cause(BudgetKind::Memory, cause, false) == Cause::Model)
}

/// The energy of the model's inferences, where it was measured and nothing else made it dearer.
fn measured_energy(facts: &ModelFacts, window: &WindowFacts, cause: Cause) -> Option<f64> {
    let measured = |power: &&PowerWindow| power.quality == Quality::Measured;
    window.power.as_ref().filter(measured)?;
    let [.., (_, energy)] = scalars(facts, window);
    let energy = energy.filter(|_| cause == Cause::Model)?;
    (energy.error <= ENERGY_ERROR * energy.value).then_some(energy.value)
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

/// A number and its standard error.
#[derive(Clone, Copy, Debug)]
struct Figure {
    value: f64,
    error: f64,
}

/// The budgets that are one number per window. One whose error is unknown is held against nothing.
#[allow(clippy::cast_precision_loss)]
fn scalars(facts: &ModelFacts, window: &WindowFacts) -> [(BudgetKind, Option<Figure>); 3] {
    let busy = facts.requests > 0;
    let power = window.power.as_ref().filter(|_| busy);
    let alone = window.models.len() == 1;
    let own = |model: &Option<String>| match model {
        Some(name) => *name == facts.model,
        None => alone,
    };
    let memory = facts.pss_bytes.map(|bytes| Figure { value: bytes as f64, error: 0.0 });
    let energy = power.filter(|power| own(&power.model));
    [
        (BudgetKind::Memory, memory),
        (BudgetKind::Power, power.and_then(power_figure)),
        (BudgetKind::Energy, energy.and_then(energy_figure)),
    ]
}

/// What a gauge says is taken as it is; a modelled power is as good as the model's fit.
fn power_figure(power: &PowerWindow) -> Option<Figure> {
    let error = match power.quality {
        Quality::Measured => 0.0,
        Quality::Modelled => power.power_error_mw?,
        Quality::None => return None,
    };
    Some(Figure { value: power.power_mw?, error })
}

fn energy_figure(power: &PowerWindow) -> Option<Figure> {
    let (value, error) = (power.energy_per_inference_mj?, power.energy_error_mj?);
    Some(Figure { value, error })
}

fn infer_window(facts: &ModelFacts, window_ms: u64, drift: Option<DriftTest>) -> InferWindow {
    let times = &facts.compute;
    let group = facts.group.unwrap_or_default();
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
        p90_us: times.quantile(0.9),
        p95_us: times.quantile(0.95),
        p99_us: times.quantile(0.99),
        max_us: times.max(),
        mean_us: times.mean(),
        queue_p95_us: facts.queue.quantile(0.95),
        wait_us: facts.wait_us,
        major_faults: facts.major_faults,
        pss_bytes: facts.pss_bytes,
        group_memory_bytes: group.current_bytes,
        group_memory_peak_bytes: group.peak_bytes,
        group_memory_high_events: group.high_events,
        group_memory_max_events: group.max_events,
        group_oom_kills: group.oom_kills,
        compute: times.clone(),
        queue: facts.queue.clone(),
        drift,
    }
}
