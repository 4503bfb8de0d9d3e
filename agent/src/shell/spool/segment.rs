//! One file of a queue: records one after the other.
//!
//! A file is named after the first number that was put into it: `FIRST.seg`. One that was merged from others is named
//! after the numbers that it stands for and how coarse it is: `FIRST-LAST-LEVEL.seg`. It takes the place of every finer
//! file whose numbers lie within its own, which is what makes merging atomic: it is whole and its name is durable
//! before the first of those is removed.
//!
//! What a file holds is indexed while something of it is on its way; of others only the count is kept in memory.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::super::state_dir::PathError;
use super::{Message, record};

/// What a file's name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Name {
    /// The lowest number that it may hold.
    pub(super) first: u64,
    /// The highest number that it stands for, where it was merged; else the lowest.
    pub(super) last: u64,
    /// How coarse its windows are; 0 as they came.
    pub(super) level: u8,
}

impl Name {
    pub(super) fn raw(first: u64) -> Self {
        Self { first, last: first, level: 0 }
    }

    pub(super) fn parse(path: &Path) -> Option<Self> {
        let stem = path.file_name()?.to_str()?.strip_suffix(".seg")?;
        let mut parts = stem.split('-').map(str::parse::<u64>);
        let number = |part: Result<u64, _>| part.ok().filter(|number| *number <= record::MAX_ID);
        let first = number(parts.next()?)?;
        let Some(last) = parts.next() else {
            return Some(Self::raw(first));
        };
        let level = u8::try_from(parts.next()?.ok()?).ok()?;
        parts.next().is_none().then_some(Self { first, last: number(last)?, level })
    }

    pub(super) fn file(self) -> String {
        let Self { first, last, level } = self;
        if level == 0 {
            format!("{first:020}.seg")
        } else {
            format!("{first:020}-{last:020}-{level}.seg")
        }
    }

    /// Whether a file of this name takes the place of one of that name.
    pub(super) fn replaces(self, other: Self) -> bool {
        self.level > other.level && self.first <= other.first && other.last <= self.last
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Unsent,
    Sent,
    Acknowledged,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) id: u64,
    offset: u64,
    length: usize,
    pub(super) way: Way,
}

#[derive(Debug)]
pub(super) struct Segment {
    pub(super) path: PathBuf,
    pub(super) name: Name,
    pub(super) bytes: u64,
    /// The highest number in it.
    pub(super) last_id: u64,
    /// The latest time of a record, 0 if none is known.
    pub(super) newest_ms: u64,
    /// Records that were not acknowledged.
    pub(super) records: u64,
    /// Records that were there and are no longer.
    vanished: u64,
    /// In order of number; none while everything in it is unsent.
    index: Option<Vec<Entry>>,
}

impl Segment {
    /// A new and empty one.
    pub(super) fn new(folder: &Path, name: Name) -> Self {
        Self {
            path: folder.join(name.file()),
            name,
            bytes: 0,
            last_id: name.first,
            newest_ms: 0,
            records: 0,
            vanished: 0,
            index: Some(Vec::new()),
        }
    }

    /// Finds the whole records of a file; what lies between them is damage.
    pub(super) fn scan(path: PathBuf, name: Name, damaged: &mut u64) -> Result<Self, PathError> {
        let content = fs::read(&path).map_err(PathError::at("read", &path))?;
        let (entries, newest_ms) = index(&content, damaged);
        Ok(Self {
            path,
            name,
            bytes: content.len() as u64,
            last_id: entries.last().map_or(name.first, |entry| entry.id).max(name.last),
            newest_ms,
            records: entries.len() as u64,
            vanished: 0,
            index: None,
        })
    }

    /// A record was appended.
    pub(super) fn appended(&mut self, id: u64, unix_ms: u64, length: usize, sent: bool) {
        let way = if sent { Way::Sent } else { Way::Unsent };
        let entry = Entry { id, offset: self.bytes, length, way };
        self.index.get_or_insert_default().push(entry);
        self.bytes += length as u64;
        self.last_id = id;
        self.newest_ms = self.newest_ms.max(unix_ms);
        self.records += 1;
    }

    /// The first unsent number from `from` on.
    pub(super) fn next(&mut self, from: u64) -> Result<Option<u64>, PathError> {
        if self.records == 0 || self.last_id < from {
            return Ok(None);
        }
        let mut unsent = self.indexed()?.iter().filter(|entry| entry.way == Way::Unsent);
        Ok(unsent.find(|entry| entry.id >= from).map(|entry| entry.id))
    }

