//! How often the test is wrong where nothing drifted, and how seldom it misses what did: seeded draws of
//! reference and requests, the figures of `docs/drift.md`.

use bundle::FeatureReference;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::super::gauge::Gauge;
use super::super::settings::BreachRules;
use super::*;

/// Samples of a reference and requests of a pool, unless said otherwise.
const SAMPLES: usize = 500;
const REQUESTS: usize = 200;
/// So small that only chance decides.
const ANY_DISTANCE: f64 = 1e-12;

/// One standard normal draw (Box and Muller).
fn normal(rng: &mut StdRng) -> f64 {
    let radius = (-2.0 * f64::ln(1.0 - rng.random::<f64>())).sqrt();
    radius * (std::f64::consts::TAU * rng.random::<f64>()).cos()
}

/// A class of ten, `first` times in all the first, each other one more often than the next.
fn class(rng: &mut StdRng, first: f64) -> f64 {
    if rng.random::<f64>() < first {
        return 0.0;
    }
    let weights: Vec<f64> = (1..10).map(|rank| 1.0 / f64::from(rank)).collect();
    let mut left = rng.random::<f64>() * weights.iter().sum::<f64>();
    for (rank, weight) in (1..10).zip(&weights) {
        left -= weight;
        if left < 0.0 {
            return f64::from(rank);
        }
    }
    9.0
}

/// The numbers of one sample: five features as different as they come, which share a hidden cause.
fn sample(rng: &mut StdRng, shift: f64, first: f64) -> [f64; 5] {
    let hidden = normal(rng) + shift;
    [
        hidden,
        hidden.exp(),
        // Three of five are exactly 0.
        (rng.random_range(-3..2)).max(0).into(),
        1.0 / (1.0 + (-hidden - 0.5 * normal(rng)).exp()),
        class(rng, first),
    ]
}

const FEATURES: [Feature; 5] =
    [Feature::Mean, Feature::Deviation, Feature::Zeros, Feature::Confidence, Feature::Class];

/// The features of a stream, counted in cells that `reference` gave.
fn facts(reference: &[[f64; 5]], requests: &[[f64; 5]]) -> DriftFacts {
    let column = |rows: &[[f64; 5]], at: usize| rows.iter().map(|row| row[at]).collect::<Vec<_>>();
    let of = |(at, feature): (usize, &Feature)| {
        let samples = column(reference, at);
        let cells = match feature {
            Feature::Class => FeatureReference::classes(&samples),
            _ => FeatureReference::ordered(bundle::Feature::Mean, &samples),
        };
        counted(*feature, &cells, &column(requests, at))
    };
    DriftFacts { features: FEATURES.iter().enumerate().map(of).collect() }
}

fn counted(feature: Feature, cells: &FeatureReference, values: &[f64]) -> FeatureFacts {
    let places: Vec<usize> = values.iter().map(|value| cells.cell(*value)).collect();
    let mut seen = vec![0; cells.counts.len()];
    places.iter().for_each(|place| seen[*place] += 1);
    let together = |pair: &[usize]| match feature {
        Feature::Class => u64::from(pair[0] == pair[1]),
        _ => (pair[0] * pair[1]) as u64,
    };
    FeatureFacts {
        side: Side::Output,
        tensor: "y".into(),
        feature,
        reference: cells.counts.clone(),
        seen,
        pairs: places.len().saturating_sub(1) as u64,
        product: places.windows(2).map(together).sum(),
    }
}

fn draws(rng: &mut StdRng, n: usize, shift: f64, first: f64) -> Vec<[f64; 5]> {
    (0..n).map(|_| sample(rng, shift, first)).collect()
}

/// The share of `trials` in which `trial` says drift.
fn rate(trials: u32, mut trial: impl FnMut() -> bool) -> f64 {
    let said = (0..trials).filter(|_| trial()).count();
    said as f64 / f64::from(trials)
}

