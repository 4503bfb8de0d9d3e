//! Jobs, requests, unsent offers and what devices run, in SQLite. Every public function is one
//! transaction.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension as _, Transaction, TransactionBehavior};
use serde::Serialize;

use super::offers::{OfferFacts, Offers, now_ms};

mod collect;
mod devices;
mod jobs;
mod list;
mod outbox;
#[cfg(test)]
mod tests;

pub use collect::{MAX_BUNDLES, MAX_FINISHED_JOBS, MAX_STORE_BYTES};
pub(super) use collect::{Room, Shelf, TRASH, trashed};
pub use devices::MAX_DEVICES;
pub(super) use devices::{Heard, Lesson};
pub(super) use jobs::{Accepted, Job};
pub use jobs::{
    FAILURE_KEPT, MAX_ATTEMPTS, MAX_QUEUED_JOBS, MAX_REQUESTS, MAX_TAKEN_BACK, MAX_WAITING,
};
pub(super) use list::Listing;
pub use outbox::MAX_OUTBOX;
pub(super) use outbox::Waiting;

const VERSION: i64 = 2;
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
        digest TEXT,
        lessons TEXT NOT NULL DEFAULT '[]',
        queued_ms INTEGER NOT NULL,
        started_ms INTEGER,
        finished_ms INTEGER
    ) STRICT;
    CREATE INDEX jobs_by_digest ON jobs(digest);
    CREATE TABLE requests(
        id INTEGER PRIMARY KEY,
        device TEXT NOT NULL,
        request_id TEXT NOT NULL,
        model TEXT NOT NULL,
        job INTEGER REFERENCES jobs(id),
        state TEXT NOT NULL CHECK (state IN ('waiting', 'offered', 'failed', 'replaced')),
        reason TEXT,
        received_ms INTEGER NOT NULL,
        UNIQUE(device, request_id)
    ) STRICT;
    CREATE INDEX requests_by_job ON requests(job, state);
    CREATE INDEX requests_by_state ON requests(state, device, model);
    CREATE TABLE outbox(
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        topic TEXT NOT NULL UNIQUE,
        payload BLOB NOT NULL,
        attempts INTEGER NOT NULL DEFAULT 0,
        reason TEXT,
        not_before_ms INTEGER NOT NULL DEFAULT 0,
        posted_ms INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE sequences(model TEXT PRIMARY KEY, last INTEGER NOT NULL) STRICT;
    CREATE TABLE devices(
        model TEXT NOT NULL,
        device TEXT NOT NULL,
        last INTEGER NOT NULL,
        running TEXT,
        previous TEXT,
        offered TEXT,
        seen_ms INTEGER NOT NULL,
        PRIMARY KEY(model, device)
    ) STRICT;
    CREATE TABLE originals(key TEXT PRIMARY KEY, facts TEXT NOT NULL, digest TEXT NOT NULL) STRICT;
";

/// Why the store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// SQLite refused something.
    #[error("job store: {0}")]
    Sql(#[from] rusqlite::Error),
    /// The store was written by another version.
    #[error(
        "job store {} has version {got}, this program reads {VERSION}: give --store another folder, or move this file away",
        path.display()
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// The version found.
        got: i64,
    },
    /// A row that this program did not write.
    #[error("job store: {0}")]
    Row(String),
    /// A named limit is reached.
    #[error("{0}")]
    Limit(String),
    /// A bundle's folder cannot be read or moved.
    #[error("bundle store: {0}")]
    Bundles(String),
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
        jobs::recover(&tx)?;
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
            Ok(Err(devices::next_sequence(tx, model, 0)?))
        })
    }

    /// Remembers the bundle of an original.
    pub(super) fn keep_original(&self, key: &str, facts: &OfferFacts) -> Result<()> {
        let text = write(facts)?;
        self.transaction(|tx| {
            tx.execute(
                "INSERT OR REPLACE INTO originals VALUES (?1, ?2, ?3)",
                [key, &text, &facts.digest],
            )?;
            Ok(())
        })
    }

    /// Whether the bundle is there and not older than what the device has or was offered.
    fn may_offer(&self, tx: &Transaction<'_>, device: &str, facts: &OfferFacts) -> Result<bool> {
        if !self.bundles.join(facts.hex()).join(bundle::MANIFEST_FILE).is_file() {
            return Ok(false);
        }
        let last = devices::last_sequence(tx, &facts.model, device)?;
        Ok(last.is_none_or(|last| facts.sequence >= last))
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

fn parse<T: serde::de::DeserializeOwned>(text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|error| StoreError::Row(error.to_string()))
}

fn write<T: Serialize>(value: &T) -> Result<String> {
    serde_json::to_string(value).map_err(|error| StoreError::Row(error.to_string()))
}

fn count(tx: &Transaction<'_>, sql: &str) -> Result<u32> {
    Ok(tx.query_row(sql, [], |row| row.get(0))?)
}

fn now() -> i64 {
    signed(now_ms())
}

/// A length of time in milliseconds.
fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

/// SQLite has no unsigned numbers.
fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}
