use proptest::prelude::*;
use rand::Rng;

use super::*;
use crate::stats::Verdict;

/// Forty exponential quantiles, far from symmetric, and a denominator.
fn skewed() -> (Vec<f64>, Vec<f64>) {
    let x: Vec<f64> = (0..40u32).map(|i| f64::from(i * 7919 % 101) / 101.0).collect();
    (x.iter().map(|x| -(1.0 - x).ln()).collect(), x.iter().rev().map(|x| 1.0 + x).collect())
}

fn many(method: Method) -> Resampling {
    Resampling { resamples: 40_000, method, seed: 3 }
}

fn interval(samples: usize, options: &Resampling, of: impl FnMut(&[u32]) -> f64) -> Interval {
    Bootstrap::new(samples, options, of).unwrap().interval(0.9).unwrap()
}

fn mean_difference(original: &[f64], candidate: &[f64], options: &Resampling) -> Interval {
    let bootstrap = Bootstrap::of_mean_difference(original, candidate, options).unwrap();
    bootstrap.interval(0.9).unwrap()
}

fn near(got: Interval, low: f64, high: f64) {
    // Three standard deviations of the 5 % quantile of 40 000 resamples.
    let tolerance = 0.012;
    assert!((got.low - low).abs() < tolerance && (got.high - high).abs() < tolerance, "{got:?}");
}

/// SciPy 1.17: `scipy.stats.bootstrap((x,), numpy.mean, confidence_level=0.9, n_resamples=200000)`.
#[test]
fn intervals_of_a_mean_match_scipys() {
    let (x, _) = skewed();
    let mean = |counts: &[u32]| weighted_sums(&x, 1, counts)[0] / 40.0;
    let percentile = interval(40, &many(Method::Percentile), mean);
    assert!((percentile.value - 0.972_837_468_386).abs() < 1e-9);
    near(percentile, 0.7336, 1.2360);
    near(interval(40, &many(Method::Bca), mean), 0.7603, 1.2783);
}

/// The same of a ratio of sums, `paired=True`.
#[test]
fn intervals_of_a_ratio_match_scipys() {
    let (x, y) = skewed();
    let rows: Vec<f64> = x.iter().zip(&y).flat_map(|(x, y)| [*x, *y]).collect();
    let ratio = |counts: &[u32]| {
        let sums = weighted_sums(&rows, 2, counts);
        sums[0] / sums[1]
    };
    near(interval(40, &many(Method::Percentile), ratio), 0.4900, 0.8284);
    near(interval(40, &many(Method::Bca), ratio), 0.5032, 0.8475);
}

/// Of 600 sets from a skewed distribution, nine in ten intervals hold the true mean, as they say.
#[test]
fn intervals_cover_the_truth_as_often_as_they_say() {
    for method in [Method::Percentile, Method::Bca] {
        let mut rng = StdRng::seed_from_u64(11);
        let runs = 600u32;
        let covered = (0..runs)
            .filter(|run| {
                let x: Vec<f64> = (0..60).map(|_| -(1.0 - rng.random::<f64>()).ln()).collect();
                let options = Resampling { resamples: 400, seed: u64::from(*run), method };
                let interval = mean_difference(&vec![0.0; x.len()], &x, &options);
                interval.low <= 1.0 && 1.0 <= interval.high
            })
            .count();
        let share = covered as f64 / f64::from(runs);
        assert!((0.85..=0.94).contains(&share), "{method:?}: {share}");
    }
}

#[test]
fn more_samples_than_parts_of_the_jackknife_give_the_same_acceleration() {
    let x: Vec<f64> =
        (0..20_000u32).map(|i| -(1.0 - f64::from(i * 7919 % 20_011) / 20_011.0).ln()).collect();
    let mut counts = vec![1; x.len()];
    let mut mean = |counts: &[u32]| {
        let drawn: u32 = counts.iter().sum();
        weighted_sums(&x, 1, counts)[0] / f64::from(drawn)
    };
    let a = acceleration(&mut counts, &mut mean);
    // skewness / 6√n, and an exponential's skewness is 2; parts add noise, not bias.
    let exact = 2.0 / (6.0 * 20_000f64.sqrt());
    assert!((a - exact).abs() < 0.006, "{a} {exact}");
}

#[test]
fn a_seed_gives_the_same_interval_and_another_seed_another() {
    let (x, y) = skewed();
    let with = |seed| mean_difference(&x, &y, &Resampling { seed, ..Resampling::default() });
    assert_eq!(with(1), with(1));
    assert_ne!(with(1), with(2));
}

#[test]
fn equal_models_differ_by_nothing() {
    let (x, _) = skewed();
    let got = mean_difference(&x, &x, &Resampling::default());
    assert_eq!(got, Interval { value: 0.0, low: 0.0, high: 0.0 });
}

#[test]
fn pairing_is_what_makes_a_comparison_sharp() {
    let (x, _) = skewed();
    let worse: Vec<f64> = x.iter().map(|x| x - 0.1).collect();
    let got = mean_difference(&x, &worse, &Resampling::default());
    assert!((got.low + 0.1).abs() < 1e-9 && (got.high + 0.1).abs() < 1e-9, "{got:?}");
}

