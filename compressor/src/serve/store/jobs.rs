//! Requests and the jobs that answer them.

use std::time::Duration;

use rusqlite::{OptionalExtension as _, Transaction, params};
use wire::RecompressRequest;

use super::devices::{self, Lesson};
use super::{
    Result, Store, StoreError, count, millis, now, outbox, parse, signed, unsigned, write,
};
use crate::serve::offers::OfferFacts;
use crate::serve::plan::JobSpec;

/// How often a job is tried, whether it failed or the service ended while it ran.
pub const MAX_ATTEMPTS: u32 = 3;
/// How long a job that failed [`MAX_ATTEMPTS`] times is not tried again.
pub const FAILURE_KEPT: Duration = Duration::from_secs(24 * 3600);
/// Bundles for the same job that devices may take back before there is no other.
pub const MAX_TAKEN_BACK: usize = 3;
/// Most jobs that may wait.
pub const MAX_QUEUED_JOBS: u32 = 1000;
/// Requests that may wait for a job; a device has one for each model, the newest.
pub const MAX_WAITING: u32 = 10_000;
/// Answered requests remembered; the oldest are forgotten first.
pub const MAX_REQUESTS: u32 = 10_000;

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::serve) enum Accepted {
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
pub(in crate::serve) struct Job {
    /// Its number.
    pub(in crate::serve) id: i64,
    /// What to do.
    pub(in crate::serve) spec: JobSpec,
    /// Sequence number for its bundle.
    pub(in crate::serve) sequence: u64,
    /// Bundles made for it before that devices took back.
    pub(in crate::serve) lessons: Vec<Lesson>,
}

struct Known {
    id: i64,
    state: String,
    reason: Option<String>,
    attempts: u32,
    facts: Option<String>,
    lessons: String,
    finished_ms: Option<i64>,
}

impl Store {
    /// Takes a request. `spec` is the job it asks for, or why it cannot be served.
    pub(in crate::serve) fn accept(
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
            let joined = match spec {
                Ok(spec) => self.admit(tx, id, request, &spec)?,
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
    pub(in crate::serve) fn next(&self) -> Result<Option<Job>> {
        self.transaction(|tx| {
            while let Some((id, spec, lessons, device_sequence)) = first_queued(tx)? {
                let read = parse::<JobSpec>(&spec).and_then(|spec| Ok((spec, parse(&lessons)?)));
                let (spec, lessons) = match read {
                    Ok(read) => read,
                    // It would stop every job behind it.
                    Err(error) => {
                        fail(tx, id, &format!("the stored job cannot be read: {error}"))?;
                        continue;
                    }
                };
                let sequence =
                    devices::next_sequence(tx, &spec.model, unsigned(device_sequence))?;
                tx.execute(
                    "UPDATE jobs SET state = 'running', attempts = attempts + 1, started_ms = ?2, reason = NULL
                     WHERE id = ?1",
                    params![id, now()],
                )?;
                return Ok(Some(Job { id, spec, sequence, lessons }));
            }
            Ok(None)
        })
    }

    /// Records how a job ended; on success every request that waited for it gets its offer.
    pub(in crate::serve) fn finish(
        &self,
        id: i64,
        outcome: &std::result::Result<OfferFacts, String>,
    ) -> Result<()> {
        self.transaction(|tx| match outcome {
            Ok(facts) => {
                tx.execute(
                    "UPDATE jobs SET state = 'done', reason = NULL, facts = ?2, digest = ?3, finished_ms = ?4
                     WHERE id = ?1",
                    params![id, write(facts)?, facts.digest, now()],
                )?;
                self.answer(tx, id, facts)
            }
            Err(reason) => fail(tx, id, reason),
        })
    }

    /// Puts a job that was asked to stop back into the queue; that was no attempt.
    pub(in crate::serve) fn release(&self, id: i64) -> Result<()> {
        self.transaction(|tx| {
            tx.execute(
                "UPDATE jobs SET state = 'queued', attempts = attempts - 1 WHERE id = ?1 AND state = 'running'",
                [id],
            )?;
            Ok(())
        })
    }

    /// Queues a job that failed, or whose bundles were taken back, as if it were new; devices whose
    /// newest request it failed wait for it again. The error says why there is nothing to retry.
    pub(in crate::serve) fn retry(&self, id: i64) -> Result<std::result::Result<(), String>> {
        self.transaction(|tx| {
            let state = tx
                .query_row("SELECT state, lessons FROM jobs WHERE id = ?1", [id], |row| {
                    Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?))
                })
                .optional()?;
            match state.as_ref().map(|(state, lessons)| (state.as_str(), lessons.as_str())) {
                None => return Ok(Err(format!("there is no job {id}"))),
                Some(("queued" | "running", _)) => {
                    return Ok(Err(format!("job {id} is queued or running already")));
                }
                Some(("done", "[]")) => {
                    return Ok(Err(format!("job {id} is done, and no device took its bundle back")));
                }
                Some(_) => {}
            }
            tx.execute("UPDATE jobs SET lessons = '[]', attempts = 0 WHERE id = ?1", [id])?;
            queue_again(tx, id, 0)?;
            tx.execute(
                "UPDATE requests SET state = 'waiting', reason = NULL
                 WHERE job = ?1 AND state = 'failed' AND id IN (SELECT max(id) FROM requests GROUP BY device, model)",
                [id],
            )?;
            Ok(Ok(()))
        })
    }

    /// Finds the job for a request that can be served, or makes it.
    fn admit(
        &self,
        tx: &Transaction<'_>,
        id: i64,
        request: &RecompressRequest,
        spec: &JobSpec,
    ) -> Result<Accepted> {
        let (model, device) = (request.model.as_str(), request.device.as_str());
        devices::seen(tx, model, device, request.sequence)?;
        devices::set_running(tx, model, device, &request.digest)?;
        if let Some(reason) = outbox::full(tx)? {
            return Ok(Accepted::Refused(reason));
        }
        // Its budgets as they are now: an answer to an older request would be the wrong one.
        tx.execute(
            "UPDATE requests SET state = 'replaced', reason = 'the device sent a newer request'
             WHERE state = 'waiting' AND device = ?1 AND model = ?2 AND id <> ?3",
            params![device, model, id],
        )?;
        let waiting = count(tx, "SELECT count(*) FROM requests WHERE state = 'waiting'")?;
        if waiting > MAX_WAITING {
            let reason = format!(
                "{} requests wait already, the limit is {MAX_WAITING} (MAX_WAITING)",
                waiting - 1
            );
            return Ok(Accepted::Refused(reason));
        }
        self.join(tx, id, request, spec)
    }

    fn join(
        &self,
        tx: &Transaction<'_>,
        id: i64,
        request: &RecompressRequest,
        spec: &JobSpec,
    ) -> Result<Accepted> {
        let key = spec.key();
        let Some(known) = known(tx, &key)? else {
            let queued = count(tx, "SELECT count(*) FROM jobs WHERE state = 'queued'")?;
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
        let lessons: Vec<Lesson> = parse(&known.lessons)?;
        match (known.state.as_str(), &known.facts) {
            ("queued" | "running", _) => return Ok(Accepted::Joined),
            ("done", Some(facts)) => {
                let facts: OfferFacts = parse(facts)?;
                let spent = lessons.iter().any(|lesson| lesson.digest == facts.digest);
                if !spent && self.may_offer(tx, &request.device, &facts)? {
                    self.answer(tx, known.id, &facts)?;
                    return Ok(Accepted::Offered);
                }
            }
            _ => {}
        }
        if let Some(reason) = known.hopeless(&lessons) {
            return Ok(Accepted::Refused(reason));
        }
        if known.state == "done" || known.attempts >= MAX_ATTEMPTS {
            tx.execute("UPDATE jobs SET attempts = 0 WHERE id = ?1", [known.id])?;
        }
        queue_again(tx, known.id, request.sequence)?;
        Ok(Accepted::Queued)
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
}

impl Known {
    /// Why the job is not tried again now, if so.
    fn hopeless(&self, lessons: &[Lesson]) -> Option<String> {
        if let Some(last) = lessons.last().filter(|_| lessons.len() >= MAX_TAKEN_BACK) {
            return Some(format!(
                "devices of this class took back {} bundles made for the same request (MAX_TAKEN_BACK), the last \
                 one on {} because: {}; change the budgets or the data, or POST /jobs/{}/retry",
                lessons.len(),
                last.device,
                last.reason,
                self.id
            ));
        }
        let age = now().saturating_sub(self.finished_ms.unwrap_or(0));
        let fresh = age < millis(FAILURE_KEPT);
        (self.state == "failed" && self.attempts >= MAX_ATTEMPTS && fresh).then(|| {
            format!(
                "the same job failed {MAX_ATTEMPTS} times (MAX_ATTEMPTS) and is tried again {} hours after the \
                 last (FAILURE_KEPT), or after POST /jobs/{}/retry: {}",
                FAILURE_KEPT.as_secs() / 3600,
                self.id,
                self.reason.as_deref().unwrap_or("for an unknown reason")
            )
        })
    }
}

fn known(tx: &Transaction<'_>, key: &str) -> Result<Option<Known>> {
    let sql =
        "SELECT id, state, reason, attempts, facts, lessons, finished_ms FROM jobs WHERE key = ?1";
    let row = tx.query_row(sql, [key], |row| {
        Ok(Known {
            id: row.get(0)?,
            state: row.get(1)?,
            reason: row.get(2)?,
            attempts: row.get(3)?,
            facts: row.get(4)?,
            lessons: row.get(5)?,
            finished_ms: row.get(6)?,
        })
    });
    Ok(row.optional()?)
}

type Queued = (i64, String, String, i64);

fn first_queued(tx: &Transaction<'_>) -> Result<Option<Queued>> {
    let row = tx.query_row(
        "SELECT id, spec, lessons, device_sequence FROM jobs WHERE state = 'queued' ORDER BY place LIMIT 1",
        [],
        |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)),
    );
    Ok(row.optional()?)
}

/// Puts a job that ended at the end of the queue.
fn queue_again(tx: &Transaction<'_>, id: i64, device_sequence: u64) -> Result<()> {
    tx.execute(
        "UPDATE jobs SET state = 'queued', queued_ms = ?2, device_sequence = max(device_sequence, ?3),
            place = (SELECT max(place) + 1 FROM jobs)
         WHERE id = ?1",
        params![id, now(), signed(device_sequence)],
    )?;
    Ok(())
}

/// Ends a job and every request that waits for it, with the reason.
fn fail(tx: &Transaction<'_>, id: i64, reason: &str) -> Result<()> {
    tx.execute(
        "UPDATE jobs SET state = 'failed', reason = ?2, finished_ms = ?3 WHERE id = ?1",
        params![id, reason, now()],
    )?;
    tx.execute(
        "UPDATE requests SET state = 'failed', reason = ?2 WHERE job = ?1 AND state = 'waiting'",
        params![id, reason],
    )?;
    Ok(())
}

/// Jobs that were running when the service ended go back to the front of the queue, or fail when
/// they have ended it too often.
pub(super) fn recover(tx: &Transaction<'_>) -> std::result::Result<(), StoreError> {
    let reason =
        format!("the service ended {MAX_ATTEMPTS} times while this job ran (MAX_ATTEMPTS)");
    let mut ended = tx.prepare("SELECT id FROM jobs WHERE state = 'running' AND attempts >= ?1")?;
    let ended: Vec<i64> =
        ended.query_map([MAX_ATTEMPTS], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    for id in ended {
        fail(tx, id, &reason)?;
    }
    tx.execute("UPDATE jobs SET state = 'queued' WHERE state = 'running'", [])?;
    Ok(())
}

fn forget_old_requests(tx: &Transaction<'_>) -> Result<()> {
    tx.execute(
        "DELETE FROM requests WHERE state <> 'waiting' AND id <= (SELECT max(id) FROM requests) - ?1",
        [MAX_REQUESTS],
    )?;
    Ok(())
}
