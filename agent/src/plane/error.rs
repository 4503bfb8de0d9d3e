//! Why the data plane could not do something.

use std::io;
use std::path::PathBuf;

use super::CandidateId;

/// Why the data plane could not do something.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlaneError {
    /// An address cannot be listened on.
    #[error("cannot serve on {address}: {source}")]
    Bind {
        /// The address or socket path.
        address: String,
        /// The system's reason.
        source: io::Error,
    },
    /// A folder that the plane needs cannot be made.
    #[error("cannot create {path}: {source}")]
    RunDir {
        /// The folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The worker program cannot be started.
    #[error("cannot start the worker {program}: {source}")]
    Spawn {
        /// The program.
        program: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// There are already as many worker processes as allowed.
    #[error("{limit} worker processes are running, which is MAX_WORKERS")]
    TooManyWorkers {
        /// The limit.
        limit: usize,
    },
    /// The engine refuses the model.
    #[error("model `{model}` cannot be loaded: {reason}")]
    Load {
        /// The model.
        model: String,
        /// What the engine said.
        reason: String,
    },
    /// The model was not loaded, and that says nothing about it: the engine cannot be opened, the
    /// worker died or took too long.
    #[error("model `{model}` was not loaded: {reason}")]
    Unloaded {
        /// The model.
        model: String,
        /// What was in the way.
        reason: String,
    },
    /// What the bundle's manifest says of the model and what the engine found differ.
    #[error("model `{model}` is not what its manifest says: {reason}")]
    Interface {
        /// The model.
        model: String,
        /// The difference.
        reason: String,
    },
    /// No such candidate: it was never loaded, or it was served or discarded already.
    #[error("there is no candidate {0}")]
    UnknownCandidate(CandidateId),
    /// No model of this name is served.
    #[error("no model `{0}` is being served")]
    NotServing(String),
    /// There is nothing to roll back to.
    #[error("model `{0}` has no previous version standing by")]
    NoStandby(String),
    /// The candidate did not reproduce its golden outputs.
    #[error("self-test: {0}")]
    SelfTest(String),
    /// The self-test came to no end: its worker died or took too long.
    #[error("the self-test came to no end: {0}")]
    Untested(String),
    /// An inference that was to be timed gave nothing.
    #[error("inference {number}: {reason}")]
    Measure {
        /// Which in a row, the warm-up counted.
        number: u64,
        /// What was in the way.
        reason: String,
    },
    /// The candidate's worker is gone.
    #[error("the worker of model `{model}` is not running: {reason}")]
    WorkerGone {
        /// The model.
        model: String,
        /// How it ended.
        reason: String,
    },
    /// The plane is being drained.
    #[error("the data plane is shutting down")]
    Draining,
}