/// Fails where `observed` of `trials` is so much over `level` that chance would bring it less than once
/// in a thousand times (3.09 standard errors).
fn assert_at_most(observed: f64, level: f64, trials: u32) {
    let bound = level + 3.09 * (level * (1.0 - level) / f64::from(trials)).sqrt();
    assert!(observed <= bound, "{observed} is over {level} by more than chance ({bound})");
}

#[test]
fn without_drift_a_test_is_over_its_level_no_more_often_than_it_says() {
    let mut rng = StdRng::seed_from_u64(1);
    for (level, trials, m, n) in
        [(0.05, 4000, SAMPLES, REQUESTS), (0.01, 4000, 60, 100), (0.05, 2000, 2000, 50)]
    {
        let observed = rate(trials, || {
            let reference = draws(&mut rng, m, 0.0, 0.3);
            let requests = draws(&mut rng, n, 0.0, 0.3);
            examine(&facts(&reference, &requests), 0, level, ANY_DISTANCE).drifted
        });
        eprintln!("level {level}, m {m}, n {n}: {observed}");
        assert_at_most(observed, level, trials);
    }
}

#[test]
fn classes_alone_keep_to_the_level_down_to_rare_ones() {
    let mut rng = StdRng::seed_from_u64(2);
    for (level, trials, m, n) in
        [(0.05, 6000, SAMPLES, REQUESTS), (0.002, 20_000, SAMPLES, REQUESTS)]
    {
        let observed = rate(trials, || {
            let reference = FeatureReference::classes(&classes_of(&mut rng, m, 0.3));
            let requests = classes_of(&mut rng, n, 0.3);
            let features = vec![counted(Feature::Class, &reference, &requests)];
            examine(&DriftFacts { features }, 0, level, ANY_DISTANCE).drifted
        });
        eprintln!("classes at {level}: {observed}");
        assert_at_most(observed, level, trials);
    }
}

fn classes_of(rng: &mut StdRng, n: usize, first: f64) -> Vec<f64> {
    (0..n).map(|_| class(rng, first)).collect()
}

/// A day of pools with as many tests as a day can have, under an alarm rate so high that it would show.
#[test]
fn a_day_without_drift_brings_a_breach_no_more_often_than_it_says() {
    let (days, promised) = (200, 0.5);
    let rules = DriftRules { false_alarms_per_day: promised, ..DriftRules::default() };
    let breach = BreachRules::default();
    let level = rules.level(&breach);
    let tests = 86_400_000 / rules.pool_ms;
    let mut rng = StdRng::seed_from_u64(3);
    let observed = rate(days, || {
        let samples: Vec<f64> = (0..SAMPLES).map(|_| normal(&mut rng)).collect();
        let cells = FeatureReference::ordered(bundle::Feature::Mean, &samples);
        let mut gauge = Gauge::default();
        (0..tests).any(|test| {
            let requests: Vec<f64> = (0..REQUESTS).map(|_| normal(&mut rng)).collect();
            let features = vec![counted(Feature::Mean, &cells, &requests)];
            let test_of = examine(&DriftFacts { features }, 0, level, ANY_DISTANCE);
            let (observed, over) = (test_of.psi, test_of.drifted);
            let seen = Seen { observed, over, cause: Cause::Data, times: Histogram::default() };
            gauge.push(Millis(test * rules.pool_ms), ANY_DISTANCE, seen, &breach).is_some()
        })
    });
    eprintln!("days with a breach: {observed}, promised at most {promised}");
    assert_at_most(observed, promised, days);
}

