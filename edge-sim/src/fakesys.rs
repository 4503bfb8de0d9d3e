//! The board's `/proc` and `/sys` as files in a folder, for the agent to read through its ordinary
//! code, and the thread that keeps them up to date.
//!
//! ```text
//! {dir}/root/sys/class/thermal/thermal_zone0/{type,temp,trip_point_0_…}
//! {dir}/root/sys/class/thermal/cooling_device0/{type,cur_state}   1 while throttled
//! {dir}/root/sys/devices/system/cpu/cpu{N}/cpufreq/{scaling_cur_freq,cpuinfo_max_freq,…}
//! {dir}/root/proc/{stat,meminfo,vmstat,loadavg,cpuinfo,uptime}
//! {dir}/root/proc/{self,PID}   links to the host's: the agent's and its workers' memory is real
//! {dir}/busy/{PID}             microseconds that a worker's board was busy, written by the worker
//! ```
//!
//! Times, clocks, temperature and load are the emulated board's. Total memory is the board's;
//! available memory is that less a fixed share for the system, less what the agent and its workers
//! hold. There is no hwmon: the boards have no power sensor, and the agent says `modelled`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::board::BoardState;
use crate::process::family;
use crate::profiles::Profile;

/// How often the files are written.
pub const TICK: Duration = Duration::from_millis(200);
/// Ticks of `/proc/stat` in a second.
const USER_HZ: f64 = 100.0;
/// What the system itself holds on a small board.
const SYSTEM_BYTES: u64 = 120 * 1024 * 1024;

/// What only grows.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Counters {
    /// Core-seconds in use.
    pub busy_s: f64,
    /// Core-seconds not in use.
    pub idle_s: f64,
    /// Load average over a minute.
    pub load1: f64,
    /// Memory of the agent and its workers.
    pub used_bytes: u64,
}

/// The folder of one board.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BoardFiles {
    dir: PathBuf,
}

impl BoardFiles {
    /// The board in `dir`; nothing is read or written.
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// What the agent's `sys.root` must be.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.dir.join("root")
    }

    /// Writes the whole tree.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn write(
        &self,
        profile: &Profile,
        state: &BoardState,
        counters: &Counters,
    ) -> io::Result<()> {
        let zone = self.root().join("sys/class/thermal/thermal_zone0");
        put(&zone.join("type"), "cpu-thermal\n")?;
        put(&zone.join("temp"), &format!("{:.0}\n", state.temperature_c * 1000.0))?;
        put(&zone.join("trip_point_0_type"), "passive\n")?;
        let trip = format!("{:.0}\n", profile.thermal.throttle_c * 1000.0);
        put(&zone.join("trip_point_0_temp"), &trip)?;
        let cooling = self.root().join("sys/class/thermal/cooling_device0");
        put(&cooling.join("type"), "cpufreq-cpu0\n")?;
        put(&cooling.join("cur_state"), if state.throttled { "1\n" } else { "0\n" })?;
        for core in 0..profile.cores {
            let cpu = self.cpufreq(core);
            put(&cpu.join("scaling_cur_freq"), &format!("{}\n", state.freq_khz))?;
            put(&cpu.join("scaling_max_freq"), &format!("{}\n", state.freq_khz))?;
            put(&cpu.join("cpuinfo_max_freq"), &format!("{}\n", profile.max_khz))?;
            put(&cpu.join("cpuinfo_min_freq"), &format!("{}\n", profile.min_khz))?;
        }
        let online = format!("0-{}\n", profile.cores - 1);
        put(&self.root().join("sys/devices/system/cpu/online"), &online)?;
        let proc = self.root().join("proc");
        put(&proc.join("stat"), &stat(profile.cores, counters))?;
        put(&proc.join("meminfo"), &meminfo(profile, counters))?;
        put(&proc.join("vmstat"), "pswpin 0\npswpout 0\npgmajfault 0\n")?;
        let load = counters.load1;
        put(&proc.join("loadavg"), &format!("{load:.2} {load:.2} {load:.2} 1/100 1000\n"))?;
        let uptime = (counters.busy_s + counters.idle_s) / f64::from(profile.cores);
        put(&proc.join("uptime"), &format!("{uptime:.2} {:.2}\n", counters.idle_s))?;
        link(Path::new("/proc/self"), &proc.join("self"))
    }

    /// How much longer everything takes at the clock in the files; 1.0 when there are none.
    #[must_use]
    pub fn clock_stretch(&self) -> f64 {
        let read = |file: &str| -> Option<f64> {
            let text = fs::read_to_string(self.cpufreq(0).join(file)).ok()?;
            text.trim().parse().ok().filter(|khz: &f64| *khz > 0.0)
        };
        match (read("cpuinfo_max_freq"), read("scaling_cur_freq")) {
            (Some(max), Some(now)) => (max / now).max(1.0),
            _ => 1.0,
        }
    }

    /// Leaves a worker's total busy time for the power model. Failures are ignored: the worker's
    /// answer matters more than the board's temperature.
    pub fn report_busy(&self, pid: u32, busy: Duration) {
        let file = self.dir.join("busy").join(pid.to_string());
        if let Err(error) = put(&file, &busy.as_micros().to_string()) {
            tracing::warn!(%error, "the busy time cannot be reported");
        }
    }

    /// Each worker's total busy time in microseconds, by process id.
    #[must_use]
    pub fn busy_us(&self) -> BTreeMap<u32, u64> {
        let Ok(entries) = fs::read_dir(self.dir.join("busy")) else { return BTreeMap::new() };
        entries
            .flatten()
            .filter_map(|entry| {
                let pid = entry.file_name().to_str()?.parse().ok()?;
                Some((pid, fs::read_to_string(entry.path()).ok()?.trim().parse().ok()?))
            })
            .collect()
    }

    /// Makes exactly these host processes visible in the board's `/proc`.
    fn show_processes(&self, pids: &[u32]) -> io::Result<()> {
        let proc = self.root().join("proc");
        for entry in fs::read_dir(&proc)?.flatten() {
            let shown = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok());
            if shown.is_some_and(|pid| !pids.contains(&pid)) {
                let _ = fs::remove_file(entry.path());
            }
        }
        for pid in pids {
            link(&Path::new("/proc").join(pid.to_string()), &proc.join(pid.to_string()))?;
        }
        Ok(())
    }

    fn cpufreq(&self, core: u32) -> PathBuf {
        self.root().join(format!("sys/devices/system/cpu/cpu{core}/cpufreq"))
    }
}

