//! A Debian machine with a systemd of its own, as a container, for tests of the packaged service.
//!
//! The tree of files is made once by `cargo xtask test` and never written to: what a test changes lies
//! in memory and is gone with the container. There is no network but loopback. Everything needs root,
//! directly or through `sudo` without a password.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use crate::{provided, until};

/// How long the machine may take to start.
const BOOT: Duration = Duration::from_secs(60);
/// How long its groups may take to become empty.
const CLEAN_UP: Duration = Duration::from_secs(20);

/// Starts the container in control groups of its own, so that its systemd can set limits, and so that
/// two of them do not share groups. In version 1 the kernel has a tree for each controller.
const START: &str = r#"
set -eu
name=$1 tree=$2 shared=$3
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
    mkdir "/sys/fs/cgroup/$name"
    echo $$ >"/sys/fs/cgroup/$name/cgroup.procs"
    # Where the machine's own systemd has not given these on already.
    for controller in memory pids cpu; do
        echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control || true
    done
else
    for controller in memory cpu cpuacct pids systemd unified; do
        group=/sys/fs/cgroup/$controller
        if [ -e "$group/cgroup.procs" ]; then
            mkdir "$group/$name"
            echo $$ >"$group/$name/cgroup.procs"
        fi
    done
fi
echo $$ >"$shared/started"
# Ends with the test, also when that is killed.
exec setpriv --pdeathsig TERM systemd-nspawn --quiet --directory="$tree" --volatile=overlay \
    --register=no --keep-unit --machine="$name" --private-network --console=pipe \
    --bind-ro="$shared:/mnt" --boot
"#;

/// In version 1 the controllers' trees are mounted read-only inside; systemd finds out only when it
/// starts.
const OPEN_GROUPS: &str = r#"
set -eu
[ ! -e /sys/fs/cgroup/cgroup.controllers ] || exit 0
for controller in memory cpu cpuacct pids; do
    mount -o remount,bind,rw "/sys/fs/cgroup/$controller"
done
systemctl daemon-reexec
"#;

const REMOVE_GROUPS: &str = r#"
for group in "/sys/fs/cgroup/$1" /sys/fs/cgroup/*/"$1"; do
    if [ -d "$group" ]; then
        find "$group" -depth -type d -exec rmdir {} \; || true
        [ ! -d "$group" ] || exit 1
    fi
done
"#;

/// A running container; it ends when this is dropped.
pub struct Container {
    name: String,
    starter: Child,
    init: u32,
    shared: tempfile::TempDir,
}

impl Container {
    /// Starts the machine and waits until its systemd runs.
    ///
    /// # Panics
    /// When it does not; the message has what its console said.
    #[must_use]
    pub fn boot(name: &str) -> Self {
        let name = format!("espalier-{name}-{}", std::process::id());
        let tree = provided("ESPALIER_TREE");
        let shared = tempfile::tempdir().expect("a folder to share");
        let starter = as_root("sh")
            .args(["-c", START, "sh", &name])
            .args([&tree, shared.path()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("sh starts");
        let mut container = Self { name, starter, init: 0, shared };
        container.init = container.wait_for_init();
        until("the container's systemd", BOOT, || {
            let state = container.run(&["systemctl", "is-system-running", "--wait"]);
            let state = String::from_utf8_lossy(&state.stdout).trim().to_owned();
            ["running", "degraded"].contains(&state.as_str()).then_some(())
        });
        container.shell(OPEN_GROUPS);
        container
    }

    /// The folder that the machine sees as `/mnt`, read-only.
    #[must_use]
    pub fn shared(&self) -> &Path {
        self.shared.path()
    }

    /// Runs a program inside.
    ///
    /// # Panics
    /// When it cannot be started at all.
    #[must_use]
    pub fn run(&self, command: &[&str]) -> Output {
        as_root("nsenter")
            .args(["--target", &self.init.to_string()])
            .args(["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root", "--wd=/"])
            .args(command)
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .output()
            .expect("nsenter starts")
    }

    /// Runs a script inside and returns what it printed.
    ///
    /// # Panics
    /// When it fails, with what it said.
    pub fn shell(&self, script: &str) -> String {
        let output = self.run(&["sh", "-c", script]);
        let (told, errors) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(
            output.status.success(),
            "{script}\nended with {}\n{told}\n{errors}",
            output.status
        );
        told.into_owned()
    }

    /// A property of a unit, as `systemctl show` has it.
    ///
    /// # Panics
    /// When systemd does not answer.
    #[must_use]
    pub fn property(&self, unit: &str, name: &str) -> String {
        let told = self.shell(&format!("systemctl show --value --property={name} {unit}"));
        told.trim().to_owned()
    }

    /// Messages of a unit in the journal, each with all its fields.
    ///
    /// # Panics
    /// When the journal cannot be read.
    #[must_use]
    pub fn journal(&self, unit: &str) -> Vec<serde_json::Value> {
        let told =
            self.shell(&format!("journalctl --sync; journalctl --unit={unit} --output=json"));
        told.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    fn wait_for_init(&mut self) -> u32 {
        let started = self.shared.path().join("started");
        let parent = until("the container to start", BOOT, || {
            self.assert_alive();
            fs::read_to_string(&started).ok()?.trim().parse::<u32>().ok()
        });
        until("the container's first process", BOOT, || {
            self.assert_alive();
            children(parent).into_iter().find(|&child| is_init(child))
        })
    }

    fn assert_alive(&mut self) {
        let Some(status) = self.starter.try_wait().expect("a child can be waited for") else {
            return;
        };
        let mut told = String::new();
        if let Some(mut pipe) = self.starter.stderr.take() {
            pipe.read_to_string(&mut told).ok();
        }
        panic!(
            "no container could be started ({status}); it takes root (or sudo without a password), \
             namespaces, and /sys/fs/cgroup writable:\n{told}"
        );
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if self.init != 0 {
            // Its first process takes the others with it, and systemd-nspawn ends when it has.
            as_root("kill").args(["-KILL", &self.init.to_string()]).status().ok();
        } else {
            self.starter.kill().ok();
        }
        self.starter.wait().ok();
        let clean = || as_root("sh").args(["-c", REMOVE_GROUPS, "sh", &self.name]).output();
        let deadline = std::time::Instant::now() + CLEAN_UP;
        // Not `until`: a panic while a failed test unwinds would hide why it failed.
        while !clean().is_ok_and(|output| output.status.success()) {
            if std::time::Instant::now() > deadline {
                break;
            }
            std::thread::sleep(crate::POLL);
        }
    }
}

/// A command as root: directly, or through sudo.
fn as_root(program: &str) -> Command {
    if rustix::process::geteuid().is_root() {
        Command::new(program)
    } else {
        let mut command = Command::new("sudo");
        command.args(["-n", program]);
        command
    }
}

fn children(parent: u32) -> Vec<u32> {
    let list = PathBuf::from(format!("/proc/{parent}/task/{parent}/children"));
    let text = fs::read_to_string(list).unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// Whether a process is the first of its own process namespace, and has become systemd.
fn is_init(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
    let own = field("NSpid:").is_some_and(|pids| pids.split_whitespace().last() == Some("1"));
    own && field("Name:").is_some_and(|name| name.trim() == "systemd")
}