/// Requests that follow each other as video frames do, at a correlation of 0.9, and classes that stay the
/// same nine times in ten.
#[test]
fn requests_that_resemble_their_neighbours_bring_no_more_false_alarms() {
    let (level, trials) = (0.05, 1500);
    let mut rng = StdRng::seed_from_u64(4);
    let (mut corrected, mut naive) = (0_u32, 0_u32);
    for _ in 0..trials {
        let samples: Vec<f64> = (0..SAMPLES).map(|_| normal(&mut rng)).collect();
        let cells = FeatureReference::ordered(bundle::Feature::Mean, &samples);
        let kinds = FeatureReference::classes(&classes_of(&mut rng, SAMPLES, 0.3));
        let (mut at, mut kind) = (normal(&mut rng), class(&mut rng, 0.3));
        let (mut values, mut classes) = (Vec::new(), Vec::new());
        for _ in 0..2 * REQUESTS {
            at = 0.9 * at + (1.0_f64 - 0.81).sqrt() * normal(&mut rng);
            kind = if rng.random::<f64>() < 0.9 { kind } else { class(&mut rng, 0.3) };
            values.push(at);
            classes.push(kind);
        }
        let mut features = vec![
            counted(Feature::Mean, &cells, &values),
            counted(Feature::Class, &kinds, &classes),
        ];
        let said = |features: &[FeatureFacts]| {
            let facts = DriftFacts { features: features.to_vec() };
            u32::from(examine(&facts, 0, level, ANY_DISTANCE).drifted)
        };
        corrected += said(&features);
        features.iter_mut().for_each(|feature| feature.pairs = 0);
        naive += said(&features);
    }
    let share = |count: u32| f64::from(count) / f64::from(trials);
    eprintln!(
        "correlated: {} at level {level}; taken as independent: {}",
        share(corrected),
        share(naive)
    );
    assert_at_most(share(corrected), level, trials);
    assert!(share(naive) > 0.5, "the correction would not be needed");
}

/// Classes that stay once in twenty times, or once in seven: a correlation that one pool cannot tell from chance.
#[test]
fn requests_that_resemble_their_neighbours_a_little_keep_to_the_level_too() {
    for (seed, stays) in [(7, 0.05), (8, 0.1), (9, 0.14)] {
        let mut rng = StdRng::seed_from_u64(seed);
        for (level, trials) in [(0.05, 6000), (0.002, 20_000)] {
            let observed = rate(trials, || {
                let reference = FeatureReference::classes(&classes_of(&mut rng, SAMPLES, 0.3));
                let mut kind = class(&mut rng, 0.3);
                let mut next = || {
                    kind = if rng.random::<f64>() < stays { kind } else { class(&mut rng, 0.3) };
                    kind
                };
                let requests: Vec<f64> = (0..REQUESTS).map(|_| next()).collect();
                let features = vec![counted(Feature::Class, &reference, &requests)];
                examine(&DriftFacts { features }, 0, level, ANY_DISTANCE).drifted
            });
            eprintln!("classes that stay at {stays}, level {level}: {observed}");
            assert_at_most(observed, level, trials);
        }
    }
}

#[test]
fn a_known_shift_is_found_in_one_pool_of_two_hundred_requests() {
    let level = DriftRules::default().level(&BreachRules::default());
    let mut rng = StdRng::seed_from_u64(5);
    for (what, shift, first, least) in [
        ("the mean by one standard deviation", 1.0, 0.3, 0.99),
        ("the first of ten classes from 30 % to 60 %", 0.0, 0.6, 0.95),
        ("nothing but one class", 0.0, 1.0, 1.0),
    ] {
        let found = rate(400, || {
            let reference = draws(&mut rng, SAMPLES, 0.0, 0.3);
            let requests = draws(&mut rng, REQUESTS, shift, first);
            examine(&facts(&reference, &requests), 0, level, 0.2).drifted
        });
        eprintln!("{what}: {found}");
        assert!(found >= least, "{what}: found in {found} of pools");
    }
}

#[test]
fn a_significant_but_tiny_shift_is_no_drift() {
    let level = DriftRules::default().level(&BreachRules::default());
    let mut rng = StdRng::seed_from_u64(6);
    let reference = draws(&mut rng, 100_000, 0.0, 0.3);
    let requests = draws(&mut rng, 100_000, 0.1, 0.3);
    let facts = facts(&reference, &requests);
    let test = examine(&facts, 0, level, 0.2);
    assert!(!test.drifted && test.psi > 0.0 && test.psi < 0.1, "{test:?}");
    assert!(examine(&facts, 0, level, ANY_DISTANCE).drifted);
}
