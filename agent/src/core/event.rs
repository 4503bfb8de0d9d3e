//! What can happen to a device: everything the core is told.

use wire::{
    Budgets, Command, CommandKind, DropReason, Histogram, MeasureProfile, Offer, PowerWindow,
    ResourceWindow,
};

use super::drift::DriftFacts;
use super::trial::Predictions;
use super::window::Conditions;

/// Milliseconds of a clock that only moves forward. The shell reads it; the core only compares it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Millis(pub u64);

impl Millis {
    /// The time that has passed since `earlier`, zero if it lies in the future.
    #[must_use]
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// This time and `ms` more.
    #[must_use]
    pub fn plus(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }
}

/// Numbers an install uniquely over the device's whole life, so that late answers to a superseded
/// install are recognised.
pub type InstallId = u64;

/// Something happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// The shell looked at what downloads wait for; said only where there are rules for it.
    Conditions(Conditions),
    /// Time passed. Deadlines, retries and cooldowns are looked at.
    Tick,
    /// The broker accepted the connection.
    Connected,
    /// The connection to the broker is gone, or could not be made.
    Disconnected {
        /// Why, for the status page.
        reason: String,
    },
    /// The broker answered the subscription to offers and commands.
    Subscribed {
        /// Why it refuses it.
        refused: Option<String>,
    },
    /// The desired model, as the broker holds it. The same offer may arrive any number of times.
    Offer(Offer),
    /// The broker no longer holds an offer for a model.
    Withdrawn {
        /// The model.
        model: String,
    },
    /// A command arrived.
    Command {
        /// The command.
        command: Command,
        /// Unix time when it arrived, `None` when the device has no clock.
        unix_ms: Option<u64>,
    },
    /// Something arrived where a command should be.
    BadCommand {
        /// As the topic says.
        kind: CommandKind,
        /// As the topic says.
        id: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A measurement ended by itself.
    Measured {
        /// The command that asked for it.
        id: String,
        /// What it brought, or why it came to nothing.
        outcome: Result<Box<MeasureProfile>, String>,
    },
    /// One telemetry window ended.
    Window(Box<WindowFacts>),
    /// A step of an install finished.
    Step {
        /// The model the install belongs to.
        model: String,
        /// Which install.
        install: InstallId,
        /// How it ended.
        outcome: Result<StepDone, StepFailure>,
    },
    /// Live traffic has been compared on an installing model.
    ShadowProgress {
        /// The model the install belongs to.
        model: String,
        /// Which install.
        install: InstallId,
        /// What was seen so far.
        facts: ShadowFacts,
    },
    /// An installed bundle serves.
    Activated {
        /// The model.
        model: String,
        /// The bundle that serves now.
        digest: String,
    },
    /// An installed bundle could not be brought to serve.
    ActivateFailed {
        /// The model.
        model: String,
        /// The bundle that was tried.
        digest: String,
        /// How it failed.
        failure: StepFailure,
    },
    /// The active worker of a model died. The plane restarts it by itself.
    WorkerDied {
        /// The model.
        model: String,
        /// Why: signal, exit code.
        reason: String,
    },
    /// The plane tried to start a dead worker again and could not. It goes on trying.
    RestartFailed {
        /// The model.
        model: String,
        /// Why.
        reason: String,
    },
    /// The worker that had died runs again.
    WorkerRestarted {
        /// The model.
        model: String,
    },
    /// Messages were given up.
    SpoolDropped(Dropped),
    /// The configuration's budgets were read again.
    BudgetsConfigured(std::collections::BTreeMap<String, Budgets>),
    /// The service is asked to end.
    Shutdown,
}

/// Messages that were given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dropped {
    /// How many.
    pub records: u64,
    /// Their bytes.
    pub bytes: u64,
    /// How many of them were events rather than telemetry.
    pub events: u64,
    /// Why.
    pub reason: DropReason,
}

impl Dropped {
    /// None, which would have been for that reason.
    #[must_use]
    pub fn none(reason: DropReason) -> Self {
        Self { records: 0, bytes: 0, events: 0, reason }
    }

    /// Whether nothing was given up.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.records == 0 && self.bytes == 0
    }

    /// Adds what was given up for the same reason.
    pub fn add(&mut self, other: Self) {
        self.records = self.records.saturating_add(other.records);
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.events = self.events.saturating_add(other.events);
    }
}

/// What one telemetry window measured.
#[derive(Clone, Debug, Default)]
pub struct WindowFacts {
    /// The window's length.
    pub window_ms: u64,
    /// One entry per model.
    pub models: Vec<ModelFacts>,
    /// The machine. `None` where nothing could be read.
    pub resources: Option<ResourceWindow>,
    /// Power. `None` where there is no source.
    pub power: Option<PowerWindow>,
}

