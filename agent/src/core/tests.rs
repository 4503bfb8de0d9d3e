//! The core against a small world: a journal, a store, a plane, and outcomes chosen by chance.
//! Every effect is checked against what the journal holds at that moment.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use wire::{
    Birth, Budgets, Command, CommandKind, Header, Histogram, Offer, Payload, Quality,
    ResourceWindow, Runtime,
};

use super::*;

mod oracle;
mod properties;
mod stories;

use oracle::Oracle;

/// The digest of bundle `n`.
fn digest(n: u64) -> String {
    format!("sha256:{n:064x}")
}

fn header<P: Payload>() -> Header {
    Header::of::<P>(0, 0, "")
}

fn birth() -> Birth {
    Birth {
        header: Header::of::<Birth>(0, 0, "boot"),
        device: "dev".into(),
        device_class: "pi4".into(),
        agent_version: "0".into(),
        arch: "x86_64".into(),
        runtime: Runtime::Tract,
        engine_version: "0".into(),
        cpus: 4,
        memory_bytes: 1 << 30,
        power_source: "none".into(),
        power_quality: Quality::None,
        emulated: false,
    }
}

pub(super) fn settings() -> Settings {
    let budget = Budgets { latency_p95_us: Some(1000), drift_psi: Some(0.2), ..Budgets::default() };
    Settings {
        birth: birth(),
        threads: 1,
        budgets: [("m".to_owned(), budget.clone()), ("n".to_owned(), budget)].into(),
        breach: BreachRules {
            windows_over: 2,
            windows_seen: 3,
            min_requests: 10,
            cooldown_ms: 5_000,
            request_timeout_ms: 20_000,
            ..BreachRules::default()
        },
        drift: DriftRules { pool_ms: 1_000, min_requests: 100, ..DriftRules::default() },
        install: InstallRules {
            shadow_requests: 10,
            shadow_timeout_ms: 3_000,
            probation_windows: 2,
            max_models: 2,
            max_attempts: 3,
            max_restarts: 4,
            ..InstallRules::default()
        },
        probation: ProbationRules { correlation_ms: 50, ..ProbationRules::default() },
        download: DownloadRules::default(),
        trouble: None,
    }
}

fn offer(model: &str, sequence: u64, n: u64) -> Offer {
    Offer {
        header: header::<Offer>(),
        model: model.into(),
        version: format!("1.0.{sequence}"),
        sequence,
        digest: digest(n),
        url: "http://host/bundles/x".into(),
        size_bytes: 1000,
        runtime: Runtime::Tract,
        device_class: "pi4".into(),
        request_id: None,
    }
}

/// What a window is to look like.
#[derive(Clone, Copy, Debug)]
struct Shape {
    us: u64,
    requests: u64,
    errors: u64,
    late: u64,
    throttled: bool,
    cold: bool,
}

const SLOW: Shape =
    Shape { us: 5000, requests: 20, errors: 0, late: 0, throttled: false, cold: false };

const FAST: Shape = Shape { us: 100, ..SLOW };

/// A device with nothing to tell.
fn quiet() -> ResourceWindow {
    ResourceWindow {
        header: header::<ResourceWindow>(),
        window_ms: 1000,
        windows: 1,
        agent_pss_bytes: None,
        workers_pss_bytes: None,
        memory_total_bytes: 0,
        memory_available_bytes: 0,
        swap_in_pages: None,
        major_faults: None,
        cpu_percent: None,
        others_percent: None,
        steal_percent: None,
        load1: None,
        temperature_mc: None,
        freq_khz: None,
        throttled: false,
        cpu_pressure_percent: None,
        memory_pressure_percent: None,
        memory_stall_percent: None,
        io_pressure_percent: None,
        io_stall_percent: None,
        group_cpu_pressure_percent: None,
        group_memory_pressure_percent: None,
        group_io_pressure_percent: None,
        group_memory_bytes: None,
        group_memory_peak_bytes: None,
        group_memory_high_events: None,
        group_memory_max_events: None,
        group_oom_kills: None,
        disk_written_bytes: None,
        disk_written_day_bytes: None,
    }
}