    /// The message of a number, if it is there and whole, from now on taken as sent.
    pub(super) fn take(&mut self, id: u64) -> Result<Option<Message>, PathError> {
        let Some(entry) = self.entry(id) else {
            return Ok(None);
        };
        entry.way = Way::Sent;
        let Entry { offset, length, .. } = *entry;
        let mut bytes = vec![0; length];
        let mut read = || {
            let mut file = File::open(&self.path)?;
            file.seek(SeekFrom::Start(offset))?;
            file.read_exact(&mut bytes)
        };
        read().map_err(PathError::at("read", &self.path))?;
        Ok(record::decode(&bytes).map(|(message, _)| message))
    }

    /// A number that is on its way or was.
    pub(super) fn entry(&mut self, id: u64) -> Option<&mut Entry> {
        if id < self.name.first || id > self.last_id {
            return None;
        }
        let index = self.index.as_mut()?;
        let at = index.binary_search_by_key(&id, |entry| entry.id).ok()?;
        Some(&mut index[at])
    }

    /// Whether something of it is under way.
    pub(super) fn is_under_way(&self) -> bool {
        self.index.iter().flatten().any(|entry| entry.way == Way::Sent)
    }

    /// Everything under way is to be sent again. The index goes, if it can be made again from the file.
    pub(super) fn resend(&mut self, is_open: bool) {
        let Some(index) = &mut self.index else { return };
        let sent = index.iter_mut().filter(|entry| entry.way == Way::Sent);
        sent.for_each(|entry| entry.way = Way::Unsent);
        let fresh = index.iter().all(|entry| entry.way == Way::Unsent);
        if fresh && !is_open {
            self.index = None;
        }
    }

    /// Records that the disk did not give back since this was asked last.
    pub(super) fn take_vanished(&mut self) -> u64 {
        std::mem::take(&mut self.vanished)
    }

    /// Forgets everything in it, which was acknowledged.
    pub(super) fn clear(&mut self) {
        self.index = Some(Vec::new());
        (self.bytes, self.newest_ms, self.records) = (0, 0, 0);
    }

    /// Every message that was not acknowledged.
    pub(super) fn messages(&self) -> Result<Vec<Message>, PathError> {
        let content = fs::read(&self.path).map_err(PathError::at("read", &self.path))?;
        let (entries, _) = index(&content, &mut 0);
        let is_gone = |id: u64| {
            let index = self.index.as_deref().unwrap_or_default();
            let at = index.binary_search_by_key(&id, |entry| entry.id);
            at.is_ok_and(|at| index[at].way == Way::Acknowledged)
        };
        let left = entries.iter().filter(|entry| !is_gone(entry.id));
        let at = |entry: &Entry| usize::try_from(entry.offset).ok();
        let read = |entry: &Entry| Some(record::decode(&content[at(entry)?..])?.0);
        Ok(left.filter_map(read).collect())
    }

    pub(super) fn delete(&self) -> Result<(), PathError> {
        remove(&self.path)
    }

    fn indexed(&mut self) -> Result<&mut Vec<Entry>, PathError> {
        if self.index.is_none() {
            let content = fs::read(&self.path).map_err(PathError::at("read", &self.path))?;
            let (entries, _) = index(&content, &mut 0);
            let found = entries.len() as u64;
            self.vanished += self.records.saturating_sub(found);
            self.records = found;
            self.index = Some(entries);
        }
        Ok(self.index.get_or_insert_default())
    }
}

/// Removes a file, which may be gone already.
pub(super) fn remove(path: &Path) -> Result<(), PathError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(PathError::at("remove", path)(error))
        }
        _ => Ok(()),
    }
}

/// The whole records of a file in order of number, and the latest time.
fn index(content: &[u8], damaged: &mut u64) -> (Vec<Entry>, u64) {
    let (mut entries, mut newest_ms) = (BTreeMap::new(), 0);
    let mut offset = 0;
    while offset < content.len() {
        let Some((message, length)) = record::decode(&content[offset..]) else {
            let next = record::find(&content[offset + 1..]).map(|at| offset + 1 + at);
            let next = next.unwrap_or(content.len());
            *damaged += (next - offset) as u64;
            offset = next;
            continue;
        };
        let (id, way) = (message.id, Way::Unsent);
        entries.insert(id, Entry { id, offset: offset as u64, length, way });
        newest_ms = newest_ms.max(message.unix_ms);
        offset += length;
    }
    (entries.into_values().collect(), newest_ms)
}
