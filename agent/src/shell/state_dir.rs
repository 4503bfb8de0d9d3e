//! The state directory: where everything lies that must outlive the agent.
//!
//! ```text
//! store/HEX/          bundles, each under the hexadecimal digits of its digest
//! staging/HEX/        bundles on their way in
//! journal             what was decided, one line per decision
//! active.json         which bundle serves which model; a copy for people, the journal is the truth
//! spool/              messages that no broker has acknowledged yet
//! trust/              what of the owner's signed metadata the device has seen
//! homeassistant       where Home Assistant was told of the device, if it was
//! run/endpoints.json  where inference is really served
//! run/status.sock     what `espalier-agent status` asks
//! lock                held by the running agent
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// What went wrong with a path.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} {}: {source}", path.display())]
pub struct PathError {
    /// What was tried.
    pub doing: &'static str,
    /// On which path.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

impl PathError {
    /// For `map_err`.
    pub fn at(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self { doing, path, source }
    }
}

/// How long the lock of an agent that was killed may outlive it: a process that it was just starting holds it until
/// it has become the worker.
const OUTLIVED: Duration = Duration::from_secs(1);
/// How often it is tried meanwhile.
const RETRY: Duration = Duration::from_millis(10);

/// Takes the lock, and waits for one that only outlives its agent.
fn take(lock: &File) -> io::Result<()> {
    let until = Instant::now() + OUTLIVED;
    loop {
        match flock(lock, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) if Instant::now() < until => std::thread::sleep(RETRY),
            done => return done.map_err(io::Error::from),
        }
    }
}

/// The state directory of a running agent. Only one agent can have it at a time.
#[derive(Debug)]
pub struct StateDir {
    root: PathBuf,
    _lock: File,
}

impl StateDir {
    /// Makes what is missing and takes the lock.
    ///
    /// # Errors
    /// A path that cannot be made, or another agent that holds the lock.
    pub fn open(root: &Path) -> Result<Self, PathError> {
        for folder in ["store", "staging", "spool", "run"] {
            let folder = root.join(folder);
            fs::create_dir_all(&folder).map_err(PathError::at("create", &folder))?;
        }
        let root = root.canonicalize().map_err(PathError::at("resolve", root))?;
        let path = root.join("lock");
        sync_folder_of(&path)?;
        let mut options = OpenOptions::new();
        let lock = options.create(true).truncate(false).write(true).open(&path);
        let lock = lock.map_err(PathError::at("open", &path))?;
        take(&lock).map_err(|source| {
            let doing = "lock (is another agent running?)";
            PathError { doing, path, source }
        })?;
        Ok(Self { root, _lock: lock })
    }

    /// Bundles.
    #[must_use]
    pub fn store(&self) -> PathBuf {
        self.root.join("store")
    }

    /// Bundles on their way in.
    #[must_use]
    pub fn staging(&self) -> PathBuf {
        self.root.join("staging")
    }

    /// The journal.
    #[must_use]
    pub fn journal(&self) -> PathBuf {
        self.root.join("journal")
    }

    /// Which bundle serves which model.
    #[must_use]
    pub fn active(&self) -> PathBuf {
        self.root.join("active.json")
    }

    /// Unacknowledged messages.
    #[must_use]
    pub fn spool(&self) -> PathBuf {
        self.root.join("spool")
    }

    /// What of the owner's metadata the device has seen.
    #[must_use]
    pub fn trust(&self) -> PathBuf {
        self.root.join("trust")
    }

    /// Where Home Assistant was told of the device.
    #[must_use]
    pub fn homeassistant(&self) -> PathBuf {
        self.root.join("homeassistant")
    }

    /// Sockets and addresses.
    #[must_use]
    pub fn run(&self) -> PathBuf {
        self.root.join("run")
    }
}

/// The status socket below a state directory.
#[must_use]
pub fn status_socket(root: &Path) -> PathBuf {
    root.join("run").join("status.sock")
}

/// Replaces a file so that a reader, or the next start, finds the old content or the new, never a
/// part of either.
///
/// # Errors
/// The system's, with the path.
pub fn write_atomically(path: &Path, content: &[u8]) -> Result<(), PathError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    let temporary = path.with_file_name(name);
    let write = || {
        let mut file = File::create(&temporary)?;
        file.write_all(content)?;
        file.sync_all()
    };
    write().map_err(PathError::at("write", &temporary))?;
    crate::sys::disk::count(content.len());
    fs::rename(&temporary, path).map_err(PathError::at("replace", path))?;
    sync_folder_of(path)
}

/// Makes the names in a path's folder durable.
///
/// # Errors
/// The system's, with the path.
pub fn sync_folder_of(path: &Path) -> Result<(), PathError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let sync = File::open(folder).and_then(|folder| folder.sync_all());
    sync.map_err(PathError::at("sync", folder))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_second_agent_is_refused_while_the_first_runs() {
        let dir = tempfile::tempdir().unwrap();
        let first = StateDir::open(dir.path()).unwrap();
        let error = StateDir::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("is another agent running?"), "{error}");
        drop(first);
        StateDir::open(dir.path()).unwrap();
    }

    #[test]
    fn an_atomic_write_leaves_no_temporary_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f.json");
        write_atomically(&path, b"one").unwrap();
        write_atomically(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
