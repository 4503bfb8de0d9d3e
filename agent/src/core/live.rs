//! What the core knows of a model that does not outlive the agent.

use std::collections::{BTreeMap, VecDeque};

use wire::{Cause, DriftTest, Histogram, ModelPhase};

use super::drift::Pool;
use super::event::{Millis, ShadowFacts};
use super::gauge::Gauge;
use super::retry::Tries;
use super::window::Hold;

/// How many digests with a refusal are remembered, so that a retained offer is refused aloud once.
const MAX_REFUSALS: usize = 16;

/// The volatile part of one model.
#[derive(Debug, Default)]
pub(super) struct Live {
    /// The bundle that the plane serves.
    pub serving: Option<String>,
    /// Why its worker is down, while it is.
    pub down: Option<String>,
    /// Failed attempts in a row to start it again.
    pub failed_restarts: u32,
    /// Bringing the active bundle to serve.
    pub activation: Activation,
    /// One gauge per budget, by its name on the wire.
    pub gauges: BTreeMap<&'static str, Gauge>,
    /// Windows too small to be evidence alone.
    pub pending: Evidence,
    /// Requests held against the bundle's reference, until they are enough for a test.
    pub drift: Pool,
    /// The last such test.
    pub drift_test: Option<DriftTest>,
    /// The last windows with evidence, for the baseline of the next install.
    pub recent: VecDeque<Evidence>,
    /// The last memory reading of the model's worker.
    pub pss_bytes: Option<u64>,
    /// The volatile part of the install under way.
    pub install: LiveInstall,
    /// Whether an install waits, after a restart, for the active bundle.
    pub resume_pending: bool,
    /// An offer that came after the switch of the one before it.
    pub next_offer: Option<wire::Offer>,
    /// Refused digests and why, the oldest first.
    pub refusals: VecDeque<(String, String)>,
    /// Since when each open request is open.
    pub requested: BTreeMap<&'static str, Millis>,
    /// How the last install ended, until something newer is to be said.
    pub outcome: Option<(ModelPhase, Option<String>)>,
}

impl Live {
    /// A bundle serves: whatever was wrong with the one before it is over.
    pub(super) fn serves(&mut self, digest: &str) {
        self.serving = Some(digest.to_owned());
        self.down = None;
        self.failed_restarts = 0;
        self.activation = Activation::default();
    }

    /// What was pooled under another limit, or before nobody watched, says nothing now.
    pub(super) fn forget_drift(&mut self) {
        self.drift = Pool::default();
        self.drift_test = None;
    }

    /// Remembers a refusal and says whether it is news.
    pub(super) fn refuse(&mut self, digest: &str, reason: &str) -> bool {
        let known = |(d, r): &(String, String)| d == digest && r == reason;
        if self.refusals.iter().any(known) {
            return false;
        }
        self.refusals.push_back((digest.to_owned(), reason.to_owned()));
        if self.refusals.len() > MAX_REFUSALS {
            self.refusals.pop_front();
        }
        true
    }
}

/// Bringing the active bundle to serve.
#[derive(Debug, Default)]
pub(super) struct Activation {
    /// The digest that the shell is working on.
    pub running: Option<String>,
    /// Failures in a row.
    pub failures: u32,
    /// When to try again.
    pub retry_at: Option<Millis>,
    /// Why it does not serve.
    pub reason: Option<String>,
    /// Whether the stored bundle itself is unfit, so that the same digest may be installed anew.
    pub broken: bool,
}

/// The volatile part of an install.
#[derive(Debug, Default)]
pub(super) struct LiveInstall {
    /// When it was accepted.
    pub since: Millis,
    /// When its present state began.
    pub state_since: Millis,
    /// What became of the present step so far.
    pub tries: Tries,
    /// When to try the present step again.
    pub retry_at: Option<Millis>,
    /// How it failed last.
    pub failure: Option<String>,
    /// Why its download waits.
    pub held: Option<Hold>,
    /// What shadowing has seen.
    pub shadow: ShadowFacts,
    /// What probation has seen.
    pub probation: Probation,
}

/// What probation has seen.
#[derive(Debug, Default)]
pub(super) struct Probation {
    /// Windows of any kind.
    pub windows: u32,
    /// Windows with enough requests and no outside cause.
    pub evidence: u32,
    /// Times in the latter.
    pub times: Histogram,
    /// Requests in all of them.
    pub requests: u64,
    /// Errors in all of them.
    pub errors: u64,
    /// Deaths of the worker.
    pub deaths: u32,
}

/// One or more windows added together until they are evidence.
#[derive(Clone, Debug)]
pub(super) struct Evidence {
    /// Times in the engine.
    pub compute: Histogram,
    /// Times in the queue.
    pub queue: Histogram,
    /// Requests answered.
    pub requests: u64,
    /// Requests failed.
    pub errors: u64,
    /// Requests turned away.
    pub rejected: u64,
    /// Whom slowness in them is attributed to.
    pub cause: Cause,
}

impl Default for Evidence {
    fn default() -> Self {
        Self {
            compute: Histogram::default(),
            queue: Histogram::default(),
            requests: 0,
            errors: 0,
            rejected: 0,
            cause: Cause::Model,
        }
    }
}
