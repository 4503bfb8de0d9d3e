//! States that a caller carries from one run to the next: a model input and the model output that fills it.
//!
//! A branch of an `If` may capture the one and make the other; then the pair is found, and narrowed, within it.
//!
//! Inputs and outputs keep their shapes, and so the hidden width of a recurrent layer whose state is fed back
//! would be locked. But what a removed unit held nobody reads, so inside of the interface the state may be
//! narrower: a pruning picks the units that are left behind the input and puts zeros for the others before the
//! output, and a mask silences them in both places. That makes masked equal pruned whatever state is fed.

use std::collections::HashSet;

use super::Group;
use super::atoms::Atoms;
use super::find::{Owner, Search};
use crate::{DType, Dim, Graph, GroupId, NodeId, Op, Origin, Scope, Shapes, UnaryOp, ValueId};

/// A model input and the model output that holds its next value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatePair {
    /// The graph that reads the one and makes the other.
    pub scope: Scope,
    /// The input of the model, or the value by which a branch captures it.
    pub input: ValueId,
    /// The output of the model, or that of a branch which becomes it.
    pub output: ValueId,
    /// Their element type.
    pub dtype: DType,
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
        let on_axis = |group: &Group| {
            group.values.iter().any(|(value, axis, _)| *value == pair.input && *axis == pair.axis)
        };
        let carries = |group: &&Group| group.scope == pair.scope && on_axis(group);
        pair.groups = groups.iter().filter(carries).map(|group| group.id).collect();
    }
    pairs.retain(|pair| !pair.groups.is_empty());
    pairs
}

/// Where a state may come into a graph and go out of it, by the names that the caller knows.
#[derive(Debug, Clone, Default)]
pub(super) struct Ends {
    inputs: Vec<(ValueId, String)>,
    outputs: Vec<(ValueId, String)>,
}

impl Ends {
    /// Inputs and outputs of a model.
    pub(super) fn of_model(graph: &Graph) -> Self {
        let named = |&value: &ValueId| (value, graph.value(value).name.clone());
        Self {
            inputs: graph.inputs().iter().map(named).collect(),
            outputs: graph.outputs().iter().map(named).collect(),
        }
    }

    /// What a body of `node` captures of these, and makes for them: a branch does so once, a loop again and again.
    pub(super) fn within(&self, graph: &Graph, node: NodeId, body: &Graph) -> Self {
        if graph.node(node).op != Op::If {
            return Self::default();
        }
        let captured = |(value, name): &(ValueId, String)| {
            let inner = body.value_by_name(&graph.value(*value).name)?;
            (body.value(inner).origin == Origin::Outer).then(|| (inner, name.clone()))
        };
        let made = |(value, name): &(ValueId, String)| {
            let source = Some(unaliased(graph, *value));
            let slot = graph.node(node).outputs.iter().position(|output| *output == source)?;
            Some((*body.outputs().get(slot)?, name.clone()))
        };
        Self {
            inputs: self.inputs.iter().filter_map(captured).collect(),
            outputs: self.outputs.iter().filter_map(made).collect(),
        }
    }
}

/// The value that a chain of `Identity` nodes begins with.
fn unaliased(graph: &Graph, value: ValueId) -> ValueId {
    let mut at = value;
    while let Some(node) = graph.producer(at).map(|node| graph.node(node))
        && let (Op::Unary(UnaryOp::Identity), Some(source)) = (&node.op, node.input(0))
    {
        at = source;
    }
    at
}

/// Finds the pairs between `ends`, and joins the units of those that only their names show.
pub(super) fn pair(
    search: &Search<'_>,
    shapes: &Shapes,
    ends: &Ends,
    atoms: &mut Atoms,
) -> Vec<StatePair> {
    let graph = search.graph;
    let starts = starts(graph, ends);
    let layer_of =
        |input: ValueId| starts.iter().find(|(_, value)| *value == input).map(|(layer, _)| *layer);
    let mut taken: HashSet<ValueId> = HashSet::new();
    let mut pairs = Vec::new();
    for (input, name) in &ends.inputs {
        let input = *input;
        let mut outputs = candidates(graph, shapes, ends, input);
        outputs.retain(|(output, _)| !taken.contains(output));
        let named = outputs.into_iter().find(|(_, after)| related(name, after));
        if let Some((output, _)) = named {
            taken.extend([input, output]);
            join(search, atoms, input, output);
            pairs.push((input, output, layer_of(input).map_or(PairedBy::Names, PairedBy::Layer)));
        }
    }
    for &(layer, input) in &starts {
        let mut outputs = candidates(graph, shapes, ends, input);
        outputs.retain(|(output, _)| !taken.contains(output) && !taken.contains(&input));
        let same = |(output, _): &(ValueId, &str)| !axes(search, atoms, input, *output).is_empty();
        if let Some((output, _)) = outputs.into_iter().find(same) {
            taken.extend([input, output]);
            pairs.push((input, output, PairedBy::Layer(layer)));
        }
    }
    let rank = |input| shapes.rank(input).unwrap_or(0);
    let mut found = Vec::new();
    for (input, output, by) in pairs {
        for (axis, width) in axes(search, atoms, input, output) {
            let (scope, rank, groups) = (search.scope.clone(), rank(input), Vec::new());
            let dtype = shapes.dtype(input).unwrap_or(DType::F32);
            found.push(StatePair { scope, input, output, dtype, axis, rank, width, by, groups });
        }
    }
    found
}

/// Inputs that recurrent layers begin with, moved about at most.
fn starts(graph: &Graph, ends: &Ends) -> Vec<(NodeId, ValueId)> {
    let mut found = Vec::new();
    for (id, node) in graph.nodes().filter(|(_, node)| matches!(node.op, Op::Recurrent(_))) {
        let mut open: Vec<ValueId> = [5, 6].iter().filter_map(|&slot| node.input(slot)).collect();
        let mut seen = HashSet::new();
        while let Some(value) = open.pop() {
            if !seen.insert(value) {
                continue;
            }
            match graph.value(value).origin {
                Origin::Input | Origin::Outer => {
                    let comes_in = ends.inputs.iter().any(|(input, _)| *input == value);
                    found.extend(comes_in.then_some((id, value)));
                }
                Origin::Node(from, _) => open.extend(moved(graph, from)),
                Origin::Initializer => {}
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
fn candidates<'a>(
    graph: &Graph,
    shapes: &Shapes,
    ends: &'a Ends,
    input: ValueId,
) -> Vec<(ValueId, &'a str)> {
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
    if graph.outputs().contains(&input) {
        return Vec::new();
    }
    let once =
        |value: ValueId| graph.outputs().iter().filter(|&&other| other == value).count() == 1;
    let outputs = ends.outputs.iter().map(|(output, name)| (*output, name.as_str()));
    let made = outputs.filter(|(output, _)| graph.producer(*output).is_some() && once(*output));
    made.filter(|(output, _)| alike(output)).collect()
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
