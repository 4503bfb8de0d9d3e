//! `reference.json`: what the model's inputs and outputs look like on the samples it was judged on.
//!
//! Every sample gives one number to each *feature* of each tensor (its mean, one of its elements, the
//! class it is given …), and the file counts these numbers in cells: between quantiles of the numbers
//! themselves, or one per class. A device that sees requests one by one counts theirs in the same
//! cells. One number a sample, and not one an element, because the elements of one image or sentence
//! depend on each other: what is compared are independent draws as far as the samples are.
//!
//! Numbers are rounded to 12 significant bits before they are counted, and every edge lies between
//! two rounded numbers, so that a value that occurs often (0, or a confidence of 1) falls into one
//! cell on every processor.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::error::BundleError;

/// Version of the file that this crate reads and writes.
pub const REFERENCE_VERSION: u32 = 1;
/// The most tensors in one reference; more of a model's are not watched.
pub const MAX_REFERENCE_TENSORS: usize = 32;
/// The most cells of one feature.
pub const MAX_REFERENCE_CELLS: usize = 256;
/// The most samples of one reference.
pub const MAX_REFERENCE_SAMPLES: u64 = 1 << 20;
/// Longest name of a tensor, bytes.
pub const MAX_TENSOR_NAME_BYTES: usize = 256;
/// Cells of equal size that ordered numbers are counted in; one more lies below and one above all.
pub const QUANTILE_CELLS: usize = 10;
/// The most axes of a tensor with rows.
const MAX_AXES: usize = 32;
/// Numbers smaller than this count as 0.
const TINY: f64 = 1e-30;

/// What a model's inputs and outputs look like on the samples it was judged on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reference {
    /// Version of this format, [`REFERENCE_VERSION`].
    pub version: u32,
    /// Samples that were run.
    pub samples: u64,
    /// The tensors that were looked at.
    pub tensors: Vec<TensorReference>,
}

/// Which side of the model a tensor is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// The model takes it.
    Input,
    /// The model gives it.
    Output,
}

/// What one tensor looks like.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TensorReference {
    /// Whether the model takes or gives it.
    pub side: Side,
    /// Its name in the model.
    pub name: String,
    /// Whether its first axis holds samples, of which a request may bring several.
    pub batched: bool,
    /// Where its rows lie, for an output that gives classes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<Rows>,
    /// The distributions of its features.
    pub features: Vec<FeatureReference>,
}

/// Rows of numbers, one per class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rows {
    /// The axis along which classes lie, the sample axis counted.
    pub axis: usize,
    /// Whether the numbers are scores, of which softmax makes probabilities, and not these.
    pub scores: bool,
}

/// What is taken of a sample's tensor as one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Feature {
    /// Mean of the finite elements.
    Mean,
    /// Standard deviation of the finite elements.
    Deviation,
    /// Share of elements that are 0.
    Zeros,
    /// Share of elements that are NaN or infinite.
    Nonfinite,
    /// One element, at a place that changes from sample to sample.
    Value,
    /// The class with the largest number in one row.
    Class,
    /// The probability of that class.
    Confidence,
}

/// How often a feature's number fell into which cell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FeatureReference {
    /// The feature.
    pub feature: Feature,
    /// Upper ends of the cells but the last, rising; none for classes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub edges: Vec<f64>,
    /// The classes with a cell of their own, rising; all others share the last one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub classes: Vec<u32>,
    /// Samples in each cell.
    pub counts: Vec<u64>,
}

impl Reference {
    /// Reads and checks a reference.
    ///
    /// # Errors
    /// No JSON, another version, or a field that cannot be.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let json = |error: serde_json::Error| wrong(error.to_string());
        let peek: Peek = serde_json::from_slice(bytes).map_err(json)?;
        if peek.version != u64::from(REFERENCE_VERSION) {
            let (got, wanted) = (peek.version, REFERENCE_VERSION);
            return Err(BundleError::ReferenceVersion { got, wanted });
        }
        let reference: Self = serde_json::from_slice(bytes).map_err(json)?;
        reference.check()?;
        Ok(reference)
    }

    /// The file's bytes.
    ///
    /// # Errors
    /// A field that a reader would refuse.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        self.check()?;
        let mut bytes = serde_json::to_vec(self).map_err(|error| wrong(error.to_string()))?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    fn check(&self) -> Result<()> {
        at_most("samples", self.samples, MAX_REFERENCE_SAMPLES, "MAX_REFERENCE_SAMPLES")?;
        let (tensors, limit) = (self.tensors.len() as u64, MAX_REFERENCE_TENSORS as u64);
        at_most("tensors", tensors, limit, "MAX_REFERENCE_TENSORS")?;
        self.tensors.iter().try_for_each(|tensor| tensor.check(self.samples))
    }
}

