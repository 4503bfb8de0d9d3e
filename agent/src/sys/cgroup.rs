//! Control groups that account memory: where this process is, and what a group has used.
//!
//! Both versions of the kernel's interface are read where systemd mounts them: version 2 as one tree,
//! version 1 as a tree for each controller, of which memory's is the one that counts here.

use std::path::{Component, Path, PathBuf};

use super::{Roots, field, read, value};

/// The group below the service's that the agent moves into where its workers have groups of their own.
pub const SUPERVISOR: &str = "supervisor";

/// The kernel's interface to a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// A tree for each controller.
    One,
    /// One tree.
    Two,
}

/// A control group that accounts memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryGroup {
    /// Its folder.
    pub folder: PathBuf,
    /// How its files are named.
    pub version: Version,
}

/// What a group's processes have taken since it was made; what the kernel does not tell is `None`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Memory in use now, cached file pages included.
    pub current_bytes: Option<u64>,
    /// The most that was in use.
    pub peak_bytes: Option<u64>,
    /// How often it was slowed down because it was over the bound that slows it (`memory.high`); version
    /// 2 alone.
    pub high_events: Option<u64>,
    /// How often it reached the bound that it may not pass (`memory.max`; version 1: `memory.failcnt`).
    pub max_events: Option<u64>,
    /// Processes of the group that the kernel killed because memory was short, in the group, in one
    /// above it, or in the machine.
    pub oom_kills: Option<u64>,
}

impl MemoryGroup {
    /// The group of this process. `None` where there is none that accounts memory, where it is outside
    /// what this process sees, and for the root, which holds the whole machine.
    #[must_use]
    pub fn own(roots: &Roots) -> Option<Self> {
        let text = read(roots.proc.join("self/cgroup"))?;
        let tree = roots.sys.join("fs/cgroup");
        let lines: Vec<_> = text.lines().filter_map(line).collect();
        let memory = |controllers: &str| controllers.split(',').any(|name| name == "memory");
        let (folder, version) = match lines.iter().find(|(_, controllers, _)| memory(controllers)) {
            Some((_, _, path)) => (below(&tree.join("memory"), path)?, Version::One),
            None => {
                let (_, _, path) = lines.iter().find(|(number, ..)| *number == "0")?;
                (below(&tree, path)?, Version::Two)
            }
        };
        let accounts = match version {
            Version::One => folder.join("memory.usage_in_bytes").exists(),
            Version::Two => read(folder.join("cgroup.controllers"))?
                .split_whitespace()
                .any(|name| name == "memory"),
        };
        accounts.then_some(Self { folder, version })
    }

    /// The group of the service: the agent and its workers, whether or not these have groups of their
    /// own below it.
    #[must_use]
    pub fn service(roots: &Roots) -> Option<Self> {
        let own = Self::own(roots)?;
        let moved = own.version == Version::Two
            && own.folder.file_name().is_some_and(|name| name == SUPERVISOR);
        match own.folder.parent().filter(|_| moved) {
            Some(parent) => Some(Self { folder: parent.to_owned(), version: own.version }),
            None => Some(own),
        }
    }

    /// A group directly below this one, whether it is there or not.
    #[must_use]
    pub fn child(&self, name: &str) -> Self {
        Self { folder: self.folder.join(name), version: self.version }
    }

    /// What it has used.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let (current, peak, events) = match self.version {
            Version::One => {
                ("memory.usage_in_bytes", "memory.max_usage_in_bytes", "memory.oom_control")
            }
            Version::Two => ("memory.current", "memory.peak", "memory.events"),
        };
        let events = read(self.folder.join(events));
        let event = |name: &str| field(events.as_deref()?, name);
        Usage {
            current_bytes: value(self.folder.join(current)),
            peak_bytes: value(self.folder.join(peak)),
            high_events: event("high"),
            max_events: match self.version {
                Version::One => value(self.folder.join("memory.failcnt")),
                Version::Two => event("max"),
            },
            oom_kills: event("oom_kill"),
        }
    }

    /// The file that holds the most memory it may take.
    #[must_use]
    pub fn limit_file(&self) -> PathBuf {
        self.folder.join(match self.version {
            Version::One => "memory.limit_in_bytes",
            Version::Two => "memory.max",
        })
    }

    /// The file that takes the number of a process that is to join.
    #[must_use]
    pub fn processes_file(&self) -> PathBuf {
        self.folder.join("cgroup.procs")
    }
}

/// `number:controllers:path`.
fn line(text: &str) -> Option<(&str, &str, &str)> {
    let mut parts = text.splitn(3, ':');
    Some((parts.next()?, parts.next()?, parts.next()?))
}

