//! What is left of a run whose process was killed: nothing.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use edge_sim::process::family;
use rustix::process::{Pid, Signal, kill_process};

use crate::puppet::AGENT;
use crate::support::{READY, Rig};

const PATIENCE: Duration = Duration::from_secs(30);

/// Waits for a condition; the deadline is for the machine, not for the test.
fn until(what: &str, mut met: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !met() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A zombie has been killed, even if nobody has asked for its status yet.
fn alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
    !matches!(state, None | Some('Z' | 'X'))
}

fn program(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}

fn is_ended_with_its_owner(broker: &str, programs: &[&str]) {
    let rig = Rig::new(READY, AGENT);
    fs::write(rig.path("magika.onnx"), "a model").unwrap();
    fs::copy(rig.path("heldout.npz"), rig.path("calib.npz")).unwrap();
    let path = |name: &str| rig.path(name).display().to_string();
    let mut owner = Command::new(env!("CARGO_BIN_EXE_edge-sim"))
        .args(["demo", "--broker", broker, "--assets", &path("."), "--out", &path("run")])
        .args(["--espalier", &path("espalier"), "--agent", &path("espalier-agent")])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let children = || -> Vec<u32> {
        family(owner.id()).into_iter().filter(|pid| *pid != owner.id()).collect()
    };
    let running = |name: &&str| children().into_iter().any(|pid| program(pid) == *name);
    until("broker, service and agent run", || {
        rig.path("agent.started").is_file() && programs.iter().all(&running)
    });
    let children = children();
    assert!(children.len() >= 3, "broker, service and agent: {children:?}");
    kill_process(Pid::from_child(&owner), Signal::KILL).unwrap();
    owner.wait().unwrap();
    until("every child has ended", || !children.iter().any(|pid| alive(*pid)));
}

#[test]
fn what_a_killed_run_has_started_ends_with_it() {
    is_ended_with_its_owner("mosquitto", &["mosquitto", "sleep"]);
}

#[test]
fn the_embedded_broker_of_a_killed_run_ends_with_it() {
    is_ended_with_its_owner("embedded", &["edge-sim", "sleep"]);
}

#[test]
fn a_program_whose_owner_has_ended_is_not_run() {
    // Init owns no test.
    let output = Command::new(env!("CARGO_BIN_EXE_edge-sim"))
        .args(["tied", "--owner=1", "--", "/bin/echo", "--it-ran"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("/bin/echo") && text.contains("process 1 has ended"), "{text}");
    assert!(output.stdout.is_empty());
}

#[test]
fn a_program_that_cannot_be_run_is_named() {
    let owner = std::process::id().to_string();
    let output = Command::new(env!("CARGO_BIN_EXE_edge-sim"))
        .args(["tied", "--owner", &owner, "--", "/nowhere/program"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("cannot run /nowhere/program: No such file"), "{text}");
}
