//! Metrics of a model's answers, sample by sample.
//!
//! A [`Meter`] takes one answer at a time and keeps at most two numbers of it, from which both the
//! metric and each of its resamples are computed; answers themselves are not kept. Two meters over the
//! same samples are compared by [`compare()`], with the test that the metric allows.
//!
//! Classes come as an answer's largest element; texts as the rows of an answer, decoded greedily by
//! [`text::Ctc`]. What no built-in metric says, a command can: [`external`].

pub mod compare;
pub mod detect;
pub mod external;
pub mod rows;
pub mod text;

use std::collections::BTreeMap;

pub use compare::{Comparison, Test, compare, compare_agreement, compare_all, compare_evaluations};
pub use text::Ctc;

use crate::stats::bootstrap::{MAX_RESAMPLED, weighted_sums};

/// What a SNR without noise counts as, in dB: more than f32 can express.
pub const MAX_SNR_DB: f64 = 200.0;

/// A metric.
#[derive(Debug, Clone, PartialEq)]
pub enum Metric {
    /// Share of samples whose class is among the k largest elements.
    TopK(usize),
    /// Share of rows with the original's largest element.
    Agreement,
    /// Mean Kullback-Leibler divergence from the original's row, in nats.
    Kl,
    /// Mean cosine with the original's row.
    Cosine,
    /// Signal-to-noise ratio with the original as the signal, in dB: 10 log₁₀ (Σ o² / Σ (o − c)²).
    SnrDb,
    /// F1 of each class that occurs among labels or answers, averaged over these classes.
    MacroF1,
    /// F1 of all decisions together, which is the accuracy where each sample has one class.
    MicroF1,
    /// Character error rate: edits per character of the reference.
    Cer(Ctc),
    /// Word error rate: edits per word of the reference.
    Wer(Ctc),
    /// Area under the ROC curve, ties counted half.
    Auc,
    /// Rate at which false accepts equal false rejects, on the ROC polyline.
    Eer,
}

/// A metric as a function of how often each sample counts.
pub type Statistic<'a> = Box<dyn Fn(&[u32]) -> f64 + 'a>;

/// What an answer is compared with.
#[derive(Debug, Clone, Copy)]
pub enum Reference<'a> {
    /// The original's answer to the same sample.
    Answer(&'a [f32]),
    /// The sample's class.
    Class(i64),
    /// The sample's text.
    Text(&'a str),
}

/// Which reference a metric needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Against {
    /// The original's answers; no labels.
    Original,
    /// Class indices.
    Classes,
    /// Texts.
    Texts,
}

/// Why an answer cannot be measured.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[allow(missing_docs)]
pub enum MetricError {
    #[error("{metric} compares with {wanted}, which sample {sample} does not have")]
    NoReference { metric: String, wanted: &'static str, sample: usize },
    #[error("{metric} needs {wanted}, and the answer to sample {sample} has {found} numbers")]
    Length { metric: String, wanted: String, found: usize, sample: usize },
    #[error("the answer to sample {sample} holds {value}; the model computes no numbers there")]
    NotFinite { value: f32, sample: usize },
    #[error("sample {sample} has class {class}, which {metric} does not take: {wanted}")]
    Class { metric: String, class: i64, wanted: String, sample: usize },
    #[error("{0} samples are more than MAX_RESAMPLED = {MAX_RESAMPLED}")]
    TooMany(usize),
}

impl Metric {
    /// The name in reports.
    pub fn name(&self) -> String {
        match self {
            Self::TopK(1) => "accuracy".into(),
            Self::TopK(k) => format!("top-{k} accuracy"),
            Self::Agreement => "agreement".into(),
            Self::Kl => "KL".into(),
            Self::Cosine => "cosine".into(),
            Self::SnrDb => "SNR".into(),
            Self::MacroF1 => "macro F1".into(),
            Self::MicroF1 => "micro F1".into(),
            Self::Cer(_) => "CER".into(),
            Self::Wer(_) => "WER".into(),
            Self::Auc => "AUC".into(),
            Self::Eer => "EER".into(),
        }
    }

    /// Whether more is better.
    pub fn higher_is_better(&self) -> bool {
        !matches!(self, Self::Kl | Self::Cer(_) | Self::Wer(_) | Self::Eer)
    }

    /// What it compares with.
    pub fn against(&self) -> Against {
        match self {
            Self::Agreement | Self::Kl | Self::Cosine | Self::SnrDb => Against::Original,
            Self::TopK(_) | Self::MacroF1 | Self::MicroF1 | Self::Auc | Self::Eer => {
                Against::Classes
            }
            Self::Cer(_) | Self::Wer(_) => Against::Texts,
        }
    }

    /// The value of a model that is the original, for metrics that compare with it: without noise an SNR counts as
    /// [`MAX_SNR_DB`].
    pub fn perfect(&self) -> Option<f64> {
        match self {
            Self::Agreement | Self::Cosine => Some(1.0),
            Self::Kl => Some(0.0),
            Self::SnrDb => Some(MAX_SNR_DB),
            _ => None,
        }
    }

