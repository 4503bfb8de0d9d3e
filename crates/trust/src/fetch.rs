//! Getting the files of a repository, within bounds.

use std::fmt;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::PathBuf;
use std::time::Instant;

use crate::limits::Pace;
use crate::{Check, TrustError};

/// How files of a repository are had.
pub trait Fetch: fmt::Debug + Send + Sync {
    /// Opens a file of the repository's metadata by its name, such as `timestamp.json`. Neither this call nor a read
    /// may wait for ever: what is read is held to a limit, a deadline and a rate, which are looked at between reads.
    ///
    /// # Errors
    /// The file is not there, or cannot be had now.
    fn open(&self, name: &str) -> Result<Box<dyn Read>, FetchError>;

    /// The clock that deadlines and rates are held against; it only moves forward.
    fn now(&self) -> Instant {
        Instant::now()
    }
}

/// Why a file cannot be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FetchError {
    /// The repository says that there is none. For a new root this ends the search; elsewhere it is an error.
    NotFound,
    /// Anything else, with the reason.
    Failed(String),
}

impl fmt::Display for FetchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound => f.write_str("it is not there"),
            Self::Failed(reason) => f.write_str(reason),
        }
    }
}

/// A repository's metadata in a folder of this machine.
#[derive(Clone, Debug)]
pub struct Folder(pub PathBuf);

impl Fetch for Folder {
    fn open(&self, name: &str) -> Result<Box<dyn Read>, FetchError> {
        let path = self.0.join(name);
        match File::open(&path) {
            Ok(file) => Ok(Box::new(file)),
            Err(error) if error.kind() == ErrorKind::NotFound => Err(FetchError::NotFound),
            Err(error) => Err(FetchError::Failed(format!("{}: {error}", path.display()))),
        }
    }
}

/// The most bytes that a file may have, with the limit's name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bound {
    pub(crate) bytes: u64,
    pub(crate) limit: &'static str,
}

/// A whole file, or `None` where the repository says that there is none.
pub(crate) fn whole(
    fetch: &dyn Fetch,
    name: &str,
    bound: Bound,
    pace: &Pace,
) -> Result<Option<Vec<u8>>, TrustError> {
    let began = fetch.now();
    let failed = |reason: String| TrustError::Fetch { name: name.to_owned(), reason };
    let mut reader = match fetch.open(name) {
        Ok(reader) => reader,
        Err(FetchError::NotFound) => return Ok(None),
        Err(FetchError::Failed(reason)) => return Err(failed(reason)),
    };
    let mut got = Vec::new();
    let mut buffer = vec![0; 16 << 10];
    loop {
        let read = match reader.read(&mut buffer) {
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(failed(error.to_string())),
        };
        if read == 0 {
            return Ok(Some(got));
        }
        got.extend_from_slice(&buffer[..read]);
        if got.len() as u64 > bound.bytes {
            let reason =
                format!("{name} is over the limit {} of {} bytes", bound.limit, bound.bytes);
            return Err(TrustError::refused(Check::EndlessData, reason));
        }
        keep_pace(name, got.len() as u64, fetch.now() - began, pace)?;
    }
}

fn keep_pace(
    name: &str,
    got: u64,
    taken: std::time::Duration,
    pace: &Pace,
) -> Result<(), TrustError> {
    let slow = |reason| Err(TrustError::refused(Check::SlowRetrieval, reason));
    if taken > pace.deadline {
        let limit = pace.deadline.as_millis();
        return slow(format!("{name} took over the limit deadline of {limit} ms"));
    }
    let due = u128::from(pace.min_bytes_per_s) * taken.as_millis() / 1000;
    if taken > pace.grace && u128::from(got) < due {
        let (limit, ms) = (pace.min_bytes_per_s, taken.as_millis());
        return slow(format!(
            "{name}: {got} bytes in {ms} ms are under the limit min_bytes_per_s of {limit}"
        ));
    }
    Ok(())
}
