//! One record of a segment, as bytes.

use super::{MAX_RECORD_BYTES, Message};

const MAGIC: &[u8; 4] = b"ESPR";
/// Magic, length, checksum.
const HEAD: usize = 12;
/// Id, time, length of the topic.
const FIXED: usize = 18;
/// The highest number of a record (the first is 1), which no device comes near: a higher one is damage, and might leave
/// none for what comes next.
pub(super) const MAX_ID: u64 = u64::MAX / 2;

/// The bytes of a record.
pub(super) fn size(topic: &str, payload: &[u8]) -> usize {
    HEAD + FIXED + topic.len() + payload.len()
}

pub(super) fn encode(id: u64, unix_ms: u64, topic: &str, payload: &[u8]) -> Vec<u8> {
    let topic = topic.as_bytes();
    let topic_length = u16::try_from(topic.len()).unwrap_or(u16::MAX);
    let topic = &topic[..usize::from(topic_length)];
    let mut body = Vec::with_capacity(FIXED + topic.len() + payload.len());
    body.extend(id.to_le_bytes());
    body.extend(unix_ms.to_le_bytes());
    body.extend(topic_length.to_le_bytes());
    body.extend(topic);
    body.extend(payload);
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    let mut bytes = Vec::with_capacity(HEAD + body.len());
    bytes.extend(MAGIC);
    bytes.extend(length.to_le_bytes());
    bytes.extend(crc32c::crc32c(&body).to_le_bytes());
    bytes.extend(body);
    bytes
}

/// The record at the beginning of `bytes` and its length, if it is whole.
pub(super) fn decode(bytes: &[u8]) -> Option<(Message, usize)> {
    let rest = bytes.strip_prefix(MAGIC)?;
    let (length, rest) = rest.split_first_chunk()?;
    let (sum, rest) = rest.split_first_chunk()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    let body = rest.get(..length).filter(|_| length <= MAX_RECORD_BYTES)?;
    if crc32c::crc32c(body) != u32::from_le_bytes(*sum) {
        return None;
    }
    let (id, body) = body.split_first_chunk()?;
    let id = Some(u64::from_le_bytes(*id)).filter(|id| (1..=MAX_ID).contains(id))?;
    let (unix_ms, body) = body.split_first_chunk()?;
    let (topic_length, body) = body.split_first_chunk()?;
    let topic_length = usize::from(u16::from_le_bytes(*topic_length));
    let (topic, payload) = body.split_at_checked(topic_length)?;
    let message = Message {
        id,
        unix_ms: u64::from_le_bytes(*unix_ms),
        topic: String::from_utf8(topic.to_vec()).ok()?,
        payload: payload.to_vec(),
    };
    Some((message, HEAD + length))
}

/// Where the next record could begin.
pub(super) fn find(bytes: &[u8]) -> Option<usize> {
    bytes.windows(MAGIC.len()).position(|four| four == MAGIC)
}
