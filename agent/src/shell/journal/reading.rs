//! Reads a journal for people: line by line, past what is damaged, while an agent may be writing it.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::{BEFORE_ENTRY, BEFORE_SUM, Entry, MAX_BYTES};
use crate::core::Record;
use crate::shell::state_dir::PathError;

/// A journal as it was found.
#[derive(Debug)]
pub struct Reading {
    /// Its lines, in order.
    pub lines: Vec<Line>,
    /// Whether it is longer than what is read of a journal.
    pub too_long: bool,
}

/// One line.
#[derive(Debug)]
pub struct Line {
    /// Which, from 1.
    pub number: usize,
    /// Where it begins, bytes from the start.
    pub offset: usize,
    /// How long it is, its end included.
    pub bytes: usize,
    /// What it holds.
    pub content: Result<Noted, Fault>,
}

/// An entry of the journal.
#[derive(Debug, PartialEq)]
pub struct Noted {
    /// Unix time in milliseconds; 0 where the clock was not set.
    pub ts: u64,
    /// What was decided.
    pub record: Record,
}

/// What is wrong with a line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The file ends within it: it is being written, or the power went.
    #[error("it has no end: it is being written, or was when the power went")]
    Torn,
    /// Not made by an agent, or by one whose disk has failed.
    #[error("it is no line of a journal")]
    Foreign,
    /// Its content is not what was written.
    #[error("its checksum does not match: it was changed after it was written")]
    Checksum,
    /// It is what was written, by an agent that knows more.
    #[error("it is of a kind that this version does not know: {0}")]
    Unknown(String),
}

impl Reading {
    /// The first line that an agent would not get past, with what is wrong with it. One that has no end is none: every
    /// agent cuts it off.
    #[must_use]
    pub fn damage(&self) -> Option<(&Line, &Fault)> {
        self.lines.iter().find_map(|line| match &line.content {
            Err(fault) if *fault != Fault::Torn => Some((line, fault)),
            _ => None,
        })
    }
}

/// Reads all of it, up to the largest size of a journal.
///
/// # Errors
/// The system's, with the path.
pub fn read(path: &Path) -> Result<Reading, PathError> {
    let file = File::open(path).map_err(PathError::at("open", path))?;
    let mut content = Vec::new();
    let read = file.take(MAX_BYTES + 1).read_to_end(&mut content);
    read.map_err(PathError::at("read", path))?;
    let limit = usize::try_from(MAX_BYTES).unwrap_or(usize::MAX);
    let too_long = content.len() > limit;
    content.truncate(limit);
    Ok(Reading { lines: lines(&content), too_long })
}

fn lines(content: &[u8]) -> Vec<Line> {
    let mut offset = 0;
    let line = |(index, piece): (usize, &[u8])| {
        let begin = offset;
        offset += piece.len();
        let content = match piece.strip_suffix(b"\n") {
            Some(whole) => entry(whole),
            None => Err(Fault::Torn),
        };
        Line { number: index + 1, offset: begin, bytes: piece.len(), content }
    };
    content.split_inclusive(|byte| *byte == b'\n').enumerate().map(line).collect()
}

/// What a line without its end holds.
pub(super) fn entry(line: &[u8]) -> Result<Noted, Fault> {
    let parts = || {
        let line = std::str::from_utf8(line).ok()?;
        let (sum, rest) = line.strip_prefix(BEFORE_SUM)?.split_at_checked(8)?;
        let entry = rest.strip_prefix(BEFORE_ENTRY)?.strip_suffix('}')?;
        Some((u32::from_str_radix(sum, 16).ok()?, entry))
    };
    let (sum, entry) = parts().ok_or(Fault::Foreign)?;
    if crc32c::crc32c(entry.as_bytes()) != sum {
        return Err(Fault::Checksum);
    }
    let read: Result<Entry<Record>, _> = serde_json::from_str(entry);
    let Entry { ts, record } = read.map_err(|error| Fault::Unknown(error.to_string()))?;
    Ok(Noted { ts, record })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::line;
    use super::*;

    fn told(through: u64) -> String {
        line(through, &Record::Told { through })
    }

    fn sum(entry: &str) -> String {
        let sum = crc32c::crc32c(entry.as_bytes());
        format!("{BEFORE_SUM}{sum:08x}{BEFORE_ENTRY}{entry}}}\n")
    }

    #[test]
    fn every_line_is_read_and_each_fault_is_told_apart() {
        let flipped = told(3).replace("\"ts\":3", "\"ts\":4");
        let newer = sum(r#"{"ts":5,"record":{"kind":"explored"}}"#);
        let text = [&told(1), "nonsense\n", &flipped, &newer, &told(6), "{\"crc"].concat();
        let lines = lines(text.as_bytes());
        let faults: Vec<Option<Fault>> =
            lines.iter().map(|line| line.content.as_ref().err().cloned()).collect();
        assert_eq!(faults[..3], [None, Some(Fault::Foreign), Some(Fault::Checksum)]);
        assert!(matches!(&faults[3], Some(Fault::Unknown(why)) if why.contains("explored")));
        assert_eq!(faults[4..], [None, Some(Fault::Torn)]);
        assert_eq!(lines[4].content.as_ref().unwrap().ts, 6);
        assert_eq!(lines.iter().map(|line| line.bytes).sum::<usize>(), text.len());
        assert_eq!(&text[lines[1].offset..][..lines[1].bytes], "nonsense\n");
        let reading = Reading { lines, too_long: false };
        assert_eq!(reading.damage().unwrap().0.number, 2);
    }

    #[test]
    fn a_journal_that_is_being_written_is_not_damaged() {
        let text = told(1) + &told(2)[..20];
        let reading = Reading { lines: lines(text.as_bytes()), too_long: false };
        assert_eq!(reading.lines.len(), 2);
        assert!(reading.damage().is_none());
        assert!(lines(b"").is_empty());
    }
}
