//! How like the original a candidate answers, on held-out samples.
//!
//! A *row* is one vector along an output's last axis: one per sample for a classifier, one per time
//! step for a sequence model. Intervals are Wilson score intervals at 95 % (E. B. Wilson, 1927), which
//! stay inside 0..1 and stay honest near its ends.

use serde::{Deserialize, Serialize};

/// The normal quantile of a two-sided 95 % interval.
const Z95: f64 = 1.959_963_984_540_054;
/// Two answers of a regression agree when they differ by no more than this share.
pub const REGRESSION_TOLERANCE: f64 = 0.05;

/// A share with its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Share {
    /// The share observed, 0 to 1.
    pub value: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end of the interval.
    pub high: f64,
}

impl Share {
    /// `hits` of `of`, with its Wilson interval; the whole of 0..1 where nothing was seen.
    ///
    /// centre = (p + z²/2n) / (1 + z²/n), half = z/(1 + z²/n) · √(p(1−p)/n + z²/4n²).
    pub fn wilson(hits: u64, of: u64) -> Self {
        if of == 0 {
            return Self { value: 0.0, low: 0.0, high: 1.0 };
        }
        let n = of as f64;
        let p = hits as f64 / n;
        let z2 = Z95 * Z95;
        let scale = 1.0 / (1.0 + z2 / n);
        let centre = scale * (p + z2 / (2.0 * n));
        let half = scale * Z95 * (p * (1.0 - p) / n + z2 / (4.0 * n * n)).sqrt();
        Self { value: p, low: (centre - half).max(0.0), high: (centre + half).min(1.0) }
    }
}

/// Accuracy against labels, where the data has them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Accuracy {
    /// Of the original.
    pub original: Share,
    /// Of the candidate.
    pub candidate: Share,
}

/// What was measured of a candidate on held-out samples.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct QualityReport {
    /// Whether this is a rough comparison on calibration samples that were not fitted, made to rank
    /// candidates, and not the verdict on held-out samples.
    pub screening: bool,
    /// The output that was compared.
    pub output: String,
    /// Samples compared.
    pub samples: u64,
    /// Whether judging stopped early because the floor was out of reach.
    pub stopped_early: bool,
    /// Share of rows with the original's answer.
    pub agreement: Share,
    /// Mean Kullback-Leibler divergence of the candidate from the original, in nats.
    pub kl_mean: f64,
    /// Mean cosine between the two outputs.
    pub cosine_mean: f64,
    /// Against the labels.
    pub accuracy: Option<Accuracy>,
}

/// Compares rows as they come; memory does not grow with them.
#[derive(Debug, Clone, Default)]
pub struct Judge {
    rows: u64,
    agree: u64,
    kl: f64,
    cosine: f64,
    labelled: u64,
    original_right: u64,
    candidate_right: u64,
}

impl Judge {
    /// Takes one row of the original and of the candidate, of equal length, and the label if any.
    pub fn push(&mut self, original: &[f32], candidate: &[f32], label: Option<i64>) {
        self.rows += 1;
        self.cosine += cosine(original, candidate);
        if original.len() < 2 {
            self.agree += u64::from(scalars_agree(original, candidate));
            return;
        }
        let (a, b) = (argmax(original), argmax(candidate));
        self.agree += u64::from(a.is_some() && a == b);
        self.kl += divergence(original, candidate);
        if let Some(label) = label.and_then(|l| usize::try_from(l).ok()) {
            self.labelled += 1;
            self.original_right += u64::from(a == Some(label));
            self.candidate_right += u64::from(b == Some(label));
        }
    }

    /// Share of agreeing rows so far.
    pub fn agreement(&self) -> Share {
        Share::wilson(self.agree, self.rows)
    }

    /// The report.
    pub fn report(&self, output: &str, samples: u64, stopped_early: bool) -> QualityReport {
        let n = self.rows.max(1) as f64;
        QualityReport {
            screening: false,
            output: output.to_owned(),
            samples,
            stopped_early,
            agreement: self.agreement(),
            kl_mean: self.kl / n,
            cosine_mean: self.cosine / n,
            accuracy: (self.labelled > 0).then(|| Accuracy {
                original: Share::wilson(self.original_right, self.labelled),
                candidate: Share::wilson(self.candidate_right, self.labelled),
            }),
        }
    }
}

/// The index of the largest element, the first of equals; `None` where one is not a number.
pub fn argmax(row: &[f32]) -> Option<usize> {
    if row.iter().any(|v| v.is_nan()) {
        return None;
    }
    row.iter()
        .enumerate()
        .reduce(|best, next| if next.1 > best.1 { next } else { best })
        .map(|(at, _)| at)
}

