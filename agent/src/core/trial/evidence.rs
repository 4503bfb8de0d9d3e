//! How much a count of observations speaks against a claim, whenever one looks.
//!
//! The claim: an observation is over its limit with a chance of at most p, whatever came before it.
//! Against each alternative q > p one may bet with the likelihood ratio
//!
//! ```text
//! E(q) = (q/p)^K ((1-q)/(1-p))^(N-K)        N observations, K of them over
//! ```
//!
//! which no strategy makes money from while the claim holds: it is a supermartingale that starts at 1,
//! so that the chance that it *ever* reaches 1/a is at most a (J. Ville, 1939). The evidence here is the
//! mean of E(q) over [`BETS`] fixed alternatives, which is one too (H. Robbins, 1970). It is Wald's
//! sequential probability ratio test (1945) without having to know the alternative, and it may be looked
//! at after every window.
//!
//! **What is alike counts as one.** Let d observations in a row have in common whatever they like.
//! The mean of their d ratios is still a fair bet as long as the claim holds for each of them given what
//! was known before the first, and the geometric mean is never more than the mean (V. Vovk, R. Wang,
//! *E-values*, 2021). Raising ratios to the power 1/d, that is, counting each observation as 1/d, is
//! therefore safe. The same inequality allows K to be fractional (an agreement between 0 and 1).
//!
//! K and N are sums: nothing is stored but them, and the order of observations does not matter.

/// Alternatives that are bet on, denser towards the claim, where one is to be told from its neighbour.
/// More of them make each dearer, fewer leave gaps between them.
const BETS: u32 = 8;
/// The worst alternative: nearly every observation is over.
const WORST: f64 = 0.99;
/// A claim of never cannot be bet against: it is taken as this chance.
const NEVER: f64 = 1e-6;
/// Steps of the bisection: an interval of 1 to below 1e-12.
const STEPS: u32 = 40;

/// The natural logarithm of the evidence that more than the share `allowed` of observations is over,
/// where `over` of `n` are. Zero (no evidence) where nearly all of them may be.
pub(in crate::core) fn ln_evidence(over: f64, n: f64, allowed: f64) -> f64 {
    let p = allowed.max(NEVER);
    if n <= 0.0 || p >= WORST {
        return 0.0;
    }
    let logit = |p: f64| (p / (1.0 - p)).ln();
    let (from, to) = (logit(p), logit(WORST));
    let bet = |number: u32| {
        let part = f64::from(number) / f64::from(BETS);
        let at = from + (to - from) * part * part;
        let q = 1.0 / (1.0 + (-at).exp());
        over * (q / p).ln() + (n - over) * ((1.0 - q) / (1.0 - p)).ln()
    };
    let bets: Vec<f64> = (1..=BETS).map(bet).collect();
    let most = bets.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = bets.iter().map(|bet| (bet - most).exp()).sum();
    most + (sum / f64::from(BETS)).ln()
}

/// The largest share of observations that may be over where `over` of `n` were: the true one is above it
/// with a chance of at most `level`. It solves `n kl(over/n, p) = ln(1/level)`, the bound of Chernoff
/// and Hoeffding (1963), which like [`ln_evidence`] allows for observations that count as less than one.
pub(in crate::core) fn upper(over: f64, n: f64, level: f64) -> f64 {
    if n <= 0.0 {
        return 1.0;
    }
    let seen = (over / n).clamp(0.0, 1.0);
    let (mut low, mut high) = (seen, 1.0);
    for _ in 0..STEPS {
        let middle = f64::midpoint(low, high);
        if n * divergence(seen, middle) < -level.ln() {
            low = middle;
        } else {
            high = middle;
        }
    }
    high
}

/// The relative entropy of two coins.
fn divergence(p: f64, q: f64) -> f64 {
    let term = |p: f64, q: f64| if p > 0.0 { p * (p / q).ln() } else { 0.0 };
    term(p, q) + term(1.0 - p, 1.0 - q)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_as_claimed_is_no_evidence_and_what_is_worse_grows_into_it() {
        assert!(ln_evidence(0.0, 0.0, 0.05).abs() < 1e-12);
        assert!(ln_evidence(5.0, 100.0, 0.05) < 0.0);
        assert!(ln_evidence(100.0, 100.0, 0.995) < 1e-12, "nearly all may be over");
        let mut before = 0.0;
        for n in 1..20 {
            let now = ln_evidence(f64::from(n), f64::from(n), 0.05);
            assert!(now > before + 1.0, "{n}: {now} after {before}");
            before = now;
        }
    }

    #[test]
    fn the_evidence_is_a_fair_bet_however_many_are_seen() {
        // The mean over all outcomes of n independent observations at the claimed share is 1 at most.
        for (n, p) in [(1_u32, 0.05), (20, 0.05), (60, 0.02), (60, 0.3)] {
            let mut chance = (1.0_f64 - p).powi(n.cast_signed());
            let mut mean = 0.0;
            for k in 0..=n {
                mean += chance * ln_evidence(f64::from(k), f64::from(n), p).exp();
                chance *= f64::from(n - k) / f64::from(k + 1) * p / (1.0 - p);
            }
            assert!((mean - 1.0).abs() < 1e-9, "{n}, {p}: {mean}");
        }
    }

    #[test]
    fn observations_that_count_half_make_half_the_evidence_of_each_bet() {
        let (whole, half) = (ln_evidence(30.0, 30.0, 0.05), ln_evidence(15.0, 15.0, 0.05));
        assert!(half < whole && half > 0.4 * whole);
    }

    #[test]
    fn the_upper_bound_fails_as_seldom_as_it_says() {
        // The chance to see so few that the bound is under the truth, over all outcomes.
        for (n, p, level) in [(20_u32, 0.3, 0.05), (50, 0.1, 0.01), (200, 0.05, 0.001)] {
            let mut chance = (1.0_f64 - p).powi(n.cast_signed());
            let mut missed = 0.0;
            for k in 0..=n {
                if upper(f64::from(k), f64::from(n), level) < p {
                    missed += chance;
                }
                chance *= f64::from(n - k) / f64::from(k + 1) * p / (1.0 - p);
            }
            assert!(missed <= level, "{n}, {p}: {missed}");
        }
        assert!((upper(0.0, 0.0, 0.01) - 1.0).abs() < 1e-12, "no record, no bound");
    }
}
