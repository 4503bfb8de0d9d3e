//! Operators that multiply by a weight and sum: the weight's columns produce units, its rows consume them.

use super::elementwise::broadcast;
use super::{AxisRef, Coupling, Link, Port, Ports, Relation, Stripe, input, output};
use crate::{ConvAttrs, Dim, GemmAttrs, Role};

/// Channels and groups of a convolution, transposed or not.
#[derive(Clone, Copy)]
struct Groups {
    count: usize,
    per_in: usize,
    per_out: usize,
}

impl Groups {
    fn new(op: &str, count: usize, channels: usize, out: usize) -> Result<Self, String> {
        let count = count.max(1);
        if !channels.is_multiple_of(count) || !out.is_multiple_of(count) {
            return Err(format!(
                "{op}: {count} groups do not divide {channels} and {out} channels"
            ));
        }
        Ok(Self { count, per_in: channels / count, per_out: out / count })
    }

    /// One channel in, one out: a depthwise convolution.
    fn are_channels(&self) -> bool {
        self.count > 1 && self.per_in == 1
    }

    /// Whole groups, which take their channels on both sides along.
    fn whole(&self, inputs: AxisRef) -> Link {
        let a = Stripe { width: self.count, inner: self.per_in };
        let b = Stripe { width: self.count, inner: self.per_out };
        Link { a: inputs, b: output(0, 1), relation: Relation::Stripes { a, b } }
    }

    /// The alternatives: whole groups, or the same channels of every group (one group cannot be narrower than
    /// another), whichever has the finer units first.
    fn choose(
        &self,
        coupling: &mut Coupling,
        inputs: (AxisRef, AxisRef),
        outputs: (AxisRef, AxisRef),
    ) {
        let every = |(a, b), width| {
            let stripe = Stripe { width, inner: 1 };
            Link { a, b, relation: Relation::Stripes { a: stripe, b: stripe } }
        };
        let same = [every(inputs, self.per_in), every(outputs, self.per_out)];
        let finer = self.count > self.per_in.max(self.per_out);
        coupling.choices = match finer {
            true => [vec![self.whole(inputs.0)], same.to_vec()].concat(),
            false => [same.to_vec(), vec![self.whole(inputs.0)]].concat(),
        };
    }
}

/// Inputs of a convolution.
#[derive(Clone, Copy)]
pub(super) struct Operands {
    pub(super) op: &'static str,
    pub(super) weight: usize,
    pub(super) bias: usize,
}

/// Those of `Conv`.
pub(super) const CONV: Operands = Operands { op: "Conv", weight: 1, bias: 2 };

/// Input `[N, C, …]`, weight `[O, C / group, …]`, bias `[O]`.
///
/// A depthwise convolution (`C == group`) keeps channels apart and loses groups; of other grouped ones either
/// whole groups go or the same channels of every group.
pub(super) fn conv(
    attrs: &ConvAttrs,
    ports: &Ports,
    operands: Operands,
) -> Result<Coupling, String> {
    let Operands { op, weight, bias } = operands;
    let mut coupling = Coupling::default();
    coupling.same(input(0, 0), output(0, 0));
    coupling.same(input(weight, 0), output(0, 1));
    if ports.has(bias) {
        coupling.same(input(bias, 0), output(0, 1));
    }
    let (channels, out) = channel_counts(op, ports, input(weight, 0))?;
    let groups = Groups::new(op, attrs.group, channels, out)?;
    let weight_role = if groups.are_channels() { Role::Elementwise } else { Role::Producer };
    coupling.role(weight, 0, weight_role);
    coupling.role(bias, 0, weight_role);
    if groups.count == 1 {
        coupling.contract(input(0, 1), input(weight, 1));
        coupling.role(weight, 1, Role::Consumer);
    } else if groups.are_channels() {
        depthwise(&mut coupling, groups, input(0, 1));
    } else {
        let pair = super::Contraction { data: input(0, 1), weight: input(weight, 1) };
        coupling.contractions.push(pair);
        coupling.role(weight, 1, Role::Consumer);
        groups.choose(&mut coupling, (input(0, 1), input(weight, 1)), (output(0, 1), output(0, 1)));
    }
    let slides = [Port::In(0), Port::In(weight), Port::Out(0)];
    lock_spatial(&mut coupling, ports, slides, &format!("{op} slides over this axis"));
    Ok(coupling)
}

