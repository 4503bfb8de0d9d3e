//! What an instance counts between two telemetry windows.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use wire::Histogram;

use super::ModelWindow;

/// The counters of one instance. Shared by its request handlers and its worker's driver.
#[derive(Debug, Default)]
pub(super) struct Stats(Mutex<Counts>);

/// What an instance did since it was made.
#[derive(Debug, Clone, Default)]
pub(super) struct Totals {
    pub(super) compute: Histogram,
    pub(super) queue: Histogram,
    pub(super) requests: u64,
    pub(super) errors: u64,
    pub(super) rejected: u64,
    /// Runs of the engine; fewer than requests where they are joined.
    pub(super) runs: u64,
}

impl Totals {
    /// Adds what a window counted.
    fn add(&mut self, window: &Counts) {
        self.compute.merge(&window.compute);
        self.queue.merge(&window.queue);
        self.requests += window.requests;
        self.errors += window.errors;
        self.rejected += window.rejected;
        self.runs += window.runs;
    }
}

#[derive(Debug, Default)]
struct Counts {
    compute: Histogram,
    queue: Histogram,
    requests: u64,
    errors: u64,
    late: u64,
    rejected: u64,
    runs: u64,
    cold: bool,
    /// Of the windows that were taken.
    before: Totals,
}

impl Stats {
    /// The engine finished a live request, whether or not anybody still waits for it.
    pub(super) fn computed(&self, compute: Duration, queued: Duration) {
        let mut counts = self.lock();
        counts.compute.record(micros(compute));
        counts.queue.record(micros(queued));
    }

    /// The engine ran once, for one live request or several that were joined.
    pub(super) fn executed(&self) {
        self.lock().runs += 1;
    }

    /// A request ended with an answer, or by the client's own fault.
    pub(super) fn answered(&self) {
        self.lock().requests += 1;
    }

    /// A request ended without an answer.
    pub(super) fn failed(&self) {
        let mut counts = self.lock();
        counts.requests += 1;
        counts.errors += 1;
    }

    /// A request ended without an answer because its deadline had passed.
    pub(super) fn late(&self) {
        let mut counts = self.lock();
        counts.requests += 1;
        counts.errors += 1;
        counts.late += 1;
    }

    /// A request was turned away.
    pub(super) fn rejected(&self) {
        self.lock().rejected += 1;
    }

    /// The worker was started, or the instance became active, within this window.
    pub(super) fn cold(&self) {
        self.lock().cold = true;
    }

    pub(super) fn take(&self, model: &str, digest: &str) -> ModelWindow {
        let mut held = self.lock();
        let mut counts = std::mem::take(&mut *held);
        let mut before = std::mem::take(&mut counts.before);
        before.add(&counts);
        held.before = before;
        drop(held);
        ModelWindow {
            model: model.to_owned(),
            digest: digest.to_owned(),
            compute: counts.compute,
            queue: counts.queue,
            requests: counts.requests,
            errors: counts.errors,
            late: counts.late,
            rejected: counts.rejected,
            cold: counts.cold,
            group: None,
            drift: None,
        }
    }

    /// Everything since the beginning, the window that is open included.
    pub(super) fn totals(&self) -> Totals {
        let counts = self.lock();
        let mut totals = counts.before.clone();
        totals.add(&counts);
        totals
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
