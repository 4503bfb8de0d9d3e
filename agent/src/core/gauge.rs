//! Watches one budget of one model, and says when it is broken and by whom.
//!
//! A slow window proves nothing: the device may be hot, the hypervisor busy, the model just loaded.
//! A gauge therefore remembers the last M windows, each with what it observed and whom that window
//! is attributed to, and calls a breach when N of them are over the limit. Only windows whose cause
//! is the model itself count towards [`Cause::Model`]; if N are over but too few by the model's own
//! doing, the breach carries the outside cause that occurred most, and is no reason for a smaller
//! model. A breach ends below the limit by the hysteresis, and is told at most once per cooldown.

use std::collections::VecDeque;

use wire::{Cause, Histogram};

use super::event::Millis;
use super::settings::BreachRules;

/// What one window says about one budget.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    /// The observed value, in the budget's unit.
    pub observed: f64,
    /// Whether that is over the limit.
    pub over: bool,
    /// Whom the window is attributed to.
    pub cause: Cause,
    /// The times behind it, for latency; empty otherwise.
    pub times: Histogram,
}

/// N of M windows were over the limit.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Breach {
    /// Whom it is attributed to.
    pub cause: Cause,
    /// The evidence in one number: p95 of the merged times, or the mean of the values.
    pub observed: f64,
    /// Windows over the limit.
    pub windows_over: u32,
    /// Windows looked at.
    pub windows_seen: u32,
}

/// Watches one budget.
#[derive(Clone, Debug, Default)]
pub(super) struct Gauge {
    seen: VecDeque<Seen>,
    standing: Option<Cause>,
    told: Option<(Cause, Millis)>,
}

impl Gauge {
    /// Adds a window and says whether a breach is to be reported now.
    pub(super) fn push(
        &mut self,
        now: Millis,
        limit: f64,
        seen: Seen,
        rules: &BreachRules,
    ) -> Option<Breach> {
        self.seen.push_back(seen);
        while self.seen.len() > rules.windows_seen as usize {
            self.seen.pop_front();
        }
        let breach = self.verdict(limit, rules);
        self.settle(breach.as_ref(), limit, rules);
        breach.filter(|breach| self.tell(now, breach.cause, rules))
    }

    /// Whether the last windows broke the budget and it has not recovered since.
    #[must_use]
    pub(super) fn standing(&self) -> Option<Cause> {
        self.standing
    }

    /// Forgets the windows: the model or the limit is another one now.
    pub(super) fn reset(&mut self) {
        self.seen.clear();
        self.standing = None;
    }

    /// Starts the cooldown now, as if the model's breach had just been told.
    pub(super) fn hold(&mut self, now: Millis) {
        self.told = Some((Cause::Model, now));
    }

    fn verdict(&self, limit: f64, rules: &BreachRules) -> Option<Breach> {
        let over: Vec<&Seen> = self.seen.iter().filter(|seen| seen.over).collect();
        let needed = rules.windows_over as usize;
        if over.len() < needed {
            return None;
        }
        let own = |seen: &&Seen| seen.cause == Cause::Model;
        let clean = observed(self.seen.iter().filter(own));
        let by_model = over.iter().filter(|seen| own(seen)).count();
        let (cause, observed) = if by_model >= needed && clean > limit {
            (Cause::Model, clean)
        } else {
            let outside = most_frequent(over.iter().map(|seen| seen.cause))?;
            (outside, mean(over.iter().map(|seen| seen.observed)))
        };
        Some(Breach {
            cause,
            observed,
            windows_over: count(over.len()),
            windows_seen: count(self.seen.len()),
        })
    }

    fn settle(&mut self, breach: Option<&Breach>, limit: f64, rules: &BreachRules) {
        if let Some(breach) = breach {
            self.standing = Some(breach.cause);
        } else if observed(self.seen.iter()) <= limit * (1.0 - rules.hysteresis) {
            self.standing = None;
        }
    }

    /// A breach by the model is told at once after one by an outside cause, but not the other way.
    fn tell(&mut self, now: Millis, cause: Cause, rules: &BreachRules) -> bool {
        let due = match self.told {
            None => true,
            Some((told, _)) if told != Cause::Model && cause == Cause::Model => true,
            Some((_, at)) => now.since(at) >= rules.cooldown_ms,
        };
        if due {
            self.told = Some((cause, now));
        }
        due
    }
}