/// A board whose files follow its model until this is dropped.
#[derive(Debug)]
pub struct LiveBoard {
    files: BoardFiles,
    agent: Arc<AtomicU32>,
    state: Arc<Mutex<BoardState>>,
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl LiveBoard {
    /// Writes the files once and keeps them up to date from then on. `threads` is how many of the
    /// board's cores a busy worker occupies.
    ///
    /// # Errors
    /// The files cannot be written.
    pub fn start(dir: &Path, profile: &'static Profile, threads: u32) -> io::Result<Self> {
        let files = BoardFiles::new(dir);
        let first = BoardState::idle(profile);
        files.write(profile, &first, &Counters::default())?;
        let state = Arc::new(Mutex::new(first));
        let agent = Arc::new(AtomicU32::new(0));
        let (stop, stopped) = channel();
        let mut updater = Updater {
            files: files.clone(),
            profile,
            threads,
            agent: agent.clone(),
            load: Load::default(),
            counters: Counters::default(),
        };
        let shared = state.clone();
        let thread = std::thread::Builder::new().name("board".to_owned()).spawn(move || {
            let mut last = Instant::now();
            while stopped.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
                let dt = last.elapsed();
                last = Instant::now();
                let now = updater.tick(*lock(&shared), dt);
                *lock(&shared) = now;
            }
        })?;
        Ok(Self { files, agent, state, stop: Some(stop), thread: Some(thread) })
    }

    /// The board's folder.
    #[must_use]
    pub fn files(&self) -> &BoardFiles {
        &self.files
    }

    /// The process that is visible in the board's `/proc`, with its descendants. It is there when
    /// this returns; they are from the next tick on.
    pub fn set_agent(&self, pid: u32) {
        self.agent.store(pid, Ordering::Relaxed);
        let _ = self.files.show_processes(&[pid]);
    }

    /// The board as of the last tick.
    #[must_use]
    pub fn state(&self) -> BoardState {
        *lock(&self.state)
    }
}