#[test]
fn what_is_undefined_is_an_error_and_a_few_gaps_are_not() {
    let never = Bootstrap::new(10, &Resampling::default(), |_| f64::NAN).unwrap_err();
    assert!(matches!(never, StatsError::Undefined { .. }), "{never}");
    // Without its only positive a share has no meaning: about 37 % of resamples.
    let rare = Bootstrap::new(30, &Resampling::default(), |counts| {
        if counts[0] == 0 { f64::NAN } else { f64::from(counts[1]) }
    });
    assert!(rare.unwrap_err().to_string().contains("MAX_UNDEFINED_SHARE"));
    let common = Bootstrap::new(30, &Resampling::default(), |counts| {
        if counts[..10].iter().all(|c| *c == 0) { f64::NAN } else { f64::from(counts[1]) }
    });
    assert!(common.is_ok(), "{common:?}");
}

#[test]
fn senseless_options_are_errors() {
    let few = Resampling { resamples: 10, ..Resampling::default() };
    let new = |samples, options: &Resampling| Bootstrap::new(samples, options, |_| 0.0);
    assert!(new(10, &few).unwrap_err().to_string().contains("MIN_RESAMPLES"));
    assert_eq!(new(0, &Resampling::default()), Err(StatsError::NoSamples));
    let many = new(MAX_RESAMPLED + 1, &Resampling::default()).unwrap_err();
    assert!(many.to_string().contains("MAX_RESAMPLED"), "{many}");
    let fine = new(10, &Resampling::default()).unwrap();
    assert!(fine.interval(1.0).is_err());
    for margin in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let error = fine.evidence(margin, Plan::default()).unwrap_err();
        assert!(error.to_string().contains("margin"), "{error}");
    }
}

/// Ten samples that agree are no proof that one in a hundred does not.
#[test]
fn a_few_samples_that_agree_prove_nothing() {
    let verdict = |samples: usize| {
        let same = vec![0.5; samples];
        let bootstrap = Bootstrap::of_mean_difference(&same, &same, &Resampling::default());
        bootstrap.unwrap().evidence(0.05, Plan::default()).unwrap().verdict(0.05)
    };
    assert_eq!(verdict(10), Verdict::Undecided { samples_needed: Some(59) });
    assert_eq!(verdict(59), Verdict::NonInferior);
}

#[test]
fn a_loss_beyond_the_margin_is_inferior_and_one_at_it_is_undecided() {
    let (x, _) = skewed();
    let original = vec![0.0; 200];
    let noisy = |shift: f64| (0..200).map(|i| shift + 0.1 * (x[i % 40] - 0.97)).collect::<Vec<_>>();
    let verdict = |shift: f64| {
        let bootstrap =
            Bootstrap::of_mean_difference(&original, &noisy(shift), &Resampling::default())
                .unwrap();
        bootstrap.evidence(0.05, Plan::default()).unwrap().verdict(0.05)
    };
    assert_eq!(verdict(-0.02), Verdict::NonInferior);
    assert_eq!(verdict(-0.09), Verdict::Inferior);
    assert_eq!(verdict(-0.051), Verdict::Undecided { samples_needed: None });
    assert!(matches!(verdict(-0.045), Verdict::Undecided { samples_needed: Some(200..) }));
}

proptest! {
    #[test]
    fn exchanging_the_models_mirrors_the_percentiles(
        pairs in prop::collection::vec((-5.0f64..5.0, -5.0f64..5.0), 2..40), seed in any::<u64>()
    ) {
        let (a, b): (Vec<f64>, Vec<f64>) = pairs.into_iter().unzip();
        let options = Resampling { resamples: 200, method: Method::Percentile, seed };
        let of = |a: &[f64], b: &[f64]| {
            let bootstrap = Bootstrap::of_sums_difference(a, b, 1, &options, |s| s[0]).unwrap();
            bootstrap.interval(0.9).unwrap()
        };
        let (there, back) = (of(&a, &b), of(&b, &a));
        prop_assert!((there.low + back.high).abs() < 1e-9 && (there.high + back.low).abs() < 1e-9);
        prop_assert!(there.low <= there.high);
    }

    #[test]
    fn more_confidence_is_a_wider_interval(
        x in prop::collection::vec(-5.0f64..5.0, 2..40), bca in any::<bool>()
    ) {
        let method = if bca { Method::Bca } else { Method::Percentile };
        let options = Resampling { resamples: 200, method, seed: 5 };
        let zeros = vec![0.0; x.len()];
        let bootstrap = Bootstrap::of_mean_difference(&zeros, &x, &options).unwrap();
        let of = |confidence| bootstrap.interval(confidence).unwrap();
        let (narrow, wide) = (of(0.5), of(0.99));
        prop_assert!(wide.low <= narrow.low + 1e-12 && narrow.high <= wide.high + 1e-12);
        // A p value and a bound are the same statement.
        let p = bootstrap.p_at_most(narrow.low - 1e-9);
        prop_assert!(p <= 0.25 + 1e-9, "{}", p);
        prop_assert!(bootstrap.p_at_most(narrow.high) >= p);
    }
}
