//! How fast the backlog goes out: so many bytes a second, of which a few seconds' worth may be saved up.

use std::time::Instant;

/// What may be saved up, where the rate is lower than that in a second.
const BURST_BYTES: u64 = 64 << 10;

#[derive(Debug)]
pub(super) struct Pace {
    bytes_per_s: f64,
    most: f64,
    /// Below zero after a message that was larger than what was left.
    left: f64,
    seen: Option<Instant>,
}

impl Pace {
    #[allow(clippy::cast_precision_loss)]
    pub(super) fn new(bytes_per_s: u64) -> Self {
        let most = bytes_per_s.max(BURST_BYTES) as f64;
        Self { bytes_per_s: bytes_per_s as f64, most, left: most, seen: None }
    }

    /// Whether another message may go.
    pub(super) fn allows(&mut self, now: Instant) -> bool {
        let before = self.seen.replace(now).unwrap_or(now);
        let passed = now.saturating_duration_since(before).as_secs_f64();
        self.left = (self.left + passed * self.bytes_per_s).min(self.most);
        self.left > 0.0
    }

    #[allow(clippy::cast_precision_loss)]
    pub(super) fn sent(&mut self, bytes: usize) {
        self.left -= bytes as f64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn over_any_time_no_more_goes_than_the_rate_and_what_was_saved_up() {
        let mut pace = Pace::new(1000);
        let start = Instant::now();
        let mut sent = 0u64;
        for tick in 0..=3000 {
            let now = start + Duration::from_millis(200) * tick;
            while pace.allows(now) {
                pace.sent(700);
                sent += 700;
            }
        }
        let most = 600 * 1000 + BURST_BYTES + 700;
        assert!((600_000..=most).contains(&sent), "{sent}");
    }
}
