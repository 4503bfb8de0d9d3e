//! How like the original a candidate answers, on held-out samples.
//!
//! Every f32 output is compared, each in the way that its numbers ask for ([`Comparison`]), and the worst of them
//! stands for the candidate. A *row* is one vector along an output's class axis: one per sample for a
//! classifier, one per time step for a sequence model, one per pixel for a segmentation. Rows of one
//! sample depend on each other, so a sample counts once, with the share of its rows that agree. Intervals are Wilson score
//! intervals at 95 % (E. B. Wilson, 1927), which stay inside 0..1 and stay honest near its ends; with shares for
//! hits they are wider than they need be, never narrower.

use serde::{Deserialize, Serialize};

use crate::metric;
use crate::stats::McNemar;

/// The normal quantile of a two-sided 95 % interval.
const Z95: f64 = 1.959_963_984_540_054;
/// Two answers of a regression agree when they differ by no more than this share of the larger one.
pub const REGRESSION_TOLERANCE: f64 = 0.05;
/// Two embeddings agree when the cosine between them is at least this.
pub const EMBEDDING_COSINE: f64 = 0.95;
/// The least probability that a class is given when rows are compared, so that a divergence is finite.
const LEAST_PROBABILITY: f64 = 1e-9;

/// When a row of an output counts as the original's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Comparison {
    /// The same class has the largest number.
    Class,
    /// Every probability lies on the same side of one half.
    Sides,
    /// The cosine is at least [`EMBEDDING_COSINE`].
    Direction,
    /// The distance is at most [`REGRESSION_TOLERANCE`] of the longer of the two (Euclidean).
    Value,
}

impl std::fmt::Display for Comparison {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Class => f.write_str("the same class is the likeliest"),
            Self::Sides => f.write_str("every probability is on the same side of one half"),
            Self::Direction => write!(f, "the cosine is at least {EMBEDDING_COSINE}"),
            Self::Value => {
                write!(f, "the distance is at most {REGRESSION_TOLERANCE} of the length")
            }
        }
    }
}

/// How one output is compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compared {
    /// The output.
    pub output: String,
    /// When a row agrees.
    pub by: Comparison,
    /// Axis along which rows lie; none where a sample's whole answer is one row.
    pub axis: Option<usize>,
}

/// One sample's answer at one output: its shape, the sample axis included, and its elements in C order.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Answer {
    /// Extents.
    pub shape: Vec<usize>,
    /// Elements.
    pub data: Vec<f32>,
}

impl Answer {
    /// Bytes that the elements take.
    pub fn bytes(&self) -> usize {
        self.data.len() * size_of::<f32>()
    }
}

impl Answer {
    /// Extents before the axis, along it and behind it; one row for a whole answer.
    fn layout(&self, axis: Option<usize>) -> (usize, usize, usize) {
        match axis.filter(|axis| *axis < self.shape.len()) {
            None => (1, self.data.len(), 1),
            Some(axis) => {
                let product = |dims: &[usize]| dims.iter().product::<usize>();
                (product(&self.shape[..axis]), self.shape[axis], product(&self.shape[axis + 1..]))
            }
        }
    }

    /// Calls `each` with every row along `axis`, in order.
    pub fn rows(&self, axis: Option<usize>, each: &mut dyn FnMut(usize, &[f32])) {
        let (outer, width, inner) = self.layout(axis);
        let mut row = Vec::with_capacity(width);
        for number in 0..outer * inner {
            let (block, within) = (number / inner.max(1), number % inner.max(1));
            let start = block * width * inner + within;
            row.clear();
            row.extend(self.data.iter().skip(start).step_by(inner.max(1)).take(width));
            each(number, &row);
        }
    }

    fn row_count(&self, axis: Option<usize>) -> usize {
        let (outer, _, inner) = self.layout(axis);
        outer * inner
    }
}

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
    pub fn wilson(hits: u64, of: u64) -> Self {
        Self::of(hits as f64, of)
    }

    /// As [`Self::wilson`], where each of the `of` samples adds a share of 0 to 1 to `hits`.
    ///
    /// centre = (p + z²/2n) / (1 + z²/n), half = z/(1 + z²/n) · √(p(1−p)/n + z²/4n²).
    pub fn of(hits: f64, of: u64) -> Self {
        if of == 0 {
            return Self { value: 0.0, low: 0.0, high: 1.0 };
        }
        let n = of as f64;
        let p = (hits / n).clamp(0.0, 1.0);
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
    /// Samples that only the original has right.
    pub lost: u64,
    /// Samples that only the candidate has right.
    pub gained: u64,
    /// The exact test of any difference between the two.
    pub mcnemar: McNemar,
}

