//! Shows a candidate the live requests, and compares it with the active model.
//!
//! The active model's driver offers each answered request without waiting; what the candidate
//! cannot keep up with is dropped and counted. The candidate answers one request at a time. On a
//! board with few cores its inferences do compete with the live ones for the processor; at most one
//! runs at any time.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;

use super::compare::agreement;
use super::instance::{Answer, Instance, JobError, Traffic};
use super::protocol::NamedTensors;
use super::window::micros;
use super::{CandidateId, ShadowReport};

/// How many live requests may wait for the candidate.
pub(super) const SHADOW_QUEUE: usize = 8;

/// Where an instance's answered requests are copied to, if anywhere.
#[derive(Debug, Clone, Default)]
pub(super) struct Mirror(Arc<Mutex<Option<Target>>>);

#[derive(Debug)]
struct Target {
    candidate: CandidateId,
    queue: mpsc::Sender<Pair>,
    tally: Tally,
}

/// A live request and the active model's answer to it.
#[derive(Debug)]
struct Pair {
    inputs: Arc<NamedTensors>,
    answer: Answer,
}

/// What the comparison has found so far.
#[derive(Debug, Clone, Default)]
pub(super) struct Tally(Arc<Mutex<Sums>>);

#[derive(Debug, Default)]
struct Sums {
    report: ShadowReport,
    agreement: f64,
}

impl Mirror {
    /// Copies from now on to `candidate`, and to nothing else.
    pub(super) fn attach(
        &self,
        id: CandidateId,
        candidate: Arc<Instance>,
        tally: Tally,
        limit: Duration,
    ) {
        let (queue, pairs) = mpsc::channel(SHADOW_QUEUE);
        *self.lock() = Some(Target { candidate: id, queue, tally: tally.clone() });
        tokio::spawn(compare_all(candidate, pairs, tally, limit));
    }

    /// Copies nothing any more.
    pub(super) fn detach(&self) {
        *self.lock() = None;
    }

    /// Copies nothing any more to `candidate`.
    pub(super) fn detach_from(&self, candidate: CandidateId) {
        let mut target = self.lock();
        if target.as_ref().is_some_and(|t| t.candidate == candidate) {
            *target = None;
        }
    }

    /// Whether anything is copied.
    pub(super) fn is_attached(&self) -> bool {
        self.lock().is_some()
    }

    /// Copies one answered request, unless the candidate is behind.
    pub(super) fn offer(&self, inputs: &Arc<NamedTensors>, answer: &Answer) {
        let target = self.lock();
        let Some(target) = target.as_ref() else {
            return;
        };
        let pair = Pair { inputs: inputs.clone(), answer: answer.clone() };
        if target.queue.try_send(pair).is_err() {
            target.tally.missed();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Target>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tally {
    pub(super) fn report(&self) -> ShadowReport {
        let sums = self.lock();
        let mut report = sums.report.clone();
        // Exact far beyond any number of requests.
        #[allow(clippy::cast_precision_loss)]
        let requests = report.requests as f64;
        report.agreement = if report.requests == 0 { 1.0 } else { sums.agreement / requests };
        report
    }

    fn compared(&self, before: Duration, after: Duration, agreement: f64) {
        let mut sums = self.lock();
        sums.report.requests += 1;
        sums.report.before.record(micros(before));
        sums.report.after.record(micros(after));
        sums.agreement += agreement;
    }

    fn failed(&self) {
        self.lock().report.failures += 1;
    }

    fn missed(&self) {
        self.lock().report.dropped += 1;
    }

    fn lock(&self) -> MutexGuard<'_, Sums> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends when the mirror is detached.
async fn compare_all(
    candidate: Arc<Instance>,
    mut pairs: mpsc::Receiver<Pair>,
    tally: Tally,
    limit: Duration,
) {
    while let Some(Pair { inputs, answer }) = pairs.recv().await {
        match candidate.submit(inputs, Traffic::Internal, limit).await {
            Ok(after) => tally.compared(
                answer.compute,
                after.compute,
                agreement(&answer.outputs, &after.outputs),
            ),
            // Nobody was asked: that the worker is gone is told by itself.
            Err(JobError::Down(_) | JobError::Retired) => tally.missed(),
            Err(error) => {
                tracing::debug!(model = %candidate.identity.model, %error, "shadow request failed");
                tally.failed();
            }
        }
    }
}
