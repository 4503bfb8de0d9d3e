//! How much, how many, how long.

use std::time::Duration;

/// Limits of one update. Reaching one is an error that names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The largest `N.root.json`, bytes.
    pub root_bytes: u64,
    /// The largest `timestamp.json`, bytes.
    pub timestamp_bytes: u64,
    /// The largest `N.snapshot.json`, bytes.
    pub snapshot_bytes: u64,
    /// The largest `N.targets.json`, bytes.
    pub targets_bytes: u64,
    /// The most new roots that one update follows; the next goes on from there.
    pub root_updates: u64,
    /// How fast a file must come.
    pub pace: Pace,
}

/// How fast a file must come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// The longest that one file may take.
    pub deadline: Duration,
    /// The fewest bytes a second, over all the time that a file has taken.
    pub min_bytes_per_s: u64,
    /// How long a file may take before that is looked at.
    pub grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            root_bytes: 256 << 10,
            timestamp_bytes: 16 << 10,
            snapshot_bytes: 64 << 10,
            targets_bytes: 4 << 20,
            root_updates: 256,
            pace: Pace::default(),
        }
    }
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(120),
            min_bytes_per_s: 64,
            grace: Duration::from_secs(20),
        }
    }
}
