//! Makes old windows coarser, so that a spool which nears its bound tells less of each hour rather than nothing of some.
//!
//! Windows as they came become windows of a minute, these become windows of ten minutes, and these windows of an hour. The
//! level that takes the most room gives its oldest files, so that the levels come to share the room and what is older is
//! coarser. A window that cannot be merged (another bundle, another run, a gap) stays as it is.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Write;
use std::ops::Range;
use std::path::Path;

use wire::Window;

use super::super::state_dir::{PathError, sync_folder_of};
use super::segment::{Name, Segment, remove};
use super::{Message, record};
use crate::sys::disk;

/// How long a window of each level may be, from level 1 on.
const SPANS_MS: [u64; 3] = [60_000, 600_000, 3_600_000];
/// The most files that are merged at once.
const RUN_FILES: usize = 8;
/// The most bytes that are merged at once: they are in memory for that time.
const RUN_BYTES: u64 = 2 << 20;

/// A file, as far as its choice goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    pub(super) level: u8,
    pub(super) bytes: u64,
    /// Whether it may be merged now.
    pub(super) free: bool,
}

/// The files to merge, oldest first; none where all are as coarse as they may be.
pub(super) fn choose(files: &[Candidate]) -> Option<Range<usize>> {
    let of = |level: usize| {
        let own = files.iter().filter(move |f| f.free && usize::from(f.level) == level);
        own.map(|file| file.bytes).sum::<u64>()
    };
    let level = (0..SPANS_MS.len()).filter(|level| of(*level) > 0);
    // Of equal ones the finest.
    let level = level.rev().max_by_key(|level| of(*level))?;
    let fits = |file: &Candidate| file.free && usize::from(file.level) == level;
    let start = files.iter().position(fits)?;
    let mut bytes = 0;
    let run = files[start..].iter().take(RUN_FILES).take_while(|file| {
        let begins = bytes == 0;
        bytes += file.bytes;
        fits(file) && (begins || bytes <= RUN_BYTES)
    });
    Some(start..start + run.count())
}

/// Takes messages in order and merges windows that belong together.
pub(super) struct Merger {
    span_ms: u64,
    made: Vec<Made>,
    /// The last window of each topic.
    last: HashMap<String, usize>,
    merged: u64,
}

struct Made {
    id: u64,
    unix_ms: u64,
    topic: String,
    says: Says,
}

enum Says {
    Window(Window),
    /// What is no window stays as it is.
    Bytes(Vec<u8>),
}

impl Merger {
    pub(super) fn new(level: u8) -> Self {
        let span = usize::from(level).clamp(1, SPANS_MS.len()) - 1;
        Self { span_ms: SPANS_MS[span], made: Vec::new(), last: HashMap::new(), merged: 0 }
    }

    pub(super) fn take(&mut self, message: Message) {
        let Message { id, unix_ms, topic, payload } = message;
        let Some(window) = Window::read(&payload) else {
            return self.made.push(Made { id, unix_ms, topic, says: Says::Bytes(payload) });
        };
        let before = self.last.get(&topic).and_then(|at| self.made.get_mut(*at));
        if let Some(Made { unix_ms: time, says: Says::Window(before), .. }) = before
            && before.absorb(&window, self.span_ms)
        {
            *time = unix_ms;
            self.merged += 1;
            return;
        }
        self.last.insert(topic.clone(), self.made.len());
        self.made.push(Made { id, unix_ms, topic, says: Says::Window(window) });
    }

    /// How many messages went into others.
    pub(super) fn merged(&self) -> u64 {
        self.merged
    }
}

/// Writes a file that stands for others: whole and durable under its name, or not at all. None where nothing is left.
pub(super) fn write(
    folder: &Path,
    name: Name,
    merger: Merger,
) -> Result<Option<Segment>, PathError> {
    let mut segment = Segment::new(folder, name);
    let mut content = Vec::new();
    for Made { id, unix_ms, topic, says } in merger.made {
        let payload = match says {
            Says::Window(window) => window.write().unwrap_or_default(),
            Says::Bytes(bytes) => bytes,
        };
        let bytes = record::encode(id, unix_ms, &topic, &payload);
        segment.appended(id, unix_ms, bytes.len(), false);
        content.extend(bytes);
    }
    segment.last_id = name.last;
    segment.resend(false);
    if content.is_empty() {
        return Ok(None);
    }
    let temporary = segment.path.with_extension("tmp");
    let written = File::create(&temporary).and_then(|mut file| {
        file.write_all(&content)?;
        file.sync_all()
    });
    let named = written.and_then(|()| fs::rename(&temporary, &segment.path));
    if let Err(error) = named {
        let _ = remove(&temporary);
        return Err(PathError::at("write", &temporary)(error));
    }
    sync_folder_of(&segment.path)?;
    disk::count(content.len());
    Ok(Some(segment))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(levels: &[(u8, u64)]) -> Vec<Candidate> {
        levels
            .iter()
            .map(|(level, bytes)| Candidate { level: *level, bytes: *bytes, free: true })
            .collect()
    }

    #[test]
    fn the_level_with_the_most_bytes_gives_its_oldest_files() {
        assert_eq!(choose(&files(&[(1, 300), (0, 100), (0, 100)])), Some(0..1));
        assert_eq!(choose(&files(&[(1, 100), (0, 100), (0, 100)])), Some(1..3));
        assert_eq!(choose(&files(&[(3, 900), (2, 1), (1, 1)])), Some(2..3), "the finest of equals");
        assert_eq!(choose(&files(&[(3, 900)])), None, "as coarse as it gets");
        assert_eq!(choose(&[]), None);
    }

    #[test]
    fn what_is_under_way_is_not_merged_nor_merged_over() {
        let mut row = files(&[(0, 100), (0, 100), (0, 100)]);
        row[0].free = false;
        assert_eq!(choose(&row), Some(1..3));
        row[2].free = false;
        assert_eq!(choose(&row), Some(1..2));
    }

    #[test]
    fn no_more_is_merged_at_once_than_memory_is_meant_to_hold() {
        assert_eq!(choose(&files(&[(0, RUN_BYTES), (0, 1)])), Some(0..1));
        assert_eq!(choose(&files(&[(0, 1); 20])), Some(0..RUN_FILES));
    }
}
