//! What to do to a model, as data: it can be printed, edited, stored and replayed.
//!
//! A plan names groups by id and label, and units by index; applying it reads no data but what the
//! repair step asks for. The ids hold for the model whose digest the plan carries.

use serde::{Deserialize, Serialize};

/// How units of a group are rated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScoreKind {
    /// L2 norm of every slice that goes with the unit.
    Magnitude,
    /// Deviation of the unit's activation times the L2 norm of what its consumers do with it.
    Activation,
    /// Uniformly at random, from the seed: the yardstick.
    Random,
}

/// Integer formats for MatMul and Gemm weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum QuantFormat {
    /// Per-channel int8 weights behind `DequantizeLinear`; arithmetic stays fp32.
    Int8,
    /// `DynamicQuantizeLinear` activations times int8 weights through `MatMulInteger`.
    DynamicInt8,
}

impl std::fmt::Display for QuantFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Int8 => "weight-only int8",
            Self::DynamicInt8 => "dynamic int8",
        })
    }
}

/// What one group keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupChoice {
    /// Id of the group in the source model.
    pub group: u32,
    /// What people call it: its first producer.
    pub label: String,
    /// Units before.
    pub width: usize,
    /// Units kept, ascending.
    pub keep: Vec<u32>,
    /// Kept widths are multiples of this.
    pub alignment: usize,
}

/// A repair of one consumer by regularised least squares.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RefitStep {
    /// Label of the MatMul or Gemm node.
    pub node: String,
    /// Ridge as a share of the mean diagonal of the Gram matrix, as chosen by cross-validation.
    pub ridge: f64,
    /// Relative residual on the calibration set before the repair.
    pub residual_before: f64,
    /// Relative residual on the calibration set after the repair.
    pub residual_after: f64,
    /// Rows of activations used.
    pub rows: u64,
    /// Said when the activations do not span all directions.
    pub note: Option<String>,
}

/// A sum over narrowed units that was scaled back to what it was.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RescaleStep {
    /// Label of the summing node.
    pub node: String,
    /// The factor.
    pub factor: f64,
    /// Share of the sum that was missing before.
    pub residual_before: f64,
    /// Share that is missing after.
    pub residual_after: f64,
}

/// A thing that was not done, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// The stage that refused: `prune`, `refit`, `quantize`, `search`.
    pub stage: String,
    /// What it refused: a group, a node, a candidate.
    pub what: String,
    /// Why.
    pub why: String,
}

impl Refusal {
    /// A refusal.
    pub fn new(stage: &str, what: impl Into<String>, why: impl Into<String>) -> Self {
        Self { stage: stage.to_owned(), what: what.into(), why: why.into() }
    }
}

/// Everything that turns the source model into a candidate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Share of units kept in the groups that were narrowed.
    pub keep_ratio: f64,
    /// How units were rated.
    pub score: ScoreKind,
    /// Seed of everything random.
    pub seed: u64,
    /// What each narrowed group keeps.
    pub groups: Vec<GroupChoice>,
    /// Sums over narrowed units that were scaled back.
    pub rescales: Vec<RescaleStep>,
    /// Repairs, in the order in which they were made.
    pub refits: Vec<RefitStep>,
    /// Integer format, if one paid.
    pub quantize: Option<QuantFormat>,
}

/// The largest alignment that a group of `width` units can keep to: 16, else 8, else 4, else 1.
///
/// Engines work in blocks of 16 channels; a width that is no multiple of 4 falls out of ONNX
/// Runtime's blocked convolutions and can be slower than the full one. A group that is itself no
/// multiple of the alignment, or has fewer than two blocks, takes the next smaller one.
pub fn alignment(width: usize) -> usize {
    [16, 8, 4].into_iter().find(|a| width.is_multiple_of(*a) && width / a >= 2).unwrap_or(1)
}

/// Units to keep of `width` at `ratio`: rounded up to the group's alignment, at least one block.
pub fn aligned_keep(width: usize, ratio: f64) -> usize {
    let alignment = alignment(width);
    let wanted = (width as f64 * ratio.clamp(0.0, 1.0)).ceil() as usize;
    wanted.div_ceil(alignment).saturating_mul(alignment).clamp(alignment.min(width), width)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn alignment_is_sixteen_where_two_blocks_fit_and_smaller_elsewhere() {
        assert_eq!(alignment(512), 16);
        assert_eq!(alignment(32), 16);
        assert_eq!(alignment(16), 8);
        assert_eq!(alignment(24), 8);
        assert_eq!(alignment(12), 4);
        assert_eq!(alignment(7), 1);
    }

    #[test]
    fn a_ratio_is_rounded_up_to_whole_blocks() {
        assert_eq!(aligned_keep(512, 0.5), 256);
        assert_eq!(aligned_keep(512, 0.51), 272);
        assert_eq!(aligned_keep(64, 0.01), 16);
        assert_eq!(aligned_keep(7, 0.5), 4);
        assert_eq!(aligned_keep(64, 2.0), 64);
    }

    proptest! {
        #[test]
        fn a_kept_width_is_aligned_never_zero_and_never_wider(width in 1usize..5000, ratio in 0.0f64..1.0) {
            let keep = aligned_keep(width, ratio);
            prop_assert!(keep >= 1 && keep <= width);
            prop_assert_eq!(keep % alignment(width), 0);
            prop_assert!(keep as f64 + 1e-9 >= (width as f64 * ratio).floor());
        }
    }

    #[test]
    fn a_plan_survives_being_written_and_read() {
        let plan = Plan {
            keep_ratio: 0.5,
            score: ScoreKind::Activation,
            seed: 7,
            groups: vec![GroupChoice {
                group: 3,
                label: "conv".into(),
                width: 4,
                keep: vec![0, 2],
                alignment: 1,
            }],
            rescales: vec![],
            refits: vec![],
            quantize: Some(QuantFormat::DynamicInt8),
        };
        let text = serde_json::to_string(&plan).unwrap();
        assert!(text.contains("dynamic-int8"));
        assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), plan);
    }
}
