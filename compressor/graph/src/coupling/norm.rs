//! Norms that compute their statistics from the values themselves.

use super::{
    AxisRef, Coupling, Fold, FoldKind, Port, Ports, Relation, Stripe, input, normal_axis, output,
};
use crate::Role;

/// Inputs `x, scale, bias`; the statistics of each channel are those of its spatial axes.
pub(super) fn instance(ports: &Ports) -> Coupling {
    let rank = ports.rank(Port::In(0)).unwrap_or(0);
    let mut coupling = Coupling::default();
    for axis in 0..rank {
        coupling.same(input(0, axis), output(0, axis));
    }
    coupling.role(0, 0, Role::Elementwise);
    coupling.role(0, 1, Role::Elementwise);
    for slot in 1..=2 {
        coupling.same(input(0, 1), input(slot, 0));
        coupling.role(slot, 0, Role::Elementwise);
    }
    fold(&mut coupling, FoldKind::Standardised, 2..rank);
    coupling
}

/// Inputs `x, scale, bias`; the statistics are those of the axes from `axis` on, and the parameters have these
/// axes.
pub(super) fn width(kind: FoldKind, axis: i64, ports: &Ports) -> Result<Coupling, String> {
    let rank = ports.rank(Port::In(0)).unwrap_or(0);
    let first = normal_axis(axis, rank)?;
    let mut coupling = Coupling::default();
    for axis in 0..rank {
        coupling.same(input(0, axis), output(0, axis));
    }
    let constant = |slot: usize| ports.get(Port::In(slot)).is_none_or(|info| info.constant);
    if !constant(1) || !constant(2) {
        for axis in first..rank {
            coupling.lock(input(0, axis), "a norm over this axis has parameters that are computed");
        }
    }
    for slot in 1..=2 {
        let Some(param) = ports.rank(Port::In(slot)) else { continue };
        for axis in 0..param {
            // Parameters are aligned from the back, and may leave out leading axes.
            let Some(to) = (rank + axis).checked_sub(param) else { continue };
            if ports.size(input(slot, axis)) != Some(1) || ports.size(input(0, to)) == Some(1) {
                coupling.same(input(0, to), input(slot, axis));
                coupling.role(slot, axis, Role::Elementwise);
            }
        }
    }
    fold(&mut coupling, kind, first..rank);
    Ok(coupling)
}

fn fold(coupling: &mut Coupling, kind: FoldKind, axes: std::ops::Range<usize>) {
    for axis in axes.clone() {
        let beside = axes.clone().filter(|&other| other != axis).collect();
        coupling.folds.push(Fold { at: input(0, axis), kind, beside, keeps_rank: true });
    }
}

/// Inputs `x, scale, bias`; the statistics are those of a group of channels and the spatial axes, so whole groups
/// go. The parameters are one a group, or one a channel.
pub(super) fn group(groups: usize, ports: &Ports) -> Result<Coupling, String> {
    let rank = ports.rank(Port::In(0)).unwrap_or(0);
    let channels =
        ports.size(input(0, 1)).ok_or("GroupNormalization: the channels are not known")?;
    if groups == 0 || !channels.is_multiple_of(groups) {
        return Err(format!(
            "GroupNormalization: {groups} groups do not divide {channels} channels"
        ));
    }
    let whole = Stripe { width: groups, inner: channels / groups };
    let mut coupling = Coupling::default();
    for axis in 0..rank.min(2) {
        coupling.same(input(0, axis), output(0, axis));
    }
    let tie = |a: AxisRef, b: AxisRef, b_stripe: Stripe| super::Link {
        a,
        b,
        relation: Relation::Stripes { a: whole, b: b_stripe },
    };
    coupling.links.push(tie(input(0, 1), input(0, 1), whole));
    for slot in 1..=2 {
        let inner = ports.size(input(slot, 0)).unwrap_or(0) / groups;
        let stripe = Stripe { width: groups, inner: inner.max(1) };
        coupling.links.push(tie(input(0, 1), input(slot, 0), stripe));
        coupling.role(slot, 0, Role::Elementwise);
    }
    for axis in 2..rank {
        for at in [input(0, axis), output(0, axis)] {
            coupling.lock(at, "GroupNormalization averages over this axis");
        }
    }
    Ok(coupling)
}
