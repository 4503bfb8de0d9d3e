//! What processes took of the processor, and how long they were ready to run and did not.
//!
//! Of a thread's time the kernel tells three parts: it ran, it waited for a processor while it could
//! have run (the run delay of `/proc/PID/task/TID/schedstat`, which kernels without `SCHED_INFO` lack),
//! and it slept. A model that is slow by its own doing runs; one that others keep from the processor
//! waits.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use super::{MAX_DIR_ENTRIES, Roots, read};

/// What a process took within a window.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spent {
    /// Processor time, in the ticks of `/proc/stat`.
    pub ticks: u64,
    /// How long its threads waited for a processor, together; `None` where the kernel does not tell.
    pub waited: Option<Duration>,
    /// Times that it had to wait for a page from the storage.
    pub major_faults: u64,
}

/// Follows processes from window to window.
#[derive(Debug, Default)]
pub(super) struct ProcessWatch {
    last: BTreeMap<u32, Counters>,
}

#[derive(Debug, Clone, Default)]
struct Counters {
    /// When the process began: a number that is given again belongs to another one.
    began: u64,
    ticks: u64,
    major_faults: u64,
    /// Nanoseconds by thread.
    waited: Option<BTreeMap<u32, u64>>,
}

impl ProcessWatch {
    /// What these processes took since the last call; all that they ever took where they are new.
    /// Processes that cannot be read are left out.
    pub(super) fn take(
        &mut self,
        roots: &Roots,
        pids: impl IntoIterator<Item = u32>,
    ) -> BTreeMap<u32, Spent> {
        let now: BTreeMap<u32, Counters> =
            pids.into_iter().filter_map(|pid| Some((pid, Counters::read(roots, pid)?))).collect();
        let none = Counters::default();
        let spent = now
            .iter()
            .map(|(pid, now)| {
                let before = self.last.get(pid).filter(|before| before.began == now.began);
                (*pid, now.since(before.unwrap_or(&none)))
            })
            .collect();
        self.last = now;
        spent
    }
}

impl Counters {
    fn read(roots: &Roots, pid: u32) -> Option<Self> {
        let folder = roots.proc.join(pid.to_string());
        let text = read(folder.join("stat"))?;
        // The name before it may hold spaces and parentheses.
        let (_, after_name) = text.rsplit_once(')')?;
        let fields: Vec<&str> = after_name.split_ascii_whitespace().collect();
        let at = |index: usize| fields.get(index)?.parse::<u64>().ok();
        Some(Self {
            major_faults: at(9)?,
            ticks: at(11)?.checked_add(at(12)?)?,
            began: at(19)?,
            waited: waited(&folder.join("task")),
        })
    }

    fn since(&self, before: &Self) -> Spent {
        let waited = self.waited.as_ref().map(|threads| {
            let of = |tid: &u32| before.waited.as_ref().and_then(|old| old.get(tid)).copied();
            let more = |(tid, now): (&u32, &u64)| now.saturating_sub(of(tid).unwrap_or(0));
            Duration::from_nanos(threads.iter().map(more).fold(0, u64::saturating_add))
        });
        Spent {
            ticks: self.ticks.saturating_sub(before.ticks),
            waited,
            major_faults: self.major_faults.saturating_sub(before.major_faults),
        }
    }
}

/// How long each thread has waited for a processor, in nanoseconds: the second number of its
/// `schedstat`. What threads that have ended waited is lost.
fn waited(tasks: &std::path::Path) -> Option<BTreeMap<u32, u64>> {
    let threads: BTreeMap<u32, u64> = fs::read_dir(tasks)
        .ok()?
        .take(MAX_DIR_ENTRIES)
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let tid = entry.file_name().to_str()?.parse().ok()?;
            let text = read(entry.path().join("schedstat"))?;
            Some((tid, text.split_ascii_whitespace().nth(1)?.parse().ok()?))
        })
        .collect();
    (!threads.is_empty()).then_some(threads)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::sys::fixture::Machine;

    /// `/proc/PID/stat` of a process with a name that is hard to read.
    fn stat(user: u64, system: u64, faults: u64, began: u64) -> String {
        format!(
            "7 (a) b (c) S 1 7 7 0 -1 4194560 900 0 {faults} 0 {user} {system} 0 0 20 0 3 0 {began} 9 9\n"
        )
    }

    fn take(machine: &Machine, watch: &mut ProcessWatch) -> Option<Spent> {
        watch.take(&machine.roots(), [7]).get(&7).copied()
    }

    #[test]
    fn time_waits_and_faults_are_of_the_window_and_of_all_threads() {
        let machine = Machine::with(&[
            ("proc/7/stat", &stat(100, 20, 3, 50)),
            ("proc/7/task/7/schedstat", "900 1000 5\n"),
            ("proc/7/task/8/schedstat", "900 5000 5\n"),
        ]);
        let mut watch = ProcessWatch::default();
        let first = take(&machine, &mut watch).unwrap();
        assert_eq!((first.ticks, first.major_faults), (120, 3));
        machine.write("proc/7/stat", stat(140, 30, 4, 50));
        machine.write("proc/7/task/7/schedstat", "999 1500 9\n");
        machine.write("proc/7/task/8/schedstat", "999 7000 9\n");
        machine.write("proc/7/task/9/schedstat", "1 40 1\n");
        let second = take(&machine, &mut watch).unwrap();
        let waited = Some(Duration::from_nanos(500 + 2000 + 40));
        assert_eq!(second, Spent { ticks: 50, waited, major_faults: 1 });
    }

    #[test]
    fn a_number_that_is_given_again_is_another_process() {
        let machine = Machine::with(&[("proc/7/stat", &stat(100, 0, 9, 50))]);
        let mut watch = ProcessWatch::default();
        take(&machine, &mut watch);
        machine.write("proc/7/stat", stat(10, 1, 2, 60));
        let other = take(&machine, &mut watch).unwrap();
        assert_eq!(other, Spent { ticks: 11, waited: None, major_faults: 2 });
    }

    #[test]
    fn what_is_gone_or_nonsense_is_left_out() {
        let machine = Machine::with(&[("proc/7/stat", "7 (x) S 1 2\n")]);
        let mut watch = ProcessWatch::default();
        assert_eq!(take(&machine, &mut watch), None);
        std::fs::remove_dir_all(machine.path("proc/7")).unwrap();
        assert_eq!(take(&machine, &mut watch), None);
    }
}
