//! What was measured of a model's widths, kept in a file from one run to the next.
//!
//! JSON lines: a header that says what everything in the file depends on, then one line for each measurement, written
//! at once and synced. A run that is stopped or killed at any point leaves whole lines and at most one broken last
//! one, which is dropped. A file of another model, other samples or another setting is begun anew, and the notes say
//! what differs; a file that is none of ours is never written to.

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, TryLockError};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::CompressError;
use crate::latency::HostLatency;
use crate::pipeline::Progress;
use crate::plan::{RepairKind, ScoreKind};

/// The largest file of measurements.
pub(crate) const MAX_CURVES_BYTES: u64 = 64 << 20;
/// Of the file's layout.
const FORMAT: u32 = 1;
/// How every such file begins.
const BEGINNING: &str = "{\"espalier_curves\":";

/// What losses depend on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Key {
    /// Digest of the model's file.
    pub(crate) model: String,
    /// Digest of the samples' file.
    pub(crate) data: String,
    /// How units were rated.
    pub(crate) score: ScoreKind,
    /// What repaired the models that losses are of.
    pub(crate) repairs: Vec<RepairKind>,
    /// Digest of the ratings, which say what units a width keeps.
    pub(crate) ratings: String,
    /// Name and version of the engine that ran the samples and was timed.
    pub(crate) engine: String,
    pub(crate) seed: u64,
    /// Samples that losses are means over.
    pub(crate) samples: usize,
    /// Name and version of this program.
    pub(crate) tool: String,
}

/// What timings depend on besides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Host {
    pub(crate) name: String,
    pub(crate) threads: usize,
}

/// Narrowed groups and their widths, by group.
pub(crate) type Widths = Vec<(usize, usize)>;

#[derive(Debug, Serialize, Deserialize)]
struct Header {
    espalier_curves: u32,
    #[serde(flatten)]
    key: Key,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Record {
    Loss { widths: Widths, loss: f64 },
    Latency { widths: Widths, on: Host, took: HostLatency },
}

/// The file and what it holds.
#[derive(Debug)]
pub(crate) struct Store {
    path: PathBuf,
    file: File,
    host: Host,
    losses: HashMap<Widths, f64>,
    latencies: HashMap<Widths, HostLatency>,
}

impl Store {
    /// Opens or begins the file at `path` for `key`, and holds it for this run alone. Timings of another host are kept
    /// in the file and not used.
    ///
    /// # Errors
    /// The file cannot be read or written, is larger than [`MAX_CURVES_BYTES`], is of another kind, or another run
    /// holds it.
    pub(crate) fn open(
        path: &Path,
        key: &Key,
        host: Host,
        progress: &dyn Progress,
    ) -> Result<Self, CompressError> {
        let mut options = File::options();
        let options = options.read(true).write(true).create(true).truncate(false);
        let mut file = options.open(path).map_err(CompressError::io(path))?;
        lock(&file, path)?;
        let text = read(&mut file, path)?;
        let (losses, latencies) = (HashMap::new(), HashMap::new());
        let mut store = Self { path: path.to_path_buf(), file, host, losses, latencies };
        let whole = match store.header(&text, key)? {
            Begun::Ours(whole) => whole,
            Begun::Anew(why) => {
                if let Some(why) = why {
                    progress.note(&format!("{}: {why}; it is begun anew", path.display()));
                }
                return store.begin(key);
            }
        };
        let whole = store.records(&text, whole, progress);
        store.cut(whole)?;
        Ok(store)
    }

    /// The loss at these widths, if it was measured.
    pub(crate) fn loss(&self, widths: &Widths) -> Option<f64> {
        self.losses.get(widths).copied()
    }

