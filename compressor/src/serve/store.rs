//! Jobs, requests and unsent offers, in SQLite. Every function is one transaction.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension as _, Row, Transaction, TransactionBehavior, params};
use serde::Serialize;
use wire::RecompressRequest;

use super::offers::{OfferFacts, Offers, now_ms};
use super::plan::JobSpec;

/// How often a job is tried, whether it failed or the service ended while it ran.
pub const MAX_ATTEMPTS: u32 = 3;
/// Most jobs that may wait.
pub const MAX_QUEUED_JOBS: u32 = 1000;
/// Requests remembered; the oldest answered ones are forgotten first.
pub const MAX_REQUESTS: u32 = 10_000;

const VERSION: i64 = 1;
const SCHEMA: &str = "
    CREATE TABLE meta(name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
    CREATE TABLE jobs(
        id INTEGER PRIMARY KEY,
        key TEXT NOT NULL UNIQUE,
        spec TEXT NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('queued', 'running', 'done', 'failed')),
        reason TEXT,
        attempts INTEGER NOT NULL DEFAULT 0,
        device_sequence INTEGER NOT NULL,
        place INTEGER NOT NULL,
        facts TEXT,
        queued_ms INTEGER NOT NULL,
        started_ms INTEGER,
        finished_ms INTEGER
    ) STRICT;
    CREATE TABLE requests(
        id INTEGER PRIMARY KEY,
        device TEXT NOT NULL,
        request_id TEXT NOT NULL,
        model TEXT NOT NULL,
        job INTEGER REFERENCES jobs(id),
        state TEXT NOT NULL CHECK (state IN ('waiting', 'offered', 'failed')),
        reason TEXT,
        received_ms INTEGER NOT NULL,
        UNIQUE(device, request_id)
    ) STRICT;
    CREATE TABLE outbox(
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        topic TEXT NOT NULL UNIQUE,
        payload BLOB NOT NULL
    ) STRICT;
    CREATE TABLE sequences(
        model TEXT NOT NULL,
        device TEXT NOT NULL,
        last INTEGER NOT NULL,
        PRIMARY KEY(model, device)
    ) STRICT;
    CREATE TABLE originals(key TEXT PRIMARY KEY, facts TEXT NOT NULL) STRICT;
";

/// Why the store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// SQLite refused something.
    #[error("job store: {0}")]
    Sql(#[from] rusqlite::Error),
    /// The store was written by another version.
    #[error("job store {} has version {got}, this program reads {VERSION}", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// The version found.
        got: i64,
    },
    /// A row that this program did not write.
    #[error("job store: {0}")]
    Row(String),
}

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Accepted {
    /// A new job, or one that is tried again.
    Queued,
    /// A job for the same thing is queued or running.
    Joined,
    /// The bundle was there; the offer is in the outbox.
    Offered,
    /// This very request is known.
    Duplicate,
    /// It cannot be served, for this reason.
    Refused(String),
}

/// A job to run.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Job {
    /// Its number.
    pub(super) id: i64,
    /// What to do.
    pub(super) spec: JobSpec,
    /// Sequence number for its bundle.
    pub(super) sequence: u64,
}

/// An offer that the broker has not acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unsent {
    /// Its number.
    pub(super) id: i64,
    /// Where it goes.
    pub(super) topic: String,
    /// What it says.
    pub(super) payload: Vec<u8>,
}

/// A job as it is listed.
#[derive(Debug, Clone, Serialize)]
pub(super) struct JobRow {
    id: i64,
    state: String,
    reason: Option<String>,
    attempts: u32,
    spec: serde_json::Value,
    bundle: Option<serde_json::Value>,
    queued_ms: i64,
    started_ms: Option<i64>,
    finished_ms: Option<i64>,
}

/// A request as it is listed.
#[derive(Debug, Clone, Serialize)]
pub(super) struct RequestRow {
    device: String,
    request_id: String,
    model: String,
    job: Option<i64>,
    state: String,
    reason: Option<String>,
    received_ms: i64,
}

