//! What time it is, on a device that may not know.
//!
//! Three sources: the clock; the latest that it ever showed, which is remembered; and what metadata *proved*: every
//! `timestamp.json` says when it was signed, and a signature cannot come from the future. A clock is believed when it
//! shows neither a time before [`CLOCK_SET_S`] nor one before what is proved. Otherwise the later of the other two is
//! the time: a lower bound of the true one.
//!
//! A clock that is believed replaces what is remembered, backwards too: one that jumped years ahead and was set right
//! again does no lasting harm. Until then, and on a device that restarts without a clock after such a jump, expiry is
//! judged by the wrong time, and `strict` refuses; setting the clock right is what mends it.

use serde::{Deserialize, Serialize};

/// Clocks that show an earlier Unix time (September 2020), seconds, were never set.
pub const CLOCK_SET_S: u64 = 1_600_000_000;

/// What expired metadata is worth.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Expiry {
    /// Nothing: what is expired by the best known time is refused.
    #[default]
    Strict,
    /// As much as before, with a warning; every other check holds.
    Lenient,
}

impl std::str::FromStr for Expiry {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "strict" => Ok(Self::Strict),
            "lenient" => Ok(Self::Lenient),
            _ => Err(format!("{text:?} is neither \"strict\" nor \"lenient\"")),
        }
    }
}

/// What is remembered of time, Unix seconds; 0 is nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Known {
    /// The last time that a believed clock showed.
    pub(crate) clock_s: u64,
    /// The latest time at which accepted metadata was signed.
    pub(crate) proved_s: u64,
}

impl Known {
    /// The best known time, and what is remembered from now on.
    pub(crate) fn judge(self, clock_s: u64) -> (u64, Self) {
        if clock_s >= CLOCK_SET_S.max(self.proved_s) {
            (clock_s, Self { clock_s, ..self })
        } else {
            (self.clock_s.max(self.proved_s), self)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 86_400;
    const NOW: u64 = 1_800_000_000;

    #[test]
    fn a_clock_that_was_never_set_gives_way_to_what_is_known() {
        let known = Known { clock_s: NOW, proved_s: NOW + DAY };
        assert_eq!(known.judge(5), (NOW + DAY, known));
        assert_eq!(Known::default().judge(5).0, 0);
    }

    #[test]
    fn a_jump_ahead_is_forgotten_once_the_clock_is_right_again() {
        let known = Known { clock_s: NOW, proved_s: NOW };
        let (ahead, known) = known.judge(NOW + 20 * 365 * DAY);
        assert_eq!(ahead, NOW + 20 * 365 * DAY);
        assert_eq!(known.judge(0).0, ahead, "without a clock, there is nothing better");
        let (now, known) = known.judge(NOW + DAY);
        assert_eq!((now, known.clock_s), (NOW + DAY, NOW + DAY));
        assert_eq!(known.judge(0).0, NOW + DAY);
    }

    #[test]
    fn a_clock_behind_what_is_proved_is_not_believed() {
        let known = Known { clock_s: NOW - DAY, proved_s: NOW };
        assert_eq!(known.judge(NOW - 1), (NOW, known));
    }
}
