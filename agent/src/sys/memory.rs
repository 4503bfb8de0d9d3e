//! Memory: of processes, of the machine, and swapping.

use super::{Roots, field, read};

/// The machine's memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryInfo {
    /// All of it.
    pub total_bytes: Option<u64>,
    /// What could be had without swapping.
    pub available_bytes: Option<u64>,
}

/// A process's proportional set size: its private pages, and its share of those that it shares.
#[must_use]
pub fn pss_bytes(roots: &Roots, pid: u32) -> Option<u64> {
    let text = read(roots.proc.join(pid.to_string()).join("smaps_rollup"))?;
    kib(&text, "Pss")
}

/// The machine's memory.
#[must_use]
pub fn info(roots: &Roots) -> MemoryInfo {
    let text = read(roots.proc.join("meminfo")).unwrap_or_default();
    MemoryInfo { total_bytes: kib(&text, "MemTotal"), available_bytes: kib(&text, "MemAvailable") }
}

/// Pages read back from swap since the machine started.
#[must_use]
pub fn swap_in_pages(roots: &Roots) -> Option<u64> {
    field(&read(roots.proc.join("vmstat"))?, "pswpin")
}

/// Times that a process waited for a page from the storage since the machine started.
#[must_use]
pub fn major_faults(roots: &Roots) -> Option<u64> {
    field(&read(roots.proc.join("vmstat"))?, "pgmajfault")
}

fn kib(text: &str, key: &str) -> Option<u64> {
    field(text, key)?.checked_mul(1024)
}
