//! What each device runs and was offered, and what became of offers there.

use rusqlite::{OptionalExtension as _, Transaction, params};
use serde::{Deserialize, Serialize};
use wire::{InstallEvent, InstallOutcome, Metric};

use super::{Result, Store, count, now, parse, results, signed, unsigned, write};
use crate::serve::offers::OfferFacts;

/// Pairs of model and device remembered; those not heard of for longest are forgotten first.
pub const MAX_DEVICES: u32 = 10_000;

/// A bundle that was made for a job and that a device took back or turned down for good.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(in crate::serve) struct Lesson {
    /// The bundle's digest.
    pub(in crate::serve) digest: String,
    /// What its model files are, whatever the bundle around them says.
    pub(in crate::serve) content: String,
    /// The device that said so first.
    pub(in crate::serve) device: String,
    /// Why, in its words.
    pub(in crate::serve) reason: String,
    /// Share of equal answers in its shadow, where it got that far.
    pub(in crate::serve) agreement: Option<f64>,
    /// By what share its p95 was over what the bundle predicts, where its probation measured it.
    #[serde(default)]
    pub(in crate::serve) latency_error: Option<f64>,
    /// Likewise its memory.
    #[serde(default)]
    pub(in crate::serve) memory_error: Option<f64>,
}

/// What an install event was good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::serve) enum Heard {
    /// It tells progress, or of a bundle that this service did not offer to that device.
    Nothing,
    /// What the device runs is remembered.
    Noted,
    /// The bundle is not offered again: the next request for the same gets another.
    TakenBack,
}

impl Store {
    /// Takes what a device says about an install. Saying it twice is as good as once.
    pub(in crate::serve) fn heard(&self, device: &str, event: &InstallEvent) -> Result<Heard> {
        if event.outcome == InstallOutcome::Progress {
            return Ok(Heard::Nothing);
        }
        self.transaction(|tx| {
            if !was_offered(tx, device, event)? {
                return Ok(Heard::Nothing);
            }
            note_running(tx, device, event)?;
            results::keep(tx, device, event)?;
            let back = event.blocked || event.outcome == InstallOutcome::RolledBack;
            if back && take_back(tx, device, event)? {
                return Ok(Heard::TakenBack);
            }
            Ok(Heard::Noted)
        })
    }
}

/// A device speaks for the bundle that it was offered last, and for no other.
fn was_offered(tx: &Transaction<'_>, device: &str, event: &InstallEvent) -> Result<bool> {
    let found = tx.query_row(
        "SELECT count(*) FROM devices WHERE model = ?1 AND device = ?2 AND offered = ?3",
        [event.model.as_str(), device, &event.digest],
        |row| row.get::<_, u32>(0),
    )?;
    Ok(found > 0)
}

fn note_running(tx: &Transaction<'_>, device: &str, event: &InstallEvent) -> Result<()> {
    let running = match event.outcome {
        InstallOutcome::Committed => Some(&event.digest),
        _ => event.from_digest.as_ref(),
    };
    if let Some(running) = running {
        set_running(tx, &event.model, device, running)?;
    }
    Ok(())
}

/// Remembers what a device runs, and what it ran before: that is what it goes back to.
pub(super) fn set_running(
    tx: &Transaction<'_>,
    model: &str,
    device: &str,
    digest: &str,
) -> Result<()> {
    tx.execute(
        "UPDATE devices SET seen_ms = ?4, running = ?3,
            previous = CASE WHEN running = ?3 THEN previous ELSE running END
         WHERE model = ?1 AND device = ?2",
        params![model, device, digest, now()],
    )?;
    Ok(())
}

