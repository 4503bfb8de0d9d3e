//! The data plane: models in worker processes, served through the Open Inference Protocol.
//!
//! - One worker process per model ([`worker`]), spoken to over a socket pair ([`protocol`]). A
//!   worker that dies costs its in-flight requests an error and itself a restart; the agent and the
//!   other models do not notice.
//! - A model arrives as a *candidate* ([`Plane::load`]), is compared with golden outputs
//!   ([`Plane::self_test`]) and with the active model on live requests ([`Plane::shadow`]), and
//!   becomes active ([`Plane::serve`]). The model it replaces stands by until it is retired, so that
//!   [`Plane::rollback`] only turns a pointer.
//! - Requests are accepted against the model that is active when they arrive and are answered by
//!   it, however often the active model changes meanwhile.
//!
//! What this module does not do: decide. Which model is loaded, served or rolled back, and why, is
//! the core's business.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;
use tokio::time::Instant;
use wire::Histogram;

use crate::core::DriftFacts;
use crate::sys::Roots;
use crate::sys::cgroup::Usage;

pub use self::error::PlaneError;
#[cfg(test)]
pub(crate) use self::fake::{ABORT, config as fake_config};
pub use self::measure::{MeasurePlan, Measured, Memory};
pub use self::metrics::{BOUNDS, ModelCounts};
use self::registry::Registry;
use self::server::Servers;

pub mod batch;
mod buffers;
mod compare;
mod drift;
mod error;
#[cfg(test)]
mod fake;
mod frames;
pub mod groups;
mod instance;
mod measure;
mod metrics;
pub mod oip;
mod process;
pub mod protocol;
mod registry;
mod server;
mod shadow;
mod socket;
mod strings;
mod window;
pub mod worker;
mod write_timeout;

/// How the data plane is set up.
#[derive(Debug, Clone)]
pub struct PlaneConfig {
    /// The engine that every worker opens.
    pub engine: engine::EngineOptions,
    /// The program that is a worker.
    pub worker_program: PathBuf,
    /// Its arguments, usually `worker`.
    pub worker_args: Vec<String>,
    /// The most bytes of private memory that each worker may ask for.
    pub worker_memory_bytes: Option<u64>,
    /// Makes a control group for each worker, where they do not share the agent's.
    pub worker_groups: Option<Arc<groups::Groups>>,
    /// Where to serve HTTP; port 0 takes a free one.
    pub http: Option<SocketAddr>,
    /// The UNIX socket to serve HTTP on; a relative path is below `run_dir`.
    pub unix: Option<PathBuf>,
    /// How many requests may wait for one model.
    pub queue_depth: usize,
    /// When requests that wait for one model run together.
    pub batch: batch::BatchRules,
    /// The largest request body.
    pub max_request_bytes: usize,
    /// The most bytes that requests take together, as they came and as tensors.
    pub max_buffered_bytes: usize,
    /// How long a request may take from its arrival to its answer.
    pub request_deadline: Duration,
    /// How long one inference may take before its worker counts as hung; at least the deadline.
    pub run_limit: Duration,
    /// The least time between two requests of a model that are held against its reference.
    pub drift_sample_every: Duration,
    /// The folder for sockets, and the workers' working folder; made when missing.
    pub run_dir: PathBuf,
    /// Where the machine and the workers are read for `/metrics`.
    pub roots: Roots,
}

/// Names a loaded model that is not active yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct CandidateId(u64);

impl std::fmt::Display for CandidateId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "c{}", self.0)
    }
}

/// Where the plane is really listening.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoints {
    /// The TCP address.
    pub http: Option<SocketAddr>,
    /// The UNIX socket.
    pub unix: Option<PathBuf>,
}

