//! What to do to a model, as data: it can be printed, edited, stored and replayed.
//!
//! A [`Plan`] holds decisions only: which units stay, what is repaired on which samples, which integer format. What
//! a repair came to (factors, ridges, residuals) is recorded beside it, and comes out the same whenever the plan is
//! applied to the same source with the same samples in the same engine. Groups and nodes are named by
//! their ids in the source, which hold for the model whose digest the plan carries, and by labels for people.

use serde::{Deserialize, Serialize};

/// How units of a group are rated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScoreKind {
    /// L2 norm of every slice that goes with the unit, batch normalizations folded in.
    Magnitude,
    /// L1 norm of the same.
    MagnitudeL1,
    /// Deviation of the unit's activation times the L2 norm of what its consumers do with it.
    Activation,
    /// Size of the unit's activation times the L2 norm of what its consumers do with it.
    Wanda,
    /// Mean absolute activation of the unit.
    MeanAbs,
    /// Share of the unit's activations above zero.
    Apoz,
    /// Turn in which second-order removal with compensation gives the unit up.
    Obs,
    /// Mean rank over several scores.
    Combined,
    /// For each kind of group the score that lost least where it was measured.
    Auto,
    /// Uniformly at random, from the seed: the yardstick.
    Random,
}

impl ScoreKind {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Auto,
        Self::Magnitude,
        Self::MagnitudeL1,
        Self::Activation,
        Self::Wanda,
        Self::MeanAbs,
        Self::Apoz,
        Self::Obs,
        Self::Combined,
        Self::Random,
    ];

    /// Its name on the command line and in plans.
    pub fn name(self) -> &'static str {
        match self {
            Self::Magnitude => "magnitude",
            Self::MagnitudeL1 => "magnitude-l1",
            Self::Activation => "activation",
            Self::Wanda => "wanda",
            Self::MeanAbs => "mean-abs",
            Self::Apoz => "apoz",
            Self::Obs => "obs",
            Self::Combined => "combined",
            Self::Auto => "auto",
            Self::Random => "random",
        }
    }

    /// Whether it rates by what was seen on samples; *auto* does where there are any.
    pub fn needs_data(self) -> bool {
        !matches!(self, Self::Magnitude | Self::MagnitudeL1 | Self::Auto | Self::Random)
    }

    /// Whether it asks how channels go together.
    pub fn needs_grams(self) -> bool {
        matches!(self, Self::Obs | Self::Combined)
    }
}

impl std::fmt::Display for ScoreKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A way to bring a narrowed model back without training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RepairKind {
    /// The channels that stay take over from those that went, from what was seen of the original alone.
    Gram,
    /// Mean and variance of batch normalizations are taken anew from the narrowed model.
    Bn,
    /// Sums over units are scaled back, and consumers re-fitted by least squares, one after the other.
    Ls,
}

impl RepairKind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Bn, Self::Gram, Self::Ls];

    /// Its name on the command line and in plans.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gram => "gram",
            Self::Bn => "bn",
            Self::Ls => "ls",
        }
    }

    /// The repairs that go with a score where none is named: second-order removal is half of one, and what it does not
    /// know of the layers before shows in the normalizations (which a model may not have).
    pub fn usual(score: ScoreKind) -> Vec<Self> {
        if score == ScoreKind::Obs { vec![Self::Gram, Self::Bn] } else { vec![Self::Ls] }
    }
}

impl std::fmt::Display for RepairKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
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

/// A node of the source model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRef {
    /// Its id.
    pub node: u32,
    /// What people call it.
    pub label: String,
}

/// A consumer that is to be re-fitted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefitSite {
    /// The MatMul or Gemm.
    #[serde(flatten)]
    pub at: NodeRef,
    /// Every how-manieth row of a batch of activations is fitted to, at least 1.
    pub stride: usize,
    /// The first so many samples are fitted to, all of the repair's where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub samples: Option<usize>,
}

/// A consumer whose weights take over what removed channels gave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GramSite {
    /// The MatMul, Gemm or Conv.
    #[serde(flatten)]
    pub at: NodeRef,
    /// Axis of the channels in what it reads.
    pub axis: usize,
    /// Every how-manieth row of a batch of activations is taken, at least 1.
    pub stride: usize,
    /// The first so many samples are taken.
    pub samples: usize,
}

