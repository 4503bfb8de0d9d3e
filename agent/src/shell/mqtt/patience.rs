//! How long to wait before the next attempt to connect: pure, with chance passed in.
//!
//! Waits are spread over their whole length ("full jitter"), so that devices which lost the broker at one
//! moment do not come back at one moment.

use std::time::Duration;

/// The longest first wait after a failure; it doubles with each.
const FIRST: Duration = Duration::from_millis(500);
/// The longest wait after a failure.
const MOST: Duration = Duration::from_secs(60);
/// A connection that lived this long begins the waits anew.
const STABLE: Duration = Duration::from_secs(5);
/// The wait after another client took over this client's name; it doubles with each time. Two clients of
/// one name kick each other out for ever, and may do so only rarely.
const TAKEN_OVER: Duration = Duration::from_secs(60);
/// The longest wait after that.
const TAKEN_OVER_MOST: Duration = Duration::from_secs(900);

/// What went wrong so far.
#[derive(Debug, Default)]
pub(super) struct Patience {
    failures: u32,
    takeovers: u32,
}

impl Patience {
    /// The wait after a connection that lived that long, or was never made; `chance` is from 0 to 1.
    pub(super) fn after_failure(&mut self, lived: Duration, chance: f64) -> Duration {
        self.lived(lived);
        let most = doubled(FIRST, self.failures, MOST);
        self.failures = self.failures.saturating_add(1);
        most.mul_f64(chance)
    }

    /// The wait after somebody else connected under this name. It is never short: half of it is certain.
    pub(super) fn after_takeover(&mut self, lived: Duration, chance: f64) -> Duration {
        self.lived(lived);
        let most = doubled(TAKEN_OVER * 2, self.takeovers, TAKEN_OVER_MOST);
        self.takeovers = self.takeovers.saturating_add(1);
        most.mul_f64(0.5 + chance / 2.0)
    }

    fn lived(&mut self, lived: Duration) {
        if lived > STABLE {
            self.failures = 0;
        }
        // Of two clients in turn each lives as long as the other waits.
        if lived > TAKEN_OVER_MOST {
            self.takeovers = 0;
        }
    }
}

fn doubled(first: Duration, times: u32, most: Duration) -> Duration {
    first.saturating_mul(1 << times.min(16)).min(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEVER: Duration = Duration::ZERO;

    #[test]
    fn waits_are_spread_from_nothing_to_a_doubling_limit() {
        let mut patience = Patience::default();
        let waits: Vec<u128> =
            (0..9).map(|_| patience.after_failure(NEVER, 1.0).as_millis()).collect();
        assert_eq!(waits, [500, 1000, 2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000]);
        assert_eq!(patience.after_failure(NEVER, 0.0), Duration::ZERO);
        for _ in 0..100 {
            assert!(patience.after_failure(NEVER, 1.0) <= MOST);
        }
        assert_eq!(patience.after_failure(STABLE * 2, 1.0), FIRST, "a good connection begins anew");
    }

    /// Two devices of one name: each connects when its wait is over and kicks the other out.
    #[test]
    fn two_clients_of_one_name_kick_each_other_out_ever_more_rarely() {
        let mut patience = [Patience::default(), Patience::default()];
        let (mut out, mut lived, mut now) = (0, NEVER, NEVER);
        let mut kicks = Vec::new();
        while now < Duration::from_secs(24 * 3600) {
            let wait = patience[out].after_takeover(lived, 0.0);
            now += wait;
            kicks.push(now);
            // The one that comes back kicks out the other, which was connected that long.
            (out, lived) = (1 - out, wait);
        }
        let within =
            |hours: u64| kicks.iter().filter(|at| **at < Duration::from_secs(hours * 3600)).count();
        assert!(within(1) <= 12, "{}", within(1));
        assert!(within(24) <= 24 * 8 + 12, "{}", within(24));
        assert!(kicks[0] >= TAKEN_OVER);
    }
}