impl TensorReference {
    fn check(&self, samples: u64) -> Result<()> {
        let bytes = self.name.len() as u64;
        at_most("bytes of a name", bytes, MAX_TENSOR_NAME_BYTES as u64, "MAX_TENSOR_NAME_BYTES")?;
        let classes =
            |f: &FeatureReference| matches!(f.feature, Feature::Class | Feature::Confidence);
        let of = |what: &str| wrong(format!("tensor {:?} {what}", self.name));
        if self.rows.is_some_and(|rows| rows.axis >= MAX_AXES) {
            return Err(of("has an axis that no tensor has"));
        }
        if self.rows.is_none() && self.features.iter().any(classes) {
            return Err(of("gives classes, but does not say where its rows lie"));
        }
        for (at, feature) in self.features.iter().enumerate() {
            if self.features[..at].iter().any(|earlier| earlier.feature == feature.feature) {
                return Err(of("names a feature twice"));
            }
            feature.check(samples).map_err(|what| of(&format!("{:?}: {what}", feature.feature)))?;
        }
        Ok(())
    }
}

impl FeatureReference {
    /// Counts ordered numbers between their own quantiles, [`QUANTILE_CELLS`] of them where they are
    /// distinct enough, in a cell below and a cell above all of them.
    #[must_use]
    pub fn ordered(feature: Feature, values: &[f64]) -> Self {
        let mut sorted: Vec<f64> = values.iter().map(|v| coarse(*v)).collect();
        sorted.retain(|v| v.is_finite());
        sorted.sort_by(f64::total_cmp);
        let mut edges = Vec::with_capacity(QUANTILE_CELLS + 1);
        if let Some(least) = sorted.first() {
            edges.push(beside(*least, -1.0));
        }
        for cell in 1..=QUANTILE_CELLS {
            let rank = (sorted.len() * cell).div_ceil(QUANTILE_CELLS);
            if let Some(value) = rank.checked_sub(1).and_then(|rank| sorted.get(rank)) {
                edges.push(beside(*value, 1.0));
            }
        }
        edges.dedup();
        Self { feature, edges, classes: Vec::new(), counts: Vec::new() }.counted(values)
    }

    /// Counts classes, the most frequent in cells of their own.
    #[must_use]
    pub fn classes(values: &[f64]) -> Self {
        let mut often: BTreeMap<u32, u64> = BTreeMap::new();
        values.iter().filter_map(|v| index(*v)).for_each(|c| *often.entry(c).or_default() += 1);
        let mut ranked: Vec<(u32, u64)> = often.into_iter().collect();
        ranked.sort_by_key(|(class, times)| (std::cmp::Reverse(*times), *class));
        ranked.truncate(MAX_REFERENCE_CELLS - 1);
        let mut classes: Vec<u32> = ranked.into_iter().map(|(class, _)| class).collect();
        classes.sort_unstable();
        Self { feature: Feature::Class, edges: Vec::new(), classes, counts: Vec::new() }
            .counted(values)
    }

    /// The cell of a number. A NaN is in the last one.
    #[must_use]
    pub fn cell(&self, value: f64) -> usize {
        let last = self.edges.len().max(self.classes.len());
        if self.feature == Feature::Class {
            return index(value)
                .and_then(|class| self.classes.binary_search(&class).ok())
                .unwrap_or(last);
        }
        let value = coarse(value);
        if value.is_nan() { last } else { self.edges.partition_point(|edge| *edge < value) }
    }

    fn counted(mut self, values: &[f64]) -> Self {
        self.counts = vec![0; self.edges.len().max(self.classes.len()) + 1];
        for value in values {
            let cell = self.cell(*value);
            self.counts[cell] += 1;
        }
        self
    }

    fn check(&self, samples: u64) -> Result<(), String> {
        let cells = self.edges.len().max(self.classes.len()) + 1;
        if cells > MAX_REFERENCE_CELLS {
            return Err(format!(
                "{cells} cells are over the limit of {MAX_REFERENCE_CELLS} (MAX_REFERENCE_CELLS)"
            ));
        }
        let stray = if self.feature == Feature::Class {
            !self.edges.is_empty()
        } else {
            !self.classes.is_empty()
        };
        let rising = self.edges.windows(2).all(|pair| pair[0] < pair[1])
            && self.classes.windows(2).all(|pair| pair[0] < pair[1]);
        if stray || !rising || self.edges.iter().any(|edge| !edge.is_finite()) {
            return Err("its cells are not what its kind has, finite and rising".to_owned());
        }
        let counted = self.counts.iter().try_fold(0_u64, |sum, count| sum.checked_add(*count));
        if self.counts.len() != cells || counted.is_none_or(|counted| counted > samples) {
            return Err(format!("{} counts do not fit {cells} cells", self.counts.len()));
        }
        Ok(())
    }
}

/// Rounds to 12 significant bits, so that sums in another order or on another processor give the same.
fn coarse(value: f64) -> f64 {
    const DROPPED: u64 = 41;
    if !value.is_finite() {
        return value;
    }
    if value.abs() < TINY {
        return 0.0;
    }
    let half = 1_u64 << (DROPPED - 1);
    f64::from_bits((value.to_bits() + half) & !((1 << DROPPED) - 1))
}

/// Between a rounded number and the next one above (`side` 1) or below (-1).
fn beside(rounded: f64, side: f64) -> f64 {
    if rounded == 0.0 { side * TINY / 2.0 } else { rounded + side * rounded.abs() / 8192.0 }
}

