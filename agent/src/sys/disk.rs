//! What the agent gives to the disk, which an SD card takes only so often: as the kernel counts it, and as the agent does.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::{Roots, field, read};

/// A moment at which the kernel's count is remembered, so that a day can be told.
const MARK: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Bytes of journal, spool and small files that this process asked the system to write.
static ASKED: AtomicU64 = AtomicU64::new(0);

/// Counts bytes of the state directory that are being written.
pub fn count(bytes: usize) {
    ASKED.fetch_add(bytes as u64, Ordering::Relaxed);
}

/// Bytes of journal, spool and small files that this process has asked the system to write. Downloads are not among them.
#[must_use]
pub fn asked_bytes() -> u64 {
    ASKED.load(Ordering::Relaxed)
}

/// What this process has given to the disk since it started, as the kernel counts it: whole pages that it made dirty.
#[must_use]
pub fn written_bytes(roots: &Roots) -> Option<u64> {
    field(&read(roots.proc.join("self/io"))?, "write_bytes")
}

/// What was written within a window, and within a day.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskReading {
    /// Within the window.
    pub window_bytes: Option<u64>,
    /// Within the last 24 hours, or since the start where that is less.
    pub day_bytes: Option<u64>,
}

/// Tells windows and days apart in a count that only grows.
#[derive(Debug, Default)]
pub struct DiskMeter {
    last: Option<u64>,
    marks: VecDeque<(Instant, u64)>,
}

impl DiskMeter {
    /// Ends a window at `now`, when the count stood at `total`.
    pub fn take(&mut self, now: Instant, total: Option<u64>) -> DiskReading {
        let Some(total) = total else {
            return DiskReading::default();
        };
        let before = self.last.replace(total).unwrap_or(0);
        if self.marks.is_empty() {
            // The start of the process.
            self.marks.push_back((now, 0));
        }
        if self.marks.back().is_some_and(|(at, _)| now.duration_since(*at) >= MARK) {
            self.marks.push_back((now, total));
        }
        while self.marks.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= DAY) {
            self.marks.pop_front();
        }
        let began = self.marks.front().map_or(0, |(_, total)| *total);
        DiskReading {
            window_bytes: Some(total.saturating_sub(before)),
            day_bytes: Some(total.saturating_sub(began)),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_day_is_told_to_the_hour_and_forgets_what_came_before() {
        let mut meter = DiskMeter::default();
        let start = Instant::now();
        let at = |hours: u32, total| (start + Duration::from_secs(3600) * hours, Some(total));
        let mut take = |(now, total)| meter.take(now, total);
        let first = take(at(0, 500));
        assert_eq!((first.window_bytes, first.day_bytes), (Some(500), Some(500)));
        for hour in 1..=24u32 {
            let day = take(at(hour, 500 + u64::from(hour) * 10)).day_bytes.unwrap();
            assert_eq!(day, 500 + u64::from(hour) * 10, "since the start, hour {hour}");
        }
        let later = take(at(26, 1000));
        assert_eq!(later.window_bytes, Some(1000 - 740));
        assert_eq!(later.day_bytes, Some(1000 - 520), "from hour 2 on");
    }

    #[test]
    fn this_process_is_counted_by_the_kernel() {
        assert!(written_bytes(&Roots::default()).is_some());
        assert_eq!(DiskMeter::default().take(Instant::now(), None), DiskReading::default());
    }
}
