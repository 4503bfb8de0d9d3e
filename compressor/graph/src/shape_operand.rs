//! Shape operands as constants: what to write into the second input of `Reshape` and `Expand` so that it
//! says the sizes of the output, leaving the unknown ones to the run time.

use std::collections::HashMap;

use crate::coupling::{Port, Ports, normal_axis, windows};
use crate::{Dim, Graph, NodeId, Op, Origin, UnaryOp, ValueId};

/// Steps followed from a shape operand back to the `Shape` that an element comes from.
pub(crate) const MAX_STEPS: usize = 16;

/// What the node does with the operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `Reshape`: −1 is inferred, and 0 copies the input's axis unless `allow_zero`.
    Reshape { allow_zero: bool },
    /// `Expand`: 1 keeps the input's axis.
    Expand,
    /// `ConstantOfShape`: every size must be said.
    Filled,
}

/// An element of the new operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Element {
    /// This number.
    Is(i64),
    /// The element at this place of the old operand.
    Old(usize),
}

/// What is known of the output axes of a node with a shape operand.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Sources {
    /// Axes that are known to equal the input's.
    pub(crate) kept: Vec<bool>,
    /// Axes whose size the old operand reads off a value: an axis of unknown size, which no pruning changes.
    pub(crate) read: Vec<bool>,
}

/// The operand for an output of dims `to`, from an input of dims `from`.
///
/// # Errors
/// More axes of unknown size than the operand can leave open or the old one can say.
pub(crate) fn operand(
    kind: Kind,
    from: &[Dim],
    to: &[Dim],
    sources: &Sources,
) -> Result<Vec<Element>, String> {
    let is_kept = |axis: usize| sources.kept.get(axis) == Some(&true);
    let found = match kind {
        Kind::Reshape { allow_zero } => reshape(allow_zero, from, to, is_kept),
        Kind::Expand => each(to, |axis| {
            let at = (axis + from.len()).checked_sub(to.len())?;
            ((from[at] == to[axis] && from[at] != Dim::Unknown) || is_kept(axis)).then_some(1)
        }),
        Kind::Filled => each(to, |_| None),
    };
    let why = match found {
        Ok(found) => return Ok(found.into_iter().map(Element::Is).collect()),
        Err(why) => why,
    };
    let axes = to.iter().enumerate().map(|(axis, dim)| match dim {
        Dim::Fixed(size) => i64::try_from(*size).ok().map(Element::Is),
        _ => (sources.read.get(axis) == Some(&true)).then_some(Element::Old(axis)),
    });
    axes.collect::<Option<_>>().ok_or(why)
}

fn reshape(
    allow_zero: bool,
    from: &[Dim],
    to: &[Dim],
    is_kept: impl Fn(usize) -> bool,
) -> Result<Vec<i64>, String> {
    let open = to.iter().filter(|dim| !matches!(dim, Dim::Fixed(_))).count();
    let mut inferred = false;
    each(to, |axis| {
        let equal = from.get(axis) == Some(&to[axis]) && to[axis] != Dim::Unknown;
        let copied = !allow_zero && (equal || is_kept(axis));
        if open > 1 && copied {
            return Some(0);
        }
        (!std::mem::replace(&mut inferred, true)).then_some(-1)
    })
}

/// Where the elements of the shape operand of `Reshape`, `Expand` (input 1) or `ConstantOfShape` (input 0) come
/// from. An axis that is read off the very input that is shaped, at the same place, stays as it is.
pub(crate) fn sources(graph: &Graph, ports: &HashMap<NodeId, Ports>, id: NodeId) -> Sources {
    let node = graph.node(id);
    let slot = usize::from(node.op != Op::ConstantOfShape);
    let data = node.input(0).filter(|_| slot == 1);
    let dims = |port| ports.get(&id).and_then(|ports| ports.dims(port)).unwrap_or_default();
    let (from, to) = (dims(Port::In(0)).len(), dims(Port::Out(0)).len());
    let (Some(operand), [Dim::Fixed(len)]) = (node.input(slot), dims(Port::In(slot))) else {
        return Sources::default();
    };
    // A shorter operand of Expand speaks of the last axes.
    if *len != to {
        return Sources::default();
    }
    let shift = if node.op == Op::Expand { to.saturating_sub(from) } else { 0 };
    let source = |axis| element(graph, ports, operand, axis, MAX_STEPS);
    let kept = |axis: usize| Some(source(axis)? == (data?, axis.checked_sub(shift)?));
    Sources {
        kept: (0..to).map(|axis| kept(axis) == Some(true)).collect(),
        read: (0..to).map(|axis| source(axis).is_some()).collect(),
    }
}

