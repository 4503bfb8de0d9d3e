//! Attributes and shape operands that name the sizes of what shrank.

use std::collections::{BTreeSet, HashMap};

use super::{Gone, PruneError, Removal, Work, cause};
use crate::coupling::{Port, Ports, normal_axis, pad_amounts, split_sizes, windows};
use crate::group::find::{Readers, ports};
use crate::op::resize::SIZES;
use crate::shape_operand::{self, Element, Kind};
use crate::{
    Attribute, AttributeValue, Cause, Dim, Edit, Graph, GroupId, Node, NodeId, Op, Shapes, ValueId,
};

/// Rewrites what names an old size, node by node.
/// `graph` is the unpruned one.
pub(super) fn fix_all(
    work: &mut Work,
    graph: &Graph,
    removal: &Removal,
    shapes: &Shapes,
) -> Result<(), PruneError> {
    let all_ports = ports(graph, shapes, &Readers::new(graph));
    for (id, node) in graph.nodes() {
        let Some(ports) = all_ports.get(&id) else { continue };
        let at = Place { id, node, ports, all: &all_ports, graph, removal, shapes };
        match &node.op {
            Op::Conv(attrs)
            | Op::ConvInteger(attrs)
            | Op::QLinearConv(attrs)
            | Op::ConvTranspose(attrs)
                if attrs.group > 1 =>
            {
                at.whole_groups(work, "group", attrs.group)?;
            }
            Op::Reshape { allow_zero } => {
                at.shape(work, Kind::Reshape { allow_zero: *allow_zero }, 1)?
            }
            Op::Expand => at.shape(work, Kind::Expand, 1)?,
            Op::ConstantOfShape => at.shape(work, Kind::Filled, 0)?,
            Op::Resize => at.resize(work)?,
            Op::GroupNormalization { groups, .. } => {
                at.whole_groups(work, "num_groups", *groups)?
            }
            Op::Split { axis, sizes } => at.split(work, *axis, sizes.as_deref())?,
            Op::Pad { pads, .. } => at.pad(work, pads.as_deref())?,
            Op::Slice { attrs } => at.slice(work, attrs.as_ref())?,
            Op::Recurrent(_) => at.hidden_size(work)?,
            _ => {}
        }
    }
    Ok(())
}

struct Place<'a> {
    id: NodeId,
    node: &'a Node,
    ports: &'a Ports,
    all: &'a HashMap<NodeId, Ports>,
    graph: &'a Graph,
    removal: &'a Removal,
    shapes: &'a Shapes,
}

