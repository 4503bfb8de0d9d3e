//! What a masked unit looks like: abstract interpretation of the values that a mask leaves on an axis.
//!
//! For an axis of a value the question is: if a unit on this axis is masked (its slices of constants are
//! zero), what stands at its indices, at every position of the other axes and for every input? A sum over
//! the axis may be pruned only where the answer is *exactly zero*; any consumer needs it to be finite, as
//! its own zeroed weights would not silence an infinity.
//!
//! Exact non-zero values are followed too: the variance of a masked channel is 0, plus epsilon, rooted and
//! inverted it is a large but finite number, and only knowing it shows that.

use super::quantized::zero_point_of;
use super::{AxisRef, Link, Port, PortInfo, Ports};
use crate::{AttributeValue, BinaryOp, Node, Op, PoolKind, ReduceKind, UnaryOp, ValueId};

/// What stands at the indices of a masked unit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Fact {
    /// This value (zero is exact, others are up to rounding).
    Exact(f64),
    /// Finite, and the same for all masked units: what the elementwise nodes on the way make of exact values and of
    /// values that do not have the axis.
    Common,
    /// Exactly zero, quantized: the zero point that this value holds.
    ZeroPoint(ValueId),
    /// Something finite, given that the unmasked model's values are.
    Finite,
    /// Possibly an infinity or NaN.
    Wild,
}

/// Exactly zero.
pub(crate) const ZERO: Fact = Fact::Exact(0.0);

/// The axes of a node's inputs that carry an output axis, as `(slot, axis)`.
pub(crate) fn carriers(links: &[Link], out: AxisRef) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    for link in links {
        for (this, other) in [(link.a, link.b), (link.b, link.a)] {
            if let (true, Port::In(slot)) = (this == out, other.port)
                && !found.contains(&(slot, other.axis))
            {
                found.push((slot, other.axis));
            }
        }
    }
    found
}

/// The fact of output axis `out`, from those of the input axes.
pub(crate) fn transfer(
    node: &Node,
    ports: &Ports,
    links: &[Link],
    out: AxisRef,
    fact: &dyn Fn(usize, usize) -> Fact,
) -> Fact {
    let carriers = carriers(links, out);
    let at = |slot: usize| {
        let found = carriers.iter().find(|carrier| carrier.0 == slot);
        found.map(|&(slot, axis)| fact(slot, axis))
    };
    match &node.op {
        Op::Unary(op) => at(0).map_or(Fact::Finite, |x| {
            common(unary(*op, node, ports, x.plain()), *op != UnaryOp::Dropout, &[Some(x)])
        }),
        Op::Binary(op) => {
            let carried: Vec<Option<Fact>> = (0..ports.inputs.len()).map(at).collect();
            let operand = |(slot, fact): (usize, &Option<Fact>)| {
                Operand::new(ports, slot, fact.map(Fact::plain))
            };
            let operands: Vec<Operand> = carried.iter().enumerate().map(operand).collect();
            common(binary(*op, &operands), true, &carried)
        }
        _ => combined(node, ports, links, out, fact).plain(),
    }
}

/// A finite result is common where everything that carries the units is.
fn common(result: Fact, repeatable: bool, carried: &[Option<Fact>]) -> Fact {
    let is_common = |fact: &Fact| matches!(fact, Fact::Exact(_) | Fact::Common);
    let all = carried.iter().flatten().all(is_common);
    if result == Fact::Finite && repeatable && all { Fact::Common } else { result }
}

