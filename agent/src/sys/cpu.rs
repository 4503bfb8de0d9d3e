//! The processor: use, steal, load and clock.

use super::{Roots, numbered, read, value};

/// Time that all processors together spent since the machine started, in ticks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuTimes {
    /// All of it.
    pub total: u64,
    /// Doing nothing, or waiting for storage.
    pub idle: u64,
    /// Given to other guests by the hypervisor.
    pub steal: u64,
}

/// How a stretch of processor time was spent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CpuUsage {
    /// In use here, 0 to 100.
    pub busy_percent: f64,
    /// In use by other guests, 0 to 100.
    pub steal_percent: f64,
}

/// The first line of `/proc/stat`: user, nice, system, idle, iowait, irq, softirq, steal. What
/// follows (guest time) is contained in user time.
#[must_use]
pub fn times(roots: &Roots) -> Option<CpuTimes> {
    let text = read(roots.proc.join("stat"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks = line
        .split_ascii_whitespace()
        .take(8)
        .map(|word| word.parse::<u64>().ok())
        .collect::<Option<Vec<_>>>()?;
    let at = |index: usize| ticks.get(index).copied();
    Some(CpuTimes {
        total: ticks.iter().try_fold(0_u64, |sum, &ticks| sum.checked_add(ticks))?,
        idle: at(3)?.checked_add(at(4).unwrap_or(0))?,
        steal: at(7).unwrap_or(0),
    })
}

/// What lies between two readings. `None` without both, or when no time has passed. Idle time may
/// run backwards on some kernels; it then counts as none.
#[must_use]
#[allow(clippy::cast_precision_loss)]
pub fn usage(before: Option<CpuTimes>, after: Option<CpuTimes>) -> Option<CpuUsage> {
    let (before, after) = (before?, after?);
    let total = after.total.checked_sub(before.total).filter(|&t| t > 0)? as f64;
    let idle = after.idle.saturating_sub(before.idle) as f64;
    let steal = after.steal.saturating_sub(before.steal) as f64;
    Some(CpuUsage {
        busy_percent: (100.0 * (total - idle - steal) / total).clamp(0.0, 100.0),
        steal_percent: (100.0 * steal / total).clamp(0.0, 100.0),
    })
}

/// The one-minute load average.
#[must_use]
pub fn load1(roots: &Roots) -> Option<f64> {
    read(roots.proc.join("loadavg"))?
        .split_ascii_whitespace()
        .next()?
        .parse()
        .ok()
        .filter(|load: &f64| load.is_finite() && *load >= 0.0)
}

/// The clock of the fastest processor now.
#[must_use]
pub fn freq_khz(roots: &Roots) -> Option<u64> {
    fastest(roots, "scaling_cur_freq")
}

/// The clock that the fastest processor can reach.
#[must_use]
pub fn max_freq_khz(roots: &Roots) -> Option<u64> {
    fastest(roots, "cpuinfo_max_freq")
}

fn fastest(roots: &Roots, file: &str) -> Option<u64> {
    numbered(roots.sys.join("devices/system/cpu"), "cpu")
        .iter()
        .filter_map(|cpu| value(cpu.join("cpufreq").join(file)))
        .max()
}
