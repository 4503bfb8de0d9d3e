//! What processes cost, as the kernel counts it: memory, processor time, bytes written.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// Clock ticks a second, the same on every Linux that this runs on.
const TICKS: f64 = 100.0;
/// What the kernel's kB are.
const KIB: u64 = 1024;

/// What a process and its children took over a while.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Cost {
    /// The median of the summed PSS.
    pub(super) pss_bytes: u64,
    /// Of that, the agent's own.
    pub(super) own_pss_bytes: u64,
    /// Processor time, per cent of a core.
    pub(super) cpu_percent: f64,
    /// Bytes given to the disk, a day.
    pub(super) written_per_day: f64,
    /// How long it was measured, in seconds.
    pub(super) seconds: f64,
}

/// How a measurement is laid out.
#[derive(Debug, Clone, Copy)]
pub(super) struct Window {
    pub(super) warmup: Duration,
    pub(super) length: Duration,
    pub(super) every: Duration,
}

/// Measures `pid` and its children over a window.
pub(super) fn over(pid: u32, window: Window) -> Result<Cost> {
    thread::sleep(window.warmup);
    let began = Instant::now();
    let before = Used::of(pid)?;
    let (mut sums, mut owns) = (Vec::new(), Vec::new());
    while began.elapsed() < window.length {
        thread::sleep(window.every);
        let family = family(pid)?;
        let mut sum = 0;
        for member in &family {
            sum += pss_bytes(*member)?;
        }
        sums.push(sum);
        owns.push(pss_bytes(pid)?);
    }
    let (after, seconds) = (Used::of(pid)?, began.elapsed().as_secs_f64());
    let (ticks, written) = (after.ticks - before.ticks, after.written - before.written);
    Ok(Cost {
        pss_bytes: median(&mut sums).context("no sample was taken")?,
        own_pss_bytes: median(&mut owns).context("no sample was taken")?,
        cpu_percent: ticks as f64 / TICKS / seconds * 100.0,
        written_per_day: written as f64 / seconds * 86_400.0,
        seconds,
    })
}

struct Used {
    ticks: u64,
    written: u64,
}

impl Used {
    fn of(pid: u32) -> Result<Self> {
        let mut used = Self { ticks: 0, written: 0 };
        for member in family(pid)? {
            used.ticks += ticks(member)?;
            used.written += written_bytes(member)?;
        }
        Ok(used)
    }
}

/// A process and all that it started.
pub(super) fn family(pid: u32) -> Result<Vec<u32>> {
    let mut found = vec![pid];
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        next += 1;
        let tasks = format!("/proc/{parent}/task");
        for task in fs::read_dir(&tasks).with_context(|| format!("cannot read {tasks}"))? {
            let children = fs::read_to_string(task?.path().join("children")).unwrap_or_default();
            found.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
        }
    }
    Ok(found)
}

/// The proportional set size of one process.
pub(super) fn pss_bytes(pid: u32) -> Result<u64> {
    field(pid, "smaps_rollup", "Pss:").map(|kib| kib * KIB)
}

fn written_bytes(pid: u32) -> Result<u64> {
    field(pid, "io", "write_bytes:")
}

fn field(pid: u32, file: &str, name: &str) -> Result<u64> {
    let path = format!("/proc/{pid}/{file}");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    text.lines()
        .find_map(|line| line.strip_prefix(name))
        .and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok())
        .with_context(|| format!("{path} holds no {name}"))
}

fn ticks(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    ticks_in(&text).with_context(|| format!("{path} is not as proc(5) says"))
}

/// User and system time; the name before them, in brackets, may hold anything.
fn ticks_in(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<u64>().ok();
    Some(next()? + next()?)
}

fn median(values: &mut [u64]) -> Option<u64> {
    values.sort_unstable();
    values.get(values.len() / 2).copied()
}

/// The bytes of all files below `folder`.
pub(super) fn folder_bytes(folder: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in
        fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?
    {
        let entry = entry?;
        let Ok(meta) = entry.metadata() else { continue };
        if meta.is_dir() {
            sum += folder_bytes(&entry.path())?;
        } else if meta.is_file() {
            sum += meta.len();
        }
    }
    Ok(sum)
}

/// A finite part of a folder that must not be empty of what is measured.
pub(super) fn ensure_real_disk(folder: &Path) -> Result<()> {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let folder = folder.canonicalize()?;
    let kind = mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            Some((fields.next()?, fields.next()?))
        })
        .filter(|(point, _)| folder.starts_with(point))
        .max_by_key(|(point, _)| point.len())
        .map_or("", |(_, kind)| kind);
    ensure!(
        kind != "tmpfs",
        "{} is in memory (tmpfs), where nothing is written to a disk: set CARGO_TARGET_DIR to a folder on one",
        folder.display()
    );
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_time_is_found_behind_a_name_with_brackets() {
        let stat = "7 (a) b) (c) S 1 2 3 4 5 6 7 8 9 10 30 12 0 0 20";
        assert_eq!(ticks_in(stat), Some(42));
        assert_eq!(ticks_in("7 (a S 1"), None);
    }

    #[test]
    fn this_process_has_memory_and_a_family() {
        let own = std::process::id();
        assert!(pss_bytes(own).unwrap() > 0);
        assert_eq!(family(own).unwrap()[0], own);
    }
}