/// The value and axis whose size element `index` of `value` is.
fn element(
    graph: &Graph,
    ports: &HashMap<NodeId, Ports>,
    value: ValueId,
    index: usize,
    steps: usize,
) -> Option<(ValueId, usize)> {
    match come_from(graph, ports, value, index) {
        Source::Size(value, axis) => Some((value, axis)),
        Source::Element(value, index) => element(graph, ports, value, index, steps.checked_sub(1)?),
        Source::Constant | Source::Computed(_) | Source::Unknown => None,
    }
}

/// Whether nothing that element `index` of `value` is computed from is a size that a pruning could change: one
/// that is a number today. `None` where that cannot be followed.
pub(crate) fn stands_still(
    graph: &Graph,
    ports: &HashMap<NodeId, Ports>,
    sizes: &dyn Fn(ValueId, usize) -> Option<Dim>,
    (value, index): (ValueId, usize),
    steps: usize,
) -> Option<bool> {
    let steps = steps.checked_sub(1)?;
    let onward = |at: (ValueId, usize)| stands_still(graph, ports, sizes, at, steps);
    match come_from(graph, ports, value, index) {
        Source::Constant => Some(true),
        Source::Size(value, axis) => Some(sizes(value, axis)?.fixed().is_none()),
        Source::Element(value, index) => onward((value, index)),
        Source::Computed(parts) => {
            parts.into_iter().try_fold(true, |still, part| Some(still && onward(part)?))
        }
        Source::Unknown => None,
    }
}

/// Where an element of an integer vector comes from.
enum Source {
    Constant,
    /// The size of an axis.
    Size(ValueId, usize),
    /// The same element elsewhere.
    Element(ValueId, usize),
    /// Arithmetic on these.
    Computed(Vec<(ValueId, usize)>),
    Unknown,
}

fn come_from(
    graph: &Graph,
    ports: &HashMap<NodeId, Ports>,
    value: ValueId,
    index: usize,
) -> Source {
    if graph.constant(value).is_some() {
        return Source::Constant;
    }
    let Some(Origin::Node(id, 0)) = graph.get_value(value).map(|value| value.origin) else {
        return Source::Unknown;
    };
    let moved = ports.get(&id).and_then(|ports| moved(graph, ports, id, index));
    moved.unwrap_or(Source::Unknown)
}

fn moved(graph: &Graph, ports: &Ports, id: NodeId, index: usize) -> Option<Source> {
    let node = graph.node(id);
    let from = |slot: usize, index: usize| Some(Source::Element(node.input(slot)?, index));
    let count = |slot: usize| {
        let dims = ports.dims(Port::In(slot))?;
        dims.iter().map(Dim::fixed).product::<Option<usize>>()
    };
    match &node.op {
        Op::Unary(UnaryOp::Cast | UnaryOp::Identity)
        | Op::Squeeze { .. }
        | Op::Unsqueeze { .. } => from(0, index),
        Op::Gather { .. } => from(0, normal_axis(*ports.ints(1)?.get(index)?, count(0)?).ok()?),
        Op::Slice { attrs } => {
            let window = *windows(attrs.as_ref(), ports).ok()?.first()?;
            let (start, _) = window.clamp(count(0)?)?;
            (window.step == 1).then(|| from(0, start + index)).flatten()
        }
        Op::Concat { .. } => {
            let mut left = index;
            for slot in 0..node.inputs.len() {
                let count = count(slot)?;
                if left < count {
                    return from(slot, left);
                }
                left -= count;
            }
            None
        }
        Op::Shape { start, .. } => {
            let rank = ports.dims(Port::In(0))?.len();
            let start = normal_axis(*start, rank).unwrap_or(0);
            Some(Source::Size(node.input(0)?, start + index)).filter(|_| start + index < rank)
        }
        Op::Unary(_) | Op::Binary(_) => {
            let part = |slot: usize| {
                let at = if count(slot)? == 1 { 0 } else { index };
                Some((node.input(slot)?, at))
            };
            let parts = (0..node.inputs.len()).map(part).collect::<Option<_>>()?;
            Some(Source::Computed(parts))
        }
        _ => None,
    }
}

