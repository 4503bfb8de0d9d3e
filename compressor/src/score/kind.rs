//! What kind of units a group has.

use graph::{BinaryOp, Graph, Group, Op, ValueId};
use serde::{Deserialize, Serialize};

/// Kinds of units, of which each may be rated best by another score.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GroupKind {
    /// Hidden units of a recurrent layer.
    Recurrent,
    /// Heads of an attention, or widths of heads: two activations are multiplied with each other.
    Attention,
    /// Units of a stream to which layer after layer adds.
    Residual,
    /// Channels of convolutions.
    Channels,
    /// Hidden units of dense layers.
    Hidden,
}

impl GroupKind {
    /// The kind of `group`, by the nodes that make, read and add its units.
    pub fn of(graph: &Graph, group: &Group) -> Self {
        let mut touched = group
            .slices
            .iter()
            .map(|s| s.node)
            .chain(group.consumers.iter().map(|c| c.node))
            .filter_map(|node| graph.get_node(node));
        if touched.clone().any(|n| matches!(n.op, Op::Recurrent(_))) {
            Self::Recurrent
        } else if multiplied(graph, group) {
            Self::Attention
        } else if added(graph, group) {
            Self::Residual
        } else if touched.any(|n| matches!(n.op, Op::Conv(_) | Op::ConvTranspose(_))) {
            Self::Channels
        } else {
            Self::Hidden
        }
    }
}

impl std::fmt::Display for GroupKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Recurrent => "recurrent units",
            Self::Attention => "attention heads",
            Self::Residual => "residual stream",
            Self::Channels => "convolution channels",
            Self::Hidden => "dense hidden units",
        })
    }
}

fn carries(group: &Group, value: Option<ValueId>) -> bool {
    value.is_some_and(|v| group.values.iter().any(|(carried, ..)| *carried == v))
}

/// Whether a product of two activations takes in the units.
fn multiplied(graph: &Graph, group: &Group) -> bool {
    graph.nodes().any(|(_, node)| {
        let is_product = matches!(node.op, Op::MatMul | Op::Einsum(_));
        let activations = || node.inputs.iter().flatten().all(|v| graph.constant(*v).is_none());
        is_product && node.inputs.iter().any(|v| carries(group, *v)) && activations()
    })
}

/// Whether two activations that carry the units are added to each other.
fn added(graph: &Graph, group: &Group) -> bool {
    graph.nodes().any(|(_, node)| {
        let is_sum = matches!(node.op, Op::Binary(BinaryOp::Add | BinaryOp::Sum));
        let both = node.inputs.iter().filter(|v| carries(group, **v)).count() > 1;
        is_sum && both && node.inputs.iter().flatten().all(|v| graph.constant(*v).is_none())
    })
}
