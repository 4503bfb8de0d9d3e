//! Reads what the machine says about itself: memory, processor, temperature and power.
//!
//! Everything is read below two configurable folders, so that tests and emulated boards show this
//! code a tree of files instead of a kernel. A file that is missing, unreadable or nonsense makes
//! its value `None`; nothing here fails, and nothing here takes a guess without saying so
//! ([`wire::Quality`]).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Instant;

use self::cgroup::{MemoryGroup, Usage, Version};
use self::cpu::CpuTimes;
use self::disk::DiskMeter;
use self::power::PowerMeter;
pub use self::power::{PowerConfig, PowerReading, PowerSource};
use self::pressure::{Pressure, PressureShares};
use self::process::{ProcessWatch, Spent};
use self::thermal::ThrottleWatch;

pub mod cgroup;
pub mod cpu;
pub mod disk;
pub mod machine;
pub mod memory;
pub mod power;
pub mod pressure;
pub mod process;
pub mod thermal;

/// The most that is read of one file.
pub const MAX_FILE_BYTES: u64 = 1 << 20;
/// The most entries that are read of one folder.
pub const MAX_DIR_ENTRIES: usize = 4096;

/// Where the kernel's file systems are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roots {
    /// The folder that is `/proc` on a real machine.
    pub proc: PathBuf,
    /// The folder that is `/sys` on a real machine.
    pub sys: PathBuf,
    /// The folder that is `/usr/bin` on a real machine: one board tells its power through a program.
    pub programs: PathBuf,
}

impl Default for Roots {
    fn default() -> Self {
        Self::under("/")
    }
}

impl Roots {
    /// Both below one prefix, which is `/` on a real machine.
    #[must_use]
    pub fn under(prefix: impl AsRef<Path>) -> Self {
        Self::split(prefix.as_ref(), prefix.as_ref())
    }

    /// Each below a prefix of its own: an emulated board has real processes and a made-up sysfs.
    #[must_use]
    pub fn split(proc_prefix: impl AsRef<Path>, sys_prefix: impl AsRef<Path>) -> Self {
        let (proc, board) = (proc_prefix.as_ref(), sys_prefix.as_ref());
        Self { proc: proc.join("proc"), sys: board.join("sys"), programs: board.join("usr/bin") }
    }
}

/// What the machine says at the end of a window.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// The agent's own proportional set size.
    pub agent_pss_bytes: Option<u64>,
    /// The workers', together; `None` when none could be read.
    pub workers_pss_bytes: Option<u64>,
    /// The machine's memory.
    pub memory_total_bytes: Option<u64>,
    /// What of it could be had without swapping.
    pub memory_available_bytes: Option<u64>,
    /// Pages read back from swap within the window.
    pub swap_in_pages: Option<u64>,
    /// Times that any process waited for a page from the storage within the window.
    pub major_faults: Option<u64>,
    /// Processor time in use within the window, over all processors, 0 to 100.
    pub cpu_percent: Option<f64>,
    /// Of that, what neither the agent nor its workers took, 0 to 100.
    pub others_percent: Option<f64>,
    /// Processor time that the hypervisor gave to others within the window, 0 to 100.
    pub steal_percent: Option<f64>,
    /// The one-minute load average.
    pub load1: Option<f64>,
    /// The hottest processor zone, in thousandths of a degree Celsius.
    pub temperature_mc: Option<i64>,
    /// The fastest processor's clock now.
    pub freq_khz: Option<u64>,
    /// Whether the processor is being slowed down, or was within the window.
    pub throttled: bool,
    /// What says so.
    pub throttle_cause: Option<&'static str>,
    /// Bytes that this process gave to the disk within the window.
    pub disk_written_bytes: Option<u64>,
    /// Within the last 24 hours, or since its start where that is less.
    pub disk_written_day_bytes: Option<u64>,
    /// The power drawn within the window.
    pub power: PowerReading,
    /// The machine's pressure within the window.
    pub pressure: PressureShares,
    /// That of the service's control group, the agent's and its workers'.
    pub group_pressure: PressureShares,
    /// What the service's control group has used of memory.
    pub group: Option<Usage>,
    /// What the agent and each worker took within the window, by process number.
    pub processes: BTreeMap<u32, Spent>,
}

/// Reads the machine window by window; the differences are between one sample and the next.
#[derive(Debug)]
pub struct Sampler {
    roots: Roots,
    power: PowerMeter,
    throttle: ThrottleWatch,
    /// `None` where processes are not of the machine that the rest of the files tell of.
    processes: Option<ProcessWatch>,
    disk: DiskMeter,
    window: Counters,
    began: Instant,
    last_tick: Option<CpuTimes>,
}

#[derive(Debug, Clone, Default)]
struct Counters {
    cpu: Option<CpuTimes>,
    swap_in: Option<u64>,
    major_faults: Option<u64>,
    pressure: Pressure,
    group_pressure: Pressure,
    group: Option<Usage>,
}

impl Counters {
    fn read(roots: &Roots) -> Self {
        let group = MemoryGroup::service(roots);
        let two = group.as_ref().filter(|group| group.version == Version::Two);
        Self {
            cpu: cpu::times(roots),
            swap_in: memory::swap_in_pages(roots),
            major_faults: memory::major_faults(roots),
            pressure: Pressure::of_machine(roots),
            group_pressure: two.map(|group| Pressure::of_group(&group.folder)).unwrap_or_default(),
            group: group.map(|group| group.usage()),
        }
    }
}

/// What a counter rose by.
fn rise(before: Option<u64>, now: Option<u64>) -> Option<u64> {
    now?.checked_sub(before?)
}