/// As [`transfer`], of operators that are not elementwise.
fn combined(
    node: &Node,
    ports: &Ports,
    links: &[Link],
    out: AxisRef,
    fact: &dyn Fn(usize, usize) -> Fact,
) -> Fact {
    let fact = &|slot: usize, axis: usize| fact(slot, axis).plain();
    let carriers = carriers(links, out);
    let at = |slot: usize| {
        let mut facts = carriers.iter().filter(|carrier| carrier.0 == slot);
        facts.next().map(|&(slot, axis)| fact(slot, axis))
    };
    match &node.op {
        Op::Conv(_) | Op::ConvTranspose(_) if out.axis == 1 => {
            affine(&[at(0), at(1)], ports, 2, at(2))
        }
        Op::DequantizeLinear { .. } | Op::MatMulInteger | Op::Einsum(_) => {
            product(node, ports, &carriers, fact)
        }
        Op::ConvInteger(_) | Op::QLinearConv(_) if out.axis == 1 => {
            let bias = if matches!(node.op, Op::QLinearConv(_)) { at(8) } else { None };
            let biased = matches!(node.op, Op::QLinearConv(_)) && ports.has(8);
            match product(node, ports, &carriers, fact) {
                ZERO if biased && bias != Some(ZERO) => Fact::Finite,
                fact => requantized(node, ports, fact),
            }
        }
        Op::QLinearMatMul => requantized(node, ports, product(node, ports, &carriers, fact)),
        Op::QuantizeLinear { .. } if at(0) == Some(ZERO) => zero_point(node, ports, 2),
        Op::DynamicQuantizeLinear if at(0) == Some(ZERO) => {
            node.output(2).map_or(Fact::Finite, Fact::ZeroPoint)
        }
        Op::Gemm(_) => affine(&[at(0), at(1)], ports, 2, at(2)),
        Op::MatMul => affine(&[at(0), at(1)], ports, 2, None),
        Op::BatchNormalization { .. }
        | Op::InstanceNormalization { .. }
        | Op::GroupNormalization { .. }
            if out.axis == 1 =>
        {
            let scale = carriers_of_params(links, out, fact, 1);
            let bias = carriers_of_params(links, out, fact, 2);
            all_finite(&[at(0), scale, bias]).unwrap_or_else(|| {
                if scale == Some(ZERO) && bias == Some(ZERO) { ZERO } else { Fact::Finite }
            })
        }
        Op::LayerNormalization { axis, epsilon } | Op::RmsNormalization { axis, epsilon } => {
            width_norm(*axis, *epsilon, ports, links, out, fact)
        }
        Op::Pool(attrs) => pool(attrs.kind, at(0)),
        // Weights that add up to one, along other axes.
        Op::Resize => {
            if at(0) == Some(ZERO) {
                ZERO
            } else {
                merge(at(0).into_iter()).worst(Fact::Finite)
            }
        }
        Op::Reduce { kind, .. } => reduce(*kind, at(0)),
        Op::Pad { mode, .. } => pad(mode, ports, at(0)),
        Op::Concat { .. } => merge(carriers.iter().map(|&(slot, axis)| fact(slot, axis))),
        Op::Reshape { .. }
        | Op::Flatten { .. }
        | Op::Transpose { .. }
        | Op::Squeeze { .. }
        | Op::Unsqueeze { .. }
        | Op::Split { .. }
        | Op::Slice { .. } => at(0).unwrap_or(Fact::Finite),
        Op::Expand => at(0).unwrap_or_else(|| repeated(ports)),
        Op::Gather { .. } => at(0).unwrap_or(Fact::Finite),
        Op::ConstantOfShape => filler(node),
        Op::Recurrent(attrs) => super::recurrent::masked(attrs, node, ports, out, fact),
        _ => merge(carriers.iter().map(|&(slot, axis)| fact(slot, axis))).worst(Fact::Finite),
    }
}

impl Fact {
    /// Without knowing that masked units have it in common.
    fn plain(self) -> Self {
        if self == Self::Common { Self::Finite } else { self }
    }

    /// Wild if either is, otherwise merely finite unless both agree.
    fn worst(self, other: Self) -> Self {
        match (self, other) {
            (Self::Wild, _) | (_, Self::Wild) => Self::Wild,
            (a, b) if a == b => a,
            _ => Self::Finite,
        }
    }

    fn exact(value: f64) -> Self {
        if value.is_finite() { Self::Exact(value) } else { Self::Wild }
    }
}

/// Exact where all agree.
fn merge(facts: impl Iterator<Item = Fact>) -> Fact {
    facts.reduce(Fact::worst).unwrap_or(Fact::Finite)
}

fn all_finite(facts: &[Option<Fact>]) -> Option<Fact> {
    facts.contains(&Some(Fact::Wild)).then_some(Fact::Wild)
}

/// Norm parameters are linked with the data axis rather than with the output.
fn carriers_of_params(
    links: &[Link],
    out: AxisRef,
    fact: &dyn Fn(usize, usize) -> Fact,
    slot: usize,
) -> Option<Fact> {
    let data = super::input(0, out.axis);
    let params = super::input(slot, 0);
    links.iter().any(|link| (link.a, link.b) == (data, params)).then(|| fact(slot, 0))
}

