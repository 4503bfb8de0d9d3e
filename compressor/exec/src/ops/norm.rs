//! Normalisations.

use candle_core::Tensor as Array;

use super::{Context, axis_of};
use crate::error::{Result, invalid};
use crate::value::Value;

/// `[C]` laid along axis 1 of `rank` axes.
fn along_channels(param: &Value, rank: usize) -> Result<Array> {
    let dims: Vec<usize> =
        (0..rank).map(|axis| if axis == 1 { param.array.elem_count() } else { 1 }).collect();
    Ok(param.array.reshape(dims)?)
}

/// `scale (x − mean) / √(var + ε) + bias`.
pub(super) fn batch(epsilon: f32, cx: &Context<'_>) -> Result<Value> {
    let x = cx.get(0)?;
    if x.rank() < 2 {
        return invalid("no channel axis");
    }
    let param = |slot: usize| along_channels(cx.get(slot)?, x.rank());
    let deviation = (param(4)? + f64::from(epsilon))?.sqrt()?;
    let centred = x.array.broadcast_sub(&param(3)?)?.broadcast_div(&deviation)?;
    Ok(x.with(centred.broadcast_mul(&param(1)?)?.broadcast_add(&param(2)?)?))
}

/// What is standardised over the axes from `first` on, their mean, and the inverse of their deviation.
fn standardise(x: &Array, first: usize, epsilon: f32) -> Result<[Array; 3]> {
    let axes: Vec<usize> = (first..x.rank()).collect();
    let mean = x.mean_keepdim(axes.clone())?;
    let centred = x.broadcast_sub(&mean)?;
    let variance = centred.sqr()?.mean_keepdim(axes)?;
    let inverse = (variance + f64::from(epsilon))?.sqrt()?.recip()?;
    Ok([centred.broadcast_mul(&inverse)?, mean, inverse])
}

pub(super) fn instance(epsilon: f32, cx: &Context<'_>) -> Result<Value> {
    let x = cx.get(0)?;
    if x.rank() < 3 {
        return invalid("no spatial axes");
    }
    let (scale, bias) =
        (along_channels(cx.get(1)?, x.rank())?, along_channels(cx.get(2)?, x.rank())?);
    let [y, ..] = standardise(&x.array, 2, epsilon)?;
    Ok(x.with(y.broadcast_mul(&scale)?.broadcast_add(&bias)?))
}

/// With the mean and the inverse of the deviation.
pub(super) fn layer(axis: i64, epsilon: f32, cx: &Context<'_>) -> Result<Vec<Value>> {
    let x = cx.get(0)?;
    let [mut y, mean, inverse] = standardise(&x.array, axis_of(axis, x.rank())?, epsilon)?;
    y = y.broadcast_mul(&cx.get(1)?.array)?;
    if let Some(bias) = cx.find(2) {
        y = y.broadcast_add(&bias.array)?;
    }
    Ok(vec![x.with(y), x.with(mean), x.with(inverse)])
}

/// `scale x / √(mean x² + ε)` over the axes from `axis` on.
pub(super) fn root_mean_square(axis: i64, epsilon: f32, cx: &Context<'_>) -> Result<Value> {
    let x = cx.get(0)?;
    let axes: Vec<usize> = (axis_of(axis, x.rank())?..x.rank()).collect();
    let power = x.array.sqr()?.mean_keepdim(axes)?;
    let root = (power + f64::from(epsilon))?.sqrt()?;
    Ok(x.with(x.array.broadcast_div(&root)?.broadcast_mul(&cx.get(1)?.array)?))
}

/// Standardised over the channels of each group and the spatial axes; parameters one a group or one a channel.
pub(super) fn group(groups: usize, epsilon: f32, cx: &Context<'_>) -> Result<Value> {
    let x = cx.get(0)?;
    if x.rank() < 2 || groups == 0 || !x.dims()[1].is_multiple_of(groups) {
        return invalid(format!("{groups} groups of {:?}", x.dims()));
    }
    let (n, channels) = (x.dims()[0], x.dims()[1]);
    let rest: usize = x.dims()[2..].iter().product();
    let grouped = x.array.contiguous()?.reshape((n, groups, channels / groups * rest))?;
    let [y, ..] = standardise(&grouped, 2, epsilon)?;
    let param = |slot: usize| -> Result<Array> {
        let param = cx.get(slot)?.array.clone();
        let each = param.elem_count() / groups;
        Ok(param.reshape((1, groups, each, 1))?)
    };
    let y = y.reshape((n, groups, channels / groups, rest))?;
    let y = y.broadcast_mul(&param(1)?)?.broadcast_add(&param(2)?)?;
    Ok(x.with(y.reshape(x.dims())?))
}

/// `x / (k + α/size Σ x²)^β` over `size` neighbouring channels.
pub(super) fn local_response(size: usize, cx: &Context<'_>) -> Result<Value> {
    let x = cx.get(0)?;
    if x.rank() < 2 || size == 0 {
        return invalid("no channel axis, or a size of 0");
    }
    let channels = x.dims()[1];
    let squares = x.array.sqr()?;
    let padded = super::window::pad_axis(&squares, 1, ((size - 1) / 2, size / 2), 0.0)?;
    let mut sum = padded.narrow(1, 0, channels)?;
    for offset in 1..size {
        sum = (sum + padded.narrow(1, offset, channels)?)?;
    }
    let alpha = cx.float("alpha", f64::from(0.0001_f32)) / size as f64;
    let divisor = ((sum * alpha)? + cx.float("bias", 1.0))?.powf(cx.float("beta", 0.75))?;
    Ok(x.with((&x.array / divisor)?))
}