/// A group's folder. A path that leads up is one outside this process's namespace.
fn below(tree: &Path, path: &str) -> Option<PathBuf> {
    let relative = Path::new(path.strip_prefix('/')?);
    let plain = relative.components().all(|part| matches!(part, Component::Normal(_)));
    (plain && !relative.as_os_str().is_empty()).then(|| tree.join(relative))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::sys::fixture::Machine;

    const UNIT: &str = "system.slice/espalier-agent.service";

    #[test]
    fn the_group_of_version_two_is_found_and_read() {
        let folder = format!("sys/fs/cgroup/{UNIT}");
        let machine = Machine::with(&[("proc/self/cgroup", &format!("0::/{UNIT}\n"))]);
        assert_eq!(MemoryGroup::own(&machine.roots()), None, "there is no such folder");
        machine.write(&format!("{folder}/cgroup.controllers"), "cpu pids\n");
        assert_eq!(MemoryGroup::own(&machine.roots()), None, "it does not account memory");
        machine.write(&format!("{folder}/cgroup.controllers"), "cpu memory pids\n");
        let group = MemoryGroup::own(&machine.roots()).unwrap();
        assert_eq!((&group.folder, group.version), (&machine.path(&folder), Version::Two));
        assert_eq!(group.usage(), Usage::default());
        machine.write(&format!("{folder}/memory.current"), "4096\n");
        machine.write(&format!("{folder}/memory.peak"), "8192\n");
        let events = "low 0\nhigh 7\nmax 3\noom 2\noom_kill 1\noom_group_kill 0\n";
        machine.write(&format!("{folder}/memory.events"), events);
        let usage = group.usage();
        let found = (usage.current_bytes, usage.peak_bytes, usage.oom_kills);
        assert_eq!(found, (Some(4096), Some(8192), Some(1)));
        assert_eq!((usage.high_events, usage.max_events), (Some(7), Some(3)));
    }

    #[test]
    fn the_service_s_group_holds_the_one_that_the_agent_moved_into() {
        let folder = format!("sys/fs/cgroup/{UNIT}");
        let machine = Machine::with(&[("proc/self/cgroup", &format!("0::/{UNIT}/supervisor\n"))]);
        machine.write(&format!("{folder}/supervisor/cgroup.controllers"), "memory\n");
        let service = MemoryGroup::service(&machine.roots()).unwrap();
        assert_eq!(service.folder, machine.path(&folder));
        machine.write("proc/self/cgroup", format!("0::/{UNIT}\n"));
        machine.write(&format!("{folder}/cgroup.controllers"), "memory\n");
        assert_eq!(MemoryGroup::service(&machine.roots()), MemoryGroup::own(&machine.roots()));
    }

    #[test]
    fn memory_s_own_tree_of_version_one_is_taken_where_both_are_mounted() {
        let text = format!("9:name=systemd:/{UNIT}\n4:hugetlb,memory:/{UNIT}\n0::/{UNIT}\n");
        let folder = format!("sys/fs/cgroup/memory/{UNIT}");
        let machine = Machine::with(&[("proc/self/cgroup", &text)]);
        machine.write(&format!("{folder}/memory.usage_in_bytes"), "100\n");
        machine.write(&format!("{folder}/memory.max_usage_in_bytes"), "200\n");
        machine.write(
            &format!("{folder}/memory.oom_control"),
            "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
        );
        machine.write(&format!("{folder}/memory.failcnt"), "11\n");
        let group = MemoryGroup::own(&machine.roots()).unwrap();
        assert_eq!((&group.folder, group.version), (&machine.path(&folder), Version::One));
        let usage = group.usage();
        let found = (usage.current_bytes, usage.peak_bytes, usage.oom_kills);
        assert_eq!(found, (Some(100), Some(200), Some(2)));
        assert_eq!((usage.high_events, usage.max_events), (None, Some(11)));
    }

    #[test]
    fn neither_the_root_nor_a_group_outside_the_namespace_is_ours() {
        for path in ["/", "/../elsewhere", "/a/../b", "relative"] {
            let machine = Machine::with(&[("proc/self/cgroup", &format!("4:memory:{path}\n"))]);
            machine.write("sys/fs/cgroup/memory/memory.usage_in_bytes", "1\n");
            machine.write("sys/fs/cgroup/memory/b/memory.usage_in_bytes", "1\n");
            assert_eq!(MemoryGroup::own(&machine.roots()), None, "{path}");
        }
        assert_eq!(MemoryGroup::own(&Machine::empty().roots()), None);
    }
}