/// What was measured of one output.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OutputQuality {
    /// The output, and how it was compared.
    #[serde(flatten)]
    pub compared: Compared,
    /// Mean share of a sample's rows with the original's answer.
    pub agreement: Share,
    /// Mean Kullback-Leibler divergence of the candidate from the original, in nats; 0 where rows are no classes.
    pub kl_mean: f64,
    /// Mean cosine between the two outputs' rows.
    pub cosine_mean: f64,
    /// Against the labels.
    pub accuracy: Option<Accuracy>,
}

/// What was measured of a candidate on held-out samples.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct QualityReport {
    /// Whether this is a rough comparison on calibration samples that were not fitted, made to rank
    /// candidates, and not the verdict on held-out samples.
    pub screening: bool,
    /// The output that agrees least; the numbers here are its.
    pub output: String,
    /// Samples compared.
    pub samples: u64,
    /// Whether judging stopped early because the floor was out of reach.
    pub stopped_early: bool,
    /// Mean share of a sample's rows with the original's answer.
    pub agreement: Share,
    /// Mean Kullback-Leibler divergence of the candidate from the original, in nats.
    pub kl_mean: f64,
    /// Mean cosine between the two outputs.
    pub cosine_mean: f64,
    /// Against the labels, where an output gives classes.
    pub accuracy: Option<Accuracy>,
    /// Every output that was compared.
    pub outputs: Vec<OutputQuality>,
    /// What held-out samples prove at the goal's margin: of agreement, and of the metric that was asked for; empty for
    /// a screening, and where the goal asks for nothing.
    #[serde(default)]
    pub tests: Vec<metric::Comparison>,
}

/// Compares samples as they come, and keeps one number of each for every output.
#[derive(Debug, Clone)]
pub struct Judge {
    samples: u64,
    outputs: Vec<OutputJudge>,
}

impl Judge {
    /// Of these outputs, with nothing seen.
    pub fn new(compared: &[Compared]) -> Self {
        Self { samples: 0, outputs: compared.iter().cloned().map(OutputJudge::new).collect() }
    }

    /// Takes one sample's answers, in the outputs' order, and its label if any. What the candidate did not answer, or
    /// answered in another shape, disagrees.
    pub fn push(&mut self, original: &[Answer], candidate: &[Answer], label: Option<i64>) {
        self.samples += 1;
        let nothing = Answer::default();
        for (at, output) in self.outputs.iter_mut().enumerate() {
            let original = original.get(at).unwrap_or(&nothing);
            output.push(original, candidate.get(at).unwrap_or(&nothing), label);
        }
    }

    /// Agreement so far of the output that agrees least.
    pub fn agreement(&self) -> Share {
        let shares = self.outputs.iter().map(|o| Share::of(o.agree, self.samples));
        shares.min_by(|a, b| a.value.total_cmp(&b.value)).unwrap_or_else(|| Share::of(0.0, 0))
    }

    /// For each sample, the share of its rows that agree, at the output that agrees least.
    pub fn shares(&self) -> &[f64] {
        let worst = self.outputs.iter().min_by(|a, b| a.agree.total_cmp(&b.agree));
        worst.map_or(&[], |output| &output.shares)
    }

    /// The report.
    pub fn report(&self, stopped_early: bool) -> QualityReport {
        let outputs: Vec<OutputQuality> =
            self.outputs.iter().map(|o| o.quality(self.samples)).collect();
        let worst = outputs.iter().min_by(|a, b| a.agreement.value.total_cmp(&b.agreement.value));
        QualityReport {
            screening: false,
            output: worst.map_or_else(String::new, |o| o.compared.output.clone()),
            samples: self.samples,
            stopped_early,
            agreement: self.agreement(),
            kl_mean: worst.map_or(0.0, |o| o.kl_mean),
            cosine_mean: worst.map_or(0.0, |o| o.cosine_mean),
            accuracy: outputs.iter().find_map(|o| o.accuracy),
            outputs,
            tests: Vec::new(),
        }
    }
}

