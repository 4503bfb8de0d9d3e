//! Messages that are in memory only: most are acknowledged before they would have to be written.

use std::collections::BTreeMap;
use std::time::Instant;

use super::queue::Encoded;
use super::{Message, record};

#[derive(Debug)]
struct Waiting {
    message: Message,
    since: Instant,
    sent: bool,
}

#[derive(Debug, Default)]
pub(super) struct Pending {
    waiting: BTreeMap<u64, Waiting>,
    bytes: usize,
}

impl Pending {
    pub(super) fn push(&mut self, message: Message, now: Instant) {
        self.bytes += size(&message);
        self.waiting.insert(message.id, Waiting { message, since: now, sent: false });
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn records(&self) -> u64 {
        self.waiting.len() as u64
    }

    /// Since when the oldest has been waiting.
    pub(super) fn since(&self) -> Option<Instant> {
        self.waiting.values().next().map(|waiting| waiting.since)
    }

    /// The first unsent number from `from` on.
    pub(super) fn next(&self, from: u64) -> Option<u64> {
        let mut later = self.waiting.range(from..);
        later.find(|(_, waiting)| !waiting.sent).map(|(id, _)| *id)
    }

    /// The message of a number, now taken as sent.
    pub(super) fn take(&mut self, id: u64) -> Option<Message> {
        let waiting = self.waiting.get_mut(&id)?;
        waiting.sent = true;
        Some(waiting.message.clone())
    }

    /// It need not be kept; whether it was there.
    pub(super) fn acknowledge(&mut self, id: u64) -> bool {
        let gone = self.waiting.remove(&id);
        self.bytes -= gone.as_ref().map_or(0, |waiting| size(&waiting.message));
        gone.is_some()
    }

    /// Sends it again; whether it is there.
    pub(super) fn resend(&mut self, id: u64) -> bool {
        let waiting = self.waiting.get_mut(&id);
        waiting.map(|waiting| waiting.sent = false).is_some()
    }

    pub(super) fn resend_all(&mut self) {
        self.waiting.values_mut().for_each(|waiting| waiting.sent = false);
    }

    /// Everything as records.
    pub(super) fn encoded(&self) -> Vec<Encoded> {
        let encode = |waiting: &Waiting| {
            let Message { id, unix_ms, topic, payload } = &waiting.message;
            let bytes = record::encode(*id, *unix_ms, topic, payload);
            Encoded { id: *id, unix_ms: *unix_ms, bytes, sent: waiting.sent }
        };
        self.waiting.values().map(encode).collect()
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Gives up the oldest until no more than that is left; how many, and their bytes.
    pub(super) fn shorten(&mut self, to_bytes: usize) -> (u64, u64) {
        let (mut records, before) = (0, self.bytes);
        while self.bytes > to_bytes
            && let Some((_, waiting)) = self.waiting.pop_first()
        {
            self.bytes -= size(&waiting.message);
            records += 1;
        }
        (records, (before - self.bytes) as u64)
    }
}

fn size(message: &Message) -> usize {
    message.topic.len() + message.payload.len()
}
