//! Applies a pruning plan: removes units ([`prune`]) or zeroes them in place ([`mask`]).
//!
//! *Masked equals pruned*: for every plan both give a model that computes the same outputs. A mask zeroes
//! exactly the slices that a pruning removes, but for [`crate::Role::Divisor`].

use serde::{Deserialize, Serialize};

use crate::GroupId;

/// What to keep of one group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    /// The group.
    pub group: GroupId,
    /// Units that stay, ascending; at least one.
    pub keep: Vec<u32>,
}

/// What to keep of every group; a group that is not named stays whole.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrunePlan {
    /// At most one choice for each group.
    pub choices: Vec<Choice>,
}

/// What a pruning did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PruneReport {
    /// Elements of all constants before.
    pub params_before: u64,
    /// Elements of all constants after.
    pub params_after: u64,
    /// Edits that were applied.
    pub edits: usize,
}
