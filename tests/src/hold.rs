//! Stopping the agent in an install state, by its `test.hold_dir`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use edge_sim::live::StackOptions;

use crate::{configure, until};

/// The folder in which an agent is told where to stand still.
pub struct Hold {
    folder: PathBuf,
}

impl Hold {
    /// Makes the folder and tells the agent of it.
    ///
    /// # Panics
    /// When the folder cannot be made.
    #[must_use]
    pub fn configure(options: &mut StackOptions, folder: &Path) -> Self {
        fs::create_dir_all(folder).expect("a folder for holds");
        configure(options, &format!("[test]\nhold_dir = {folder:?}"));
        Self { folder: folder.to_owned() }
    }

    /// From now on the agent stands still once it has journalled `state`.
    ///
    /// # Panics
    /// When the file cannot be made.
    pub fn arm(&self, state: &str) {
        fs::write(self.folder.join(state), "").expect("a file in the folder of holds");
    }

    /// Waits until the agent stands still in `state`.
    ///
    /// # Panics
    /// When it does not within `patience`.
    pub fn wait(&self, state: &str, patience: Duration) {
        let held = self.folder.join(format!("{state}.held"));
        until(&format!("the agent to stand still in {state}"), patience, || {
            held.exists().then_some(())
        });
    }

    /// No agent is held in `state` any more.
    ///
    /// # Panics
    /// When it was not armed, or no agent came there.
    pub fn disarm(&self, state: &str) {
        fs::remove_file(self.folder.join(state)).expect("an armed hold");
        fs::remove_file(self.folder.join(format!("{state}.held"))).expect("a hold that was hit");
    }
}