#[derive(Debug, Clone)]
struct OutputJudge {
    compared: Compared,
    rows: u64,
    agree: f64,
    shares: Vec<f64>,
    kl: f64,
    cosine: f64,
    labelled: u64,
    original_right: u64,
    candidate_right: u64,
    lost: u64,
    gained: u64,
}

impl OutputJudge {
    fn new(compared: Compared) -> Self {
        Self {
            compared,
            rows: 0,
            agree: 0.0,
            shares: Vec::new(),
            kl: 0.0,
            cosine: 0.0,
            labelled: 0,
            original_right: 0,
            candidate_right: 0,
            lost: 0,
            gained: 0,
        }
    }

    fn push(&mut self, original: &Answer, candidate: &Answer, label: Option<i64>) {
        let (by, axis) = (self.compared.by, self.compared.axis);
        let rows = original.row_count(axis);
        self.rows += rows as u64;
        if original.shape != candidate.shape || rows == 0 {
            self.shares.push(0.0);
            if by == Comparison::Class {
                self.kl += rows as f64 * most_divergence();
            }
            return;
        }
        let label = label.filter(|_| rows == 1 && by == Comparison::Class);
        let label = label.and_then(|l| usize::try_from(l).ok());
        let mut theirs = Vec::with_capacity(candidate.data.len());
        candidate.rows(axis, &mut |_, row| theirs.extend_from_slice(row));
        let width = theirs.len() / rows;
        let mut agreeing = 0u64;
        original.rows(axis, &mut |number, a| {
            let b = &theirs[number * width..(number + 1) * width];
            agreeing += u64::from(agrees(by, a, b));
            self.cosine += cosine(a, b);
            if by == Comparison::Class {
                self.kl += divergence(a, b);
            }
            if let Some(label) = label {
                let (before, after) = (argmax(a) == Some(label), argmax(b) == Some(label));
                self.labelled += 1;
                self.original_right += u64::from(before);
                self.candidate_right += u64::from(after);
                self.lost += u64::from(before && !after);
                self.gained += u64::from(after && !before);
            }
        });
        let share = agreeing as f64 / rows as f64;
        self.agree += share;
        self.shares.push(share);
    }

    fn quality(&self, samples: u64) -> OutputQuality {
        let n = self.rows.max(1) as f64;
        OutputQuality {
            compared: self.compared.clone(),
            agreement: Share::of(self.agree, samples),
            kl_mean: self.kl / n,
            cosine_mean: self.cosine / n,
            accuracy: (self.labelled > 0).then(|| Accuracy {
                original: Share::wilson(self.original_right, self.labelled),
                candidate: Share::wilson(self.candidate_right, self.labelled),
                lost: self.lost,
                gained: self.gained,
                mcnemar: McNemar::exact(self.lost, self.gained),
            }),
        }
    }
}

