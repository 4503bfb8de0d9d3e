//! How often a trial is wrong where the model is no worse, and how soon it finds what is: seeded draws of
//! windows, the figures of `docs/agent.md`.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use wire::Cause;

use super::*;
use crate::core::judge;
use crate::core::live::Evidence;
use crate::core::{Prediction, ShadowFacts};

/// Trials per case. With a rate of 0.05, 43 false ones in 400 are beyond any doubt (their chance is below
/// 1e-5), and none of the cases comes near.
const TRIALS: u64 = 400;
const RATE: f64 = 0.05;
const MOST_WRONG: usize = 43;
/// Windows of a record, and of a probation that is never told to end.
const RECORD: usize = 5;
const WINDOWS: usize = 12;
const WINDOW_MS: u64 = 10_000;

fn rules() -> ProbationRules {
    ProbationRules { false_rollback_rate: RATE, latency_floor_us: 0, ..ProbationRules::default() }
}

/// One standard normal draw (Box and Muller).
fn normal(rng: &mut StdRng) -> f64 {
    let radius = (-2.0 * f64::ln(1.0 - rng.random::<f64>())).sqrt();
    radius * (std::f64::consts::TAU * rng.random::<f64>()).cos()
}

/// How the times of a model come about.
#[derive(Clone, Copy, Debug)]
struct Traffic {
    /// Requests in a second.
    per_s: u32,
    /// Requests in a row that the same disturbance slows.
    together: u32,
    /// Microseconds in the middle.
    us: f64,
    /// Spread of their logarithm.
    spread: f64,
    /// Whether one disturbance in twenty takes a time without a mean.
    heavy: bool,
}

impl Traffic {
    fn window(self, rng: &mut StdRng) -> Histogram {
        let mut times = Histogram::default();
        let mut disturbance = 0.0;
        for request in 0..self.per_s * 10 {
            if request % self.together == 0 {
                disturbance = self.disturbance(rng);
            }
            let us = self.us * f64::exp(disturbance + 0.02 * normal(rng));
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            times.record(us.min(1e8) as u64);
        }
        times
    }

    fn disturbance(self, rng: &mut StdRng) -> f64 {
        if self.heavy && rng.random::<f64>() < 0.05 {
            // Pareto with exponent 0.8.
            return -f64::ln(1.0 - rng.random::<f64>()) / 0.8;
        }
        self.spread * normal(rng)
    }

    /// What the model before is remembered by.
    fn record(self, rng: &mut StdRng) -> Baseline {
        let window = |rng: &mut StdRng| {
            let compute = self.window(rng);
            Evidence {
                weight: rules().weight(compute.count(), WINDOW_MS),
                requests: compute.count(),
                compute,
                cause: Cause::Model,
                ..Evidence::default()
            }
        };
        let recent = (0..RECORD).map(|_| window(rng)).collect();
        judge::baseline(&recent, &ShadowFacts::default())
    }
}

fn begin(before: &Baseline, ratio: f64) -> Trial {
    let install = InstallRules { regress_ratio: ratio, ..InstallRules::default() };
    Trial::begin(before, &Predictions::default(), &Budgets::default(), &rules(), &install)
}

fn observe(trial: &mut Trial, times: &Histogram, errors: u64) -> Verdict {
    trial.observe(&Observation {
        window_ms: WINDOW_MS,
        times: Some(times),
        requests: times.count(),
        errors,
        memory_bytes: None,
        energy_mj: None,
    });
    trial.verdict()
}

/// The window in which a trial takes the model back, if it does.
fn taken_back(trial: &mut Trial, traffic: Traffic, rng: &mut StdRng) -> Option<usize> {
    (0..WINDOWS).find(|_| {
        let times = traffic.window(rng);
        matches!(observe(trial, &times, 0), Verdict::Back(_))
    })
}

