//! The journal file: one line of JSON per decision, synced before the decision takes effect.
//!
//! ```text
//! {"crc32c":"0a1b2c3d","entry":{"ts":1764000000000,"record":{"kind":"install","state":"loading",…}}}
//! ```
//!
//! The checksum covers the text of `entry` as it stands. `ts` is Unix time in milliseconds, for
//! people. A torn or damaged last line is what a power cut leaves: it is cut off on opening. Damage
//! before the last line is disk trouble: everything from there on is set aside in `journal.damaged`,
//! and the agent goes on from what came before it.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::state_dir::{PathError, write_atomically};
use crate::core::{Durable, Record};

pub mod reading;

/// The smallest size from which the journal is rewritten as one snapshot.
const COMPACT_BYTES: u64 = 1 << 20;
/// It is rewritten at this many times the size of the last snapshot: what was written since is then
/// as much as what has to be written again.
const COMPACT_FACTOR: u64 = 2;
/// The largest journal read; compaction keeps it far below.
const MAX_BYTES: u64 = 256 << 20;

const BEFORE_SUM: &str = "{\"crc32c\":\"";
const BEFORE_ENTRY: &str = "\",\"entry\":";

#[derive(Serialize, Deserialize)]
struct Entry<R> {
    ts: u64,
    record: R,
}

/// The open journal.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    bytes: u64,
    /// The size of the snapshot that it begins with.
    snapshot_bytes: u64,
    /// How many more records are taken before one fails.
    #[cfg(test)]
    pub(super) room: Option<u32>,
}

/// What was found on opening.
#[derive(Debug)]
pub struct Opened {
    /// The journal, ready to append.
    pub journal: Journal,
    /// What it held.
    pub records: Vec<Record>,
    /// What had to be cut off, if anything.
    pub cut: Option<Cut>,
}

/// A part of the journal that could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Its size.
    pub bytes: u64,
    /// How many lines it has; more than one is not what a power cut leaves.
    pub lines: usize,
}

impl Journal {
    /// Opens the journal, or begins one, and reads what it holds.
    ///
    /// # Errors
    /// The system's, with the path.
    pub fn open(path: &Path) -> Result<Opened, PathError> {
        let mut options = OpenOptions::new();
        let file = options.create(true).read(true).append(true).open(path);
        let mut file = file.map_err(PathError::at("open", path))?;
        let mut content = Vec::new();
        let read = (&mut file).take(MAX_BYTES).read_to_end(&mut content);
        read.map_err(PathError::at("read", path))?;
        let (records, good) = parse(&content);
        let cut = cut(&content[good..]);
        if let Some(cut) = &cut {
            if cut.lines > 1 {
                let aside = path.with_file_name("journal.damaged");
                write_atomically(&aside, &content[good..])?;
            }
            let shorten = file.set_len(good as u64).and_then(|()| file.sync_all());
            shorten.map_err(PathError::at("shorten", path))?;
        }
        super::state_dir::sync_folder_of(path)?;
        let journal = Self {
            path: path.to_owned(),
            file,
            bytes: good as u64,
            snapshot_bytes: snapshot_bytes(&content, &records),
            #[cfg(test)]
            room: None,
        };
        Ok(Opened { journal, records, cut })
    }

    /// Appends a record and syncs it. On an error nothing is appended.
    ///
    /// # Errors
    /// The system's, with the path.
    pub fn append(&mut self, unix_ms: u64, record: &Record) -> Result<(), PathError> {
        #[cfg(test)]
        self.take_room()?;
        let line = line(unix_ms, record);
        let written = self.file.write_all(line.as_bytes());
        if let Err(error) = written.and_then(|()| self.file.sync_data()) {
            // Half a line must not stay in front of the next one.
            let _ = self.file.set_len(self.bytes);
            return Err(PathError::at("append to", &self.path)(error));
        }
        crate::sys::disk::count(line.len());
        self.bytes += line.len() as u64;
        Ok(())
    }