/// Channels of the input, and the size of `out`.
fn channel_counts(op: &str, ports: &Ports, out: AxisRef) -> Result<(usize, usize), String> {
    let size = |at| ports.size(at).ok_or_else(|| format!("{op}: channel counts are not known"));
    Ok((size(input(0, 1))?, size(out)?))
}

fn depthwise(coupling: &mut Coupling, groups: Groups, inputs: AxisRef) {
    if groups.per_out == 1 {
        coupling.same(inputs, output(0, 1));
    } else {
        coupling.links.push(groups.whole(inputs));
    }
}

/// Input `[N, C, …]`, weight `[C, O / group, …]`, bias `[O]`; grouped as [`conv`].
pub(super) fn conv_transpose(attrs: &ConvAttrs, ports: &Ports) -> Result<Coupling, String> {
    let mut coupling = Coupling::default();
    coupling.same(input(0, 0), output(0, 0));
    let (channels, out) = channel_counts("ConvTranspose", ports, output(0, 1))?;
    let groups = Groups::new("ConvTranspose", attrs.group, channels, out)?;
    if groups.are_channels() {
        coupling.same(input(0, 1), input(1, 0));
        coupling.role(1, 0, Role::Elementwise);
        depthwise(&mut coupling, groups, input(1, 0));
    } else {
        coupling.contract(input(0, 1), input(1, 0));
        coupling.role(1, 0, Role::Consumer);
        coupling.role(1, 1, Role::Producer);
        let (inputs, outputs) = ((input(1, 0), input(1, 0)), (output(0, 1), input(1, 1)));
        match groups.count {
            1 => coupling.same(outputs.1, outputs.0),
            _ => groups.choose(&mut coupling, inputs, outputs),
        }
    }
    if ports.has(2) {
        coupling.same(input(2, 0), output(0, 1));
        coupling.role(2, 0, Role::Producer);
    }
    let slides = [Port::In(0), Port::In(1), Port::Out(0)];
    lock_spatial(&mut coupling, ports, slides, "ConvTranspose slides over this axis");
    Ok(coupling)
}

fn lock_spatial(coupling: &mut Coupling, ports: &Ports, slides: [Port; 3], why: &str) {
    for port in slides {
        for axis in 2..ports.rank(port).unwrap_or(0) {
            coupling.lock(AxisRef { port, axis }, why);
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
/// The factors are the inputs `left` and `right`.
pub(super) fn matmul(ports: &Ports, (left, right): (usize, usize)) -> Result<Coupling, String> {
    let rank =
        |port| ports.rank(port).filter(|&rank| rank > 0).ok_or("MatMul with a scalar operand");
    let (a, b) = (rank(Port::In(left))?, rank(Port::In(right))?);
    let out = ports.rank(Port::Out(0)).unwrap_or(0);
    let (has_m, has_n) = (a >= 2, b >= 2);
    let batch = out
        .checked_sub(usize::from(has_m) + usize::from(has_n))
        .filter(|&batch| batch >= a.saturating_sub(2) && batch >= b.saturating_sub(2))
        .ok_or("MatMul: operand and output ranks disagree")?;
    let mut coupling = Coupling::default();
    let (a_k, b_k) = (a - 1, b.saturating_sub(2));
    coupling.contract(input(left, a_k), input(right, b_k));
    coupling.role(left, a_k, Role::Consumer);
    coupling.role(right, b_k, Role::Consumer);
    if has_m {
        coupling.same(input(left, a - 2), output(0, batch));
        coupling.role(left, a - 2, Role::Producer);
    }
    if has_n {
        coupling.same(input(right, b - 1), output(0, out - 1));
        coupling.role(right, b - 1, Role::Producer);
    }
    for (slot, leading) in [(left, a.saturating_sub(2)), (right, b.saturating_sub(2))] {
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