/// The cosine between two vectors; 1 for two zero vectors, 0 for one or for what is not finite.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let (mut ab, mut aa, mut bb) = (0.0f64, 0.0f64, 0.0f64);
    for (&x, &y) in a.iter().zip(b) {
        let (x, y) = (f64::from(x), f64::from(y));
        ab += x * y;
        aa += x * x;
        bb += y * y;
    }
    let norm = (aa * bb).sqrt();
    if aa == 0.0 && bb == 0.0 {
        1.0
    } else if norm.is_finite() && norm > 0.0 {
        ab / norm
    } else {
        0.0
    }
}

/// KL(original ‖ candidate) in nats. Rows that are no distributions count as logits.
pub fn divergence(original: &[f32], candidate: &[f32]) -> f64 {
    const SMALLEST: f64 = 1e-9;
    let (p, q) = (distribution(original), distribution(candidate));
    p.iter()
        .zip(&q)
        .filter(|(p, _)| **p > 0.0)
        .map(|(p, q)| p * (p / q.max(SMALLEST)).ln())
        .sum::<f64>()
        .max(0.0)
}

fn distribution(row: &[f32]) -> Vec<f64> {
    let sum: f64 = row.iter().map(|v| f64::from(*v)).sum();
    if (sum - 1.0).abs() < 1e-3 && row.iter().all(|v| *v >= 0.0) {
        return row.iter().map(|v| f64::from(*v)).collect();
    }
    let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exp: Vec<f64> = row.iter().map(|v| f64::from(v - top).exp()).collect();
    let sum: f64 = exp.iter().sum();
    exp.into_iter().map(|e| e / sum).collect()
}

/// Probabilities agree on the same side of one half, other numbers within [`REGRESSION_TOLERANCE`].
pub(crate) fn scalars_agree(original: &[f32], candidate: &[f32]) -> bool {
    let (Some(&a), Some(&b)) = (original.first(), candidate.first()) else {
        return false;
    };
    let probability = |v: f32| (0.0..=1.0).contains(&v);
    if probability(a) && probability(b) {
        return (a >= 0.5) == (b >= 0.5);
    }
    f64::from((a - b).abs()) <= REGRESSION_TOLERANCE * f64::from(a.abs().max(b.abs()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn wilson_matches_the_published_example() {
        // 81 of 263: 0.2553 .. 0.3662 (Newcombe 1998, method 3).
        let share = Share::wilson(81, 263);
        assert!((share.low - 0.2553).abs() < 1e-4, "{share:?}");
        assert!((share.high - 0.3662).abs() < 1e-4, "{share:?}");
    }

    #[test]
    fn nothing_seen_is_the_whole_interval_and_all_hits_is_not_certainty() {
        assert_eq!((Share::wilson(0, 0).low, Share::wilson(0, 0).high), (0.0, 1.0));
        let all = Share::wilson(20, 20);
        assert!(all.low < 0.9 && all.high > 0.999);
    }

    proptest! {
        #[test]
        fn wilson_contains_the_share_and_stays_in_range(of in 1u64..10_000, part in 0.0f64..=1.0) {
            let share = Share::wilson((of as f64 * part) as u64, of);
            prop_assert!(0.0 <= share.low && share.low <= share.value + 1e-12);
            prop_assert!(share.value <= share.high + 1e-12 && share.high <= 1.0);
        }
    }

    #[test]
    fn an_answer_that_is_not_a_number_never_agrees() {
        let mut judge = Judge::default();
        judge.push(&[0.1, 0.9], &[f32::NAN, 0.9], None);
        assert_eq!(judge.agreement().value, 0.0);
        assert_eq!(cosine(&[1.0], &[f32::INFINITY]), 0.0);
    }

    #[test]
    fn equal_outputs_agree_with_no_divergence() {
        let mut judge = Judge::default();
        judge.push(&[0.2, 0.8], &[0.2, 0.8], Some(0));
        let report = judge.report("y", 1, false);
        assert_eq!(report.agreement.value, 1.0);
        assert!(report.kl_mean.abs() < 1e-12);
        assert!((report.cosine_mean - 1.0).abs() < 1e-9);
        assert_eq!(report.accuracy.unwrap().candidate.value, 0.0);
    }

    #[test]
    fn divergence_is_of_probabilities_whether_given_as_such_or_as_logits() {
        let p = [0.5f32, 0.5];
        let q = [0.9f32, 0.1];
        let expected = 0.5 * (0.5f64 / 0.9).ln() + 0.5 * (0.5f64 / 0.1).ln();
        assert!((divergence(&p, &q) - expected).abs() < 1e-6);
        let logits: Vec<f32> = q.iter().map(|v| v.ln() + 3.0).collect();
        assert!((divergence(&[0.0, 0.0], &logits) - expected).abs() < 1e-6);
    }

    #[test]
    fn single_probabilities_agree_by_side_and_other_numbers_by_tolerance() {
        assert!(scalars_agree(&[0.51], &[0.99]));
        assert!(!scalars_agree(&[0.49], &[0.51]));
        assert!(scalars_agree(&[100.0], &[104.0]));
        assert!(!scalars_agree(&[100.0], &[106.0]));
    }
}