/// A class number, if the value is one.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn index(value: f64) -> Option<u32> {
    (value >= 0.0 && value <= f64::from(u32::MAX)).then_some(value as u32)
}

fn at_most(what: &str, got: u64, limit: u64, name: &str) -> Result<()> {
    if got <= limit {
        return Ok(());
    }
    Err(wrong(format!("{got} {what} are over the limit of {limit} ({name})")))
}

fn wrong(why: String) -> BundleError {
    BundleError::Reference { why }
}

#[derive(Deserialize)]
struct Peek {
    version: u64,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    type Edit = fn(&mut Reference);

    fn reference(feature: FeatureReference) -> Reference {
        let rows = Some(Rows { axis: 1, scores: true });
        let samples = feature.counts.iter().sum();
        let tensor = TensorReference {
            side: Side::Output,
            name: "y".into(),
            batched: true,
            rows,
            features: vec![feature],
        };
        Reference { version: REFERENCE_VERSION, samples, tensors: vec![tensor] }
    }

    #[test]
    fn distinct_numbers_fill_ten_cells_alike_and_none_lies_outside() {
        let values: Vec<f64> = (0..200).map(|i| f64::from(i) * 0.37 - 20.0).collect();
        let feature = FeatureReference::ordered(Feature::Mean, &values);
        assert_eq!(feature.counts.len(), 12);
        assert_eq!((feature.counts[0], feature.counts[11]), (0, 0));
        assert!(feature.counts[1..11].iter().all(|count| *count == 20), "{:?}", feature.counts);
        assert_eq!((feature.cell(-1e9), feature.cell(1e9)), (0, 11));
        assert_eq!(feature.cell(f64::NAN), 11);
    }

    #[test]
    fn a_constant_is_one_cell_and_both_sides_of_it_are_others() {
        for constant in [0.0, 1.0, -3.5] {
            let feature = FeatureReference::ordered(Feature::Zeros, &[constant; 50]);
            assert_eq!(feature.counts, [0, 50, 0], "{constant}");
            assert_eq!(feature.cell(constant - 0.01), 0);
            assert_eq!(feature.cell(constant + 0.01), 2);
            // Another order of summing, another processor.
            assert_eq!(feature.cell(constant * (1.0 - 1e-6)), 1);
            assert_eq!(feature.cell(constant * (1.0 + 1e-6)), 1);
        }
    }

    #[test]
    fn cells_are_the_same_after_they_were_written_and_read() {
        let values: Vec<f64> = (1..500).map(|i| 1.0 / f64::from(i)).collect();
        let written = reference(FeatureReference::ordered(Feature::Value, &values));
        let read = Reference::from_bytes(&written.to_bytes().unwrap()).unwrap();
        let (before, after) = (&written.tensors[0].features[0], &read.tensors[0].features[0]);
        assert!(values.iter().all(|value| before.cell(*value) == after.cell(*value)));
        assert_eq!(before.counts, after.counts);
    }

    #[test]
    fn the_rarest_of_too_many_classes_share_the_last_cell() {
        let values: Vec<f64> = (0..300)
            .flat_map(|class| vec![f64::from(class); if class < 10 { 1 } else { 2 }])
            .collect();
        let feature = FeatureReference::classes(&values);
        assert_eq!(feature.counts.len(), MAX_REFERENCE_CELLS);
        assert_eq!(feature.cell(0.0), MAX_REFERENCE_CELLS - 1);
        assert_eq!(feature.cell(299.0), MAX_REFERENCE_CELLS - 1, "the later of equals");
        assert_eq!(feature.cell(10.0), 0);
        assert_eq!(feature.cell(-1.0), MAX_REFERENCE_CELLS - 1);
        reference(feature).to_bytes().unwrap();
    }

    #[test]
    fn what_cannot_be_is_refused_with_the_reason() {
        let good = reference(FeatureReference::ordered(Feature::Mean, &[1.0, 2.0, 3.0]));
        let cases: [(Edit, &str); 8] = [
            (|r| r.version = 9, "version 9"),
            (|r| r.tensors = vec![r.tensors[0].clone(); 33], "MAX_REFERENCE_TENSORS"),
            (|r| r.samples = 1 << 30, "MAX_REFERENCE_SAMPLES"),
            (|r| r.tensors[0].name = "x".repeat(300), "MAX_TENSOR_NAME_BYTES"),
            (|r| r.tensors[0].features[0].edges.reverse(), "rising"),
            (|r| r.tensors[0].features[0].counts.push(1), "counts"),
            (|r| r.tensors[0].features[0].counts[0] = u64::MAX, "counts"),
            (|r| r.tensors[0].features = vec![r.tensors[0].features[0].clone(); 2], "twice"),
        ];
        for (spoil, why) in cases {
            let mut bad = good.clone();
            spoil(&mut bad);
            let bytes = serde_json::to_vec(&bad).unwrap();
            let error = Reference::from_bytes(&bytes).unwrap_err().to_string();
            assert!(error.contains(why), "{why}: {error}");
        }
        assert!(Reference::from_bytes(b"{}").is_err());
    }
}
