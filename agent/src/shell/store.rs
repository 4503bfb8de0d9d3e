//! Bundles on disk: staged, stored, collected.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use bundle::{Bundle, BundleError, Digest, Limits};

use super::state_dir::{PathError, StateDir};
use crate::core::StepFailure;

/// Where bundles lie.
#[derive(Clone, Debug)]
pub struct Store {
    store: PathBuf,
    staging: PathBuf,
    limits: Limits,
    /// Why nothing is to change, where that is so.
    frozen: Option<String>,
}

impl Store {
    /// The bundles of a state directory, with a limit on the size of each.
    #[must_use]
    pub fn new(state: &StateDir, max_bundle_bytes: u64) -> Self {
        let defaults = Limits::default();
        let limits = Limits {
            total_bytes: max_bundle_bytes.min(defaults.total_bytes),
            model_bytes: max_bundle_bytes.min(defaults.model_bytes),
            ..defaults
        };
        let frozen = state.volatile().map(str::to_owned);
        Self { store: state.store(), staging: state.staging(), limits, frozen }
    }

    /// The limits that every bundle is held to.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Whether bundles can be stored.
    ///
    /// # Errors
    /// The disk took nothing when the agent started, so that what was installed now would be lost with it.
    pub fn check_writable(&self) -> Result<(), StepFailure> {
        let refused = |why: &String| {
            StepFailure::withheld(format!(
                "nothing is installed while the state is volatile: {why}"
            ))
        };
        self.frozen.as_ref().map_or(Ok(()), |why| Err(refused(why)))
    }

    /// Where a bundle is put together.
    #[must_use]
    pub fn staged(&self, digest: &Digest) -> PathBuf {
        self.staging.join(digest.hex())
    }

    /// Where a bundle lies once it is whole.
    #[must_use]
    pub fn stored(&self, digest: &Digest) -> PathBuf {
        self.store.join(digest.hex())
    }

    /// Whether a bundle of that digest is in the store. Opening it says whether it is whole.
    #[must_use]
    pub fn has(&self, digest: &Digest) -> bool {
        self.store.join(digest.hex()).is_dir()
    }

    /// Opens a stored bundle, verifying all of it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn open(&self, digest: &Digest) -> Result<Bundle, StepFailure> {
        let dir = self.store.join(digest.hex());
        checked(&dir, digest, &self.limits)
    }

    /// Verifies a staged bundle and moves it into the store. One that is in the store already is
    /// kept, unless it is damaged.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn admit(&self, digest: &Digest) -> Result<Bundle, StepFailure> {
        if let Ok(there) = self.open(digest) {
            return Ok(there);
        }
        let staged = checked(&self.staged(digest), digest, &self.limits)?;
        remove(&self.store.join(digest.hex())).map_err(StepFailure::transient)?;
        staged.move_into(&self.store).map_err(|e| failure(&e))
    }

    /// Deletes a staged bundle.
    ///
    /// # Errors
    /// The system's, with the path.
    pub fn unstage(&self, digest: &Digest) -> Result<(), PathError> {
        remove(&self.staged(digest))
    }

    /// Deletes every stored and staged bundle but these.
    ///
    /// # Errors
    /// The system's, with the path.
    pub fn collect(&self, keep: &BTreeSet<String>) -> Result<(), PathError> {
        if self.frozen.is_some() {
            return Ok(());
        }
        for folder in [&self.store, &self.staging] {
            let entries = fs::read_dir(folder).map_err(PathError::at("list", folder))?;
            for entry in entries {
                let path = entry.map_err(PathError::at("list", folder))?.path();
                let name = path.file_name().and_then(|name| name.to_str());
                let kept = name.is_some_and(|name| keep.contains(&format!("sha256:{name}")));
                if !kept {
                    remove(&path)?;
                }
            }
        }
        Ok(())
    }
}

fn checked(dir: &Path, digest: &Digest, limits: &Limits) -> Result<Bundle, StepFailure> {
    let bundle = Bundle::open(dir, limits).map_err(|e| failure(&e))?;
    if bundle.digest == *digest {
        return Ok(bundle);
    }
    let got = bundle.digest;
    Err(StepFailure::damaged(format!("the manifest has digest {got}, wanted {digest}")))
}

/// A disk that cannot be read now may be read later; a bundle that is missing or wrong stays so until
/// it is fetched again.
fn failure(error: &BundleError) -> StepFailure {
    if is_passing(error) { StepFailure::transient(error) } else { StepFailure::damaged(error) }
}

/// Whether the error is the disk's, and may be gone the next time.
pub(super) fn is_passing(error: &BundleError) -> bool {
    matches!(error, BundleError::Io { source, .. } if source.kind() != std::io::ErrorKind::NotFound)
}

fn remove(path: &Path) -> Result<(), PathError> {
    let removed = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(PathError::at("remove", path)(error))
        }
        _ => Ok(()),
    }
}
