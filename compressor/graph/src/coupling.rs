//! How every operator relates the units on the axes of its inputs to those of its outputs.
//!
//! One pure function per operator family states, for one node, which indices of which axes can only be
//! removed together ([`Link`]), which axes must keep their width and why ([`Lock`]), which axes it sums
//! over ([`Coupling::contractions`], [`Coupling::sums`]), and what a constant operand does for the units
//! ([`Coupling::roles`]). [`crate::find`] joins these statements over the graph.
//!
//! The statement is total: [`coupling`] locks every axis that the family's function did not mention, so
//! that an operator nobody thought about is a barrier and never a silent hole.

mod contract;
mod einsum;
mod elementwise;
mod factor;
mod layout;
pub(crate) mod masked;
mod norm;
pub(crate) mod quantized;
mod recurrent;
mod reduce;
mod resize;

use factor::factors;
pub(crate) use layout::{SliceAttrs, Window, pad_amounts, split_sizes, windows};

use crate::{Dim, Node, Op, Role};

/// An input or an output of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Port {
    /// Input slot.
    In(usize),
    /// Output slot.
    Out(usize),
}

/// One axis of one port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AxisRef {
    /// The port.
    pub port: Port,
    /// The axis, from 0.
    pub axis: usize,
}

/// The units along a factor of an axis: index `i` belongs to unit `(i / inner) % width`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Stripe {
    /// Number of units.
    pub width: usize,
    /// Consecutive indices that belong to the same unit.
    pub inner: usize,
}

/// Which indices of two axes go together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Relation {
    /// Index `i` of one with index `i` of the other.
    Same,
    /// Index `a + i` of the first with index `b + i` of the second, for `i < len`.
    Range {
        /// Offset on the first axis.
        a: usize,
        /// Offset on the second axis.
        b: usize,
        /// Number of indices.
        len: usize,
    },
    /// Every index of unit `u` of the first with every index of unit `u` of the second.
    Stripes {
        /// Units on the first axis.
        a: Stripe,
        /// Units on the second axis.
        b: Stripe,
    },
}

/// Two axes whose units go together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Link {
    /// First axis.
    pub a: AxisRef,
    /// Second axis; may be the first one, which ties its indices among themselves.
    pub b: AxisRef,
    /// Which indices.
    pub relation: Relation,
}

/// An axis that must keep its width.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lock {
    /// The axis.
    pub at: AxisRef,
    /// Why.
    pub why: String,
}

/// Two axes multiplied index by index and summed: `MatMul` rows, `Conv` input channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Contraction {
    /// Axis of the data operand.
    pub data: AxisRef,
    /// Axis of the weight operand.
    pub weight: AxisRef,
}

/// How an axis is folded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FoldKind {
    /// Added up: removed units that were not zero have to be added.
    Sum,
    /// Averaged: the count changes, and removed units that were not zero have to be added.
    Mean,
    /// Standardised by its own mean and variance, over the input's first operand and the output's axis alike:
    /// removed units that were zero are put back for the node alone.
    Standardised,
    /// Divided by its own root mean square: epsilon and scale take up the new count.
    RootMeanSquare,
}

/// An axis of input 0 that is folded, together with `beside`, which lie on the same input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fold {
    /// The axis.
    pub at: AxisRef,
    /// How.
    pub kind: FoldKind,
    /// The other axes that are folded with it.
    pub beside: Vec<usize>,
    /// Whether the axis stays as one of size 1, or whole.
    pub keeps_rank: bool,
}

/// What one node says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Coupling {
    /// Axes that go together.
    pub links: Vec<Link>,
    /// Alternatives of a reshape: at most one link may be used for each axis, and an axis that none of the
    /// used ones touches is locked. Ordered by preference.
    pub choices: Vec<Link>,
    /// Axes that keep their width.
    pub locks: Vec<Lock>,
    /// Axes multiplied and summed together (each has its [`Link`] too).
    pub contractions: Vec<Contraction>,
    /// Axes folded as if by a sum: safe to prune only where masked units are exactly zero.
    pub sums: Vec<AxisRef>,
    /// Axes folded such that what the removed units held can be made up for.
    pub folds: Vec<Fold>,
    /// Output axes that no input carries (the new axes of `Expand`): resized at will.
    pub fresh: Vec<AxisRef>,
    /// What a constant at `(input slot, axis)` does for the units of that axis.
    pub roles: Vec<(usize, usize, Role)>,
}

/// What is known of the value at a port.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PortInfo {
    /// Dimensions, where at least the rank is known.
    pub dims: Option<Vec<Dim>>,
    /// Whether it is a constant of the graph.
    pub constant: bool,
    /// Its elements, where it is a small integer tensor whose values are all known.
    pub ints: Option<Vec<i64>>,
    /// Its elements, where it is a small constant of floats.
    pub floats: Option<Vec<f64>>,
    /// Its one value, where it is a constant whose elements are all equal.
    pub uniform: Option<f64>,
}