/// Whether a masked unit on an axis of input `slot` is exactly zero as the node reads it.
pub(crate) fn is_silent(node: &Node, ports: &Ports, slot: usize, fact: Fact) -> bool {
    let Some(point) = zero_point_of(&node.op, slot) else { return fact == ZERO };
    let Some(info) = ports.get(Port::In(point)) else { return fact == ZERO };
    // A mask writes the zero point into constants.
    let masked = || ports.get(Port::In(slot)).is_some_and(|info| info.constant) && fact == ZERO;
    let same = match fact {
        Fact::Exact(value) => info.uniform == Some(value),
        Fact::ZeroPoint(value) => node.input(point) == Some(value),
        Fact::Common | Fact::Finite | Fact::Wild => false,
    };
    same || masked()
}

/// A product (of one factor, perhaps): zero where a factor is.
fn product(
    node: &Node,
    ports: &Ports,
    carriers: &[(usize, usize)],
    fact: &dyn Fn(usize, usize) -> Fact,
) -> Fact {
    let facts = || carriers.iter().map(|&(slot, axis)| (slot, fact(slot, axis)));
    if facts().any(|(_, fact)| fact == Fact::Wild) {
        return Fact::Wild;
    }
    if facts().any(|(slot, fact)| is_silent(node, ports, slot, fact)) {
        return ZERO;
    }
    Fact::Finite
}

/// What stands for zero where input `slot` is the zero point.
fn zero_point(node: &Node, ports: &Ports, slot: usize) -> Fact {
    match (ports.get(Port::In(slot)), node.input(slot)) {
        (None, _) => ZERO,
        (Some(PortInfo { uniform: Some(value), .. }), _) => Fact::Exact(*value),
        (Some(PortInfo { dims: Some(dims), .. }), Some(value)) if dims.is_empty() => {
            Fact::ZeroPoint(value)
        }
        _ => Fact::Finite,
    }
}

/// An integer sum brought to the scale and zero point of the output, where the operator does that.
fn requantized(node: &Node, ports: &Ports, sum: Fact) -> Fact {
    match (&node.op, sum) {
        (Op::QLinearConv(_) | Op::QLinearMatMul, ZERO) => zero_point(node, ports, 7),
        (_, sum) => sum,
    }
}

/// What is normalised over the width: finite because of epsilon, and silent with its scale and its bias.
fn width_norm(
    axis: i64,
    epsilon: f32,
    ports: &Ports,
    links: &[Link],
    out: AxisRef,
    fact: &dyn Fn(usize, usize) -> Fact,
) -> Fact {
    let rank = ports.rank(Port::In(0)).unwrap_or(0);
    let Ok(first) = super::normal_axis(axis, rank) else { return Fact::Wild };
    let x = fact(0, out.axis);
    if x == Fact::Wild || epsilon.is_nan() || epsilon <= 0.0 {
        return Fact::Wild;
    }
    let silent = |slot: usize| {
        let Some(axis) = out.axis.checked_sub(first) else { return false };
        let param = super::input(slot, axis);
        let linked =
            links.iter().any(|link| (link.a, link.b) == (super::input(0, out.axis), param));
        !ports.has(slot) || (linked && fact(slot, axis) == ZERO)
    };
    let both = ports.has(1) && silent(1) && silent(2);
    if both { ZERO } else { Fact::Finite }
}

/// A product of factors plus an optional bias: zero where a factor and the bias are.
fn affine(factors: &[Option<Fact>], ports: &Ports, bias_slot: usize, bias: Option<Fact>) -> Fact {
    if let Some(wild) = all_finite(factors).or_else(|| all_finite(&[bias])) {
        return wild;
    }
    let silent_bias = !ports.has(bias_slot) || bias == Some(ZERO);
    if factors.contains(&Some(ZERO)) && silent_bias { ZERO } else { Fact::Finite }
}

fn unary(op: UnaryOp, node: &Node, ports: &Ports, x: Fact) -> Fact {
    if let Fact::ZeroPoint(_) = x {
        return if op == UnaryOp::Identity { x } else { Fact::Finite };
    }
    let Fact::Exact(value) = x else {
        let partial = matches!(op, UnaryOp::Log | UnaryOp::Sqrt | UnaryOp::Reciprocal);
        return if partial { Fact::Wild } else { x };
    };
    match op {
        UnaryOp::Identity => x,
        UnaryOp::Dropout if ports.has(2) => Fact::Finite,
        UnaryOp::Dropout => x,
        UnaryOp::Clip => clip(node, ports, value),
        UnaryOp::Sqrt => Fact::exact(value.sqrt()),
        UnaryOp::Reciprocal => Fact::exact(value.recip()),
        UnaryOp::Log => Fact::exact(value.ln()),
        UnaryOp::Exp => Fact::exact(value.exp()),
        UnaryOp::Abs => Fact::exact(value.abs()),
        UnaryOp::Neg => Fact::exact(-value),
        UnaryOp::Cos if value == 0.0 => Fact::Exact(1.0),
        _ if value == 0.0 && keeps_zero(op) => ZERO,
        _ => Fact::Finite,
    }
}

