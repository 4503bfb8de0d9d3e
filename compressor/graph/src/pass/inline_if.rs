//! Replaces an `If` by the branch that is always taken.

use std::collections::HashSet;

use super::{Editor, Halt, Pass};
use crate::{AttributeValue, Dim, Edit, Graph, NodeId, Op, Shapes, ValueId, edit};

/// Undecided conditions tried out in one graph; further ones are left for the next round.
const MAX_TRIALS: usize = 64;

/// Decided conditions followed within one trial, level by level.
const MAX_LEVELS: usize = 16;

/// Replaces an `If` by a branch where that is the only one that can be taken: because the condition follows from
/// constants, known ranks and known sizes, or because the other branch would make a node that runs for sure
/// fail on the rank of an operand. What the branch captured is read directly.
///
/// The second reason is sound for every input that the model computes outputs for: one that took the other
/// branch would end in an error. Exporters leave such pairs behind where the traced program squeezes an axis
/// "if it is 1".
#[derive(Debug, Clone, Copy, Default)]
pub struct InlineIf;

impl Pass for InlineIf {
    fn name(&self) -> &'static str {
        "inline-if"
    }

    fn reads_shapes(&self) -> bool {
        true
    }

    fn run(&self, editor: &mut Editor<'_>) -> Result<(), Halt> {
        let shapes = editor.infer(editor.graph());
        let mut trials = MAX_TRIALS;
        for node in ifs(editor.graph()) {
            let decided = decided(editor.graph(), &shapes, node);
            let found = decided.map(|branch| (branch, "its condition always says so".to_owned()));
            let found = found.or_else(|| {
                trials = trials.checked_sub(1)?;
                only_branch(editor, node)
            });
            if let Some((branch, note)) = found {
                editor.apply(Edit::Inline { node, branch: branch.attribute().to_owned() }, note)?;
            }
        }
        Ok(())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Branch {
    Then,
    Else,
}

impl Branch {
    fn attribute(self) -> &'static str {
        match self {
            Self::Then => "then_branch",
            Self::Else => "else_branch",
        }
    }
}

/// Every `If` with two branches that can stand in its place.
fn ifs(graph: &Graph) -> Vec<NodeId> {
    let branches = |node: &crate::Node| {
        [Branch::Then, Branch::Else].iter().all(|branch| {
            matches!(node.attr(branch.attribute()), Some(AttributeValue::Graph(body))
                if body.outputs().len() == node.outputs.len())
        })
    };
    let found = graph.nodes().filter(|(_, node)| node.op == Op::If && branches(node));
    found.map(|(id, _)| id).collect()
}

/// The branch that a known condition takes.
fn decided(graph: &Graph, shapes: &Shapes, node: NodeId) -> Option<Branch> {
    match shapes.const_ints(graph.node(node).input(0)?)?.as_slice() {
        [0] => Some(Branch::Else),
        [_] => Some(Branch::Then),
        _ => None,
    }
}

/// The branch that is left when the other one cannot run, and why it cannot.
fn only_branch(editor: &Editor<'_>, node: NodeId) -> Option<(Branch, String)> {
    let fails = |branch| fails(editor, node, branch);
    match (fails(Branch::Then), fails(Branch::Else)) {
        (Some(why), None) => Some((Branch::Else, why)),
        (None, Some(why)) => Some((Branch::Then, why)),
        _ => None,
    }
}

/// Why no run can take `branch`.
fn fails(editor: &Editor<'_>, node: NodeId, branch: Branch) -> Option<String> {
    let mut graph = editor.graph().clone();
    let cause = edit::Cause::new("inline-if", "trial");
    let mut pending = vec![(node, branch)];
    for _ in 0..MAX_LEVELS {
        for (node, branch) in pending {
            let edit = Edit::Inline { node, branch: branch.attribute().to_owned() };
            edit::apply(&mut graph, edit, &cause).ok()?;
        }
        let shapes = editor.infer(&graph);
        if let Some(why) = misfit(&graph, &shapes) {
            return Some(why);
        }
        let next = ifs(&graph).into_iter();
        pending = next.filter_map(|node| Some((node, decided(&graph, &shapes, node)?))).collect();
        if pending.is_empty() {
            return None;
        }
    }
    None
}

/// A node that an output needs and that fails on every input.
fn misfit(graph: &Graph, shapes: &Shapes) -> Option<String> {
    let needed = needed(graph);
    for (id, node) in graph.nodes().filter(|(id, _)| needed.contains(id)) {
        let rank = |slot: usize| shapes.rank(node.input(slot)?);
        let wanted: Vec<(usize, usize)> = match &node.op {
            Op::Recurrent(_) => [0, 1, 2, 5, 6].into_iter().map(|slot| (slot, 3)).collect(),
            Op::Gemm(_) => vec![(0, 2), (1, 2)],
            Op::Conv(_) | Op::ConvTranspose(_) => {
                rank(1).map(|rank| (0, rank)).into_iter().collect()
            }
            Op::MatMul if !products_fit(shapes, node) => {
                return Some(format!(
                    "the other branch would end in {}, whose factors do not fit",
                    crate::import::node_label(graph.node(id))
                ));
            }
            _ => continue,
        };
        for (slot, wanted) in wanted {
            if let Some(rank) = rank(slot).filter(|&rank| rank != wanted) {
                return Some(format!(
                    "the other branch would end in {}, which wants rank {wanted} of input {slot} and would \
                     get {rank}",
                    crate::import::node_label(node)
                ));
            }
        }
    }
    None
}

/// Whether the summed axes of a `MatMul` may be of one size.
fn products_fit(shapes: &Shapes, node: &crate::Node) -> bool {
    let dims = |slot: usize| shapes.dims(node.input(slot)?);
    let (Some(a), Some(b)) = (dims(0), dims(1)) else { return true };
    match (a.last(), b.get(b.len().saturating_sub(2))) {
        (Some(Dim::Fixed(a)), Some(Dim::Fixed(b))) => a == b,
        _ => true,
    }
}

/// Nodes that the outputs depend on: others may be left out by whatever runs the model.
fn needed(graph: &Graph) -> HashSet<NodeId> {
    let mut values: HashSet<ValueId> = graph.outputs().iter().copied().collect();
    let mut found = HashSet::new();
    for (id, node) in graph.nodes().rev() {
        if node.outputs.iter().flatten().any(|output| values.contains(output)) {
            found.insert(id);
            values.extend(node.inputs.iter().flatten());
            if node.has_subgraphs() {
                values.extend(graph.captures(id));
            }
        }
    }
    found
}
