//! What a device may install: The Update Framework (TUF), on the device and on its owner's host.
//!
//! The only crate that knows `tough`, and with it a runtime for async code, which stays inside: every function here
//! blocks. Invariants:
//! - [`Client::refresh`] performs the client workflow of the specification, section 5: root after root, timestamp,
//!   snapshot, targets. Signatures, thresholds, versions, lengths and hashes are `tough`'s; what time it is, what is
//!   kept between runs and how long a download may take are decided here;
//! - what a device remembers lies in one file that is replaced as a whole, so that no crash leaves half of it;
//! - the host writes what is named by nobody yet first, and `timestamp.json`, which names it, last;
//! - a private key is written once, with mode 0600, and never written over.
//!
//! `docs/trust.md` says what is promised and what is not. Source: <https://theupdateframework.github.io/specification/>,
//! version 1.0.34.

mod client;
mod error;
mod fetch;
mod file;
mod host;
mod keys;
mod limits;
mod runtime;
mod state;
mod target;
mod time;
mod transport;

pub use client::{Client, Trusted, check_root, look};
pub use error::{Check, Outlook, TrustError};
pub use fetch::{Fetch, FetchError, Folder};
pub use host::{
    Current, Days, Edit, Host, Init, MAX_REMOVED, MAX_TARGETS, Made, PENDING, Pending, RoleFacts,
    Signing, Written, sign_root,
};
pub use keys::{KeyFile, PublicKey};
pub use limits::{Limits, Pace};
pub use target::{Facts, TARGET_KEY, Target, Wanted, target_name};
pub use time::{CLOCK_SET_S, Expiry};

/// What this crate's functions return.
pub type Result<T, E = TrustError> = std::result::Result<T, E>;

/// The roles whose keys the root names.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Names the keys of all four.
    Root,
    /// Names what may be installed.
    Targets,
    /// Names the version of the targets.
    Snapshot,
    /// Names the version of the snapshot, and is short-lived.
    Timestamp,
}

impl Role {
    /// All four.
    pub const ALL: [Self; 4] = [Self::Root, Self::Targets, Self::Snapshot, Self::Timestamp];

    /// Its name in metadata.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Targets => "targets",
            Self::Snapshot => "snapshot",
            Self::Timestamp => "timestamp",
        }
    }

    pub(crate) fn kind(self) -> tough::schema::RoleType {
        match self {
            Self::Root => tough::schema::RoleType::Root,
            Self::Targets => tough::schema::RoleType::Targets,
            Self::Snapshot => tough::schema::RoleType::Snapshot,
            Self::Timestamp => tough::schema::RoleType::Timestamp,
        }
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let found = Self::ALL.into_iter().find(|role| role.name() == text);
        found.ok_or_else(|| {
            format!("{text:?} is no role: there are root, targets, snapshot and timestamp")
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
