//! Whether two samples of counts can come from one distribution, and how far apart they are.

use std::f64::consts::{E, PI};

/// Distance of two samples in cells: the population stability index Σ (p − q) ln(p/q), the symmetric form
/// of Kullback and Leibler's divergence (H. Jeffreys, 1946), with half an observation added to each cell so
/// that an empty one gives a finite number.
pub(super) fn psi(seen: &[f64], reference: &[f64]) -> f64 {
    let cells = seen.len() as f64;
    let share =
        |counts: &[f64], count: f64| (count + 0.5) / (counts.iter().sum::<f64>() + 0.5 * cells);
    let term = |(s, r): (&f64, &f64)| {
        let (p, q) = (share(seen, *s), share(reference, *r));
        (p - q) * (p / q).ln()
    };
    seen.iter().zip(reference).map(term).sum()
}

/// Largest distance between the two distribution functions, looked at where cells end. At most
/// Kolmogorov and Smirnov's of the numbers themselves.
pub(super) fn ks(seen: &[f64], reference: &[f64]) -> f64 {
    let (n, m) = (seen.iter().sum::<f64>(), reference.iter().sum::<f64>());
    let (mut below_s, mut below_r, mut largest) = (0.0, 0.0, 0.0_f64);
    for (s, r) in seen.iter().zip(reference) {
        below_s += s / n;
        below_r += r / m;
        largest = largest.max((below_s - below_r).abs());
    }
    largest
}

/// The distance that [`ks`] exceeds with chance `level` at most when both samples, of `n` and `m`, have
/// one distribution: P(D > d) ≤ C exp(−2 d² nm/(n + m)), the inequality of Dvoretzky, Kiefer and
/// Wolfowitz for two samples. C = e serves all n = m, and 2 wherever it was computed or conjectured for
/// n ≠ m (F. Wei and R. M. Dudley, 2012); e is taken for all. Ties and cells only make D smaller.
pub(super) fn ks_threshold(n: f64, m: f64, level: f64) -> f64 {
    ((E / level).ln() * (n + m) / (2.0 * n * m)).sqrt()
}

/// Pearson's chi-square of two samples: Σ (s √(m/n) − r √(n/m))² / (s + r), which Yurdakul's (2018)
/// approximation of the stability index leads to, PSI ≈ χ² (1/n + 1/m), and which keeps to that
/// distribution where small counts make the index itself exceed it.
pub(super) fn chi_square(seen: &[f64], reference: &[f64]) -> f64 {
    let (n, m) = (seen.iter().sum::<f64>(), reference.iter().sum::<f64>());
    let (up, down) = ((m / n).sqrt(), (n / m).sqrt());
    let term = |(s, r): (&f64, &f64)| {
        if s + r > 0.0 { (s * up - r * down).powi(2) / (s + r) } else { 0.0 }
    };
    seen.iter().zip(reference).map(term).sum()
}

/// The number that a chi-square variable of `df` degrees of freedom exceeds with chance `level`, by
/// bisection of [`chi_square_tail`].
pub(super) fn chi_square_threshold(df: f64, level: f64) -> f64 {
    let (mut low, mut high) = (0.0, df + 10.0);
    while chi_square_tail(df, high) > level && high < 1e9 {
        high *= 2.0;
    }
    for _ in 0..200 {
        let middle = 0.5 * (low + high);
        if chi_square_tail(df, middle) > level { low = middle } else { high = middle }
    }
    high
}

/// P(X > x) for a chi-square variable: the regularized upper incomplete gamma function Q(df/2, x/2), by its
/// series below the middle and Lentz's continued fraction above (Abramowitz and Stegun 6.5.29, 6.5.31).
pub(super) fn chi_square_tail(df: f64, x: f64) -> f64 {
    let (a, x) = (0.5 * df, 0.5 * x);
    if x <= 0.0 {
        return 1.0;
    }
    let scale = (a * x.ln() - x - ln_gamma(a)).exp();
    if x < a + 1.0 {
        let (mut term, mut sum, mut k) = (1.0 / a, 1.0 / a, a);
        while term > sum * 1e-16 {
            k += 1.0;
            term *= x / k;
            sum += term;
        }
        return 1.0 - scale * sum;
    }
    scale * gamma_fraction(a, x)
}

