//! Runs jobs, one at a time, on a thread of their own.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{fs, io};

use bundle::Bundle;
use tokio::sync::Notify;

use super::desk::Counters;
use super::offers::{OfferFacts, content};
use super::plan::{self, JobRun, JobSpec, Model};
use super::signing::{Signing, Unsigned};
use super::store::{Job, Lesson, MAX_TAKEN_BACK, Room, Shelf, Store, StoreError};
use crate::error::CompressError;
use crate::pipeline::{self, CompressJob, Goal, OriginalJob, Progress, Recall};

/// The first wait after the store failed.
const FIRST_RETRY: Duration = Duration::from_millis(100);
/// The longest wait after the store failed.
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// What the service asks to be done: the pipeline, or a stand-in for it.
pub trait Compressor: Send + Sync {
    /// Compresses, and returns the folder of the bundle.
    fn compress(
        &self,
        job: &CompressJob,
        progress: &dyn Progress,
    ) -> Result<PathBuf, CompressError>;
    /// Writes a bundle of the unmodified model, and returns its folder.
    fn bundle_original(
        &self,
        job: &OriginalJob,
        progress: &dyn Progress,
    ) -> Result<PathBuf, CompressError>;
}

/// The real one, which remembers what it saw of the last original.
#[derive(Debug, Default)]
pub struct Pipeline(Recall);

impl Compressor for Pipeline {
    fn compress(
        &self,
        job: &CompressJob,
        progress: &dyn Progress,
    ) -> Result<PathBuf, CompressError> {
        pipeline::compress_recalling(job, progress, &self.0).map(|outcome| outcome.bundle_dir)
    }

    fn bundle_original(
        &self,
        job: &OriginalJob,
        progress: &dyn Progress,
    ) -> Result<PathBuf, CompressError> {
        pipeline::bundle_original(job, progress).map(|outcome| outcome.bundle_dir)
    }
}

/// Everything a job needs besides itself.
pub(super) struct Workshop {
    pub(super) store: Arc<Store>,
    pub(super) compressor: Arc<dyn Compressor>,
    pub(super) models: BTreeMap<String, Model>,
    pub(super) bundles: PathBuf,
    pub(super) work: PathBuf,
    pub(super) ort_library: Option<PathBuf>,
    pub(super) confidence: Option<f64>,
    pub(super) seed: u64,
    /// How much the store may hold.
    pub(super) shelf: Shelf,
    /// Bundles just taken into the store that no row of it names yet: not to be collected.
    pub(super) fresh: Mutex<BTreeSet<String>>,
    pub(super) counters: Counters,
    /// Set once the service is to end.
    pub(super) stop: AtomicBool,
    /// What the running job is doing, for people.
    pub(super) stage: Mutex<String>,
    /// Makes bundles targets of the trust repository, where there is one.
    pub(super) signing: Option<Signing>,
    /// Woken when there may be something in the outbox.
    pub(super) outbox: Notify,
}

/// Wakes the thread that runs jobs.
#[derive(Debug, Clone)]
pub(super) struct Waker(pub(super) SyncSender<()>);

impl Waker {
    pub(super) fn wake(&self) {
        // Full means that it will wake anyway; closed means that it has ended.
        let _ = self.0.try_send(());
    }
}

/// Runs jobs until the service stops.
pub(super) fn run(shop: &Workshop, wake: &Receiver<()>) {
    while !shop.stopped() {
        match shop.insist(wake, "the next job", || shop.store.next()) {
            Some(Some(job)) => shop.run(&job, wake),
            Some(None) if wake.recv().is_ok() => {}
            _ => return,
        }
    }
}

