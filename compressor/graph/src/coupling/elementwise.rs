//! Operators that act on every index alone, and the norm whose statistics are constants.

use super::{Coupling, Port, Ports, input, output};
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
