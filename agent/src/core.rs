//! The agent's decisions: which model should serve, when a budget is broken, what to tell whom.
//!
//! [`Core::step`] is a pure function of the state, the time and an event; it performs no IO and reads
//! no clock. Its invariants:
//!
//! - Durable state changes only through `Core::record`, which journals what it applies, ahead of
//!   every effect that relies on it. [`Core::recover`] applies the same records.
//! - Once a model was committed there is always an active bundle: it is replaced only after the
//!   replacement has loaded and passed its checks, and the bundle before it is kept.
//! - The end of an install is told at least once, whatever comes between it and its event.
//! - A digest that was taken back, or that proved unfit, is never installed again.
//! - A re-compression is asked for only on N of M windows attributed to the model itself, or on N of M
//!   pools of requests that drifted, and at most one request per model and budget is open.
//!
//! What it does not do: perform effects, know topics or paths, or trust the shell with a decision.

use std::collections::{BTreeMap, VecDeque};

use wire::{Budgets, DeviceState};

pub use command::check_budgets;
pub use drift::{DriftFacts, FeatureFacts, examine};
pub use effect::{ActiveEntry, Effect, Report, Step};
pub use ending::End;
pub use event::{
    BundleFacts, Dropped, Event, FailureClass, GroupUsage, InstallId, Millis, ModelFacts,
    ShadowFacts, StepDone, StepFailure, WindowFacts,
};
pub use measure::MeasureOrder;
pub use record::{Baseline, Durable, DurableModel, InstallState, Installed, Record};
pub use settings::{BreachRules, DriftRules, InstallRules, Settings};
pub use status::{InstallStatus, ModelStatus, Status};
pub use trial::{Prediction, Predictions, ProbationRules, Trial};
pub use window::{Conditions, DownloadRules, Hold, NoWindow, Window};

use live::Live;
use log_level::LogLevel;
use measure::Measuring;

mod activate;
mod attribution;
mod command;
mod drift;
mod effect;
mod ending;
mod event;
mod floor;
mod gauge;
mod held;
mod install;
mod judge;
mod live;
mod log_level;
mod measure;
mod offer;
mod record;
mod report;
mod request;
mod retry;
mod settings;
mod status;
mod telemetry;
mod trial;
mod window;

/// How many command numbers are remembered to recognise a repetition.
const MAX_SEEN_COMMANDS: usize = 64;

/// The agent's state and its rules.
#[derive(Debug)]
pub struct Core {
    settings: Settings,
    durable: Durable,
    live: BTreeMap<String, Live>,
    connected: bool,
    offline_reason: Option<String>,
    /// Why the broker passes no offers and commands on, if it refuses to.
    deaf: Option<String>,
    told_state: Option<(DeviceState, Option<String>, Option<String>)>,
    throttled_since: Option<Millis>,
    /// What downloads wait for or not; none until the shell has looked.
    conditions: Option<Conditions>,
    commands: VecDeque<String>,
    /// The measurement that a command asked for and that is under way.
    measuring: Option<Measuring>,
    /// What a command made of the log, until when.
    log_level: Option<LogLevel>,
    ending: bool,
    out: Vec<Effect>,
}