impl Workshop {
    pub(super) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    pub(super) fn stage(&self) -> String {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Runs something that writes a bundle to `out_dir`, and opens that. A panic is an error.
    pub(super) fn make(
        out_dir: &Path,
        make: impl FnOnce() -> Result<PathBuf, CompressError>,
    ) -> Result<Bundle, String> {
        remove_if_there(out_dir).map_err(|error| format!("{}: {error}", out_dir.display()))?;
        let dir = catch_unwind(AssertUnwindSafe(make))
            .map_err(|panic| format!("the compressor panicked: {}", panic_text(panic.as_ref())))?
            .map_err(|error| error.to_string())?;
        Bundle::open(&dir, &bundle::Limits::default())
            .map_err(|error| format!("the compressor wrote a bad bundle: {error}"))
    }

    /// Takes a bundle into the store. It must be [`Self::settle`]d once a row of the store names it, or
    /// none ever will.
    pub(super) fn take_in(
        &self,
        bundle: Bundle,
        runtime: wire::Runtime,
    ) -> Result<OfferFacts, String> {
        let facts = OfferFacts::of(&bundle, runtime);
        self.fresh().insert(facts.hex().to_owned());
        let moved = bundle.move_into(&self.bundles).map_err(|error| error.to_string());
        let signed = moved.and_then(|bundle| Ok(self.sign(&bundle)?));
        if let Err(reason) = signed {
            self.settle(&facts);
            return Err(reason);
        }
        Ok(facts)
    }

    /// Makes a bundle one that devices may install, where that takes a signature.
    pub(super) fn sign(&self, bundle: &Bundle) -> Result<(), Unsigned> {
        match &self.signing {
            Some(signing) => signing.allow(bundle),
            None => Ok(()),
        }
    }

    /// The bundle is known to the store, or unknown to it for good.
    pub(super) fn settle(&self, facts: &OfferFacts) {
        self.fresh().remove(facts.hex());
    }

    /// Forgets what no device needs until one more bundle has room, or says which limit is reached.
    pub(super) fn make_room(&self) -> Result<(), String> {
        let fresh = self.fresh();
        let room = self.store.collect(&self.shelf, &fresh, &self.work);
        drop(fresh);
        self.empty_trash().map_err(|error| format!("{}: {error}", self.work.display()))?;
        match room.map_err(|error| error.to_string())? {
            Room::Free => Ok(()),
            Room::Full(reason) => Err(reason),
        }
    }

    /// Deletes what the store has forgotten, once it is allowed no more. Where that fails an empty folder of its name
    /// stays, for the next time.
    fn empty_trash(&self) -> io::Result<()> {
        let gone = super::store::trashed(&self.work)?;
        let forgotten = match &self.signing {
            Some(signing) => signing.forget(&gone),
            None => Ok(()),
        };
        for hex in &gone {
            let dir = self.work.join(format!("{}{hex}", super::store::TRASH));
            remove_if_there(&dir)?;
            if forgotten.is_err() {
                fs::create_dir(&dir)?;
            }
        }
        if let Err(error) = forgotten {
            tracing::warn!(%error, "forgotten bundles stay allowed");
        }
        Ok(())
    }

    fn fresh(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.fresh.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, job: &Job, wake: &Receiver<()>) {
        let spec = &job.spec;
        tracing::info!(job = job.id, model = spec.model, runtime = %spec.runtime, sequence = job.sequence, "job starts");
        let outcome = self.attempt(job);
        self.stage.lock().unwrap_or_else(PoisonError::into_inner).clear();
        if let Err(reason) = &outcome
            && self.stopped()
        {
            tracing::info!(job = job.id, reason, "job interrupted; it goes back to the queue");
            self.insist(wake, "an interrupted job", || self.store.release(job.id));
            return;
        }
        match &outcome {
            Ok(facts) => tracing::info!(job = job.id, digest = facts.digest, "job done"),
            Err(reason) => tracing::warn!(job = job.id, reason, "job failed"),
        }
        self.insist(wake, "the outcome of a job", || self.finish(job.id, &outcome));
        if let Ok(facts) = &outcome {
            self.settle(facts);
        }
        self.outbox.notify_one();
    }

    /// An outcome that cannot be stored as it is fails the job: what it says will not change.
    fn finish(&self, id: i64, outcome: &Result<OfferFacts, String>) -> Result<(), StoreError> {
        match self.store.finish(id, outcome) {
            Err(StoreError::Sql(error)) => Err(StoreError::Sql(error)),
            Err(other) => self.store.finish(id, &Err(other.to_string())),
            Ok(()) => Ok(()),
        }
    }

    /// Asks the store until it answers: as long as it does not, there is nothing else to do. Nothing
    /// once the service stops; what was running then runs again at the next start.
    fn insist<T>(
        &self,
        wake: &Receiver<()>,
        what: &str,
        ask: impl Fn() -> Result<T, StoreError>,
    ) -> Option<T> {
        let mut wait = FIRST_RETRY;
        loop {
            let error = match ask() {
                Ok(answer) => return Some(answer),
                Err(error) => error,
            };
            self.counters.store_errors.fetch_add(1, Ordering::Relaxed);
            tracing::error!(%error, ?wait, "the store fails over {what}; trying again");
            let woken = wake.recv_timeout(wait);
            if self.stopped() || woken == Err(RecvTimeoutError::Disconnected) {
                return None;
            }
            wait = wait.saturating_mul(2).min(LONGEST_RETRY);
        }
    }

    /// Compresses until the bundle is none that devices took back before.
    fn attempt(&self, job: &Job) -> Result<OfferFacts, String> {
        let spec = &job.spec;
        let model = self.model(spec)?;
        let current = self.current(&spec.current)?;
        self.make_room()?;
        let mut lessons = job.lessons.clone();
        loop {
            let goal = plan::stricter(&spec.goal, &lessons);
            let bundle = self
                .compress(job, model, &current, goal)
                .map_err(|reason| after_lessons(&lessons, &reason))?;
            let made = content(&bundle.manifest);
            if made == content(&current.manifest) {
                return Err(same_as_current(spec));
            }
            let Some(same) = lessons.iter().find(|lesson| lesson.content == made).cloned() else {
                return self.take_in(bundle, spec.runtime);
            };
            tracing::info!(
                job = job.id,
                digest = same.digest,
                "the same model again; asking for less"
            );
            lessons.push(Lesson { agreement: None, ..same });
            if lessons.len() >= MAX_TAKEN_BACK {
                return Err(after_lessons(&lessons, "the search ends at the same model again"));
            }
        }
    }

    fn compress(
        &self,
        job: &Job,
        model: &Model,
        current: &Bundle,
        goal: Goal,
    ) -> Result<Bundle, String> {
        let spec = &job.spec;
        let out_dir = self.work.join(format!("job-{}", job.id));
        let run = JobRun {
            goal,
            sequence: job.sequence,
            current_model: current.model_path(),
            out_dir: out_dir.clone(),
        };
        let work =
            spec.compress_job(model, run, self.ort_library.clone(), self.confidence, self.seed);
        let bundle = Self::make(&out_dir, || self.compressor.compress(&work, self))?;
        let manifest = &bundle.manifest;
        if manifest.name != spec.model || manifest.sequence != job.sequence {
            let (name, sequence) = (&manifest.name, manifest.sequence);
            return Err(format!("the compressor wrote {name} {sequence} instead"));
        }
        Ok(bundle)
    }

    /// The original, if it and its data are still what the request was about.
    fn model(&self, spec: &JobSpec) -> Result<&Model, String> {
        let model = self.models.get(&spec.model).ok_or("the model is not served any more")?;
        if model.source_digest.to_string() != spec.source {
            return Err("the model's file has changed since the request".to_owned());
        }
        if model.data_digest.to_string() != spec.data {
            return Err("the model's data have changed since the request".to_owned());
        }
        Ok(model)
    }

    /// The bundle that the device runs: its measurements mean nothing without it.
    fn current(&self, digest: &str) -> Result<Bundle, String> {
        let digest: bundle::Digest =
            digest.parse().map_err(|error: bundle::DigestError| error.to_string())?;
        let dir = self.bundles.join(digest.hex());
        if !dir.is_dir() {
            return Err(format!(
                "the device runs bundle {digest}, which this store does not hold, so that its measurements cannot be \
                 compared with this host's; deploy the model through this service first"
            ));
        }
        Bundle::open(&dir, &bundle::Limits::default()).map_err(|error| {
            format!("the device runs bundle {digest}, and the store's copy is damaged: {error}")
        })
    }
}

/// A reason, with what made the goal stricter than the request's.
fn after_lessons(lessons: &[Lesson], reason: &str) -> String {
    let Some(last) = lessons.last() else { return reason.to_owned() };
    format!(
        "with a goal made stricter because devices took back what was made before (the last one on {}: {}): {reason}",
        last.device, last.reason
    )
}

fn same_as_current(spec: &JobSpec) -> String {
    format!(
        "what meets the budgets by this host's reckoning ({}) is the model that the device runs already, and the \
         device says that it misses them",
        crate::search::goal_text(&spec.goal)
    )
}

impl Progress for Workshop {
    fn stage(&self, name: &str, _total: u64) {
        tracing::info!(stage = name, "compressing");
        name.clone_into(&mut self.stage.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn note(&self, text: &str) {
        tracing::info!("{text}");
    }

    fn cancelled(&self) -> bool {
        self.stopped()
    }
}

/// Deletes a folder or file that may not be there.
pub(super) fn remove_if_there(path: &Path) -> io::Result<()> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a message")
}
