use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::stats::{Verdict, verdicts};

fn verdict(pair: Paired, margin: f64) -> Verdict {
    let plan = Plan::default();
    pair.evidence(margin, plan).unwrap().verdict(plan.alpha)
}

fn near(a: f64, b: f64, tolerance: f64) {
    assert!((a - b).abs() <= tolerance, "{a} is not {b}");
}

fn paired(samples: u64, lost: u64, gained: u64) -> Paired {
    Paired::new(samples, lost, gained).unwrap()
}

/// Tango 1998, section 6: 44 crossover pairs, one discordant, margin 0.1: Z = 1.709, p = 0.044.
#[test]
fn the_test_matches_the_published_example() {
    let lenses = paired(44, 1, 0);
    near(lenses.score(-0.1), 1.709, 5e-4);
    near(lenses.p_noninferior(0.1).unwrap(), 0.0438, 5e-5);
}

/// Published Tango intervals: Fagerland, Lydersen and Laake 2014 (airway hyper-responsiveness), to
/// their three digits. The other rows come from a numerical maximisation of the restricted likelihood
/// with SciPy 1.17, which uses no closed form; 40 and 20 of 160 is the example of R's PropCIs.
#[test]
fn intervals_match_published_and_numerical_ones() {
    let bentur = paired(21, 7, 1).interval(0.95).unwrap();
    near(bentur.low, -0.517, 5e-4);
    near(bentur.high, -0.026, 5e-4);
    for (pair, confidence, low, high) in [
        (paired(160, 20, 40), 0.95, 0.030_864_532, 0.218_064_243),
        (paired(50, 2, 12), 0.95, 0.061_112_407, 0.344_708_748),
        (paired(618, 28, 25), 0.95, -0.028_732_021, 0.018_785_057),
        (paired(549, 41, 48), 0.90, -0.015_690_649, 0.041_380_490),
        (paired(1600, 150, 86), 0.95, -0.058_998_033, -0.021_361_565),
        (paired(44, 1, 0), 0.95, -0.118_077_097, 0.059_393_232),
    ] {
        let interval = pair.interval(confidence).unwrap();
        near(interval.low, low, 2e-8);
        near(interval.high, high, 2e-8);
    }
}

/// With λ₀ = 0 the statistic is McNemar's (lost − gained)² / (lost + gained).
#[test]
fn at_no_difference_the_score_is_mcnemars() {
    near(paired(1600, 150, 86).score(0.0), -64.0 / 236f64.sqrt(), 1e-12);
}

/// Without gains the score is that of one proportion: Wilson's.
#[test]
fn agreement_alone_gives_wilsons_interval() {
    // 81 of 263 differ: 0.2553 to 0.3662 (Newcombe 1998, method 3), where a loss beyond
    // 2m/(1 + m) leaves no gain in the restricted estimate.
    let interval = paired(2000, 20, 0).interval(0.90).unwrap();
    let wilson = |side: f64| {
        let (n, p, z) = (2000.0f64, 0.01f64, 1.644_853_626_951_472_2f64);
        let centre = p + z * z / (2.0 * n);
        let half = z * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).sqrt();
        (centre + side * half) / (1.0 + z * z / n)
    };
    near(interval.low, -wilson(1.0), 1e-9);
}

#[test]
fn impossible_counts_and_margins_are_errors() {
    assert_eq!(Paired::new(0, 0, 0), Err(StatsError::NoSamples));
    assert!(Paired::new(5, 3, 3).is_err());
    assert!(Paired::new(5, u64::MAX, 1).is_err());
    for margin in [0.0, 1.0, -0.1, f64::NAN] {
        assert!(paired(5, 1, 1).p_noninferior(margin).is_err(), "{margin}");
    }
    let plan = Plan { alpha: 0.0, power: 0.8 };
    assert!(paired(5, 1, 1).evidence(0.1, plan).is_err());
    assert!(Paired::count([]).is_err());
    let counted = Paired::count([(true, false), (false, true), (true, true), (true, false)]);
    assert_eq!(counted.unwrap(), paired(4, 2, 1));
}

/// The chance of each `(lost, gained)` of n samples, summed where the candidate is accepted.
fn chance_of_acceptance(n: u64, lost: f64, gained: f64, margin: f64) -> f64 {
    let same = 1.0 - lost - gained;
    let ln_factorial: Vec<f64> = (0..=n)
        .scan(0.0, |sum, i| {
            *sum += (i.max(1) as f64).ln();
            Some(*sum)
        })
        .collect();
    let mut chance = 0.0;
    for l in 0..=n {
        for g in 0..=n - l {
            let rest = n - l - g;
            let ways = ln_factorial[n as usize]
                - ln_factorial[l as usize]
                - ln_factorial[g as usize]
                - ln_factorial[rest as usize];
            let ln = ways + l as f64 * lost.ln() + g as f64 * gained.ln() + rest as f64 * same.ln();
            if ln > -30.0 && paired(n, l, g).p_noninferior(margin).unwrap() <= 0.05 {
                chance += ln.exp();
            }
        }
    }
    chance
}

/// The true level by enumeration, at the worst true difference, for sizes and discordances that the
/// pruning of a model meets. Tango's test is asymptotic; nowhere here does it exceed 6 %.
#[test]
fn a_candidate_that_loses_the_margin_is_seldom_accepted() {
    for n in [50u64, 100, 200, 400] {
        for margin in [0.01, 0.02, 0.05, 0.1] {
            for beyond in [1e-9, 0.01, 0.04, 0.1, 0.2] {
                let gained = 0.5 * beyond;
                let level = chance_of_acceptance(n, margin + gained, gained, margin);
                assert!(level <= 0.06, "n {n}, margin {margin}, discordance + {beyond}: {level}");
            }
        }
    }
}

