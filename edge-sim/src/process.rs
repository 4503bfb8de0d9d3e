//! Child processes that cannot outlive their owner.
//!
//! Each child leads a process group of its own, so that a Ctrl-C in the terminal reaches only us.
//! Dropping a [`Process`] kills it and its descendants, also those that lead groups of their own, as
//! the agent's workers do. Both of the child's output streams are appended to a log file.
//!
//! An owner that is itself killed drops nothing. A child made with [`tied`] is then killed by the
//! kernel: this package's binary asks for that signal and becomes the program, because only the child
//! can ask, and std's way to run code between fork and exec is not safe Rust. The child's own children
//! get no such signal; the agent's workers end with the connection to their agent.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::LazyLock;
use std::sync::mpsc::{self, Sender};
use std::time::{Duration, Instant};

use rustix::process::{
    Pid, Signal, getppid, kill_process, kill_process_group, set_parent_process_death_signal,
};

/// How often a wait looks again.
pub(crate) const POLL: Duration = Duration::from_millis(20);

/// Why a child could not be started.
#[derive(Debug, thiserror::Error)]
#[error("cannot start {name} ({}): {source}", program.display())]
pub struct SpawnError {
    name: String,
    program: PathBuf,
    source: io::Error,
}

/// A running, or ended, child process.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    pid: Pid,
    log: PathBuf,
}

impl Process {
    /// Starts `command`, with standard error and output appended to `log`.
    ///
    /// # Errors
    /// The program or the log file cannot be opened.
    pub fn spawn(name: &str, command: Command, log: &Path) -> Result<Self, SpawnError> {
        Self::spawn_to(name, command, log, log)
    }

    /// As [`Process::spawn`], with standard output in a file of its own.
    ///
    /// # Errors
    /// As [`Process::spawn`].
    pub fn spawn_to(
        name: &str,
        mut command: Command,
        log: &Path,
        stdout: &Path,
    ) -> Result<Self, SpawnError> {
        let program = PathBuf::from(command.get_program());
        let fail = |source| SpawnError { name: name.to_owned(), program: program.clone(), source };
        let append = |path: &Path| -> io::Result<File> {
            OpenOptions::new().create(true).append(true).open(path)
        };
        command
            // Colours in a log file are noise.
            .env("NO_COLOR", "1")
            .stdin(Stdio::piped())
            .stdout(append(stdout).map_err(fail)?)
            .stderr(append(log).map_err(fail)?)
            .process_group(0);
        let child = spawn_for_life(command).map_err(fail)?;
        let pid = Pid::from_child(&child);
        Ok(Self { name: name.to_owned(), child, pid, log: log.to_owned() })
    }

    /// What it is called in messages.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id, which is also its group's.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where its output goes.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Its standard input, once.
    pub fn take_stdin(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// How it ended; `None` while it runs.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Asks it to end (SIGTERM) and kills it if it has not after `patience`.
    pub fn stop(&mut self, patience: Duration) -> Option<ExitStatus> {
        if self.exited().is_none() {
            let _ = kill_process(self.pid, Signal::TERM);
        }
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            if let Some(status) = self.exited() {
                return Some(status);
            }
            std::thread::sleep(POLL);
        }
        self.kill_family();
        self.child.wait().ok()
    }

    /// Kills the process itself with SIGKILL and waits for its end. Its children are left to notice.
    pub fn kill9(&mut self) {
        if self.exited().is_none() {
            let _ = kill_process(self.pid, Signal::KILL);
            let _ = self.child.wait();
        }
    }

