//! Offers that the broker has not acknowledged.

use std::time::Duration;

use rusqlite::{OptionalExtension as _, Transaction, params};

use super::{Result, Store, StoreError, count, devices, millis, now, unsigned};
use crate::serve::offers::OfferFacts;

/// Offers that may wait for the broker before requests are refused.
pub const MAX_OUTBOX: u32 = 10_000;
/// The first wait of an offer that the broker refused.
const FIRST_WAIT: Duration = Duration::from_secs(5);
/// The longest wait of an offer that the broker refused.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// An offer that the broker has not acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::serve) struct Unsent {
    /// Its number.
    pub(in crate::serve) id: i64,
    /// Where it goes.
    pub(in crate::serve) topic: String,
    /// What it says.
    pub(in crate::serve) payload: Vec<u8>,
}

/// What the outbox has to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::serve) enum Waiting {
    /// An offer, at once.
    Offer(Unsent),
    /// Offers that were refused before, the first of them after this time.
    Later(Duration),
    /// Nothing.
    Nothing,
}

impl Store {
    /// Puts an offer that answers no request into the outbox.
    pub(in crate::serve) fn offer(&self, device: &str, facts: &OfferFacts) -> Result<()> {
        self.transaction(|tx| {
            full(tx)?.map_or(Ok(()), |why| Err(StoreError::Limit(why)))?;
            self.post(tx, device, facts, None)
        })
    }

    /// The next offer to send: those never refused first, in the order they were posted.
    pub(in crate::serve) fn unsent(&self) -> Result<Waiting> {
        self.transaction(|tx| {
            let row = tx.query_row(
                "SELECT id, topic, payload FROM outbox WHERE not_before_ms <= ?1
                 ORDER BY attempts, id LIMIT 1",
                [now()],
                |row| Ok(Unsent { id: row.get(0)?, topic: row.get(1)?, payload: row.get(2)? }),
            );
            if let Some(unsent) = row.optional()? {
                return Ok(Waiting::Offer(unsent));
            }
            let next: Option<i64> =
                tx.query_row("SELECT min(not_before_ms) FROM outbox", [], |row| row.get(0))?;
            // A clock that was set back may make this long; the limit ends it.
            Ok(next.map_or(Waiting::Nothing, |next| {
                let wait = Duration::from_millis(unsigned(next.saturating_sub(now())));
                Waiting::Later(wait.min(LONGEST_WAIT))
            }))
        })
    }

    /// Forgets an offer that the broker has acknowledged.
    pub(in crate::serve) fn sent(&self, id: i64) -> Result<()> {
        self.transaction(|tx| {
            tx.execute("DELETE FROM outbox WHERE id = ?1", [id])?;
            Ok(())
        })
    }

    /// Moves an offer that the broker refused behind the others, and lets it wait the longer the
    /// oftener that happened.
    pub(in crate::serve) fn refused(&self, id: i64, reason: &str) -> Result<()> {
        self.transaction(|tx| {
            let attempts: Option<u32> = tx
                .query_row("SELECT attempts FROM outbox WHERE id = ?1", [id], |row| row.get(0))
                .optional()?;
            let doubled = FIRST_WAIT.saturating_mul(1 << attempts.unwrap_or(0).min(16));
            let wait = millis(doubled.min(LONGEST_WAIT));
            put_back(tx, id, reason, now().saturating_add(wait))
        })
    }

    /// Moves an offer behind the others that was in flight when the connection was lost: it may be
    /// what the broker ended the connection for.
    pub(in crate::serve) fn lost(&self, id: i64, reason: &str) -> Result<()> {
        self.transaction(|tx| put_back(tx, id, reason, 0))
    }

    /// Lets refused offers try again at once: the broker may have other access rules now.
    pub(in crate::serve) fn retry_refused(&self) -> Result<()> {
        self.transaction(|tx| {
            tx.execute("UPDATE outbox SET not_before_ms = 0", [])?;
            Ok(())
        })
    }

    /// Puts an offer into the outbox, in place of an older one for the same device and model.
    pub(super) fn post(
        &self,
        tx: &Transaction<'_>,
        device: &str,
        facts: &OfferFacts,
        request: Option<&str>,
    ) -> Result<()> {
        let (topic, payload) =
            self.offers.message(device, facts, request).map_err(StoreError::Row)?;
        tx.execute("DELETE FROM outbox WHERE topic = ?1", [&topic])?;
        tx.execute(
            "INSERT INTO outbox(topic, payload, posted_ms) VALUES (?1, ?2, ?3)",
            params![topic, payload, now()],
        )?;
        devices::offered(tx, device, facts)
    }
}

/// Why nothing more may be posted, if so.
pub(super) fn full(tx: &Transaction<'_>) -> Result<Option<String>> {
    let waiting = count(tx, "SELECT count(*) FROM outbox")?;
    Ok((waiting >= MAX_OUTBOX).then(|| {
        format!("{waiting} offers wait for the broker, the limit is {MAX_OUTBOX} (MAX_OUTBOX)")
    }))
}

fn put_back(tx: &Transaction<'_>, id: i64, reason: &str, not_before_ms: i64) -> Result<()> {
    tx.execute(
        "UPDATE outbox SET attempts = attempts + 1, reason = ?2, not_before_ms = ?3 WHERE id = ?1",
        params![id, reason, not_before_ms],
    )?;
    Ok(())
}
