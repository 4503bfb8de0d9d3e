//! Store and forward: messages wait here until the broker has acknowledged them.
//!
//! Three queues (urgent events, other events, telemetry), each a folder of files that are only appended to and deleted as
//! a whole. A record is
//!
//! ```text
//! "ESPR"  length u32  crc32c u32  id u64  unix_ms u64  topic_length u16  topic  payload
//! ```
//!
//! little-endian; the length and the checksum cover what follows the checksum. A file goes when each of its records was
//! acknowledged. Records of a file that has not gone are sent again after a restart: once is the least, not the most.
//!
//! **What is on the disk when** is [`Fsync`]. But for `always`, telemetry waits in memory, and is written only when nobody
//! acknowledged it for an interval: a device with a connection writes none of it.
//!
//! **What is given up.** The spool is bounded. Near its bound it merges the windows of its oldest telemetry, at
//! its bound it gives up the oldest telemetry. Events take all the room that they need from telemetry; only where events
//! alone exceed the bound do they go, the oldest first and urgent ones last. Telemetry also goes when it is too old. All that
//! goes is counted. What a torn write or a flipped bit destroyed is skipped, and no more than that.
//!
//! **What goes first.** What was put in since the connection was made goes before what waited for it, and that goes no
//! faster than is configured.

use std::path::Path;
use std::time::{Duration, Instant};

use wire::DropReason;

use super::state_dir::PathError;
use crate::config::{Fsync, SpoolConfig};
use crate::core::Dropped;
use pace::Pace;
use pending::Pending;
use queue::{Encoded, Gone, Queue, Short};

mod coarsen;
#[doc(hidden)]
pub mod fuzzing;
mod pace;
mod pending;
mod queue;
mod record;
mod segment;

/// The largest record taken: a payload of the largest size, and its topic.
pub const MAX_RECORD_BYTES: usize = wire::MAX_PAYLOAD_BYTES + 4096;
/// A file's size from which the next one is begun, where the bound is not small.
const SEGMENT_BYTES: u64 = 256 << 10;
/// The most bytes that wait in memory, where the bound is not small.
const MAX_PENDING_BYTES: u64 = 128 << 10;
/// How often it is looked whether telemetry is too old.
const EXPIRY: Duration = Duration::from_secs(60);
/// How long a disk that did not take telemetry is left alone.
const RETRY: Duration = Duration::from_secs(5);

/// What is given up last, and what first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Something that happened once and that somebody acts on.
    Urgent,
    /// Something else that happened once.
    Event,
    /// A window among many.
    Telemetry,
}

const EVERY: [Class; 3] = [Class::Urgent, Class::Event, Class::Telemetry];

/// A moment by both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// By the clock that only moves forward.
    pub at: Instant,
    /// By the clock on the wall, if it was ever set.
    pub unix_ms: Option<u64>,
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

/// How full it is, and what became of what it held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Fill {
    /// Unacknowledged records, those in memory among them.
    pub records: u64,
    /// Of these, events.
    pub events: u64,
    /// Bytes on disk.
    pub bytes: u64,
    /// The limit on them.
    pub max_bytes: u64,
    /// Bytes in memory, of which a power cut leaves nothing.
    pub memory_bytes: u64,
    /// Bytes that were damaged when it was opened.
    pub damaged_bytes: u64,
    /// Windows that went into coarser ones since then.
    pub merged_records: u64,
    /// Records given up since then.
    pub dropped_records: u64,
    /// Of these, events.
    pub dropped_events: u64,
}

/// The durable queue.
#[derive(Debug)]
pub struct Spool {
    config: SpoolConfig,
    urgent: Queue,
    events: Queue,
    telemetry: Queue,
    pending: Pending,
    pace: Pace,
    next_id: u64,
    /// From which number on messages are of this connection.
    live_from: u64,
    told: Fill,
    /// What was given up and not yet told, by reason.
    lost: Vec<Dropped>,
    expire_at: Option<Instant>,
    retry_at: Option<Instant>,
}