    /// Kills it and its descendants with SIGKILL, as a power cut would.
    pub fn kill_family(&mut self) {
        let running = self.exited().is_none();
        let family = if running { family(self.pid()) } else { Vec::new() };
        let _ = kill_process_group(self.pid, Signal::KILL);
        for pid in family.into_iter().filter(|pid| *pid != self.pid()) {
            if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        let _ = self.child.wait();
    }

    /// Sends it SIGHUP, which asks a service to read its configuration again.
    pub fn hang_up(&mut self) {
        if self.exited().is_none() {
            let _ = kill_process(self.pid, Signal::HUP);
        }
    }

    /// The last `lines` of its log.
    #[must_use]
    pub fn log_tail(&self, lines: usize) -> String {
        tail(&self.log, lines)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill_family();
    }
}

/// `command`, killed when this process ends, however it ends. `edge_sim` is this package's binary.
///
/// The process id stays the program's own. A program that cannot be run is named in the child's log.
#[must_use]
pub fn tied(edge_sim: &Path, command: &Command) -> Command {
    let mut tied = Command::new(edge_sim);
    tied.arg("tied").arg(format!("--owner={}", std::process::id())).arg("--");
    tied.arg(command.get_program()).args(command.get_args());
    for (key, value) in command.get_envs() {
        match value {
            Some(value) => tied.env(key, value),
            None => tied.env_remove(key),
        };
    }
    if let Some(dir) = command.get_current_dir() {
        tied.current_dir(dir);
    }
    tied
}

/// Becomes `program`, to be killed when process `owner`, the parent, ends: the body of
/// `edge-sim tied`. Returns only where that fails, with the reason.
#[must_use]
pub fn become_tied(owner: u32, program: &OsString, arguments: &[OsString]) -> io::Error {
    if let Err(error) = set_parent_process_death_signal(Some(Signal::KILL)) {
        return error.into();
    }
    // The owner may have ended before the signal was asked for.
    let parent = getppid().and_then(|parent| u32::try_from(parent.as_raw_nonzero().get()).ok());
    if parent != Some(owner) {
        return io::Error::other(format!("process {owner} has ended"));
    }
    Command::new(program).args(arguments).exec()
}

/// Starts a child from a thread that lives as long as this process: to the kernel a child's parent is
/// the thread that started it, and its end brings the parent-death signal.
fn spawn_for_life(command: Command) -> io::Result<Child> {
    type Order = (Command, Sender<io::Result<Child>>);
    static ORDERS: LazyLock<io::Result<Sender<Order>>> = LazyLock::new(|| {
        let (orders, received) = mpsc::channel::<Order>();
        let serve = move || {
            for (mut command, answer) in received {
                let _ = answer.send(command.spawn());
            }
        };
        std::thread::Builder::new().name("spawner".to_owned()).spawn(serve)?;
        Ok(orders)
    });
    let gone = || io::Error::other("the thread that starts children is gone");
    let orders =
        ORDERS.as_ref().map_err(|error| io::Error::new(error.kind(), error.to_string()))?;
    let (answer, child) = mpsc::channel();
    orders.send((command, answer)).map_err(|_| gone())?;
    child.recv().map_err(|_| gone())?
}

/// A process and its descendants, as long as it lives; empty for process 0.
#[must_use]
pub fn family(pid: u32) -> Vec<u32> {
    if pid == 0 {
        return Vec::new();
    }
    let Ok(entries) = std::fs::read_dir("/proc") else { return vec![pid] };
    let parents: Vec<(u32, u32)> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|child| Some((child, parent_of(child)?)))
        .collect();
    let mut family = vec![pid];
    let mut next = 0;
    while let Some(parent) = family.get(next).copied() {
        family.extend(parents.iter().filter(|(_, p)| *p == parent).map(|(child, _)| child));
        next += 1;
    }
    family
}

fn parent_of(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // pid (name, which may hold anything) state ppid …
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

/// The last `lines` of a file, at most 64 KiB; empty when it cannot be read.
#[must_use]
pub fn tail(path: &Path, lines: usize) -> String {
    const MOST: u64 = 64 * 1024;
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(MOST)))?;
        let mut bytes = Vec::new();
        file.take(MOST).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let text = String::from_utf8_lossy(&read().unwrap_or_default()).into_owned();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn shell(script: &str, dir: &Path) -> Process {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        Process::spawn("shell", command, &dir.join("log")).unwrap()
    }

    fn wait_for(mut condition: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !condition() {
            assert!(Instant::now() < deadline, "it did not happen in time");
            std::thread::sleep(POLL);
        }
    }

    fn alive(pid: i32) -> bool {
        // A zombie has been killed, even if nobody has asked for its status yet.
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
        !matches!(state, None | Some('Z' | 'X'))
    }

    fn is_killed_with_its_child(script: &str) {
        let dir = tempfile::tempdir().unwrap();
        let process = shell(script, dir.path());
        wait_for(|| !process.log_tail(1).is_empty());
        let grandchild: i32 = process.log_tail(1).trim().parse().unwrap();
        let child = i32::try_from(process.pid()).unwrap();
        assert!(alive(grandchild));
        assert!(family(process.pid()).contains(&u32::try_from(grandchild).unwrap()));
        drop(process);
        wait_for(|| !alive(grandchild) && !alive(child));
    }

    #[test]
    fn dropping_a_process_kills_its_children_too() {
        is_killed_with_its_child("sleep 1000 & echo $!; wait");
    }

    #[test]
    fn dropping_a_process_kills_children_in_groups_of_their_own() {
        is_killed_with_its_child("setsid sh -c 'echo $$; exec sleep 1000' & wait");
    }

    #[test]
    fn the_family_of_no_process_is_empty() {
        assert!(family(0).is_empty());
    }

    #[test]
    fn a_process_that_ignores_the_request_to_end_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let mut process =
            shell("trap '' TERM; echo ready; while true; do sleep 0.1; done", dir.path());
        wait_for(|| process.log_tail(1) == "ready");
        let status = process.stop(Duration::from_millis(200)).unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
    }

    #[test]
    fn both_output_streams_end_up_in_the_log_and_the_tail_is_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let mut process = shell("for i in 1 2 3; do echo out$i; echo err$i >&2; done", dir.path());
        wait_for(|| process.exited().is_some());
        assert_eq!(process.log_tail(2), "out3\nerr3");
        assert_eq!(tail(Path::new("/nowhere/log"), 5), "");
    }

    #[test]
    fn a_program_that_does_not_exist_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let command = Command::new("/nowhere/agent");
        let error = Process::spawn("agent", command, &dir.path().join("log")).unwrap_err();
        assert!(error.to_string().starts_with("cannot start agent (/nowhere/agent): "), "{error}");
    }
}
