//! `spool.*`: how much waits for the broker, for how long, and when it is on the disk.

use std::time::Duration;

use super::reader::Reader;

/// How much waits for the broker, for how long, and when it is on the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpoolConfig {
    /// The most bytes on the disk.
    pub max_bytes: u64,
    /// How old telemetry may become.
    pub max_age: Duration,
    /// What is on the disk when.
    pub fsync: Fsync,
    /// How long what is not synced at once may wait for that.
    pub interval: Duration,
    /// How fast what was kept while there was no connection is sent, beside what is new.
    pub backlog_bytes_per_s: u64,
}

/// What is on the disk when, and so what a power cut costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fsync {
    /// Everything is synced before the agent goes on: nothing is lost.
    Always,
    /// Events are synced at once. Telemetry waits in memory, is written if no broker acknowledged it for an interval, and
    /// is lost until then.
    Events,
    /// As `Events`, but only urgent events are synced at once; others are written at once, synced after an interval, and
    /// may be lost until then.
    Interval,
}

impl Default for SpoolConfig {
    fn default() -> Self {
        Self {
            max_bytes: 64 << 20,
            max_age: Duration::from_secs(90 * 86_400),
            fsync: Fsync::Events,
            interval: Duration::from_secs(300),
            backlog_bytes_per_s: 32 << 10,
        }
    }
}

pub(super) fn read(r: &mut Reader) -> SpoolConfig {
    let d = SpoolConfig::default();
    let parsed = match r.string("spool.fsync").as_deref() {
        None | Some("events") => Ok(Fsync::Events),
        Some("always") => Ok(Fsync::Always),
        Some("interval") => Ok(Fsync::Interval),
        Some(other) => Err(format!("{other:?} is none of \"always\", \"events\" and \"interval\"")),
    };
    let seconds = Duration::from_secs;
    SpoolConfig {
        max_bytes: r.integer("spool.max_bytes", d.max_bytes, 1 << 20..=1 << 40),
        max_age: seconds(r.integer("spool.max_age_s", d.max_age.as_secs(), 3600..=1 << 32)),
        fsync: r.check("spool.fsync", parsed).unwrap_or(d.fsync),
        interval: seconds(r.integer("spool.interval_s", d.interval.as_secs(), 1..=86_400)),
        backlog_bytes_per_s: r.integer(
            "spool.backlog_bytes_per_s",
            d.backlog_bytes_per_s,
            1024..=1 << 32,
        ),
    }
}