#[test]
fn a_model_that_is_as_fast_as_the_one_before_is_hardly_ever_taken_back() {
    let steady = Traffic { per_s: 20, together: 1, us: 20_000.0, spread: 0.3, heavy: false };
    let cases = [
        steady,
        // Half a second has one disturbance; a second counts as one request.
        Traffic { together: 10, ..steady },
        Traffic { together: 10, heavy: true, ..steady },
        Traffic { per_s: 2, together: 1, heavy: true, ..steady },
    ];
    for traffic in cases {
        let wrong = |seed: &u64| {
            let mut rng = StdRng::seed_from_u64(*seed);
            // No tolerance at all: the model is exactly as slow as it may be.
            let mut trial = begin(&traffic.record(&mut rng), 1.0);
            taken_back(&mut trial, traffic, &mut rng).is_some()
        };
        let wrong = (0..TRIALS).filter(wrong).count();
        assert!(wrong < MOST_WRONG, "{traffic:?}: {wrong} of {TRIALS}");
    }
}

#[test]
fn a_model_at_its_budget_is_hardly_ever_taken_back_however_the_prediction_looks() {
    // One request in twenty is over, alone or with its neighbours: exactly what a p95 budget allows.
    for together in [1, 10] {
        let wrong = |seed: &u64| {
            let mut rng = StdRng::seed_from_u64(*seed);
            let budgets = Budgets { latency_p95_us: Some(1000), ..Budgets::default() };
            let low = Prediction { value: 100.0, high: 110.0, quality: Quality::Measured };
            let predicted = Predictions { latency_p95_us: Some(low), ..Predictions::default() };
            let install = InstallRules::default();
            let mut trial =
                Trial::begin(&Baseline::default(), &predicted, &budgets, &rules(), &install);
            (0..WINDOWS).any(|_| {
                let mut times = Histogram::default();
                let mut slow = false;
                for request in 0..200 {
                    if request % together == 0 {
                        slow = rng.random::<f64>() < 0.05;
                    }
                    times.record(if slow { 5000 } else { 500 });
                }
                matches!(observe(&mut trial, &times, 0), Verdict::Back(_))
            })
        };
        let wrong = (0..TRIALS).filter(wrong).count();
        assert!(wrong < MOST_WRONG, "{together} together: {wrong} of {TRIALS}");
    }
}

#[test]
fn errors_at_the_rate_that_is_allowed_hardly_ever_take_a_model_back_in_bursts_or_alone() {
    for burst in [1_u64, 4] {
        let wrong = |seed: &u64| {
            let mut rng = StdRng::seed_from_u64(*seed);
            let mut trial = begin(&Baseline::default(), 1.25);
            let mut times = Histogram::default();
            (0..200).for_each(|_| times.record(500));
            (0..WINDOWS).any(|_| {
                let failed = (0..200 / burst).filter(|_| rng.random::<f64>() < 0.02).count() as u64;
                matches!(observe(&mut trial, &times, failed * burst), Verdict::Back(_))
            })
        };
        let wrong = (0..TRIALS).filter(wrong).count();
        assert!(wrong < MOST_WRONG, "bursts of {burst}: {wrong} of {TRIALS}");
    }
}

/// How many of the trials have ended against the model after so many windows, at the default rate.
fn found(windows: usize, before: Traffic, after: Traffic) -> usize {
    let defaults = ProbationRules::default();
    let found = |seed: &u64| {
        let mut rng = StdRng::seed_from_u64(*seed);
        let install = InstallRules::default();
        let record = before.record(&mut rng);
        let (predicted, budgets) = (Predictions::default(), Budgets::default());
        let mut trial = Trial::begin(&record, &predicted, &budgets, &defaults, &install);
        (0..windows).any(|_| {
            let times = after.window(&mut rng);
            matches!(observe(&mut trial, &times, 0), Verdict::Back(_))
        })
    };
    (0..100).filter(found).count()
}

