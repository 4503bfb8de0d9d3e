//! The state directory: where everything lies that must outlive the agent.
//!
//! ```text
//! store/HEX/          bundles, each under the hexadecimal digits of its digest
//! staging/HEX/        bundles on their way in
//! journal             what was decided, one line per decision
//! active.json         which bundle serves which model; a copy for people, the journal is the truth
//! spool/              messages that no broker has acknowledged yet
//! measure/HEX/        a bundle that is measured off to the side, while it is
//! trust/              what of the owner's signed metadata the device has seen
//! homeassistant       where Home Assistant was told of the device, if it was
//! run/endpoints.json  where inference is really served
//! run/status.sock     what `espalier-agent status` asks
//! lock                held by the running agent
//! ```
//!
//! A disk that takes nothing when the agent starts must not keep it from serving what lies there. Then the *volatile*
//! state stands in: a folder in memory with a copy of the journal, so that all goes on as usual but that nothing is
//! installed and what is decided lasts until the agent ends. The agent starts anew once the disk takes writes again.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::DirBuilderExt;
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

/// What is written to find out whether a disk takes anything.
const PROBE_BYTES: usize = 4096;
/// Where systemd lets services keep what is gone after them; several folders are told apart by colons.
const RUNTIME_DIRECTORY: &str = "RUNTIME_DIRECTORY";
/// Where the status socket of the packaged service is while its state is volatile.
pub const VOLATILE_STATUS_SOCKET: &str = "/run/espalier/state/run/status.sock";

/// The state directory of a running agent. Only one agent can have it at a time.
#[derive(Debug)]
pub struct StateDir {
    /// Where the bundles are.
    home: PathBuf,
    /// Where everything else is.
    root: PathBuf,
    volatile: Option<Volatile>,
    _lock: File,
}

/// What stands in for a state directory; it goes with this.
#[derive(Debug)]
struct Volatile {
    folder: PathBuf,
    why: String,
}

impl Drop for Volatile {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

impl StateDir {
    /// Makes what is missing and takes the lock. On a disk that takes nothing the state is volatile.
    ///
    /// # Errors
    /// A path that cannot be made, or another agent that holds the lock.
    pub fn open(root: &Path) -> Result<Self, PathError> {
        match Self::open_durable(root) {
            Err(error) if takes_nothing(&error.source) => Self::open_volatile(root, error),
            done => done,
        }
    }

    fn open_durable(root: &Path) -> Result<Self, PathError> {
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
        lock_for_good(&lock, path)?;
        probe(&root)?;
        Ok(Self { home: root.clone(), root, volatile: None, _lock: lock })
    }

    /// Serves what lies in `root`, of which nothing can be written.
    fn open_volatile(root: &Path, why: PathError) -> Result<Self, PathError> {
        let home = root.canonicalize().map_err(PathError::at("resolve", root))?;
        // Without it no agent has ever had this folder.
        let Ok(lock) = File::open(home.join("lock")) else { return Err(why) };
        lock_for_good(&lock, home.join("lock"))?;
        let folder = volatile_folder();
        let make = |folder: &Path| DirBuilder::new().mode(0o700).create(folder);
        let clear = match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => make(&folder),
        };
        clear.map_err(PathError::at("create", &folder))?;
        let root = folder.clone();
        let volatile = Volatile { folder, why: why.to_string() };
        for name in ["staging", "spool", "run"] {
            make(&root.join(name)).map_err(PathError::at("create", &root.join(name)))?;
        }
        for name in ["journal", "active.json", "trust"] {
            copy(&home.join(name), &root.join(name))
                .map_err(PathError::at("copy", &home.join(name)))?;
        }
        Ok(Self { home, root, volatile: Some(volatile), _lock: lock })
    }

    /// Why nothing can be kept, where that is so.
    #[must_use]
    pub fn volatile(&self) -> Option<&str> {
        self.volatile.as_ref().map(|volatile| volatile.why.as_str())
    }

    /// Whether the disk takes writes.
    ///
    /// # Errors
    /// What it says instead.
    pub fn try_writing(&self) -> Result<(), PathError> {
        probe(&self.home)
    }

    /// Bundles.
    #[must_use]
    pub fn store(&self) -> PathBuf {
        self.home.join("store")
    }

    /// Bundles on their way in.
    #[must_use]
    pub fn staging(&self) -> PathBuf {
        self.root.join("staging")
    }

    /// Bundles that are only measured.
    #[must_use]
    pub fn measure(&self) -> PathBuf {
        self.root.join("measure")
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

fn lock_for_good(lock: &File, path: PathBuf) -> Result<(), PathError> {
    let doing = "lock (is another agent running?)";
    take(lock).map_err(|source| PathError { doing, path, source })
}

/// Whether this is what a disk says that is full, read-only or broken. Anything else is a mistake of who set it up.
fn takes_nothing(error: &io::Error) -> bool {
    let io_error = Errno::IO.raw_os_error();
    error.raw_os_error() == Some(io_error)
        || matches!(
            error.kind(),
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::ReadOnlyFilesystem
        )
}

fn probe(root: &Path) -> Result<(), PathError> {
    let path = root.join(".probe");
    let write = || {
        let mut file = File::create(&path)?;
        file.write_all(&[0; PROBE_BYTES])?;
        file.sync_all()
    };
    let written = write().map_err(PathError::at("write", &path));
    let removed = fs::remove_file(&path).map_err(PathError::at("remove", &path));
    written.and(removed)
}

/// A folder in memory, where there is one.
fn volatile_folder() -> PathBuf {
    let given = std::env::var(RUNTIME_DIRECTORY).ok();
    let first = given.as_deref().and_then(|given| given.split(':').find(|path| !path.is_empty()));
    match first {
        Some(folder) => Path::new(folder).join("state"),
        None => std::env::temp_dir().join(format!("espalier-agent-{}", std::process::id())),
    }
}

/// Copies a file, or a folder of files, if it is there.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let absent =
        |error: io::Error| if error.kind() == ErrorKind::NotFound { Ok(()) } else { Err(error) };
    if !from.is_dir() {
        return fs::copy(from, to).map(drop).or_else(absent);
    }
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        copy(&entry.path(), &to.join(entry.file_name()))?;
    }
    Ok(())
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
