//! The main loop: it owns the core, feeds it events, and performs its effects in order.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{broadcast, mpsc};
use tokio::time::MissedTickBehavior;

use super::download::Access;
#[cfg(debug_assertions)]
use super::hold::Hold;
use super::homeassistant::HomeAssistant;
use super::install::Installer;
use super::journal::Journal;
use super::measure::Measurer;
use super::mqtt::{LinkEvent, Will};
use super::notify::{Manager, watchdog_interval};
use super::outbox::{Outbox, PutError, Stamp};
use super::spool::{Moment, Spool};
use super::state_dir::{PathError, StateDir, write_atomically};
use super::status::Question;
use super::store::Store;
use super::trust::Trust;
use super::{logging, mqtt, otlp, status, worker_program};
use crate::config::{Config, ConfigError, Doubt, Sources, SpoolConfig, TrustConfig, WorkerCgroup};
use crate::core::StepFailure;
use crate::core::{ActiveEntry, Core, Durable, Effect, Event, Millis, Record, Report, Settings};
use crate::plane::groups::Groups;
use crate::plane::{Plane, PlaneConfig, PlaneError, PlaneEvent};
use crate::sys::{Roots, Sampler};

mod facts;

/// How often deadlines are looked at.
const TICK: Duration = Duration::from_millis(200);
/// How often the power gauges are read.
const POWER_TICK: Duration = Duration::from_secs(1);
/// Answers that may wait for the driver.
const MAX_EVENTS: usize = 256;
/// Askers that may wait for the driver.
const MAX_QUESTIONS: usize = 16;
/// How long the last messages may take to reach the broker.
const GOOD_BYE: Duration = Duration::from_secs(2);
/// How long to wait before the journal is tried again.
const STALL: Duration = Duration::from_secs(5);
/// Commands that may wait until the journal can be written again.
const MAX_WAITING: usize = 64;
/// Events that may wait in memory for a spool that cannot be written.
const MAX_UNKEPT: usize = 64;
/// How often a disk that took nothing at the start is tried again.
const DISK_RETRY: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 30 });
/// The most bytes that the spool takes while it is in memory.
const VOLATILE_SPOOL_BYTES: u64 = 4 << 20;
/// How often losses of the spool are told: the telling may itself cost a record.
const LOSSES: Duration = Duration::from_secs(10);
/// Clocks that show an earlier time than this (September 2020) were never set.
const CLOCK_SET_MS: u64 = 1_600_000_000_000;