/// The outside cause that occurs most, the first of equals.
fn most_frequent(causes: impl Iterator<Item = Cause> + Clone) -> Option<Cause> {
    let outside = causes.filter(|cause| *cause != Cause::Model);
    let times = |wanted: Cause| outside.clone().filter(|cause| *cause == wanted).count();
    let mut best = None;
    for cause in outside.clone() {
        if best.is_none_or(|(most, _)| times(cause) > most) {
            best = Some((times(cause), cause));
        }
    }
    best.map(|(_, cause)| cause)
}

fn observed<'a>(seen: impl Iterator<Item = &'a Seen> + Clone) -> f64 {
    let times = merged(seen.clone());
    match times.quantile(0.95) {
        #[allow(clippy::cast_precision_loss)]
        Some(p95) => p95 as f64,
        None => mean(seen.map(|seen| seen.observed)),
    }
}

fn merged<'a>(seen: impl Iterator<Item = &'a Seen>) -> Histogram {
    let mut all = Histogram::default();
    seen.for_each(|seen| all.merge(&seen.times));
    all
}

#[allow(clippy::cast_precision_loss)]
fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, n) = values.fold((0.0, 0_u32), |(sum, n), value| (sum + value, n + 1));
    if n == 0 { 0.0 } else { sum / f64::from(n) }
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const LIMIT: f64 = 1000.0;

    fn rules() -> BreachRules {
        BreachRules {
            windows_over: 3,
            windows_seen: 5,
            cooldown_ms: 10_000,
            ..BreachRules::default()
        }
    }

    fn window(us: u64, cause: Cause) -> Seen {
        let mut times = Histogram::default();
        (0..50).for_each(|_| times.record(us));
        Seen { observed: us as f64, over: us as f64 > LIMIT, cause, times }
    }

    fn feed(gauge: &mut Gauge, windows: &[(u64, Cause)]) -> Vec<Option<Breach>> {
        let step = |(i, (us, cause)): (usize, &(u64, Cause))| {
            let now = Millis(i as u64 * 1000);
            gauge.push(now, LIMIT, window(*us, *cause), &rules())
        };
        windows.iter().enumerate().map(step).collect()
    }

    #[test]
    fn two_slow_windows_out_of_five_are_no_breach() {
        let slow = (2000, Cause::Model);
        let fast = (500, Cause::Model);
        let told = feed(&mut Gauge::default(), &[slow, fast, slow, fast, fast]);
        assert!(told.iter().all(Option::is_none));
    }

    #[test]
    fn three_slow_windows_out_of_five_are_the_models_breach() {
        let slow = (2000, Cause::Model);
        let told = feed(&mut Gauge::default(), &[slow, (500, Cause::Model), slow, slow]);
        let breach = told[3].clone().unwrap();
        assert_eq!(breach.cause, Cause::Model);
        assert_eq!((breach.windows_over, breach.windows_seen), (3, 4));
        assert!(breach.observed > LIMIT);
    }

    #[test]
    fn a_hot_device_is_reported_as_hot_and_not_as_a_slow_model() {
        let told = feed(&mut Gauge::default(), &[(2000, Cause::Thermal); 4]);
        assert_eq!(told[2].clone().unwrap().cause, Cause::Thermal);
        assert!(told[3].is_none(), "told again within the cooldown");
    }

    #[test]
    fn a_cold_start_among_slow_windows_is_not_counted_against_the_model() {
        let windows = [(9000, Cause::ColdStart), (2000, Cause::Model), (2000, Cause::Model)];
        let told = feed(&mut Gauge::default(), &windows);
        assert_eq!(told[2].clone().unwrap().cause, Cause::ColdStart);
    }

    #[test]
    fn the_models_own_breach_is_told_at_once_after_an_outside_one() {
        let mut windows = vec![(2000, Cause::Steal); 3];
        windows.extend([(2000, Cause::Model); 3]);
        let told = feed(&mut Gauge::default(), &windows);
        let causes: Vec<_> = told.iter().flatten().map(|b| b.cause).collect();
        assert_eq!(causes, [Cause::Steal, Cause::Model]);
    }

    #[test]
    fn a_standing_breach_is_told_once_per_cooldown() {
        let told = feed(&mut Gauge::default(), &[(2000, Cause::Model); 25]);
        assert_eq!(told.iter().flatten().count(), 3);
    }

    #[test]
    fn a_breach_stands_until_the_value_is_clearly_below_the_limit() {
        let mut gauge = Gauge::default();
        feed(&mut gauge, &[(2000, Cause::Model); 5]);
        feed(&mut gauge, &[(990, Cause::Model); 5]);
        assert_eq!(gauge.standing(), Some(Cause::Model), "990 is within 5 %");
        feed(&mut gauge, &[(900, Cause::Model); 5]);
        assert_eq!(gauge.standing(), None);
    }
}
