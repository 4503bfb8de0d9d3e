//! From a node of the file to [`Op`], once: every attribute read, or the node is opaque with the reason.
//!
//! One small function per family; the differences between operator set versions are settled here.

use super::attrs::Attrs;
use crate::{
    BinaryOp, ConvAttrs, EinsumEquation, GemmAttrs, Graph, Node, Op, PoolAttrs, PoolKind,
    RecurrentAttrs, RecurrentKind, ReduceKind, UnaryOp,
};

/// The newest `ai.onnx` operator set whose operators are decoded; those of a newer one are opaque.
pub const NEWEST_OPSET: i64 = 28;

/// Decodes `node`, which is part of `graph` (constant inputs are looked up there).
///
/// # Errors
/// Why it is not understood and has to be [`Op::Opaque`].
pub(crate) fn decode(graph: &Graph, node: &Node, opset: i64) -> Result<Op, String> {
    if !matches!(node.domain.as_str(), "" | "ai.onnx") {
        return Err(format!("domain `{}` is not understood", node.domain));
    }
    if opset > NEWEST_OPSET {
        return Err(format!(
            "operator set {opset} is newer than {NEWEST_OPSET}, the newest understood"
        ));
    }
    let attrs = Attrs::new(node);
    let Some(op) = by_type(graph, node, opset, &attrs) else {
        return Err(format!(
            "operator `{}` of operator set {opset} is not understood",
            node.op_type
        ));
    };
    attrs.finish()?;
    check_arity(&op, node)?;
    Ok(op)
}

fn by_type(graph: &Graph, node: &Node, opset: i64, attrs: &Attrs<'_>) -> Option<Op> {
    if let Some(op) = unary(&node.op_type, opset, attrs) {
        return Some(Op::Unary(op));
    }
    if let Some(op) = binary(&node.op_type, opset, attrs) {
        return Some(Op::Binary(op));
    }
    if let Some(kind) = reduce_kind(&node.op_type) {
        return Some(reduce(graph, node, kind, attrs));
    }
    if let Some(kind) = pool_kind(&node.op_type) {
        return Some(Op::Pool(pool(kind, attrs)));
    }
    layers(node, opset, attrs)
        .or_else(|| shapes(node, opset, attrs))
        .or_else(|| quantized(node, attrs))
        .or_else(|| sources(node, attrs))
}

fn unary(op_type: &str, opset: i64, attrs: &Attrs<'_>) -> Option<UnaryOp> {
    let op = match op_type {
        "Abs" => UnaryOp::Abs,
        "Ceil" => UnaryOp::Ceil,
        "Cos" => UnaryOp::Cos,
        "Elu" => UnaryOp::Elu,
        "Erf" => UnaryOp::Erf,
        "Exp" => UnaryOp::Exp,
        "Floor" => UnaryOp::Floor,
        "Gelu" => UnaryOp::Gelu,
        "HardSigmoid" => UnaryOp::HardSigmoid,
        "HardSwish" => UnaryOp::HardSwish,
        "Identity" => UnaryOp::Identity,
        "IsNaN" => UnaryOp::IsNan,
        "LeakyRelu" => UnaryOp::LeakyRelu,
        "Log" => UnaryOp::Log,
        "Neg" => UnaryOp::Neg,
        "Not" => UnaryOp::Not,
        "Reciprocal" => UnaryOp::Reciprocal,
        "Relu" => UnaryOp::Relu,
        "Round" => UnaryOp::Round,
        "Selu" => UnaryOp::Selu,
        "Sigmoid" => UnaryOp::Sigmoid,
        "Sign" => UnaryOp::Sign,
        "Sin" => UnaryOp::Sin,
        "Softplus" => UnaryOp::Softplus,
        "Softsign" => UnaryOp::Softsign,
        "Sqrt" => UnaryOp::Sqrt,
        "Tan" => UnaryOp::Tan,
        "Tanh" => UnaryOp::Tanh,
        "Clip" => UnaryOp::Clip,
        "Cast" if opset >= 6 => UnaryOp::Cast,
        "Dropout" => UnaryOp::Dropout,
        _ => return None,
    };
    unary_attrs(op, opset, attrs);
    Some(op)
}

