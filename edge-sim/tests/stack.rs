//! The stack with stand-ins for the agent and the service: what ends, hangs or is missing is named.
#![allow(clippy::unwrap_used, missing_docs)]

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use edge_sim::live::{Binaries, Stack, StackError, StackOptions};

const READY: &str = "echo '{\"ready\":true,\"http\":\"-\"}'; echo serving >&2; exec sleep 1000";

/// A folder with two scripts as programs and data that can be read.
struct Rig {
    dir: tempfile::TempDir,
}

impl Rig {
    fn new(service: &str, agent: &str) -> Self {
        let rig = Self { dir: tempfile::tempdir().unwrap() };
        rig.script("espalier", service);
        rig.script("espalier-agent", agent);
        rig.held_out_data();
        rig
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn script(&self, name: &str, body: &str) {
        let path = self.path(name);
        fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn held_out_data(&self) {
        let header = "{'descr': '<i4', 'fortran_order': False, 'shape': (1, 2), }\n";
        let mut npy = b"\x93NUMPY\x01\x00".to_vec();
        npy.extend(u16::try_from(header.len()).unwrap().to_le_bytes());
        npy.extend(header.as_bytes());
        npy.extend([0; 8]);
        let mut zip = zip::ZipWriter::new(fs::File::create(self.path("heldout.npz")).unwrap());
        zip.start_file("bytes.npy", zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(&npy).unwrap();
        zip.finish().unwrap();
    }

    fn options(&self) -> StackOptions {
        let binaries = Binaries {
            espalier: self.path("espalier"),
            agent: self.path("espalier-agent"),
            edge_sim: PathBuf::from(env!("CARGO_BIN_EXE_edge-sim")),
        };
        StackOptions::new(binaries, self.dir.path(), &self.path("run"))
    }

    fn start(&self) -> Result<Stack, StackError> {
        Stack::start(self.options())
    }
}

fn ended(result: Result<Stack, StackError>) -> (String, String) {
    match result.err().unwrap() {
        StackError::Ended { name, tail, .. } => (name, tail),
        other => panic!("{other}"),
    }
}

#[test]
fn an_agent_that_ends_is_named_with_the_end_of_its_log() {
    let rig = Rig::new(READY, "echo 'device.id: is required' >&2; exit 64");
    let (name, tail) = ended(rig.start());
    assert_eq!(name, "espalier-agent");
    assert!(tail.contains("device.id: is required"), "{tail}");
}

#[test]
fn a_service_that_ends_is_named_with_the_end_of_its_log() {
    let rig = Rig::new("echo 'no such model' >&2; exit 1", READY);
    let (name, tail) = ended(rig.start());
    assert_eq!(name, "espalier serve");
    assert!(tail.contains("no such model"), "{tail}");
}

#[test]
fn a_missing_program_is_named_before_anything_is_started() {
    let rig = Rig::new(READY, READY);
    fs::remove_file(rig.path("espalier-agent")).unwrap();
    let error = rig.start().err().unwrap().to_string();
    assert!(error.contains("espalier-agent"), "{error}");
    assert!(!rig.path("run").exists());
}

#[test]
fn the_agent_is_configured_for_the_board_and_the_broker() {
    let rig = Rig::new(READY, "cp \"$3\" \"$(dirname \"$0\")/seen.toml\"; exit 0");
    ended(rig.start());
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
