//! Operators that multiply by a weight and sum: the weight's columns produce units, its rows consume them.

use super::elementwise::broadcast;
use super::{Coupling, Port, Ports, Relation, Stripe, input, output};
use crate::{ConvAttrs, Dim, GemmAttrs, Role};

/// Input `[N, C, …]`, weight `[O, C / group, …]`, bias `[O]`.
///
/// Of a grouped convolution the same channels of every group go together (a ragged group cannot be
/// expressed); a depthwise one (`C == group`) keeps channels apart and loses groups instead.
pub(super) fn conv(attrs: &ConvAttrs, ports: &Ports) -> Result<Coupling, String> {
    let mut coupling = Coupling::default();
    coupling.same(input(0, 0), output(0, 0));
    coupling.same(input(1, 0), output(0, 1));
    if ports.has(2) {
        coupling.same(input(2, 0), output(0, 1));
    }
    let fixed = |port, axis| {
        ports.size(super::AxisRef { port, axis }).ok_or("Conv: channel counts are not known")
    };
    let (channels, out) = (fixed(Port::In(0), 1)?, fixed(Port::In(1), 0)?);
    let groups = attrs.group.max(1);
    if !channels.is_multiple_of(groups) || !out.is_multiple_of(groups) {
        return Err(format!("Conv: {groups} groups do not divide {channels} and {out} channels"));
    }
    let (per_in, per_out) = (channels / groups, out / groups);
    let weight_role = if groups > 1 && per_in == 1 { Role::Elementwise } else { Role::Producer };
    coupling.role(1, 0, weight_role);
    coupling.role(2, 0, weight_role);
    if groups == 1 {
        coupling.contract(input(0, 1), input(1, 1));
        coupling.role(1, 1, Role::Consumer);
    } else if per_in == 1 {
        depthwise(&mut coupling, groups, per_out);
    } else {
        grouped(&mut coupling, per_in, per_out);
    }
    lock_spatial(&mut coupling, ports, "Conv slides over this axis");
    Ok(coupling)
}

fn depthwise(coupling: &mut Coupling, groups: usize, multiplier: usize) {
    if multiplier == 1 {
        coupling.same(input(0, 1), output(0, 1));
        return;
    }
    let a = Stripe { width: groups, inner: 1 };
    let b = Stripe { width: groups, inner: multiplier };
    coupling.link(input(0, 1), output(0, 1), Relation::Stripes { a, b });
}

fn grouped(coupling: &mut Coupling, per_in: usize, per_out: usize) {
    let inputs = Stripe { width: per_in, inner: 1 };
    coupling.link(input(0, 1), input(1, 1), Relation::Stripes { a: inputs, b: inputs });
    coupling.contractions.push(super::Contraction { data: input(0, 1), weight: input(1, 1) });
    coupling.role(1, 1, Role::Consumer);
    let outputs = Stripe { width: per_out, inner: 1 };
    coupling.link(output(0, 1), output(0, 1), Relation::Stripes { a: outputs, b: outputs });
}

/// Input `[N, C, …]`, weight `[C, O / group, …]`, bias `[O]`.
pub(super) fn conv_transpose(attrs: &ConvAttrs, ports: &Ports) -> Result<Coupling, String> {
    if attrs.group > 1 {
        return Err("grouped ConvTranspose is not pruned through".to_owned());
    }
    let mut coupling = Coupling::default();
    coupling.same(input(0, 0), output(0, 0));
    coupling.contract(input(0, 1), input(1, 0));
    coupling.role(1, 0, Role::Consumer);
    coupling.same(input(1, 1), output(0, 1));
    coupling.role(1, 1, Role::Producer);
    if ports.has(2) {
        coupling.same(input(2, 0), output(0, 1));
        coupling.role(2, 0, Role::Producer);
    }
    lock_spatial(&mut coupling, ports, "ConvTranspose slides over this axis");
    Ok(coupling)
}

fn lock_spatial(coupling: &mut Coupling, ports: &Ports, why: &str) {
    for port in [Port::In(0), Port::In(1), Port::Out(0)] {
        for axis in 2..ports.rank(port).unwrap_or(0) {
            coupling.lock(super::AxisRef { port, axis }, why);
        }
    }
}

/// `alpha * A * B + beta * C`.
pub(super) fn gemm(attrs: &GemmAttrs, ports: &Ports) -> Result<Coupling, String> {
    let mut coupling = Coupling::default();
    let (m, a_k) = if attrs.trans_a { (1, 0) } else { (0, 1) };
    let (b_k, n) = if attrs.trans_b { (1, 0) } else { (0, 1) };
    coupling.same(input(0, m), output(0, 0));
    coupling.same(input(1, n), output(0, 1));
    coupling.contract(input(0, a_k), input(1, b_k));
    coupling.role(0, m, Role::Producer);
    coupling.role(0, a_k, Role::Consumer);
    coupling.role(1, n, Role::Producer);
    coupling.role(1, b_k, Role::Consumer);
    if ports.has(2) {
        broadcast(&mut coupling, ports, 2, Role::Producer);
    }
    Ok(coupling)
}

/// Batched, with broadcasting of the leading axes; operands of rank 1 are row and column.
pub(super) fn matmul(ports: &Ports) -> Result<Coupling, String> {
    let rank =
        |port| ports.rank(port).filter(|&rank| rank > 0).ok_or("MatMul with a scalar operand");
    let (a, b) = (rank(Port::In(0))?, rank(Port::In(1))?);
    let out = ports.rank(Port::Out(0)).unwrap_or(0);
    let (has_m, has_n) = (a >= 2, b >= 2);
    let batch = out
        .checked_sub(usize::from(has_m) + usize::from(has_n))
        .filter(|&batch| batch >= a.saturating_sub(2) && batch >= b.saturating_sub(2))
        .ok_or("MatMul: operand and output ranks disagree")?;
    let mut coupling = Coupling::default();
    let (a_k, b_k) = (a - 1, b.saturating_sub(2));
    coupling.contract(input(0, a_k), input(1, b_k));
    coupling.role(0, a_k, Role::Consumer);
    coupling.role(1, b_k, Role::Consumer);
    if has_m {
        coupling.same(input(0, a - 2), output(0, batch));
        coupling.role(0, a - 2, Role::Producer);
    }
    if has_n {
        coupling.same(input(1, b - 1), output(0, out - 1));
        coupling.role(1, b - 1, Role::Producer);
    }
    for (slot, leading) in [(0, a.saturating_sub(2)), (1, b.saturating_sub(2))] {
        for axis in 0..leading {
            batch_axis(&mut coupling, ports, slot, axis, batch - leading + axis);
        }
    }
    Ok(coupling)
}

fn batch_axis(coupling: &mut Coupling, ports: &Ports, slot: usize, axis: usize, to: usize) {
    let from_one = ports.size(input(slot, axis)) == Some(1);
    if from_one && ports.dims(Port::Out(0)).and_then(|dims| dims.get(to)) != Some(&Dim::Fixed(1)) {
        return;
    }
    coupling.same(input(slot, axis), output(0, to));
    coupling.role(slot, axis, Role::Elementwise);
}