impl Drop for LiveBoard {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Updater {
    files: BoardFiles,
    profile: &'static Profile,
    threads: u32,
    agent: Arc<AtomicU32>,
    load: Load,
    counters: Counters,
}

impl Updater {
    fn tick(&mut self, state: BoardState, dt: Duration) -> BoardState {
        let cores = f64::from(self.profile.cores);
        self.load.observe(&self.files.busy_us(), self.threads);
        let used_s = self.load.take(dt.as_secs_f64() * cores);
        let utilisation = used_s / (dt.as_secs_f64() * cores);
        let pids = family(self.agent.load(Ordering::Relaxed));
        self.counters.busy_s += used_s;
        self.counters.idle_s += dt.as_secs_f64() * cores - used_s;
        let decay = (-dt.as_secs_f64() / 60.0).exp();
        self.counters.load1 = self.counters.load1 * decay + utilisation * cores * (1.0 - decay);
        self.counters.used_bytes = pids.iter().map(|pid| resident_bytes(*pid)).sum();
        let next = state.step(self.profile, utilisation, dt);
        let written = self.files.write(self.profile, &next, &self.counters);
        if let Err(error) = written.and_then(|()| self.files.show_processes(&pids)) {
            tracing::warn!(%error, "the board's files cannot be written");
        }
        next
    }
}

/// Spreads busy time, which workers report at the end of an inference, over the time that follows.
#[derive(Debug, Default)]
struct Load {
    seen: BTreeMap<u32, u64>,
    pending_s: f64,
}

impl Load {
    #[allow(clippy::cast_precision_loss)]
    fn observe(&mut self, busy_us: &BTreeMap<u32, u64>, threads: u32) {
        for (pid, total) in busy_us {
            let before = self.seen.insert(*pid, *total).unwrap_or(0);
            let new_us = total.saturating_sub(before) as f64;
            self.pending_s += new_us / 1e6 * f64::from(threads);
        }
    }

    fn take(&mut self, available_s: f64) -> f64 {
        let taken = self.pending_s.min(available_s);
        self.pending_s -= taken;
        taken
    }
}

fn stat(cores: u32, counters: &Counters) -> String {
    let line = |name: &str, share: f64| {
        let ticks = |seconds: f64| (seconds * share * USER_HZ).round();
        format!("{name} {} 0 0 {} 0 0 0 0 0 0\n", ticks(counters.busy_s), ticks(counters.idle_s))
    };
    let mut text = line("cpu ", 1.0);
    for core in 0..cores {
        text += &line(&format!("cpu{core}"), 1.0 / f64::from(cores));
    }
    text += "ctxt 0\nbtime 0\nprocesses 0\nprocs_running 1\nprocs_blocked 0\n";
    text
}

fn meminfo(profile: &Profile, counters: &Counters) -> String {
    let total = profile.memory_bytes();
    let available = total.saturating_sub(SYSTEM_BYTES).saturating_sub(counters.used_bytes);
    let mut text = String::new();
    for (name, bytes) in [
        ("MemTotal", total),
        ("MemFree", available),
        ("MemAvailable", available),
        ("Buffers", 0),
        ("Cached", 0),
        ("SwapTotal", 0),
        ("SwapFree", 0),
    ] {
        let _ = writeln!(text, "{:<16}{:>8} kB", format!("{name}:"), bytes / 1024);
    }
    text
}

fn resident_bytes(pid: u32) -> u64 {
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    let pages: u64 = statm.split(' ').nth(1).and_then(|n| n.parse().ok()).unwrap_or(0);
    pages * rustix::param::page_size() as u64
}

/// Replaces a file in one step, so that a reader sees the old or the new content.
fn put(path: &Path, text: &str) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let write = || fs::write(&temporary, text).and_then(|()| fs::rename(&temporary, path));
    match (write(), path.parent()) {
        (Err(error), Some(parent)) if error.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all(parent)?;
            write()
        }
        (result, _) => result,
    }
}