/// The parameters of the activations stay attributes; here only their names and types are checked.
fn unary_attrs(op: UnaryOp, opset: i64, attrs: &Attrs<'_>) {
    if opset < 6 {
        attrs.ignore(&["consumed_inputs"]);
    }
    let floats: &[&str] = match op {
        UnaryOp::Elu | UnaryOp::LeakyRelu => &["alpha"],
        UnaryOp::HardSigmoid => &["alpha", "beta"],
        UnaryOp::Selu => &["alpha", "gamma"],
        UnaryOp::Clip if opset < 11 => &["min", "max"],
        UnaryOp::Dropout if opset < 12 => &["ratio"],
        _ => &[],
    };
    for name in floats {
        attrs.float(name, 0.0);
    }
    match op {
        UnaryOp::Gelu => drop(attrs.string("approximate", "none")),
        UnaryOp::Cast => {
            attrs.int("to", 0);
            attrs.ignore(&["saturate", "round_mode"]);
        }
        // Before opset 7 the operator itself said whether it trains.
        UnaryOp::Dropout if opset < 7 => attrs.only_int("is_test", 0, 1),
        UnaryOp::Dropout => attrs.ignore(&["seed"]),
        _ => {}
    }
}

fn binary(op_type: &str, opset: i64, attrs: &Attrs<'_>) -> Option<BinaryOp> {
    let op = match op_type {
        "Add" => BinaryOp::Add,
        "Sub" => BinaryOp::Sub,
        "Mul" => BinaryOp::Mul,
        "Div" => BinaryOp::Div,
        "Pow" => BinaryOp::Pow,
        "Min" => BinaryOp::Min,
        "Max" => BinaryOp::Max,
        "Mean" => BinaryOp::Mean,
        "Sum" => BinaryOp::Sum,
        "Mod" => BinaryOp::Mod,
        "Equal" => BinaryOp::Equal,
        "Greater" => BinaryOp::Greater,
        "GreaterOrEqual" => BinaryOp::GreaterOrEqual,
        "Less" => BinaryOp::Less,
        "LessOrEqual" => BinaryOp::LessOrEqual,
        "And" => BinaryOp::And,
        "Or" => BinaryOp::Or,
        "Xor" => BinaryOp::Xor,
        // Before opset 7 the slope of length C was matched to axis 1, against the broadcasting rules.
        "PRelu" if opset >= 7 => BinaryOp::PRelu,
        "Where" => BinaryOp::Where,
        _ => return None,
    };
    if op == BinaryOp::Mod {
        attrs.int("fmod", 0);
    }
    if opset < 7 {
        attrs.ignore(&["consumed_inputs"]);
        attrs.only_int("broadcast", 0, 0);
    }
    Some(op)
}

fn reduce_kind(op_type: &str) -> Option<ReduceKind> {
    Some(match op_type {
        "ReduceSum" => ReduceKind::Sum,
        "ReduceMean" => ReduceKind::Mean,
        "ReduceMax" => ReduceKind::Max,
        "ReduceMin" => ReduceKind::Min,
        "ReduceProd" => ReduceKind::Prod,
        "ReduceL1" => ReduceKind::L1,
        "ReduceL2" => ReduceKind::L2,
        "ReduceLogSum" => ReduceKind::LogSum,
        "ReduceLogSumExp" => ReduceKind::LogSumExp,
        "ReduceSumSquare" => ReduceKind::SumSquare,
        _ => return None,
    })
}