impl Core {
    /// The core of a device whose journal holds `records`, and what it must do first: bring every
    /// active model to serve, and go on with the installs it was stopped in.
    pub fn recover<'a>(
        settings: Settings,
        records: impl IntoIterator<Item = &'a Record>,
        now: Millis,
    ) -> (Self, Vec<Effect>) {
        let mut durable = Durable::default();
        records.into_iter().for_each(|record| durable.apply(record));
        let live = |name: &String| (name.clone(), Live::default());
        let mut core = Self {
            live: durable.models.keys().map(live).collect(),
            settings,
            durable,
            connected: false,
            offline_reason: None,
            deaf: None,
            told_state: None,
            throttled_since: None,
            conditions: None,
            commands: VecDeque::new(),
            measuring: None,
            log_level: None,
            ending: false,
            out: Vec::new(),
        };
        core.begin_telling();
        core.emit(Effect::WriteActive(core.durable.active()));
        let models: Vec<String> = core.durable.models.keys().cloned().collect();
        for model in &models {
            core.recover_model(now, model);
        }
        core.tell_ends_again();
        core.tell_interrupted();
        core.emit(Effect::SetLogLevel(None));
        core.collect();
        let effects = std::mem::take(&mut core.out);
        (core, effects)
    }

    /// Takes one event in and says what to do about it.
    pub fn step(&mut self, now: Millis, event: Event) -> Vec<Effect> {
        match event {
            Event::Tick => self.on_tick(now),
            Event::Connected => self.on_connected(),
            Event::Disconnected { reason } => self.on_disconnected(reason),
            Event::Subscribed { refused } => self.deaf = refused,
            Event::Offer(offer) => self.on_offer(now, offer),
            Event::Withdrawn { model } => self.on_withdrawn(now, &model),
            Event::Command { command, unix_ms } => self.on_command(now, &command, unix_ms),
            Event::BadCommand { kind, id, reason } => self.on_bad_command(kind, &id, &reason),
            Event::Measured { id, outcome } => self.on_measured(now, &id, outcome),
            Event::Window(facts) => self.on_window(now, &facts),
            Event::Step { model, install, outcome } => self.on_step(now, &model, install, outcome),
            Event::ShadowProgress { model, install, facts } => {
                self.on_shadow(now, &model, install, facts)
            }
            Event::Activated { model, digest } => self.on_activated(now, &model, &digest),
            Event::ActivateFailed { model, digest, failure } => {
                self.on_activate_failed(now, &model, &digest, &failure)
            }
            Event::WorkerDied { model, reason } => self.on_worker_died(now, &model, &reason),
            Event::RestartFailed { model, reason } => self.on_restart_failed(&model, &reason),
            Event::WorkerRestarted { model } => self.on_worker_restarted(&model),
            Event::SpoolDropped(dropped) => self.report_spool_drop(dropped),
            Event::BudgetsConfigured(budgets) => self.on_budgets_configured(budgets),
            Event::Conditions(conditions) => self.on_conditions(now, conditions),
            Event::Shutdown => self.on_shutdown(now),
        }
        self.report_state();
        std::mem::take(&mut self.out)
    }

    /// What the journal adds up to; also what a compacted journal starts with.
    #[must_use]
    pub fn durable(&self) -> &Durable {
        &self.durable
    }

    /// Why there is no connection to the broker, as was said last.
    #[must_use]
    pub fn offline_reason(&self) -> Option<&str> {
        self.offline_reason.as_deref()
    }

    /// Installs whose candidates are being compared on live traffic, for the shell to poll.
    #[must_use]
    pub fn shadowing(&self) -> Vec<(String, InstallId)> {
        let entry = |(name, model): (&String, &DurableModel)| {
            let install = model.install.as_ref()?;
            let waits = self.live.get(name).is_none_or(|live| live.resume_pending);
            (install.state == InstallState::Shadow && !waits).then(|| (name.clone(), install.id))
        };
        self.durable.models.iter().filter_map(entry).collect()
    }

    /// Whether every model with an active bundle serves it, or there is none.
    #[must_use]
    pub fn ready(&self) -> bool {
        let serves = |(name, model): (&String, &DurableModel)| {
            model.active.is_none() || self.live.get(name).is_some_and(|l| l.serving.is_some())
        };
        self.durable.models.iter().all(serves)
    }

    /// Whether every active bundle serves, or is known not to: nothing is in the making.
    #[must_use]
    pub fn settled(&self) -> bool {
        let settled = |(name, model): (&String, &DurableModel)| {
            let live = self.live.get(name);
            let said = live.is_some_and(|l| l.serving.is_some() || l.activation.reason.is_some());
            model.active.is_none() || said
        };
        self.durable.models.iter().all(settled)
    }

    /// The budgets that hold for a model: a command's, or the configuration's.
    #[must_use]
    pub fn budgets(&self, model: &str) -> Budgets {
        let set = self.durable.models.get(model).and_then(|m| m.budgets.clone());
        set.or_else(|| self.settings.budgets.get(model).cloned()).unwrap_or_default()
    }

    fn recover_model(&mut self, now: Millis, model: &str) {
        self.recover_requests(now, model);
        if self.active_digest(model).is_some() {
            self.live(model).resume_pending = true;
            self.activate(model);
        } else {
            self.resume(now, model);
        }
    }

    fn emit(&mut self, effect: Effect) {
        self.out.push(effect);
    }

    /// The only way durable state changes.
    fn record(&mut self, record: Record) {
        self.durable.apply(&record);
        self.emit(Effect::Journal(Box::new(record)));
    }

    fn live(&mut self, model: &str) -> &mut Live {
        self.live.entry(model.to_owned()).or_default()
    }

    fn collect(&mut self) {
        let keep = self.durable.referenced().into_iter().collect();
        self.emit(Effect::Collect { keep });
    }

    fn on_connected(&mut self) {
        self.connected = true;
        self.deaf = None;
        self.offline_reason = None;
        self.told_state = None;
        self.report_birth();
        let models: Vec<String> = self.live.keys().cloned().collect();
        models.iter().for_each(|model| self.report_model(model));
    }

    fn on_disconnected(&mut self, reason: String) {
        self.connected = false;
        self.deaf = None;
        self.offline_reason = Some(reason);
    }

    fn on_tick(&mut self, now: Millis) {
        let models: Vec<String> = self.live.keys().cloned().collect();
        for model in &models {
            self.tick_activation(now, model);
            self.tick_install(now, model);
            self.tick_requests(now, model);
        }
        self.tick_measuring(now);
        self.tick_log_level(now);
    }

    fn on_shutdown(&mut self, now: Millis) {
        self.stop_measuring(now, "the agent is ending");
        self.ending = true;
        self.report_state();
        self.emit(Effect::Drain);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