fn keeps_zero(op: UnaryOp) -> bool {
    match op {
        UnaryOp::Ceil
        | UnaryOp::Elu
        | UnaryOp::Erf
        | UnaryOp::Floor
        | UnaryOp::Gelu
        | UnaryOp::HardSwish
        | UnaryOp::LeakyRelu
        | UnaryOp::Relu
        | UnaryOp::Round
        | UnaryOp::Selu
        | UnaryOp::Sign
        | UnaryOp::Sin
        | UnaryOp::Softsign
        | UnaryOp::Tan
        | UnaryOp::Tanh
        | UnaryOp::Cast
        | UnaryOp::Abs
        | UnaryOp::Neg
        | UnaryOp::Sqrt
        | UnaryOp::Identity
        | UnaryOp::Dropout
        | UnaryOp::Clip => true,
        UnaryOp::Cos
        | UnaryOp::Exp
        | UnaryOp::HardSigmoid
        | UnaryOp::IsNan
        | UnaryOp::Log
        | UnaryOp::Not
        | UnaryOp::Reciprocal
        | UnaryOp::Sigmoid
        | UnaryOp::Softplus => false,
    }
}

fn clip(node: &Node, ports: &Ports, value: f64) -> Fact {
    let bound = |slot: usize, name: &str, open: f64| match ports.get(Port::In(slot)) {
        Some(info) => info.uniform,
        None => Some(node.attr_float(name).map_or(open, f64::from)),
    };
    let low = bound(1, "min", f64::NEG_INFINITY);
    let high = bound(2, "max", f64::INFINITY);
    low.zip(high).map_or(Fact::Finite, |(low, high)| Fact::exact(value.max(low).min(high)))
}

/// An operand of a broadcasting operator.
#[derive(Clone, Copy)]
struct Operand {
    fact: Fact,
    /// The unmasked model meets the very same values here: it does not carry the units, or is a constant that
    /// a mask leaves alone.
    as_before: bool,
}

impl Operand {
    fn new(ports: &Ports, slot: usize, carried: Option<Fact>) -> Self {
        let info = ports.get(Port::In(slot));
        let constant = info.is_some_and(|info| info.constant);
        let broadcast =
            || info.and_then(|info: &PortInfo| info.uniform).map_or(Fact::Finite, Fact::Exact);
        let as_before = carried.is_none_or(|fact| constant && fact == Fact::Finite);
        Self { fact: carried.unwrap_or_else(broadcast), as_before }
    }
}

fn binary(op: BinaryOp, operands: &[Operand]) -> Fact {
    let facts: Vec<Fact> = operands.iter().map(|operand| operand.fact).collect();
    if facts.contains(&Fact::Wild) {
        return Fact::Wild;
    }
    let exact: Option<Vec<f64>> =
        facts.iter().map(|fact| if let Fact::Exact(v) = fact { Some(*v) } else { None }).collect();
    match op {
        BinaryOp::Add | BinaryOp::Sum => sum(exact, |values| values.iter().sum()),
        BinaryOp::Sub => sum(exact, |values| values.iter().skip(1).fold(values[0], |a, b| a - b)),
        BinaryOp::Mean => sum(exact, |values| values.iter().sum::<f64>() / values.len() as f64),
        BinaryOp::Max => fold(exact, f64::max),
        BinaryOp::Min => fold(exact, f64::min),
        BinaryOp::Mul if facts.contains(&ZERO) => times_zero(&facts),
        BinaryOp::Mul => fold(exact, |a, b| a * b),
        BinaryOp::Div | BinaryOp::Mod => divide(op, operands),
        BinaryOp::Pow => power(operands),
        BinaryOp::PRelu if facts.first() == Some(&ZERO) => ZERO,
        BinaryOp::Where => merge(facts.into_iter().skip(1)),
        BinaryOp::PRelu
        | BinaryOp::Equal
        | BinaryOp::Greater
        | BinaryOp::GreaterOrEqual
        | BinaryOp::Less
        | BinaryOp::LessOrEqual
        | BinaryOp::And
        | BinaryOp::Or
        | BinaryOp::Xor => Fact::Finite,
    }
}

