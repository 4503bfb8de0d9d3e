//! States that a caller carries from one run to the next: a model input and the model output that fills it.
//!
//! Inputs and outputs keep their shapes, and so the hidden width of a recurrent layer whose state is fed back
//! would be locked. But what a removed unit held nobody reads, so inside of the interface the state may be
//! narrower: a pruning picks the units that are left behind the input and puts zeros for the others before the
//! output, and a mask silences them in both places. That makes masked equal pruned whatever state is fed.

use std::collections::HashSet;

use super::Group;
use super::atoms::Atoms;
use super::find::{Owner, Search};
use crate::{DType, Dim, Graph, GroupId, NodeId, Op, Origin, Shapes, UnaryOp, ValueId};

/// A model input and the model output that holds its next value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatePair {
    /// The input.
    pub input: ValueId,
    /// The output.
    pub output: ValueId,
    /// The axis of both that carries units.
    pub axis: usize,
    /// Number of axes of both.
    pub rank: usize,
    /// Width of the axis.
    pub width: usize,
    /// Why they are taken for a state.
    pub by: PairedBy,
    /// Groups that remove units of it.
    pub groups: Vec<GroupId>,
}

/// What shows that an input and an output are one state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PairedBy {
    /// The input is the initial state of this recurrent layer, and its units are those of the output.
    Layer(NodeId),
    /// Their names: `h` and `hn`, `state` and `stateN`.
    Names,
}

impl StatePair {
    /// Whether `value` is one of the two and `axis` the one that carries units.
    pub(crate) fn holds(&self, value: ValueId, axis: usize) -> bool {
        (value == self.input || value == self.output) && axis == self.axis
    }
}

/// The pairs that groups make narrower.
pub(super) fn narrowed(mut pairs: Vec<StatePair>, groups: &[Group]) -> Vec<StatePair> {
    for pair in &mut pairs {
        let carries = |group: &&Group| {
            group.values.iter().any(|(value, axis, _)| *value == pair.input && *axis == pair.axis)
        };
        pair.groups = groups.iter().filter(carries).map(|group| group.id).collect();
    }
    pairs.retain(|pair| !pair.groups.is_empty());
    pairs
}

/// Finds the pairs of the main graph, and joins the units of those that only their names show.
pub(super) fn pair(search: &Search<'_>, shapes: &Shapes, atoms: &mut Atoms) -> Vec<StatePair> {
    let graph = search.graph;
    let starts = starts(graph);
    let layer_of =
        |input: ValueId| starts.iter().find(|(_, value)| *value == input).map(|(layer, _)| *layer);
    let mut taken: HashSet<ValueId> = HashSet::new();
    let mut pairs = Vec::new();
    for &input in graph.inputs() {
        let mut outputs = candidates(graph, shapes, input);
        outputs.retain(|output| !taken.contains(output));
        let name = |value: ValueId| graph.value(value).name.as_str();
        let named = outputs.into_iter().find(|&output| related(name(input), name(output)));
        if let Some(output) = named {
            taken.extend([input, output]);
            join(search, atoms, input, output);
            pairs.push((input, output, layer_of(input).map_or(PairedBy::Names, PairedBy::Layer)));
        }
    }
    for &(layer, input) in starts.iter().filter(|(_, input)| !graph.outputs().contains(input)) {
        let mut outputs = candidates(graph, shapes, input);
        outputs.retain(|output| !taken.contains(output) && !taken.contains(&input));
        let same = |output: &ValueId| !axes(search, atoms, input, *output).is_empty();
        if let Some(output) = outputs.into_iter().find(same) {
            taken.extend([input, output]);
            pairs.push((input, output, PairedBy::Layer(layer)));
        }
    }
    let rank = |input| shapes.rank(input).unwrap_or(0);
    let mut found = Vec::new();
    for (input, output, by) in pairs {
        for (axis, width) in axes(search, atoms, input, output) {
            let (rank, groups) = (rank(input), Vec::new());
            found.push(StatePair { input, output, axis, rank, width, by, groups });
        }
    }
    found
}

/// Inputs that recurrent layers begin with, moved about at most.
fn starts(graph: &Graph) -> Vec<(NodeId, ValueId)> {
    let mut found = Vec::new();
    for (id, node) in graph.nodes().filter(|(_, node)| matches!(node.op, Op::Recurrent(_))) {
        let mut open: Vec<ValueId> = [5, 6].iter().filter_map(|&slot| node.input(slot)).collect();
        let mut seen = HashSet::new();
        while let Some(value) = open.pop() {
            if !seen.insert(value) {
                continue;
            }
            match graph.value(value).origin {
                Origin::Input => found.push((id, value)),
                Origin::Node(from, _) => open.extend(moved(graph, from)),
                Origin::Initializer | Origin::Outer => {}
            }
        }
    }
    found
}

/// Values that a node only moves.
fn moved(graph: &Graph, id: NodeId) -> Vec<ValueId> {
    let node = graph.node(id);
    match &node.op {
        Op::Concat { .. } => node.inputs.iter().flatten().copied().collect(),
        Op::Unary(UnaryOp::Identity | UnaryOp::Cast)
        | Op::Gather { .. }
        | Op::Squeeze { .. }
        | Op::Unsqueeze { .. }
        | Op::Slice { .. }
        | Op::Split { .. }
        | Op::Transpose { .. }
        | Op::Reshape { .. } => node.input(0).into_iter().collect(),
        _ => Vec::new(),
    }
}

