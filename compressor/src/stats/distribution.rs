//! The normal and binomial distributions, as far as the tests need them.

use std::f64::consts::{FRAC_1_SQRT_2, LN_2, PI};

/// The largest n for which ln n! is summed; Stirling's series has full precision above it.
const SUMMED: u64 = 15;

/// Φ(x), the standard normal distribution function; absolute error below 1e-14.
pub fn normal_cdf(x: f64) -> f64 {
    0.5 * erfc(-x * FRAC_1_SQRT_2)
}

/// Φ⁻¹(p); −∞ at 0, ∞ at 1, NaN outside. Found by Newton's method on [`normal_cdf`] from Winitzki's
/// closed form (S. Winitzki, 2008), whose relative error is below 2e-3.
pub fn normal_quantile(p: f64) -> f64 {
    if !(0.0..=1.0).contains(&p) {
        return f64::NAN;
    }
    if p == 0.0 || p == 1.0 {
        return if p == 0.0 { f64::NEG_INFINITY } else { f64::INFINITY };
    }
    if p > 0.5 {
        return -normal_quantile(1.0 - p);
    }
    let mut x = winitzki(p);
    for _ in 0..20 {
        let density = (-0.5 * x * x).exp() / (2.0 * PI).sqrt();
        // The step of Newton's method on ln Φ, which converges in the far tail as well.
        let value = normal_cdf(x);
        let step = value * (value / p).ln() / density;
        x -= step;
        if step.abs() <= 1e-15 * x.abs().max(1e-3) {
            break;
        }
    }
    x
}

fn winitzki(p: f64) -> f64 {
    const A: f64 = 0.147;
    let x = 2.0 * p - 1.0;
    // 1 − x² without cancellation, for p near 0.
    let log = (4.0 * p * (1.0 - p)).ln();
    let half = 2.0 / (PI * A) + 0.5 * log;
    let magnitude = ((half * half - log / A).sqrt() - half).max(0.0).sqrt();
    x.signum() * magnitude * std::f64::consts::SQRT_2
}

/// 1 − erf(x), relative error near 1e-15: the Taylor series where it does not cancel, else Lentz's
/// continued fraction (Abramowitz and Stegun 7.1.6 and 7.1.14).
pub fn erfc(x: f64) -> f64 {
    if x < 0.0 {
        return 2.0 - erfc(-x);
    }
    if x < 2.0 { 1.0 - erf_series(x) } else { erfc_fraction(x) }
}

fn erf_series(x: f64) -> f64 {
    let (mut term, mut sum, mut n) = (x, x, 0.0);
    while term > sum * 1e-17 {
        n += 1.0;
        term *= 2.0 * x * x / (2.0 * n + 1.0);
        sum += term;
    }
    sum * 2.0 / PI.sqrt() * (-x * x).exp()
}

fn erfc_fraction(x: f64) -> f64 {
    // x + (1/2)/(x + (2/2)/(x + (3/2)/(x + …))), from the inside.
    let deepest = 200;
    let inner = (1..=deepest).rev().fold(x, |below, k| x + 0.5 * f64::from(k) / below);
    (-x * x).exp() / (PI.sqrt() * inner)
}

/// ln P(X = k) for X ~ Binomial(n, 1/2), by the saddle-point form of C. Loader (2000): the large terms
/// of ln n! are cancelled on paper, so that precision does not fall with n.
pub fn ln_half_binomial(n: u64, k: u64) -> f64 {
    if k > n {
        return f64::NEG_INFINITY;
    }
    if k == 0 || k == n {
        return -(n as f64) * LN_2;
    }
    let (nf, kf) = (n as f64, k as f64);
    let rest = nf - kf;
    stirling_error(n)
        - stirling_error(k)
        - stirling_error(n - k)
        - deviance(kf, 0.5 * nf)
        - deviance(rest, 0.5 * nf)
        + 0.5 * (nf / (2.0 * PI * kf * rest)).ln()
}