fn each(to: &[Dim], mut open: impl FnMut(usize) -> Option<i64>) -> Result<Vec<i64>, String> {
    to.iter()
        .enumerate()
        .map(|(axis, dim)| match dim {
            Dim::Fixed(size) => i64::try_from(*size).map_err(|_| overflows(*size)),
            _ => open(axis).ok_or_else(|| open_axis(axis)),
        })
        .collect()
}

fn overflows(size: usize) -> String {
    format!("size {size} overflows")
}

fn open_axis(axis: usize) -> String {
    format!("the size of output axis {axis} is only known at run time")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn sym(name: &str) -> Dim {
        Dim::Symbol(name.to_owned())
    }

    /// The operand, where it can be said without the old one.
    fn constant(kind: Kind, from: &[Dim], to: &[Dim], kept: &[bool]) -> Result<Vec<i64>, String> {
        let sources = Sources { kept: kept.to_vec(), read: Vec::new() };
        let elements = operand(kind, from, to, &sources)?.into_iter();
        let number = |element| {
            if let Element::Is(size) = element { size } else { unreachable!("no source") }
        };
        Ok(elements.map(number).collect())
    }

    const RESHAPE: Kind = Kind::Reshape { allow_zero: false };

    #[test]
    fn one_open_axis_is_inferred() {
        let operand = constant(
            RESHAPE,
            &[sym("N"), Dim::Fixed(6)],
            &[sym("N"), Dim::Fixed(2), Dim::Fixed(3)],
            &[],
        );
        assert_eq!(operand.unwrap(), [-1, 2, 3]);
    }

    #[test]
    fn several_open_axes_are_copied_where_they_stand_still() {
        let from = [sym("N"), sym("L"), Dim::Fixed(8)];
        let to = [sym("N"), sym("L"), Dim::Fixed(2), Dim::Fixed(4)];
        assert_eq!(constant(RESHAPE, &from, &to, &[]).unwrap(), [0, 0, 2, 4]);
    }

    #[test]
    fn open_axes_that_move_cannot_be_said() {
        let from = [sym("N"), sym("L"), Dim::Fixed(8)];
        let to = [sym("L"), sym("N"), Dim::Fixed(8)];
        assert!(constant(RESHAPE, &from, &to, &[]).unwrap_err().contains("output axis 1"));
    }

    #[test]
    fn unknown_axes_are_copied_where_the_operand_reads_them_off_the_input() {
        let from = [Dim::Unknown, Dim::Unknown, Dim::Fixed(8)];
        let to = [Dim::Unknown, Dim::Unknown, Dim::Fixed(2), Dim::Fixed(4)];
        assert!(constant(RESHAPE, &from, &to, &[]).is_err());
        let kept = [true, true, false, false];
        assert_eq!(constant(RESHAPE, &from, &to, &kept).unwrap(), [0, 0, 2, 4]);
        assert!(constant(Kind::Reshape { allow_zero: true }, &from, &to, &kept).is_err());
    }

    #[test]
    fn expand_keeps_an_equal_axis_and_refuses_an_unknown_one() {
        let from = [sym("N"), Dim::Fixed(1)];
        assert_eq!(constant(Kind::Expand, &from, &[sym("N"), Dim::Fixed(5)], &[]).unwrap(), [1, 5]);
        assert!(constant(Kind::Expand, &from, &[sym("M"), Dim::Fixed(5)], &[]).is_err());
        assert!(constant(Kind::Expand, &[Dim::Unknown], &[Dim::Unknown], &[]).is_err());
    }

    #[test]
    fn a_filled_tensor_needs_every_size() {
        assert!(constant(Kind::Filled, &[], &[sym("N")], &[]).is_err());
    }

    #[test]
    fn sizes_of_unknown_axes_come_from_the_old_operand() {
        let sources = Sources { kept: Vec::new(), read: vec![false, true, false] };
        let to = [Dim::Fixed(1), sym("N"), Dim::Fixed(8)];
        let elements = operand(Kind::Filled, &[], &to, &sources).unwrap();
        assert_eq!(elements, [Element::Is(1), Element::Old(1), Element::Is(8)]);
        let moved = [sym("N"), Dim::Fixed(1), Dim::Fixed(8)];
        assert!(operand(Kind::Filled, &[], &moved, &sources).unwrap_err().contains("axis 0"));
    }
}
