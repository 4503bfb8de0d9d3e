//! The files of one class, oldest first. Only the last one is appended to; one goes when each of its records was
//! acknowledged, but for the last, which is emptied and used again.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::super::state_dir::{PathError, sync_folder_of};
use super::segment::{Name, Segment, Way, remove};
use super::{Message, coarsen};
use crate::sys::disk;

/// A record as bytes, on its way to the disk.
#[derive(Debug)]
pub(super) struct Encoded {
    pub(super) id: u64,
    pub(super) unix_ms: u64,
    pub(super) bytes: Vec<u8>,
    pub(super) sent: bool,
}

/// Some of what was to be appended was not.
#[derive(Debug)]
pub(super) struct Short {
    /// How many records from the first on are in all the same.
    pub(super) written: usize,
    pub(super) error: PathError,
}

/// What went with a file.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Gone {
    pub(super) records: u64,
    pub(super) bytes: u64,
}

#[derive(Debug)]
pub(super) struct Queue {
    folder: PathBuf,
    /// The size from which the next file is begun.
    segment_bytes: u64,
    segments: VecDeque<Segment>,
    /// The last file, while it is appended to.
    open: Option<File>,
    /// Since when something is written and not synced.
    unsynced: Option<Instant>,
    /// Records that the disk no longer gave back, and that nobody was told of.
    vanished: u64,
}

impl Queue {
    pub(super) fn open(
        folder: &Path,
        segment_bytes: u64,
        damaged: &mut u64,
    ) -> Result<Self, PathError> {
        fs::create_dir_all(folder).map_err(PathError::at("create", folder))?;
        // Without its name nothing in it is durable.
        sync_folder_of(folder)?;
        let mut names = Vec::new();
        for entry in fs::read_dir(folder).map_err(PathError::at("list", folder))? {
            let path = entry.map_err(PathError::at("list", folder))?.path();
            if path.extension().is_some_and(|extension| extension == "tmp") {
                remove(&path)?;
            }
            names.extend(Name::parse(&path));
        }
        names.sort();
        let mut queue = Self {
            folder: folder.to_owned(),
            segment_bytes,
            segments: VecDeque::new(),
            open: None,
            unsynced: None,
            vanished: 0,
        };
        for name in &names {
            let path = folder.join(name.file());
            if names.iter().any(|other| other.replaces(*name)) {
                remove(&path)?;
                continue;
            }
            let segment = Segment::scan(path, *name, damaged)?;
            if segment.records == 0 {
                segment.delete()?;
            } else {
                queue.segments.push_back(segment);
            }
        }
        Ok(queue)
    }

    pub(super) fn last_id(&self) -> u64 {
        self.segments.iter().map(|segment| segment.last_id).max().unwrap_or(0)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }

    pub(super) fn records(&self) -> u64 {
        self.segments.iter().map(|segment| segment.records).sum()
    }

    /// Appends records in order; `sync` makes them durable.
    pub(super) fn append(
        &mut self,
        batch: &[Encoded],
        sync: bool,
        now: Instant,
    ) -> Result<(), Short> {
        let mut rest = batch;
        while let Some(first) = rest.first() {
            let full = |segment: &Segment| segment.bytes >= self.segment_bytes;
            let written = batch.len() - rest.len();
            let short = |error| Short { written, error };
            if self.open.is_none() || self.segments.back().is_none_or(full) {
                self.begin(first.id).map_err(short)?;
            }
            let room = self.segment_bytes - self.segments.back().map_or(0, |s| s.bytes);
            let mut taken = 0u64;
            let fits = |record: &&Encoded| {
                let before = taken;
                taken += record.bytes.len() as u64;
                before < room
            };
            let count = rest.iter().take_while(fits).count();
            let (now_in, later) = rest.split_at(count);
            self.write(now_in, sync).map_err(short)?;
            rest = later;
        }
        if !sync {
            self.unsynced.get_or_insert(now);
        }
        Ok(())
    }

