//! Store and forward: messages wait here until the broker has acknowledged them.
//!
//! Two queues, events and telemetry, each a folder of segment files that are only appended to and
//! deleted as a whole. A record is
//!
//! ```text
//! "ESPR"  length u32  crc32c u32  id u64  unix_ms u64  topic_length u16  topic  payload
//! ```
//!
//! little-endian; the length and the checksum cover what follows the checksum. A segment goes when
//! each of its records was acknowledged. Records of a segment that has not gone are sent again after
//! a restart: once is the least, not the most.
//!
//! The spool is bounded. At its limit the oldest telemetry goes first; events go only when there is
//! no telemetry left. What a torn write or a flipped bit destroyed is skipped on opening, and no more
//! than that.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::state_dir::PathError;

#[doc(hidden)]
pub mod fuzzing;
mod record;

/// The largest record taken: a payload of the largest size, and its topic.
pub const MAX_RECORD_BYTES: usize = wire::MAX_PAYLOAD_BYTES + 4096;
/// A segment's size from which the next one is begun.
const SEGMENT_BYTES: u64 = 256 << 10;

/// What is given up last, and what first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Something that happened once.
    Event,
    /// A window among many.
    Telemetry,
}

/// A message that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Its number in the spool.
    pub id: u64,
    /// When it was put in.
    pub unix_ms: u64,
    /// Where it goes.
    pub topic: String,
    /// What it says.
    pub payload: Vec<u8>,
}

/// What was given up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dropped {
    /// Unacknowledged records.
    pub records: u64,
    /// Bytes of segments.
    pub bytes: u64,
}

/// How full it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Fill {
    /// Unacknowledged records.
    pub records: u64,
    /// Bytes on disk.
    pub bytes: u64,
    /// The limit on them.
    pub max_bytes: u64,
    /// Bytes that were damaged when it was opened.
    pub damaged_bytes: u64,
}

/// The durable queue.
#[derive(Debug)]
pub struct Spool {
    queues: BTreeMap<Class, Queue>,
    max_bytes: u64,
    next_id: u64,
    damaged_bytes: u64,
}

#[derive(Debug)]
struct Queue {
    folder: PathBuf,
    segments: VecDeque<Segment>,
    /// The last segment, while it is being written.
    open: Option<File>,
}

#[derive(Debug)]
struct Segment {
    path: PathBuf,
    bytes: u64,
    entries: BTreeMap<u64, Entry>,
}

#[derive(Debug)]
struct Entry {
    offset: u64,
    length: usize,
    sent: bool,
}

impl Spool {
    /// Opens the spool and finds what waits.
    ///
    /// # Errors
    /// The system's, with the path.
    pub fn open(folder: &Path, max_bytes: u64) -> Result<Self, PathError> {
        let mut spool = Self { queues: BTreeMap::new(), max_bytes, next_id: 1, damaged_bytes: 0 };
        for (class, name) in [(Class::Event, "events"), (Class::Telemetry, "telemetry")] {
            let queue = Queue::open(&folder.join(name), &mut spool.damaged_bytes)?;
            let last = queue.segments.iter().filter_map(Segment::last_id).max();
            spool.next_id = spool.next_id.max(last.unwrap_or(0) + 1);
            spool.queues.insert(class, queue);
        }
        Ok(spool)
    }

    /// Puts a message in, and says what had to go for it.
    ///
    /// # Errors
    /// The system's, with the path; the message is not in.
    pub fn push(
        &mut self,
        class: Class,
        unix_ms: u64,
        topic: &str,
        payload: &[u8],
    ) -> Result<Dropped, PathError> {
        let bytes = record::encode(self.next_id, unix_ms, topic, payload);
        if bytes.len() > MAX_RECORD_BYTES {
            return Ok(Dropped { records: 1, bytes: bytes.len() as u64 });
        }
        let dropped = self.make_room(bytes.len() as u64)?;
        let id = self.next_id;
        self.next_id += 1;
        self.queue(class).append(id, &bytes, class == Class::Event)?;
        Ok(dropped)
    }

