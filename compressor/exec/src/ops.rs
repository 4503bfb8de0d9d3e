//! One function for each operator, one file for each family.

mod arithmetic;
mod contract;
mod einsum;
mod layout;
mod norm;
mod pool;
mod quantized;
mod recurrent;
mod reduce;
mod resize;
mod transposed;
mod unary;
mod window;

use graph::{Node, Op};

use crate::error::{OpError, Result, invalid, unsupported};
use crate::value::Value;

/// A node and its operands.
pub(crate) struct Context<'a> {
    pub(crate) node: &'a Node,
    pub(crate) operands: Vec<Option<Value>>,
}

impl Context<'_> {
    /// Operand `slot`, which must be there.
    fn get(&self, slot: usize) -> Result<&Value> {
        self.find(slot).ok_or_else(|| OpError::Invalid(format!("input {slot} is missing")))
    }

    /// Operand `slot`, where it is given.
    fn find(&self, slot: usize) -> Option<&Value> {
        self.operands.get(slot)?.as_ref()
    }

    /// The integers of an attribute's field, or else of operand `slot`.
    fn ints_or(&self, given: Option<&[i64]>, slot: usize) -> Result<Option<Vec<i64>>> {
        match given {
            Some(given) => Ok(Some(given.to_vec())),
            None => self.find(slot).map(Value::ints).transpose(),
        }
    }

    fn float(&self, name: &str, default: f64) -> f64 {
        self.node.attr_float(name).map_or(default, f64::from)
    }
}

/// Whether [`run`] knows the operator.
pub(crate) fn supported(node: &Node) -> std::result::Result<(), String> {
    let second = node.output(1).is_some();
    match &node.op {
        Op::Pool(_) if second => Err("positions of maxima".to_owned()),
        Op::Opaque => Err("it is not understood".to_owned()),
        Op::If | Op::Loop | Op::Scan => Err("the executor has no kernel for it".to_owned()),
        Op::BatchNormalization { training: true, .. } => Err("training mode".to_owned()),
        _ => Ok(()),
    }
}

/// Computes every output of a node.
pub(crate) fn run(cx: &Context<'_>) -> Result<Vec<Value>> {
    let one = |value: Value| vec![value];
    match &cx.node.op {
        Op::Unary(op) => unary::unary(*op, cx),
        Op::Binary(op) => arithmetic::binary(*op, cx).map(one),
        Op::Conv(attrs) => contract::conv(attrs, cx).map(one),
        Op::ConvTranspose(attrs) => transposed::conv_transpose(attrs, cx).map(one),
        Op::Resize => resize::resize(cx).map(one),
        Op::Gemm(attrs) => contract::gemm(attrs, cx).map(one),
        Op::MatMul => contract::matmul(cx).map(one),
        Op::Einsum(equation) => einsum::einsum(equation, cx).map(one),
        Op::DequantizeLinear { axis } => quantized::dequantize(*axis, cx).map(one),
        Op::QuantizeLinear { axis } => quantized::quantize(*axis, cx).map(one),
        Op::DynamicQuantizeLinear => quantized::dynamic(cx),
        Op::MatMulInteger => quantized::matmul_integer(cx).map(one),
        Op::QLinearMatMul => quantized::qlinear_matmul(cx).map(one),
        Op::ConvInteger(attrs) => quantized::conv_integer(attrs, cx).map(one),
        Op::QLinearConv(attrs) => quantized::qlinear_conv(attrs, cx).map(one),
        Op::BatchNormalization { epsilon, .. } => norm::batch(*epsilon, cx).map(one),
        Op::InstanceNormalization { epsilon } => norm::instance(*epsilon, cx).map(one),
        Op::LayerNormalization { axis, epsilon } => norm::layer(*axis, *epsilon, cx),
        Op::RmsNormalization { axis, epsilon } => {
            norm::root_mean_square(*axis, *epsilon, cx).map(one)
        }
        Op::GroupNormalization { groups, epsilon } => norm::group(*groups, *epsilon, cx).map(one),
        Op::Lrn { size } => norm::local_response(*size, cx).map(one),
        Op::Pool(attrs) => pool::pool(attrs, cx).map(one),
        Op::Reduce { kind, axes, keepdims, noop_with_empty_axes } => {
            reduce::reduce(*kind, axes.as_deref(), *keepdims, *noop_with_empty_axes, cx).map(one)
        }
        Op::Softmax { axis, log, flat } => reduce::softmax(*axis, *log, *flat, cx).map(one),
        Op::ArgMax { axis, keepdims } => reduce::arg_max(*axis, *keepdims, cx).map(one),
        Op::Reshape { allow_zero } => layout::reshape(*allow_zero, cx).map(one),
        Op::Flatten { axis } => layout::flatten(*axis, cx).map(one),
        Op::Transpose { perm } => layout::transpose(perm.as_deref(), cx).map(one),
        Op::Squeeze { axes } => layout::squeeze(axes.as_deref(), cx).map(one),
        Op::Unsqueeze { axes } => layout::unsqueeze(axes.as_deref(), cx).map(one),
        Op::Concat { axis } => layout::concat(*axis, cx).map(one),
        Op::Split { axis, sizes } => layout::split(*axis, sizes.as_deref(), cx),
        Op::Slice { attrs } => layout::slice(attrs.as_ref(), cx).map(one),
        Op::Gather { axis } => layout::gather(*axis, cx).map(one),
        Op::Expand => layout::expand(cx).map(one),
        Op::Shape { start, end } => layout::shape(*start, *end, cx).map(one),
        Op::Size => layout::size(cx).map(one),
        Op::Pad { mode, pads } => layout::pad(mode, pads.as_deref(), cx).map(one),
        Op::ConstantOfShape => layout::filled(cx).map(one),
        Op::Range => layout::range(cx).map(one),
        Op::Recurrent(attrs) => recurrent::recurrent(attrs, cx),
        Op::Constant => invalid("a Constant node whose tensor cannot be read"),
        Op::If | Op::Loop | Op::Scan | Op::Opaque => {
            unsupported("the executor has no kernel for it")
        }
    }
}

/// `axis` counted from the back when negative.
fn axis_of(axis: i64, rank: usize) -> Result<usize> {
    let rank_i = i64::try_from(rank).unwrap_or(i64::MAX);
    let positive = if axis < 0 { axis.saturating_add(rank_i) } else { axis };
    match usize::try_from(positive) {
        Ok(positive) if positive < rank => Ok(positive),
        _ => invalid(format!("axis {axis} is outside of rank {rank}")),
    }
}

fn axes_of(axes: &[i64], rank: usize) -> Result<Vec<usize>> {
    axes.iter().map(|&axis| axis_of(axis, rank)).collect()
}

fn size_of(size: i64) -> Result<usize> {
    usize::try_from(size).map_err(|_| OpError::Invalid(format!("size {size} is negative")))
}