fn reduce(graph: &Graph, node: &Node, kind: ReduceKind, attrs: &Attrs<'_>) -> Op {
    let mut axes = attrs.ints("axes");
    if let Some(input) = node.input(1) {
        axes = graph.constant_ints(input);
        if axes.is_none() {
            attrs.refuse("its axes are computed, not constant".to_owned());
        }
    }
    let noop_with_empty_axes = attrs.flag("noop_with_empty_axes", false);
    Op::Reduce {
        kind,
        axes: axes.filter(|axes| !axes.is_empty()),
        keepdims: attrs.flag("keepdims", true),
        noop_with_empty_axes,
    }
}

fn pool_kind(op_type: &str) -> Option<PoolKind> {
    Some(match op_type {
        "MaxPool" => PoolKind::Max,
        "AveragePool" => PoolKind::Average,
        "LpPool" => PoolKind::Lp,
        "GlobalMaxPool" => PoolKind::GlobalMax,
        "GlobalAveragePool" => PoolKind::GlobalAverage,
        "GlobalLpPool" => PoolKind::GlobalLp,
        _ => return None,
    })
}

fn pool(kind: PoolKind, attrs: &Attrs<'_>) -> PoolAttrs {
    let global = matches!(kind, PoolKind::GlobalMax | PoolKind::GlobalAverage | PoolKind::GlobalLp);
    let lp = matches!(kind, PoolKind::Lp | PoolKind::GlobalLp);
    if kind == PoolKind::Max {
        attrs.only_int("storage_order", 0, 0);
    }
    let p = if lp { attrs.int("p", 2) } else { 2 };
    let mut pool = PoolAttrs {
        kind,
        auto_pad: "NOTSET".to_owned(),
        ceil_mode: false,
        count_include_pad: false,
        kernel_shape: Vec::new(),
        strides: Vec::new(),
        dilations: Vec::new(),
        pads: Vec::new(),
        p,
    };
    if !global {
        pool.auto_pad = attrs.string("auto_pad", "NOTSET");
        pool.ceil_mode = attrs.flag("ceil_mode", false);
        pool.kernel_shape = attrs.sizes("kernel_shape");
        pool.strides = attrs.sizes("strides");
        pool.dilations = attrs.sizes("dilations");
        pool.pads = attrs.ints("pads").unwrap_or_default();
    }
    if kind == PoolKind::Average {
        pool.count_include_pad = attrs.flag("count_include_pad", false);
    }
    pool
}

fn conv(attrs: &Attrs<'_>, transposed: bool) -> ConvAttrs {
    let group = attrs.int("group", 1);
    if group < 1 {
        attrs.refuse(format!("attribute `group` is {group}"));
    }
    ConvAttrs {
        auto_pad: attrs.string("auto_pad", "NOTSET"),
        group: usize::try_from(group).unwrap_or(1),
        kernel_shape: attrs.sizes("kernel_shape"),
        strides: attrs.sizes("strides"),
        dilations: attrs.sizes("dilations"),
        pads: attrs.ints("pads").unwrap_or_default(),
        output_padding: if transposed { attrs.sizes("output_padding") } else { Vec::new() },
        output_shape: if transposed { attrs.sizes("output_shape") } else { Vec::new() },
    }
}

