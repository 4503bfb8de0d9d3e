//! The spool as a fuzzer tries it: nothing else calls this.

use std::path::Path;
use std::time::{Duration, Instant};

use super::{Class, Moment, Spool, record};
use crate::config::SpoolConfig;

/// Larger than any input, so that nothing has to go for want of room.
const MAX_BYTES: u64 = 16 << 20;
/// After so long no rate holds up what waits.
const DAY: Duration = Duration::from_secs(86_400);
/// The folder of a queue's segments, and the name of its first.
pub const FIRST_SEGMENT: [&str; 2] = ["events", "00000000000000000001.seg"];

/// A record as it lies in a segment: a fuzzer could not guess its checksum.
#[must_use]
pub fn record(id: u64, unix_ms: u64, topic: &str, payload: &[u8]) -> Vec<u8> {
    record::encode(id, unix_ms, topic, payload)
}

/// A spool that is tried.
#[derive(Debug)]
pub struct Tried(Spool);

impl Tried {
    /// Opens it, as after a start.
    ///
    /// # Panics
    /// When what lies there keeps it shut.
    #[must_use]
    pub fn open(folder: &Path) -> Self {
        let config = SpoolConfig { max_bytes: MAX_BYTES, ..SpoolConfig::default() };
        Self(Spool::open(folder, config).expect("no damage keeps it shut"))
    }

    /// Unacknowledged records, and the bytes that were damaged.
    #[must_use]
    pub fn held(&self) -> (u64, u64) {
        let fill = self.0.fill();
        (fill.records, fill.damaged_bytes)
    }

    /// The numbers of all that was not sent yet, in the order of sending.
    ///
    /// # Panics
    /// When it cannot be read.
    pub fn send(&mut self) -> Vec<u64> {
        let mut now = Instant::now();
        let next = || {
            now += DAY;
            self.0.take_unsent(now).expect("it can be read").map(|message| message.id)
        };
        std::iter::from_fn(next).collect()
    }

    /// Puts an event in.
    ///
    /// # Panics
    /// When it is not taken.
    pub fn put_in(&mut self) {
        let moment = Moment { at: Instant::now(), unix_ms: Some(1) };
        self.0.push(Class::Event, moment, "up/e/install", b"{}").expect("there is room");
    }

    /// The broker has it.
    ///
    /// # Panics
    /// When the segment cannot be removed.
    pub fn acknowledge(&mut self, id: u64) {
        self.0.acknowledge(id).expect("the folder is ours");
    }
}