/// A candidate beside the active model on the same live requests.
#[derive(Debug, Clone, Default)]
pub struct ShadowReport {
    /// Requests that both models answered.
    pub requests: u64,
    /// The share of them, 0 to 1, on which the two agree; 1 before the first.
    pub agreement: f64,
    /// The active model's compute time on them.
    pub before: Histogram,
    /// The candidate's compute time on them.
    pub after: Histogram,
    /// Live requests that were not mirrored because the candidate was behind, or gone.
    pub dropped: u64,
    /// Requests that the active model answered and the candidate failed.
    pub failures: u64,
}

/// What one model did since the last window was taken.
#[derive(Debug, Clone)]
pub struct ModelWindow {
    /// The model.
    pub model: String,
    /// The bundle that answered.
    pub digest: String,
    /// Time in the engine, per answered request.
    pub compute: Histogram,
    /// Time in the queue, per request that reached the engine.
    pub queue: Histogram,
    /// Requests that were accepted and have ended, the failed ones included.
    pub requests: u64,
    /// Requests that ended without an answer by no fault of the client.
    pub errors: u64,
    /// Of these, requests whose deadline passed first, which their clients may have set.
    pub late: u64,
    /// Requests that were turned away because the queue was full.
    pub rejected: u64,
    /// Whether a worker was started or became active within the window.
    pub cold: bool,
    /// What its worker's control group has used, where it has one of its own.
    pub group: Option<Usage>,
    /// What its requests looked like, in the cells of its reference; `None` for a bundle without one.
    pub drift: Option<DriftFacts>,
}

/// What happens to workers without being asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PlaneEvent {
    /// The active worker of a model ended.
    WorkerDied {
        /// The model.
        model: String,
        /// Its exit status or signal.
        reason: String,
    },
    /// It cannot be started again; that is tried on and on, with growing waits.
    RestartFailed {
        /// The model.
        model: String,
        /// Why.
        reason: String,
    },
    /// It is running again.
    WorkerRestarted {
        /// The model.
        model: String,
    },
    /// A candidate's worker ended; it is not restarted.
    CandidateDied {
        /// The candidate.
        candidate: CandidateId,
        /// The model.
        model: String,
        /// Its exit status or signal.
        reason: String,
    },
}

/// The data plane. Clones are handles to one plane; it ends with [`Plane::drain`] or the last
/// handle.
#[derive(Debug, Clone)]
pub struct Plane {
    registry: Arc<Registry>,
    servers: Arc<Servers>,
}

impl Plane {
    /// Starts to listen. No model is served yet: readiness says so.
    ///
    /// # Errors
    /// An address that cannot be listened on, or a run folder that cannot be made.
    pub async fn start(mut cfg: PlaneConfig) -> Result<Self, PlaneError> {
        std::fs::create_dir_all(&cfg.run_dir)
            .and_then(|()| cfg.run_dir.canonicalize())
            .map(|absolute| cfg.run_dir = absolute)
            .map_err(|source| PlaneError::RunDir { path: cfg.run_dir.clone(), source })?;
        let registry = Arc::new(Registry::new(cfg.clone()));
        let servers = Servers::start(&cfg, oip::router(registry.clone())).await?;
        Ok(Self { registry, servers: Arc::new(servers) })
    }

    /// Where the plane is really listening.
    #[must_use]
    pub fn endpoints(&self) -> Endpoints {
        self.servers.endpoints()
    }

    /// Loads a bundle's model into a worker of its own, as a candidate.
    ///
    /// # Errors
    /// The worker cannot be started, the engine refuses the model, or the model's inputs and
    /// outputs are not those of the manifest.
    pub async fn load(
        &self,
        name: &str,
        digest: &str,
        bundle: &bundle::Bundle,
    ) -> Result<CandidateId, PlaneError> {
        self.registry.load(name, digest, bundle).await
    }

    /// Runs the golden cases on a candidate.
    ///
    /// # Errors
    /// The first output that is not within the tolerance, with its values.
    pub async fn self_test(
        &self,
        candidate: CandidateId,
        test: &bundle::SelfTest,
    ) -> Result<(), PlaneError> {
        self.registry.self_test(candidate, test).await
    }