fn layers(node: &Node, opset: i64, attrs: &Attrs<'_>) -> Option<Op> {
    if let Some(kind) = recurrent_kind(&node.op_type) {
        return Some(Op::Recurrent(recurrent(kind, attrs)));
    }
    Some(match node.op_type.as_str() {
        "Conv" => Op::Conv(conv(attrs, false)),
        "ConvTranspose" => Op::ConvTranspose(conv(attrs, true)),
        "Gemm" => gemm(opset, attrs),
        "MatMul" => Op::MatMul,
        "Einsum" => einsum(node, attrs),
        "BatchNormalization" => batch_normalization(node, opset, attrs),
        "InstanceNormalization" => {
            attrs.ignore(&["consumed_inputs"]);
            Op::InstanceNormalization { epsilon: attrs.float("epsilon", 1e-5) }
        }
        "LayerNormalization" => {
            attrs.only_int("stash_type", 1, 1);
            Op::LayerNormalization {
                axis: attrs.int("axis", -1),
                epsilon: attrs.float("epsilon", 1e-5),
            }
        }
        "RMSNormalization" | "SimplifiedLayerNormalization" => {
            attrs.only_int("stash_type", 1, 1);
            Op::RmsNormalization {
                axis: attrs.int("axis", -1),
                epsilon: attrs.float("epsilon", 1e-5),
            }
        }
        "GroupNormalization" => {
            attrs.only_int("stash_type", 1, 1);
            let groups = usize::try_from(attrs.int("num_groups", 0)).unwrap_or(0);
            Op::GroupNormalization { groups, epsilon: attrs.float("epsilon", 1e-5) }
        }
        "Softmax" | "LogSoftmax" => {
            let flat = opset < 13;
            let axis = attrs.int("axis", if flat { 1 } else { -1 });
            Op::Softmax { axis, log: node.op_type == "LogSoftmax", flat }
        }
        "LRN" => {
            attrs.ignore(&["alpha", "beta", "bias"]);
            Op::Lrn { size: usize::try_from(attrs.int("size", 1)).unwrap_or(1) }
        }
        _ => return None,
    })
}

fn recurrent_kind(op_type: &str) -> Option<RecurrentKind> {
    Some(match op_type {
        "LSTM" => RecurrentKind::Lstm,
        "GRU" => RecurrentKind::Gru,
        "RNN" => RecurrentKind::Rnn,
        _ => return None,
    })
}

/// The activations stay attributes.
fn recurrent(kind: RecurrentKind, attrs: &Attrs<'_>) -> RecurrentAttrs {
    attrs.ignore(&["activation_alpha", "activation_beta", "activations", "clip"]);
    match kind {
        RecurrentKind::Lstm => attrs.ignore(&["input_forget"]),
        RecurrentKind::Gru => attrs.ignore(&["linear_before_reset"]),
        RecurrentKind::Rnn => {}
    }
    let hidden = attrs.int("hidden_size", 0);
    let bidirectional = attrs.string("direction", "forward") == "bidirectional";
    RecurrentAttrs {
        kind,
        hidden: usize::try_from(hidden).unwrap_or(0),
        directions: if bidirectional { 2 } else { 1 },
        batch_first: attrs.flag("layout", false),
    }
}

fn einsum(node: &Node, attrs: &Attrs<'_>) -> Op {
    let equation = EinsumEquation::parse(&attrs.string("equation", "")).unwrap_or_else(|why| {
        attrs.refuse(why);
        EinsumEquation { inputs: Vec::new(), output: Vec::new() }
    });
    if equation.inputs.len() != node.inputs.len() {
        attrs.refuse(format!("{} terms for {} inputs", equation.inputs.len(), node.inputs.len()));
    }
    Op::Einsum(equation)
}

fn gemm(opset: i64, attrs: &Attrs<'_>) -> Op {
    if opset < 7 {
        // With `broadcast` the bias follows today's rules; without, it has the output's own shape.
        attrs.ignore(&["broadcast"]);
    }
    Op::Gemm(GemmAttrs {
        alpha: attrs.float("alpha", 1.0),
        beta: attrs.float("beta", 1.0),
        trans_a: attrs.flag("transA", false),
        trans_b: attrs.flag("transB", false),
    })
}

fn batch_normalization(node: &Node, opset: i64, attrs: &Attrs<'_>) -> Op {
    attrs.ignore(&["momentum"]);
    if opset < 9 {
        attrs.only_int("spatial", 1, 1);
    }
    if opset < 7 {
        attrs.ignore(&["is_test", "consumed_inputs"]);
    }
    // Before opset 14 the optional outputs told training from inference.
    let mut training = node.outputs.iter().skip(1).any(Option::is_some);
    if opset >= 14 {
        training = attrs.flag("training_mode", false);
    }
    Op::BatchNormalization { epsilon: attrs.float("epsilon", 1e-5), training }
}

