//! Control groups for workers, below the agent's own: what the kernel counts and limits for a worker is
//! then the worker's alone, and it tells by name which one it killed for want of memory.
//!
//! The agent's group must be delegated to it, as systemd does for its unit (`Delegate=`). In version 2 a
//! group has either processes or groups below it that are limited, so the agent moves into one itself.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::sys::Roots;
use crate::sys::cgroup::{MemoryGroup, Usage, Version};

/// The agent's own place.
const SUPERVISOR: &str = "supervisor";
/// What workers' groups begin with.
const WORKER: &str = "worker-";
/// Groups that wait for the last of their processes to end; more are left for the next start.
const MAX_LEFT: usize = 256;

/// Why workers cannot have groups of their own.
#[derive(Debug, thiserror::Error)]
pub enum Undelegated {
    /// There is nothing to delegate.
    #[error("the agent is in no control group that accounts memory")]
    NoGroup,
    /// Something below the group could not be made or written.
    #[error("{path}: {source}", path = .path.display())]
    Refused {
        /// The folder or file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Makes groups for workers.
#[derive(Debug)]
pub struct Groups {
    parent: MemoryGroup,
    made: AtomicU64,
    left: Arc<Left>,
}

/// A worker's group; its folder goes when this does, or soon after where a process in it has yet to end.
#[derive(Debug)]
pub(super) struct WorkerGroup {
    group: MemoryGroup,
    left: Arc<Left>,
}

/// Folders of groups that could not be removed when their workers were dropped: a process that was killed stays in its
/// group until the kernel is done with it.
#[derive(Debug, Default)]
struct Left(Mutex<Vec<PathBuf>>);

impl Left {
    fn add(&self, folder: PathBuf) {
        let mut left = self.folders();
        if left.len() < MAX_LEFT {
            left.push(folder);
        } else {
            // The next start removes it.
            tracing::warn!(folder = %folder.display(), "a control group is left behind (MAX_LEFT)");
        }
    }

    fn folders(&self) -> MutexGuard<'_, Vec<PathBuf>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Groups {
    /// Prepares the agent's own group: removes what workers before have left, and in version 2 moves the
    /// agent into a group below it. Where that is refused, the agent stays where it was.
    ///
    /// # Errors
    /// The group is not this process's to divide.
    pub fn open(roots: &Roots) -> Result<Self, Undelegated> {
        let parent = MemoryGroup::own(roots).ok_or(Undelegated::NoGroup)?;
        sweep(&parent.folder);
        match parent.version {
            Version::One => {
                // Asked for once, so that what is refused is told at the start.
                let trial = parent.child(&format!("{WORKER}0"));
                make(&trial.folder)?;
                discard(&trial.folder);
            }
            Version::Two => give_on(&parent)?,
        }
        Ok(Self { parent, made: AtomicU64::new(1), left: Arc::default() })
    }

    /// Makes a group that may take at most `limit` bytes of memory.
    pub(super) fn make(&self, limit: Option<u64>) -> Result<WorkerGroup, Undelegated> {
        self.tidy();
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        let group = self.parent.child(&format!("{WORKER}{number}"));
        make(&group.folder)?;
        // From here on its folder is removed with it.
        let made = WorkerGroup { group, left: self.left.clone() };
        if let Some(bytes) = limit {
            write(&made.group.limit_file(), &bytes.to_string())?;
        }
        if made.group.version == Version::Two {
            // A worker that lost a part of itself is of no use: all of it goes at once.
            write(&made.group.folder.join("memory.oom.group"), "1")?;
        }
        Ok(made)
    }

    /// Removes the groups whose workers were dropped before they had ended, and have ended since.
    pub(super) fn tidy(&self) {
        self.left.folders().retain(|folder| remove(folder).is_err());
    }
}

impl WorkerGroup {
    /// Moves a process into it.
    pub(super) fn admit(&self, pid: u32) -> Result<(), Undelegated> {
        write(&self.group.processes_file(), &pid.to_string())
    }

    pub(super) fn usage(&self) -> Usage {
        self.group.usage()
    }
}

impl Drop for WorkerGroup {
    fn drop(&mut self) {
        if remove(&self.group.folder).is_err() {
            self.left.add(self.group.folder.clone());
        }
    }
}

/// A group for the next worker, if workers have any; one that cannot be made is told and done without.
pub(super) fn for_worker(groups: Option<&Arc<Groups>>, limit: Option<u64>) -> Option<WorkerGroup> {
    match groups?.make(limit) {
        Ok(group) => Some(group),
        Err(error) => {
            tracing::warn!(%error, "a worker gets no control group of its own");
            None
        }
    }
}

/// Moves this process into a group of its own and gives the memory controller on to those beside it.
fn give_on(parent: &MemoryGroup) -> Result<(), Undelegated> {
    let supervisor = parent.child(SUPERVISOR);
    make(&supervisor.folder)?;
    let own = std::process::id().to_string();
    let given = write(&supervisor.processes_file(), &own)
        .and_then(|()| write(&parent.folder.join("cgroup.subtree_control"), "+memory"));
    if given.is_err() {
        // Back to where it was, so that nothing has changed.
        let _ = write(&parent.processes_file(), &own);
        discard(&supervisor.folder);
    }
    given
}

/// Removes the groups of workers of an agent before, which are empty: systemd ends all of a service.
fn sweep(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(WORKER) {
            discard(&entry.path());
        }
    }
}

fn make(folder: &Path) -> Result<(), Undelegated> {
    match fs::create_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(refused(folder, error)),
        _ => Ok(()),
    }
}

