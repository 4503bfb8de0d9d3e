//! Why the loop could not be run.

use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use wire::InstallOutcome;

use crate::broker::BrokerError;
use crate::client::RequestError;
use crate::npz::NpzError;
use crate::process::SpawnError;
use crate::profiles::ProfileError;
use crate::watcher::WatchError;

/// Why the loop could not be run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum StackError {
    #[error(transparent)]
    Broker(#[from] BrokerError),
    #[error(transparent)]
    Watch(#[from] WatchError),
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    #[error(transparent)]
    Profile(#[from] ProfileError),
    #[error(transparent)]
    Data(#[from] NpzError),
    #[error(transparent)]
    Topic(#[from] wire::TopicError),
    #[error(transparent)]
    Request(#[from] RequestError),
    /// A file that is needed is not there.
    #[error("{what} is missing: {} (fetch it with `cargo xtask assets`, or build it with `cargo xtask demo`)", path.display())]
    Missing { what: &'static str, path: PathBuf },
    /// A file cannot be read or written.
    #[error("{what}: {source}")]
    Io { what: String, source: std::io::Error },
    /// The agent's configuration cannot be written down.
    #[error("the agent's configuration: {0}")]
    Config(String),
    /// A part says no.
    #[error("{what} was refused: {why}")]
    Refused { what: String, why: String },
    /// Something did not happen in time.
    #[error(
        "waited {:.1} s in vain for {what}\n--- end of the agent's log\n{agent_log}\n--- end of the service's log\n{service_log}",
        patience.as_secs_f64()
    )]
    Waited { what: String, patience: Duration, agent_log: String, service_log: String },
    /// A part ended that ought to run.
    #[error("{name} ended ({status}) while waiting for {what}\n--- end of {}\n{tail}", log.display())]
    Ended { name: String, status: ExitStatus, what: String, log: PathBuf, tail: String },
    /// An install ended without the new model in charge.
    #[error("{digest} was not installed but {outcome}: {reason}")]
    NotInstalled { digest: String, outcome: InstallOutcome, reason: String },
    /// Ctrl-C.
    #[error("cancelled")]
    Cancelled,
}

impl StackError {
    pub(crate) fn io(what: impl std::fmt::Display) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.to_string();
        move |source| Self::Io { what, source }
    }
}
