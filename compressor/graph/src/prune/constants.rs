//! Slices of constants, with copies where readers want different ones.

use std::collections::{BTreeMap, BTreeSet};

use super::{Gone, PruneError, Removal, Work, cause};
use crate::{Cause, Edit, GroupId, NodeId, Op, Origin, Tensor, UnaryOp, ValueId};

/// What happens to the removed indices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Slicing {
    Remove,
    Zero,
}

/// The slices of one use, axis by axis.
type Cuts = BTreeMap<usize, Gone>;

/// Slices every use of every constant.
pub(super) fn apply_all(
    work: &mut Work,
    removal: &Removal,
    slicing: Slicing,
) -> Result<(), PruneError> {
    let mut values: BTreeMap<ValueId, BTreeMap<Cuts, Vec<(NodeId, usize)>>> = BTreeMap::new();
    for (&(value, node, slot), axes) in &removal.uses {
        let mut cuts = axes.clone();
        if slicing == Slicing::Zero {
            cuts.retain(|axis, _| !removal.divisors.contains(&(node, slot, *axis)));
        }
        if !cuts.is_empty() {
            values.entry(value).or_default().entry(cuts).or_default().push((node, slot));
        }
    }
    for (value, variants) in values {
        for (cuts, uses) in variants {
            apply_one(work, value, &cuts, &uses, slicing)?;
        }
    }
    Ok(())
}

fn apply_one(
    work: &mut Work,
    value: ValueId,
    cuts: &Cuts,
    uses: &[(NodeId, usize)],
    slicing: Slicing,
) -> Result<(), PruneError> {
    let Some(old) = work.graph().constant(value) else {
        return Err(PruneError::Stale(format!("{value:?} is no constant")));
    };
    let tensor = cuts
        .iter()
        .try_fold(old.as_ref().clone(), |tensor, (&axis, gone)| cut(&tensor, axis, gone, slicing));
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