#[test]
fn a_model_half_as_slow_again_as_it_may_be_is_found_within_the_shortest_probation() {
    // It may take 1.25 times as long; it takes 1.5 times that, 200 requests a window.
    let before = Traffic { per_s: 20, together: 1, us: 20_000.0, spread: 0.1, heavy: false };
    let after = Traffic { us: 20_000.0 * 1.25 * 1.5, ..before };
    assert!(found(3, before, after) >= 95, "{} of 100", found(3, before, after));
    // Times that hardly spread, and few of them.
    let steady = |us| {
        let mut times = Histogram::default();
        (0..20).for_each(|_| times.record(us));
        times
    };
    let seen =
        |us| Evidence { compute: steady(us), weight: 0.5, requests: 20, ..Evidence::default() };
    let record =
        judge::baseline(&(0..RECORD).map(|_| seen(20_000)).collect(), &ShadowFacts::default());
    let install = InstallRules::default();
    let (predicted, budgets) = (Predictions::default(), Budgets::default());
    let rules = ProbationRules::default();
    let mut trial = Trial::begin(&record, &predicted, &budgets, &rules, &install);
    let ended =
        (1..=3).find(|_| matches!(observe(&mut trial, &steady(37_500), 0), Verdict::Back(_)));
    assert_eq!(ended, Some(1), "20 requests are enough");
}

#[test]
fn windows_of_any_length_bring_the_same_verdict_where_requests_are_evenly_spread() {
    let traffic = Traffic { per_s: 20, together: 1, us: 20_000.0, spread: 0.1, heavy: false };
    let mut rng = StdRng::seed_from_u64(7);
    let record = traffic.record(&mut rng);
    for factor in [1.0, 1.2, 2.0] {
        let after = Traffic { us: 20_000.0 * factor, ..traffic };
        let all: Vec<Histogram> = (0..3).map(|_| after.window(&mut rng)).collect();
        let verdict = |parts: u64| {
            let mut trial = begin(&record, 1.25);
            let pieces = all.iter().flat_map(|window| cut(window, parts));
            pieces.for_each(|times| {
                trial.observe(&Observation {
                    window_ms: WINDOW_MS / parts,
                    times: Some(&times),
                    requests: times.count(),
                    errors: 0,
                    memory_bytes: None,
                    energy_mj: None,
                });
            });
            let (count, ln) = trial.least(Metric::LatencyP95).unwrap();
            (count.seen, count.over, ln, matches!(trial.verdict(), Verdict::Back(_)))
        };
        let (whole, tenths) = (verdict(1), verdict(10));
        assert!((whole.0 - tenths.0).abs() < 1e-6 && (whole.1 - tenths.1).abs() < 1e-6);
        assert!((whole.2 - tenths.2).abs() < 1e-6, "{factor}: {whole:?} {tenths:?}");
        assert_eq!((whole.3, tenths.3), (factor > 1.9, factor > 1.9), "{factor}");
    }
}

/// A window cut into parts of equally many requests.
fn cut(window: &Histogram, parts: u64) -> Vec<Histogram> {
    let mut pieces = vec![Histogram::default(); usize::try_from(parts).unwrap()];
    let all = window.buckets().flat_map(|(low, _, n)| (0..n).map(move |_| low));
    for (place, us) in all.enumerate() {
        let number = place % pieces.len();
        pieces[number].record(us);
    }
    pieces
}

#[test]
fn every_request_failing_ends_a_trial_in_its_first_window_and_half_of_them_in_its_second() {
    let mut times = Histogram::default();
    (0..20).for_each(|_| times.record(500));
    let ended = |errors| {
        let mut trial = Trial::begin(
            &Baseline::default(),
            &Predictions::default(),
            &Budgets::default(),
            &ProbationRules::default(),
            &InstallRules::default(),
        );
        (1..=12).find(|_| matches!(observe(&mut trial, &times, errors), Verdict::Back(_)))
    };
    assert_eq!((ended(20), ended(10), ended(0)), (Some(1), Some(2), None));
    assert!(ended(4).is_some_and(|windows| windows <= 12), "{:?}", ended(4));
}
