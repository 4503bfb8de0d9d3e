//! A limit on how fast downloads come in, all of them together.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often a wait looks whether it was cancelled.
const GLANCE: Duration = Duration::from_millis(50);
/// A read takes no more than what comes in within this part of a second.
const READS_PER_S: u64 = 8;

/// Spaces reads out. Each reserves the time that its bytes take after those reserved before, so that a pause
/// saves nothing up: there are no bursts.
#[derive(Debug)]
pub struct Pace {
    bytes_per_s: NonZeroU64,
    free_at: Mutex<Option<Instant>>,
}

impl Pace {
    /// A limit in bytes per second.
    #[must_use]
    pub fn new(bytes_per_s: NonZeroU64) -> Self {
        Self { bytes_per_s, free_at: Mutex::new(None) }
    }

    /// How much to read at once, where `most` is the most.
    #[must_use]
    pub fn chunk(&self, most: usize) -> usize {
        let share = (self.bytes_per_s.get() / READS_PER_S).max(1);
        usize::try_from(share).unwrap_or(most).min(most)
    }

    /// Waits until `bytes` that came in may have come in, or until cancelled.
    pub fn wait(&self, bytes: usize, cancelled: &AtomicBool) {
        let until = self.reserve(Instant::now(), bytes as u64);
        while !cancelled.load(Ordering::Relaxed) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            std::thread::sleep(left.min(GLANCE));
        }
    }

    /// When `bytes` more are through.
    fn reserve(&self, now: Instant, bytes: u64) -> Instant {
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        let begin = free_at.map_or(now, |at| at.max(now));
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_s.get());
        let end = begin + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        *free_at = Some(end);
        end
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn pace(bytes_per_s: u64) -> Pace {
        Pace::new(NonZeroU64::new(bytes_per_s).unwrap())
    }

    #[test]
    fn bytes_come_one_after_the_other_and_a_pause_saves_nothing_up() {
        let pace = pace(1000);
        let begin = Instant::now();
        let second = Duration::from_secs(1);
        assert_eq!(pace.reserve(begin, 500), begin + second / 2);
        assert_eq!(pace.reserve(begin, 500), begin + second);
        let later = begin + second * 10;
        assert_eq!(pace.reserve(later, 1000), later + second);
    }

    #[test]
    fn a_read_takes_a_part_of_a_second_s_bytes() {
        assert_eq!(pace(8000).chunk(65_536), 1000);
        assert_eq!(pace(1).chunk(65_536), 1);
        assert_eq!(pace(u64::MAX).chunk(65_536), 65_536);
    }

    #[test]
    fn a_wait_ends_when_it_is_cancelled() {
        let pace = pace(1);
        pace.wait(1 << 30, &AtomicBool::new(true));
    }
}