impl Place<'_> {
    /// What is removed of an axis of input `slot`, be it a constant or not.
    fn gone(&self, slot: usize, axis: usize) -> Option<&Gone> {
        let value = self.node.input(slot)?;
        let constant = self.removal.uses.get(&(value, self.id, slot));
        constant.and_then(|axes| axes.get(&axis)).or_else(|| self.removal.gone(Some(value), axis))
    }

    /// The groups that shrink input `slot` or a size that an operand here is computed from.
    fn groups_in(&self, slot: usize) -> BTreeSet<GroupId> {
        let rank = self.ports.dims(Port::In(slot)).map_or(0, <[Dim]>::len);
        self.with_readers((0..rank).filter_map(|axis| self.gone(slot, axis)))
    }

    /// As [`Self::groups_in`], of an output.
    fn groups(&self, value: Option<ValueId>) -> BTreeSet<GroupId> {
        let rank = value.and_then(|value| self.shapes.dims(value)).map_or(0, <[Dim]>::len);
        self.with_readers((0..rank).filter_map(|axis| self.removal.gone(value, axis)))
    }

    fn with_readers<'b>(&self, axes: impl Iterator<Item = &'b Gone>) -> BTreeSet<GroupId> {
        let mut groups: BTreeSet<GroupId> =
            axes.flat_map(|gone| gone.groups.iter().copied()).collect();
        groups.extend(self.removal.size_readers.get(&self.id).into_iter().flatten());
        groups
    }

    /// Counts the groups of channels of which any is left, where channels went.
    fn whole_groups(&self, work: &mut Work, name: &str, groups: usize) -> Result<(), PruneError> {
        let (Some(gone), Some(channels)) = (
            self.removal.gone(self.node.input(0), 1),
            self.ports.size(crate::coupling::input(0, 1)),
        ) else {
            return Ok(());
        };
        let per_group = (channels / groups.max(1)).max(1);
        let left =
            (0..groups).filter(|group| gone.kept_in(group * per_group, per_group) > 0).count();
        if left == groups {
            return Ok(());
        }
        self.set(work, name, AttributeValue::Int(to_int(left)?), &gone.cause("fewer groups"))
    }

    /// Recurrence weights have a column for each hidden unit.
    fn hidden_size(&self, work: &mut Work) -> Result<(), PruneError> {
        let (Some(gone), Some(hidden), Some(_)) = (
            self.gone(2, 2),
            self.ports.size(crate::coupling::input(2, 2)),
            self.node.attr("hidden_size"),
        ) else {
            return Ok(());
        };
        let left = AttributeValue::Int(to_int(hidden.saturating_sub(gone.indices.len()))?);
        self.set(work, "hidden_size", left, &gone.cause("fewer hidden units"))
    }

    fn shape(&self, work: &mut Work, kind: Kind, slot: usize) -> Result<(), PruneError> {
        let out = self.node.output(0);
        let groups = self.groups(out);
        let (false, Some(out)) = (groups.is_empty(), out) else { return Ok(()) };
        let Some(to) = self.removal.dims(self.shapes, out) else { return Ok(()) };
        let from = self
            .node
            .input(0)
            .and_then(|value| self.removal.dims(self.shapes, value))
            .unwrap_or_default();
        let known = self.ports.ints(slot);
        let cause = cause(&groups, "new sizes");
        let Some(known) = known else {
            let sources = shape_operand::sources(self.graph, self.all, self.id);
            let operand = shape_operand::operand(kind, &from, &to, &sources);
            return self.compose(work, slot, &operand.map_err(PruneError::Stale)?, &cause);
        };
        let operand = patched(known, kind, &to)?;
        let constant = self.ports.get(Port::In(slot)).is_some_and(|info| info.constant);
        if constant && known == operand {
            return Ok(());
        }
        self.feed(work, slot, &operand, &cause)
    }

    /// Sizes that are numbers are written anew; the others are taken from the old operand.
    fn resize(&self, work: &mut Work) -> Result<(), PruneError> {
        let (Some(operand), Some(out)) = (self.node.input(SIZES), self.node.output(0)) else {
            return Ok(());
        };
        let groups = self.groups(Some(out));
        let Some(dims) = self.removal.dims(self.shapes, out).filter(|_| !groups.is_empty()) else {
            return Ok(());
        };
        let dims: Vec<Dim> = match self.node.attr_ints("axes") {
            Some(axes) => axes
                .iter()
                .map(|&axis| normal_axis(axis, dims.len()).map(|axis| dims[axis].clone()))
                .collect::<Result<_, _>>()
                .map_err(PruneError::Stale)?,
            None => dims,
        };
        let cause = cause(&groups, "new sizes");
        let value = patched_vector(work, operand, &dims, &cause)?;
        work.edit(Edit::ReplaceInput { node: self.id, slot: SIZES, value: Some(value) }, &cause)
            .map(drop)
    }

    /// An operand of numbers and of elements of the old one: a constant where it is numbers alone.
    fn compose(
        &self,
        work: &mut Work,
        slot: usize,
        elements: &[Element],
        cause: &Cause,
    ) -> Result<(), PruneError> {
        let numbers = elements.iter().map(|element| match element {
            Element::Is(size) => Some(*size),
            Element::Old(_) => None,
        });
        if let Some(ints) = numbers.collect::<Option<Vec<i64>>>() {
            return self.feed(work, slot, &ints, cause);
        }
        let old = self.node.input(slot);
        let axis = || vec![Attribute { name: "axis".to_owned(), value: AttributeValue::Int(0) }];
        let mut parts = Vec::new();
        for element in elements {
            parts.push(match element {
                Element::Is(size) => Some(work.ints(&[*size], cause)?),
                Element::Old(index) => {
                    let index = Some(work.ints(&[to_int(*index)?], cause)?);
                    Some(work.node("Gather", vec![old, index], axis(), cause)?)
                }
            });
        }
        let value = Some(work.node("Concat", parts, axis(), cause)?);
        work.edit(Edit::ReplaceInput { node: self.id, slot, value }, cause).map(drop)
    }

    fn split(&self, work: &mut Work, axis: i64, sizes: Option<&[i64]>) -> Result<(), PruneError> {
        let groups = self.groups_in(0);
        let rank = self.ports.dims(Port::In(0)).map_or(0, <[Dim]>::len);
        let (false, Ok(axis)) = (groups.is_empty(), normal_axis(axis, rank)) else { return Ok(()) };
        let Some(size) = self.ports.size(crate::coupling::input(0, axis)) else { return Ok(()) };
        let old = split_sizes(sizes.or_else(|| self.ports.ints(1)), size, self.node.outputs.len());
        let old = old.map_err(PruneError::Stale)?;
        let mut start = 0;
        let mut new = Vec::new();
        for len in old {
            let kept = self.gone(0, axis).map_or(len, |gone| gone.kept_in(start, len));
            new.push(to_int(kept)?);
            start += len;
        }
        let cause = cause(&groups, "new sizes");
        if sizes.is_some() || work.model.opset("").unwrap_or(1) < 13 {
            return self.set(work, "split", AttributeValue::Ints(new), &cause);
        }
        if self.node.attr("num_outputs").is_some() {
            let edit =
                Edit::SetAttribute { node: self.id, name: "num_outputs".to_owned(), value: None };
            work.edit(edit, &cause)?;
        }
        self.feed(work, 1, &new, &cause)
    }

    /// Of a lengthened axis, filler may have gone.
    fn pad(&self, work: &mut Work, pads: Option<&[i64]>) -> Result<(), PruneError> {
        let out = self.node.output(0);
        let rank = self.ports.dims(Port::In(0)).map_or(0, <[Dim]>::len);
        if (0..rank).all(|axis| self.removal.gone(out, axis).is_none()) {
            return Ok(());
        }
        let mut amounts = pad_amounts(pads, self.ports).map_err(PruneError::Stale)?;
        for (axis, (begin, end)) in amounts.iter_mut().enumerate() {
            let size = self.ports.size(crate::coupling::input(0, axis));
            let bounds = usize::try_from(*begin).ok().zip(usize::try_from(*end).ok());
            if let (Some(gone), Some(size), Some((before, behind))) =
                (self.removal.gone(out, axis), size, bounds)
            {
                *begin = to_int(gone.kept_in(0, before))?;
                *end = to_int(gone.kept_in(before + size, behind))?;
            }
        }
        let cause = cause(&self.groups(out), "less to add");
        let (begins, ends): (Vec<i64>, Vec<i64>) = amounts.into_iter().unzip();
        let new = [begins, ends].concat();
        if pads.is_some() {
            return self.set(work, "pads", AttributeValue::Ints(new), &cause);
        }
        self.feed(work, 1, &new, &cause)?;
        if self.ports.has(3) {
            // The amounts are those of all axes now.
            let axes = (0..rank).map(to_int).collect::<Result<Vec<_>, _>>()?;
            self.feed(work, 3, &axes, &cause)?;
        }
        Ok(())
    }

    fn slice(
        &self,
        work: &mut Work,
        attrs: Option<&crate::coupling::SliceAttrs>,
    ) -> Result<(), PruneError> {
        let groups = self.groups_in(0);
        if groups.is_empty() {
            return Ok(());
        }
        let windows = windows(attrs, self.ports).map_err(PruneError::Stale)?;
        let (mut starts, mut ends, mut axes, mut steps) = (vec![], vec![], vec![], vec![]);
        for window in &windows {
            let size = self.ports.size(crate::coupling::input(0, window.axis));
            let gone = self.gone(0, window.axis);
            let moved = gone.zip(size).and_then(|(gone, size)| {
                let (start, len) = window.clamp(size)?;
                Some((gone.kept_in(0, start), gone.kept_in(start, len)))
            });
            let (start, end) = match moved {
                Some((start, len)) => (to_int(start)?, to_int(start + len)?),
                None => (window.start, window.end),
            };
            starts.push(start);
            ends.push(end);
            axes.push(to_int(window.axis)?);
            steps.push(window.step);
        }
        let cause = cause(&groups, "new bounds");
        if attrs.is_some() {
            self.set(work, "starts", AttributeValue::Ints(starts), &cause)?;
            self.set(work, "ends", AttributeValue::Ints(ends), &cause)?;
            return self.set(work, "axes", AttributeValue::Ints(axes), &cause);
        }
        // The four must agree in type, so all are written.
        for (slot, ints) in (1..).zip([starts, ends, axes, steps]) {
            self.feed(work, slot, &ints, &cause)?;
        }
        Ok(())
    }

    fn set(
        &self,
        work: &mut Work,
        name: &str,
        value: AttributeValue,
        cause: &Cause,
    ) -> Result<(), PruneError> {
        let edit = Edit::SetAttribute { node: self.id, name: name.to_owned(), value: Some(value) };
        work.edit(edit, cause).map(drop)
    }

    fn feed(
        &self,
        work: &mut Work,
        slot: usize,
        ints: &[i64],
        cause: &Cause,
    ) -> Result<(), PruneError> {
        let value = Some(work.ints(ints, cause)?);
        work.edit(Edit::ReplaceInput { node: self.id, slot, value }, cause).map(drop)
    }
}

