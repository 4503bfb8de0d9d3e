//! How far a model's requests are from the samples that it was judged on.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::budget::{number, vocabulary};

/// The most features in one report; those farthest beyond their thresholds come first.
pub const MAX_DRIFT_FEATURES: usize = 32;
/// Longest name of a tensor, bytes.
const MAX_TENSOR_BYTES: usize = 256;

vocabulary! {
    /// Which side of the model a tensor is on.
    Side {
        /// The model takes it.
        Input = "input",
        /// The model gives it.
        Output = "output",
    }
}

vocabulary! {
    /// What is taken of a request's tensor as one number.
    Feature {
        /// Mean of the finite elements.
        Mean = "mean",
        /// Standard deviation of the finite elements.
        Deviation = "deviation",
        /// Share of elements that are 0.
        Zeros = "zeros",
        /// Share of elements that are NaN or infinite.
        Nonfinite = "nonfinite",
        /// One element, at a place that changes.
        Value = "value",
        /// The likeliest class.
        Class = "class",
        /// The probability of that class.
        Confidence = "confidence",
    }
}

vocabulary! {
    /// What tells chance from drift.
    Statistic {
        /// Largest distance between the two distribution functions (Kolmogorov and Smirnov).
        Ks = "ks",
        /// Pearson's chi-square of two samples.
        ChiSquare = "chi_square",
    }
}

/// One test of a model's requests against its reference.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DriftTest {
    /// Requests looked at.
    pub requests: u64,
    /// Samples of the reference.
    pub reference: u64,
    /// Time from the first to the last of them, milliseconds.
    pub span_ms: u64,
    /// The chance that this test is over its thresholds without drift, at most.
    #[serde(with = "number")]
    #[schemars(with = "Option<f64>")]
    pub level: f64,
    /// Distances up to this one do not count (`drift_psi`).
    #[serde(with = "number")]
    #[schemars(with = "Option<f64>")]
    pub psi_limit: f64,
    /// The largest distance that is not chance; 0 where all is.
    #[serde(with = "number")]
    #[schemars(with = "Option<f64>")]
    pub psi: f64,
    /// Whether a feature is beyond chance and beyond the limit.
    pub drifted: bool,
    /// Features watched, over which the level is divided.
    pub watched: u32,
    /// The features farthest from the reference, at most [`MAX_DRIFT_FEATURES`].
    pub features: Vec<DriftFeature>,
}

/// One feature in a test.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DriftFeature {
    /// Whether the model takes or gives the tensor.
    pub side: Side,
    /// The tensor's name in the model.
    pub tensor: String,
    /// What is taken of it.
    pub feature: Feature,
    /// What the test computes.
    pub statistic: Statistic,
    /// Its value.
    #[serde(with = "number")]
    #[schemars(with = "Option<f64>")]
    pub value: f64,
    /// What chance alone exceeds seldom enough; null where the requests are too few to say.
    #[serde(with = "number")]
    #[schemars(with = "Option<f64>")]
    pub threshold: f64,
    /// Population stability index.
    #[serde(with = "number")]
    #[schemars(with = "Option<f64>")]
    pub psi: f64,
    /// Requests that gave this number.
    pub requests: u64,
    /// As many independent ones, as far as successive requests resemble each other.
    #[serde(with = "number")]
    #[schemars(with = "Option<f64>")]
    pub effective: f64,
    /// Whether it is beyond chance and beyond the limit.
    pub drifted: bool,
}

impl DriftTest {
    /// Whether a receiver takes it, or why not.
    pub(crate) fn check(&self) -> Result<(), String> {
        let features = self.features.len();
        if features > MAX_DRIFT_FEATURES {
            return Err(format!(
                "{features} features are over the limit of {MAX_DRIFT_FEATURES} (MAX_DRIFT_FEATURES)"
            ));
        }
        let longest = self.features.iter().map(|feature| feature.tensor.len()).max().unwrap_or(0);
        if longest > MAX_TENSOR_BYTES {
            return Err(format!(
                "a name of {longest} bytes is over the limit of {MAX_TENSOR_BYTES} (MAX_TENSOR_BYTES)"
            ));
        }
        Ok(())
    }
}