fn shapes(node: &Node, opset: i64, attrs: &Attrs<'_>) -> Option<Op> {
    Some(match node.op_type.as_str() {
        "Reshape" if opset >= 5 => Op::Reshape { allow_zero: attrs.flag("allowzero", false) },
        "Flatten" => Op::Flatten { axis: attrs.int("axis", 1) },
        "Transpose" => {
            let present = node.attr("perm").is_some();
            let perm = attrs.sizes("perm");
            Op::Transpose { perm: present.then_some(perm) }
        }
        "Squeeze" => Op::Squeeze { axes: attrs.ints("axes") },
        "Unsqueeze" => Op::Unsqueeze { axes: attrs.ints("axes") },
        "Concat" => Op::Concat { axis: attrs.int("axis", 1) },
        "Split" if opset >= 2 => {
            attrs.ignore(&["num_outputs"]);
            Op::Split { axis: attrs.int("axis", 0), sizes: attrs.ints("split") }
        }
        "Slice" if opset < 10 => {
            let (starts, ends) = (attrs.ints("starts")?, attrs.ints("ends")?);
            Op::Slice { attrs: Some((starts, ends, attrs.ints("axes"))) }
        }
        "Slice" => Op::Slice { attrs: None },
        "Gather" => Op::Gather { axis: attrs.int("axis", 0) },
        "Expand" => Op::Expand,
        "Resize" if opset >= 10 => {
            attrs.ignore(&[
                "antialias",
                "axes",
                "coordinate_transformation_mode",
                "cubic_coeff_a",
                "exclude_outside",
                "extrapolation_value",
                "keep_aspect_ratio_policy",
                "mode",
                "nearest_mode",
            ]);
            Op::Resize
        }
        "Upsample" if (7..10).contains(&opset) => {
            attrs.ignore(&["mode", "scales"]);
            Op::Resize
        }
        "Shape" => {
            let end = node.attr("end").map(|_| attrs.int("end", 0));
            Op::Shape { start: attrs.int("start", 0), end }
        }
        "Size" => Op::Size,
        "Pad" if opset >= 2 => {
            attrs.ignore(&["value"]);
            Op::Pad { mode: attrs.string("mode", "constant"), pads: attrs.ints("pads") }
        }
        "ArgMax" => {
            attrs.ignore(&["select_last_index"]);
            Op::ArgMax { axis: attrs.int("axis", 0), keepdims: attrs.flag("keepdims", true) }
        }
        _ => return None,
    })
}

fn quantized(node: &Node, attrs: &Attrs<'_>) -> Option<Op> {
    if matches!(node.op_type.as_str(), "DequantizeLinear" | "QuantizeLinear") {
        attrs.only_int("block_size", 0, 0);
        attrs.ignore(&["output_dtype", "saturate", "precision"]);
    }
    Some(match node.op_type.as_str() {
        "DequantizeLinear" => Op::DequantizeLinear { axis: attrs.int("axis", 1) },
        "QuantizeLinear" => Op::QuantizeLinear { axis: attrs.int("axis", 1) },
        "DynamicQuantizeLinear" => Op::DynamicQuantizeLinear,
        "MatMulInteger" => Op::MatMulInteger,
        "ConvInteger" => Op::ConvInteger(conv(attrs, false)),
        "QLinearConv" => Op::QLinearConv(conv(attrs, false)),
        "QLinearMatMul" => Op::QLinearMatMul,
        _ => return None,
    })
}

