//! Quantized operators. What is zero there is the zero point: a masked unit of a quantized constant holds that.

use super::contract::{self, Operands};
use super::{AxisRef, Coupling, Port, Ports, input, normal_axis};
use crate::{ConvAttrs, Op, Role};

/// The input that holds the zero point of input `slot`, for inputs that are quantized.
pub(crate) fn zero_point_of(op: &Op, slot: usize) -> Option<usize> {
    match (op, slot) {
        (Op::DequantizeLinear { .. }, 0) => Some(2),
        (Op::MatMulInteger | Op::ConvInteger(_), 0 | 1) => Some(slot + 2),
        (Op::QLinearConv(_) | Op::QLinearMatMul, 0 | 3) => Some(slot + 2),
        _ => None,
    }
}

/// The axis of input `slot` of rank `rank` along which a zero point that is a vector runs.
pub(crate) fn zero_point_axis(op: &Op, slot: usize, rank: usize) -> Option<usize> {
    match op {
        Op::DequantizeLinear { axis } => normal_axis(*axis, rank).ok(),
        Op::ConvInteger(_) | Op::QLinearConv(_) => (slot > 0).then_some(0),
        // One for each row of the first factor, or each column of the second.
        Op::MatMulInteger | Op::QLinearMatMul => rank.checked_sub(if slot == 0 { 2 } else { 1 }),
        _ => None,
    }
}

/// `QuantizeLinear` and `DequantizeLinear`: inputs `x, scale, zero point`, the latter one for all or one for each
/// index on `axis`.
pub(super) fn linear(axis: i64, ports: &Ports) -> Result<Coupling, String> {
    let mut coupling = super::elementwise::unary(ports);
    let rank = ports.rank(Port::In(0)).unwrap_or(0);
    for slot in 1..=2 {
        if is_vector(ports, slot)? {
            param(&mut coupling, slot, input(0, normal_axis(axis, rank)?));
        }
    }
    Ok(coupling)
}

/// `DynamicQuantizeLinear`: the scale follows from the range of everything, which always contains zero, so only
/// units that are zero do not count.
pub(super) fn dynamic(ports: &Ports) -> Coupling {
    let mut coupling = super::elementwise::unary(ports);
    coupling.sums = (0..ports.rank(Port::In(0)).unwrap_or(0)).map(|axis| input(0, axis)).collect();
    coupling
}

/// A parameter that has an axis of its own; one for all has not.
fn is_vector(ports: &Ports, slot: usize) -> Result<bool, String> {
    match ports.rank(Port::In(slot)) {
        None | Some(0) => Ok(false),
        Some(1) => Ok(ports.size(input(slot, 0)) != Some(1)),
        Some(rank) => Err(format!("quantization parameters of rank {rank}")),
    }
}

/// A mask leaves scales and zero points alone: it writes the zero point into what is scaled.
fn param(coupling: &mut Coupling, slot: usize, along: AxisRef) {
    coupling.same(input(slot, 0), along);
    coupling.role(slot, 0, Role::Divisor);
}

/// Inputs `a, b, zero point of a (for each row), zero point of b (for each column)`.
pub(super) fn matmul_integer(ports: &Ports) -> Result<Coupling, String> {
    let mut coupling = contract::matmul(ports, (0, 1))?;
    rows_and_columns(&mut coupling, ports, [(0, 2), (1, 3)])?;
    Ok(coupling)
}

/// Inputs `a, b`, each followed by scale and zero point, then those of the output, which are scalars.
pub(super) fn qlinear_matmul(ports: &Ports) -> Result<Coupling, String> {
    scalars(ports, [6, 7])?;
    let mut coupling = contract::matmul(ports, (0, 3))?;
    rows_and_columns(&mut coupling, ports, [(0, 1), (0, 2), (3, 4), (3, 5)])?;
    Ok(coupling)
}

fn rows_and_columns<const N: usize>(
    coupling: &mut Coupling,
    ports: &Ports,
    params: [(usize, usize); N],
) -> Result<(), String> {
    for (of, slot) in params {
        let rank = ports.rank(Port::In(of)).unwrap_or(0);
        if is_vector(ports, slot)? {
            let axis = rank.checked_sub(if of == 0 { 2 } else { 1 });
            param(coupling, slot, input(of, axis.ok_or("a zero point for each row of a row")?));
        }
    }
    Ok(())
}

fn scalars<const N: usize>(ports: &Ports, slots: [usize; N]) -> Result<(), String> {
    for slot in slots {
        if is_vector(ports, slot)? {
            return Err(format!("input {slot} is a vector"));
        }
    }
    Ok(())
}

/// Inputs `x, w, zero point of x, zero point of w (for each filter)`.
pub(super) fn conv_integer(attrs: &ConvAttrs, ports: &Ports) -> Result<Coupling, String> {
    scalars(ports, [2])?;
    let operands = Operands { op: "ConvInteger", weight: 1, bias: NO_BIAS };
    let mut coupling = contract::conv(attrs, ports, operands)?;
    if is_vector(ports, 3)? {
        param(&mut coupling, 3, input(1, 0));
    }
    Ok(coupling)
}

/// Behind every input that there is.
const NO_BIAS: usize = usize::MAX;

/// Inputs `x, w`, each followed by scale and zero point (those of `w` for each filter), then those of the output,
/// then a bias.
pub(super) fn qlinear_conv(attrs: &ConvAttrs, ports: &Ports) -> Result<Coupling, String> {
    scalars(ports, [1, 2, 6, 7])?;
    let operands = Operands { op: "QLinearConv", weight: 3, bias: 8 };
    let mut coupling = contract::conv(attrs, ports, operands)?;
    for slot in [4, 5] {
        if is_vector(ports, slot)? {
            param(&mut coupling, slot, input(3, 0));
        }
    }
    Ok(coupling)
}