    fn write(&mut self, records: &[Encoded], sync: bool) -> Result<(), PathError> {
        let (Some(file), Some(segment)) = (&mut self.open, self.segments.back_mut()) else {
            return Ok(());
        };
        let bytes: Vec<u8> = records.iter().flat_map(|record| &record.bytes).copied().collect();
        let written = file.write_all(&bytes);
        let written = written.and_then(|()| if sync { file.sync_data() } else { Ok(()) });
        if let Err(error) = written {
            let _ = file.set_len(segment.bytes);
            return Err(PathError::at("append to", &segment.path)(error));
        }
        disk::count(bytes.len());
        for record in records {
            segment.appended(record.id, record.unix_ms, record.bytes.len(), record.sent);
        }
        Ok(())
    }

    /// Begins a file. The one before it is complete and durable.
    fn begin(&mut self, id: u64) -> Result<(), PathError> {
        self.sync()?;
        if let Some(segment) = self.segments.back_mut()
            && !segment.is_under_way()
        {
            segment.resend(false);
        }
        let segment = Segment::new(&self.folder, Name::raw(id));
        let mut options = OpenOptions::new();
        let file = options.create(true).append(true).open(&segment.path);
        let file = file.map_err(PathError::at("create", &segment.path))?;
        sync_folder_of(&segment.path)?;
        self.open = Some(file);
        self.drop_empty_last()?;
        self.segments.push_back(segment);
        Ok(())
    }

    /// A last file that was emptied and is not used again.
    fn drop_empty_last(&mut self) -> Result<(), PathError> {
        if self.segments.back().is_some_and(|segment| segment.records == 0)
            && let Some(segment) = self.segments.pop_back()
        {
            segment.delete()?;
        }
        Ok(())
    }

    /// Makes everything durable that was written.
    pub(super) fn sync(&mut self) -> Result<(), PathError> {
        if self.unsynced.is_none() {
            return Ok(());
        }
        if let (Some(file), Some(segment)) = (&self.open, self.segments.back()) {
            file.sync_data().map_err(PathError::at("sync", &segment.path))?;
        }
        self.unsynced = None;
        Ok(())
    }

    /// Since when something is written and not durable.
    pub(super) fn unsynced(&self) -> Option<Instant> {
        self.unsynced
    }

    /// The first unsent number from `from` on.
    pub(super) fn next(&mut self, from: u64) -> Result<Option<u64>, PathError> {
        let mut at = 0;
        while let Some(segment) = self.segments.get_mut(at) {
            let found = segment.next(from)?;
            self.vanished += segment.take_vanished();
            if found.is_some() {
                return Ok(found);
            }
            if segment.records == 0 && segment.bytes > 0 {
                self.drop_at(at)?;
            } else {
                at += 1;
            }
        }
        Ok(None)
    }

    /// The message of a number, now taken as sent.
    pub(super) fn take(&mut self, id: u64) -> Result<Option<Message>, PathError> {
        // A number that stands in two files, which none of ours does, must not be found in the wrong one for ever.
        let unsent =
            |segment: &mut Segment| segment.entry(id).is_some_and(|e| e.way == Way::Unsent);
        let held = self.segments.iter_mut().position(unsent);
        held.map_or(Ok(None), |at| self.segments[at].take(id))
    }

    /// It need not be kept; whether it was there.
    pub(super) fn acknowledge(&mut self, id: u64) -> Result<bool, PathError> {
        let left = |segment: &mut Segment| {
            segment.entry(id).is_some_and(|entry| entry.way != Way::Acknowledged)
        };
        let Some(at) = self.segments.iter_mut().position(left) else {
            return Ok(false);
        };
        let is_open = self.open.is_some() && at + 1 == self.segments.len();
        let segment = &mut self.segments[at];
        let Some(entry) = segment.entry(id) else { return Ok(false) };
        if std::mem::replace(&mut entry.way, Way::Acknowledged) == Way::Acknowledged {
            return Ok(false);
        }
        segment.records -= 1;
        if segment.records > 0 {
            return Ok(true);
        }
        match &self.open {
            // The same file again: neither a name nor the folder has to be written.
            Some(file) if is_open && file.set_len(0).is_ok() => segment.clear(),
            _ => {
                let gone = self.segments.remove(at);
                if is_open {
                    self.open = None;
                }
                gone.map_or(Ok(()), |segment| segment.delete())?;
            }
        }
        Ok(true)
    }