impl Spool {
    /// Opens the spool and finds what waits.
    ///
    /// # Errors
    /// The system's, with the path.
    pub fn open(folder: &Path, config: SpoolConfig) -> Result<Self, PathError> {
        let segment = SEGMENT_BYTES.min(config.max_bytes / 32).max(4096);
        let mut damaged = 0;
        let mut open = |name: &str| Queue::open(&folder.join(name), segment, &mut damaged);
        let (urgent, events, telemetry) = (open("urgent")?, open("events")?, open("telemetry")?);
        let last = urgent.last_id().max(events.last_id()).max(telemetry.last_id());
        let mut spool = Self {
            pace: Pace::new(config.backlog_bytes_per_s),
            told: Fill { max_bytes: config.max_bytes, damaged_bytes: damaged, ..Fill::default() },
            config,
            urgent,
            events,
            telemetry,
            pending: Pending::default(),
            next_id: last + 1,
            live_from: last + 1,
            lost: Vec::new(),
            expire_at: None,
            retry_at: None,
        };
        if damaged > 0 {
            spool.lose(DropReason::Damaged, Gone { records: 0, bytes: damaged }, 0);
        }
        Ok(spool)
    }

    /// Puts a message in. What had to go for it is told by [`Spool::take_lost`]; so is the message, where it could not stay.
    ///
    /// # Errors
    /// The system's, with the path; the message is not in.
    pub fn push(
        &mut self,
        class: Class,
        moment: Moment,
        topic: &str,
        payload: &[u8],
    ) -> Result<(), PathError> {
        let (id, unix_ms) = (self.next_id, moment.unix_ms.unwrap_or(0));
        let events = u64::from(class != Class::Telemetry);
        let bytes = record::size(topic, payload);
        let own = Gone { records: 1, bytes: bytes as u64 };
        if bytes > MAX_RECORD_BYTES {
            self.lose(DropReason::TooLarge, own, events);
            return Ok(());
        }
        if class == Class::Telemetry && self.config.fsync != Fsync::Always {
            let (topic, payload) = (topic.to_owned(), payload.to_vec());
            self.pending.push(Message { id, unix_ms, topic, payload }, moment.at);
            self.next_id += 1;
            if self.pending.bytes() as u64 > self.max_pending() {
                self.try_flush(moment.at);
            }
            return Ok(());
        }
        let bytes = record::encode(id, unix_ms, topic, payload);
        let sync = class != Class::Event || self.config.fsync != Fsync::Interval;
        if !self.make_room(class, bytes.len() as u64)? {
            self.lose(DropReason::Full, own, events);
            return Ok(());
        }
        let record = Encoded { id, unix_ms, bytes, sent: false };
        let put = self.queue(class).append(&[record], sync, moment.at);
        put.map_err(|short| short.error)?;
        self.next_id += 1;
        Ok(())
    }

    /// Writes what has waited in memory for an interval, and gives up what is too old.
    ///
    /// # Errors
    /// The system's, with the path; it is tried again after a while.
    pub fn tick(&mut self, moment: Moment) -> Result<(), PathError> {
        let now = moment.at;
        if self.retry_at.is_some_and(|at| now < at) {
            return Ok(());
        }
        let done = self.write_what_is_due(now).and_then(|()| self.expire(moment));
        self.retry_at = done.is_err().then_some(now + RETRY);
        done
    }

    /// Makes everything durable.
    ///
    /// # Errors
    /// The system's, with the path; what could not be written is still there.
    pub fn flush(&mut self, now: Instant) -> Result<(), PathError> {
        self.events.sync()?;
        let batch = self.pending.encoded();
        let bytes = batch.iter().map(|record| record.bytes.len() as u64).sum();
        if batch.is_empty() {
            return Ok(());
        }
        if !self.make_room(Class::Telemetry, bytes)? {
            let gone = Gone { records: batch.len() as u64, bytes };
            self.lose(DropReason::Full, gone, 0);
            self.pending.clear();
            return Ok(());
        }
        match self.telemetry.append(&batch, true, now) {
            Ok(()) => {
                self.pending.clear();
                Ok(())
            }
            Err(Short { written, error }) => {
                batch[..written].iter().for_each(|record| {
                    self.pending.acknowledge(record.id);
                });
                Err(error)
            }
        }
    }

