//! Tables of text: `.csv` with a header line, and `.jsonl` with one object a line. Where each record
//! begins is kept in memory; records are read when they are asked for.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;

use super::records::{Raw, Records};
use super::{MAX_SAMPLES, Problem, file_digest, limit};

/// The longest record of a table.
pub(crate) const MAX_RECORD_BYTES: u64 = 64 << 20;
/// The most columns of a `.csv`.
pub(crate) const MAX_COLUMNS: usize = 100_000;

/// A reader that ends with an error when one record goes on for too long, as one does whose quote is
/// never closed.
#[derive(Debug)]
struct Bounded {
    file: File,
    left: Arc<AtomicU64>,
}

impl Read for Bounded {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let left = self.left.load(Ordering::Relaxed);
        if left == 0 {
            return Err(std::io::Error::other(format!(
                "a record is longer than MAX_RECORD_BYTES = {MAX_RECORD_BYTES}"
            )));
        }
        let read = self.file.read(buffer)?;
        self.left.store(left.saturating_sub(read as u64), Ordering::Relaxed);
        Ok(read)
    }
}

impl Seek for Bounded {
    fn seek(&mut self, position: SeekFrom) -> std::io::Result<u64> {
        self.file.seek(position)
    }
}

/// Comma-separated values (RFC 4180) with a header line.
#[derive(Debug)]
pub(crate) struct Csv {
    columns: Vec<String>,
    /// Where each column stands.
    places: HashMap<String, usize>,
    /// Where each record begins, and its line.
    records: Vec<(u64, u64)>,
    reader: Mutex<csv::Reader<Bounded>>,
    left: Arc<AtomicU64>,
    digest: bundle::Digest,
}

impl Csv {
    pub(crate) fn open(path: &Path) -> Result<Self, Problem> {
        let wrong = |e: csv::Error| Problem::Format(format!("is no readable .csv: {e}"));
        let digest = file_digest(path)?;
        let left = Arc::new(AtomicU64::new(MAX_RECORD_BYTES));
        let file = File::open(path).map_err(Problem::Read)?;
        let mut reader = csv::Reader::from_reader(Bounded { file, left: left.clone() });
        let header = reader.headers().map_err(wrong)?;
        let columns: Vec<String> = header.iter().map(str::to_owned).collect();
        limit("number of columns", columns.len() as u64, "MAX_COLUMNS", MAX_COLUMNS as u64)?;
        let mut places = HashMap::new();
        for (place, column) in columns.iter().enumerate() {
            if places.insert(column.clone(), place).is_some() {
                return Err(Problem::Format(format!("has two columns \"{column}\"")));
            }
        }
        let mut records = Vec::new();
        let mut record = csv::ByteRecord::new();
        loop {
            left.store(MAX_RECORD_BYTES, Ordering::Relaxed);
            if !reader.read_byte_record(&mut record).map_err(wrong)? {
                break;
            }
            if let Some(position) = record.position() {
                records.push((position.byte(), position.line()));
            }
            limit("number of samples", records.len() as u64, "MAX_SAMPLES", MAX_SAMPLES as u64)?;
        }
        if records.is_empty() {
            return Err(Problem::NoSamples);
        }
        Ok(Self { columns, places, records, reader: Mutex::new(reader), left, digest })
    }
}

impl Records for Csv {
    fn len(&self) -> usize {
        self.records.len()
    }

    fn fields(&self) -> Vec<String> {
        self.columns.clone()
    }

    fn get(&self, sample: usize, field: &str) -> Result<Raw, String> {
        let mut only = self.get_all(sample, std::slice::from_ref(&field.to_owned()))?;
        only.pop().ok_or_else(|| "has no value".into())
    }

    fn get_all(&self, sample: usize, fields: &[String]) -> Result<Vec<Raw>, String> {
        let (byte, line) = *self.records.get(sample).ok_or("is no sample")?;
        let unreadable = |e: csv::Error| format!("cannot be read in line {line}: {e}");
        // A reader that was given up while it read is set to its place anew.
        let mut reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        let mut position = csv::Position::new();
        position.set_byte(byte).set_line(line);
        self.left.store(MAX_RECORD_BYTES, Ordering::Relaxed);
        reader.seek(position).map_err(unreadable)?;
        let mut record = csv::StringRecord::new();
        reader.read_record(&mut record).map_err(unreadable)?;
        let value = |field: &String| {
            let place =
                self.places.get(field).ok_or_else(|| format!("has no column \"{field}\""))?;
            let text = record.get(*place).ok_or_else(|| format!("has no value in line {line}"))?;
            Ok(Raw::Text(text.to_owned()))
        };
        fields.iter().map(value).collect()
    }

