//! Holm's step-down correction for several candidates (S. Holm, 1979): the chance that any true null
//! hypothesis is rejected stays below α, whatever the candidates have in common.

/// Adjusted p values in the order given: with p sorted upwards, max over j ≤ i of (m − j + 1)·p₍ⱼ₎, at
/// most 1. A hypothesis is rejected at α where its adjusted p value is at most α. NaN counts as 1.
pub fn adjust(p: &[f64]) -> Vec<f64> {
    let known = |v: f64| if v.is_nan() { 1.0 } else { v.clamp(0.0, 1.0) };
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|a, b| known(p[*a]).total_cmp(&known(p[*b])));
    let mut adjusted = vec![1.0; p.len()];
    let mut highest = 0.0f64;
    for (rank, at) in order.into_iter().enumerate() {
        let left = (p.len() - rank) as f64;
        highest = highest.max((left * known(p[at])).min(1.0));
        adjusted[at] = highest;
    }
    adjusted
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// statsmodels 0.15: `multipletests([.01, .04, .03, .005], method="holm")`.
    #[test]
    fn adjusted_values_match_a_reference() {
        let adjusted = adjust(&[0.01, 0.04, 0.03, 0.005]);
        for (got, wanted) in adjusted.iter().zip([0.03, 0.06, 0.06, 0.02]) {
            assert!((got - wanted).abs() < 1e-12, "{adjusted:?}");
        }
        assert!(adjust(&[]).is_empty());
        assert_eq!(adjust(&[f64::NAN, 0.01]), [1.0, 0.02]);
    }

    proptest! {
        #[test]
        fn adjusting_keeps_the_order_and_lies_between_raw_and_bonferroni(
            p in prop::collection::vec(0.0f64..=1.0, 1..12)
        ) {
            let adjusted = adjust(&p);
            for (i, a) in adjusted.iter().enumerate() {
                prop_assert!(*a >= p[i] && *a <= (p[i] * p.len() as f64).min(1.0).max(p[i]) + 1e-12
                    || adjusted.iter().zip(&p).any(|(b, q)| *q <= p[i] && b == a));
                for j in 0..p.len() {
                    prop_assert!(p[i] > p[j] || *a <= adjusted[j]);
                }
            }
            let smallest = p.iter().copied().fold(1.0, f64::min);
            let least = adjusted.iter().copied().fold(1.0, f64::min);
            prop_assert!((least - (smallest * p.len() as f64).min(1.0)).abs() < 1e-12);
        }
    }
}