fn gamma_fraction(a: f64, x: f64) -> f64 {
    const LEAST: f64 = 1e-300;
    let mut b = x + 1.0 - a;
    let mut c = 1.0 / LEAST;
    let mut d = 1.0 / b;
    let mut value = d;
    for i in 1..10_000 {
        let i = f64::from(i);
        let an = -i * (i - a);
        b += 2.0;
        d = an * d + b;
        d = 1.0 / if d.abs() < LEAST { LEAST } else { d };
        c = b + an / c;
        c = if c.abs() < LEAST { LEAST } else { c };
        value *= c * d;
        if (c * d - 1.0).abs() < 1e-15 {
            break;
        }
    }
    value
}

/// ln Γ(x) for x > 0: Stirling's series above 10, reached by Γ(x + 1) = x Γ(x).
fn ln_gamma(x: f64) -> f64 {
    let (mut x, mut product) = (x, 1.0);
    while x < 10.0 {
        product *= x;
        x += 1.0;
    }
    let x2 = x * x;
    let series = (1.0 / 12.0 - (1.0 / 360.0 - (1.0 / 1260.0 - 1.0 / 1680.0 / x2) / x2) / x2) / x;
    (x - 0.5) * x.ln() - x + 0.5 * (2.0 * PI).ln() + series - f64::ln(product)
}

/// As many independent observations as `n` whose neighbours were seen to correlate by `rho`: n (1 − ρ)/(1 + ρ),
/// what the variance of a mean over a first-order autoregression asks for, with ρ half a standard error of
/// 1/√n above what was seen: taken as it was seen, it is too low as often as too high, and a level of one in
/// five hundred does not forgive that.
pub(super) fn effective(n: f64, rho: f64) -> f64 {
    let rho = (rho + 0.5 / n.sqrt()).min(1.0);
    if rho <= 0.0 {
        return n;
    }
    (n * (1.0 - rho) / (1.0 + rho)).clamp(1.0, n)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(got: f64, wanted: f64) {
        assert!((got - wanted).abs() <= 1e-10 * wanted.abs(), "{got:e} is not {wanted:e}");
    }

    const SEEN: [f64; 4] = [30.0, 10.0, 45.0, 15.0];
    const REFERENCE: [f64; 4] = [100.0, 120.0, 130.0, 50.0];

    /// SciPy 1.17 and NumPy 2.4: the sum written out, `ks_2samp`, `chi2_contingency`.
    #[test]
    fn distances_of_two_samples_match_a_reference() {
        near(psi(&SEEN, &REFERENCE), 0.262_739_574_657_922_97);
        near(ks(&SEEN, &REFERENCE), 0.15);
        near(chi_square(&SEEN, &REFERENCE), 17.032_967_032_967_036);
        assert_eq!((psi(&[1.0], &[7.0]), ks(&[1.0], &[7.0])), (0.0, 0.0));
        let nothing_common = [[0.0, 9.0], [9.0, 0.0]];
        near(ks(&nothing_common[0], &nothing_common[1]), 1.0);
        assert!(psi(&nothing_common[0], &nothing_common[1]).is_finite());
    }

    /// SciPy 1.17: `chi2.isf`, `chi2.sf`.
    #[test]
    fn the_chi_square_distribution_matches_tables() {
        near(chi_square_threshold(1.0, 0.05), 3.841_458_820_694_128_5);
        near(chi_square_threshold(9.0, 1e-3), 27.877_164_871_256_575);
        near(chi_square_threshold(255.0, 2e-5), 358.522_781_936_837_3);
        near(chi_square_threshold(11.0, 1e-8), 59.823_273_475_052_43);
        near(chi_square_tail(1.0, 0.1), 0.751_829_634_045_849_2);
        near(chi_square_tail(4.0, 30.0), 4.894_437_128_029_217e-6);
        near(chi_square_tail(255.0, 200.0), 0.995_425_444_541_952);
        near(chi_square_tail(3.0, 100.0), 1.554_159_431_389_602_6e-21);
    }

    #[test]
    fn the_distance_that_chance_brings_falls_with_both_samples() {
        near(ks_threshold(200.0, 500.0, 1e-3), ((E * 1e3).ln() * 700.0 / 2e5).sqrt());
        assert!(ks_threshold(200.0, 500.0, 1e-3) > ks_threshold(400.0, 500.0, 1e-3));
        assert!(ks_threshold(200.0, 500.0, 1e-3) > ks_threshold(200.0, 900.0, 1e-3));
    }

    #[test]
    fn neighbours_that_resemble_each_other_count_for_fewer() {
        near(effective(400.0, 0.475), 400.0 / 3.0);
        near(effective(400.0, 0.0), 400.0 * 0.975 / 1.025);
        near(effective(400.0, -0.025), 400.0);
        near(effective(400.0, -0.9), 400.0);
        near(effective(400.0, 1.0), 1.0);
    }
}
