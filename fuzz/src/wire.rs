//! Messages in flight, and their topics.

use serde_json::Value;
use wire::{
    Birth, BudgetBreach, Command, CommandEvent, CommandResult, DEFAULT_ROOT, Histogram,
    InferWindow, InstallEvent, ModelState, Offer, Payload, PayloadError, PowerWindow,
    RecompressRequest, ResourceWindow, RollbackEvent, SpoolDrop, StateReport, ThrottleEvent, Topic,
    Topics, decode, encode, parse, try_encode,
};

use crate::Verdict;

/// Reads bytes as the message that they say they are, and as a topic.
///
/// # Panics
/// When what was accepted is not read back as the same.
pub fn take(bytes: &[u8]) -> Verdict {
    if let Ok(text) = std::str::from_utf8(bytes)
        && topic(text) == Verdict::Accepted
    {
        return Verdict::Accepted;
    }
    let said = serde_json::from_slice(bytes).ok();
    let said = said.as_ref().and_then(|value: &Value| value["schema"].as_str()).unwrap_or_default();
    MESSAGES
        .iter()
        .find(|(schema, _)| said.starts_with(schema))
        .map_or(round_trip::<Offer>(bytes, |_| ()), |(_, read)| read(bytes))
}

type Read = fn(&[u8]) -> Verdict;

macro_rules! messages {
    ($($type:ident $(=> $look:expr)?),+ $(,)?) => {
        /// Every message by its schema.
        pub const MESSAGES: &[(&str, Read)] = &[
            $(($type::SCHEMA, |bytes| round_trip::<$type>(bytes, messages!(@look $($look)?)))),+
        ];
    };
    (@look) => { |_| () };
    (@look $look:expr) => { $look };
}

messages!(
    Birth,
    StateReport,
    ModelState,
    InferWindow => |window: &InferWindow| histogram(&window.compute),
    ResourceWindow,
    PowerWindow,
    BudgetBreach,
    InstallEvent,
    RollbackEvent,
    ThrottleEvent,
    SpoolDrop,
    RecompressRequest,
    Offer,
    Command,
    CommandResult,
    CommandEvent,
);

fn round_trip<P: Payload>(bytes: &[u8], look: impl Fn(&P)) -> Verdict {
    let Ok(payload) = decode::<P>(bytes) else { return Verdict::Refused };
    look(&payload);
    match try_encode(&payload) {
        Ok(written) => {
            let again: P = decode(&written).expect("what was written can be read");
            assert_eq!(encode(&again), written, "it is read as what it was");
        }
        // Numbers may be longer as they are written than as they came.
        Err(PayloadError::TooLarge { .. }) => {}
        Err(error) => panic!("what was accepted cannot be sent: {error}"),
    }
    Verdict::Accepted
}

fn histogram(read: &Histogram) {
    let counted = read.buckets().map(|(_, _, count)| u128::from(count)).sum::<u128>();
    assert_eq!(counted, u128::from(read.count()));
    for q in [0.0, 0.5, 0.95, 1.0] {
        assert_eq!(read.quantile(q).is_some(), !read.is_empty());
        assert!(read.quantile(q) <= read.max());
    }
    assert_eq!(read.mean().is_some(), !read.is_empty());
    let mut twice = read.clone();
    twice.merge(read);
    assert_eq!(twice.count(), read.count().saturating_mul(2));
    assert_eq!(twice.max(), read.max());
}

fn topic(text: &str) -> Verdict {
    let Ok((device, topic)) = parse(DEFAULT_ROOT, text) else { return Verdict::Refused };
    let of = Topics::new(DEFAULT_ROOT, &device).expect("a device's name that was read");
    let built = match &topic {
        Topic::Birth => Ok(of.birth()),
        Topic::State => Ok(of.state()),
        Topic::Model(name) => of.model(name),
        Topic::Metrics(stream) => of.metrics(stream),
        Topic::Event(kind) => Ok(of.event(*kind)),
        Topic::Recompress => Ok(of.recompress()),
        Topic::Result(id) => of.result(id),
        Topic::Offer(name) => of.offer(name),
        Topic::Command(kind, id) => of.command(*kind, id),
    };
    assert_eq!(built.as_deref(), Ok(text), "a topic is built as it was read");
    Verdict::Accepted
}
