//! Bundles that are signed by whoever makes them, without being asked for each: all but those that the owner took back.

use std::collections::BTreeSet;
use std::path::Path;

use bundle::Digest;
use serde::{Deserialize, Serialize};

use super::publish::{Draft, Written};
use super::{Host, file};
use crate::{Result, TrustError};

/// Beside the metadata: what the owner took back.
const FILE: &str = "removed.json";
/// Bundles that are remembered as taken back; the oldest are forgotten first.
pub const MAX_REMOVED: usize = 16_384;
/// Above what so many digests take.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// What became of bundles that were to be signed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Made {
    /// The targets that stand, those among them that stood before.
    pub targets: Vec<String>,
    /// Bundles that the owner took back.
    pub taken_back: Vec<Digest>,
    /// Why some could not be read.
    pub unreadable: Vec<String>,
    /// What was written, if anything was new.
    pub written: Option<Written>,
}

/// The file: digests, the oldest first.
#[derive(Default, Serialize, Deserialize)]
struct Removed {
    digests: Vec<Digest>,
}

impl Host {
    /// Allows bundles for the classes of their manifests, as [`Host::add`] does, but leaves out what the owner took back,
    /// and targets that stand as they are: an owner may have given them other classes.
    ///
    /// # Errors
    /// A limit is reached, or a key is missing; then none is allowed.
    pub fn allow_made(&self, bundles: &[&Path]) -> Result<Made> {
        let mut made = Made::default();
        let mut drafts = Vec::new();
        for path in bundles {
            match Draft::read(path, &[]) {
                Ok(draft) => drafts.push(draft),
                Err(error) => made.unreadable.push(error.to_string()),
            }
        }
        let _lock = self.lock()?;
        let (removed, standing) = (self.removed()?, self.targets()?);
        drafts.retain(|draft| {
            let removed = removed.contains(&draft.digest);
            if removed {
                made.taken_back.push(draft.digest);
            } else {
                made.targets.push(draft.name.clone());
            }
            !removed && !standing.contains_key(&draft.name)
        });
        if !drafts.is_empty() {
            made.written = Some(self.commit(None, |targets| {
                drafts.into_iter().try_for_each(|draft| draft.enter(targets))?;
                Ok(true)
            })?);
        }
        Ok(made)
    }

    /// Allows bundles no more that do not exist any more. What is no target is passed over, and none counts as taken
    /// back.
    ///
    /// # Errors
    /// A key is missing.
    pub fn forget(&self, digests: &[Digest]) -> Result<Option<Written>> {
        let _lock = self.lock()?;
        let standing = self.targets()?;
        let is_target = |digest: &&Digest| standing.contains_key(&crate::target_name(digest));
        let gone: Vec<Digest> = digests.iter().filter(is_target).copied().collect();
        if gone.is_empty() {
            return Ok(None);
        }
        self.commit(None, |targets| super::publish::take_out(targets, &gone)).map(Some)
    }

    /// The bundles that the owner took back, and did not allow again.
    ///
    /// # Errors
    /// The list cannot be read.
    pub fn removed(&self) -> Result<BTreeSet<Digest>> {
        Ok(self.read_removed()?.digests.into_iter().collect())
    }

    /// Remembers that the owner took bundles back.
    pub(super) fn note_removed(&self, digests: &[Digest]) -> Result<()> {
        let mut removed = self.read_removed()?;
        removed.digests.retain(|digest| !digests.contains(digest));
        removed.digests.extend(digests);
        let over = removed.digests.len().saturating_sub(MAX_REMOVED);
        removed.digests.drain(..over);
        self.write_removed(&removed)
    }

    /// Forgets that the owner took a bundle back.
    pub(super) fn note_added(&self, digest: Digest) -> Result<()> {
        let mut removed = self.read_removed()?;
        let before = removed.digests.len();
        removed.digests.retain(|own| *own != digest);
        if removed.digests.len() == before { Ok(()) } else { self.write_removed(&removed) }
    }

    fn read_removed(&self) -> Result<Removed> {
        let path = self.dir.join(FILE);
        let Some(text) = file::read_if_there(&path, MAX_FILE_BYTES)? else {
            return Ok(Removed::default());
        };
        let read = serde_json::from_slice(&text);
        read.map_err(|e| TrustError::Host(format!("{}: {e}", path.display())))
    }

    fn write_removed(&self, removed: &Removed) -> Result<()> {
        let text = serde_json::to_vec(removed).map_err(|e| self.wrong(&e))?;
        file::replace(&self.dir.join(FILE), &text)
    }
}