    /// Makes a candidate the active model. Requests that the previous one accepted are answered by
    /// it; it stands by until [`Plane::retire_standby`].
    ///
    /// # Errors
    /// No such candidate, or its worker is gone; the active model stays.
    pub async fn serve(&self, candidate: CandidateId) -> Result<(), PlaneError> {
        self.registry.serve(candidate)
    }

    /// Copies live requests to a candidate and compares, until it is served or discarded.
    ///
    /// # Errors
    /// No such candidate, or no active model to compare it with.
    pub async fn shadow(&self, candidate: CandidateId) -> Result<(), PlaneError> {
        self.registry.shadow(candidate)
    }

    /// What the comparison has found so far; empty for a candidate that is not known.
    #[must_use]
    pub fn shadow_report(&self, candidate: CandidateId) -> ShadowReport {
        self.registry.shadow_report(candidate)
    }

    /// Makes the model that stands by the active one again, and ends the one it replaces.
    ///
    /// # Errors
    /// Nothing stands by, or its worker is down.
    pub async fn rollback(&self, name: &str) -> Result<(), PlaneError> {
        self.registry.rollback(name)
    }

    /// Measures a bundle in a worker of its own, last in line for the processor. Dropping what this gives ends
    /// that worker.
    ///
    /// # Errors
    /// As [`Plane::load`]; or an inference failed, or the worker ended.
    pub async fn measure(
        &self,
        name: &str,
        bundle: &bundle::Bundle,
        plan: &MeasurePlan,
    ) -> Result<Measured, PlaneError> {
        measure::measure(&self.registry, name, bundle, plan).await
    }

    /// Ends a candidate's worker. An unknown candidate is ended already.
    pub async fn discard(&self, candidate: CandidateId) {
        self.registry.discard(candidate).await;
    }

    /// Ends the worker of the model that stands by, if there is one.
    pub async fn retire_standby(&self, name: &str) {
        self.registry.retire_standby(name).await;
    }

    /// Whether the active model of that name has a running worker.
    #[must_use]
    pub fn is_up(&self, name: &str) -> bool {
        self.registry.active(name).is_some_and(|instance| instance.down().is_none())
    }

    /// What each model did since the last call: one window per model and digest that is active or
    /// has answered anything since.
    #[must_use]
    pub fn take_window(&self) -> Vec<ModelWindow> {
        self.registry.take_window()
    }

    /// What each served model did since it was loaded, as `/metrics` has it.
    #[must_use]
    pub fn counts(&self) -> Vec<ModelCounts> {
        metrics::counts(&self.registry)
    }

    /// What is served, standing by and loaded, for people.
    #[must_use]
    pub fn status(&self) -> serde_json::Value {
        self.registry.status(&self.endpoints())
    }

    /// Stops to accept, answers what was accepted, and ends the workers; what is not answered by
    /// then is dropped at the deadline.
    pub async fn drain(&self, deadline: Duration) {
        let end = Instant::now() + deadline;
        self.registry.start_draining();
        self.servers.drain(end).await;
        self.registry.drain(end).await;
    }

    /// The model and process of every worker that serves, none of those that stand by or are being tried.
    #[must_use]
    pub fn serving_pids(&self) -> Vec<(String, u32)> {
        self.registry.serving_pids()
    }

    /// The model and process of every running worker.
    #[must_use]
    pub fn worker_pids(&self) -> Vec<(String, u32)> {
        self.registry.worker_pids()
    }

    /// The active models whose part of the plane has ended by a fault of its own.
    #[must_use]
    pub fn wedged(&self) -> Vec<String> {
        self.registry.wedged()
    }

    /// What happens to workers from now on. A receiver that lags loses the oldest events.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<PlaneEvent> {
        self.registry.events()
    }
}

#[cfg(test)]
mod tests;
