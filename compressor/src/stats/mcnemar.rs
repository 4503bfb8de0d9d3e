//! The exact McNemar test (Q. McNemar, 1947): given that a sample is discordant, under equality it is
//! lost or gained with probability one half, so the lost are Binomial(lost + gained, 1/2).

use serde::{Deserialize, Serialize};

use super::distribution::half_binomial_cdf;

/// p values of the exact McNemar test.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct McNemar {
    /// That the two differ: twice the smaller tail, at most 1.
    pub two_sided: f64,
    /// That the candidate is worse: P(X ≥ lost).
    pub worse: f64,
    /// That the candidate is better: P(X ≥ gained).
    pub better: f64,
}

impl McNemar {
    /// The test on `lost` samples that only the original has right and `gained` ones that only the
    /// candidate has right. Without discordant samples nothing speaks against equality: all are 1.
    ///
    /// Time grows with the square root of the counts.
    pub fn exact(lost: u64, gained: u64) -> Self {
        let all = lost.saturating_add(gained);
        if all == 0 {
            return Self { two_sided: 1.0, worse: 1.0, better: 1.0 };
        }
        // By symmetry P(X ≥ lost) = P(X ≤ gained).
        let (worse, better) = (half_binomial_cdf(all, gained), half_binomial_cdf(all, lost));
        Self { two_sided: (2.0 * worse.min(better)).min(1.0), worse, better }
    }
}

#[cfg(test)]
mod tests {
    use super::super::distribution::ln_half_binomial;
    use super::*;
    use proptest::prelude::*;

    fn near(a: f64, b: f64) {
        assert!((a - b).abs() <= 1e-10 * b.abs(), "{a:e} is not {b:e}");
    }

    /// Agresti, Categorical Data Analysis, 2nd ed., section 10.1: 150 against 86 of 1600 approvals.
    /// The other rows, and all digits, are SciPy 1.17's `binomtest(lost, lost + gained, 0.5)`.
    #[test]
    fn two_sided_p_values_match_references() {
        for (lost, gained, p) in [
            (1, 7, 0.070_312_5),
            (12, 5, 0.143_463_134_765_625),
            (10, 10, 1.0),
            (0, 6, 0.031_25),
            (59, 6, 4.964_650_327_128_616e-12),
            (150, 86, 3.715_936_139_571_386_6e-5),
        ] {
            near(McNemar::exact(lost, gained).two_sided, p);
            near(McNemar::exact(gained, lost).two_sided, p);
        }
    }

    #[test]
    fn one_sided_p_values_say_which_way() {
        let lost_more = McNemar::exact(1200, 1000);
        near(lost_more.worse, 1.090_851_320_395_709_7e-5);
        near(lost_more.better, 0.999_990_992_096_671_3);
        let six = McNemar::exact(0, 6);
        near(six.better, 0.015_625);
        near(six.worse, 1.0);
    }

    #[test]
    fn a_million_discordant_samples_keep_their_digits() {
        near(McNemar::exact(500_300, 499_700).two_sided, 0.549_172_905_913_127_2);
        near(McNemar::exact(1_000_000, 997_000).worse, 0.016_910_229_919_598_223);
        let extreme = McNemar::exact(1_000_000, 0);
        assert_eq!((extreme.worse, extreme.better), (0.0, 1.0));
    }

    proptest! {
        #[test]
        fn exchanging_the_models_exchanges_the_sides(lost in 0u64..5000, gained in 0u64..5000) {
            let (a, b) = (McNemar::exact(lost, gained), McNemar::exact(gained, lost));
            prop_assert_eq!(a.two_sided, b.two_sided);
            prop_assert_eq!(a.worse, b.better);
            prop_assert!(a.worse > 0.0 || lost > 1000);
            prop_assert!((0.0..=1.0).contains(&a.two_sided));
            // Both one-sided tails hold the observed outcome.
            let both = a.worse + a.better - ln_half_binomial(lost + gained, lost).exp();
            prop_assert!((both - 1.0).abs() < 1e-9, "{}", both);
        }

        #[test]
        fn one_more_loss_is_more_evidence_of_a_loss(lost in 0u64..3000, gained in 0u64..3000) {
            prop_assert!(McNemar::exact(lost + 1, gained).worse <= McNemar::exact(lost, gained).worse);
            prop_assert!(McNemar::exact(lost, gained + 1).worse >= McNemar::exact(lost, gained).worse);
        }
    }
}
