//! Holds a server to a least speed, so that one that drips does not keep a download for ever.

use std::io::{self, ErrorKind, Read};
use std::time::{Duration, Instant};

/// The least that a server has to send, in bytes a second over [`SLOW_AFTER`]. Below what any link in use carries.
pub(super) const MIN_BYTES_PER_S: u64 = 64;
/// How long it may be slower.
pub(super) const SLOW_AFTER: Duration = Duration::from_secs(60);

/// What came of a body in how much waiting. What the device's own limit on its speed takes does not count.
#[derive(Debug, Default)]
pub(super) struct Progress {
    waited: Duration,
    bytes: u64,
}

impl Progress {
    /// Reads once, as [`Read::read`].
    ///
    /// # Errors
    /// The reader's own, and `TimedOut` when the server has been too slow for too long.
    pub(super) fn read(&mut self, from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
        let begun = Instant::now();
        let read = from.read(buffer)?;
        self.note(read as u64, begun.elapsed())?;
        Ok(read)
    }

    fn note(&mut self, bytes: u64, waited: Duration) -> io::Result<()> {
        self.bytes += bytes;
        self.waited += waited;
        if self.waited < SLOW_AFTER {
            return Ok(());
        }
        let Self { waited, bytes } = std::mem::take(self);
        if bytes >= MIN_BYTES_PER_S.saturating_mul(waited.as_secs()) {
            return Ok(());
        }
        let reason = format!(
            "{bytes} bytes in {} s are fewer than MIN_BYTES_PER_S ({MIN_BYTES_PER_S})",
            waited.as_secs()
        );
        Err(io::Error::new(ErrorKind::TimedOut, reason))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_server_that_drips_is_given_up_within_a_minute_or_one_read() {
        let mut progress = Progress::default();
        let given_up = (1..).find(|_| progress.note(1, 29 * SECOND).is_err());
        assert_eq!(given_up, Some(3));
    }

    #[test]
    fn a_slow_link_goes_on_for_ever() {
        let mut progress = Progress::default();
        for _ in 0..100_000 {
            progress.note(2 * MIN_BYTES_PER_S, SECOND).unwrap();
        }
    }

    #[test]
    fn what_came_fast_once_does_not_excuse_what_drips_now() {
        let mut progress = Progress::default();
        progress.note(1 << 30, SECOND).unwrap();
        let given_up = (1..).find(|_| progress.note(1, 29 * SECOND).is_err());
        assert_eq!(given_up, Some(6), "the next minute is looked at by itself");
    }
}
