//! What an allocation came to, as people and scripts read it.

use std::path::PathBuf;

use serde::Serialize;

/// A choice of widths under a budget, as expected and as it came out.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Allocation {
    /// What the budget is of: `params`, `macs`, `size_bytes` or `latency_us`.
    pub of: &'static str,
    /// The budget.
    pub budget: f64,
    /// What the original has.
    pub original: f64,
    /// What the choice was expected to have when it was made.
    pub predicted: f64,
    /// What the model that was written has: counted, or (of a latency) measured.
    pub real: f64,
    /// The sum of what the curves say that each group loses.
    pub loss_predicted: f64,
    /// What the choice loses on the samples before its layers are re-fitted; none without samples.
    pub loss_measured: Option<f64>,
    /// The widest choice within the budget that keeps the same share of every group; none where there is none.
    pub even: Option<Even>,
    /// Whole choices that were timed on the way to a latency.
    pub timed: Vec<Trial>,
    /// What was measured of losses; none without samples.
    pub points: Option<Points>,
}

/// The choice that keeps the same share of every group.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Even {
    /// The share, before widths were aligned.
    pub ratio: f64,
    /// What it costs, as expected.
    pub cost: f64,
    /// The sum of what the curves say that each group loses.
    pub loss_predicted: f64,
    /// What it loses on the samples before its layers are re-fitted.
    pub loss_measured: Option<f64>,
}

/// A whole choice that was timed beside the original.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Trial {
    /// Its width in each group.
    pub widths: Vec<usize>,
    /// Its time as a share of the original's, by the table.
    pub predicted_ratio: f64,
    /// The same, measured.
    pub measured_ratio: f64,
}

/// Where measured losses came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Points {
    /// Losses measured in this run.
    pub measured: usize,
    /// Measurements found in the file.
    pub reused: usize,
    /// The file.
    pub file: PathBuf,
}
