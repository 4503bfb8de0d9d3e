//! A test facility: the agent stands still right after it journalled a chosen install state.
//!
//! Most states last for milliseconds, too short to kill the agent in one by watching the journal. A test
//! makes the file `STATE` in the folder `test.hold_dir`. As soon as that state is journalled and synced,
//! and before anything that follows from it, the driver makes the file `STATE.held` beside it and does
//! nothing else until `STATE` is gone, at most [`MAX_HOLD`]. Inference goes on meanwhile.
//!
//! Only builds with debug assertions have this module; packaged builds refuse the key as unknown.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::core::{InstallState, Record};

/// The longest hold: what a test forgot to end must not look like a hanging agent for ever.
pub const MAX_HOLD: Duration = Duration::from_secs(300);
/// How often a held driver looks whether it may go on.
const POLL: Duration = Duration::from_millis(10);

/// Where to hold, if anywhere.
#[derive(Debug, Default)]
pub struct Hold {
    folder: Option<PathBuf>,
}

impl Hold {
    /// Holds where files in `folder` say so; without one, nowhere.
    #[must_use]
    pub fn new(folder: Option<PathBuf>) -> Self {
        Self { folder }
    }

    /// Stands still if a test wants to see the agent with `record` as the journal's last one.
    pub fn after(&self, record: &Record) {
        let Some((folder, state)) = self.folder.as_ref().zip(state_of(record)) else {
            return;
        };
        let wanted = folder.join(&state);
        if !wanted.exists() {
            return;
        }
        let held = folder.join(format!("{state}.held"));
        if let Err(error) = fs::write(&held, "") {
            tracing::error!(%error, path = %held.display(), "a test's hold cannot be announced");
            return;
        }
        tracing::warn!(state, "held by a test");
        let deadline = Instant::now() + MAX_HOLD;
        while wanted.exists() {
            if Instant::now() >= deadline {
                tracing::error!(state, "a test's hold was not ended within MAX_HOLD");
                return;
            }
            std::thread::sleep(POLL);
        }
    }
}

/// The install state that a record journals, by its name in the journal.
fn state_of(record: &Record) -> Option<String> {
    let state = match record {
        Record::Offered { .. } => InstallState::Offered,
        Record::Install { state, .. } | Record::Resumed { state, .. } => *state,
        _ => return None,
    };
    let name = serde_json::to_value(state).ok()?;
    name.as_str().map(str::to_owned)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use super::*;

    fn record(state: InstallState) -> Record {
        let (model, reason) = ("m".to_owned(), None);
        Record::Install {
            model,
            install: 1,
            state,
            reason,
            block: false,
            size_bytes: None,
            baseline: None,
            predicted: None,
            trial: None,
        }
    }

    fn hold(dir: &Path) -> Hold {
        Hold::new(Some(dir.to_owned()))
    }

    #[test]
    fn a_wanted_state_is_announced_and_held_until_the_file_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let wanted = dir.path().join("switching");
        fs::write(&wanted, "").unwrap();
        std::thread::scope(|scope| {
            let held = scope.spawn(|| hold(dir.path()).after(&record(InstallState::Switching)));
            let deadline = Instant::now() + Duration::from_secs(20);
            while !dir.path().join("switching.held").exists() {
                assert!(Instant::now() < deadline, "the hold was never announced");
                std::thread::sleep(POLL);
            }
            assert!(!held.is_finished());
            fs::remove_file(&wanted).unwrap();
            held.join().unwrap();
        });
    }

    #[test]
    fn nothing_else_is_held() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("switching"), "").unwrap();
        // Each of these would stand still for MAX_HOLD.
        hold(dir.path()).after(&record(InstallState::Shadow));
        Hold::new(None).after(&record(InstallState::Switching));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