/// Writes the lesson down where the bundle came from; whether that was new.
fn take_back(tx: &Transaction<'_>, device: &str, event: &InstallEvent) -> Result<bool> {
    let originals =
        tx.execute("DELETE FROM originals WHERE digest = ?1", [event.digest.as_str()])?;
    let job = tx
        .query_row(
            "SELECT id, lessons, facts FROM jobs WHERE digest = ?1",
            [event.digest.as_str()],
            |row| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?, row.get::<_, String>(2)?)),
        )
        .optional()?;
    let Some((job, lessons, facts)) = job else { return Ok(originals > 0) };
    let (mut lessons, facts): (Vec<Lesson>, OfferFacts) = (parse(&lessons)?, parse(&facts)?);
    if lessons.iter().any(|lesson| lesson.digest == event.digest) {
        return Ok(false);
    }
    lessons.push(Lesson {
        digest: event.digest.clone(),
        content: facts.content,
        device: device.to_owned(),
        reason: event.reason.clone().unwrap_or_else(|| "without a reason".to_owned()),
        agreement: event.comparison.as_ref().map(|comparison| comparison.agreement),
        latency_error: results::prediction_error(event, Metric::LatencyP95),
        memory_error: results::prediction_error(event, Metric::Memory),
    });
    tx.execute("UPDATE jobs SET lessons = ?2 WHERE id = ?1", params![job, write(&lessons)?])?;
    Ok(true)
}

/// The model's next sequence number: over every bundle, every offer and every device's own.
pub(super) fn next_sequence(tx: &Transaction<'_>, model: &str, at_least: u64) -> Result<u64> {
    let last: Option<i64> = tx.query_row(
        "SELECT max(last) FROM
            (SELECT last FROM sequences WHERE model = ?1 UNION ALL SELECT last FROM devices WHERE model = ?1)",
        [model],
        |row| row.get(0),
    )?;
    let next = last.map_or(0, unsigned).max(at_least).saturating_add(1);
    raise_model(tx, model, next)?;
    Ok(next)
}

/// The highest sequence number that a device has or was offered.
pub(super) fn last_sequence(
    tx: &Transaction<'_>,
    model: &str,
    device: &str,
) -> Result<Option<u64>> {
    let last = tx.query_row(
        "SELECT last FROM devices WHERE model = ?1 AND device = ?2",
        [model, device],
        |row| row.get(0),
    );
    Ok(last.optional()?.map(unsigned))
}

fn raise_model(tx: &Transaction<'_>, model: &str, sequence: u64) -> Result<()> {
    tx.execute(
        "INSERT INTO sequences VALUES (?1, ?2)
         ON CONFLICT(model) DO UPDATE SET last = max(last, excluded.last)",
        params![model, signed(sequence)],
    )?;
    Ok(())
}

/// Remembers that a device was heard of, and raises its last sequence number.
pub(super) fn seen(tx: &Transaction<'_>, model: &str, device: &str, sequence: u64) -> Result<()> {
    tx.execute(
        "INSERT INTO devices(model, device, last, seen_ms) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT(model, device) DO UPDATE SET last = max(last, excluded.last), seen_ms = excluded.seen_ms",
        params![model, device, signed(sequence), now()],
    )?;
    if count(tx, "SELECT count(*) FROM devices")? > MAX_DEVICES {
        forget(tx, MAX_DEVICES)?;
    }
    Ok(())
}

/// Remembers what a device was offered last.
pub(super) fn offered(tx: &Transaction<'_>, device: &str, facts: &OfferFacts) -> Result<()> {
    seen(tx, &facts.model, device, facts.sequence)?;
    tx.execute(
        "UPDATE devices SET offered = ?3 WHERE model = ?1 AND device = ?2",
        [facts.model.as_str(), device, &facts.digest],
    )?;
    Ok(())
}

/// Forgets the devices not heard of for longest. Their sequence numbers stay in the model's.
pub(super) fn forget(tx: &Transaction<'_>, most: u32) -> Result<()> {
    let forgotten =
        "SELECT rowid FROM devices ORDER BY seen_ms DESC, rowid DESC LIMIT -1 OFFSET ?1";
    let mut rows = tx.prepare(&format!(
        "SELECT model, max(last) FROM devices WHERE rowid IN ({forgotten}) GROUP BY model"
    ))?;
    let models: Vec<(String, i64)> = rows
        .query_map([most], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<rusqlite::Result<_>>()?;
    for (model, last) in models {
        raise_model(tx, &model, unsigned(last))?;
    }
    tx.execute(&format!("DELETE FROM devices WHERE rowid IN ({forgotten})"), [most])?;
    Ok(())
}