/// Removes a group; one that is not there is removed already.
fn remove(folder: &Path) -> io::Result<()> {
    match fs::remove_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The same, where nothing more can be done about it.
fn discard(folder: &Path) {
    if let Err(error) = remove(folder) {
        // The next start removes it.
        tracing::debug!(folder = %folder.display(), %error, "a control group is left behind");
    }
}

/// The kernel's files are there already and take one value at a time.
fn write(file: &Path, value: &str) -> Result<(), Undelegated> {
    let written = fs::OpenOptions::new().write(true).open(file);
    written
        .and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes()))
        .map_err(|source| refused(file, source))
}

fn refused(path: &Path, source: io::Error) -> Undelegated {
    Undelegated::Refused { path: path.to_owned(), source }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::sys::fixture::Machine;

    const UNIT: &str = "sys/fs/cgroup/system.slice/espalier-agent.service";

    /// A tree of version 2 whose groups cannot be made by writing: the kernel makes their files.
    fn machine() -> Machine {
        let machine =
            Machine::with(&[("proc/self/cgroup", "0::/system.slice/espalier-agent.service\n")]);
        machine.write(&format!("{UNIT}/cgroup.controllers"), "memory pids\n");
        machine.write(&format!("{UNIT}/cgroup.procs"), "");
        machine.write(&format!("{UNIT}/cgroup.subtree_control"), "");
        machine
    }

    #[test]
    fn in_version_two_the_agent_moves_into_a_group_of_its_own() {
        let machine = machine();
        machine.write(&format!("{UNIT}/{SUPERVISOR}/cgroup.procs"), "");
        Groups::open(&machine.roots()).unwrap();
        let read = |file: &str| fs::read_to_string(machine.path(UNIT).join(file)).unwrap();
        assert_eq!(read("supervisor/cgroup.procs"), std::process::id().to_string());
        assert_eq!(read("cgroup.subtree_control"), "+memory");
    }

    #[test]
    fn what_is_refused_leaves_the_agent_where_it_was() {
        let machine = machine();
        machine.write(&format!("{UNIT}/{SUPERVISOR}/cgroup.procs"), "");
        fs::remove_file(machine.path(&format!("{UNIT}/cgroup.subtree_control"))).unwrap();
        let error = Groups::open(&machine.roots()).unwrap_err().to_string();
        assert!(error.contains("cgroup.subtree_control"), "{error}");
        let back = fs::read_to_string(machine.path(&format!("{UNIT}/cgroup.procs"))).unwrap();
        assert_eq!(back, std::process::id().to_string());
        let none = Groups::open(&Machine::empty().roots()).unwrap_err().to_string();
        assert!(none.contains("no control group"), "{none}");
    }

    #[test]
    fn a_worker_s_group_is_limited_killed_as_one_and_goes_with_it() {
        let machine = machine();
        for file in ["supervisor/cgroup.procs", "worker-1/memory.max", "worker-1/memory.oom.group"]
        {
            machine.write(&format!("{UNIT}/{file}"), "");
        }
        machine.write(&format!("{UNIT}/worker-1/cgroup.procs"), "");
        let groups = Groups::open(&machine.roots()).unwrap();
        let group = groups.make(Some(1 << 20)).unwrap();
        group.admit(42).unwrap();
        let folder = machine.path(UNIT).join("worker-1");
        let read = |file: &str| fs::read_to_string(folder.join(file)).unwrap();
        assert_eq!(read("memory.max"), "1048576");
        assert_eq!(read("memory.oom.group"), "1");
        assert_eq!(read("cgroup.procs"), "42");
        // The kernel's files go with the folder; here they go first.
        for file in ["memory.max", "memory.oom.group", "cgroup.procs"] {
            fs::remove_file(folder.join(file)).unwrap();
        }
        drop(group);
        assert!(!folder.exists());
    }

    /// A real group below this process's own, in whichever version there is. None where that is not this user's to
    /// make: the test's other half does without the kernel.
    fn real() -> Option<MemoryGroup> {
        let name = format!("espalier-groups-test-{}", std::process::id());
        let roots = Roots::default();
        let (one, two) = (roots.sys.join("fs/cgroup/memory"), roots.sys.join("fs/cgroup"));
        let one = MemoryGroup { folder: one.join(&name), version: Version::One };
        let two = MemoryGroup { folder: two.join(&name), version: Version::Two };
        let found = [one, two].into_iter().find(|group| {
            fs::create_dir(&group.folder).is_ok() && group.processes_file().exists()
        })?;
        if found.version == Version::Two {
            write(&found.folder.join("cgroup.subtree_control"), "+memory").unwrap();
        }
        Some(found)
    }

    #[test]
    fn a_group_whose_worker_has_yet_to_end_goes_once_it_has() {
        let fixture = Machine::with(&[("proc/self/cgroup", "4:memory:/unit\n")]);
        fixture.write("sys/fs/cgroup/memory/unit/memory.usage_in_bytes", "1\n");
        let groups = Groups::open(&fixture.roots()).unwrap();
        let group = groups.make(None).unwrap();
        let folder = group.group.folder.clone();
        // In the place of a process: the kernel refuses to remove a group with one, as any folder with a file.
        fs::write(folder.join("busy"), "").unwrap();
        drop(group);
        groups.tidy();
        assert!(folder.exists());
        fs::remove_file(folder.join("busy")).unwrap();
        groups.tidy();
        assert!(!folder.exists() && groups.left.folders().is_empty());
    }

    #[test]
    fn the_kernel_s_group_of_a_worker_that_was_dropped_alive_goes_once_it_has_ended() {
        let Some(parent) = real() else { return };
        let above = parent.folder.clone();
        let groups = Groups { parent, made: AtomicU64::new(1), left: Arc::default() };
        let group = groups.make(None);
        let told = group.map(|group| {
            let mut worker = std::process::Command::new("sleep").arg("600").spawn().unwrap();
            let admitted = group.admit(worker.id()).is_ok();
            let folder = group.group.folder.clone();
            drop(group);
            let stands = folder.exists();
            worker.kill().unwrap();
            worker.wait().unwrap();
            // The next worker's group brings it about.
            drop(groups.make(None));
            (admitted, stands, folder.exists())
        });
        let left = fs::remove_dir(&above);
        assert_eq!(told.unwrap(), (true, true, false));
        left.unwrap();
    }

    #[test]
    fn version_one_limits_by_its_own_file_and_leaves_the_agent_alone() {
        let machine = Machine::with(&[("proc/self/cgroup", "4:memory:/unit\n")]);
        let unit = "sys/fs/cgroup/memory/unit";
        machine.write(&format!("{unit}/memory.usage_in_bytes"), "1\n");
        machine.write(&format!("{unit}/worker-1/memory.limit_in_bytes"), "");
        fs::create_dir_all(machine.path(&format!("{unit}/worker-7"))).unwrap();
        let groups = Groups::open(&machine.roots()).unwrap();
        assert!(!machine.path(&format!("{unit}/worker-7")).exists(), "of an agent before");
        assert!(!machine.path(&format!("{unit}/{SUPERVISOR}")).exists());
        let _group = groups.make(Some(4096)).unwrap();
        let limit = machine.path(&format!("{unit}/worker-1/memory.limit_in_bytes"));
        assert_eq!(fs::read_to_string(limit).unwrap(), "4096");
    }
}
