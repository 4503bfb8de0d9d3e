//! Slices of constants, with copies where readers want different ones.

use std::collections::{BTreeMap, BTreeSet};

use super::{Gone, PruneError, Removal, Work, cause};
use crate::coupling::quantized::{zero_point_axis, zero_point_of};
use crate::{Cause, Edit, GroupId, NodeId, Op, Origin, Tensor, UnaryOp, ValueId};

/// What happens to the removed indices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Slicing {
    Remove,
    Zero,
}

/// What a mask writes: the zero point that a node reads beside the constant, and the axis along which it runs.
type Fill = Option<(ValueId, Option<usize>)>;

/// The slices of one use, axis by axis.
type Cuts = BTreeMap<usize, Gone>;

/// Nodes and slots that read the constant.
type Uses = Vec<(NodeId, usize)>;

/// Slices every use of every constant.
pub(super) fn apply_all(
    work: &mut Work,
    removal: &Removal,
    slicing: Slicing,
) -> Result<(), PruneError> {
    let mut values: BTreeMap<ValueId, BTreeMap<(Cuts, Fill), Uses>> = BTreeMap::new();
    for (&(value, node, slot), axes) in &removal.uses {
        let mut cuts = axes.clone();
        if slicing == Slicing::Zero {
            cuts.retain(|axis, _| !removal.divisors.contains(&(node, slot, *axis)));
        }
        if !cuts.is_empty() {
            let fill = if slicing == Slicing::Zero { fill(work, node, slot) } else { None };
            values.entry(value).or_default().entry((cuts, fill)).or_default().push((node, slot));
        }
    }
    for (value, variants) in values {
        for ((cuts, fill), uses) in variants {
            apply_one(work, value, (&cuts, fill), &uses, slicing)?;
        }
    }
    Ok(())
}

fn apply_one(
    work: &mut Work,
    value: ValueId,
    (cuts, fill): (&Cuts, Fill),
    uses: &[(NodeId, usize)],
    slicing: Slicing,
) -> Result<(), PruneError> {
    let Some(old) = work.graph().constant(value) else {
        return Err(PruneError::Stale(format!("{value:?} is no constant")));
    };
    let point = fill.and_then(|(point, axis)| Some((work.graph().constant(point)?, axis)));
    let tensor = cuts.iter().try_fold(old.as_ref().clone(), |tensor, (&axis, gone)| {
        match (slicing, &point) {
            (Slicing::Zero, Some((point, along))) => filled(&tensor, axis, gone, point, *along),
            _ => cut(&tensor, axis, gone, slicing),
        }
    });
    let tensor = tensor.map_err(PruneError::Stale)?;
    let groups: BTreeSet<GroupId> =
        cuts.values().flat_map(|gone| gone.groups.iter().copied()).collect();
    let cause = cause(&groups, if slicing == Slicing::Remove { "removed" } else { "masked" });
    if only_these_read(work, value, uses) {
        work.edit(Edit::SetConstant { value, tensor }, &cause)?;
        return Ok(());
    }
    unshare(work, value, tensor, uses, &cause)
}

/// The zero point of a quantized constant.
fn fill(work: &Work, node: NodeId, slot: usize) -> Fill {
    let node = work.graph().get_node(node)?;
    let point = node.input(zero_point_of(&node.op, slot)?)?;
    let rank = work.graph().constant(node.input(slot)?)?.dims.len();
    Some((point, zero_point_axis(&node.op, slot, rank)))
}

/// The removed indices of `axis` set to `point`, a scalar or a vector along another axis.
fn filled(
    tensor: &Tensor,
    axis: usize,
    gone: &Gone,
    point: &Tensor,
    along: Option<usize>,
) -> Result<Tensor, String> {
    let width = tensor.dtype.size().ok_or_else(|| format!("{:?} has no width", tensor.dtype))?;
    let index = |element: usize, axis: usize| {
        let inner: usize = tensor.dims[axis + 1..].iter().product();
        element / inner.max(1) % tensor.dims[axis].max(1)
    };
    let fits = point.len() == 1 || along.is_some_and(|a| tensor.dims.get(a) == Some(&point.len()));
    if !fits || point.dtype != tensor.dtype || axis >= tensor.dims.len() {
        return Err(format!("zero points {:?} for {:?}", point.dims, tensor.dims));
    }
    let mut bytes = tensor.data.to_vec();
    for (element, bytes) in bytes.chunks_exact_mut(width).enumerate() {
        if gone.indices.contains(&u32::try_from(index(element, axis)).unwrap_or(u32::MAX)) {
            let at = along.filter(|_| point.len() > 1).map_or(0, |along| index(element, along));
            bytes.copy_from_slice(&point.data[at * width..(at + 1) * width]);
        }
    }
    Tensor::new(tensor.dtype, tensor.dims.clone(), bytes).map_err(|error| error.to_string())
}

fn unshare(
    work: &mut Work,
    value: ValueId,
    tensor: Tensor,
    uses: &[(NodeId, usize)],
    cause: &Cause,
) -> Result<(), PruneError> {
    let name = work.graph().value(value).name.clone();
    let copy = work.edit(Edit::AddConstant { name, tensor }, cause)?;
    for &(node, slot) in uses {
        work.edit(Edit::ReplaceInput { node, slot, value: copy }, cause)?;
    }
    Ok(())
}

/// Whether the constant can be changed in place: it is no alias, and nothing else sees it.
fn only_these_read(work: &Work, value: ValueId, uses: &[(NodeId, usize)]) -> bool {
    let graph = work.graph();
    let own = match graph.value(value).origin {
        Origin::Initializer => true,
        Origin::Node(node, _) => graph.node(node).op == Op::Constant,
        Origin::Input | Origin::Outer => false,
    };
    let readers = graph.consumers(value);
    let alias =
        readers.iter().any(|&(node, _)| graph.node(node).op == Op::Unary(UnaryOp::Identity));
    own && !alias
        && readers.iter().all(|reader| uses.contains(reader))
        && !graph.outputs().contains(&value)
        && graph.captured_by(value).is_empty()
}

fn cut(tensor: &Tensor, axis: usize, gone: &Gone, slicing: Slicing) -> Result<Tensor, String> {
    let size =
        *tensor.dims.get(axis).ok_or_else(|| format!("no axis {axis} in {:?}", tensor.dims))?;
    match slicing {
        Slicing::Remove => tensor.select(axis, &gone.kept(size)).map_err(|error| error.to_string()),
        Slicing::Zero => zeroed(tensor, axis, gone),
    }
}

/// Zero is all bytes zero in every element type that has a width in bytes.
fn zeroed(tensor: &Tensor, axis: usize, gone: &Gone) -> Result<Tensor, String> {
    let width = tensor.dtype.size().ok_or_else(|| format!("{:?} has no zero", tensor.dtype))?;
    let size = tensor.dims[axis];
    let inner: usize = tensor.dims[axis + 1..].iter().product::<usize>() * width;
    let mut bytes = tensor.data.to_vec();
    for block in bytes.chunks_mut((size * inner).max(1)) {
        for &index in &gone.indices {
            let start = index as usize * inner;
            let part = block.get_mut(start..start + inner);
            part.ok_or_else(|| format!("index {index} is outside of {size}"))?.fill(0);
        }
    }
    Tensor::new(tensor.dtype, tensor.dims.clone(), bytes).map_err(|error| error.to_string())
}