fn link(target: &Path, at: &Path) -> io::Result<()> {
    match symlink(target, at) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::profiles;

    #[test]
    fn busy_time_that_arrives_in_one_lump_is_spread_and_none_is_lost() {
        let mut load = Load::default();
        load.observe(&BTreeMap::from([(7, 700_000)]), 2);
        let mut sum = 0.0;
        let mut ticks = 0;
        while sum < 1.399 {
            let taken = load.take(0.4);
            assert!(taken <= 0.4);
            sum += taken;
            ticks += 1;
        }
        assert_eq!(ticks, 4);
        load.observe(&BTreeMap::from([(7, 700_000)]), 2);
        assert!(load.take(0.4) < 1e-9, "a total that has not grown is not new work");
    }

    #[test]
    fn a_worker_that_starts_again_under_an_old_process_id_is_not_counted_backwards() {
        let mut load = Load::default();
        load.observe(&BTreeMap::from([(7, 500_000)]), 1);
        load.observe(&BTreeMap::from([(7, 100_000)]), 1);
        load.observe(&BTreeMap::from([(7, 300_000)]), 1);
        assert!((load.take(10.0) - 0.7).abs() < 1e-9);
    }

    #[test]
    fn a_busy_worker_warms_the_live_board() {
        let dir = tempfile::tempdir().unwrap();
        let profile = profiles::find("raspberry-pi-4").unwrap();
        let mut updater = Updater {
            files: BoardFiles::new(dir.path()),
            profile,
            threads: 1,
            agent: Arc::new(AtomicU32::new(0)),
            load: Load::default(),
            counters: Counters::default(),
        };
        let idle = BoardState::idle(profile);
        updater.files.report_busy(1, Duration::from_secs(1));
        let warm = updater.tick(idle, Duration::from_secs(1));
        assert!((warm.utilisation - 0.25).abs() < 1e-9);
        assert!((warm.power_mw - 2450.0).abs() < 1e-6);
        assert!(warm.temperature_c > idle.temperature_c);
        let text = fs::read_to_string(updater.files.root().join("proc/stat")).unwrap();
        assert!(text.starts_with("cpu  100 0 0 300 "), "{text}");
    }

    #[test]
    fn only_the_agent_s_processes_are_visible_in_the_board_s_proc() {
        let dir = tempfile::tempdir().unwrap();
        let profile = profiles::find("raspberry-pi-4").unwrap();
        let files = BoardFiles::new(dir.path());
        files.write(profile, &BoardState::idle(profile), &Counters::default()).unwrap();
        let me = std::process::id();
        files.show_processes(&[me]).unwrap();
        let shown = files.root().join(format!("proc/{me}/statm"));
        assert!(fs::read_to_string(&shown).is_ok());
        files.show_processes(&[]).unwrap();
        assert!(fs::read_to_string(&shown).is_err());
        assert!(fs::read_to_string(files.root().join("proc/self/statm")).is_ok());
    }

    /// The agent's reader, started on an idle board.
    fn agent_reader(files: &BoardFiles, start: Instant) -> espalier_agent::sys::Sampler {
        use espalier_agent::sys::{PowerConfig, PowerSource, Roots, Sampler};
        let config = PowerConfig {
            source: PowerSource::Auto,
            idle_mw: Some(1600.0),
            load_mw: Some(5000.0),
            ..PowerConfig::default()
        };
        Sampler::new(Roots::under(files.root()), config, start)
    }

    #[test]
    fn the_agent_reads_the_board_through_its_ordinary_code() {
        let dir = tempfile::tempdir().unwrap();
        let profile = profiles::find("raspberry-pi-4").unwrap();
        let files = BoardFiles::new(dir.path());
        let idle = BoardState::idle(profile);
        files.write(profile, &idle, &Counters::default()).unwrap();
        let me = std::process::id();
        files.show_processes(&[me]).unwrap();
        let start = Instant::now();
        let mut reader = agent_reader(&files, start);
        let mut busy = Counters { busy_s: 1.0, idle_s: 3.0, load1: 0.25, used_bytes: 1 << 20 };
        let state = idle.step(profile, 0.25, Duration::from_secs(1));
        files.write(profile, &state, &busy).unwrap();
        reader.tick(start + Duration::from_secs(1));
        (busy.busy_s, busy.idle_s) = (2.0, 6.0);
        files.write(profile, &state, &busy).unwrap();
        let sample = reader.sample(start + Duration::from_secs(2), &[me], 4);
        assert_eq!(sample.cpu_percent, Some(25.0));
        assert_eq!(sample.steal_percent, Some(0.0));
        assert_eq!(sample.swap_in_pages, Some(0));
        assert_eq!(sample.load1, Some(0.25));
        assert_eq!(sample.memory_total_bytes, Some(4 << 30));
        let left = (4 << 30) - SYSTEM_BYTES - (1 << 20);
        assert_eq!(sample.memory_available_bytes, Some(left));
        assert_eq!(sample.freq_khz, Some(1_800_000));
        let milli_c = sample.temperature_mc.unwrap();
        assert!((milli_c as f64 - state.temperature_c * 1000.0).abs() <= 1.0, "{milli_c}");
        assert!(!sample.throttled);
        assert!(sample.workers_pss_bytes.unwrap() > 100_000, "this process's own memory");
        assert_eq!(sample.power.quality, wire::Quality::Modelled);
        assert!((sample.power.power_mw.unwrap() - 2450.0).abs() < 1.0);
        // 850 mW above idle for the second that two readings span, over four inferences.
        assert!((sample.power.energy_per_inference_mj.unwrap() - 212.5).abs() < 1.0);
    }

    #[test]
    fn the_agent_sees_a_throttled_board_as_throttled_though_one_core_is_busy() {
        let dir = tempfile::tempdir().unwrap();
        let profile = profiles::find("raspberry-pi-4").unwrap();
        let files = BoardFiles::new(dir.path());
        let hot = BoardState { temperature_c: 81.0, ..BoardState::idle(profile) };
        let hot = hot.step(profile, 0.25, Duration::from_millis(1));
        assert!(hot.throttled);
        files.write(profile, &hot, &Counters::default()).unwrap();
        let start = Instant::now();
        let mut reader = agent_reader(&files, start);
        let sample = reader.sample(start + Duration::from_secs(1), &[], 0);
        assert!(sample.throttled);
        assert_eq!(sample.freq_khz, Some(1_000_000));
    }
}
