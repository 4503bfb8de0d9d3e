//! When a failed step is tried again, and when no more.

use super::event::FailureClass;

/// The first wait before a failed step is tried again.
const FIRST_MS: u64 = 1_000;
/// The longest wait before a failed step is tried again.
const MOST_MS: u64 = 300_000;
/// The longest wait before it is asked again whether a bundle is allowed.
const MOST_WITHHELD_MS: u64 = 900_000;
/// How often in a row a no is doubted.
const MAX_DOUBTS: u32 = 5;

/// What became of an install's present step so far.
#[derive(Debug, Default)]
pub(super) struct Tries {
    /// Failures of network and resources in a row.
    failures: u32,
    /// Times in a row that what allows the bundle could not be seen.
    withheld: u32,
    /// Times in a row that it said no.
    doubts: u32,
    /// Whether the outside knows that it is waited for what allows the bundle.
    told: bool,
}

/// What to do after a failure.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Try the step again.
    Again {
        /// After this wait.
        wait_ms: u64,
        /// Whether it is news that it is waited for.
        tell: bool,
    },
    /// The install ends.
    Over {
        /// Which limit was reached, where one was.
        why: Option<String>,
    },
}

impl Tries {
    /// Counts a failure. `most` is the limit of transient ones; `salt` spreads devices.
    pub(super) fn after(&mut self, class: FailureClass, most: u32, salt: &str) -> Verdict {
        match class {
            FailureClass::Transient => {
                self.failures = self.failures.saturating_add(1);
                let failures = self.failures;
                if failures >= most {
                    let why = format!("attempt {failures}, the limit install.max_attempts");
                    return Verdict::Over { why: Some(why) };
                }
                Verdict::Again { wait_ms: backoff(failures, salt), tell: false }
            }
            FailureClass::Withheld => {
                (self.failures, self.doubts) = (0, 0);
                self.withheld = self.withheld.saturating_add(1);
                let tell = !std::mem::replace(&mut self.told, true);
                Verdict::Again { wait_ms: jitter(self.withheld, MOST_WITHHELD_MS, salt), tell }
            }
            FailureClass::Doubtful => {
                self.failures = 0;
                self.doubts = self.doubts.saturating_add(1);
                if self.doubts >= MAX_DOUBTS {
                    let why = format!("{MAX_DOUBTS} times in a row, the limit MAX_DOUBTS");
                    return Verdict::Over { why: Some(why) };
                }
                // The first wait may be over before a publication is.
                let wait_ms = jitter(self.doubts + 1, MOST_WITHHELD_MS, salt);
                Verdict::Again { wait_ms, tell: false }
            }
            FailureClass::Attempt | FailureClass::Damaged | FailureClass::Bundle => {
                Verdict::Over { why: None }
            }
        }
    }

    /// Begins the waits for what allows the bundle anew, and returns the first; none where it is not waited for.
    pub(super) fn start_over(&mut self, salt: &str) -> Option<u64> {
        if self.withheld == 0 {
            return None;
        }
        self.withheld = 1;
        Some(jitter(1, MOST_WITHHELD_MS, salt))
    }
}

/// The wait before attempt `failures + 1`: doubling, up to a limit, spread by half over devices.
pub(super) fn backoff(failures: u32, salt: &str) -> u64 {
    let wait = doubled(failures, MOST_MS);
    let spread = (hash(salt).wrapping_add(u64::from(failures))) % (wait / 2 + 1);
    wait / 2 + spread
}

/// The same with full jitter: anything up to the doubled wait, for where a whole fleet waits for one server.
fn jitter(failures: u32, most_ms: u64, salt: &str) -> u64 {
    let wait = doubled(failures, most_ms);
    1 + hash(&format!("{failures} {salt}")) % wait
}

fn doubled(failures: u32, most_ms: u64) -> u64 {
    FIRST_MS.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(most_ms)
}

/// FNV-1a, and the finalizer of `MurmurHash3`, without which texts that differ in one place differ in few bits.
fn hash(text: &str) -> u64 {
    let mix = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325, mix);
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waits(class: FailureClass, device: &str, times: usize) -> Vec<u64> {
        let mut tries = Tries::default();
        let mut next = || match tries.after(class, 12, device) {
            Verdict::Again { wait_ms, .. } => wait_ms,
            Verdict::Over { why } => panic!("{why:?}"),
        };
        (0..times).map(|_| next()).collect()
    }

    #[test]
    fn waits_for_what_is_withheld_double_up_to_their_limit_and_never_end() {
        let waits = waits(FailureClass::Withheld, "d", 2000);
        let within = |(n, wait): (usize, &u64)| *wait <= doubled(n as u32 + 1, MOST_WITHHELD_MS);
        assert!(waits.iter().enumerate().all(within));
        let late = &waits[20..];
        let mean = late.iter().sum::<u64>() / late.len() as u64;
        assert!((MOST_WITHHELD_MS * 4 / 10..MOST_WITHHELD_MS * 6 / 10).contains(&mean), "{mean}");
    }

    #[test]
    fn a_fleet_s_waits_are_spread_over_all_of_the_time() {
        let mut tenths = [0; 10];
        for device in 0..10_000 {
            let wait = waits(FailureClass::Withheld, &format!("device-{device}"), 5)[4];
            tenths[(wait - 1) as usize * 10 / 16_000] += 1;
        }
        assert!(tenths.iter().all(|n| (800..1200).contains(n)), "{tenths:?}");
    }

    #[test]
    fn a_no_is_doubted_a_few_times_in_a_row() {
        let mut tries = Tries::default();
        let mut after = |class| tries.after(class, 12, "d");
        for _ in 0..2 {
            for _ in 1..MAX_DOUBTS {
                assert!(matches!(
                    after(FailureClass::Doubtful),
                    Verdict::Again { tell: false, .. }
                ));
            }
            // Something else answered meanwhile.
            assert!(matches!(after(FailureClass::Withheld), Verdict::Again { .. }));
        }
        (1..MAX_DOUBTS).for_each(|_| drop(after(FailureClass::Doubtful)));
        let Verdict::Over { why: Some(why) } = after(FailureClass::Doubtful) else { panic!() };
        assert!(why.contains("MAX_DOUBTS"), "{why}");
    }
}