    /// The metric of that name: `accuracy`, `top-K`, `agreement`, `cosine`, `snr`, `kl`, `macro-f1`, `micro-f1`,
    /// `auc`, `eer`.
    ///
    /// # Errors
    /// There is none of that name, or it needs more than a name; the text says what there is.
    pub fn named(name: &str) -> Result<Self, String> {
        const NAMES: &str = "agreement, accuracy, top-K (such as top-5), cosine, snr, kl, macro-f1, micro-f1, auc, eer";
        Ok(match name {
            "agreement" => Self::Agreement,
            "accuracy" => Self::TopK(1),
            "cosine" => Self::Cosine,
            "snr" => Self::SnrDb,
            "kl" => Self::Kl,
            "macro-f1" => Self::MacroF1,
            "micro-f1" => Self::MicroF1,
            "auc" => Self::Auc,
            "eer" => Self::Eer,
            "cer" | "wer" => {
                return Err(format!(
                    "{name} needs a dictionary, which cannot be given here; measure it with --evaluator, or take one of {NAMES}"
                ));
            }
            _ => match name.strip_prefix("top-").and_then(|k| k.parse().ok()) {
                Some(k @ 1..) => Self::TopK(k),
                _ => return Err(format!("there are {NAMES}")),
            },
        })
    }

    /// Numbers kept of a sample.
    fn width(&self) -> usize {
        if matches!(self, Self::TopK(_)) { 1 } else { 2 }
    }
}

/// One model's metric over samples.
#[derive(Debug, Clone)]
pub struct Meter {
    metric: Metric,
    row: usize,
    samples: usize,
    kept: Vec<f64>,
}

impl Meter {
    /// A meter of answers whose rows have `row` elements (the last axis of the output).
    pub fn new(metric: Metric, row: usize) -> Self {
        Self { metric, row: row.max(1), samples: 0, kept: Vec::new() }
    }

    /// What is measured.
    pub fn metric(&self) -> &Metric {
        &self.metric
    }

    /// Samples taken.
    pub fn len(&self) -> usize {
        self.samples
    }

    /// Whether none was taken.
    pub fn is_empty(&self) -> bool {
        self.samples == 0
    }

    /// Takes the model's whole answer to the next sample.
    ///
    /// # Errors
    /// The reference is not what the metric compares with, lengths differ, a class is out of range, or
    /// the answer holds NaN or infinity (−∞ is taken as a logit that excludes a class).
    pub fn push(&mut self, answer: &[f32], reference: Reference<'_>) -> Result<(), MetricError> {
        if self.samples >= MAX_RESAMPLED {
            return Err(MetricError::TooMany(self.samples + 1));
        }
        let sample = Sample { metric: &self.metric, row: self.row, at: self.samples };
        let numbers = sample.numbers(answer, reference)?;
        self.kept.extend_from_slice(&numbers[..self.metric.width()]);
        self.samples += 1;
        Ok(())
    }

    /// The metric over all samples; `None` where it is undefined, as AUC is without a positive.
    pub fn value(&self) -> Option<f64> {
        let value = self.resampled()(&vec![1; self.samples]);
        value.is_finite().then_some(value)
    }

    /// The metric as a function of how often each sample counts; NaN where it is undefined.
    pub fn resampled(&self) -> Statistic<'_> {
        match self.metric {
            Metric::Auc | Metric::Eer => {
                let ranked = detect::Ranked::new(&self.kept);
                let auc = self.metric == Metric::Auc;
                Box::new(move |counts| if auc { ranked.auc(counts) } else { ranked.eer(counts) })
            }
            Metric::MacroF1 => Box::new(|counts| f1(&self.kept, counts, true)),
            Metric::MicroF1 => Box::new(|counts| f1(&self.kept, counts, false)),
            Metric::TopK(_) => Box::new(|counts| {
                let drawn: f64 = counts.iter().map(|c| f64::from(*c)).sum();
                weighted_sums(&self.kept, 1, counts)[0] / drawn
            }),
            Metric::SnrDb => Box::new(|counts| {
                let sums = weighted_sums(&self.kept, 2, counts);
                rows::decibels(sums[0], sums[1])
            }),
            _ => Box::new(|counts| {
                let sums = weighted_sums(&self.kept, 2, counts);
                sums[0] / sums[1]
            }),
        }
    }

    /// Whether each sample is right or wrong as a whole, sample by sample; `None` for metrics and
    /// answers for which it is neither.
    pub fn hits(&self) -> Option<Vec<bool>> {
        match self.metric {
            Metric::TopK(_) => Some(self.kept.iter().map(|hit| *hit > 0.5).collect()),
            Metric::Agreement => {
                let rows = self.kept.as_chunks::<2>().0;
                let single = rows.iter().all(|[_, rows]| *rows == 1.0);
                single.then(|| rows.iter().map(|[same, _]| *same > 0.5).collect())
            }
            _ => None,
        }
    }
}

/// One answer on its way to the numbers that are kept of it.
struct Sample<'a> {
    metric: &'a Metric,
    row: usize,
    at: usize,
}