/// A sum is zero only of zeros: non-zero parts that cancel on paper need not in floating point.
fn sum(exact: Option<Vec<f64>>, f: impl Fn(&[f64]) -> f64) -> Fact {
    match exact {
        Some(values) if values.iter().all(|&value| value == 0.0) => ZERO,
        Some(values) => match Fact::exact(f(&values)) {
            ZERO => Fact::Finite,
            fact => fact,
        },
        None => Fact::Finite,
    }
}

fn fold(exact: Option<Vec<f64>>, f: impl Fn(f64, f64) -> f64) -> Fact {
    exact.and_then(|values| values.into_iter().reduce(f)).map_or(Fact::Finite, Fact::exact)
}

/// Zero unless a factor is infinite (a constant may be).
fn times_zero(facts: &[Fact]) -> Fact {
    let infinite = |fact: &Fact| matches!(fact, Fact::Exact(v) if !v.is_finite());
    if facts.iter().any(infinite) { Fact::Wild } else { ZERO }
}

/// A divisor that the unmasked model divides by too is taken to be safe.
fn divide(op: BinaryOp, operands: &[Operand]) -> Fact {
    let [numerator, divisor] = operands else { return Fact::Wild };
    match (numerator.fact, divisor.fact) {
        (_, ZERO) => Fact::Wild,
        (ZERO, Fact::Exact(_)) => ZERO,
        (ZERO, Fact::Finite) if divisor.as_before => ZERO,
        (Fact::Exact(a), Fact::Exact(b)) if op == BinaryOp::Div => Fact::exact(a / b),
        (_, Fact::Exact(_)) => Fact::Finite,
        _ if divisor.as_before => Fact::Finite,
        _ => Fact::Wild,
    }
}

fn power(operands: &[Operand]) -> Fact {
    let [base, exponent] = operands else { return Fact::Wild };
    match (base.fact, exponent.fact) {
        (Fact::Exact(base), Fact::Exact(exponent)) => Fact::exact(base.powf(exponent)),
        (Fact::Finite, Fact::Exact(e)) if e >= 0.0 && e.fract() == 0.0 => Fact::Finite,
        (Fact::Exact(base), Fact::Finite) if base > 0.0 => Fact::Finite,
        _ => Fact::Wild,
    }
}

/// The one element of a `ConstantOfShape`.
fn filler(node: &Node) -> Fact {
    let Some(AttributeValue::Tensor(value)) = node.attr("value") else { return ZERO };
    let first = value.to_f64_vec().ok().and_then(|values| values.first().copied());
    first.map_or(Fact::Finite, Fact::exact)
}

/// On an axis that `Expand` makes: what its input holds.
fn repeated(ports: &Ports) -> Fact {
    let uniform = ports.get(Port::In(0)).and_then(|info| info.uniform);
    uniform.map_or(Fact::Finite, Fact::exact)
}

fn pool(kind: PoolKind, x: Option<Fact>) -> Fact {
    match x.unwrap_or(Fact::Finite) {
        ZERO => ZERO,
        x if matches!(kind, PoolKind::Max | PoolKind::GlobalMax) => x,
        x => x.worst(Fact::Finite),
    }
}

/// A reduction over other axes than the one asked about.
fn reduce(kind: ReduceKind, x: Option<Fact>) -> Fact {
    let x = x.unwrap_or(Fact::Finite);
    match kind {
        ReduceKind::Mean | ReduceKind::Max | ReduceKind::Min => x,
        ReduceKind::Sum
        | ReduceKind::L1
        | ReduceKind::L2
        | ReduceKind::SumSquare
        | ReduceKind::Prod => {
            if x == ZERO {
                ZERO
            } else {
                x.worst(Fact::Finite)
            }
        }
        ReduceKind::LogSum => Fact::Wild,
        ReduceKind::LogSumExp => x.worst(Fact::Finite),
    }
}

fn pad(mode: &str, ports: &Ports, x: Option<Fact>) -> Fact {
    let x = x.unwrap_or(Fact::Finite);
    let filler = match ports.get(Port::In(2)) {
        Some(info) => info.uniform,
        None => Some(0.0),
    };
    match (mode, filler) {
        ("" | "constant", Some(value)) => x.worst(Fact::Exact(value)),
        ("" | "constant", None) => x.worst(Fact::Finite),
        _ => x,
    }
}