fn window(model: &str, digest: &str, shape: Shape) -> Event {
    let mut compute = Histogram::default();
    (0..shape.requests).for_each(|_| compute.record(shape.us));
    let resources = ResourceWindow { throttled: shape.throttled, ..quiet() };
    Event::Window(Box::new(WindowFacts {
        window_ms: 1000,
        models: vec![ModelFacts {
            model: model.into(),
            digest: digest.into(),
            compute,
            requests: shape.requests,
            errors: shape.errors,
            late: shape.late,
            cold: shape.cold,
            ..ModelFacts::default()
        }],
        resources: Some(resources),
        power: None,
    }))
}

/// Two features: five classes alike in the reference, and a number that never changes.
fn drift_facts(requests: u64, shifted: bool) -> DriftFacts {
    let of = |feature, reference: &[u64], seen: Vec<u64>| FeatureFacts {
        side: wire::Side::Output,
        tensor: "y".into(),
        feature,
        reference: reference.to_vec(),
        seen,
        pairs: 0,
        product: 0,
    };
    let classes = if shifted {
        vec![requests, 0, 0, 0, 0, 0]
    } else {
        [vec![requests / 5; 5], vec![0]].concat()
    };
    DriftFacts {
        features: vec![
            of(wire::Feature::Class, &[100, 100, 100, 100, 100, 0], classes),
            of(wire::Feature::Zeros, &[0, 500, 0], vec![0, requests, 0]),
        ],
    }
}

fn restart_failed(model: &str) -> Event {
    Event::RestartFailed { model: model.into(), reason: "no memory".into() }
}

/// What the plane runs for one model.
#[derive(Debug, Default)]
struct Workers {
    active: Option<String>,
    standby: Option<String>,
    candidate: Option<(InstallId, String)>,
}

/// Answers the shell still owes.
#[derive(Clone, Debug)]
enum Owed {
    Step(String, InstallId, Step),
    Activate(String, String),
}

/// The world around the core.
struct World {
    core: Core,
    now: Millis,
    journal: Vec<Record>,
    workers: BTreeMap<String, Workers>,
    owed: Vec<Owed>,
    reports: Vec<Report>,
    served_once: BTreeSet<String>,
    oracle: Oracle,
    /// What the manifests of bundles state of themselves.
    stated_agreement: Option<f64>,
    /// What every bundle says its model will cost.
    predicted: Predictions,
    drained: bool,
    /// The command whose measurement is under way.
    measuring: Option<String>,
    log_level: Option<String>,
}

impl World {
    fn new() -> Self {
        Self::with(settings())
    }

    fn with(settings: Settings) -> Self {
        let (core, effects) = Core::recover(settings, [], Millis(0));
        let mut world = Self {
            core,
            now: Millis(0),
            journal: Vec::new(),
            workers: BTreeMap::new(),
            owed: Vec::new(),
            reports: Vec::new(),
            served_once: BTreeSet::new(),
            oracle: Oracle::default(),
            stated_agreement: None,
            predicted: Predictions::default(),
            drained: false,
            measuring: None,
            log_level: None,
        };
        world.execute(effects, usize::MAX);
        world
    }

    fn told(&self) -> Durable {
        let mut durable = Durable::default();
        self.journal.iter().for_each(|record| durable.apply(record));
        durable
    }

    fn feed(&mut self, event: Event) {
        self.feed_until(event, usize::MAX);
    }

    /// Feeds an event and performs only the first `limit` effects: the power goes after them.
    fn feed_until(&mut self, event: Event, limit: usize) {
        if let Event::Window(facts) = &event {
            self.oracle.see(&self.core, facts);
        }
        let effects = self.core.step(self.now, event);
        self.execute(effects, limit);
    }