/// A constant shape operand with the sizes it names replaced; what it leaves open stays open.
fn patched(ints: &[i64], kind: Kind, to: &[Dim]) -> Result<Vec<i64>, PruneError> {
    let shift = to.len().checked_sub(ints.len());
    let shift = shift.ok_or_else(|| {
        PruneError::Stale("a shape operand longer than the output's rank".to_owned())
    })?;
    let keeps = |size: i64| match kind {
        Kind::Reshape { .. } => size <= 0,
        Kind::Expand => size == 1,
        Kind::Filled => false,
    };
    let new = ints.iter().zip(&to[shift..]).map(|(&size, dim)| match dim {
        Dim::Fixed(fixed) if !keeps(size) => to_int(*fixed),
        _ => Ok(size),
    });
    new.collect()
}

/// `operand` with the fixed `dims` written over it.
fn patched_vector(
    work: &mut Work,
    operand: ValueId,
    dims: &[Dim],
    cause: &Cause,
) -> Result<ValueId, PruneError> {
    let mut parts = Vec::new();
    let mut at = 0;
    for run in dims.chunk_by(|a, b| a.fixed().is_some() == b.fixed().is_some()) {
        let end = at + run.len();
        let sizes = run.iter().filter_map(Dim::fixed).map(to_int).collect::<Result<Vec<_>, _>>()?;
        parts.push(if sizes.is_empty() {
            let bounds = [to_int(at)?, to_int(end)?, 0];
            let bounds = bounds.map(|bound| work.ints(&[bound], cause));
            let [start, end, axis] = bounds;
            let inputs = vec![Some(operand), Some(start?), Some(end?), Some(axis?)];
            work.add_node(Node::new("Slice", "open_sizes", inputs, Vec::new()), cause)?
        } else {
            work.ints(&sizes, cause)?
        });
        at = end;
    }
    if let [part] = parts[..] {
        return Ok(part);
    }
    let axis = Attribute { name: "axis".to_owned(), value: AttributeValue::Int(0) };
    let parts = parts.into_iter().map(Some).collect();
    work.add_node(Node::new("Concat", "sizes", parts, vec![axis]), cause)
}

pub(super) fn to_int(size: usize) -> Result<i64, PruneError> {
    i64::try_from(size).map_err(|_| PruneError::Stale(format!("size {size} overflows")))
}