fn sources(node: &Node, attrs: &Attrs<'_>) -> Option<Op> {
    Some(match node.op_type.as_str() {
        "Constant" => {
            let one = node.attributes.len() == 1;
            if !one || crate::ir::constant_of(node).is_none() {
                attrs.refuse("its value is not a dense tensor".to_owned());
            }
            attrs.ignore(&[
                "value",
                "value_float",
                "value_floats",
                "value_int",
                "value_ints",
                "value_string",
                "value_strings",
                "sparse_value",
            ]);
            Op::Constant
        }
        "ConstantOfShape" => {
            attrs.ignore(&["value"]);
            Op::ConstantOfShape
        }
        "Range" => Op::Range,
        "If" => {
            attrs.ignore(&["then_branch", "else_branch"]);
            Op::If
        }
        "Loop" => {
            attrs.ignore(&["body"]);
            Op::Loop
        }
        "Scan" => {
            attrs.ignore(&[
                "body",
                "num_scan_inputs",
                "scan_input_axes",
                "scan_input_directions",
                "scan_output_axes",
                "scan_output_directions",
                "directions",
            ]);
            Op::Scan
        }
        _ => return None,
    })
}

/// Later stages index inputs without asking; a node with too few or too many is not what it claims to be.
fn check_arity(op: &Op, node: &Node) -> Result<(), String> {
    let (required, most) = arity(op);
    let present = (0..required).all(|slot| node.input(slot).is_some());
    if !present || node.inputs.len() > most {
        return Err(format!("{} has {} inputs", node.op_type, node.inputs.len()));
    }
    // Of a recurrent layer any output may be the one that is wanted.
    let any = matches!(op, Op::Recurrent(_)) && node.outputs.iter().any(Option::is_some);
    let free = any || matches!(op, Op::If | Op::Loop | Op::Scan | Op::Opaque);
    if node.output(0).is_none() && !free {
        return Err(format!("{} has no output", node.op_type));
    }
    Ok(())
}

/// How many leading inputs must be present, and how many there may be.
fn arity(op: &Op) -> (usize, usize) {
    let any = usize::MAX;
    match op {
        Op::Unary(UnaryOp::Clip | UnaryOp::Dropout) => (1, 3),
        Op::Unary(_)
        | Op::Pool(_)
        | Op::Softmax { .. }
        | Op::ArgMax { .. }
        | Op::Flatten { .. } => (1, 1),
        Op::Transpose { .. } | Op::Shape { .. } | Op::Size | Op::Lrn { .. } => (1, 1),
        Op::Binary(BinaryOp::Where) => (3, 3),
        Op::Binary(BinaryOp::Min | BinaryOp::Max | BinaryOp::Mean | BinaryOp::Sum) => (1, any),
        Op::Binary(_) | Op::MatMul | Op::Gather { .. } | Op::Expand | Op::Reshape { .. } => (2, 2),
        Op::Conv(_) | Op::ConvTranspose(_) | Op::Gemm(_) => (2, 3),
        Op::BatchNormalization { .. } => (5, 5),
        Op::InstanceNormalization { .. } | Op::GroupNormalization { .. } => (3, 3),
        Op::RmsNormalization { .. } => (2, 2),
        Op::LayerNormalization { .. } => (2, 3),
        Op::Reduce { .. } | Op::Squeeze { .. } | Op::Split { .. } => (1, 2),
        Op::Unsqueeze { axes: Some(_) } | Op::Slice { attrs: Some(_) } => (1, 1),
        Op::Unsqueeze { axes: None } => (2, 2),
        Op::Concat { .. } => (1, any),
        Op::Slice { attrs: None } => (3, 5),
        Op::Pad { pads: Some(_), .. } => (1, 1),
        Op::Pad { pads: None, .. } => (2, 4),
        Op::Constant => (0, 0),
        Op::ConstantOfShape | Op::DynamicQuantizeLinear | Op::If => (1, 1),
        Op::Range => (3, 3),
        Op::DequantizeLinear { .. } | Op::QuantizeLinear { .. } => (2, 3),
        Op::MatMulInteger | Op::ConvInteger(_) => (2, 4),
        Op::QLinearConv(_) => (8, 9),
        Op::QLinearMatMul => (8, 8),
        Op::Einsum(_) => (1, any),
        Op::Resize => (1, 4),
        Op::Recurrent(_) => (3, 8),
        Op::Loop | Op::Scan | Op::Opaque => (0, any),
    }
}