impl Sample<'_> {
    fn numbers(&self, answer: &[f32], reference: Reference<'_>) -> Result<[f64; 2], MetricError> {
        let likeness = matches!(self.metric, Metric::Cosine | Metric::SnrDb);
        self.finite(answer, likeness)?;
        match (self.metric.against(), reference) {
            (Against::Original, Reference::Answer(original)) => {
                self.finite(original, likeness)?;
                if original.len() != answer.len() || answer.is_empty() {
                    return Err(self.length(format!("{} numbers", original.len()), answer));
                }
                Ok(self.likeness(original, answer))
            }
            (Against::Classes, Reference::Class(class)) => self.decision(answer, class),
            (Against::Texts, Reference::Text(text)) => self.reading(answer, text),
            (against, _) => {
                let wanted = match against {
                    Against::Original => "the original's answer",
                    Against::Classes => "a class index",
                    Against::Texts => "a text",
                };
                Err(MetricError::NoReference {
                    metric: self.metric.name(),
                    wanted,
                    sample: self.at,
                })
            }
        }
    }

    fn finite(&self, answer: &[f32], strictly: bool) -> Result<(), MetricError> {
        let fine = |v: &f32| v.is_finite() || (!strictly && *v == f32::NEG_INFINITY);
        match answer.iter().find(|v| !fine(v)) {
            Some(value) => Err(MetricError::NotFinite { value: *value, sample: self.at }),
            None => Ok(()),
        }
    }

    fn length(&self, wanted: String, answer: &[f32]) -> MetricError {
        let metric = self.metric.name();
        MetricError::Length { metric, wanted, found: answer.len(), sample: self.at }
    }

    fn likeness(&self, original: &[f32], answer: &[f32]) -> [f64; 2] {
        if *self.metric == Metric::SnrDb {
            return rows::energies(original, answer);
        }
        let pairs = original.chunks(self.row).zip(answer.chunks(self.row));
        pairs.fold([0.0, 0.0], |[sum, rows], (o, a)| {
            let value = match self.metric {
                Metric::Agreement => f64::from(u8::from(rows::agree(o, a))),
                Metric::Kl => rows::divergence(o, a),
                _ => rows::cosine(o, a),
            };
            [sum + value, rows + 1.0]
        })
    }

    fn decision(&self, answer: &[f32], class: i64) -> Result<[f64; 2], MetricError> {
        if answer.is_empty() {
            return Err(self.length("an answer".into(), answer));
        }
        let bad = |wanted: String| MetricError::Class {
            metric: self.metric.name(),
            class,
            wanted,
            sample: self.at,
        };
        if matches!(self.metric, Metric::Auc | Metric::Eer) {
            let positive = match class {
                0 => 0.0,
                1 => 1.0,
                _ => return Err(bad("0 is negative and 1 is positive".into())),
            };
            let score = detect::score(answer)
                .ok_or_else(|| self.length("one score or two classes".into(), answer))?;
            return Ok([score, positive]);
        }
        let classes = answer.len().max(2);
        let class = usize::try_from(class)
            .ok()
            .filter(|c| *c < classes)
            .ok_or_else(|| bad(format!("the answer has classes 0 to {}", classes - 1)))?;
        Ok(match self.metric {
            Metric::TopK(k) => {
                let rank = rows::rank(answer, class);
                [f64::from(u8::from(rank < *k)), 0.0]
            }
            _ => [class as f64, rows::class(answer) as f64],
        })
    }

    fn reading(&self, answer: &[f32], reference: &str) -> Result<[f64; 2], MetricError> {
        let (Metric::Cer(ctc) | Metric::Wer(ctc)) = self.metric else {
            return Err(self.length("rows of characters".into(), answer));
        };
        if !answer.len().is_multiple_of(self.row) || self.row != ctc.classes() {
            let wanted = format!("rows of {} classes, as its dictionary has", ctc.classes());
            return Err(self.length(wanted, answer));
        }
        let read = ctc.decode(answer);
        let (edits, length) = match self.metric {
            Metric::Wer(_) => text::word_edits(reference, &read),
            _ => text::character_edits(reference, &read),
        };
        Ok([edits as f64, length as f64])
    }
}

/// F1 = 2 TP / (2 TP + FP + FN), of all decisions or averaged over the classes that occur.
fn f1(kept: &[f64], counts: &[u32], by_class: bool) -> f64 {
    // (true positives, occurrences among labels and answers)
    let mut classes: BTreeMap<u64, (f64, f64)> = BTreeMap::new();
    for ([label, answer], count) in kept.as_chunks::<2>().0.iter().zip(counts) {
        let count = f64::from(*count);
        if count == 0.0 {
            continue;
        }
        classes.entry(*label as u64).or_default().1 += count;
        let answered = classes.entry(*answer as u64).or_default();
        answered.1 += count;
        answered.0 += if label == answer { count } else { 0.0 };
    }
    if by_class {
        let sum: f64 = classes.values().map(|(hits, all)| 2.0 * hits / all).sum();
        return sum / classes.len() as f64;
    }
    let (hits, all) =
        classes.values().fold((0.0, 0.0), |(hits, all), class| (hits + class.0, all + class.1));
    2.0 * hits / all
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "metric_tests.rs"]
mod tests;
