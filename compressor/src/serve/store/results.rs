//! What devices measured of the bundles that a job made for them, beside what was predicted.

use rusqlite::{OptionalExtension as _, Transaction, params};
use serde_json::{Value, json};
use wire::{InstallEvent, Metric};

use super::{Result, count, now, parse, write};

/// Results remembered; the oldest are forgotten first.
pub const MAX_RESULTS: u32 = 10_000;
/// Results of one job that are listed, the newest first.
const MAX_LISTED: u32 = 100;

pub(super) const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS results(
        id INTEGER PRIMARY KEY,
        job INTEGER NOT NULL,
        device TEXT NOT NULL,
        digest TEXT NOT NULL,
        outcome TEXT NOT NULL,
        trial TEXT NOT NULL,
        heard_ms INTEGER NOT NULL,
        UNIQUE(job, device, digest)
    ) STRICT;
";

/// Keeps what a device's probation found with the job that made the bundle.
pub(super) fn keep(tx: &Transaction<'_>, device: &str, event: &InstallEvent) -> Result<()> {
    let Some(trial) = &event.trial else { return Ok(()) };
    let job: Option<i64> = tx
        .query_row("SELECT id FROM jobs WHERE digest = ?1", [&event.digest], |row| row.get(0))
        .optional()?;
    let Some(job) = job else { return Ok(()) };
    tx.execute(
        "INSERT OR REPLACE INTO results(job, device, digest, outcome, trial, heard_ms)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        params![job, device, event.digest, event.outcome.as_str(), write(trial)?, now()],
    )?;
    if count(tx, "SELECT count(*) FROM results")? > MAX_RESULTS {
        tx.execute("DELETE FROM results WHERE job NOT IN (SELECT id FROM jobs)", [])?;
        tx.execute(
            "DELETE FROM results WHERE id <= (SELECT max(id) FROM results) - ?1",
            [MAX_RESULTS],
        )?;
    }
    Ok(())
}

/// By what share a metric was over what the bundle predicts.
pub(super) fn prediction_error(event: &InstallEvent, metric: Metric) -> Option<f64> {
    event.trial.as_ref()?.metric(metric)?.prediction_error
}

/// The newest results of a job, for people.
pub(super) fn of_job(tx: &Transaction<'_>, job: i64) -> Result<Vec<Value>> {
    let mut statement = tx.prepare(
        "SELECT device, digest, outcome, trial FROM results WHERE job = ?1 ORDER BY id DESC LIMIT ?2",
    )?;
    let rows: Vec<(String, String, String, String)> = statement
        .query_map(params![job, MAX_LISTED], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
        })?
        .collect::<rusqlite::Result<_>>()?;
    rows.into_iter()
        .map(|(device, digest, outcome, trial)| {
            let trial: Value = parse(&trial)?;
            Ok(json!({ "device": device, "digest": digest, "outcome": outcome, "trial": trial }))
        })
        .collect()
}