/// ln n! minus Stirling's (n + ½) ln n − n + ½ ln 2π.
fn stirling_error(n: u64) -> f64 {
    let x = n as f64;
    if n <= SUMMED {
        let exact: f64 = (2..=n).map(|i| (i as f64).ln()).sum();
        return exact - ((x + 0.5) * x.ln() - x + 0.5 * (2.0 * PI).ln());
    }
    let x2 = x * x;
    (1.0 / 12.0
        - (1.0 / 360.0 - (1.0 / 1260.0 - (1.0 / 1680.0 - 1.0 / 1188.0 / x2) / x2) / x2) / x2)
        / x
}

/// x ln(x/m) + m − x, without cancellation where x is near m.
fn deviance(x: f64, m: f64) -> f64 {
    let gap = x - m;
    if gap.abs() >= 0.1 * (x + m) {
        return x * (x / m).ln() + m - x;
    }
    // With v = (x − m)/(x + m): x ln(x/m) = 2x (v + v³/3 + v⁵/5 + …).
    let v = gap / (x + m);
    let (mut sum, mut power, mut k) = (gap * v, 2.0 * x * v, 1.0);
    loop {
        power *= v * v;
        k += 2.0;
        let next = sum + power / k;
        if next == sum {
            return sum;
        }
        sum = next;
    }
}

/// P(X ≤ k) for X ~ Binomial(n, 1/2).
pub fn half_binomial_cdf(n: u64, k: u64) -> f64 {
    if k >= n {
        return 1.0;
    }
    // The shorter tail is summed; the other is its complement by symmetry.
    if 2 * k >= n { 1.0 - lower_tail(n, n - k - 1) } else { lower_tail(n, k) }
}

/// P(X ≤ k) for k below the middle: terms fall from k downwards, each by i / (n − i + 1).
fn lower_tail(n: u64, k: u64) -> f64 {
    let (mut sum, mut term) = (1.0, 1.0);
    for i in (1..=k).rev() {
        term *= i as f64 / (n - i + 1) as f64;
        sum += term;
        if term < sum * 1e-18 {
            break;
        }
    }
    (ln_half_binomial(n, k) + f64::ln(sum)).exp().min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(a: f64, b: f64, relative: f64) {
        assert!((a - b).abs() <= relative * b.abs(), "{a:e} is not {b:e}");
    }

    /// SciPy 1.17: `norm.cdf`, `norm.ppf`.
    #[test]
    fn the_normal_distribution_matches_tables() {
        near(normal_cdf(1.959_963_984_540_054), 0.975, 1e-14);
        near(normal_cdf(-6.0), 9.865_876_450_376_98e-10, 1e-12);
        near(normal_cdf(-20.0), 2.753_624_118_606_233e-89, 1e-11);
        near(normal_cdf(0.3), 0.617_911_422_188_952_7, 1e-14);
        near(normal_quantile(0.95), 1.644_853_626_951_472_2, 1e-13);
        near(normal_quantile(0.8), 0.841_621_233_572_914_3, 1e-13);
        near(normal_quantile(1e-10), -6.361_340_902_404_056, 1e-12);
        assert!(normal_quantile(0.5).abs() < 1e-12);
        assert_eq!(normal_quantile(0.0), f64::NEG_INFINITY);
        assert!(normal_quantile(-0.1).is_nan());
    }

    #[test]
    fn small_binomials_are_what_counting_gives() {
        // 1, 5, 10, 10, 5, 1 of 32.
        for (k, ways) in [1.0, 5.0, 10.0, 10.0, 5.0, 1.0].into_iter().enumerate() {
            near(ln_half_binomial(5, k as u64).exp(), ways / 32.0, 1e-13);
        }
        near(half_binomial_cdf(5, 2), 0.5, 1e-14);
        near(half_binomial_cdf(5, 4), 31.0 / 32.0, 1e-14);
        assert_eq!(half_binomial_cdf(5, 5), 1.0);
        assert_eq!(ln_half_binomial(5, 6), f64::NEG_INFINITY);
    }

    #[test]
    fn all_terms_of_a_large_binomial_add_up_to_one() {
        for n in [30u64, 1001, 20_000] {
            let sum: f64 = (0..=n).map(|k| ln_half_binomial(n, k).exp()).sum();
            near(sum, 1.0, 1e-12);
        }
    }
}