/// Why the agent could not start.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The state directory.
    #[error(transparent)]
    State(#[from] PathError),
    /// The inference endpoints.
    #[error(transparent)]
    Plane(#[from] PlaneError),
    /// The engine.
    #[error("the inference engine cannot be used: {0}")]
    Engine(#[from] engine::EngineError),
    /// The program that hosts models.
    #[error(transparent)]
    Worker(#[from] worker_program::NotFound),
    /// That program is not of this agent's version.
    #[error("the program that hosts models cannot be used: {0}")]
    Version(#[from] worker_program::Unfit),
    /// The owner's root.
    #[error(transparent)]
    Trust(#[from] trust::TrustError),
    /// The disk took nothing at the start, and does now.
    #[error("the state directory takes writes again: the agent has to be started anew to use it")]
    StartAnew,
    /// The system.
    #[error("cannot {0}: {1}")]
    System(&'static str, std::io::Error),
}

/// Runs the agent until it is asked to end.
///
/// # Errors
/// It could not start. Once started it ends only when asked.
pub async fn run(config: Config, sources: Sources) -> Result<(), RunError> {
    let (program, args) = (hosting_program(&config)?, config.worker.args.clone());
    // Beside everything else: it takes as long as a process takes to start.
    let fits = tokio::task::spawn_blocking(move || worker_program::probe(&program, &args));
    let mut driver = Driver::start(config, sources, connect).await?;
    let fits = fits.await.map_err(|e| RunError::System("ask the worker", e.into()))?;
    let worker = fits?;
    tracing::debug!(worker.version, worker.protocol, "the worker goes with this agent");
    driver.go_round().await;
    let anew = driver.start_anew;
    driver.end().await;
    if anew { Err(RunError::StartAnew) } else { Ok(()) }
}

/// Sources of events, apart from the driver so that it can wait for all of them at once.
struct Inputs {
    events: mpsc::Receiver<Event>,
    questions: mpsc::Receiver<Question>,
    plane: broadcast::Receiver<PlaneEvent>,
    link: Option<mpsc::Receiver<LinkEvent>>,
    terminate: Signal,
    interrupt: Signal,
    reload: Signal,
}

struct Driver {
    config: Config,
    sources: Sources,
    settings: Settings,
    core: Core,
    state: StateDir,
    journal: Journal,
    store: Store,
    plane: Plane,
    installer: Installer,
    measurer: Measurer,
    outbox: Option<Outbox>,
    sampler: Sampler,
    roots: Roots,
    inputs: Option<Inputs>,
    manager: Manager,
    clock: Instant,
    window_began: Instant,
    /// Bytes given to the disk in a day, when the last window ended.
    written_day: Option<u64>,
    /// When losses may be told again.
    losses_due: Instant,
    stalled: Option<(Instant, String)>,
    /// Commands that came meanwhile.
    waiting: Vec<Event>,
    /// Events that the disk did not take.
    unkept: VecDeque<Report>,
    ending: bool,
    /// Whether the task that talks to the broker has ended.
    link_ended: bool,
    /// When a disk that took nothing is tried again.
    retry_disk: Option<Instant>,
    /// Whether it ends because the disk takes writes again.
    start_anew: bool,
    #[cfg(debug_assertions)]
    hold: Hold,
}

/// What woke the driver.
enum Woken {
    Event(Box<Event>),
    Question(Question),
    Plane(PlaneEvent),
    Link(LinkEvent),
    /// The task that talks to the broker has ended, which it never does by itself.
    LinkEnded,
    Tick,
    Power,
    Window,
    Watchdog,
    Reload,
    End,
}

impl Driver {
    /// `connect` makes the way to the broker; tests have one of their own.
    async fn start(
        config: Config,
        sources: Sources,
        connect: impl FnOnce(&Config, &StateDir, &str) -> Result<Connection, PathError>,
    ) -> Result<Self, RunError> {
        let library = facts::check_engine(&config.engine)?;
        for Doubt { key, what } in config.doubts() {
            tracing::warn!(key, what, "a budget has less effect than it seems");
        }
        let state = StateDir::open(&config.state_dir)?;
        let (journal, records) = open_journal(&state)?;
        let plane = Plane::start(plane_config(&config, &state)?).await?;
        write_endpoints(&plane, &state)?;
        let boot_id = facts::boot_id();
        let roots = Roots::under(&config.sys_root);
        let mut settings = facts::settings(&config, &roots, &boot_id, library.as_deref());
        settings.trouble = state.volatile().map(|why| format!("the disk takes nothing: {why}"));
        let (events_in, events) = mpsc::channel(MAX_EVENTS);
        let (questions_in, questions) = mpsc::channel(MAX_QUESTIONS);
        status::listen(&state.run().join("status.sock"), questions_in)?;
        let store = Store::new(&state, config.install.max_bundle_bytes);
        let access = Access::new(&config.download);
        let installer =
            Installer::new(plane.clone(), store.clone(), access.clone(), events_in.clone())
                .trusting(open_trust(&config, &state)?);
        let bundles = (plane.clone(), store.clone());
        let from = (installer.trust(), access);
        let measurer = Measurer::new(&config, bundles, from, state.measure(), events_in);
        let (outbox, link) = connect(&config, &state, &boot_id)?;
        if let Some(otlp) = config.otlp.clone() {
            tokio::spawn(otlp::run(otlp, config.device.clone(), plane.clone()));
        }
        let clock = Instant::now();
        let (core, effects) = Core::recover(settings.clone(), &records, Millis(0));
        let inputs = Inputs {
            events,
            questions,
            plane: plane.events(),
            link,
            terminate: listen_for(SignalKind::terminate())?,
            interrupt: listen_for(SignalKind::interrupt())?,
            reload: listen_for(SignalKind::hangup())?,
        };
        let mut driver = Self {
            sampler: sampler(&config, &roots, clock),
            #[cfg(debug_assertions)]
            hold: Hold::new(config.hold_dir.clone()),
            config,
            sources,
            settings,
            core,
            state,
            journal,
            store,
            plane,
            installer,
            measurer,
            outbox,
            roots,
            inputs: Some(inputs),
            manager: Manager::default(),
            clock,
            window_began: clock,
            written_day: None,
            losses_due: clock,
            stalled: None,
            waiting: Vec::new(),
            unkept: VecDeque::new(),
            ending: false,
            link_ended: false,
            retry_disk: None,
            start_anew: false,
        };
        driver.warn_of_volatile_state();
        driver.execute(effects);
        Ok(driver)
    }

    async fn go_round(&mut self) {
        let Some(mut inputs) = self.inputs.take() else {
            return;
        };
        let mut tick = every(TICK);
        let mut power = every(POWER_TICK);
        let mut window = every(self.config.window);
        window.reset();
        let mut watchdog = every(watchdog_interval().unwrap_or(Duration::from_secs(3600)));
        while !self.ending {
            let woken = tokio::select! {
                woken = inputs.next() => woken,
                _ = tick.tick() => Woken::Tick,
                _ = power.tick() => Woken::Power,
                _ = window.tick() => Woken::Window,
                _ = watchdog.tick() => Woken::Watchdog,
            };
            self.on(woken);
            self.pump();
        }
        self.inputs = Some(inputs);
    }

    fn on(&mut self, woken: Woken) {
        match woken {
            Woken::Event(event) => {
                self.feed(*event);
                self.tell_ready();
            }
            Woken::Question(question) => drop(question.send(self.status())),
            Woken::Plane(event) => self.on_plane(event),
            Woken::Link(event) => self.on_link(event),
            Woken::LinkEnded => self.link_ended = true,
            Woken::Tick => self.on_tick(),
            Woken::Power => self.on_power_tick(),
            Woken::Window => self.on_window(),
            Woken::Watchdog => self.on_watchdog(),
            Woken::Reload => self.on_reload(),
            Woken::End => self.feed(Event::Shutdown),
        }
    }

    /// Tells the service manager that all is well, but not where something has ended that only a new start brings
    /// back: then its patience runs out, and it starts the agent anew.
    fn on_watchdog(&self) {
        let ended = self.ended();
        if ended.is_empty() {
            return self.manager.alive();
        }
        let ended = ended.join(", ");
        tracing::error!(ended, "the service manager is not told that all is well");
    }

    /// What has ended by a fault of its own.
    fn ended(&self) -> Vec<String> {
        let wedged = self.plane.wedged();
        let workers = wedged.iter().map(|model| format!("the worker of {model}"));
        let link = self.link_ended.then(|| "the connection to the broker".to_owned());
        workers.chain(link).collect()
    }

    fn now(&self) -> Millis {
        let passed = self.clock.elapsed().as_millis();
        Millis(u64::try_from(passed).unwrap_or(u64::MAX))
    }

    fn feed(&mut self, event: Event) {
        if self.stalled.is_some() {
            // The core is ahead of its journal and is about to be replaced.
            self.ending |= matches!(event, Event::Shutdown);
            return self.put_off(event);
        }
        let once = matches!(
            event,
            Event::Command { .. } | Event::BadCommand { .. } | Event::Withdrawn { .. }
        );
        let command = once.then(|| event.clone());
        let effects = self.core.step(self.now(), event);
        self.execute(effects);
        if let Some(command) = command.filter(|_| self.stalled.is_some()) {
            self.put_off(command);
        }
    }

    /// Commands and withdrawals are said once, so they wait for the next core. Everything else comes
    /// again: offers with the next subscription, the rest with what the next core asks for.
    fn put_off(&mut self, event: Event) {
        match event {
            Event::Command { command, unix_ms } if self.waiting.len() < MAX_WAITING => {
                tracing::warn!(id = command.id, "a command waits for the journal");
                self.waiting.push(Event::Command { command, unix_ms });
            }
            event @ Event::BadCommand { .. } if self.waiting.len() < MAX_WAITING => {
                self.waiting.push(event);
            }
            Event::BadCommand { id, .. } => {
                tracing::error!(id, limit = MAX_WAITING, "a command is lost");
            }
            Event::Command { command, .. } => {
                tracing::error!(id = command.id, limit = MAX_WAITING, "a command is lost");
            }
            Event::Withdrawn { model } if self.waiting.len() < MAX_WAITING => {
                tracing::warn!(model, "a withdrawal waits for the journal");
                self.waiting.push(Event::Withdrawn { model });
            }
            Event::Withdrawn { model } => {
                tracing::error!(model, limit = MAX_WAITING, "a withdrawal is lost");
            }
            Event::Offer(offer) => {
                tracing::warn!(model = offer.model, "an offer is asked for again later");
            }
            other => tracing::debug!(?other, "not heard while the journal cannot be written"),
        }
    }

    fn execute(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            if let Err(error) = self.perform(effect) {
                self.stall(&error);
                return;
            }
        }
    }

    /// Performs one effect. Only what the next start relies on can fail.
    fn perform(&mut self, effect: Effect) -> Result<(), PathError> {
        match effect {
            Effect::Journal(record) => self.write(&record)?,
            Effect::WriteActive(entries) => self.write_active(&entries)?,
            Effect::Activate { model, digest } => self.installer.activate(model, digest),
            Effect::Step { model, install, step } => self.installer.step(model, install, step),
            Effect::Pause { install, .. } => self.installer.pause(install),
            Effect::Abandon { install, .. } => self.installer.abandon(install),
            Effect::RetireStandby { model } => self.installer.retire_standby(model),
            Effect::Collect { keep } => {
                if let Err(error) = self.store.collect(&keep.into_iter().collect()) {
                    tracing::warn!(%error, "an unused bundle stays");
                }
            }
            Effect::Measure(order) => self.measurer.begin(*order),
            Effect::CancelMeasure => self.measurer.cancel(),
            Effect::SetLogLevel(level) => set_log_level(level.as_deref()),
            Effect::Publish(report) => self.publish(*report)?,
            Effect::Drain => self.ending = true,
        }
        Ok(())
    }

    fn write(&mut self, record: &Record) -> Result<(), PathError> {
        tracing::debug!(?record, "journal");
        self.journal.append(unix_ms().unwrap_or(0), record)?;
        #[cfg(debug_assertions)]
        self.hold.after(record);
        Ok(())
    }

    fn write_active(&self, entries: &[ActiveEntry]) -> Result<(), PathError> {
        let text = serde_json::to_vec_pretty(entries)
            .expect("entries hold only string keys and infallible serializers");
        write_atomically(&self.state.active(), &text)
    }

    /// The journal cannot be written: serving goes on, deciding does not. After a while a new core
    /// is recovered from what the journal really holds, as after a crash.
    fn stall(&mut self, error: &PathError) {
        tracing::error!(%error, "nothing can be decided until the journal can be written");
        self.installer.abandon_all();
        self.measurer.cancel();
        self.stalled = Some((Instant::now() + STALL, error.to_string()));
    }

    fn recover(&mut self) {
        let opened = match open_journal(&self.state) {
            Ok(opened) => opened,
            Err(error) => return self.stall(&error),
        };
        self.stalled = None;
        self.journal = opened.0;
        let (core, effects) = Core::recover(self.settings.clone(), &opened.1, self.now());
        self.core = core;
        self.execute(effects);
        if let Some(outbox) = self.outbox.as_mut().filter(|outbox| outbox.is_linked()) {
            outbox.subscribe_again();
            self.feed(Event::Connected);
        }
        for command in std::mem::take(&mut self.waiting) {
            self.feed(command);
        }
    }

    fn publish(&mut self, report: Report) -> Result<(), PathError> {
        log_report(&report);
        self.put(report)
    }

    /// Puts a report on its way. The end of an install that the disk does not take stops what is behind
    /// it, as a journal entry does: the journal is about to say that it was told. Any other event waits.
    fn put(&mut self, report: Report) -> Result<(), PathError> {
        let Some(outbox) = &mut self.outbox else {
            return Ok(());
        };
        let vouched_for = report.is_vouched_for();
        let again = report.happened_once().then(|| report.clone());
        match outbox.put(report, moment()) {
            Ok(()) => {}
            Err(PutError::Disk(error)) if vouched_for => return Err(error),
            Err(error) => self.keep_for_later(again, &error),
        }
        Ok(())
    }

    fn keep_for_later(&mut self, report: Option<Report>, error: &PutError) {
        match report {
            Some(report)
                if matches!(error, PutError::Disk(_)) && self.unkept.len() < MAX_UNKEPT =>
            {
                tracing::debug!(%error, "an event waits for the disk");
                self.unkept.push_back(report);
            }
            _ => tracing::error!(%error, "a report is lost"),
        }
    }

    /// Tries the events again that the disk did not take, the oldest first, up to one that it still does not.
    fn put_unkept(&mut self) {
        while let Some(report) = self.unkept.pop_front() {
            let left = self.unkept.len();
            let put = self.put(report);
            if put.is_err() || self.unkept.len() > left {
                self.unkept.rotate_right(1);
                return;
            }
        }
    }

    fn pump(&mut self) {
        let now = Instant::now();
        if let Some(Err(reason)) = self.outbox.as_mut().map(|outbox| outbox.pump(now)) {
            tracing::error!(reason, "the spool cannot be read");
        }
    }

    fn on_tick(&mut self) {
        if self.stalled.as_ref().is_some_and(|(until, _)| Instant::now() >= *until) {
            self.recover();
        }
        self.put_unkept();
        self.try_disk(Instant::now());
        self.tend_spool();
        self.feed(Event::Tick);
        for (model, install) in self.core.shadowing() {
            if let Some(facts) = self.installer.shadow_facts(install) {
                self.feed(Event::ShadowProgress { model, install, facts });
            }
        }
        self.tell_ready();
        if self.journal.is_long() && self.stalled.is_none() {
            let compacted = self.journal.compact(unix_ms().unwrap_or(0), self.core.durable());
            if let Err(error) = compacted {
                self.stall(&error);
            }
        }
    }

    /// Says that nothing will be kept, where that is so.
    fn warn_of_volatile_state(&mut self) {
        let Some(reason) = self.state.volatile() else { return };
        tracing::error!(
            reason,
            "the disk takes nothing: models are served from it, nothing is installed, and what is \
             decided is lost when the agent ends"
        );
        self.retry_disk = Some(Instant::now() + DISK_RETRY);
    }

    /// Ends the agent when the disk takes writes again: whoever started it starts it anew.
    fn try_disk(&mut self, now: Instant) {
        if self.retry_disk.is_none_or(|due| now < due) {
            return;
        }
        self.retry_disk = Some(now + DISK_RETRY);
        match self.state.try_writing() {
            Ok(()) => {
                tracing::warn!("the disk takes writes again, so the agent starts anew");
                self.start_anew = true;
                self.feed(Event::Shutdown);
            }
            Err(error) => tracing::debug!(%error, "the disk still takes nothing"),
        }
    }

    /// Lets the spool write what is due, and tells what it had to give up.
    fn tend_spool(&mut self) {
        let Some(outbox) = &mut self.outbox else {
            return;
        };
        if let Err(error) = outbox.tick(moment()) {
            tracing::warn!(%error, "the spool cannot be written");
        }
        if self.stalled.is_some() {
            return;
        }
        let now = Instant::now();
        if now < self.losses_due {
            return;
        }
        // All of them first: where even the telling finds no room, it is itself a loss.
        let losses: Vec<_> = std::iter::from_fn(|| outbox.take_lost()).collect();
        for lost in losses {
            tracing::warn!(?lost, "messages are given up");
            self.losses_due = now + LOSSES;
            self.feed(Event::SpoolDropped(lost));
        }
    }

    fn on_power_tick(&mut self) {
        self.sampler.tick(Instant::now());
        if self.settings.download.are_strict() {
            self.feed(Event::Conditions(facts::conditions(&self.roots, unix_ms())));
        }
    }

    fn tell_ready(&mut self) {
        if self.core.settled() {
            let models = self.core.durable().active().len();
            self.manager.ready(&format!("{models} models"));
        } else {
            self.manager.starting(Instant::now());
        }
    }

    fn on_window(&mut self) {
        let now = Instant::now();
        let length = now.duration_since(self.window_began);
        self.window_began = now;
        let windows = self.plane.take_window();
        let pids = self.plane.worker_pids();
        let workers: Vec<u32> = pids.iter().map(|(_, pid)| *pid).collect();
        let inferences = windows.iter().map(|window| window.requests).sum();
        let sample = self.sampler.sample(now, &workers, inferences);
        self.written_day = sample.disk_written_day_bytes;
        let serving = self.plane.serving_pids();
        let facts = facts::window(length, windows, &serving, &sample, &self.roots);
        self.feed(Event::Window(Box::new(facts)));
    }

    fn on_plane(&mut self, event: PlaneEvent) {
        match event {
            PlaneEvent::WorkerDied { model, reason } => {
                tracing::warn!(model, reason, "a worker died");
                self.feed(Event::WorkerDied { model, reason });
            }
            PlaneEvent::RestartFailed { model, reason } => {
                self.feed(Event::RestartFailed { model, reason });
            }
            PlaneEvent::WorkerRestarted { model } => {
                tracing::info!(model, "its worker runs again");
                self.feed(Event::WorkerRestarted { model });
            }
            PlaneEvent::CandidateDied { candidate, model, reason } => {
                let Some(install) = self.installer.install_of(candidate) else {
                    return;
                };
                let reason = format!("the worker of the new model died: {reason}");
                self.feed(Event::Step {
                    model,
                    install,
                    outcome: Err(StepFailure::attempt(reason)),
                });
            }
        }
    }

    fn on_link(&mut self, event: LinkEvent) {
        let Some(outbox) = &mut self.outbox else {
            return;
        };
        match event {
            LinkEvent::Connected(link) => {
                tracing::info!("connected to the broker");
                outbox.connected(link);
                self.feed(Event::Connected);
            }
            LinkEvent::Disconnected(reason) => {
                if outbox.is_linked() {
                    tracing::warn!(reason, "the connection to the broker is lost");
                } else if self.core.offline_reason() != Some(&reason) {
                    tracing::warn!(reason, "no connection to the broker");
                } else {
                    tracing::debug!(reason, "no connection to the broker");
                }
                outbox.disconnected();
                self.feed(Event::Disconnected { reason });
            }
            LinkEvent::Sent(packet) => outbox.sent(packet),
            LinkEvent::Acknowledged { packet, refused } => {
                let now = Instant::now();
                if let Err(reason) = outbox.acknowledged(packet, refused.as_ref(), now) {
                    tracing::error!(reason, "the spool cannot be written");
                }
            }
            LinkEvent::Subscribed { refused } => {
                outbox.subscription_answered(refused.as_deref(), Instant::now());
                self.feed(Event::Subscribed { refused });
            }
            LinkEvent::Message { topic, payload } => self.on_message(&topic, &payload),
        }
    }

    fn on_message(&mut self, topic: &str, payload: &[u8]) {
        let Some(mqtt) = &self.config.mqtt else {
            return;
        };
        match facts::message(&mqtt.root, &self.config.device.id, topic, payload, unix_ms()) {
            Ok(Some(event)) => self.feed(event),
            Ok(None) => {}
            Err(reason) => tracing::warn!(topic, reason, "a message is ignored"),
        }
    }

    fn on_reload(&mut self) {
        self.manager.reloading();
        match Config::load(&self.sources) {
            Ok(new) => {
                self.manager.reloaded("the configuration was read again");
                if self.config.needs_restart(&new) {
                    tracing::warn!("only budgets are taken over; other changes need a restart");
                }
                self.config.budgets.clone_from(&new.budgets);
                self.settings.budgets.clone_from(&new.budgets);
                self.feed(Event::BudgetsConfigured(new.budgets));
            }
            Err(ConfigError(problems)) => {
                for problem in &problems {
                    tracing::error!(%problem, "the configuration is not taken over");
                }
                let told = format!(
                    "the configuration has {} problems and is not taken over",
                    problems.len()
                );
                self.manager.reloaded(&told);
            }
        }
    }

    fn status(&self) -> Value {
        let core = serde_json::to_value(self.core.status(self.now()));
        json!({
            "agent": {
                "version": env!("CARGO_PKG_VERSION"),
                "pid": std::process::id(),
                "boot_id": self.settings.birth.header.boot_id,
                "uptime_ms": self.now().0,
                "stalled": self.stalled.as_ref().map(|(_, reason)| reason),
                "volatile": self.state.volatile(),
                "ended": self.ended(),
            },
            "core": core.unwrap_or_default(),
            "plane": self.plane.status(),
            "endpoints": self.plane.endpoints(),
            "spool": self.outbox.as_ref().map(Outbox::fill),
            "disk": facts::disk(&self.roots, self.written_day),
        })
    }

    /// Answers the requests at hand, and lets the last messages reach the broker.
    async fn end(mut self) {
        self.manager.stopping(self.config.serve.drain_deadline + GOOD_BYE);
        let plane = self.plane.clone();
        let deadline = self.config.serve.drain_deadline;
        let drained = tokio::spawn(async move { plane.drain(deadline).await });
        let until = tokio::time::Instant::now() + GOOD_BYE;
        if let Some(mut inputs) = self.inputs.take() {
            self.pump();
            while self.outbox.as_ref().is_some_and(Outbox::is_busy) {
                let Some(link) = &mut inputs.link else { break };
                match tokio::time::timeout_at(until, link.recv()).await {
                    Ok(Some(event)) => self.on_link(event),
                    _ => break,
                }
                self.pump();
            }
            if let Some(outbox) = &mut self.outbox {
                if let Err(error) = outbox.flush(Instant::now()) {
                    tracing::error!(%error, "what waits in memory is lost");
                }
                outbox.close();
            }
            // The good-bye itself has to go out, which the broker answers by closing.
            if let Some(link) = &mut inputs.link {
                let gone = async {
                    while let Some(event) = link.recv().await {
                        if matches!(event, LinkEvent::Disconnected(_)) {
                            break;
                        }
                    }
                };
                let _ = tokio::time::timeout(Duration::from_millis(500), gone).await;
            }
        }
        let _ = drained.await;
    }
}

impl Inputs {
    fn link_woken(&mut self, event: Option<LinkEvent>) -> Woken {
        match event {
            Some(event) => Woken::Link(event),
            None => {
                self.link = None;
                Woken::LinkEnded
            }
        }
    }

    async fn next(&mut self) -> Woken {
        loop {
            tokio::select! {
                biased;
                _ = self.terminate.recv() => return Woken::End,
                _ = self.interrupt.recv() => return Woken::End,
                _ = self.reload.recv() => return Woken::Reload,
                Some(event) = self.events.recv() => return Woken::Event(Box::new(event)),
                Ok(event) = self.plane.recv() => return Woken::Plane(event),
                event = from(&mut self.link) => return self.link_woken(event),
                Some(question) = self.questions.recv() => return Woken::Question(question),
                else => tokio::time::sleep(TICK).await,
            }
        }
    }
}

/// The next event of a link, which ends when its task does; nothing ever comes where there is no broker.
async fn from(link: &mut Option<mpsc::Receiver<LinkEvent>>) -> Option<LinkEvent> {
    match link {
        Some(link) => link.recv().await,
        None => std::future::pending().await,
    }
}

/// Opens the journal. Where damage cost it an active model that `active.json` still knows, that
/// copy fills the gap.
fn open_journal(state: &StateDir) -> Result<(Journal, Vec<Record>), PathError> {
    let opened = Journal::open(&state.journal())?;
    if let Some(cut) = &opened.cut {
        let (bytes, lines) = (cut.bytes, cut.lines);
        tracing::warn!(bytes, lines, "the journal's end was damaged and is cut off");
    }
    let (mut journal, mut records) = (opened.journal, opened.records);
    let mut durable = Durable::default();
    records.iter().for_each(|record| durable.apply(record));
    let copied = std::fs::read(state.active()).unwrap_or_default();
    let copied: Vec<ActiveEntry> = serde_json::from_slice(&copied).unwrap_or_default();
    let mut filled = false;
    for entry in copied {
        let model = durable.models.entry(entry.model).or_default();
        if model.active.is_none() && model.install.is_none() {
            model.active = Some(entry.installed);
            filled = true;
        }
    }
    if filled {
        tracing::warn!(
            "the journal has lost a model that active.json knows; it is taken from there"
        );
        journal.compact(unix_ms().unwrap_or(0), &durable)?;
        let durable = Box::new(durable);
        records = vec![Record::Snapshot { durable }];
    }
    Ok((journal, records))
}

fn hosting_program(config: &Config) -> Result<PathBuf, worker_program::NotFound> {
    match &config.worker.program {
        Some(program) => Ok(program.clone()),
        None => worker_program::find(),
    }
}

fn sampler(config: &Config, roots: &Roots, now: Instant) -> Sampler {
    let sampler = Sampler::new(roots.clone(), config.power, now);
    if config.device.emulated { sampler.of_an_emulated_board() } else { sampler }
}

fn plane_config(config: &Config, state: &StateDir) -> Result<PlaneConfig, RunError> {
    Ok(PlaneConfig {
        engine: config.engine.clone(),
        worker_program: hosting_program(config)?,
        worker_args: config.worker.args.clone(),
        worker_memory_bytes: config.worker.memory_bytes,
        worker_groups: worker_groups(config),
        http: config.serve.http,
        unix: config.serve.unix.clone(),
        queue_depth: config.serve.queue_depth,
        batch: config.serve.batch,
        max_request_bytes: config.serve.max_request_bytes,
        max_buffered_bytes: config.serve.max_buffered_bytes,
        request_deadline: config.serve.request_deadline,
        run_limit: config.worker.run_limit,
        drift_sample_every: config.drift_sample_every,
        run_dir: state.run(),
        roots: Roots::under(&config.sys_root),
    })
}

/// Workers get control groups of their own where that is asked for and possible.
fn worker_groups(config: &Config) -> Option<Arc<Groups>> {
    if config.worker.cgroup == WorkerCgroup::Shared {
        return None;
    }
    match Groups::open(&Roots::under(&config.sys_root)) {
        Ok(groups) => Some(Arc::new(groups)),
        Err(error) => {
            tracing::warn!(%error, "workers share the agent's control group, which is not delegated to it");
            None
        }
    }
}

fn write_endpoints(plane: &Plane, state: &StateDir) -> Result<(), PathError> {
    let text = serde_json::to_vec_pretty(&plane.endpoints())
        .expect("endpoints hold only string keys and infallible serializers");
    write_atomically(&state.run().join("endpoints.json"), &text)
}

/// The owner's word, where a root is configured; what holds is said either way.
fn open_trust(config: &Config, state: &StateDir) -> Result<Option<Trust>, RunError> {
    let told = TrustConfig::describe(config.trust.as_ref());
    let Some(own) = &config.trust else {
        tracing::warn!("{told}");
        return Ok(None);
    };
    tracing::info!("{told}");
    let access = Access::new(&config.download);
    Ok(Some(Trust::open(own, state, &config.device.class, access)?))
}

type Connection = (Option<Outbox>, Option<mpsc::Receiver<LinkEvent>>);

/// The spool's rules: in memory it takes little.
fn spool_config(config: &Config, state: &StateDir) -> SpoolConfig {
    let mut own = config.spool.clone();
    if state.volatile().is_some() {
        own.max_bytes = own.max_bytes.min(VOLATILE_SPOOL_BYTES);
    }
    own
}

fn connect(config: &Config, state: &StateDir, boot_id: &str) -> Result<Connection, PathError> {
    let (Some(mqtt), Some(topics)) = (&config.mqtt, config.topics()) else {
        return Ok((None, None));
    };
    let spool = Spool::open(&state.spool(), spool_config(config, state))?;
    let will = Will { topic: topics.state(), payload: facts::will(boot_id, unix_ms()) };
    let memory = state.homeassistant();
    let homeassistant = HomeAssistant::new(&config.homeassistant, topics.clone(), memory);
    homeassistant.remember()?;
    let outbox = Outbox::new(topics, Stamp::new(boot_id), spool, mqtt.inflight);
    let outbox = outbox.telling(homeassistant);
    warn_of_findings(config);
    let (link, _task) = mqtt::start(mqtt, &config.device.id, will);
    Ok((Some(outbox), Some(link)))
}

/// What `espalier-agent check` would say of the way to the broker.
fn warn_of_findings(config: &Config) {
    let now = unix_ms().and_then(|ms| i64::try_from(ms / 1000).ok());
    for finding in config.findings(now) {
        let tls::FileError { name, what, .. } = finding.error;
        match finding.weight {
            tls::Weight::Problem => tracing::error!(key = name, what, "no way to the broker"),
            tls::Weight::Warning => tracing::warn!(key = name, what, "the way to the broker"),
        }
    }
}

/// The log does as it did where this fails.
fn set_log_level(level: Option<&str>) {
    match logging::set(level) {
        Ok(()) => tracing::debug!(level, "the log level is set"),
        Err(error) => tracing::warn!(level, error, "the log level stays as it is"),
    }
}

fn listen_for(kind: SignalKind) -> Result<Signal, RunError> {
    signal(kind).map_err(|e| RunError::System("listen for signals", e))
}

fn every(period: Duration) -> tokio::time::Interval {
    let mut interval = tokio::time::interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Skip);
    interval
}

/// Unix time, if the device's clock was ever set.
pub(crate) fn unix_ms() -> Option<u64> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    let ms = u64::try_from(since.as_millis()).ok()?;
    (ms >= CLOCK_SET_MS).then_some(ms)
}

/// Now, by both clocks.
fn moment() -> Moment {
    Moment { at: Instant::now(), unix_ms: unix_ms() }
}

fn log_report(report: &Report) {
    match report {
        Report::Breach(b) => tracing::warn!(
            model = b.model, budget = %b.budget, cause = %b.cause, limit = b.limit,
            observed = b.observed, recompress = b.recompress, "over budget"
        ),
        Report::Install(i) => tracing::info!(
            model = i.model, digest = i.digest, phase = %i.phase, outcome = %i.outcome,
            reason = i.reason, "install"
        ),
        Report::Rollback(r) => tracing::warn!(
            model = r.model,
            from = r.from_digest,
            to = r.to_digest,
            reason = r.reason,
            "a model is taken back"
        ),
        Report::Throttle(t) => {
            tracing::warn!(throttled = t.throttled, temperature_mc = t.temperature_mc, "throttling")
        }
        Report::Recompress(r) => tracing::info!(
            model = r.model, request = r.request_id, budget = %r.budget,
            "asking for a smaller model"
        ),
        Report::Command(c) => tracing::info!(
            id = c.id, kind = %c.kind, outcome = %c.outcome, reason = c.reason, topic = c.topic,
            sender = c.sender, args = c.args_text, "command"
        ),
        Report::State(s) => tracing::info!(state = %s.state, reason = s.reason, "device"),
        _ => {}
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) mod tests;
