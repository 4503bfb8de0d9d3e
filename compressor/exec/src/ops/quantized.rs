//! Quantized operators, computed in f64: exact for sums below 2⁵³.

use candle_core::{DType as Kind, Tensor as Array};
use graph::{ConvAttrs, DType};

use super::contract::{convolved, multiplied};
use super::{Context, axis_of};
use crate::error::{Result, invalid, unsupported};
use crate::value::Value;

/// `(x − zero point) · scale`.
pub(super) fn dequantize(axis: i64, cx: &Context<'_>) -> Result<Value> {
    let (x, scale) = (cx.get(0)?, cx.get(1)?);
    let centred = centred(cx, 0, 2, Along::Axis(axis))?;
    let scale_laid = laid(&wide(scale)?, x.rank(), Along::Axis(axis))?;
    Value::new(centred.broadcast_mul(&scale_laid)?, scale.dtype)
}

/// `saturate(round(x / scale) + zero point)`, halves to even.
pub(super) fn quantize(axis: i64, cx: &Context<'_>) -> Result<Value> {
    let x = cx.get(0)?;
    let declared = cx.node.attr_int("output_dtype").filter(|&kind| kind != 0);
    let declared = declared.and_then(|kind| i32::try_from(kind).ok()).map(DType::from_onnx);
    let dtype = cx.find(2).map(|point| point.dtype).or(declared).unwrap_or(DType::U8);
    let scale = laid(&wide(cx.get(1)?)?, x.rank(), Along::Axis(axis))?;
    // The quotient is of the type of the operands.
    let scaled = match x.dtype {
        DType::F64 => wide(x)?.broadcast_div(&scale)?,
        _ => x.array.to_dtype(Kind::F32)?.broadcast_div(&scale.to_dtype(Kind::F32)?)?,
    };
    let point = match cx.find(2) {
        Some(point) => laid(&wide(point)?, x.rank(), Along::Axis(axis))?,
        None => scale.zeros_like()?,
    };
    rounded(&scaled.to_dtype(Kind::F64)?, &point, dtype)
}

/// To uint8 over the range of the values and zero; with scale and zero point.
pub(super) fn dynamic(cx: &Context<'_>) -> Result<Vec<Value>> {
    let x = cx.get(0)?;
    let values = x.floats()?;
    let low = values.iter().copied().fold(0.0, f64::min);
    let high = values.iter().copied().fold(0.0, f64::max);
    #[allow(clippy::cast_possible_truncation)]
    let scale = if high > low { f64::from(((high - low) / 255.0) as f32) } else { 1.0 };
    #[allow(clippy::cast_possible_truncation)]
    let point = f64::from((-low / scale) as f32).round_ties_even().clamp(0.0, 255.0);
    let scale = Value::from_floats(vec![scale], &[], DType::F32)?;
    let scaled = x.array.to_dtype(Kind::F32)?.broadcast_div(&scale.array)?;
    let point = Array::new(point, x.array.device())?;
    let y = rounded(&scaled.to_dtype(Kind::F64)?, &point, DType::U8)?;
    Ok(vec![y, scale, Value::new(point, DType::U8)?])
}

/// Inputs `a, b, zero point of a, zero point of b`.
pub(super) fn matmul_integer(cx: &Context<'_>) -> Result<Value> {
    let sum = multiplied(&centred(cx, 0, 2, Along::Rows)?, &centred(cx, 1, 3, Along::Columns)?)?;
    Value::new(sum, DType::I32)
}

/// Inputs `a, b, y`, each with scale and zero point, `y` without itself.
pub(super) fn qlinear_matmul(cx: &Context<'_>) -> Result<Value> {
    let sum = multiplied(&centred(cx, 0, 2, Along::Rows)?, &centred(cx, 3, 5, Along::Columns)?)?;
    let rank = sum.rank();
    let a = laid(&wide(cx.get(1)?)?, rank, Along::Rows)?;
    let b = laid(&wide(cx.get(4)?)?, rank, Along::Columns)?;
    let scaled = sum.broadcast_mul(&a)?.broadcast_mul(&b)?.broadcast_div(&wide(cx.get(6)?)?)?;
    rounded(&scaled, &wide(cx.get(7)?)?, cx.get(7)?.dtype)
}