    /// The oldest message that has not been sent, now taken as sent. Damage found on the way is
    /// skipped.
    ///
    /// # Errors
    /// The system's, with the path.
    pub fn take_unsent(&mut self) -> Result<Option<Message>, PathError> {
        loop {
            let oldest = |(class, queue): (&Class, &Queue)| Some((queue.first_unsent()?, *class));
            let Some((id, class)) = self.queues.iter().filter_map(oldest).min() else {
                return Ok(None);
            };
            match self.queue(class).read(id)? {
                Some(message) => return Ok(Some(message)),
                None => self.acknowledge(id)?,
            }
        }
    }

    /// The broker has it: it need not be kept.
    ///
    /// # Errors
    /// The system's, with the path.
    pub fn acknowledge(&mut self, id: u64) -> Result<(), PathError> {
        for queue in self.queues.values_mut() {
            queue.acknowledge(id)?;
        }
        Ok(())
    }

    /// The connection is gone: what was sent and not acknowledged is to be sent again.
    pub fn resend_all(&mut self) {
        let segments = self.queues.values_mut().flat_map(|q| &mut q.segments);
        let entries = segments.flat_map(|segment| segment.entries.values_mut());
        entries.for_each(|entry| entry.sent = false);
    }

    /// One message is to be sent again. Says whether it is still there.
    pub fn resend(&mut self, id: u64) -> bool {
        let segments = self.queues.values_mut().flat_map(|q| &mut q.segments);
        let mut entries = segments.filter_map(|segment| segment.entries.get_mut(&id));
        let entry = entries.next();
        entry.map(|entry| entry.sent = false).is_some()
    }

    /// How full it is.
    #[must_use]
    pub fn fill(&self) -> Fill {
        let segments = || self.queues.values().flat_map(|queue| &queue.segments);
        Fill {
            records: segments().map(|s| s.entries.len() as u64).sum(),
            bytes: segments().map(|s| s.bytes).sum(),
            max_bytes: self.max_bytes,
            damaged_bytes: self.damaged_bytes,
        }
    }

    fn queue(&mut self, class: Class) -> &mut Queue {
        self.queues.get_mut(&class).expect("both queues are made on opening")
    }

    fn make_room(&mut self, bytes: u64) -> Result<Dropped, PathError> {
        let mut dropped = Dropped::default();
        while self.fill().bytes + bytes > self.max_bytes {
            let telemetry = !self.queue(Class::Telemetry).segments.is_empty();
            let class = if telemetry { Class::Telemetry } else { Class::Event };
            let Some(gone) = self.queue(class).drop_oldest()? else {
                break;
            };
            dropped.records += gone.records;
            dropped.bytes += gone.bytes;
        }
        Ok(dropped)
    }
}

impl Queue {
    fn open(folder: &Path, damaged: &mut u64) -> Result<Self, PathError> {
        fs::create_dir_all(folder).map_err(PathError::at("create", folder))?;
        // Without its name nothing in it is durable.
        super::state_dir::sync_folder_of(folder)?;
        let mut paths = Vec::new();
        for entry in fs::read_dir(folder).map_err(PathError::at("list", folder))? {
            let path = entry.map_err(PathError::at("list", folder))?.path();
            if path.extension().is_some_and(|extension| extension == "seg") {
                paths.push(path);
            }
        }
        paths.sort();
        let mut queue = Self { folder: folder.to_owned(), segments: VecDeque::new(), open: None };
        for path in paths {
            let segment = Segment::scan(path, damaged)?;
            if segment.entries.is_empty() {
                segment.delete()?;
            } else {
                queue.segments.push_back(segment);
            }
        }
        Ok(queue)
    }

