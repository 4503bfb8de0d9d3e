//! The stack with stand-ins for the agent and the service: what ends, hangs or is missing is named.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::support::{READY, Rig};
use edge_sim::live::{Stack, StackError};

fn ended(result: Result<Stack, StackError>) -> (String, String) {
    match result.err().unwrap() {
        StackError::Ended { name, tail, .. } => (name, tail),
        other => panic!("{other}"),
    }
}

#[test]
fn an_agent_that_ends_is_named_with_the_end_of_its_log() {
    let rig = Rig::new(READY, "echo 'device.id: is required' >&2; exit 64");
    let (name, tail) = ended(Stack::start(rig.options()));
    assert_eq!(name, "espalier-agent");
    assert!(tail.contains("device.id: is required"), "{tail}");
}

#[test]
fn a_service_that_ends_is_named_with_the_end_of_its_log() {
    let rig = Rig::new("echo 'no such model' >&2; exit 1", READY);
    let (name, tail) = ended(Stack::start(rig.options()));
    assert_eq!(name, "espalier serve");
    assert!(tail.contains("no such model"), "{tail}");
}

#[test]
fn a_missing_program_is_named_before_anything_is_started() {
    let rig = Rig::new(READY, READY);
    fs::remove_file(rig.path("espalier-agent")).unwrap();
    let error = Stack::start(rig.options()).err().unwrap().to_string();
    assert!(error.contains("espalier-agent"), "{error}");
    assert!(!rig.path("run").exists());
}

#[test]
fn the_agent_is_configured_for_the_board_and_the_broker() {
    let rig = Rig::new(READY, "cp \"$3\" \"$(dirname \"$0\")/seen.toml\"; exit 0");
    ended(Stack::start(rig.options()));
    let seen: toml::Table =
        toml::from_str(&fs::read_to_string(rig.path("seen.toml")).unwrap()).unwrap();
    assert_eq!(seen["device"]["class"].as_str(), Some("raspberry-pi-4"));
    let root = PathBuf::from(seen["sys"]["root"].as_str().unwrap());
    assert!(root.join("sys/class/thermal/thermal_zone0/temp").is_file());
    assert!(seen["mqtt"]["port"].as_integer().unwrap() > 0);
}

#[test]
fn a_cancelled_start_ends_and_leaves_no_process_behind() {
    let write_pid = "echo $$ > \"$(dirname \"$0\")/pid\"; exec sleep 1000";
    let rig = Rig::new(READY, write_pid);
    let cancel = Arc::new(AtomicBool::new(false));
    let starting = {
        let (options, cancel) = (rig.options(), cancel.clone());
        std::thread::spawn(move || Stack::start_cancellable(options, cancel).err())
    };
    let pid = wait_for_pid(&rig.path("pid"));
    assert!(alive(pid));
    cancel.store(true, Ordering::Relaxed);
    let error = starting.join().unwrap().unwrap();
    assert!(matches!(error, StackError::Cancelled), "{error}");
    assert!(!alive(pid));
}

fn wait_for_pid(file: &Path) -> u32 {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let text = fs::read_to_string(file).unwrap_or_default();
        if let Ok(pid) = text.trim().parse() {
            return pid;
        }
        assert!(Instant::now() < deadline, "{} was not written", file.display());
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn alive(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}