/// Inputs `x, w, zero point of x, zero point of w`.
pub(super) fn conv_integer(attrs: &ConvAttrs, cx: &Context<'_>) -> Result<Value> {
    let (x, w) = (centred(cx, 0, 2, Along::None)?, centred(cx, 1, 3, Along::Axis(0))?);
    Value::new(convolved(attrs, &x, &w, None)?, DType::I32)
}

/// Inputs `x, w`, each with scale and zero point, scale and zero point of the output, bias.
pub(super) fn qlinear_conv(attrs: &ConvAttrs, cx: &Context<'_>) -> Result<Value> {
    let (x, w) = (centred(cx, 0, 2, Along::None)?, centred(cx, 3, 5, Along::Axis(0))?);
    let bias = cx.find(8).map(wide).transpose()?;
    let sum = convolved(attrs, &x, &w, bias.as_ref())?;
    let filters = laid(&wide(cx.get(4)?)?, sum.rank(), Along::Axis(1))?;
    let factor = filters
        .broadcast_mul(&wide(cx.get(1)?)?.flatten_all()?)?
        .broadcast_div(&wide(cx.get(6)?)?.flatten_all()?)?;
    rounded(&sum.broadcast_mul(&factor)?, &wide(cx.get(7)?)?, cx.get(7)?.dtype)
}

/// Where a parameter that is a vector lies.
#[derive(Clone, Copy)]
enum Along {
    None,
    Axis(i64),
    Rows,
    Columns,
}

fn wide(value: &Value) -> Result<Array> {
    Ok(value.array.to_dtype(Kind::F64)?)
}

/// Input `slot` less its zero point.
fn centred(cx: &Context<'_>, slot: usize, point: usize, along: Along) -> Result<Array> {
    let x = cx.get(slot)?;
    match cx.find(point) {
        Some(point) => Ok(wide(x)?.broadcast_sub(&laid(&wide(point)?, x.rank(), along)?)?),
        None => wide(x),
    }
}

/// A parameter laid along its axis of `rank` axes; a single one stands for all.
fn laid(param: &Array, rank: usize, along: Along) -> Result<Array> {
    if param.elem_count() == 1 {
        return Ok(param.reshape(())?);
    }
    let axis = match along {
        _ if param.rank() > 1 => return Ok(param.clone()),
        Along::Axis(axis) => axis_of(axis, rank)?,
        Along::Rows if rank >= 2 => rank - 2,
        Along::Columns if rank >= 1 => rank - 1,
        _ => return invalid(format!("a parameter of {:?}", param.dims())),
    };
    let dims: Vec<usize> =
        (0..rank).map(|at| if at == axis { param.elem_count() } else { 1 }).collect();
    Ok(param.reshape(dims)?)
}

/// Rounded, halves to even, moved by the zero point, and cut off at the ends of the type.
fn rounded(scaled: &Array, point: &Array, dtype: DType) -> Result<Value> {
    let (low, high) = match dtype {
        DType::U8 => (0.0, f64::from(u8::MAX)),
        DType::I8 => (f64::from(i8::MIN), f64::from(i8::MAX)),
        DType::U16 => (0.0, f64::from(u16::MAX)),
        DType::I16 => (f64::from(i16::MIN), f64::from(i16::MAX)),
        DType::I32 => (f64::from(i32::MIN), f64::from(i32::MAX)),
        other => return unsupported(format!("quantization to {other:?}")),
    };
    let points = point.broadcast_as(scaled.dims())?.flatten_all()?.to_vec1::<f64>()?;
    let scaled_values = scaled.flatten_all()?.to_vec1::<f64>()?;
    #[allow(clippy::cast_possible_truncation)]
    let values = scaled_values
        .iter()
        .zip(points)
        .map(|(value, point)| (value.round_ties_even() + point).clamp(low, high) as i64)
        .collect();
    Value::from_ints(values, scaled.dims(), dtype)
}
