//! Elementwise functions of one operand.

use graph::{DType, UnaryOp};

use super::Context;
use crate::error::{Result, invalid, unsupported};
use crate::value::Value;

pub(super) fn unary(op: UnaryOp, cx: &Context<'_>) -> Result<Vec<Value>> {
    let x = cx.get(0)?;
    let one = match op {
        UnaryOp::Identity => Ok(x.clone()),
        UnaryOp::Dropout => return dropout(x, cx),
        UnaryOp::Cast => cast(x, cx),
        UnaryOp::Clip => clip(x, cx),
        UnaryOp::Not => {
            Value::from_bools(x.ints()?.into_iter().map(|v| v == 0).collect(), x.dims())
        }
        UnaryOp::IsNan => {
            Value::from_bools(x.floats()?.into_iter().map(f64::is_nan).collect(), x.dims())
        }
        UnaryOp::Erf => Ok(x.with(x.array.erf()?)),
        UnaryOp::Gelu => gelu(x, cx),
        op if x.is_float() => map(x, |v| float(op, v, cx)),
        op => integer(op, x),
    }?;
    Ok(vec![one])
}

fn map(x: &Value, f: impl Fn(f64) -> f64) -> Result<Value> {
    let values = x.floats()?.into_iter().map(f).collect();
    Value::from_floats(values, x.dims(), x.dtype)
}

/// Activation parameters default as in the specification.
fn float(op: UnaryOp, x: f64, cx: &Context<'_>) -> f64 {
    let alpha = |default: f64| cx.float("alpha", default);
    match op {
        UnaryOp::Abs => x.abs(),
        UnaryOp::Ceil => x.ceil(),
        UnaryOp::Cos => x.cos(),
        UnaryOp::Elu => elu(x, alpha(1.0)),
        UnaryOp::Exp => x.exp(),
        UnaryOp::Floor => x.floor(),
        UnaryOp::HardSigmoid => hard_sigmoid(x, alpha(f64::from(0.2_f32)), cx.float("beta", 0.5)),
        UnaryOp::HardSwish => x * hard_sigmoid(x, 1.0 / 6.0, 0.5),
        UnaryOp::LeakyRelu if x < 0.0 => alpha(f64::from(0.01_f32)) * x,
        UnaryOp::Log => x.ln(),
        UnaryOp::Neg => -x,
        UnaryOp::Reciprocal => x.recip(),
        UnaryOp::Relu if x < 0.0 => 0.0,
        UnaryOp::Round => x.round_ties_even(),
        UnaryOp::Selu => {
            cx.float("gamma", 1.050_700_987_355_480_5) * elu(x, alpha(1.673_263_242_354_377_3))
        }
        UnaryOp::Sigmoid => (1.0 + (-x).exp()).recip(),
        UnaryOp::Sign if x == 0.0 => 0.0,
        UnaryOp::Sign => x.signum(),
        UnaryOp::Sin => x.sin(),
        UnaryOp::Softplus => x.max(0.0) + (-x.abs()).exp().ln_1p(),
        UnaryOp::Softsign => x / (1.0 + x.abs()),
        UnaryOp::Sqrt => x.sqrt(),
        UnaryOp::Tan => x.tan(),
        UnaryOp::Tanh => x.tanh(),
        UnaryOp::LeakyRelu
        | UnaryOp::Relu
        | UnaryOp::Erf
        | UnaryOp::Gelu
        | UnaryOp::Identity
        | UnaryOp::IsNan
        | UnaryOp::Not
        | UnaryOp::Clip
        | UnaryOp::Cast
        | UnaryOp::Dropout => x,
    }
}

fn elu(x: f64, alpha: f64) -> f64 {
    if x < 0.0 { alpha * x.exp_m1() } else { x }
}

fn hard_sigmoid(x: f64, alpha: f64, beta: f64) -> f64 {
    (alpha * x + beta).clamp(0.0, 1.0)
}

fn integer(op: UnaryOp, x: &Value) -> Result<Value> {
    let f: fn(i64) -> i64 = match op {
        UnaryOp::Abs => i64::wrapping_abs,
        UnaryOp::Neg => i64::wrapping_neg,
        UnaryOp::Relu => |v| v.max(0),
        UnaryOp::Sign => i64::signum,
        _ => return unsupported(format!("{op:?} of {:?}", x.dtype)),
    };
    Value::from_ints(x.ints()?.into_iter().map(f).collect(), x.dims(), x.dtype)
}

/// `0.5 x (1 + erf(x / √2))`, or its approximation by tanh.
fn gelu(x: &Value, cx: &Context<'_>) -> Result<Value> {
    match cx.node.attr_str("approximate").unwrap_or("none") {
        "none" => Ok(x.with(x.array.gelu_erf()?)),
        "tanh" => {
            let factor = (2.0 / std::f64::consts::PI).sqrt();
            map(x, |v| 0.5 * v * (1.0 + (factor * (v + 0.044_715 * v * v * v)).tanh()))
        }
        other => invalid(format!("approximate `{other}`")),
    }
}

/// Bounds from inputs 1 and 2, or before opset 11 from attributes.
fn clip(x: &Value, cx: &Context<'_>) -> Result<Value> {
    if x.is_float() {
        let bound = |slot: usize, name: &str, open: f64| match cx.find(slot) {
            Some(bound) => bound.scalar(),
            None => Ok(cx.float(name, open)),
        };
        let (low, high) = (bound(1, "min", f64::NEG_INFINITY)?, bound(2, "max", f64::INFINITY)?);
        return map(x, |v| if v.is_nan() { v } else { v.max(low).min(high) });
    }
    let bound =
        |slot: usize, open: i64| match cx.find(slot).map(Value::ints).transpose()?.as_deref() {
            Some([bound]) => Ok(*bound),
            Some(_) => invalid("a bound that is not a scalar"),
            None => Ok(open),
        };
    let (low, high) = (bound(1, i64::MIN)?, bound(2, i64::MAX)?);
    Value::from_ints(
        x.ints()?.into_iter().map(|v| v.max(low).min(high)).collect(),
        x.dims(),
        x.dtype,
    )
}

fn cast(x: &Value, cx: &Context<'_>) -> Result<Value> {
    let to = cx.node.attr_int("to").and_then(|to| i32::try_from(to).ok());
    let to = DType::from_onnx(to.unwrap_or(0));
    match to {
        DType::Bool => {
            Value::from_bools(x.floats()?.into_iter().map(|v| v != 0.0).collect(), x.dims())
        }
        to if to.is_float() => {
            let narrowed = Value { array: x.array.clone(), dtype: to };
            let array =
                crate::value::kind(to).and_then(|kind| Ok(narrowed.array.to_dtype(kind)?))?;
            round_trip(Value { array, dtype: to })
        }
        to => Value::from_ints(x.ints()?, x.dims(), to),
    }
}

/// Rounds to the precision of a half type.
fn round_trip(value: Value) -> Result<Value> {
    match value.dtype {
        DType::F16 | DType::Bf16 => Value::from_tensor(&value.to_tensor()?),
        _ => Ok(value),
    }
}

/// The identity; its mask is all true.
fn dropout(x: &Value, cx: &Context<'_>) -> Result<Vec<Value>> {
    let training =
        cx.find(2).map(Value::ints).transpose()?.is_some_and(|flag| flag.first() == Some(&1));
    if training && cx.find(1).map(Value::scalar).transpose()? != Some(0.0) {
        return unsupported("training mode");
    }
    Ok(vec![x.clone(), Value::from_bools(vec![true; x.array.elem_count()], x.dims())?])
}