/// How a narrowed model is brought back to the original.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repair {
    /// Digest of the calibration file.
    pub data_sha256: String,
    /// Every how-manieth sample of that file was kept apart for judging; none where the file is fitted whole.
    pub hold_out_every: Option<usize>,
    /// Engine that computes the activations: another one rounds otherwise.
    pub engine: runtime::EngineKind,
    /// The first so many samples are re-fitted to.
    pub samples: usize,
    /// The first so many samples give the factors of sums.
    pub rescale_samples: usize,
    /// Sums over units that are scaled back where they lost some, in this order.
    pub rescale: Vec<NodeRef>,
    /// Consumers that are re-fitted, in this order, each on what those before it left.
    pub refit: Vec<RefitSite>,
    /// What is done, in this order.
    #[serde(default = "least_squares")]
    pub kinds: Vec<RepairKind>,
    /// Consumers that take over what removed channels gave.
    #[serde(default)]
    pub gram: Vec<GramSite>,
    /// Batch normalizations whose mean and variance are taken anew.
    #[serde(default)]
    pub norms: Vec<NodeRef>,
}

/// What plans did before there was a choice.
fn least_squares() -> Vec<RepairKind> {
    vec![RepairKind::Ls]
}

/// What the repair of one consumer by regularised least squares came to.
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

/// A batch normalization whose mean and variance were taken anew.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NormStep {
    /// Label of the node.
    pub node: String,
    /// Root mean square over the channels of how far the mean moved, in deviations of before.
    pub mean_moved: f64,
    /// Mean over the channels of the variance after, as a share of that before.
    pub variance_ratio: f64,
    /// Elements seen of each channel.
    pub rows: u64,
    /// Said where channels kept what they had.
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
    /// The stage that refused: `prune`, `score`, `rescale`, `gram`, `norm`, `refit`, `quantize`, `search`, `judge`.
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
    /// Digest of the source model's file.
    pub source_sha256: String,
    /// Share of units kept in the groups that were narrowed; how `groups` came about.
    pub keep_ratio: f64,
    /// How units were rated; how `groups` came about.
    pub score: ScoreKind,
    /// Seed of everything random.
    pub seed: u64,
    /// What each narrowed group keeps.
    pub groups: Vec<GroupChoice>,
    /// Repairs on calibration samples, if any.
    pub repair: Option<Repair>,
    /// Integer format, if any.
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
        let at = NodeRef { node: 9, label: "dense".into() };
        let plan = Plan {
            source_sha256: "sha256:00".into(),
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
            repair: Some(Repair {
                data_sha256: "sha256:01".into(),
                hold_out_every: Some(4),
                engine: runtime::EngineKind::Tract,
                samples: 512,
                rescale_samples: 256,
                rescale: vec![],
                refit: vec![RefitSite { at: at.clone(), stride: 2, samples: None }],
                kinds: vec![RepairKind::Bn, RepairKind::Gram],
                gram: vec![GramSite { at: at.clone(), axis: 1, stride: 3, samples: 256 }],
                norms: vec![at],
            }),
            quantize: Some(QuantFormat::DynamicInt8),
        };
        let text = serde_json::to_string(&plan).unwrap();
        assert!(text.contains("dynamic-int8"));
        assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), plan);
    }

    #[test]
    fn a_plan_from_before_there_was_a_choice_of_repairs_means_least_squares() {
        let text = r#"{"source_sha256":"sha256:00","keep_ratio":0.5,"score":"activation","seed":7,
            "groups":[],"repair":{"data_sha256":"sha256:01","hold_out_every":null,"engine":"tract",
            "samples":512,"rescale_samples":256,"rescale":[],
            "refit":[{"node":9,"label":"dense","stride":2}]},"quantize":null}"#;
        let repair = serde_json::from_str::<Plan>(text).unwrap().repair.unwrap();
        assert_eq!(repair.kinds, vec![RepairKind::Ls]);
        assert!(repair.gram.is_empty() && repair.norms.is_empty() && repair.refit.len() == 1);
    }

    #[test]
    fn kinds_are_written_as_they_are_named() {
        for kind in ScoreKind::ALL {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
        }
        for kind in RepairKind::ALL {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
        }
    }
}