    fn execute(&mut self, effects: Vec<Effect>, limit: usize) {
        for effect in effects.into_iter().take(limit) {
            self.perform(effect);
        }
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Journal(record) => self.write(*record),
            Effect::WriteActive(entries) => assert_eq!(entries, self.told().active()),
            Effect::Activate { model, digest } => {
                let active = self.told().models[&model].active.clone();
                assert_eq!(active.unwrap().digest, digest, "activates what is not active");
                self.owed.push(Owed::Activate(model, digest));
            }
            Effect::Step { model, install, step } => self.owe(model, install, step),
            Effect::Pause { install, .. } => {
                self.owed.retain(|owed| !matches!(owed, Owed::Step(_, id, _) if *id == install));
            }
            Effect::Abandon { model, install } => {
                self.owed.retain(|owed| !matches!(owed, Owed::Step(_, id, _) if *id == install));
                let workers = self.workers.entry(model).or_default();
                workers.candidate = workers.candidate.take().filter(|(id, _)| *id != install);
            }
            Effect::RetireStandby { model } => {
                self.workers.entry(model).or_default().standby = None;
            }
            Effect::Collect { keep } => {
                let needed = self.told().referenced();
                assert!(needed.iter().all(|digest| keep.contains(digest)));
            }
            Effect::Measure(order) => {
                let told = self.told();
                assert_eq!(told.measuring.map(|own| own.id.clone()), Some(order.id.clone()));
                let installs = told.models.values().any(|model| model.install.is_some());
                assert!(!installs, "measures during an install");
                assert!(self.measuring.replace(order.id).is_none(), "two at once");
            }
            Effect::CancelMeasure => self.measuring = None,
            Effect::SetLogLevel(level) => self.log_level = level,
            Effect::Publish(report) => self.hear(*report),
            Effect::Drain => self.drained = true,
        }
    }

    fn write(&mut self, record: Record) {
        let before = self.told();
        if let Record::Install { model, state, .. } = &record {
            let from = before.models[model].install.as_ref().unwrap().state;
            assert!(legal(from, *state), "{from:?} -> {state:?} is not in the diagram");
        }
        if let Record::Requested { model, budget, .. } = &record {
            let open = before.models.get(model).map(|m| m.requests.clone());
            let open = open.unwrap_or_default();
            assert!(!open.contains_key(budget.as_str()), "a second open request");
            let over = self.oracle.over(model, *budget);
            let needed = self.core.settings.breach.windows_over;
            assert!(over >= needed, "{over} windows over {budget} of {model} behind a request");
        }
        if let Record::Offered { .. } = &record {
            assert!(self.measuring.is_none() && before.measuring.is_none(), "both at once");
        }
        self.journal.push(record);
    }

    fn owe(&mut self, model: String, install: InstallId, step: Step) {
        let told = self.told();
        let durable = &told.models[&model];
        let own = durable.install.as_ref().expect("a step without an install");
        assert_eq!(own.id, install);
        let wanted = match &step {
            Step::Download(_) => InstallState::Downloading,
            Step::Verify { .. } => InstallState::Verifying,
            Step::Load { .. } => InstallState::Loading,
            Step::SelfTest { .. } => InstallState::SelfTest,
            Step::Shadow => InstallState::Shadow,
            Step::Switch => InstallState::Switching,
        };
        assert_eq!(own.state, wanted, "the effect is ahead of its journal");
        assert!(!durable.blocked.contains(&own.offer.digest), "blocked digest");
        self.owed.push(Owed::Step(model, install, step));
    }

    fn hear(&mut self, report: Report) {
        if let Report::Recompress(request) = &report {
            let told = self.told();
            let open = &told.models[&request.model].requests;
            assert!(open.values().any(|r| r.request_id == request.request_id));
        }
        if let Report::Infer(window) = &report
            && let Some(test) = &window.drift
        {
            self.oracle.tested(&window.model, test);
        }
        self.reports.push(report);
    }

    /// Answers one of the steps owed.
    fn answer(&mut self, which: usize, class: Option<FailureClass>) {
        if self.owed.is_empty() {
            return;
        }
        let owed = self.owed.remove(which % self.owed.len());
        let failure = class.map(|class| StepFailure { reason: "by chance".into(), class });
        let event = match owed {
            Owed::Activate(model, digest) => self.activate(model, digest, failure),
            Owed::Step(model, install, step) => {
                let outcome = match failure {
                    Some(failure) => Err(failure),
                    None => Ok(self.do_step(&model, install, step)),
                };
                Event::Step { model, install, outcome }
            }
        };
        self.feed(event);
    }

    fn activate(&mut self, model: String, digest: String, failure: Option<StepFailure>) -> Event {
        if let Some(failure) = failure {
            return Event::ActivateFailed { model, digest, failure };
        }
        let workers = self.workers.entry(model.clone()).or_default();
        workers.active = Some(digest.clone());
        workers.standby = None;
        Event::Activated { model, digest }
    }

    fn do_step(&mut self, model: &str, install: InstallId, step: Step) -> StepDone {
        let own = self.told().models[model].install.clone();
        let workers = self.workers.entry(model.to_owned()).or_default();
        match step {
            Step::Download(_) => StepDone::Downloaded,
            Step::Verify { .. } => {
                let offer = own.unwrap().offer;
                StepDone::Verified(BundleFacts {
                    name: offer.model,
                    version: offer.version,
                    sequence: offer.sequence,
                    runtime: "tract".into(),
                    device_class: "any".into(),
                    size_bytes: 900,
                    predicted: Box::new(self.predicted),
                    agreement_high: self.stated_agreement,
                })
            }
            Step::Load { digest } => {
                workers.candidate = Some((install, digest));
                StepDone::Loaded
            }
            Step::SelfTest { .. } => StepDone::SelfTested,
            Step::Shadow => StepDone::ShadowStarted,
            Step::Switch => {
                let (_, digest) = workers.candidate.take().expect("nothing to switch to");
                workers.standby = workers.active.replace(digest);
                StepDone::Switched
            }
        }
    }

    fn window(&mut self, model: &str, shape: Shape) {
        let active = self.told().models.get(model).and_then(|m| m.active.clone());
        let Some(active) = active else { return };
        self.feed(window(model, &active.digest, shape));
    }

    /// A fast window of so many requests like the reference, or of another class alone, a second later.
    fn look(&mut self, model: &str, requests: u64, shifted: bool) {
        let active = self.told().models.get(model).and_then(|m| m.active.clone());
        let Some(active) = active else { return };
        self.oracle.looks(model, shifted);
        self.now = self.now.plus(1000);
        let Event::Window(mut facts) = window(model, &active.digest, FAST) else { return };
        facts.models[0].drift = Some(drift_facts(requests, shifted));
        self.feed(Event::Window(facts));
    }

    fn shadow(&mut self, requests: u64, agreement: f64) {
        self.shadow_facts(ShadowFacts { requests, agreement, ..ShadowFacts::default() });
    }

    fn shadow_facts(&mut self, facts: ShadowFacts) {
        for (model, install) in self.core.shadowing() {
            self.feed(Event::ShadowProgress { model, install, facts });
        }
    }

    fn tick(&mut self, ms: u64) {
        self.now = self.now.plus(ms);
        self.feed(Event::Tick);
    }

    /// The process ends at once and starts again with what the journal holds.
    fn crash(&mut self) {
        self.workers.clear();
        self.owed.clear();
        self.measuring = None;
        self.oracle = Oracle::default();
        let settings = self.core.settings.clone();
        let (core, effects) = Core::recover(settings, &self.journal, self.now);
        self.core = core;
        self.execute(effects, usize::MAX);
    }

    fn check(&mut self) {
        let told = self.told();
        assert_eq!(self.core.durable(), &told, "memory and journal disagree");
        for (name, model) in &told.models {
            if let Some(active) = &model.active {
                assert!(!model.blocked.contains(&active.digest), "a blocked digest serves");
                self.served_once.insert(name.clone());
            }
        }
        for name in &self.served_once {
            assert!(told.models[name].active.is_some(), "{name} lost its model");
        }
        self.check_ends(&told);
    }

    /// Every end in the journal was told, and no more is owed.
    fn check_ends(&self, told: &Durable) {
        assert!(told.untold.is_empty(), "{:?} is never told", told.untold);
        let heard = |wanted: &str, state: InstallState| {
            let is = |report: &Report| {
                matches!(report, Report::Install(event)
                if event.digest == wanted && event.phase == state.phase())
            };
            self.reports.iter().any(is)
        };
        let mut durable = Durable::default();
        for record in &self.journal {
            match record {
                Record::Install { model, state, .. } if state.is_terminal() => {
                    let own = durable.models[model].install.clone().unwrap();
                    assert!(heard(&own.offer.digest, *state), "the end {record:?} was not told");
                }
                Record::Reverted { from, .. } => {
                    assert!(heard(from, InstallState::RolledBack), "{record:?} was not told");
                }
                _ => {}
            }
            durable.apply(record);
        }
    }
}

/// The diagram of `docs/agent.md`.
fn legal(from: InstallState, to: InstallState) -> bool {
    use InstallState as S;
    match to {
        S::Offered => false,
        S::Downloading => from == S::Offered,
        S::Verifying => from == S::Downloading,
        S::Loading => from == S::Verifying,
        S::SelfTest => from == S::Loading,
        S::Shadow => from == S::SelfTest,
        S::Switching => from == S::SelfTest || from == S::Shadow,
        S::Probation => from == S::Switching,
        S::Committed | S::RolledBack => from == S::Probation,
        S::Rejected => from < S::Probation,
    }
}