    fn digest(&self) -> bundle::Digest {
        self.digest
    }
}

/// JSON Lines: one object a line; blank lines are passed over.
#[derive(Debug)]
pub(crate) struct JsonLines {
    path: PathBuf,
    file: File,
    /// Offset and length of each line, and its number.
    lines: Vec<(u64, u32, u64)>,
    fields: Vec<String>,
    digest: bundle::Digest,
}

impl JsonLines {
    pub(crate) fn open(path: &Path) -> Result<Self, Problem> {
        let digest = file_digest(path)?;
        let file = File::open(path).map_err(Problem::Read)?;
        let mut reader = BufReader::new(&file);
        let (mut lines, mut offset, mut number) = (Vec::new(), 0u64, 0u64);
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = (&mut reader)
                .take(MAX_RECORD_BYTES + 1)
                .read_until(b'\n', &mut line)
                .map_err(Problem::Read)? as u64;
            if read == 0 {
                break;
            }
            number += 1;
            let what = format!("length of line {number} in bytes");
            limit(&what, read, "MAX_RECORD_BYTES", MAX_RECORD_BYTES)?;
            if !line.trim_ascii().is_empty() {
                lines.push((offset, read as u32, number));
            }
            offset += read;
            limit("number of samples", lines.len() as u64, "MAX_SAMPLES", MAX_SAMPLES as u64)?;
        }
        if lines.is_empty() {
            return Err(Problem::NoSamples);
        }
        let path = path.to_path_buf();
        let mut this = Self { path, file, lines, fields: Vec::new(), digest };
        this.fields = this.object(0).map_err(Problem::Format)?.into_iter().map(|f| f.0).collect();
        Ok(this)
    }

    fn object(&self, sample: usize) -> Result<serde_json::Map<String, Value>, String> {
        let (offset, length, number) = *self.lines.get(sample).ok_or("is no sample")?;
        let mut line = vec![0u8; length as usize];
        self.file
            .read_exact_at(&mut line, offset)
            .map_err(|e| format!("cannot be read in line {number}: {e}"))?;
        serde_json::from_slice(&line)
            .map_err(|e| format!("line {number} of {} is no JSON object: {e}", self.path.display()))
    }
}

impl JsonLines {
    fn raw(&self, sample: usize, value: Option<&Value>, field: &str) -> Result<Raw, String> {
        let line = self.lines.get(sample).map_or(0, |l| l.2);
        match value {
            None => Err(format!("has no field \"{field}\" in line {line}")),
            Some(Value::String(text)) => Ok(Raw::Text(text.clone())),
            Some(value) => {
                let mut values = Vec::new();
                let shape = numbers(value, &mut values)
                    .map_err(|what| format!("line {line}, field \"{field}\": {what}"))?;
                Ok(Raw::Numbers { shape, values })
            }
        }
    }
}

impl Records for JsonLines {
    fn len(&self) -> usize {
        self.lines.len()
    }

    fn fields(&self) -> Vec<String> {
        self.fields.clone()
    }

    fn get(&self, sample: usize, field: &str) -> Result<Raw, String> {
        self.raw(sample, self.object(sample)?.get(field), field)
    }

    fn get_all(&self, sample: usize, fields: &[String]) -> Result<Vec<Raw>, String> {
        let object = self.object(sample)?;
        fields.iter().map(|field| self.raw(sample, object.get(field), field)).collect()
    }

    fn digest(&self) -> bundle::Digest {
        self.digest
    }
}

/// Appends the numbers of nested lists and gives their shape.
fn numbers(value: &Value, into: &mut Vec<f64>) -> Result<Vec<usize>, String> {
    match value {
        Value::Number(number) => {
            into.push(number.as_f64().ok_or("holds a number that no f64 holds")?);
            Ok(Vec::new())
        }
        Value::Bool(value) => {
            into.push(f64::from(u8::from(*value)));
            Ok(Vec::new())
        }
        Value::Array(list) => {
            let mut inner: Option<Vec<usize>> = None;
            for item in list {
                let shape = numbers(item, into)?;
                if *inner.get_or_insert_with(|| shape.clone()) != shape {
                    return Err("holds lists of different lengths".into());
                }
            }
            let mut shape = vec![list.len()];
            shape.extend(inner.unwrap_or_default());
            Ok(shape)
        }
        Value::Null => Err("is null; clean the data first".into()),
        _ => Err("is neither a number, a list of numbers nor a text".into()),
    }
}
