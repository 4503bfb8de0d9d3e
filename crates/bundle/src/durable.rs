//! Writing so that a power cut leaves all or nothing.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::Result;
use crate::digest::{Digest, Hasher};
use crate::error::{BundleError, io_at};

/// A folder beside its destination that disappears unless it is moved there.
pub(crate) struct Staging {
    dir: PathBuf,
    kept: bool,
}

impl Staging {
    /// Makes the folder, and the parent where needed.
    pub(crate) fn beside(dest: &Path) -> Result<Self> {
        let parent = parent_of(dest);
        fs::create_dir_all(&parent).map_err(io_at("create", &parent))?;
        loop {
            let dir = parent.join(staging_name());
            match fs::create_dir(&dir) {
                Ok(()) => return Ok(Self { dir, kept: false }),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(io_at("create", &dir)(error)),
            }
        }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Syncs the folder, moves it to its destination and syncs the parent. The files in it must have
    /// been synced before.
    pub(crate) fn keep_as(mut self, dest: &Path) -> Result<()> {
        sync_dir(&self.dir)?;
        move_dir(&self.dir, dest)?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.kept {
            // Best effort: a leftover starts with `.staging-` and is never taken for a bundle.
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

/// Writes a new file from a reader, at most `limit` bytes of it, and syncs it. A reader that has more
/// is reported by the length returned, which is then `limit + 1`.
pub(crate) fn write_new(path: &Path, reader: &mut dyn Read, limit: u64) -> Result<(Digest, u64)> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(path)
        .map_err(io_at("create", path))?;
    let mut reader = reader.take(limit.saturating_add(1));
    let mut hasher = Hasher::default();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let n = match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(io_at("read what should become", path)(error)),
        };
        hasher.update(&buffer[..n]);
        file.write_all(&buffer[..n]).map_err(io_at("write", path))?;
    }
    file.sync_all().map_err(io_at("sync", path))?;
    Ok(hasher.finish())
}

/// Renames a synced folder to a name that is free, and syncs the parent.
pub(crate) fn move_dir(from: &Path, dest: &Path) -> Result<()> {
    let parent = parent_of(dest);
    fs::create_dir_all(&parent).map_err(io_at("create", &parent))?;
    if fs::symlink_metadata(dest).is_ok() {
        return Err(BundleError::AlreadyExists(dest.to_owned()));
    }
    fs::rename(from, dest).map_err(|error| match error.kind() {
        io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists => {
            BundleError::AlreadyExists(dest.to_owned())
        }
        _ => io_at("rename to", dest)(error),
    })?;
    sync_dir(&parent)
}

fn parent_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(io_at("sync", dir))
}

fn staging_name() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!(".staging-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}
