//! Prunable groups: which units of which constants and activations can only be removed together.
//!
//! A *unit* is the closure of one index of one axis under the couplings of [`crate::coupling`]; a
//! [`Group`] is a set of units that touch the same axes in the same way, so that any subset of them can
//! be kept. What cannot be removed is not silently absent: [`Grouping::locked`] names the axis, the node
//! that stands in the way, and why.

mod alternatives;
mod atoms;
mod collect;
pub(crate) mod find;
pub(crate) mod folds;
mod locked;
pub(crate) mod sizes;
mod states;
mod why;

pub use find::find;
pub use states::{PairedBy, StatePair};
pub use why::{Hop, MAX_REACHES, Reach, why};

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{NodeId, Scope, ValueId};

/// Names a group of one [`Grouping`]; the same model gives the same ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct GroupId(pub u32);

/// Which indices of an axis belong to each unit. Every unit owns the same number of indices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexMap {
    per_unit: usize,
    indices: Vec<u32>,
}

impl IndexMap {
    /// A map from `indices`, `per_unit` of them for each unit in turn.
    ///
    /// # Panics
    /// When `indices` is not a multiple of `per_unit`, which is an error of the caller's.
    pub fn new(per_unit: usize, indices: Vec<u32>) -> Self {
        assert!(per_unit > 0 && indices.len().is_multiple_of(per_unit), "ragged index map");
        Self { per_unit, indices }
    }

    /// Number of units.
    pub fn units(&self) -> usize {
        self.indices.len() / self.per_unit
    }

    /// Indices of every unit: one for a plain channel, several for blocks and repeats.
    pub fn per_unit(&self) -> usize {
        self.per_unit
    }

    /// The indices of `unit`, ascending.
    pub fn unit(&self, unit: usize) -> &[u32] {
        &self.indices[unit * self.per_unit..(unit + 1) * self.per_unit]
    }
}

/// What a sliced constant does for the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Computes the units: weight columns, output channels, their biases, embedding columns.
    Producer,
    /// Reads the units: weight rows, input channels.
    Consumer,
    /// Acts on each unit alone: scales, shifts, norm parameters.
    Elementwise,
    /// Acts on each unit alone by dividing (divisors, variances), or says what zero is (quantization parameters):
    /// sliced by a pruning, left as it is by a mask.
    Divisor,
}

/// One axis of one use of a constant that shrinks with the group.
///
/// A constant is named together with the place that reads it: two readers of one initializer may want
/// different slices, and get copies then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice {
    /// The constant.
    pub value: ValueId,
    /// The node that reads it.
    pub node: NodeId,
    /// The input of `node` where it is read.
    pub slot: usize,
    /// Axis of the constant.
    pub axis: usize,
    /// Indices of each unit on that axis.
    pub map: IndexMap,
    /// What the constant does for the group.
    pub role: Role,
}

/// A node that sums over the group's units: what remains of its weights can be re-fitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Consumer {
    /// The consuming node (`MatMul`, `Gemm`, `Conv`, …).
    pub node: NodeId,
    /// The input where the activation arrives.
    pub input_slot: usize,
    /// Axis of the activation that carries the units.
    pub input_axis: usize,
    /// The input where the constant weight arrives, and its axis; `None` when both factors are activations.
    pub weight: Option<(usize, usize)>,
}

/// Units that can be removed, each on its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Its name.
    pub id: GroupId,
    /// The graph whose nodes and values the group names.
    pub scope: Scope,
    /// Number of units.
    pub width: usize,
    /// Constants that shrink, and where.
    pub slices: Vec<Slice>,
    /// Nodes whose weights compute the units.
    pub producers: Vec<NodeId>,
    /// Nodes that sum over the units.
    pub consumers: Vec<Consumer>,
    /// Activations that carry the units: value, axis, and the indices of each unit there.
    pub values: Vec<(ValueId, usize, IndexMap)>,
}

/// Who locks an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LockedBy {
    /// A node.
    Node(NodeId),
    /// The axis belongs to an input of the graph, or to what a body captures.
    GraphInput,
    /// The axis belongs to an output of the graph.
    GraphOutput,
    /// A limit of the search.
    Limit,
}

/// An axis that a weight computes and that must keep its width, with the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Locked {
    /// The graph whose nodes and values are named.
    pub scope: Scope,
    /// The value whose axis is locked.
    pub value: ValueId,
    /// The axis.
    pub axis: usize,
    /// Its width.
    pub width: usize,
    /// Who locks it.
    pub by: LockedBy,
    /// Why, in words.
    pub why: String,
    /// Elements of the constants whose units cannot go because of it. Several locks may hold the same ones.
    pub holds: u64,
}

/// Everything found in a model.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Grouping {
    /// What can be pruned; `groups[i].id == GroupId(i)`.
    pub groups: Vec<Group>,
    /// What cannot, and why.
    pub locked: Vec<Locked>,
    /// States between runs that become narrower inside of the model.
    pub states: Vec<StatePair>,
    /// Where the sizes of axes are read; a pruning rewrites these operands.
    pub(crate) sizes_read: BTreeMap<Scope, Vec<sizes::Read>>,
    /// What nodes need that fold an axis which shrinks.
    pub(crate) corrections: BTreeMap<Scope, Vec<folds::Correction>>,
}

impl Grouping {
    /// The group of that name.
    pub fn group(&self, id: GroupId) -> Option<&Group> {
        self.groups.get(id.0 as usize)
    }
}