/// Whether two rows of equal length are the same answer. One that is not a number never is.
fn agrees(by: Comparison, original: &[f32], candidate: &[f32]) -> bool {
    if original.iter().chain(candidate).any(|v| v.is_nan()) {
        return false;
    }
    match by {
        Comparison::Class => argmax(original) == argmax(candidate),
        Comparison::Sides => {
            original.iter().zip(candidate).all(|(a, b)| (*a >= 0.5) == (*b >= 0.5))
        }
        Comparison::Direction => cosine(original, candidate) >= EMBEDDING_COSINE,
        Comparison::Value => {
            let length = |v: &mut dyn Iterator<Item = f64>| v.map(|v| v * v).sum::<f64>().sqrt();
            let distance = length(
                &mut original.iter().zip(candidate).map(|(a, b)| f64::from(*a) - f64::from(*b)),
            );
            let longer = length(&mut original.iter().map(|v| f64::from(*v)))
                .max(length(&mut candidate.iter().map(|v| f64::from(*v))));
            distance <= REGRESSION_TOLERANCE * longer
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

/// KL(original ‖ candidate) in nats. Rows that are no distributions count as logits. Rows of which no distribution
/// can be made, because they hold NaN or nothing but −∞, are as far apart as rows can be.
pub fn divergence(original: &[f32], candidate: &[f32]) -> f64 {
    let (p, q) = (distribution(original), distribution(candidate));
    if p.iter().chain(&q).any(|share| !share.is_finite()) {
        return most_divergence();
    }
    p.iter()
        .zip(&q)
        .filter(|(p, _)| **p > 0.0)
        .map(|(p, q)| p * (p / q.max(LEAST_PROBABILITY)).ln())
        .sum::<f64>()
        .max(0.0)
}

/// The divergence of rows that have nothing in common: −ln [`LEAST_PROBABILITY`].
fn most_divergence() -> f64 {
    -LEAST_PROBABILITY.ln()
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

/// Whether every row along `axis` is a distribution: no number below zero, and a sum of 1.
pub fn distributions(answer: &Answer, axis: usize) -> bool {
    let mut all = answer.shape.get(axis).is_some_and(|width| *width > 1);
    answer.rows(Some(axis), &mut |_, row| {
        let sum: f64 = row.iter().map(|v| f64::from(*v)).sum();
        all &= (sum - 1.0).abs() < 1e-3 && row.iter().all(|v| *v >= 0.0);
    });
    all
}

/// Whether every row along `axis` has the length 1.
pub fn unit_lengths(answer: &Answer, axis: usize) -> bool {
    let mut all = answer.shape.get(axis).is_some_and(|width| *width > 1);
    answer.rows(Some(axis), &mut |_, row| {
        let squares: f64 = row.iter().map(|v| f64::from(*v).powi(2)).sum();
        all &= (squares - 1.0).abs() < 1e-3;
    });
    all
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

    fn answer(shape: &[usize], data: &[f32]) -> Answer {
        Answer { shape: shape.to_vec(), data: data.to_vec() }
    }

    fn compared(by: Comparison, axis: Option<usize>) -> Compared {
        Compared { output: "y".into(), by, axis }
    }

    /// Agreement of one sample's answers at one output.
    fn agreement(by: Comparison, axis: Option<usize>, a: &Answer, b: &Answer) -> f64 {
        let mut judge = Judge::new(&[compared(by, axis)]);
        judge.push(std::slice::from_ref(a), std::slice::from_ref(b), None);
        judge.agreement().value
    }

    #[test]
    fn an_answer_that_is_not_a_number_never_agrees() {
        let (a, b) = (answer(&[1, 2], &[0.1, 0.9]), answer(&[1, 2], &[f32::NAN, 0.9]));
        for by in [Comparison::Class, Comparison::Sides, Comparison::Direction, Comparison::Value] {
            assert_eq!(agreement(by, Some(1), &a, &b), 0.0, "{by:?}");
            assert_eq!(agreement(by, Some(1), &b, &b), 0.0, "{by:?}");
        }
        assert_eq!(cosine(&[1.0], &[f32::INFINITY]), 0.0);
    }

    /// Nothing of a row that is not a number may count as the same answer.
    #[test]
    fn a_row_that_is_not_a_number_diverges_as_far_as_rows_can() {
        let far = -(1e-9f64.ln());
        let good = [0.2f32, 0.8];
        for bad in [[f32::NAN, 0.8], [f32::NAN; 2], [f32::INFINITY, 0.0], [f32::NEG_INFINITY; 2]] {
            for (a, b) in [(good, bad), (bad, good), (bad, bad)] {
                assert!((divergence(&a, &b) - far).abs() < 1e-9, "{a:?} {b:?}");
            }
        }
        let mut judge = Judge::new(&[compared(Comparison::Class, Some(1))]);
        let same = answer(&[1, 2], &good);
        judge.push(std::slice::from_ref(&same), &[answer(&[1, 2], &[f32::NAN; 2])], None);
        judge.push(std::slice::from_ref(&same), &[answer(&[1, 1], &[1.0])], None);
        let report = judge.report(false);
        assert!((report.kl_mean - far).abs() < 1e-9, "{report:?}");
        assert_eq!((report.agreement.value, judge.shares()), (0.0, &[0.0, 0.0][..]));
    }

    #[test]
    fn equal_outputs_agree_with_no_divergence() {
        let mut judge = Judge::new(&[compared(Comparison::Class, Some(1))]);
        let same = [answer(&[1, 2], &[0.2, 0.8])];
        judge.push(&same, &same, Some(0));
        let report = judge.report(false);
        assert_eq!(report.agreement.value, 1.0);
        assert!(report.kl_mean.abs() < 1e-12);
        assert!((report.cosine_mean - 1.0).abs() < 1e-9);
        assert_eq!(report.accuracy.unwrap().candidate.value, 0.0);
    }

    /// Two classes on axis 1 of a 1 by 2 by 3 map: one pixel of three changes its class.
    #[test]
    fn pixels_of_a_segmentation_are_judged_along_the_class_axis_and_count_as_one_sample() {
        let a = answer(&[1, 2, 3], &[0.9, 0.9, 0.1, 0.1, 0.1, 0.9]);
        let b = answer(&[1, 2, 3], &[0.9, 0.2, 0.1, 0.1, 0.8, 0.9]);
        let share = agreement(Comparison::Class, Some(1), &a, &b);
        assert!((share - 2.0 / 3.0).abs() < 1e-12, "{share}");
        let mut judge = Judge::new(&[compared(Comparison::Class, Some(1))]);
        judge.push(std::slice::from_ref(&a), std::slice::from_ref(&a), None);
        assert!(judge.agreement().low < 0.5, "one sample is one sample, whatever its pixels");
    }

    #[test]
    fn the_output_that_agrees_least_stands_for_the_candidate() {
        let outputs = [
            compared(Comparison::Class, Some(1)),
            Compared { output: "worse".into(), ..compared(Comparison::Value, None) },
        ];
        let mut judge = Judge::new(&outputs);
        let classes = answer(&[1, 2], &[0.2, 0.8]);
        judge.push(
            &[classes.clone(), answer(&[1, 1], &[100.0])],
            &[classes, answer(&[1, 1], &[90.0])],
            None,
        );
        let report = judge.report(false);
        assert_eq!((report.output.as_str(), report.agreement.value), ("worse", 0.0));
        assert_eq!(report.outputs[0].agreement.value, 1.0);
    }

    #[test]
    fn rows_that_are_missing_disagree() {
        let (whole, half) =
            (answer(&[1, 2, 2], &[0.0, 1.0, 0.0, 1.0]), answer(&[1, 1, 2], &[0.0, 1.0]));
        assert_eq!(agreement(Comparison::Class, Some(2), &whole, &half), 0.0);
        let mut judge = Judge::new(&[compared(Comparison::Class, Some(2))]);
        judge.push(&[whole], &[], None);
        assert_eq!(judge.agreement().value, 0.0);
    }

    #[test]
    fn embeddings_agree_by_direction_and_not_by_their_largest_feature() {
        // The largest feature changes; the direction hardly does.
        let (a, b) = (answer(&[1, 3], &[1.0, 0.99, 0.0]), answer(&[1, 3], &[0.99, 1.0, 0.0]));
        assert_eq!(agreement(Comparison::Direction, Some(1), &a, &b), 1.0);
        // The largest feature stays; the rest turns around.
        let far = answer(&[1, 3], &[1.0, -0.9, 0.0]);
        assert_eq!(agreement(Comparison::Direction, Some(1), &a, &far), 0.0);
    }

    #[test]
    fn probabilities_agree_by_side_and_other_numbers_by_tolerance() {
        let one = |v: f32| answer(&[1, 1], &[v]);
        assert_eq!(agreement(Comparison::Sides, Some(1), &one(0.51), &one(0.99)), 1.0);
        assert_eq!(agreement(Comparison::Sides, Some(1), &one(0.49), &one(0.51)), 0.0);
        assert_eq!(agreement(Comparison::Value, None, &one(100.0), &one(104.0)), 1.0);
        assert_eq!(agreement(Comparison::Value, None, &one(100.0), &one(106.0)), 0.0);
        assert_eq!(agreement(Comparison::Value, None, &one(0.0), &one(0.0)), 1.0);
    }

    #[test]
    fn distributions_and_unit_lengths_are_recognized_along_their_axis() {
        let map = answer(&[1, 2, 2], &[0.25, 0.5, 0.75, 0.5]);
        assert!(distributions(&map, 1) && !distributions(&map, 2));
        let unit = answer(&[1, 2], &[0.6, -0.8]);
        assert!(unit_lengths(&unit, 1) && !distributions(&unit, 1));
        assert!(!distributions(&answer(&[3, 1], &[1.0; 3]), 1), "one class is none");
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
}
