//! Elementwise functions of several operands with broadcasting.

use candle_core::Tensor as Array;
use graph::{BinaryOp, DType};

use super::Context;
use crate::error::{Result, invalid, unsupported};
use crate::value::Value;

pub(super) fn binary(op: BinaryOp, cx: &Context<'_>) -> Result<Value> {
    let operands: Vec<&Value> =
        (0..cx.operands.len()).map(|slot| cx.get(slot)).collect::<Result<_>>()?;
    let dims = broadcast_dims(operands.iter().map(|operand| operand.dims()))?;
    let wide: Vec<Value> = operands
        .iter()
        .map(|operand| Ok(operand.with(operand.array.broadcast_as(dims.as_slice())?.contiguous()?)))
        .collect::<Result<_>>()?;
    let Some((first, rest)) = wide.split_first() else { return invalid("no operands") };
    match op {
        BinaryOp::Where => select(first, rest),
        BinaryOp::Mean => {
            let count = rest.len() as f64 + 1.0;
            let total = fold(BinaryOp::Add, first, rest, cx)?;
            Ok(total.with((&total.array / count)?))
        }
        BinaryOp::Sum => fold(BinaryOp::Add, first, rest, cx),
        op => fold(op, first, rest, cx),
    }
}

/// The multidirectional broadcast of several shapes.
pub(super) fn broadcast_dims<'a>(shapes: impl Iterator<Item = &'a [usize]>) -> Result<Vec<usize>> {
    let mut dims: Vec<usize> = Vec::new();
    for shape in shapes {
        if shape.len() > dims.len() {
            let missing = shape.len() - dims.len();
            dims.splice(0..0, std::iter::repeat_n(1, missing));
        }
        let shift = dims.len() - shape.len();
        for (axis, &size) in shape.iter().enumerate() {
            let at = &mut dims[shift + axis];
            match (*at, size) {
                (a, b) if a == b || b == 1 => {}
                (1, b) => *at = b,
                (a, b) => return invalid(format!("sizes {a} and {b} do not broadcast")),
            }
        }
    }
    Ok(dims)
}

fn fold(op: BinaryOp, first: &Value, rest: &[Value], cx: &Context<'_>) -> Result<Value> {
    rest.iter().try_fold(first.clone(), |left, right| pair(op, &left, right, cx))
}

fn pair(op: BinaryOp, a: &Value, b: &Value, cx: &Context<'_>) -> Result<Value> {
    if let Some(array) = compare(op, a, b)? {
        return Value::new(array, DType::Bool);
    }
    if let Some(f) = logic(op) {
        let bools = a.ints()?.into_iter().zip(b.ints()?).map(|(a, b)| f(a != 0, b != 0)).collect();
        return Value::from_bools(bools, a.dims());
    }
    if op == BinaryOp::Pow {
        return power(a, b);
    }
    if a.dtype != b.dtype {
        return invalid(format!("{:?} with {:?}", a.dtype, b.dtype));
    }
    if !a.is_float() {
        return integers(op, a, b, cx.node.attr_int("fmod") == Some(1));
    }
    let array = match op {
        BinaryOp::Add => (&a.array + &b.array)?,
        BinaryOp::Sub => (&a.array - &b.array)?,
        BinaryOp::Mul => (&a.array * &b.array)?,
        BinaryOp::Div => (&a.array / &b.array)?,
        BinaryOp::Max => a.array.maximum(&b.array)?,
        BinaryOp::Min => a.array.minimum(&b.array)?,
        BinaryOp::PRelu => zip(a, b, |x, slope| if x < 0.0 { slope * x } else { x })?.array,
        BinaryOp::Mod => zip(a, b, |x, y| x % y)?.array,
        _ => return unsupported(format!("{op:?} of {:?}", a.dtype)),
    };
    Ok(a.with(array))
}

fn compare(op: BinaryOp, a: &Value, b: &Value) -> Result<Option<Array>> {
    let (a, b) = (&a.array, &b.array);
    Ok(Some(match op {
        BinaryOp::Equal => a.eq(b)?,
        BinaryOp::Greater => a.gt(b)?,
        BinaryOp::GreaterOrEqual => a.ge(b)?,
        BinaryOp::Less => a.lt(b)?,
        BinaryOp::LessOrEqual => a.le(b)?,
        _ => return Ok(None),
    }))
}

fn logic(op: BinaryOp) -> Option<fn(bool, bool) -> bool> {
    match op {
        BinaryOp::And => Some(|a, b| a && b),
        BinaryOp::Or => Some(|a, b| a || b),
        BinaryOp::Xor => Some(|a, b| a != b),
        _ => None,
    }
}

fn zip(a: &Value, b: &Value, f: impl Fn(f64, f64) -> f64) -> Result<Value> {
    let values = a.floats()?.into_iter().zip(b.floats()?).map(|(a, b)| f(a, b)).collect();
    Value::from_floats(values, a.dims(), a.dtype)
}

fn integers(op: BinaryOp, a: &Value, b: &Value, truncated: bool) -> Result<Value> {
    let f: fn(i64, i64) -> Option<i64> = match op {
        BinaryOp::Add => |a, b| Some(a.wrapping_add(b)),
        BinaryOp::Sub => |a, b| Some(a.wrapping_sub(b)),
        BinaryOp::Mul => |a, b| Some(a.wrapping_mul(b)),
        BinaryOp::Div => i64::checked_div,
        BinaryOp::Max => |a, b| Some(a.max(b)),
        BinaryOp::Min => |a, b| Some(a.min(b)),
        BinaryOp::Mod if truncated => i64::checked_rem,
        BinaryOp::Mod => |a, b| a.checked_rem(b)?.wrapping_add(b).checked_rem(b),
        BinaryOp::PRelu => |x, slope| Some(if x < 0 { x.wrapping_mul(slope) } else { x }),
        _ => return unsupported(format!("{op:?} of {:?}", a.dtype)),
    };
    let pairs = a.ints()?.into_iter().zip(b.ints()?);
    match pairs.map(|(a, b)| f(a, b)).collect::<Option<Vec<i64>>>() {
        Some(values) => Value::from_ints(values, a.dims(), a.dtype),
        None => invalid("division by zero"),
    }
}

/// The base's type is the result's.
fn power(base: &Value, exponent: &Value) -> Result<Value> {
    let values: Vec<f64> =
        base.floats()?.into_iter().zip(exponent.floats()?).map(|(a, b)| a.powf(b)).collect();
    if base.is_float() {
        return Value::from_floats(values, base.dims(), base.dtype);
    }
    #[allow(clippy::cast_possible_truncation)]
    Value::from_ints(values.into_iter().map(|v| v as i64).collect(), base.dims(), base.dtype)
}

fn select(condition: &Value, operands: &[Value]) -> Result<Value> {
    let [yes, no] = operands else { return invalid("Where wants three operands") };
    if yes.dtype != no.dtype {
        return invalid(format!("{:?} or {:?}", yes.dtype, no.dtype));
    }
    Ok(yes.with(condition.array.where_cond(&yes.array, &no.array)?))
}
