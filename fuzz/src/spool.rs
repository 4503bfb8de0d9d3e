//! Segments of the spool, as a power cut, a worn card or a hand may have left them.
//!
//! An input is a script of the segment: byte for byte what lies there, but for the letters `R`, which stand for
//! whole records of the length that the next byte says, and `N`, for one whose number the next eight bytes say.
//! Checksums would keep a fuzzer from ever making one.

use std::fs;

use espalier_agent::shell::spool::fuzzing::{self, FIRST_SEGMENT, Tried};

use crate::{Verdict, scratch};

/// How every record begins; whether damage that holds it hides a record is not foretold.
const MAGIC: &[u8] = b"ESPR";
/// Numbers that no device reaches: of what comes after them, nothing is foretold.
const UNREACHED: u64 = 1 << 62;
/// The most records of one script; further letters are what they are.
const MOST: usize = 200;

/// Opens a spool with such a segment, sends what it holds, and puts something in.
///
/// # Panics
/// When a whole record is lost, what was acknowledged comes back, or the spool takes nothing more.
pub fn take(bytes: &[u8]) -> Verdict {
    let (segment, written) = segment(bytes);
    let folder = scratch();
    let [queue, name] = FIRST_SEGMENT;
    let queue = folder.path().join(queue);
    fs::create_dir_all(&queue).expect("the folder is ours");
    fs::write(queue.join(name), &segment).expect("the folder is ours");

    let mut spool = Tried::open(folder.path());
    assert!(spool.held().1 <= segment.len() as u64, "damage is part of what lies there");
    let found = spool.send();
    for id in &written {
        assert!(found.contains(id), "record {id} is whole and was not sent: {found:?}");
    }
    if found.iter().any(|id| *id > UNREACHED) {
        return Verdict::Accepted;
    }
    spool.put_in();
    let news = spool.send();
    assert_eq!(news.len(), 1, "what is put in is sent");
    assert!(!found.contains(&news[0]), "it has a number of its own");

    // A restart before anything is acknowledged: at least once.
    let mut spool = Tried::open(folder.path());
    assert_eq!(spool.send(), [found.as_slice(), news.as_slice()].concat());
    found.iter().chain(&news).for_each(|id| spool.acknowledge(*id));
    assert_eq!(spool.held().0, 0, "nothing is left");
    let mut spool = Tried::open(folder.path());
    assert_eq!(spool.send(), [0; 0], "what was acknowledged does not come back");
    if found.is_empty() { Verdict::Refused } else { Verdict::Accepted }
}

/// The segment of a script, and the numbers of the whole records that it must give back.
fn segment(script: &[u8]) -> (Vec<u8>, Vec<u64>) {
    let mut bytes = Vec::new();
    let (mut written, mut others) = (Vec::new(), 0);
    let mut rest = script;
    while let Some((letter, tail)) = rest.split_first() {
        rest = tail;
        let is_full = written.len() + others == MOST;
        match letter {
            b'R' if !is_full => {
                let length = rest.split_off_first().copied().unwrap_or_default();
                let id = written.len() as u64 + 1;
                written.push(id);
                bytes.extend(record(id, length.into()));
            }
            b'N' if !is_full => {
                let Some((id, tail)) = rest.split_first_chunk() else { continue };
                rest = tail;
                others += 1;
                bytes.extend(record(u64::from_le_bytes(*id), 3));
            }
            _ => bytes.push(*letter),
        }
    }
    let begun = bytes.windows(MAGIC.len()).filter(|four| *four == MAGIC).count();
    if begun > written.len() + others {
        written.clear();
    }
    (bytes, written)
}

fn record(id: u64, length: usize) -> Vec<u8> {
    fuzzing::record(id, 7, "up/m/res", &vec![b'x'; length])
}
