//! A crash at every file-system call of a spool that fills, merges, sends and empties.
//!
//! As for installs (`shell::driver::tests::crashes`): a process of its own is traced, its calls are applied to a [`Disk`] one
//! after the other, and the spool is opened on what a crash behind each leaves, of a killed process and without power.
//! What was synced and not acknowledged must be there, and nothing twice, whether as it came or merged.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Write;

use wire::Window;

use super::months::infer;
use super::*;
use crate::shell::driver::tests::disk::{Disk, Image, Loss, lay_out};
use crate::shell::driver::tests::trace::{Call, calls, traced};

const FOLDER: &str = "ESPALIER_TEST_RECORDED_SPOOL";
const WINDOWS: u64 = 400;
/// Windows that are made durable together.
const BATCH: u64 = 5;
const MAX_BYTES: u64 = 48 << 10;

fn limits() -> SpoolConfig {
    SpoolConfig { max_bytes: MAX_BYTES, fsync: Fsync::Events, ..SpoolConfig::default() }
}

/// A time with a bucket of its own for each number.
fn time(n: u64) -> u64 {
    if n < 64 { n } else { (32 + n % 32) << (n / 32 - 1) }
}

/// The spool's life, as another process leads it. What it says beside the spool is how far it has come.
#[test]
#[ignore = "the process that another test traces"]
fn recorded() {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else { return };
    let mut said = fs::File::create(folder.join("said")).unwrap();
    let mut say = |what: &str, n: u64| said.write_all(format!("{what} {n}\n").as_bytes()).unwrap();
    let mut spool = Spool::open(&folder.join("spool"), limits()).unwrap();
    let (start, began_ms) = (Instant::now(), 1_795_000_000_000);
    for n in 0..WINDOWS {
        let moment = Moment {
            at: start + Duration::from_secs(10 * n),
            unix_ms: Some(began_ms + 10_000 * n),
        };
        let window = wire::encode(&infer(began_ms + 10_000 * n, n, 10_000, &[time(n)]));
        spool.push(Class::Telemetry, moment, "m/infer/m", &window).unwrap();
        if n % BATCH == BATCH - 1 {
            spool.flush(moment.at).unwrap();
            say("windows", n + 1);
        }
        if n % 23 == 0 {
            let class = if n % 2 == 0 { Class::Event } else { Class::Urgent };
            spool.push(class, moment, &format!("e/{n}"), b"{}").unwrap();
            say("event", n);
        }
        if n % 90 == 89 {
            // A connection for a moment: events go, and some telemetry.
            spool.connected();
            for _ in 0..12 {
                let Some(message) = spool.take_unsent(moment.at).unwrap() else { break };
                for mark in marks(&message) {
                    say("gone", mark);
                }
                spool.acknowledge(message.id).unwrap();
            }
            spool.resend_all();
        }
    }
    assert!(spool.fill().merged_records > 100, "{:?}", spool.fill());
    assert_eq!(spool.fill().dropped_records, 0, "{:?}", spool.fill());
    say("over", 0);
}

/// What a message stands for: a window by its number, an event by its own.
fn marks(message: &Message) -> Vec<u64> {
    match Window::read(&message.payload) {
        Some(Window::Infer(window)) => {
            let of: HashMap<u64, u64> = (0..WINDOWS).map(|n| (time(n), n)).collect();
            let mut marks = Vec::new();
            for (low, _, count) in window.compute.buckets() {
                (0..count).for_each(|_| marks.push(of[&low]));
            }
            marks
        }
        _ => vec![EVENTS + message.topic[2..].parse::<u64>().unwrap()],
    }
}

/// Where the numbers of events begin.
const EVENTS: u64 = 1 << 32;

/// What is known to be durable, and what may have been acknowledged.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
struct Known {
    windows: u64,
    events: BTreeSet<u64>,
    gone: BTreeSet<u64>,
}

impl Known {
    fn hear(&mut self, line: &str) {
        let (what, number) = line.trim().split_once(' ').unwrap();
        let number: u64 = number.parse().unwrap();
        match what {
            "windows" => self.windows = number,
            "event" => drop(self.events.insert(EVENTS + number)),
            "gone" => drop(self.gone.insert(number)),
            _ => {}
        }
    }

    fn check(&self, image: &Image, label: &str) {
        let dir = scratch();
        lay_out(image, dir.path());
        let mut spool = Spool::open(dir.path(), limits()).unwrap();
        let mut times: BTreeMap<u64, u64> = BTreeMap::new();
        drain(&mut spool, |message| {
            marks(message).into_iter().for_each(|mark| *times.entry(mark).or_default() += 1);
        });
        let twice: Vec<_> = times.iter().filter(|(_, times)| **times > 1).collect();
        assert!(twice.is_empty(), "{label}: {twice:?} are there twice");
        let owed = (0..self.windows).chain(self.events.iter().copied());
        for mark in owed.filter(|mark| !self.gone.contains(mark)) {
            assert!(times.contains_key(&mark), "{label}: {mark} was synced and is lost");
        }
    }
}

#[test]
fn a_crash_behind_any_call_loses_nothing_that_was_synced_and_tells_nothing_twice() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("calls");
    let mut command = traced(&std::env::current_exe().unwrap(), &log);
    command.args(["--exact", "shell::spool::tests::crashes::recorded", "--ignored"]);
    command.env(FOLDER, folder.path());
    let output = command.output().expect("strace runs (Debian's package `strace`)");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}{errors}", String::from_utf8_lossy(&output.stdout));
    let calls = calls(&fs::read_to_string(log).unwrap());
    let root = folder.path().join("spool");
    let is_root = |call: &&Call| matches!(call, Call::MakeFolder { path } if *path == root);
    let mut disk = Disk::new(&root);
    let (mut known, mut seen) = (Known::default(), BTreeSet::new());
    let mut checked = 0;
    for (at, call) in calls.iter().enumerate().skip_while(|(_, call)| !is_root(call)).skip(1) {
        if let Call::Write { path, data, .. } = call
            && path.ends_with("said")
        {
            known.hear(&String::from_utf8_lossy(data));
            continue;
        }
        if !disk.apply(call) {
            continue;
        }
        for loss in Loss::EVERY {
            let image = disk.image(loss);
            let hash = crc_of(&image);
            if seen.insert((hash, known.windows, known.events.len(), known.gone.len())) {
                checked += 1;
                known.check(&image, &format!("call {at}, {call:.200?}, lost: {loss:?}"));
            }
        }
    }
    // What the life above is known to do at the least: a trace that shows less shows nothing.
    assert!(checked > 300, "{checked} crashes of {} calls", calls.len());
}

fn crc_of(image: &Image) -> Vec<(PathBuf, u32)> {
    let sum = |content: &Option<Vec<u8>>| content.as_deref().map_or(0, crc32c::crc32c);
    image.iter().map(|(path, content)| (path.clone(), sum(content))).collect()
}