/// Computed outputs of the type and shape of `input`. Narrowing a state adds nodes that engines have for these
/// types.
fn candidates(graph: &Graph, shapes: &Shapes, input: ValueId) -> Vec<ValueId> {
    let fits = |a: &Dim, b: &Dim| match (a, b) {
        (Dim::Fixed(a), Dim::Fixed(b)) => a == b,
        _ => true,
    };
    let alike = |output: &ValueId| {
        let (Some(a), Some(b)) = (shapes.ty(input), shapes.ty(*output)) else { return false };
        let (Some(from), Some(to)) = (&a.dims, &b.dims) else { return false };
        let float = matches!(a.dtype, DType::F32 | DType::F64);
        let sizes = from.len() == to.len() && from.iter().zip(to).all(|(a, b)| fits(a, b));
        float && a.dtype == b.dtype && sizes
    };
    let outputs = graph.outputs().iter().copied();
    let computed = outputs.filter(|&output| graph.producer(output).is_some());
    computed.filter(|output| !graph.outputs().contains(&input) && alike(output)).collect()
}

/// Axes of one known size of at least 2 whose units are the same in both values.
fn axes(
    search: &Search<'_>,
    atoms: &mut Atoms,
    input: ValueId,
    output: ValueId,
) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    for (axis, a, b, width) in common(search, input, output) {
        let (Some(a), Some(b)) = (atoms.first(a), atoms.first(b)) else { continue };
        if (0..width).all(|i| atoms.sets.root(a + i) == atoms.sets.root(b + i)) {
            found.push((axis, width));
        }
    }
    found
}

fn join(search: &Search<'_>, atoms: &mut Atoms, input: ValueId, output: ValueId) {
    for (_, a, b, width) in common(search, input, output) {
        if let (Some(a), Some(b)) = (atoms.first(a), atoms.first(b)) {
            (0..width).for_each(|i| atoms.sets.join(a + i, b + i));
        }
    }
}

/// Axes of the same size: the number, both as the search knows them, and the size.
fn common(
    search: &Search<'_>,
    input: ValueId,
    output: ValueId,
) -> Vec<(usize, usize, usize, usize)> {
    let at = |value: ValueId, axis: usize| search.axis_of(Owner::Value(value), axis);
    /// More axes than any state has.
    const MAX_RANK: usize = 8;
    let both = (0..MAX_RANK).filter_map(|axis| Some((axis, at(input, axis)?, at(output, axis)?)));
    let sized = both.map(|(axis, a, b)| (axis, a, b, search.axes[a].size, search.axes[b].size));
    let same = sized.filter(|(_, _, _, a, b)| a == b && *a >= 2);
    same.map(|(axis, a, b, width, _)| (axis, a, b, width)).collect()
}

/// What exporters call the state of a layer.
const STATE_WORDS: [&str; 22] = [
    "c", "c0", "cache", "cell", "cn", "cx", "gru", "h", "h0", "hidden", "hn", "hx", "lstm", "mem",
    "memory", "rnn", "state", "states", "statec", "stateh", "cstate", "hstate",
];

/// `h` and `hn`, `state_in` and `state_out`, `prev_h` and `next_h`: one stem, which names a state, with marks for
/// before and after.
fn related(input: &str, output: &str) -> bool {
    let (input, output) = (input.to_lowercase(), output.to_lowercase());
    let marks = |name: &str, before: &[&str], behind: &[&str]| -> Vec<String> {
        let ends = before.iter().filter_map(|mark| name.strip_prefix(mark));
        let starts = behind.iter().filter_map(|mark| name.strip_suffix(mark));
        ends.chain(starts).map(|stem| stem.trim_matches(['_', '.', '-']).to_owned()).collect()
    };
    let mut from =
        marks(&input, &["prev_", "initial_", "in_"], &["_in", "_prev", "_0", "0", "_init"]);
    from.push(input.clone());
    let to = marks(
        &output,
        &["next_", "new_", "final_", "out_"],
        &["n", "_n", "_next", "_new", "_out", "_final"],
    );
    let names_state = |stem: &String| {
        let mut words = stem.split(|c: char| !c.is_alphanumeric());
        words.any(|word| STATE_WORDS.contains(&word))
    };
    to.iter().any(|stem| from.contains(stem) && names_state(stem))
}

#[cfg(test)]
mod tests {
    use super::related;

    #[test]
    fn names_of_a_state_before_and_after_are_related() {
        for (input, output) in [
            ("h", "hn"),
            ("c", "cn"),
            ("state", "stateN"),
            ("h0", "hn"),
            ("h_0", "h_n"),
            ("rnn_state_in", "rnn_state_out"),
            ("prev_hidden", "next_hidden"),
            ("initial_h", "final_h"),
            ("cache.1", "cache.1_out"),
        ] {
            assert!(related(input, output), "{input} and {output}");
        }
        for (input, output) in
            [("x", "xn"), ("input", "output"), ("h", "cn"), ("image", "image_out"), ("h", "h")]
        {
            assert!(!related(input, output), "{input} and {output}");
        }
    }
}