    /// From now on everything that waits already comes after what is put in.
    pub fn connected(&mut self) {
        self.live_from = self.next_id;
    }

    /// The next message to send, now taken as sent: the oldest of this connection, or else of the backlog, if that may go
    /// on. Damage found on the way is skipped.
    ///
    /// # Errors
    /// The system's, with the path.
    pub fn take_unsent(&mut self, now: Instant) -> Result<Option<Message>, PathError> {
        while let Some((class, id)) = self.next(now)? {
            let message = match self.pending.take(id) {
                Some(message) => Some(message),
                None => self.queue(class).take(id)?,
            };
            let Some(message) = message else {
                self.queue(class).acknowledge(id)?;
                let events = u64::from(class != Class::Telemetry);
                self.lose(DropReason::Damaged, Gone { records: 1, bytes: 0 }, events);
                continue;
            };
            if id < self.live_from {
                self.pace.sent(record::size(&message.topic, &message.payload));
            }
            return Ok(Some(message));
        }
        Ok(None)
    }

    /// The broker has it: it need not be kept.
    ///
    /// # Errors
    /// The system's, with the path.
    pub fn acknowledge(&mut self, id: u64) -> Result<(), PathError> {
        if self.pending.acknowledge(id) {
            return Ok(());
        }
        for queue in [&mut self.urgent, &mut self.events, &mut self.telemetry] {
            if queue.acknowledge(id)? {
                break;
            }
        }
        Ok(())
    }

    /// The connection is gone: what was sent and not acknowledged is to be sent again.
    pub fn resend_all(&mut self) {
        self.pending.resend_all();
        for queue in [&mut self.urgent, &mut self.events, &mut self.telemetry] {
            queue.resend_all();
        }
    }

    /// One message is to be sent again. Says whether it is still there.
    pub fn resend(&mut self, id: u64) -> bool {
        let queues = [&mut self.urgent, &mut self.events, &mut self.telemetry];
        self.pending.resend(id) || queues.into_iter().any(|queue| queue.resend(id))
    }

    /// What was given up since this was asked last, one reason at a time.
    pub fn take_lost(&mut self) -> Option<Dropped> {
        self.lost.pop()
    }

    /// How full it is.
    #[must_use]
    pub fn fill(&self) -> Fill {
        let events = self.urgent.records() + self.events.records();
        Fill {
            records: events + self.telemetry.records() + self.pending.records(),
            events,
            bytes: self.bytes(),
            memory_bytes: self.pending.bytes() as u64,
            ..self.told
        }
    }

    fn bytes(&self) -> u64 {
        self.urgent.bytes() + self.events.bytes() + self.telemetry.bytes()
    }

    fn max_pending(&self) -> u64 {
        MAX_PENDING_BYTES.min(self.config.max_bytes / 16)
    }

    fn queue(&mut self, class: Class) -> &mut Queue {
        match class {
            Class::Urgent => &mut self.urgent,
            Class::Event => &mut self.events,
            Class::Telemetry => &mut self.telemetry,
        }
    }

    fn next(&mut self, now: Instant) -> Result<Option<(Class, u64)>, PathError> {
        let next = self.find_next(now);
        for class in EVERY {
            let records = self.queue(class).take_vanished();
            let events = if class == Class::Telemetry { 0 } else { records };
            self.lose(DropReason::Damaged, Gone { records, bytes: 0 }, events);
        }
        next
    }