    /// The time at these widths beside the original, if it was measured on this host with these threads.
    pub(crate) fn latency(&self, widths: &Widths) -> Option<HostLatency> {
        self.latencies.get(widths).copied()
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Measurements held.
    pub(crate) fn len(&self) -> usize {
        self.losses.len() + self.latencies.len()
    }

    /// Keeps a loss.
    pub(crate) fn keep_loss(&mut self, widths: &Widths, loss: f64) -> Result<(), CompressError> {
        self.losses.insert(widths.clone(), loss);
        self.append(&Record::Loss { widths: widths.clone(), loss })
    }

    /// Keeps a time.
    pub(crate) fn keep_latency(
        &mut self,
        widths: &Widths,
        took: HostLatency,
    ) -> Result<(), CompressError> {
        self.latencies.insert(widths.clone(), took);
        let on = self.host.clone();
        self.append(&Record::Latency { widths: widths.clone(), on, took })
    }

    fn append(&mut self, line: &impl Serialize) -> Result<(), CompressError> {
        let mut text = serde_json::to_vec(line).map_err(|e| self.wrong(e.to_string()))?;
        text.push(b'\n');
        let written = self.file.write_all(&text).and_then(|()| self.file.sync_data());
        written.map_err(CompressError::io(&self.path))
    }

    /// Whose file this is, by its first line.
    fn header(&self, text: &str, key: &Key) -> Result<Begun, CompressError> {
        let Some(end) = text.find('\n') else {
            // Killed while the header was written, or nothing of ours.
            let ours = text.starts_with(BEGINNING) || BEGINNING.starts_with(text);
            return if ours { Ok(Begun::Anew(None)) } else { Err(self.not_ours()) };
        };
        let line = &text[..end];
        if !line.starts_with(BEGINNING) {
            return Err(self.not_ours());
        }
        match serde_json::from_str::<Header>(line) {
            Ok(header) if header.espalier_curves == FORMAT && header.key == *key => {
                Ok(Begun::Ours(end + 1))
            }
            Ok(header) if header.espalier_curves == FORMAT => {
                let what = differences(&header.key, key);
                Ok(Begun::Anew(Some(format!("what it holds was measured with another {what}"))))
            }
            _ => Ok(Begun::Anew(Some("it was written by another version".into()))),
        }
    }

    /// Takes the records from `at` on; where the last whole one ends.
    fn records(&mut self, text: &str, mut at: usize, progress: &dyn Progress) -> usize {
        for (number, line) in text[at..].split_inclusive('\n').enumerate() {
            let whole = line.ends_with('\n');
            let Ok(record) = serde_json::from_str(line) else {
                if whole {
                    let place = format!("{}: line {}", self.path.display(), number + 2);
                    progress.note(&format!(
                        "{place} cannot be read; what stands from there on is measured again"
                    ));
                }
                break;
            };
            if !whole {
                break;
            }
            match record {
                Record::Loss { widths, loss } => drop(self.losses.insert(widths, loss)),
                Record::Latency { widths, on, took } if on == self.host => {
                    self.latencies.insert(widths, took);
                }
                Record::Latency { .. } => {}
            }
            at += line.len();
        }
        at
    }

    fn begin(mut self, key: &Key) -> Result<Self, CompressError> {
        self.cut(0)?;
        self.append(&Header { espalier_curves: FORMAT, key: key.clone() })?;
        Ok(self)
    }

    /// Drops what stands behind `at`, and goes on there.
    fn cut(&mut self, at: usize) -> Result<(), CompressError> {
        let cut = self.file.set_len(at as u64);
        let cut = cut.and_then(|()| self.file.seek(SeekFrom::Start(at as u64)));
        cut.map(drop).map_err(CompressError::io(&self.path))
    }

    fn not_ours(&self) -> CompressError {
        self.wrong(
            "is no file of measured widths, and is left as it is; name another with --curves"
                .into(),
        )
    }

    fn wrong(&self, what: String) -> CompressError {
        wrong(&self.path, what)
    }
}

/// What a file is.
enum Begun {
    /// For the same key; its records begin here.
    Ours(usize),
    /// To be begun anew, for a reason worth a note or none.
    Anew(Option<String>),
}

fn wrong(path: &Path, what: String) -> CompressError {
    CompressError::Curves { path: path.to_path_buf(), what }
}

fn lock(file: &File, path: &Path) -> Result<(), CompressError> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => {
            Err(wrong(path, "is in use by another run; name another with --curves".into()))
        }
        Err(TryLockError::Error(error)) => Err(CompressError::io(path)(error)),
    }
}

fn read(file: &mut File, path: &Path) -> Result<String, CompressError> {
    let size = file.metadata().map_err(CompressError::io(path))?.len();
    if size > MAX_CURVES_BYTES {
        let limit = format!("more than MAX_CURVES_BYTES = {MAX_CURVES_BYTES}");
        return Err(wrong(path, format!("has {size} bytes, {limit}; name another with --curves")));
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(CompressError::io(path))?;
    Ok(String::from_utf8(bytes).unwrap_or_else(|error| {
        // Up to the first byte that is no text, and a line that cannot be read.
        let text = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        format!("{}\u{fffd}\n", String::from_utf8_lossy(text))
    }))
}

/// The fields in which two keys differ.
fn differences(a: &Key, b: &Key) -> String {
    let fields = |key: &Key| -> BTreeMap<String, serde_json::Value> {
        let value = serde_json::to_value(key).ok();
        value.and_then(|v| serde_json::from_value(v).ok()).unwrap_or_default()
    };
    let (a, b) = (fields(a), fields(b));
    let differ: Vec<&str> =
        a.iter().filter(|(name, v)| b.get(*name) != Some(v)).map(|(n, _)| n.as_str()).collect();
    differ.join(", ")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "store_tests.rs"]
mod tests;