    fn append(&mut self, id: u64, bytes: &[u8], sync: bool) -> Result<(), PathError> {
        let full = |segment: &Segment| segment.bytes >= SEGMENT_BYTES;
        if self.open.is_none() || self.segments.back().is_none_or(full) {
            self.begin(id)?;
        }
        let (Some(file), Some(segment)) = (&mut self.open, self.segments.back_mut()) else {
            return Ok(());
        };
        let written = file.write_all(bytes);
        let written = written.and_then(|()| if sync { file.sync_data() } else { Ok(()) });
        if let Err(error) = written {
            let _ = file.set_len(segment.bytes);
            return Err(PathError::at("append to", &segment.path)(error));
        }
        let entry = Entry { offset: segment.bytes, length: bytes.len(), sent: false };
        segment.bytes += bytes.len() as u64;
        segment.entries.insert(id, entry);
        Ok(())
    }

    fn begin(&mut self, id: u64) -> Result<(), PathError> {
        let path = self.folder.join(format!("{id:020}.seg"));
        let mut options = OpenOptions::new();
        let file = options.create(true).append(true).open(&path);
        let file = file.map_err(PathError::at("create", &path))?;
        super::state_dir::sync_folder_of(&path)?;
        self.open = Some(file);
        self.segments.push_back(Segment { path, bytes: 0, entries: BTreeMap::new() });
        Ok(())
    }

    fn first_unsent(&self) -> Option<u64> {
        let entries = self.segments.iter().flat_map(|segment| &segment.entries);
        entries.filter(|(_, entry)| !entry.sent).map(|(id, _)| *id).next()
    }

    fn read(&mut self, id: u64) -> Result<Option<Message>, PathError> {
        let holds = |segment: &&mut Segment| segment.entries.contains_key(&id);
        let Some(segment) = self.segments.iter_mut().find(holds) else {
            return Ok(None);
        };
        let Some(entry) = segment.entries.get_mut(&id) else {
            return Ok(None);
        };
        let mut bytes = vec![0; entry.length];
        let mut read = || {
            let mut file = File::open(&segment.path)?;
            file.seek(SeekFrom::Start(entry.offset))?;
            file.read_exact(&mut bytes)
        };
        read().map_err(PathError::at("read", &segment.path))?;
        entry.sent = true;
        Ok(record::decode(&bytes).map(|(message, _)| message))
    }

    fn acknowledge(&mut self, id: u64) -> Result<(), PathError> {
        let holds = |segment: &Segment| segment.entries.contains_key(&id);
        let Some(at) = self.segments.iter().position(holds) else {
            return Ok(());
        };
        self.segments[at].entries.remove(&id);
        if !self.segments[at].entries.is_empty() {
            return Ok(());
        }
        if at + 1 == self.segments.len() {
            self.open = None;
        }
        match self.segments.remove(at) {
            Some(segment) => segment.delete(),
            None => Ok(()),
        }
    }

    fn drop_oldest(&mut self) -> Result<Option<Dropped>, PathError> {
        let Some(segment) = self.segments.pop_front() else {
            return Ok(None);
        };
        if self.segments.is_empty() {
            self.open = None;
        }
        segment.delete()?;
        Ok(Some(Dropped { records: segment.entries.len() as u64, bytes: segment.bytes }))
    }
}

impl Segment {
    fn last_id(&self) -> Option<u64> {
        self.entries.keys().next_back().copied()
    }

    /// Finds the whole records of a segment file; what lies between them is damage.
    fn scan(path: PathBuf, damaged: &mut u64) -> Result<Self, PathError> {
        let content = fs::read(&path).map_err(PathError::at("read", &path))?;
        let mut entries = BTreeMap::new();
        let mut offset = 0;
        while offset < content.len() {
            let Some((message, length)) = record::decode(&content[offset..]) else {
                let next = record::find(&content[offset + 1..]).map(|at| offset + 1 + at);
                let next = next.unwrap_or(content.len());
                *damaged += (next - offset) as u64;
                offset = next;
                continue;
            };
            let entry = Entry { offset: offset as u64, length, sent: false };
            entries.insert(message.id, entry);
            offset += length;
        }
        Ok(Self { path, bytes: content.len() as u64, entries })
    }

    fn delete(&self) -> Result<(), PathError> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(PathError::at("remove", &self.path)(error))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