    /// Sends it again; whether it is there.
    pub(super) fn resend(&mut self, id: u64) -> bool {
        let entry = self.segments.iter_mut().find_map(|segment| segment.entry(id));
        let left = entry.filter(|entry| entry.way != Way::Acknowledged);
        left.map(|entry| entry.way = Way::Unsent).is_some()
    }

    pub(super) fn resend_all(&mut self) {
        let closed = self.segments.len() - usize::from(self.open.is_some());
        for (at, segment) in self.segments.iter_mut().enumerate() {
            segment.resend(at >= closed);
        }
    }

    /// Records that the disk did not give back since this was asked last.
    pub(super) fn take_vanished(&mut self) -> u64 {
        std::mem::take(&mut self.vanished)
    }

    /// Gives the oldest file up.
    pub(super) fn drop_oldest(&mut self) -> Result<Option<Gone>, PathError> {
        self.drop_at(0)
    }

    /// Gives up a file whose records are all older than that.
    pub(super) fn drop_older(&mut self, than_ms: u64) -> Result<Option<Gone>, PathError> {
        let old = |segment: &Segment| {
            segment.newest_ms > 0 && segment.newest_ms < than_ms && !segment.is_under_way()
        };
        let at = self.segments.iter().position(old);
        at.map_or(Ok(None), |at| self.drop_at(at))
    }

    fn drop_at(&mut self, at: usize) -> Result<Option<Gone>, PathError> {
        let is_open = self.open.is_some() && at + 1 == self.segments.len();
        let Some(segment) = self.segments.get(at).filter(|s| s.bytes > 0) else {
            return Ok(None);
        };
        segment.delete()?;
        let gone = Gone { records: segment.records, bytes: segment.bytes };
        self.segments.remove(at);
        if is_open {
            (self.open, self.unsynced) = (None, None);
        }
        Ok(Some(gone))
    }

    /// Merges the windows of some old files into coarser ones: of the level that takes the most room. Says how many
    /// records went into others; none where nothing can be merged any more.
    pub(super) fn coarsen(&mut self) -> Result<Option<u64>, PathError> {
        let closed = self.segments.len() - usize::from(self.open.is_some());
        let sizes: Vec<coarsen::Candidate> = self
            .segments
            .iter()
            .enumerate()
            .map(|(at, segment)| {
                let free = at < closed && segment.records > 0 && !segment.is_under_way();
                coarsen::Candidate { level: segment.name.level, bytes: segment.bytes, free }
            })
            .collect();
        let Some(run) = coarsen::choose(&sizes) else {
            return Ok(None);
        };
        let sources = || self.segments.range(run.clone());
        let level = sizes[run.start].level + 1;
        let first = sources().map(|s| s.name.first).min().unwrap_or(0);
        let last = sources().map(|s| s.last_id).max().unwrap_or(0);
        let mut merger = coarsen::Merger::new(level);
        let mut vanished = 0;
        for segment in sources() {
            let messages = segment.messages()?;
            vanished += segment.records.saturating_sub(messages.len() as u64);
            messages.into_iter().for_each(|message| merger.take(message));
        }
        let merged = merger.merged();
        let made = coarsen::write(&self.folder, Name { first, last, level }, merger)?;
        self.vanished += vanished;
        let old: Vec<Segment> = self.segments.drain(run.clone()).collect();
        if let Some(segment) = made {
            self.segments.insert(run.start, segment);
        }
        // The new file stands for them by now, whatever becomes of this.
        old.iter().try_for_each(Segment::delete)?;
        Ok(Some(merged))
    }
}