/// What one telemetry window measured of one model.
#[derive(Clone, Debug, Default)]
pub struct ModelFacts {
    /// The model's name.
    pub model: String,
    /// The bundle that served.
    pub digest: String,
    /// Time in the engine, per request.
    pub compute: Histogram,
    /// Time in the queue, per request.
    pub queue: Histogram,
    /// Requests that were accepted and have ended, with an answer or without.
    pub requests: u64,
    /// Of these, without an answer and by no fault of the client: a failure of the model or the worker,
    /// or too late.
    pub errors: u64,
    /// Of these, requests whose deadline passed first.
    pub late: u64,
    /// Requests turned away because the queue was full; none of the others.
    pub rejected: u64,
    /// Whether the worker started in this window.
    pub cold: bool,
    /// Proportional set size of the worker that serves it.
    pub pss_bytes: Option<u64>,
    /// How long the threads of the model's workers waited for a processor, together, microseconds.
    pub wait_us: Option<u64>,
    /// Times that its workers waited for a page from the storage.
    pub major_faults: Option<u64>,
    /// What its worker's control group has used, where it has one of its own.
    pub group: Option<GroupUsage>,
    /// What its requests looked like. `None` for a bundle without a reference.
    pub drift: Option<DriftFacts>,
}

/// What a worker's control group has used of memory; what the kernel does not tell is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupUsage {
    /// Memory in use now, cached file pages included.
    pub current_bytes: Option<u64>,
    /// The most that was in use.
    pub peak_bytes: Option<u64>,
    /// How often the group was slowed down because it was over its soft bound.
    pub high_events: Option<u64>,
    /// How often it reached its hard bound.
    pub max_events: Option<u64>,
    /// Workers that the kernel killed for want of memory.
    pub oom_kills: Option<u64>,
}

/// A step that went well.
#[derive(Clone, Debug, PartialEq)]
pub enum StepDone {
    /// Every file lies in the staging folder.
    Downloaded,
    /// The bundle is whole and lies in the store.
    Verified(BundleFacts),
    /// A worker process has loaded it.
    Loaded,
    /// Its self-test passed.
    SelfTested,
    /// Live requests are mirrored to it.
    ShadowStarted,
    /// It serves; the model before it stands by.
    Switched,
}

/// What the manifest of a verified bundle says, to be held against the offer and the device.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BundleFacts {
    /// The model's name.
    pub name: String,
    /// The human version.
    pub version: String,
    /// The order of versions.
    pub sequence: u64,
    /// `tract`, `ort` or `any`.
    pub runtime: String,
    /// The device class it was made for, or `any`.
    pub device_class: String,
    /// Bytes of all its files.
    pub size_bytes: u64,
    /// What it says the model will cost.
    pub predicted: Box<Predictions>,
    /// The most that it may agree with the original model, 0 to 1: the upper end of the stated interval.
    pub agreement_high: Option<f64>,
}

/// A step that went wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepFailure {
    /// What, where, which limit.
    pub reason: String,
    /// What to make of it.
    pub class: FailureClass,
}

/// What to make of a failed step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureClass {
    /// The network or a resource was in the way: the same step may work later.
    Transient,
    /// What allows the bundle cannot be seen now, by no fault of the bundle: asked again, ever more rarely, for as long
    /// as the offer stands.
    Withheld,
    /// What allows the bundle says no, which may be a moment's doing: asked again a few times.
    Doubtful,
    /// This attempt is over, but the same bundle offered again may be tried again.
    Attempt,
    /// The stored files are not the bundle any more: fetching it again may mend that.
    Damaged,
    /// The bundle itself is unfit for this device: never try it again.
    Bundle,
}

impl StepFailure {
    /// A failure that may be gone the next time.
    #[must_use]
    pub fn transient(reason: impl ToString) -> Self {
        Self { reason: reason.to_string(), class: FailureClass::Transient }
    }

    /// Something that the install waits for, however long that takes.
    #[must_use]
    pub fn withheld(reason: impl ToString) -> Self {
        Self { reason: reason.to_string(), class: FailureClass::Withheld }
    }

    /// A failure that ends this attempt.
    #[must_use]
    pub fn attempt(reason: impl ToString) -> Self {
        Self { reason: reason.to_string(), class: FailureClass::Attempt }
    }

    /// Files on the disk that have changed.
    #[must_use]
    pub fn damaged(reason: impl ToString) -> Self {
        Self { reason: reason.to_string(), class: FailureClass::Damaged }
    }

    /// A failure that the bundle will always have on this device.
    #[must_use]
    pub fn bundle(reason: impl ToString) -> Self {
        Self { reason: reason.to_string(), class: FailureClass::Bundle }
    }
}

/// What shadowing has seen so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ShadowFacts {
    /// Requests compared.
    pub requests: u64,
    /// Share of them where both models agree, 0 to 1.
    pub agreement: f64,
    /// The serving model's p95 over them.
    pub before_p95_us: Option<u64>,
    /// The candidate's p95 over them.
    pub after_p95_us: Option<u64>,
    /// Requests that the serving model answered and the candidate did not.
    pub failures: u64,
}

impl ShadowFacts {
    /// Requests that were shown to the candidate, whatever came of them.
    #[must_use]
    pub fn shown(&self) -> u64 {
        self.requests.saturating_add(self.failures)
    }
}
