//! Runs jobs, one at a time, on a thread of their own.

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::{fs, io};

use tokio::sync::Notify;

use super::offers::OfferFacts;
use super::plan::{JobRun, Model};
use super::store::{Job, Store};
use crate::error::CompressError;
use crate::pipeline::{self, CompressJob, OriginalJob, Progress};

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

/// The real one.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pipeline;

impl Compressor for Pipeline {
    fn compress(
        &self,
        job: &CompressJob,
        progress: &dyn Progress,
    ) -> Result<PathBuf, CompressError> {
        pipeline::compress(job, progress).map(|outcome| outcome.bundle_dir)
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
    pub(super) seed: u64,
    /// Set once the service is to end.
    pub(super) stop: AtomicBool,
    /// What the running job is doing, for people.
    pub(super) stage: Mutex<String>,
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
        match shop.store.next() {
            Ok(Some(job)) => shop.run(&job),
            Ok(None) => {
                if wake.recv().is_err() {
                    return;
                }
            }
            Err(error) => {
                tracing::error!(%error, "no next job; waiting for the next request");
                if wake.recv().is_err() {
                    return;
                }
            }
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

    /// Runs something that writes a bundle, and takes that bundle into the store. A panic is an error.
    pub(super) fn make(
        &self,
        out_dir: &Path,
        runtime: wire::Runtime,
        make: impl FnOnce() -> Result<PathBuf, CompressError>,
    ) -> Result<OfferFacts, String> {
        remove_if_there(out_dir).map_err(|error| format!("{}: {error}", out_dir.display()))?;
        let dir = catch_unwind(AssertUnwindSafe(make))
            .map_err(|panic| format!("the compressor panicked: {}", panic_text(panic.as_ref())))?
            .map_err(|error| error.to_string())?;
        let bundle = bundle::Bundle::open(&dir, &bundle::Limits::default())
            .map_err(|error| format!("the compressor wrote a bad bundle: {error}"))?;
        let bundle = bundle.move_into(&self.bundles).map_err(|error| error.to_string())?;
        Ok(OfferFacts::of(&bundle, runtime))
    }

    fn run(&self, job: &Job) {
        let spec = &job.spec;
        tracing::info!(job = job.id, model = spec.model, runtime = %spec.runtime, sequence = job.sequence, "job starts");
        let outcome = self.attempt(job);
        self.stage.lock().unwrap_or_else(PoisonError::into_inner).clear();
        if let Err(reason) = &outcome
            && self.stopped()
        {
            tracing::info!(job = job.id, reason, "job interrupted; it goes back to the queue");
            self.log(self.store.release(job.id));
            return;
        }
        match &outcome {
            Ok(facts) => tracing::info!(job = job.id, digest = facts.digest, "job done"),
            Err(reason) => tracing::warn!(job = job.id, reason, "job failed"),
        }
        self.log(self.store.finish(job.id, &outcome));
        self.outbox.notify_one();
    }

    fn attempt(&self, job: &Job) -> Result<OfferFacts, String> {
        let spec = &job.spec;
        let model = self.models.get(&spec.model).ok_or("the model is not served any more")?;
        if model.source_digest.to_string() != spec.source {
            return Err("the model's file has changed since the request".to_owned());
        }
        let run = JobRun {
            sequence: job.sequence,
            current_model: self.current_model(&spec.current)?,
            out_dir: self.work.join(format!("job-{}", job.id)),
        };
        let out_dir = run.out_dir.clone();
        let work = spec.compress_job(model, run, self.ort_library.clone(), self.seed);
        let facts = self.make(&out_dir, spec.runtime, || self.compressor.compress(&work, self))?;
        if facts.model != spec.model || facts.sequence != job.sequence {
            return Err(format!("the compressor wrote {} {} instead", facts.model, facts.sequence));
        }
        Ok(facts)
    }

    /// The model file that the device runs: its measurements mean nothing without it.
    fn current_model(&self, digest: &str) -> Result<PathBuf, String> {
        let digest: bundle::Digest =
            digest.parse().map_err(|error: bundle::DigestError| error.to_string())?;
        let path = self.bundles.join(digest.hex()).join(bundle::MODEL_FILE);
        if path.is_file() {
            return Ok(path);
        }
        Err(format!(
            "the device runs bundle {digest}, which this store does not hold, so that its measurements cannot be \
             compared with this host's; deploy the model through this service first"
        ))
    }

    fn log(&self, result: Result<(), super::store::StoreError>) {
        if let Err(error) = result {
            tracing::error!(%error, "the outcome of a job was not recorded; it runs again after a restart");
        }
    }
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
