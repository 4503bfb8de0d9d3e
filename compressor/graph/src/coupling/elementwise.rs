//! Operators that act on every index alone, and norms whose statistics leave the channel axis alone.

use super::{Coupling, Port, Ports, input, normal_axis, output};
use crate::{BinaryOp, Dim, Role};

/// One data input; further inputs are scalars (`Clip`'s bounds, `Dropout`'s ratio).
pub(super) fn unary(ports: &Ports) -> Coupling {
    let mut coupling = Coupling::default();
    for axis in 0..ports.dims(Port::In(0)).map_or(0, <[Dim]>::len) {
        coupling.same(input(0, axis), output(0, axis));
    }
    coupling
}

/// Multidirectional broadcasting: axes are aligned from the back, and a size of 1 carries nothing.
pub(super) fn binary(op: BinaryOp, ports: &Ports) -> Coupling {
    let mut coupling = Coupling::default();
    for slot in 0..ports.inputs.len() {
        let divides = matches!(op, BinaryOp::Div | BinaryOp::Mod) && slot == 1;
        broadcast(
            &mut coupling,
            ports,
            slot,
            if divides { Role::Divisor } else { Role::Elementwise },
        );
    }
    coupling
}

/// Links the axes of input `slot` with those of output 0, aligned from the back.
pub(super) fn broadcast(coupling: &mut Coupling, ports: &Ports, slot: usize, role: Role) {
    let (Some(from), Some(to)) = (ports.dims(Port::In(slot)), ports.dims(Port::Out(0))) else {
        return;
    };
    let Some(shift) = to.len().checked_sub(from.len()) else { return };
    for (axis, dim) in from.iter().enumerate() {
        if *dim == Dim::Fixed(1) && to[shift + axis] != Dim::Fixed(1) {
            continue;
        }
        coupling.same(input(slot, axis), output(0, shift + axis));
        coupling.role(slot, axis, role);
    }
}

/// Inputs `x, scale, bias, mean, var`.
pub(super) fn batch_norm(training: bool, ports: &Ports) -> Result<Coupling, String> {
    if training {
        return Err("BatchNormalization in training mode".to_owned());
    }
    let mut coupling = unary(ports);
    for slot in 1..=4 {
        coupling.same(input(0, 1), input(slot, 0));
        coupling.role(slot, 0, if slot == 4 { Role::Divisor } else { Role::Elementwise });
    }
    Ok(coupling)
}

/// Inputs `x, scale, bias`; the spatial axes are averaged over.
pub(super) fn instance_norm(ports: &Ports) -> Coupling {
    let mut coupling = Coupling::default();
    for axis in 0..ports.dims(Port::In(0)).map_or(0, <[Dim]>::len) {
        if axis < 2 {
            coupling.same(input(0, axis), output(0, axis));
            coupling.role(0, axis, Role::Elementwise);
        } else {
            coupling.lock(input(0, axis), "InstanceNormalization averages over this axis");
            coupling.lock(output(0, axis), "InstanceNormalization averages over this axis");
        }
    }
    for slot in 1..=2 {
        coupling.same(input(0, 1), input(slot, 0));
        coupling.role(slot, 0, Role::Elementwise);
    }
    coupling
}

/// Axes from `axis` on are averaged over.
pub(super) fn layer_norm(axis: i64, ports: &Ports) -> Result<Coupling, String> {
    let rank = ports.dims(Port::In(0)).map_or(0, <[Dim]>::len);
    let first = normal_axis(axis, rank)?;
    let mut coupling = Coupling::default();
    for axis in 0..rank {
        if axis < first {
            coupling.same(input(0, axis), output(0, axis));
        } else {
            let why = "LayerNormalization averages over this axis";
            coupling.lock(input(0, axis), why);
            coupling.lock(output(0, axis), why);
        }
    }
    for slot in 1..=2 {
        for axis in 0..ports.dims(Port::In(slot)).map_or(0, <[Dim]>::len) {
            coupling.lock(input(slot, axis), "LayerNormalization averages over this axis");
        }
    }
    Ok(coupling)
}