impl Sampler {
    /// Starts the first window.
    #[must_use]
    pub fn new(roots: Roots, power: PowerConfig, now: Instant) -> Self {
        let window = Counters::read(&roots);
        let mut sampler = Self {
            power: PowerMeter::new(power),
            throttle: ThrottleWatch::default(),
            processes: Some(ProcessWatch::default()),
            disk: DiskMeter::default(),
            began: now,
            last_tick: window.cpu,
            window,
            roots,
        };
        sampler.throttle.changed(&sampler.roots);
        sampler.spent(&[]);
        sampler.tick(now);
        sampler
    }

    /// The board is emulated: its processor's time is made up and its processes are the host's, so that
    /// the one says nothing about the other. What processes took is not told then.
    #[must_use]
    pub fn of_an_emulated_board(mut self) -> Self {
        self.processes = None;
        self
    }

    /// Reads the power gauges. Calling it several times within a window makes the window's power a
    /// mean over those moments rather than over its ends.
    pub fn tick(&mut self, now: Instant) {
        let cpu = cpu::times(&self.roots);
        let usage = cpu::usage(self.last_tick, cpu);
        self.last_tick = cpu;
        self.power.tick(&self.roots, now, usage.map(|u| u.busy_percent / 100.0));
    }

    /// Ends a window, in which the workers answered `inferences` requests, and starts the next.
    pub fn sample(&mut self, now: Instant, workers: &[u32], inferences: u64) -> Sample {
        self.tick(now);
        let before = std::mem::replace(&mut self.window, Counters::read(&self.roots));
        let elapsed = now.saturating_duration_since(std::mem::replace(&mut self.began, now));
        let usage = cpu::usage(before.cpu, self.window.cpu);
        let busy = usage.map(|u| u.busy_percent);
        let info = memory::info(&self.roots);
        let temperature_mc = thermal::temperature_mc(&self.roots);
        let throttle_cause = self.throttle.cause(&self.roots, temperature_mc, busy);
        let disk = self.disk.take(now, disk::written_bytes(&self.roots));
        let processes = self.spent(workers);
        let window = &self.window;
        Sample {
            agent_pss_bytes: memory::pss_bytes(&self.roots, std::process::id()),
            workers_pss_bytes: workers
                .iter()
                .filter_map(|&pid| memory::pss_bytes(&self.roots, pid))
                .reduce(u64::saturating_add),
            memory_total_bytes: info.total_bytes,
            memory_available_bytes: info.available_bytes,
            swap_in_pages: rise(before.swap_in, window.swap_in),
            major_faults: rise(before.major_faults, window.major_faults),
            cpu_percent: busy,
            others_percent: others_percent(before.cpu, window.cpu, &processes),
            steal_percent: usage.map(|u| u.steal_percent),
            load1: cpu::load1(&self.roots),
            temperature_mc,
            freq_khz: cpu::freq_khz(&self.roots),
            throttled: throttle_cause.is_some(),
            throttle_cause,
            disk_written_bytes: disk.window_bytes,
            disk_written_day_bytes: disk.day_bytes,
            power: self.power.take(inferences, workers),
            pressure: window.pressure.since(&before.pressure, elapsed),
            group_pressure: window.group_pressure.since(&before.group_pressure, elapsed),
            group: window.group,
            processes,
        }
    }

    fn spent(&mut self, workers: &[u32]) -> BTreeMap<u32, Spent> {
        let Some(processes) = &mut self.processes else {
            return BTreeMap::new();
        };
        let own = std::process::id();
        processes.take(&self.roots, workers.iter().copied().chain([own]))
    }
}

/// What of the processor's time neither the agent nor its workers took. `None` where the agent's own is
/// not known.
#[allow(clippy::cast_precision_loss)]
fn others_percent(
    before: Option<CpuTimes>,
    after: Option<CpuTimes>,
    processes: &BTreeMap<u32, Spent>,
) -> Option<f64> {
    processes.get(&std::process::id())?;
    let total = after?.total.checked_sub(before?.total).filter(|&ticks| ticks > 0)?;
    let busy = cpu::usage(before, after)?.busy_percent;
    let own = processes.values().fold(0_u64, |sum, spent| sum.saturating_add(spent.ticks));
    Some((busy - 100.0 * own as f64 / total as f64).clamp(0.0, 100.0))
}

/// A file's text, cut at [`MAX_FILE_BYTES`].
fn read(path: impl AsRef<Path>) -> Option<String> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(MAX_FILE_BYTES).read_to_end(&mut bytes).ok()?;
    String::from_utf8(bytes).ok()
}

/// A file that holds one value.
fn value<T: FromStr>(path: impl AsRef<Path>) -> Option<T> {
    read(path)?.trim().parse().ok()
}

/// The entries of a folder whose names begin with `prefix` and go on with digits, in order.
fn numbered(folder: impl AsRef<Path>, prefix: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut found: Vec<(u32, PathBuf)> = entries
        .take(MAX_DIR_ENTRIES)
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let name = entry.file_name();
            let digits = name.to_str()?.strip_prefix(prefix)?;
            let digits = Some(digits).filter(|d| d.bytes().all(|b| b.is_ascii_digit()))?;
            Some((digits.parse().ok()?, entry.path()))
        })
        .collect();
    found.sort();
    found.into_iter().map(|(_, path)| path).collect()
}

/// The value of `key` in lines of `key value …` or `key: value …`.
fn field(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let rest = line.strip_prefix(key)?;
        let rest = rest.strip_prefix(':').unwrap_or(rest);
        let mut words = rest.split_ascii_whitespace();
        rest.starts_with([' ', '\t']).then(|| words.next()?.parse().ok())?
    })
}

#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
mod tests;