/// The same by simulation, drawing the outcomes of a thousand samples.
#[test]
fn the_level_holds_in_simulation() {
    let mut rng = StdRng::seed_from_u64(7);
    let (runs, n, margin) = (4000u32, 1000, 0.02);
    let accepted = (0..runs)
        .filter(|_| {
            let draws = (0..n).map(|_| match rng.random::<f64>() {
                u if u < 0.05 => (true, false),
                u if u < 0.08 => (false, true),
                _ => (true, true),
            });
            verdict(Paired::count(draws).unwrap(), margin) == Verdict::NonInferior
        })
        .count();
    // 5 % of 4000 with three standard deviations.
    let share = accepted as f64 / f64::from(runs);
    assert!((0.039..=0.061).contains(&share), "{share}");
}

/// With as many samples as were asked for, the candidate is accepted with the power that was planned.
#[test]
fn the_number_of_samples_gives_the_power_it_promises() {
    for (seen, margin) in [(paired(100, 6, 4), 0.05), (paired(200, 10, 10), 0.04)] {
        let needed = seen.samples_needed(margin, Plan::default()).unwrap().unwrap();
        let (lost, gained) = seen.shares();
        let power = chance_of_acceptance(needed, lost, gained, margin);
        assert!((0.77..=0.83).contains(&power), "{needed}: {power}");
    }
}

#[test]
fn verdicts_say_what_is_known_and_what_is_missing() {
    assert_eq!(verdict(paired(2000, 10, 8), 0.01), Verdict::NonInferior);
    assert_eq!(verdict(paired(2000, 100, 8), 0.01), Verdict::Inferior);
    let Verdict::Undecided { samples_needed: Some(needed) } = verdict(paired(100, 2, 2), 0.01)
    else {
        panic!("a hundred samples cannot decide a loss of one in a hundred")
    };
    assert!((1000..10_000).contains(&needed), "{needed}");
    let hopeless = verdict(paired(100, 3, 1), 0.01);
    assert_eq!(hopeless, Verdict::Undecided { samples_needed: None });
}

#[test]
fn several_candidates_are_held_to_holms_standard() {
    let near_miss = paired(1000, 11, 9);
    let alone = near_miss.evidence(0.01, Plan::default()).unwrap();
    assert!((0.02..0.05).contains(&alone.p_noninferior), "{alone:?}");
    assert_eq!(alone.verdict(0.05), Verdict::NonInferior);
    let among = verdicts(&[alone, alone, alone], 0.05);
    assert!(among.iter().all(|v| *v != Verdict::NonInferior), "{among:?}");
    assert!(verdicts(&[], 0.05).is_empty());
}

fn counts() -> impl Strategy<Value = Paired> {
    (1u64..3000).prop_flat_map(|n| {
        (0..=n).prop_flat_map(move |l| (0..=n - l).prop_map(move |g| paired(n, l, g)))
    })
}

proptest! {
    #[test]
    fn exchanging_the_models_mirrors_the_interval(pair in counts(), confidence in 0.5f64..0.999) {
        let a = pair.interval(confidence).unwrap();
        let b = paired(pair.samples, pair.gained, pair.lost).interval(confidence).unwrap();
        prop_assert!((a.low + b.high).abs() < 1e-9 && (a.high + b.low).abs() < 1e-9, "{a:?} {b:?}");
    }

    #[test]
    fn an_interval_holds_its_difference_and_stays_in_range(pair in counts()) {
        let narrow = pair.interval(0.8).unwrap();
        let wide = pair.interval(0.99).unwrap();
        prop_assert!(-1.0 <= wide.low && wide.low <= narrow.low + 1e-12);
        prop_assert!(narrow.low <= pair.difference() && pair.difference() <= narrow.high);
        prop_assert!(narrow.high <= wide.high + 1e-12 && wide.high <= 1.0);
    }

    #[test]
    fn the_test_and_the_interval_say_the_same(pair in counts(), margin in 0.002f64..0.5) {
        let p = pair.p_noninferior(margin).unwrap();
        prop_assume!((p - 0.05).abs() > 1e-6);
        let low = pair.interval(0.9).unwrap().low;
        prop_assert_eq!(p <= 0.05, low > -margin, "{} {}", p, low);
    }

    #[test]
    fn a_wider_margin_is_easier_and_more_loss_is_harder(
        pair in counts(), margin in 0.002f64..0.4, more in 0.0f64..0.2
    ) {
        let p = pair.p_noninferior(margin).unwrap();
        prop_assert!(pair.p_noninferior(margin + more).unwrap() <= p + 1e-12);
        if pair.gained > 0 {
            let worse = paired(pair.samples, pair.lost + 1, pair.gained - 1);
            prop_assert!(worse.p_noninferior(margin).unwrap() >= p - 1e-12);
        }
    }
}

/// All but one sample lost: the interval ends where the restricted variance vanishes.
#[test]
fn the_interval_is_mirrored_at_the_end_of_the_scale_too() {
    let (a, b) = (paired(641, 640, 0), paired(641, 0, 640));
    let (a, b) = (
        a.interval(0.520_139_673_869_346_6).unwrap(),
        b.interval(0.520_139_673_869_346_6).unwrap(),
    );
    assert!((a.low + b.high).abs() < 1e-9 && (a.high + b.low).abs() < 1e-9, "{a:?} {b:?}");
    assert!(a.low < a.value && a.value < a.high && a.low >= -1.0, "{a:?}");
}