    fn find_next(&mut self, now: Instant) -> Result<Option<(Class, u64)>, PathError> {
        let from = self.live_from;
        let mut oldest = self.pending.next(from).map(|id| (id, Class::Telemetry));
        for class in EVERY {
            let own = self.queue(class).next(from)?.map(|id| (id, class));
            oldest = [oldest, own].into_iter().flatten().min();
        }
        if let Some((id, class)) = oldest {
            return Ok(Some((class, id)));
        }
        if !self.pace.allows(now) {
            return Ok(None);
        }
        for class in EVERY {
            if let Some(id) = self.queue(class).next(0)? {
                return Ok(Some((class, id)));
            }
        }
        Ok(self.pending.next(0).map(|id| (Class::Telemetry, id)))
    }

    fn write_what_is_due(&mut self, now: Instant) -> Result<(), PathError> {
        let interval = self.config.interval;
        let due = |since: Option<Instant>| since.is_some_and(|since| now >= since + interval);
        if due(self.events.unsynced()) {
            self.events.sync()?;
        }
        if due(self.pending.since()) { self.flush(now) } else { Ok(()) }
    }

    /// Writes what is in memory; where the disk does not take it, the oldest of it goes.
    fn try_flush(&mut self, now: Instant) {
        let wait = self.retry_at.is_some_and(|at| now < at);
        let failed = match if wait { Ok(()) } else { self.flush(now) } {
            Ok(()) => wait,
            Err(error) => {
                tracing::warn!(%error, "telemetry stays in memory");
                self.retry_at = Some(now + RETRY);
                true
            }
        };
        if failed {
            let most = usize::try_from(self.max_pending()).unwrap_or(usize::MAX);
            let (records, bytes) = self.pending.shorten(most);
            self.lose(DropReason::Full, Gone { records, bytes }, 0);
        }
    }

    fn expire(&mut self, moment: Moment) -> Result<(), PathError> {
        let Some(unix_ms) = moment.unix_ms else {
            return Ok(());
        };
        if self.expire_at.is_some_and(|at| moment.at < at) {
            return Ok(());
        }
        self.expire_at = Some(moment.at + EXPIRY);
        let age = u64::try_from(self.config.max_age.as_millis()).unwrap_or(u64::MAX);
        while let Some(gone) = self.telemetry.drop_older(unix_ms.saturating_sub(age))? {
            self.lose(DropReason::Age, gone, 0);
        }
        Ok(())
    }

    /// Makes room for so many bytes of that class; whether there is.
    fn make_room(&mut self, class: Class, bytes: u64) -> Result<bool, PathError> {
        let most = self.config.max_bytes;
        if self.bytes() + bytes > most - most / 8 {
            self.coarsen();
        }
        while self.bytes() + bytes > most {
            if !self.coarsen() && !self.drop_for(class)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Merges some of the oldest telemetry; whether that was possible.
    fn coarsen(&mut self) -> bool {
        match self.telemetry.coarsen() {
            Ok(merged) => {
                self.told.merged_records += merged.unwrap_or(0);
                merged.is_some()
            }
            Err(error) => {
                tracing::warn!(%error, "old telemetry cannot be merged");
                false
            }
        }
    }

    /// Gives up the oldest of what is worth no more than that class; whether there was any.
    fn drop_for(&mut self, class: Class) -> Result<bool, PathError> {
        for victim in [Class::Telemetry, Class::Event, Class::Urgent] {
            if victim < class {
                break;
            }
            if let Some(gone) = self.queue(victim).drop_oldest()? {
                let events = if victim == Class::Telemetry { 0 } else { gone.records };
                self.lose(DropReason::Full, gone, events);
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn lose(&mut self, reason: DropReason, gone: Gone, events: u64) {
        let Gone { records, bytes } = gone;
        let dropped = Dropped { records, bytes, events, reason };
        if dropped.is_none() {
            return;
        }
        self.told.dropped_records += records;
        self.told.dropped_events += events;
        match self.lost.iter_mut().find(|lost| lost.reason == reason) {
            Some(lost) => lost.add(dropped),
            None => self.lost.push(dropped),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