/// What is known of all ports of a node; `None` for omitted ones.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Ports {
    /// Inputs by slot.
    pub inputs: Vec<Option<PortInfo>>,
    /// Outputs by slot.
    pub outputs: Vec<Option<PortInfo>>,
}

impl Ports {
    /// The value at `port`, unless omitted.
    pub fn get(&self, port: Port) -> Option<&PortInfo> {
        match port {
            Port::In(slot) => self.inputs.get(slot)?.as_ref(),
            Port::Out(slot) => self.outputs.get(slot)?.as_ref(),
        }
    }

    /// Dimensions at `port`, where the rank is known.
    pub fn dims(&self, port: Port) -> Option<&[Dim]> {
        self.get(port)?.dims.as_deref()
    }

    /// Size of an axis, where known.
    pub fn size(&self, at: AxisRef) -> Option<usize> {
        match self.dims(at.port)?.get(at.axis)? {
            Dim::Fixed(size) => Some(*size),
            _ => None,
        }
    }

    fn rank(&self, port: Port) -> Option<usize> {
        self.dims(port).map(<[Dim]>::len)
    }

    pub(crate) fn ints(&self, slot: usize) -> Option<&[i64]> {
        self.get(Port::In(slot))?.ints.as_deref()
    }

    /// Whether input `slot` is given (ONNX omits by an empty name or a shorter list).
    pub(crate) fn has(&self, slot: usize) -> bool {
        self.get(Port::In(slot)).is_some()
    }

    fn all(&self) -> impl Iterator<Item = (Port, &PortInfo)> {
        let inputs = self.inputs.iter().enumerate().map(|(slot, info)| (Port::In(slot), info));
        let outputs = self.outputs.iter().enumerate().map(|(slot, info)| (Port::Out(slot), info));
        inputs.chain(outputs).filter_map(|(port, info)| Some((port, info.as_ref()?)))
    }
}

/// Axis of input `slot`.
pub(crate) fn input(slot: usize, axis: usize) -> AxisRef {
    AxisRef { port: Port::In(slot), axis }
}

/// Axis of output `slot`.
pub(crate) fn output(slot: usize, axis: usize) -> AxisRef {
    AxisRef { port: Port::Out(slot), axis }
}

impl Coupling {
    fn same(&mut self, a: AxisRef, b: AxisRef) {
        self.link(a, b, Relation::Same);
    }

    fn link(&mut self, a: AxisRef, b: AxisRef, relation: Relation) {
        self.links.push(Link { a, b, relation });
    }

    fn lock(&mut self, at: AxisRef, why: impl Into<String>) {
        self.locks.push(Lock { at, why: why.into() });
    }

    fn role(&mut self, slot: usize, axis: usize, role: Role) {
        self.roles.push((slot, axis, role));
    }

    fn contract(&mut self, data: AxisRef, weight: AxisRef) {
        self.same(data, weight);
        self.contractions.push(Contraction { data, weight });
    }

    fn mentions(&self, at: AxisRef) -> bool {
        self.links.iter().chain(&self.choices).any(|link| link.a == at || link.b == at)
            || self.locks.iter().any(|lock| lock.at == at)
            || self.sums.contains(&at)
            || self.folds.iter().any(|fold| fold.at == at)
            || self.fresh.contains(&at)
    }
}

/// A coupling that locks every axis of every port.
fn barrier(ports: &Ports, why: &str) -> Coupling {
    let mut coupling = Coupling::default();
    for (port, info) in ports.all() {
        for axis in 0..info.dims.as_ref().map_or(0, Vec::len) {
            coupling.lock(AxisRef { port, axis }, why);
        }
    }
    coupling
}

/// States how `node` couples the axes of `ports`.
pub fn coupling(node: &Node, ports: &Ports) -> Coupling {
    if let Some(index) = extra_output(node, ports) {
        return barrier(ports, &format!("{} with a used output {index}", node.op_type));
    }
    if let Some(port) = unknown_rank(node, ports) {
        return barrier(ports, &format!("{}: the rank of {port} is not known", node.op_type));
    }
    let stated = stated(node, ports).unwrap_or_else(|why| barrier(ports, &why));
    total(stated, node, ports)
}

/// A second output that the families below do not speak of.
fn extra_output(node: &Node, ports: &Ports) -> Option<usize> {
    // The scale and the zero point of the latter are scalars.
    if matches!(node.op, Op::Split { .. } | Op::Recurrent(_) | Op::DynamicQuantizeLinear) {
        return None;
    }
    (1..ports.outputs.len()).find(|&slot| ports.outputs[slot].is_some())
}

fn unknown_rank(node: &Node, ports: &Ports) -> Option<String> {
    // A barrier does not read ranks, and axes of unknown rank cannot be named anyway.
    if matches!(node.op, Op::Opaque | Op::If | Op::Loop | Op::Scan | Op::Shape { .. }) {
        return None;
    }
    ports.all().find(|(_, info)| info.dims.is_none()).map(|(port, _)| match port {
        Port::In(slot) => format!("input {slot}"),
        Port::Out(slot) => format!("output {slot}"),
    })
}