/// The store.
pub(super) struct Store {
    connection: Mutex<Connection>,
    offers: Offers,
    bundles: PathBuf,
}

type Result<T> = std::result::Result<T, StoreError>;

impl Store {
    /// Opens or makes the store. Jobs that were running go back to the queue.
    pub(super) fn open(path: &Path, bundles: &Path, offers: Offers) -> Result<Self> {
        let mut connection = Connection::open(path)?;
        connection.busy_timeout(Duration::from_secs(10))?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "foreign_keys", true)?;
        let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        match tx.pragma_query_value(None, "user_version", |row| row.get(0))? {
            0 => {
                tx.execute_batch(SCHEMA)?;
                tx.pragma_update(None, "user_version", VERSION)?;
            }
            VERSION => {}
            got => return Err(StoreError::Version { path: path.to_owned(), got }),
        }
        recover(&tx)?;
        tx.commit()?;
        Ok(Self { connection: Mutex::new(connection), offers, bundles: bundles.to_owned() })
    }

    /// What makes offers, and knows where bundles are served.
    pub(super) fn offers(&self) -> &Offers {
        &self.offers
    }

    /// A value that stays: the one stored under this name, else `fresh`, which is then stored.
    pub(super) fn remember(&self, name: &str, fresh: &str) -> Result<String> {
        self.transaction(|tx| {
            tx.execute("INSERT OR IGNORE INTO meta VALUES (?1, ?2)", [name, fresh])?;
            Ok(tx.query_row("SELECT value FROM meta WHERE name = ?1", [name], |row| row.get(0))?)
        })
    }

    /// Takes a request. `spec` is the job it asks for, or why it cannot be served.
    pub(super) fn accept(
        &self,
        request: &RecompressRequest,
        spec: std::result::Result<JobSpec, String>,
    ) -> Result<Accepted> {
        self.transaction(|tx| {
            let new = tx.execute(
                "INSERT OR IGNORE INTO requests(device, request_id, model, state, received_ms)
                 VALUES (?1, ?2, ?3, 'waiting', ?4)",
                params![request.device, request.request_id, request.model, now()],
            )?;
            if new == 0 {
                return Ok(Accepted::Duplicate);
            }
            let id = tx.last_insert_rowid();
            raise(tx, &request.model, &request.device, request.sequence)?;
            let joined = match spec {
                Ok(spec) => self.join(tx, id, request, &spec)?,
                Err(reason) => Accepted::Refused(reason),
            };
            if let Accepted::Refused(reason) = &joined {
                tx.execute(
                    "UPDATE requests SET state = 'failed', reason = ?2 WHERE id = ?1",
                    params![id, reason],
                )?;
            }
            forget_old_requests(tx)?;
            Ok(joined)
        })
    }

    /// The next job, which is then running.
    pub(super) fn next(&self) -> Result<Option<Job>> {
        self.transaction(|tx| {
            let found = tx
                .query_row(
                    "SELECT id, spec, device_sequence FROM jobs WHERE state = 'queued' ORDER BY place LIMIT 1",
                    [],
                    |row| Ok((row.get(0)?, row.get::<_, String>(1)?, row.get::<_, i64>(2)?)),
                )
                .optional()?;
            let Some((id, spec, device_sequence)) = found else { return Ok(None) };
            let spec: JobSpec = parse(&spec)?;
            let sequence = next_sequence(tx, &spec.model, unsigned(device_sequence))?;
            tx.execute(
                "UPDATE jobs SET state = 'running', attempts = attempts + 1, started_ms = ?2, reason = NULL
                 WHERE id = ?1",
                params![id, now()],
            )?;
            Ok(Some(Job { id, spec, sequence }))
        })
    }

    /// Records how a job ended; on success every request that waited for it gets its offer.
    pub(super) fn finish(
        &self,
        id: i64,
        outcome: &std::result::Result<OfferFacts, String>,
    ) -> Result<()> {
        self.transaction(|tx| {
            let (state, reason, facts) = match outcome {
                Ok(facts) => ("done", None, Some(write(facts)?)),
                Err(reason) => ("failed", Some(reason), None),
            };
            tx.execute(
                "UPDATE jobs SET state = ?2, reason = ?3, facts = ?4, finished_ms = ?5 WHERE id = ?1",
                params![id, state, reason, facts, now()],
            )?;
            match outcome {
                Ok(facts) => self.answer(tx, id, facts),
                Err(reason) => {
                    tx.execute(
                        "UPDATE requests SET state = 'failed', reason = ?2 WHERE job = ?1 AND state = 'waiting'",
                        params![id, reason],
                    )?;
                    Ok(())
                }
            }
        })
    }

    /// Puts a job that was asked to stop back into the queue; that was no attempt.
    pub(super) fn release(&self, id: i64) -> Result<()> {
        self.transaction(|tx| {
            tx.execute(
                "UPDATE jobs SET state = 'queued', attempts = attempts - 1 WHERE id = ?1 AND state = 'running'",
                [id],
            )?;
            Ok(())
        })
    }

    /// The bundle of an original that may still be offered to this device, else the sequence number
    /// for a new one.
    pub(super) fn original(
        &self,
        key: &str,
        model: &str,
        device: &str,
    ) -> Result<std::result::Result<OfferFacts, u64>> {
        self.transaction(|tx| {
            let text: Option<String> = tx
                .query_row("SELECT facts FROM originals WHERE key = ?1", [key], |row| row.get(0))
                .optional()?;
            if let Some(text) = text {
                let facts: OfferFacts = parse(&text)?;
                if self.may_offer(tx, device, &facts)? {
                    return Ok(Ok(facts));
                }
            }
            Ok(Err(next_sequence(tx, model, 0)?))
        })
    }

    /// Remembers the bundle of an original.
    pub(super) fn keep_original(&self, key: &str, facts: &OfferFacts) -> Result<()> {
        let text = write(facts)?;
        self.transaction(|tx| {
            tx.execute("INSERT OR REPLACE INTO originals VALUES (?1, ?2)", params![key, text])?;
            Ok(())
        })
    }

    /// Puts an offer that answers no request into the outbox.
    pub(super) fn offer(&self, device: &str, facts: &OfferFacts) -> Result<()> {
        self.transaction(|tx| self.post(tx, device, facts, None))
    }

    /// The oldest offer that the broker has not acknowledged.
    pub(super) fn unsent(&self) -> Result<Option<Unsent>> {
        self.transaction(|tx| {
            let row = tx.query_row(
                "SELECT id, topic, payload FROM outbox ORDER BY id LIMIT 1",
                [],
                |row| Ok(Unsent { id: row.get(0)?, topic: row.get(1)?, payload: row.get(2)? }),
            );
            Ok(row.optional()?)
        })
    }

    /// Forgets an offer that the broker has acknowledged.
    pub(super) fn sent(&self, id: i64) -> Result<()> {
        self.transaction(|tx| {
            tx.execute("DELETE FROM outbox WHERE id = ?1", [id])?;
            Ok(())
        })
    }

    /// Jobs and requests, the newest first, at most `limit` of each.
    pub(super) fn list(&self, limit: u32) -> Result<(Vec<JobRow>, Vec<RequestRow>)> {
        self.transaction(|tx| {
            let mut jobs = tx.prepare("SELECT * FROM jobs ORDER BY id DESC LIMIT ?1")?;
            let jobs = jobs.query_map([limit], job_row)?.collect::<rusqlite::Result<_>>()?;
            let mut requests = tx.prepare("SELECT * FROM requests ORDER BY id DESC LIMIT ?1")?;
            let requests =
                requests.query_map([limit], request_row)?.collect::<rusqlite::Result<_>>()?;
            Ok((jobs, requests))
        })
    }

    fn join(
        &self,
        tx: &Transaction<'_>,
        id: i64,
        request: &RecompressRequest,
        spec: &JobSpec,
    ) -> Result<Accepted> {
        let key = spec.key();
        let known = tx
            .query_row(
                "SELECT id, state, reason, attempts, facts FROM jobs WHERE key = ?1",
                [&key],
                |row| {
                    Ok(Known {
                        id: row.get(0)?,
                        state: row.get(1)?,
                        reason: row.get(2)?,
                        attempts: row.get(3)?,
                        facts: row.get(4)?,
                    })
                },
            )
            .optional()?;
        let Some(known) = known else {
            let queued: u32 =
                tx.query_row("SELECT count(*) FROM jobs WHERE state = 'queued'", [], |row| {
                    row.get(0)
                })?;
            if queued >= MAX_QUEUED_JOBS {
                let reason = format!(
                    "{queued} jobs wait already, the limit is {MAX_QUEUED_JOBS} (MAX_QUEUED_JOBS)"
                );
                return Ok(Accepted::Refused(reason));
            }
            tx.execute(
                "INSERT INTO jobs(key, spec, state, device_sequence, place, queued_ms)
                 VALUES (?1, ?2, 'queued', ?3, (SELECT ifnull(max(place), 0) + 1 FROM jobs), ?4)",
                params![key, write(spec)?, signed(request.sequence), now()],
            )?;
            let job = tx.last_insert_rowid();
            tx.execute("UPDATE requests SET job = ?2 WHERE id = ?1", [id, job])?;
            return Ok(Accepted::Queued);
        };
        tx.execute("UPDATE requests SET job = ?2 WHERE id = ?1", [id, known.id])?;
        self.join_known(tx, request, &known)
    }

    fn join_known(
        &self,
        tx: &Transaction<'_>,
        request: &RecompressRequest,
        known: &Known,
    ) -> Result<Accepted> {
        match (known.state.as_str(), &known.facts) {
            ("queued" | "running", _) => Ok(Accepted::Joined),
            ("done", Some(facts)) if self.may_offer(tx, &request.device, &parse(facts)?)? => {
                self.answer(tx, known.id, &parse(facts)?)?;
                Ok(Accepted::Offered)
            }
            ("failed", _) if known.attempts >= MAX_ATTEMPTS => {
                let reason = known.reason.as_deref().unwrap_or("for an unknown reason");
                Ok(Accepted::Refused(format!(
                    "the same job failed {MAX_ATTEMPTS} times (MAX_ATTEMPTS): {reason}"
                )))
            }
            _ => {
                // A bundle that is gone or too old for this device does not count as a failure.
                tx.execute(
                    "UPDATE jobs SET state = 'queued', queued_ms = ?2, device_sequence = max(device_sequence, ?3),
                        attempts = CASE state WHEN 'done' THEN 0 ELSE attempts END,
                        place = (SELECT max(place) + 1 FROM jobs)
                     WHERE id = ?1",
                    params![known.id, now(), signed(request.sequence)],
                )?;
                Ok(Accepted::Queued)
            }
        }
    }

    /// Whether the bundle is there and not older than what the device has or was offered.
    fn may_offer(&self, tx: &Transaction<'_>, device: &str, facts: &OfferFacts) -> Result<bool> {
        if !self.bundles.join(facts.hex()).join(bundle::MANIFEST_FILE).is_file() {
            return Ok(false);
        }
        let last: Option<i64> = tx
            .query_row(
                "SELECT last FROM sequences WHERE model = ?1 AND device = ?2",
                [facts.model.as_str(), device],
                |row| row.get(0),
            )
            .optional()?;
        Ok(last.is_none_or(|last| facts.sequence >= unsigned(last)))
    }

    /// Offers a job's bundle to everyone who waits for it.
    fn answer(&self, tx: &Transaction<'_>, job: i64, facts: &OfferFacts) -> Result<()> {
        let mut waiting = tx.prepare(
            "SELECT id, device, request_id FROM requests WHERE job = ?1 AND state = 'waiting'",
        )?;
        let waiting: Vec<(i64, String, String)> = waiting
            .query_map([job], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
            .collect::<rusqlite::Result<_>>()?;
        for (id, device, request_id) in waiting {
            self.post(tx, &device, facts, Some(&request_id))?;
            tx.execute("UPDATE requests SET state = 'offered' WHERE id = ?1", [id])?;
        }
        Ok(())
    }

    /// Puts an offer into the outbox, in place of an older one for the same device and model.
    fn post(
        &self,
        tx: &Transaction<'_>,
        device: &str,
        facts: &OfferFacts,
        request: Option<&str>,
    ) -> Result<()> {
        let (topic, payload) =
            self.offers.message(device, facts, request).map_err(StoreError::Row)?;
        tx.execute("DELETE FROM outbox WHERE topic = ?1", [&topic])?;
        tx.execute("INSERT INTO outbox(topic, payload) VALUES (?1, ?2)", params![topic, payload])?;
        raise(tx, &facts.model, device, facts.sequence)
    }

    fn transaction<T>(&self, work: impl FnOnce(&Transaction<'_>) -> Result<T>) -> Result<T> {
        let mut connection = self.lock();
        let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let result = work(&tx)?;
        tx.commit()?;
        Ok(result)
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        // A panic inside a transaction has rolled it back: the connection is still good.
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Known {
    id: i64,
    state: String,
    reason: Option<String>,
    attempts: u32,
    facts: Option<String>,
}

/// Jobs that were running when the service ended go back to the front of the queue, or fail when
/// they have ended it too often.
fn recover(tx: &Transaction<'_>) -> Result<()> {
    let reason =
        format!("the service ended {MAX_ATTEMPTS} times while this job ran (MAX_ATTEMPTS)");
    tx.execute(
        "UPDATE jobs SET state = 'failed', reason = ?2, finished_ms = ?3 WHERE state = 'running' AND attempts >= ?1",
        params![MAX_ATTEMPTS, reason, now()],
    )?;
    tx.execute(
        "UPDATE requests SET state = 'failed', reason = ?1
         WHERE state = 'waiting' AND job IN (SELECT id FROM jobs WHERE state = 'failed')",
        [&reason],
    )?;
    tx.execute("UPDATE jobs SET state = 'queued' WHERE state = 'running'", [])?;
    Ok(())
}

/// The model's next sequence number: over every bundle, every offer and every device's own.
fn next_sequence(tx: &Transaction<'_>, model: &str, at_least: u64) -> Result<u64> {
    let last: Option<i64> =
        tx.query_row("SELECT max(last) FROM sequences WHERE model = ?1", [model], |row| {
            row.get(0)
        })?;
    let next = last.map_or(0, unsigned).max(at_least).saturating_add(1);
    raise(tx, model, "", next)?;
    Ok(next)
}

/// Raises a device's last sequence number; the model's own is kept under the empty name.
fn raise(tx: &Transaction<'_>, model: &str, device: &str, sequence: u64) -> Result<()> {
    tx.execute(
        "INSERT INTO sequences VALUES (?1, ?2, ?3)
         ON CONFLICT(model, device) DO UPDATE SET last = max(last, excluded.last)",
        params![model, device, signed(sequence)],
    )?;
    Ok(())
}

fn forget_old_requests(tx: &Transaction<'_>) -> Result<()> {
    tx.execute(
        "DELETE FROM requests WHERE state <> 'waiting' AND id <= (SELECT max(id) FROM requests) - ?1",
        [MAX_REQUESTS],
    )?;
    Ok(())
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

fn parse<T: serde::de::DeserializeOwned>(text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|error| StoreError::Row(error.to_string()))
}

fn write<T: Serialize>(value: &T) -> Result<String> {
    serde_json::to_string(value).map_err(|error| StoreError::Row(error.to_string()))
}

fn now() -> i64 {
    signed(now_ms())
}

/// SQLite has no unsigned numbers.
fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tempfile::TempDir;
    use wire::{BudgetKind, Budgets, Cause, Header, Runtime};

    use super::*;
    use crate::pipeline::{DeviceBaseline, Goal};

    struct Fixture {
        dir: TempDir,
        store: Store,
    }

    impl Fixture {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let store = Self::open(&dir);
            Self { dir, store }
        }

        fn open(dir: &TempDir) -> Store {
            let offers = Offers::new("espalier/v1", "http://host");
            Store::open(&dir.path().join("jobs.sqlite"), &dir.path().join("bundles"), offers)
                .unwrap()
        }

        /// As after a crash: what was running is not told.
        fn crash(self) -> Self {
            let Self { dir, store } = self;
            drop(store);
            let store = Self::open(&dir);
            Self { dir, store }
        }

        fn ask(&self, device: &str, id: &str) -> Accepted {
            self.store.accept(&request(device, id, 1), Ok(spec("current"))).unwrap()
        }

        /// A bundle that is in the store as far as the store looks.
        fn facts(&self, sequence: u64) -> OfferFacts {
            let digest = bundle::Digest::of(&sequence.to_le_bytes());
            let dir = self.dir.path().join("bundles").join(digest.hex());
            std::fs::create_dir_all(&dir).unwrap();
            std::fs::write(dir.join(bundle::MANIFEST_FILE), b"{}").unwrap();
            OfferFacts {
                model: "m".into(),
                version: "v".into(),
                sequence,
                digest: digest.to_string(),
                size_bytes: 1,
                runtime: Runtime::Tract,
                device_class: "any".into(),
            }
        }

        fn sent(&self) -> Vec<wire::Offer> {
            let mut offers = Vec::new();
            while let Some(unsent) = self.store.unsent().unwrap() {
                offers.push(wire::decode(&unsent.payload).unwrap());
                self.store.sent(unsent.id).unwrap();
            }
            offers
        }
    }

    fn spec(current: &str) -> JobSpec {
        JobSpec {
            model: "m".into(),
            source: "s".into(),
            runtime: Runtime::Tract,
            device_class: "any".into(),
            threads: 1,
            current: current.into(),
            goal: Goal {
                latency_p95_us: Some(1),
                memory_bytes: None,
                size_bytes: None,
                agreement_min: 0.9,
            },
            baseline: DeviceBaseline::latency(1, 2),
        }
    }

    fn request(device: &str, id: &str, sequence: u64) -> RecompressRequest {
        RecompressRequest {
            header: Header::of::<RecompressRequest>(0, 0, "b"),
            request_id: id.into(),
            device: device.into(),
            model: "m".into(),
            digest: bundle::Digest::of(b"current").to_string(),
            sequence,
            device_class: "any".into(),
            runtime: Runtime::Tract,
            arch: "x".into(),
            threads: 1,
            budgets: Budgets::default(),
            budget: BudgetKind::LatencyP95,
            cause: Cause::Model,
            p50_us: 1,
            p95_us: 2,
            windows_over: 1,
            windows_seen: 1,
            workers_pss_bytes: None,
            emulated: false,
        }
    }

    #[test]
    fn one_job_serves_every_request_for_the_same_thing() {
        let f = Fixture::new();
        assert_eq!(f.ask("a", "1"), Accepted::Queued);
        assert_eq!(f.ask("b", "1"), Accepted::Joined);
        assert_eq!(f.ask("a", "1"), Accepted::Duplicate);
        let job = f.store.next().unwrap().unwrap();
        assert_eq!(f.ask("c", "1"), Accepted::Joined);
        assert_eq!((job.spec, job.sequence), (spec("current"), 2));
        assert_eq!(f.store.next().unwrap(), None);
        f.store.finish(job.id, &Ok(f.facts(2))).unwrap();
        assert_eq!(f.ask("d", "1"), Accepted::Offered);
        let offers = f.sent();
        assert_eq!(offers.len(), 4);
        assert!(
            offers
                .iter()
                .all(|offer| offer.sequence == 2 && offer.request_id.as_deref() == Some("1"))
        );
        assert_eq!(f.store.next().unwrap(), None);
    }

    #[test]
    fn a_job_that_ran_when_the_service_died_runs_again_but_not_for_ever() {
        let mut f = Fixture::new();
        f.ask("a", "1");
        for _ in 0..MAX_ATTEMPTS {
            assert!(f.store.next().unwrap().is_some());
            f = f.crash();
        }
        assert_eq!(f.store.next().unwrap(), None);
        let (jobs, requests) = f.store.list(10).unwrap();
        assert_eq!((jobs[0].state.as_str(), requests[0].state.as_str()), ("failed", "failed"));
        assert!(requests[0].reason.as_deref().unwrap().contains("MAX_ATTEMPTS"));
        assert!(
            matches!(f.ask("a", "2"), Accepted::Refused(reason) if reason.contains("MAX_ATTEMPTS"))
        );
    }

    #[test]
    fn a_job_that_was_asked_to_stop_has_not_failed() {
        let f = Fixture::new();
        f.ask("a", "1");
        for _ in 0..2 * MAX_ATTEMPTS {
            let job = f.store.next().unwrap().unwrap();
            f.store.release(job.id).unwrap();
        }
        assert!(f.store.next().unwrap().is_some());
    }

    #[test]
    fn sequence_numbers_rise_over_jobs_originals_devices_and_restarts() {
        let f = Fixture::new();
        f.store.accept(&request("a", "1", 40), Ok(spec("x"))).unwrap();
        f.store.accept(&request("b", "1", 7), Ok(spec("y"))).unwrap();
        assert_eq!(f.store.next().unwrap().unwrap().sequence, 41);
        assert_eq!(f.store.next().unwrap().unwrap().sequence, 42);
        assert_eq!(f.store.original("k", "m", "c").unwrap(), Err(43));
        let f = f.crash();
        assert_eq!(f.store.next().unwrap().unwrap().sequence, 44);
        assert_eq!(f.store.original("k", "another model", "c").unwrap(), Err(1));
    }

    #[test]
    fn jobs_run_in_the_order_they_were_queued() {
        let f = Fixture::new();
        for (device, current) in [("a", "x"), ("b", "y"), ("c", "z")] {
            f.store.accept(&request(device, "1", 1), Ok(spec(current))).unwrap();
        }
        let first = f.store.next().unwrap().unwrap();
        assert_eq!(first.spec.current, "x");
        f.store.finish(first.id, &Err("why".into())).unwrap();
        f.store.accept(&request("a", "2", 1), Ok(spec("x"))).unwrap();
        let order: Vec<String> =
            std::iter::from_fn(|| f.store.next().unwrap()).map(|job| job.spec.current).collect();
        assert_eq!(order, ["y", "z", "x"]);
    }

    #[test]
    fn a_bundle_that_is_gone_or_older_than_the_devices_is_made_again() {
        let f = Fixture::new();
        f.ask("a", "1");
        let job = f.store.next().unwrap().unwrap();
        let facts = f.facts(job.sequence);
        f.store.finish(job.id, &Ok(facts.clone())).unwrap();
        let newer = f.store.accept(&request("b", "1", 9), Ok(spec("current"))).unwrap();
        assert_eq!(newer, Accepted::Queued);
        let job = f.store.next().unwrap().unwrap();
        assert!(job.sequence > 9);
        let facts = f.facts(job.sequence);
        f.store.finish(job.id, &Ok(facts.clone())).unwrap();
        std::fs::remove_dir_all(f.dir.path().join("bundles").join(facts.hex())).unwrap();
        assert_eq!(f.ask("c", "1"), Accepted::Queued);
    }

    #[test]
    fn an_original_is_made_once_per_key_and_again_for_a_device_that_is_ahead() {
        let f = Fixture::new();
        let sequence = f.store.original("k", "m", "a").unwrap().unwrap_err();
        let facts = f.facts(sequence);
        f.store.keep_original("k", &facts).unwrap();
        f.store.offer("a", &facts).unwrap();
        assert_eq!(f.store.original("k", "m", "a").unwrap(), Ok(facts.clone()));
        assert_eq!(f.store.original("k", "m", "b").unwrap(), Ok(facts));
        f.store.accept(&request("b", "1", 5), Ok(spec("x"))).unwrap();
        assert_eq!(f.store.original("k", "m", "b").unwrap(), Err(6));
    }

    #[test]
    fn a_newer_offer_takes_the_place_of_an_unsent_one() {
        let f = Fixture::new();
        f.store.offer("a", &f.facts(1)).unwrap();
        f.store.offer("b", &f.facts(1)).unwrap();
        f.store.offer("a", &f.facts(2)).unwrap();
        let f = f.crash();
        let sequences: Vec<u64> = f.sent().iter().map(|offer| offer.sequence).collect();
        assert_eq!(sequences, [1, 2]);
    }

    #[test]
    fn a_full_queue_refuses_with_the_limits_name() {
        let f = Fixture::new();
        f.store
            .lock()
            .execute_batch(&format!(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {MAX_QUEUED_JOBS})
                 INSERT INTO jobs(key, spec, state, device_sequence, place, queued_ms)
                 SELECT 'k' || i, '{{}}', 'queued', 0, i, 0 FROM n"
            ))
            .unwrap();
        assert!(
            matches!(f.ask("a", "1"), Accepted::Refused(reason) if reason.contains("MAX_QUEUED_JOBS"))
        );
    }

    #[test]
    fn answered_requests_are_forgotten_beyond_the_limit() {
        let f = Fixture::new();
        f.store
            .lock()
            .execute_batch(&format!(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i <= {MAX_REQUESTS})
                 INSERT INTO requests(device, request_id, model, state, received_ms)
                 SELECT 'd' || i, 'r', 'm', CASE i WHEN 1 THEN 'waiting' ELSE 'failed' END, 0 FROM n"
            ))
            .unwrap();
        f.ask("a", "1");
        let count: u32 = f
            .store
            .lock()
            .query_row("SELECT count(*) FROM requests", [], |row| row.get(0))
            .unwrap();
        assert_eq!(count, MAX_REQUESTS + 1, "the newest and the one that waits");
    }

    #[test]
    fn a_store_of_another_version_and_a_file_that_is_no_store_are_refused() {
        let f = Fixture::new();
        f.store.lock().pragma_update(None, "user_version", 99).unwrap();
        let Fixture { dir, store } = f;
        drop(store);
        let path = dir.path().join("jobs.sqlite");
        let open = || Store::open(&path, dir.path(), Offers::new("r", "http://h")).err().unwrap();
        assert!(matches!(open(), StoreError::Version { got: 99, .. }));
        for name in ["jobs.sqlite-wal", "jobs.sqlite-shm"] {
            let _ = std::fs::remove_file(dir.path().join(name));
        }
        std::fs::write(&path, vec![b'x'; 8192]).unwrap();
        assert!(matches!(open(), StoreError::Sql(_)));
    }

    #[test]
    fn what_was_remembered_stays() {
        let f = Fixture::new();
        assert_eq!(f.store.remember("client_id", "first").unwrap(), "first");
        let f = f.crash();
        assert_eq!(f.store.remember("client_id", "second").unwrap(), "first");
    }
}
