//! Where the sizes that `Shape` nodes read end up.
//!
//! A pruned axis must not change what the model computes from its size. Sizes that only become shape
//! operands are harmless, because a pruning rewrites these operands; any other use locks the axis.

use std::collections::{HashMap, HashSet, VecDeque};

use super::{LockedBy, find::Readers};
use crate::coupling::{Ports, normal_axis, windows};
use crate::op::resize::SIZES;
use crate::{Graph, Node, NodeId, Op, UnaryOp, ValueId};

/// The size of one axis reaches one place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Read {
    /// Value and axis whose size is read.
    pub(crate) value: ValueId,
    /// Its axis.
    pub(crate) axis: usize,
    /// What reads it in the end.
    pub(crate) by: Reader,
}

/// What reads a size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reader {
    /// A shape operand of this node, which can be rewritten.
    Operand(NodeId),
    /// Arithmetic, or a place that cannot be rewritten.
    Other(LockedBy, String),
}

/// Sizes still carried: by position where the tensor is known element by element.
#[derive(Clone)]
struct Carried {
    axes: Vec<usize>,
    positional: bool,
}

/// Follows every `Shape` node of `graph`.
pub(crate) fn reads(graph: &Graph, readers: &Readers, ports: &HashMap<NodeId, Ports>) -> Vec<Read> {
    let mut found = Vec::new();
    for (id, node) in graph.nodes() {
        let (Op::Shape { start, end }, Some(value), Some(out)) =
            (&node.op, node.input(0), node.output(0))
        else {
            continue;
        };
        let Some(rank) =
            ports.get(&id).and_then(|p| p.dims(crate::coupling::Port::In(0))).map(<[_]>::len)
        else {
            continue;
        };
        let carried = Carried { axes: shape_axes(*start, *end, rank), positional: true };
        found.extend(follow(graph, readers, ports, (value, out), carried));
    }
    found
}

fn shape_axes(start: i64, end: Option<i64>, rank: usize) -> Vec<usize> {
    let rank_i = i64::try_from(rank).unwrap_or(i64::MAX);
    let clamp = |bound: i64| if bound < 0 { bound + rank_i } else { bound }.clamp(0, rank_i);
    let (start, end) = (clamp(start), clamp(end.unwrap_or(rank_i)));
    (start..end).filter_map(|axis| usize::try_from(axis).ok()).collect()
}

fn follow(
    graph: &Graph,
    readers: &Readers,
    ports: &HashMap<NodeId, Ports>,
    (value, out): (ValueId, ValueId),
    carried: Carried,
) -> Vec<Read> {
    let mut found = Vec::new();
    let mut queue = VecDeque::from([(out, carried)]);
    let mut seen = HashSet::new();
    while let Some((at, carried)) = queue.pop_front() {
        if !seen.insert((at, carried.axes.clone())) {
            continue;
        }
        let mut read = |by: Reader| {
            found.extend(carried.axes.iter().map(|&axis| Read { value, axis, by: by.clone() }));
        };
        if readers.leaves(at) {
            read(Reader::Other(
                LockedBy::GraphOutput,
                "its size is an output of the model".to_owned(),
            ));
        }
        for &(id, slot) in readers.of(at) {
            let (node, ports) = (graph.node(id), ports.get(&id));
            match step(node, slot, ports, &carried) {
                Step::Onward(next) => {
                    queue.extend(node.outputs.iter().flatten().map(|&out| (out, next.clone())));
                }
                Step::Operand => read(Reader::Operand(id)),
                Step::Stop => {}
                Step::Other => {
                    let why = format!("its size is computed with by {}", node.op_type);
                    read(Reader::Other(LockedBy::Node(id), why));
                }
            }
        }
    }
    found
}

enum Step {
    Onward(Carried),
    Operand,
    Stop,
    Other,
}

fn step(node: &Node, slot: usize, ports: Option<&Ports>, carried: &Carried) -> Step {
    let mixed = || Step::Onward(Carried { axes: carried.axes.clone(), positional: false });
    match (&node.op, slot) {
        (Op::Unary(UnaryOp::Cast | UnaryOp::Identity), 0) => Step::Onward(carried.clone()),
        (Op::Squeeze { .. } | Op::Unsqueeze { .. }, 0) => Step::Onward(carried.clone()),
        (Op::Gather { .. }, 0) => {
            picked(carried, ports.and_then(|p| p.ints(1).map(<[i64]>::to_vec)))
        }
        (Op::Slice { attrs }, 0) => {
            let window = ports.and_then(|ports| windows(attrs.as_ref(), ports).ok());
            let indices = window.and_then(|windows| {
                let (start, len) = windows.first()?.clamp(carried.axes.len())?;
                (windows.first()?.step == 1)
                    .then(|| (start..start + len).filter_map(|i| i64::try_from(i).ok()).collect())
            });
            picked(carried, indices)
        }
        (
            Op::Concat { .. }
            | Op::Binary(_)
            | Op::Reduce { .. }
            | Op::Gather { .. }
            | Op::Split { .. },
            0..,
        ) if !matches!((&node.op, slot), (Op::Reduce { .. } | Op::Split { .. }, 1..)) => mixed(),
        (Op::Unary(_) | Op::Reshape { .. }, 0) => mixed(),
        (Op::Reshape { .. } | Op::Expand | Op::Split { .. } | Op::Slice { .. }, 1..) => {
            Step::Operand
        }
        (Op::ConstantOfShape, 0) | (Op::Resize, SIZES) => Step::Operand,
        (Op::Shape { .. }, _) => Step::Stop,
        _ => Step::Other,
    }
}

/// The sizes at constant positions; all of them where the positions are not known.
fn picked(carried: &Carried, indices: Option<Vec<i64>>) -> Step {
    let all = Carried { axes: carried.axes.clone(), positional: false };
    let Some(indices) = indices.filter(|_| carried.positional) else { return Step::Onward(all) };
    let at = |&index: &i64| Some(carried.axes[normal_axis(index, carried.axes.len()).ok()?]);
    match indices.iter().map(at).collect::<Option<Vec<usize>>>() {
        Some(axes) if axes.is_empty() => Step::Stop,
        Some(axes) => Step::Onward(Carried { axes, positional: true }),
        None => Step::Onward(all),
    }
}
