//! Properties of the latency histogram.
#![allow(clippy::unwrap_used, missing_docs)]

use proptest::prelude::*;
use wire::Histogram;
use wire::histogram::{BUCKETS, MAX_TRACKED_US};

fn of(values: &[u64]) -> Histogram {
    let mut histogram = Histogram::default();
    values.iter().for_each(|value| histogram.record(*value));
    histogram
}

/// Durations over the whole range, evenly by magnitude, with the edges of buckets among them.
fn duration() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..200u64,
        (0..27u32, any::<u64>())
            .prop_map(|(bits, low)| ((1 << bits) | (low & ((1 << bits) - 1))).min(MAX_TRACKED_US)),
        (5..26u32, 0..64u64)
            .prop_map(|(shift, n)| ((n << shift).saturating_sub(n & 1)).min(MAX_TRACKED_US)),
        Just(MAX_TRACKED_US),
    ]
}

fn nearest_rank(sorted: &[u64], q: f64) -> u64 {
    let rank = (q * sorted.len() as f64).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

proptest! {
    #[test]
    fn a_quantile_is_within_one_64th_of_the_value_of_its_rank(
        mut values in prop::collection::vec(0..99_600_000u64, 1..200),
        extra in prop::collection::vec(duration().prop_map(|v| v.min(99_600_000)), 1..200),
        q in prop_oneof![0.0..=1.0f64, Just(0.0), Just(0.5), Just(0.95), Just(1.0)],
    ) {
        values.extend(extra);
        let estimate = of(&values).quantile(q).unwrap();
        values.sort_unstable();
        let truth = nearest_rank(&values, q);
        prop_assert!(estimate.abs_diff(truth) * 64 <= truth, "{estimate} for {truth}");
    }

    #[test]
    fn merging_gives_the_histogram_of_the_union(
        a in prop::collection::vec(any::<u32>().prop_map(u64::from), 0..100),
        b in prop::collection::vec(duration(), 0..100),
        c in prop::collection::vec(duration(), 0..100),
    ) {
        let union = of(&[a.clone(), b.clone(), c.clone()].concat());
        let mut left = of(&a);
        left.merge(&of(&b));
        left.merge(&of(&c));
        let mut right = of(&c);
        right.merge(&of(&b));
        right.merge(&of(&a));
        prop_assert_eq!(&left, &union);
        prop_assert_eq!(&right, &union);
        let all: Vec<u64> = [a, b, c].concat();
        prop_assert_eq!(union.count(), all.len() as u64);
        prop_assert_eq!(union.max(), all.iter().max().copied());
        prop_assert_eq!(union.sum(), all.iter().sum::<u64>());
    }

    #[test]
    fn a_histogram_survives_json_exactly(
        values in prop::collection::vec(prop_oneof![duration(), any::<u64>()], 0..100),
    ) {
        let histogram = of(&values);
        let text = serde_json::to_string(&histogram).unwrap();
        prop_assert_eq!(serde_json::from_str::<Histogram>(&text).unwrap(), histogram);
    }

    #[test]
    fn quantiles_rise_with_their_rank_and_never_pass_the_maximum(
        values in prop::collection::vec(prop_oneof![duration(), any::<u64>()], 1..100),
        a in 0.0..=1.0f64,
        b in 0.0..=1.0f64,
    ) {
        let histogram = of(&values);
        let (low, high) = (a.min(b), a.max(b));
        prop_assert!(histogram.quantile(low).unwrap() <= histogram.quantile(high).unwrap());
        prop_assert!(histogram.quantile(high).unwrap() <= histogram.max().unwrap());
    }

    #[test]
    fn arbitrary_buckets_are_refused_or_read_but_never_panic(
        buckets in prop::collection::vec((0..800u64, prop_oneof![0..5u64, any::<u64>()]), 0..8),
        sum in any::<u64>(),
        max in prop_oneof![0..2000u64, any::<u64>()],
    ) {
        let value = serde_json::json!({ "unit": "us", "buckets": buckets, "sum_us": sum, "max_us": max });
        if let Ok(mut histogram) = serde_json::from_value::<Histogram>(value) {
            histogram.merge(&histogram.clone());
            histogram.record(max);
            prop_assert!(histogram.quantile(0.5).is_none_or(|p50| Some(p50) <= histogram.max()));
        }
    }
}

#[test]
fn every_bucket_follows_the_one_before_and_is_at_most_one_32nd_wide() {
    let mut every = Histogram::default();
    (0..=MAX_TRACKED_US).step_by(97).chain(0..200_000).for_each(|us| every.record(us));
    let buckets: Vec<_> = every.buckets().collect();
    assert_eq!(buckets.len(), BUCKETS);
    for pair in buckets.windows(2) {
        assert_eq!(pair[0].1 + 1, pair[1].0);
    }
    for (low, high, _) in &buckets[..BUCKETS - 1] {
        assert!(*high == *low || (high - low + 1) * 32 <= *low, "{low}..={high}");
    }
}

#[test]
fn an_empty_histogram_has_no_quantile_mean_or_maximum() {
    let empty = Histogram::default();
    assert!(empty.is_empty());
    assert_eq!((empty.quantile(0.5), empty.max(), empty.mean()), (None, None, None));
}

#[test]
fn a_quantile_outside_zero_to_one_is_nothing() {
    let one = of(&[10]);
    assert_eq!((one.quantile(-0.1), one.quantile(1.1), one.quantile(f64::NAN)), (None, None, None));
    assert_eq!(one.quantile(0.0), Some(10));
}

#[test]
fn a_duration_beyond_the_last_bucket_keeps_its_maximum() {
    let long = of(&[1, u64::MAX]);
    assert_eq!(long.max(), Some(u64::MAX));
    assert_eq!(long.quantile(1.0), Some(u64::MAX));
    assert_eq!(long.quantile(0.5), Some(1));
}