    /// Stands in for a full disk.
    #[cfg(test)]
    fn take_room(&mut self) -> Result<(), PathError> {
        let full = || std::io::Error::from(std::io::ErrorKind::StorageFull);
        match &mut self.room {
            Some(0) => Err(PathError::at("append to", &self.path)(full())),
            Some(room) => {
                *room -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Whether it has grown enough to be worth rewriting.
    #[must_use]
    pub fn is_long(&self) -> bool {
        self.bytes > COMPACT_BYTES.max(self.snapshot_bytes.saturating_mul(COMPACT_FACTOR))
    }

    /// Replaces everything by one snapshot, atomically.
    ///
    /// # Errors
    /// The system's, with the path; the journal is as it was.
    pub fn compact(&mut self, unix_ms: u64, durable: &Durable) -> Result<(), PathError> {
        let durable = Box::new(durable.clone());
        let line = line(unix_ms, &Record::Snapshot { durable });
        write_atomically(&self.path, line.as_bytes())?;
        let file = OpenOptions::new().append(true).open(&self.path);
        self.file = file.map_err(PathError::at("open", &self.path))?;
        self.bytes = line.len() as u64;
        self.snapshot_bytes = self.bytes;
        Ok(())
    }
}

/// Reads a journal that another process may be writing: a last line that is not whole is left out.
///
/// # Errors
/// The system's, with the path.
pub fn peek(path: &Path) -> Result<Vec<Record>, PathError> {
    let content = fs::read(path).map_err(PathError::at("read", path))?;
    Ok(parse(&content).0)
}

fn line(ts: u64, record: &Record) -> String {
    let entry = serde_json::to_string(&Entry { ts, record })
        .expect("records hold only string keys and infallible serializers");
    let sum = crc32c::crc32c(entry.as_bytes());
    format!("{BEFORE_SUM}{sum:08x}{BEFORE_ENTRY}{entry}}}\n")
}

/// The length of the first line, where it is a snapshot.
fn snapshot_bytes(content: &[u8], records: &[Record]) -> u64 {
    match records.first() {
        Some(Record::Snapshot { .. }) => {
            content.iter().position(|byte| *byte == b'\n').map_or(0, |end| end as u64 + 1)
        }
        _ => 0,
    }
}

/// The whole records from the beginning, and where they end.
fn parse(content: &[u8]) -> (Vec<Record>, usize) {
    let mut records = Vec::new();
    let mut good = 0;
    while let Some(length) = content[good..].iter().position(|byte| *byte == b'\n') {
        let Ok(noted) = reading::entry(&content[good..good + length]) else {
            break;
        };
        records.push(noted.record);
        good += length + 1;
    }
    (records, good)
}

fn cut(rest: &[u8]) -> Option<Cut> {
    let lines = rest.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    (!rest.is_empty()).then(|| Cut { bytes: rest.len() as u64, lines: lines.count() })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use wire::BudgetKind;

    fn record(n: u64) -> Record {
        Record::Requested {
            model: "m".into(),
            budget: BudgetKind::LatencyP95,
            request_id: format!("r{n}"),
            digest: format!("sha256:{n:064x}"),
            request: None,
        }
    }

    fn written(dir: &Path, n: u64) -> PathBuf {
        let path = dir.join("journal");
        let mut opened = Journal::open(&path).unwrap();
        (0..n).for_each(|i| opened.journal.append(1, &record(i)).unwrap());
        path
    }

    #[test]
    fn what_was_appended_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = written(dir.path(), 3);
        let opened = Journal::open(&path).unwrap();
        assert_eq!(opened.records, [record(0), record(1), record(2)]);
        assert_eq!(opened.cut, None);
        let text = fs::read_to_string(&path).unwrap();
        let parsed: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        assert_eq!(parsed["entry"]["record"]["kind"], "requested");
    }

    #[test]
    fn records_of_earlier_versions_are_read() {
        let requested = r#"{"kind":"requested","model":"m","budget":"latency_p95","request_id":"r0","digest":"d"}"#;
        let Record::Requested { request, .. } = serde_json::from_str(requested).unwrap() else {
            panic!("another kind");
        };
        assert_eq!(request, None);
        let reverted = r#"{"kind":"reverted","model":"m","from":"d","reason":"slow"}"#;
        let Record::Reverted { block, .. } = serde_json::from_str(reverted).unwrap() else {
            panic!("another kind");
        };
        assert!(block, "every one was blocked");
    }

    #[test]
    fn every_torn_tail_leaves_the_whole_records_and_room_for_more() {
        let dir = tempfile::tempdir().unwrap();
        let path = written(dir.path(), 2);
        let whole = fs::read(&path).unwrap();
        let first = whole.iter().position(|b| *b == b'\n').unwrap() + 1;
        for length in first..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            let mut opened = Journal::open(&path).unwrap();
            assert_eq!(opened.records, [record(0)], "cut at {length}");
            opened.journal.append(1, &record(9)).unwrap();
            assert_eq!(peek(&path).unwrap(), [record(0), record(9)]);
        }
    }

    #[test]
    fn a_flipped_bit_in_the_middle_sets_the_rest_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = written(dir.path(), 3);
        let mut bytes = fs::read(&path).unwrap();
        let second = bytes.iter().position(|b| *b == b'\n').unwrap() + 60;
        bytes[second] ^= 1;
        fs::write(&path, &bytes).unwrap();
        let opened = Journal::open(&path).unwrap();
        assert_eq!(opened.records, [record(0)]);
        assert_eq!(opened.cut.unwrap().lines, 2);
        assert!(dir.path().join("journal.damaged").exists());
    }

    #[test]
    fn a_state_larger_than_the_limit_is_not_rewritten_until_as_much_was_added() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let mut journal = Journal::open(&path).unwrap().journal;
        let mut durable = Durable::default();
        let model = durable.models.entry("m".into()).or_default();
        model.blocked = (0..20_000).map(|n: u64| format!("sha256:{n:064x}")).collect();
        journal.compact(1, &durable).unwrap();
        let snapshot = journal.bytes;
        assert!(snapshot > COMPACT_BYTES);
        assert!(!journal.is_long(), "it would be rewritten on every tick");
        let mut journal = Journal::open(&path).unwrap().journal;
        assert!(!journal.is_long(), "nor after a restart");
        journal.bytes = snapshot * COMPACT_FACTOR + 1;
        assert!(journal.is_long());
    }

    #[test]
    fn a_compacted_journal_adds_up_to_the_same_and_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = written(dir.path(), 3);
        let mut opened = Journal::open(&path).unwrap();
        let mut durable = Durable::default();
        opened.records.iter().for_each(|r| durable.apply(r));
        opened.journal.compact(1, &durable).unwrap();
        opened.journal.append(1, &record(7)).unwrap();
        durable.apply(&record(7));
        let mut again = Durable::default();
        let records = Journal::open(&path).unwrap().records;
        assert_eq!(records.len(), 2);
        records.iter().for_each(|r| again.apply(r));
        assert_eq!(again, durable);
    }
}