fn stated(node: &Node, ports: &Ports) -> Result<Coupling, String> {
    match &node.op {
        Op::Unary(_) => Ok(elementwise::unary(ports)),
        Op::Binary(op) => Ok(elementwise::binary(*op, ports)),
        Op::BatchNormalization { training, .. } => elementwise::batch_norm(*training, ports),
        Op::InstanceNormalization { .. } => Ok(norm::instance(ports)),
        Op::LayerNormalization { axis, .. } => norm::width(FoldKind::Standardised, *axis, ports),
        Op::RmsNormalization { axis, .. } => norm::width(FoldKind::RootMeanSquare, *axis, ports),
        Op::GroupNormalization { groups, .. } => norm::group(*groups, ports),
        Op::Conv(attrs) => contract::conv(attrs, ports, contract::CONV),
        Op::ConvTranspose(attrs) => contract::conv_transpose(attrs, ports),
        Op::Gemm(attrs) => contract::gemm(attrs, ports),
        Op::MatMul => contract::matmul(ports, (0, 1)),
        Op::Einsum(equation) => einsum::einsum(equation, ports),
        Op::DequantizeLinear { axis } | Op::QuantizeLinear { axis } => {
            quantized::linear(*axis, ports)
        }
        Op::DynamicQuantizeLinear => Ok(quantized::dynamic(ports)),
        Op::MatMulInteger => quantized::matmul_integer(ports),
        Op::QLinearMatMul => quantized::qlinear_matmul(ports),
        Op::ConvInteger(attrs) => quantized::conv_integer(attrs, ports),
        Op::QLinearConv(attrs) => quantized::qlinear_conv(attrs, ports),
        Op::Pool(_) => Ok(reduce::pool(&node.op_type, ports)),
        Op::Reduce { kind, axes, keepdims, noop_with_empty_axes } => {
            let spec =
                reduce::Axes { given: axes.as_deref(), noop_when_empty: *noop_with_empty_axes };
            reduce::reduce(*kind, &spec, *keepdims, &node.op_type, ports)
        }
        Op::Softmax { axis, flat, .. } => reduce::softmax(*axis, *flat, &node.op_type, ports),
        Op::ArgMax { axis, keepdims } => reduce::arg_max(*axis, *keepdims, &node.op_type, ports),
        Op::Reshape { .. } => Ok(layout::reshape(ports)),
        Op::Flatten { .. } => Ok(layout::reshape(ports)),
        Op::Transpose { perm } => layout::transpose(perm.as_deref(), ports),
        Op::Squeeze { axes } | Op::Unsqueeze { axes } => layout::squeeze(axes.as_deref(), ports),
        Op::Concat { axis } => layout::concat(*axis, ports),
        Op::Split { axis, sizes } => layout::split(*axis, sizes.as_deref(), ports),
        Op::Slice { attrs } => layout::slice(attrs.as_ref(), ports),
        Op::Gather { axis } => layout::gather(*axis, ports),
        Op::Expand => Ok(layout::expand(ports)),
        Op::Resize => resize::resize(node, ports),
        Op::Pad { mode, pads } => layout::pad(mode, pads.as_deref(), ports),
        Op::Shape { .. } => Ok(layout::observed(ports)),
        Op::ConstantOfShape => Ok(layout::filled(ports)),
        Op::Constant => Ok(Coupling::default()),
        Op::Lrn { .. } => Ok(reduce::local_response(&node.op_type, ports)),
        Op::Range | Op::Size | Op::If | Op::Loop | Op::Scan => {
            Err(format!("{} is not pruned through", node.op_type))
        }
        Op::Recurrent(attrs) => recurrent::recurrent(attrs, &node.op_type, ports),
        Op::Opaque => Err(format!("{} is not understood", node.op_type)),
    }
}

/// Locks what the statement leaves out.
fn total(mut coupling: Coupling, node: &Node, ports: &Ports) -> Coupling {
    let mut missing = Vec::new();
    for (port, info) in ports.all() {
        for (axis, dim) in info.dims.iter().flatten().enumerate() {
            let at = AxisRef { port, axis };
            if *dim != Dim::Fixed(1) && !coupling.mentions(at) {
                missing.push(at);
            }
        }
    }
    for at in missing {
        coupling.lock(at, format!("{} mixes the positions of this axis", node.op_type));
    }
    coupling
}

/// `axis` counted from the back when negative.
pub(crate) fn normal_axis(axis: i64, rank: usize) -> Result<usize, String> {
    let rank_i = i64::try_from(rank).map_err(|_| "rank overflows".to_owned())?;
    let positive = if axis < 0 { axis + rank_i } else { axis };
    usize::try_from(positive)
        .ok()
        .filter(|&axis| axis < rank)
        .ok_or_else(|| format!("axis {axis} is outside of rank {rank}"))
}
