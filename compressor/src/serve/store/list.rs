//! What the store holds, for people.

use rusqlite::{Row, Transaction};
use serde::Serialize;

use super::{Result, Store, results};

/// A job as it is listed.
#[derive(Debug, Clone, Serialize)]
pub(in crate::serve) struct JobRow {
    pub(super) id: i64,
    pub(super) state: String,
    reason: Option<String>,
    attempts: u32,
    spec: serde_json::Value,
    bundle: Option<serde_json::Value>,
    taken_back: serde_json::Value,
    /// What devices measured of its bundles.
    results: Vec<serde_json::Value>,
    queued_ms: i64,
    started_ms: Option<i64>,
    finished_ms: Option<i64>,
}

/// A request as it is listed.
#[derive(Debug, Clone, Serialize)]
pub(in crate::serve) struct RequestRow {
    device: String,
    request_id: String,
    model: String,
    job: Option<i64>,
    pub(super) state: String,
    pub(super) reason: Option<String>,
    received_ms: i64,
}

/// An unsent offer as it is listed.
#[derive(Debug, Clone, Serialize)]
pub(in crate::serve) struct OfferRow {
    topic: String,
    attempts: u32,
    reason: Option<String>,
    not_before_ms: i64,
    posted_ms: i64,
}

/// The newest of everything.
#[derive(Debug, Clone, Serialize)]
pub(in crate::serve) struct Listing {
    pub(super) jobs: Vec<JobRow>,
    pub(super) requests: Vec<RequestRow>,
    outbox: Vec<OfferRow>,
}

#[cfg(test)]
impl JobRow {
    pub(super) fn taken_back(&self) -> &serde_json::Value {
        &self.taken_back
    }

    pub(super) fn results(&self) -> &[serde_json::Value] {
        &self.results
    }
}

impl Store {
    /// Jobs and requests, the newest first, and unsent offers, the oftenest refused first; at most
    /// `limit` of each.
    pub(in crate::serve) fn list(&self, limit: u32) -> Result<Listing> {
        self.transaction(|tx| {
            let mut jobs =
                rows(tx, "SELECT * FROM jobs ORDER BY id DESC LIMIT ?1", limit, job_row)?;
            for job in &mut jobs {
                job.results = results::of_job(tx, job.id)?;
            }
            Ok(Listing {
                jobs,
                requests: rows(
                    tx,
                    "SELECT * FROM requests ORDER BY id DESC LIMIT ?1",
                    limit,
                    request_row,
                )?,
                outbox: rows(
                    tx,
                    "SELECT * FROM outbox ORDER BY attempts DESC, id LIMIT ?1",
                    limit,
                    offer_row,
                )?,
            })
        })
    }
}

fn rows<T>(
    tx: &Transaction<'_>,
    sql: &str,
    limit: u32,
    read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
) -> Result<Vec<T>> {
    let mut statement = tx.prepare(sql)?;
    Ok(statement.query_map([limit], read)?.collect::<rusqlite::Result<_>>()?)
}

fn job_row(row: &Row<'_>) -> rusqlite::Result<JobRow> {
    let json = |text: String| serde_json::from_str(&text).unwrap_or_default();
    Ok(JobRow {
        id: row.get("id")?,
        state: row.get("state")?,
        reason: row.get("reason")?,
        attempts: row.get("attempts")?,
        spec: json(row.get("spec")?),
        bundle: row.get::<_, Option<String>>("facts")?.map(json),
        taken_back: json(row.get("lessons")?),
        results: Vec::new(),
        queued_ms: row.get("queued_ms")?,
        started_ms: row.get("started_ms")?,
        finished_ms: row.get("finished_ms")?,
    })
}

fn request_row(row: &Row<'_>) -> rusqlite::Result<RequestRow> {
    Ok(RequestRow {
        device: row.get("device")?,
        request_id: row.get("request_id")?,
        model: row.get("model")?,
        job: row.get("job")?,
        state: row.get("state")?,
        reason: row.get("reason")?,
        received_ms: row.get("received_ms")?,
    })
}

fn offer_row(row: &Row<'_>) -> rusqlite::Result<OfferRow> {
    Ok(OfferRow {
        topic: row.get("topic")?,
        attempts: row.get("attempts")?,
        reason: row.get("reason")?,
        not_before_ms: row.get("not_before_ms")?,
        posted_ms: row.get("posted_ms")?,
    })
}
