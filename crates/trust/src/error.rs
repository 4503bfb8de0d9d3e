//! Why something is not trusted.

use std::error::Error as _;
use std::fmt;
use std::path::{Path, PathBuf};

use tough::error::Error as Tough;

/// Which check an update did not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// Too few valid signatures of the keys that the root names for the role.
    Signature,
    /// Something older than what the device has seen.
    Rollback,
    /// Expired: possibly an old state that is shown again.
    Freeze,
    /// Files that do not belong together: another version or hash than the file before it names.
    Mismatch,
    /// No metadata, or not of the form that the specification gives.
    Format,
    /// More bytes than a limit allows.
    EndlessData,
    /// Fewer bytes a second than a limit asks for, or none in time.
    SlowRetrieval,
    /// More new roots than one update may follow.
    RootUpdates,
    /// Targets that another role is to name, which this version does not follow.
    Delegation,
    /// The bundle is no target.
    Target,
    /// The bundle is a target, for other classes of device.
    DeviceClass,
    /// The bundle is a target of another model or sequence.
    Facts,
    /// The bundle's digest or length is not the target's.
    Content,
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Signature => "signature",
            Self::Rollback => "rollback",
            Self::Freeze => "freeze",
            Self::Mismatch => "mix-and-match",
            Self::Format => "format",
            Self::EndlessData => "endless data",
            Self::SlowRetrieval => "slow retrieval",
            Self::RootUpdates => "root updates",
            Self::Delegation => "delegation",
            Self::Target => "target",
            Self::DeviceClass => "device class",
            Self::Facts => "target facts",
            Self::Content => "target content",
        })
    }
}

/// Why something is not trusted, or could not be done.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The root that the device or the host is given is none.
    #[error("the root metadata cannot be used: {0}")]
    Root(String),
    /// A file of the repository could not be had.
    #[error("{name} cannot be fetched: {reason}")]
    Fetch {
        /// The file.
        name: String,
        /// Why.
        reason: String,
    },
    /// A check did not pass.
    #[error("TUF check \"{check}\" failed: {reason}")]
    Refused {
        /// Which.
        check: Check,
        /// What was wrong.
        reason: String,
    },
    /// A file of this machine.
    #[error("cannot {doing} {}: {source}", path.display())]
    File {
        /// What was tried.
        doing: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A key file that is none.
    #[error("{}: {reason}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A repository that cannot be changed as asked.
    #[error("{0}")]
    Host(String),
}

/// What asking again for the same may bring. `docs/trust.md` has the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outlook {
    /// The network's or the disk's doing: it may work a moment later.
    Passing,
    /// What answers is not what the owner keeps in date: an owner, a mirror or a gateway that wants a login first can
    /// take any time to change that, and then the same is allowed.
    Withheld,
    /// For good as a rule; but the moment in which a root is published, and a mirror behind another, look the same.
    Doubtful,
    /// What is signed says no: it takes another target, another offer or another root.
    Lasting,
}

impl Check {
    /// What asking again may bring where this check did not pass.
    #[must_use]
    pub fn outlook(self) -> Outlook {
        match self {
            Self::SlowRetrieval | Self::RootUpdates => Outlook::Passing,
            Self::Freeze | Self::Mismatch | Self::Format | Self::EndlessData => Outlook::Withheld,
            Self::Signature | Self::Rollback | Self::Target => Outlook::Doubtful,
            Self::Delegation | Self::DeviceClass | Self::Facts | Self::Content => Outlook::Lasting,
        }
    }
}

impl TrustError {
    /// What asking again for the same may bring.
    #[must_use]
    pub fn outlook(&self) -> Outlook {
        match self {
            Self::Fetch { .. } | Self::File { .. } => Outlook::Passing,
            Self::Refused { check, .. } => check.outlook(),
            Self::Root(_) | Self::Key { .. } | Self::Host(_) => Outlook::Lasting,
        }
    }

    /// The check that did not pass.
    #[must_use]
    pub fn check(&self) -> Option<Check> {
        match self {
            Self::Refused { check, .. } => Some(*check),
            _ => None,
        }
    }

    pub(crate) fn refused(check: Check, reason: impl Into<String>) -> Self {
        Self::Refused { check, reason: reason.into() }
    }

    pub(crate) fn file(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { doing, path, source }
    }

    /// What `tough` found wrong.
    pub(crate) fn of(error: &Tough) -> Self {
        let check = match error {
            Tough::VerifyMetadata { .. } | Tough::VerifyRoleMetadata { .. } => Check::Signature,
            Tough::VerifyTrustedMetadata { .. } | Tough::ParseTrustedMetadata { .. } => {
                return Self::Root(said(error));
            }
            Tough::OlderMetadata { .. }
            | Tough::OlderSnapshotInTimestamp { .. }
            | Tough::SnapshotRoleMissing { .. }
            | Tough::SnapshotRoleRollback { .. } => Check::Rollback,
            Tough::VersionMismatch { .. } => Check::Mismatch,
            Tough::MaxUpdatesExceeded { .. } => Check::RootUpdates,
            Tough::ExpiredMetadata { .. } => Check::Freeze,
            Tough::Transport { source, .. } => {
                let cause = source.source().and_then(|cause| cause.downcast_ref::<Tough>());
                match cause {
                    Some(Tough::HashMismatch { .. }) => Check::Mismatch,
                    Some(Tough::MaxSizeExceeded { .. }) => Check::EndlessData,
                    _ => {
                        return Self::Fetch { name: source.url().to_owned(), reason: said(error) };
                    }
                }
            }
            Tough::DatastoreCreate { path, .. }
            | Tough::DatastoreOpen { path, .. }
            | Tough::DatastoreRemove { path, .. } => {
                let source = std::io::Error::other(said(error));
                return Self::File { doing: "use", path: path.clone(), source };
            }
            _ => Check::Format,
        };
        Self::refused(check, said(error))
    }
}

/// An error and its causes, each said once.
fn said(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let more = next.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = next.source();
    }
    text
}
