//! Operators that fold an axis: sums tolerate units that are zero, everything else needs all of them.

use super::{Coupling, Fold, FoldKind, Port, Ports, input, normal_axis, output};
use crate::{Dim, ReduceKind};

/// Where a reduction takes its axes from.
pub(super) struct Axes<'a> {
    /// The attribute.
    pub(super) given: Option<&'a [i64]>,
    /// Whether no axes mean "none" rather than "all".
    pub(super) noop_when_empty: bool,
}

impl Axes<'_> {
    fn resolve(&self, rank: usize, ports: &Ports) -> Result<Vec<usize>, String> {
        let given = match self.given {
            Some(axes) => Some(axes),
            None if ports.has(1) => {
                Some(ports.ints(1).ok_or("reduction over axes that are computed")?)
            }
            None => None,
        };
        match given {
            Some(axes) if !axes.is_empty() => {
                axes.iter().map(|&axis| normal_axis(axis, rank)).collect()
            }
            _ if self.noop_when_empty => Ok(Vec::new()),
            _ => Ok((0..rank).collect()),
        }
    }
}

/// Reduces the given axes and keeps the others.
pub(super) fn reduce(
    kind: ReduceKind,
    axes: &Axes<'_>,
    keepdims: bool,
    op_type: &str,
    ports: &Ports,
) -> Result<Coupling, String> {
    let rank = ports.dims(Port::In(0)).map_or(0, <[Dim]>::len);
    let reduced = axes.resolve(rank, ports)?;
    let zero_is_neutral = matches!(kind, ReduceKind::L1 | ReduceKind::L2 | ReduceKind::SumSquare);
    let fold = match kind {
        ReduceKind::Sum => Some(FoldKind::Sum),
        ReduceKind::Mean => Some(FoldKind::Mean),
        _ => None,
    };
    let mut coupling = Coupling::default();
    for (axis, target) in folded(rank, &reduced, keepdims) {
        match target {
            Some(target) => coupling.same(input(0, axis), output(0, target)),
            None if fold.is_some() => coupling.folds.extend(fold.map(|kind| {
                let beside = reduced.iter().copied().filter(|&other| other != axis).collect();
                Fold { at: input(0, axis), kind, beside, keeps_rank: keepdims }
            })),
            None if zero_is_neutral => coupling.sums.push(input(0, axis)),
            None => coupling.lock(input(0, axis), format!("{op_type} folds this axis")),
        }
    }
    Ok(coupling)
}

/// Every input axis with the output axis it becomes, or `None` where it is folded.
fn folded(rank: usize, reduced: &[usize], keepdims: bool) -> Vec<(usize, Option<usize>)> {
    let mut next = 0;
    (0..rank)
        .map(|axis| {
            let gone = reduced.contains(&axis);
            let target = (!gone).then_some(next);
            next += usize::from(!gone || keepdims);
            (axis, target)
        })
        .collect()
}

/// Batch and channels stay apart, spatial axes are folded.
pub(super) fn pool(op_type: &str, ports: &Ports) -> Coupling {
    let mut coupling = Coupling::default();
    for port in [Port::In(0), Port::Out(0)] {
        for axis in 2..ports.rank(port).unwrap_or(0) {
            coupling
                .lock(super::AxisRef { port, axis }, format!("{op_type} slides over this axis"));
        }
    }
    coupling.same(input(0, 0), output(0, 0));
    coupling.same(input(0, 1), output(0, 1));
    coupling
}

/// The normalised axis (before opset 13, all axes from it on) needs every unit.
pub(super) fn softmax(
    axis: i64,
    flat: bool,
    op_type: &str,
    ports: &Ports,
) -> Result<Coupling, String> {
    let rank = ports.dims(Port::In(0)).map_or(0, <[Dim]>::len);
    let axis = normal_axis(axis, rank)?;
    let mut coupling = Coupling::default();
    for other in 0..rank {
        if other == axis || (flat && other > axis) {
            coupling.lock(input(0, other), format!("{op_type} normalises over this axis"));
            coupling.lock(output(0, other), format!("{op_type} normalises over this axis"));
        } else {
            coupling.same(input(0, other), output(0, other));
        }
    }
    Ok(coupling)
}

/// Each channel is divided by a function of the `size` channels around it: a removed one would bring others
/// near.
pub(super) fn local_response(op_type: &str, ports: &Ports) -> Coupling {
    let mut coupling = Coupling::default();
    for axis in 0..ports.rank(Port::In(0)).unwrap_or(0) {
        if axis == 1 {
            let why = format!("{op_type} divides by neighbouring channels");
            coupling.lock(input(0, axis), why.clone());
            coupling.lock(output(0, axis), why);
        } else {
            coupling.same(input(0, axis), output(0, axis));
        }
    }
    coupling
}

/// The answer is a position on the axis.
pub(super) fn arg_max(
    axis: i64,
    keepdims: bool,
    op_type: &str,
    ports: &Ports,
) -> Result<Coupling, String> {
    let rank = ports.dims(Port::In(0)).map_or(0, <[Dim]>::len);
    let axis = normal_axis(axis, rank)?;
    let mut coupling = Coupling::default();
    for (from, target) in folded(rank, &[axis], keepdims) {
        match target {
            Some(target) => coupling.same(input(0, from), output(0, target)),
            None => coupling
                .lock(input(0, from), format!("{op_type} answers with positions on this axis")),
        }
    }
    Ok(coupling)
}
