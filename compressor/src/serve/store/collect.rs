//! Makes room: bundles that no device needs, and jobs long ended.
//!
//! A bundle is needed where a device runs it, goes back to it or was offered it last, and where a job
//! that waits compares with it. Everything else is kept only as long as there is room.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;
use std::time::SystemTime;

use rusqlite::Transaction;

use super::{Result, Store, StoreError};

/// Bundles in the store.
pub const MAX_BUNDLES: usize = 1000;
/// Size of all bundles in the store.
pub const MAX_STORE_BYTES: u64 = 16 << 30;
/// Jobs remembered after their end; the oldest are forgotten first.
pub const MAX_FINISHED_JOBS: u32 = 1000;

/// How names of folders begin that are to be deleted.
pub(in crate::serve) const TRASH: &str = "trash-";

/// How much the store may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::serve) struct Shelf {
    /// Bundles.
    pub(in crate::serve) bundles: usize,
    /// Their size.
    pub(in crate::serve) bytes: u64,
    /// Jobs that have ended.
    pub(in crate::serve) jobs: u32,
}

impl Default for Shelf {
    fn default() -> Self {
        Self { bundles: MAX_BUNDLES, bytes: MAX_STORE_BYTES, jobs: MAX_FINISHED_JOBS }
    }
}

/// Whether another bundle has room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::serve) enum Room {
    /// It has.
    Free,
    /// It has not, for this reason.
    Full(String),
}

/// A bundle's folder.
struct Held {
    hex: String,
    bytes: u64,
    since: SystemTime,
}

/// Bundles in the trash, by the hexadecimal digits of their digests: forgotten by the store, and not by others yet.
pub(in crate::serve) fn trashed(work: &Path) -> io::Result<Vec<String>> {
    let mut found = Vec::new();
    let entries = match fs::read_dir(work) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        entries => entries?,
    };
    for entry in entries {
        let name = entry?.file_name();
        found.extend(name.to_str().and_then(|name| name.strip_prefix(TRASH)).map(str::to_owned));
    }
    Ok(found)
}

impl Store {
    /// Forgets what is over the limits, and says whether one more bundle has room. Folders that are
    /// not needed are moved into `trash`, oldest first; `fresh` are bundles just made that nothing
    /// refers to yet.
    pub(in crate::serve) fn collect(
        &self,
        shelf: &Shelf,
        fresh: &BTreeSet<String>,
        trash: &Path,
    ) -> Result<Room> {
        // In the transaction, so that no offer of a bundle is made while its folder goes.
        self.transaction(|tx| {
            forget_jobs(tx, shelf.jobs)?;
            let mut held = held(&self.bundles).map_err(|error| failed(&self.bundles, &error))?;
            let mut bytes: u64 = held.iter().map(|held| held.bytes).sum();
            let mut count = held.len();
            let over = |count: usize, bytes: u64| count >= shelf.bundles || bytes >= shelf.bytes;
            let needed = needed(tx)?;
            held.retain(|held| !needed.contains(&held.hex) && !fresh.contains(&held.hex));
            held.sort_by_key(|held| held.since);
            for old in held {
                if !over(count, bytes) {
                    break;
                }
                self.discard(tx, &old.hex, trash)?;
                count -= 1;
                bytes -= old.bytes;
            }
            Ok(if over(count, bytes) { Room::Full(full(shelf, count, bytes)) } else { Room::Free })
        })
    }

    fn discard(&self, tx: &Transaction<'_>, hex: &str, trash: &Path) -> Result<()> {
        let dir = self.bundles.join(hex);
        fs::rename(&dir, trash.join(format!("{TRASH}{hex}")))
            .map_err(|error| failed(&dir, &error))?;
        tx.execute("DELETE FROM originals WHERE digest = ?1", [format!("sha256:{hex}")])?;
        tracing::info!(digest = hex, "bundle forgotten: no device needs it");
        Ok(())
    }
}

fn full(shelf: &Shelf, count: usize, bytes: u64) -> String {
    format!(
        "the store holds {count} bundles of {bytes} bytes that devices run or were offered; the limits are {} \
         (MAX_BUNDLES) and {} bytes (MAX_STORE_BYTES)",
        shelf.bundles, shelf.bytes
    )
}

fn failed(path: &Path, error: &io::Error) -> StoreError {
    StoreError::Bundles(format!("{}: {error}", path.display()))
}

/// Digests, without their prefix, of bundles that must stay.
fn needed(tx: &Transaction<'_>) -> Result<BTreeSet<String>> {
    let mut rows = tx.prepare(
        "SELECT running FROM devices UNION SELECT previous FROM devices UNION SELECT offered FROM devices
         UNION SELECT CASE WHEN json_valid(spec) THEN json_extract(spec, '$.current') END
         FROM jobs WHERE state IN ('queued', 'running')",
    )?;
    let digests = rows.query_map([], |row| row.get::<_, Option<String>>(0))?;
    let mut needed = BTreeSet::new();
    for digest in digests {
        needed.extend(digest?.and_then(|text| text.strip_prefix("sha256:").map(str::to_owned)));
    }
    Ok(needed)
}

/// The folders of bundles. What is no bundle's folder is left alone.
fn held(bundles: &Path) -> io::Result<Vec<Held>> {
    let mut held = Vec::new();
    for entry in fs::read_dir(bundles)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(hex) = name.to_str().filter(|name| bundle::Digest::from_hex(name).is_ok()) else {
            continue;
        };
        let (bytes, since) = size_and_age(&entry.path())?;
        held.push(Held { hex: hex.to_owned(), bytes, since });
    }
    Ok(held)
}

fn size_and_age(dir: &Path) -> io::Result<(u64, SystemTime)> {
    let mut bytes = 0;
    for file in fs::read_dir(dir)? {
        bytes += file?.metadata()?.len();
    }
    Ok((bytes, fs::metadata(dir)?.modified()?))
}

fn forget_jobs(tx: &Transaction<'_>, most: u32) -> Result<()> {
    let ended = "SELECT id FROM jobs WHERE state IN ('done', 'failed')
         ORDER BY finished_ms DESC, id DESC LIMIT -1 OFFSET ?1";
    tx.execute(&format!("UPDATE requests SET job = NULL WHERE job IN ({ended})"), [most])?;
    tx.execute(&format!("DELETE FROM jobs WHERE id IN ({ended})"), [most])?;
    Ok(())
}
