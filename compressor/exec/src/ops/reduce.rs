//! Reductions, softmax and argmax.

use candle_core::Tensor as Array;
use graph::{DType, ReduceKind};

use super::{Context, axes_of, axis_of};
use crate::error::{Result, unsupported};
use crate::value::Value;

pub(super) fn reduce(
    kind: ReduceKind,
    axes: Option<&[i64]>,
    keepdims: bool,
    noop: bool,
    cx: &Context<'_>,
) -> Result<Value> {
    let x = cx.get(0)?;
    let given = cx.ints_or(axes, 1)?.unwrap_or_default();
    if given.is_empty() && noop {
        return Ok(x.clone());
    }
    let mut axes =
        if given.is_empty() { (0..x.rank()).collect() } else { axes_of(&given, x.rank())? };
    axes.sort_unstable();
    axes.dedup();
    let mut reduced = fold(kind, &x.array, &axes)?;
    if !keepdims {
        for &axis in axes.iter().rev() {
            reduced = reduced.squeeze(axis)?;
        }
    }
    Ok(x.with(reduced))
}

/// Keeps the axes as ones.
fn fold(kind: ReduceKind, x: &Array, axes: &[usize]) -> Result<Array> {
    if axes.is_empty() {
        return Ok(match kind {
            ReduceKind::L1 | ReduceKind::L2 => x.abs()?,
            ReduceKind::SumSquare => x.sqr()?,
            ReduceKind::LogSum => x.log()?,
            _ => x.clone(),
        });
    }
    let sum = |x: &Array| x.sum_keepdim(axes.to_vec());
    Ok(match kind {
        ReduceKind::Sum => sum(x)?,
        ReduceKind::Mean if x.dtype().is_int() => {
            let count: usize = axes.iter().map(|&axis| x.dims()[axis]).product();
            (sum(x)?.to_dtype(candle_core::DType::F64)? / count as f64)?.to_dtype(x.dtype())?
        }
        ReduceKind::Mean => x.mean_keepdim(axes.to_vec())?,
        ReduceKind::Max => each(x, axes, |x, axis| x.max_keepdim(axis))?,
        ReduceKind::Min => each(x, axes, |x, axis| x.min_keepdim(axis))?,
        ReduceKind::Prod => each(x, axes, product)?,
        ReduceKind::L1 => sum(&x.abs()?)?,
        ReduceKind::L2 => sum(&x.sqr()?)?.sqrt()?,
        ReduceKind::SumSquare => sum(&x.sqr()?)?,
        ReduceKind::LogSum => sum(x)?.log()?,
        ReduceKind::LogSumExp => {
            let top = each(x, axes, |x, axis| x.max_keepdim(axis))?;
            (sum(&x.broadcast_sub(&top)?.exp()?)?.log()? + top)?
        }
    })
}

fn each(
    x: &Array,
    axes: &[usize],
    f: impl Fn(&Array, usize) -> candle_core::Result<Array>,
) -> Result<Array> {
    Ok(axes.iter().try_fold(x.clone(), |x, &axis| f(&x, axis))?)
}

fn product(x: &Array, axis: usize) -> candle_core::Result<Array> {
    let mut product = x.narrow(axis, 0, 1)?.ones_like()?;
    for index in 0..x.dims()[axis] {
        product = (product * x.narrow(axis, index, 1)?)?;
    }
    Ok(product)
}

/// Before opset 13 (`flat`) over all axes from `axis` on.
pub(super) fn softmax(axis: i64, log: bool, flat: bool, cx: &Context<'_>) -> Result<Value> {
    let x = cx.get(0)?;
    let axis = axis_of(axis, x.rank())?;
    let axes: Vec<usize> = if flat { (axis..x.rank()).collect() } else { vec![axis] };
    let shifted = x.array.broadcast_sub(&each(&x.array, &axes, |x, axis| x.max_keepdim(axis))?)?;
    let powers = shifted.exp()?;
    let total = powers.sum_keepdim(axes)?;
    Ok(x.with(if log {
        shifted.broadcast_sub(&total.log()?)?
    } else {
        powers.broadcast_div(&total)?
    }))
}

/// The first position of the greatest element, or the last where the attribute says so.
pub(super) fn arg_max(axis: i64, keepdims: bool, cx: &Context<'_>) -> Result<Value> {
    let x = cx.get(0)?;
    let axis = axis_of(axis, x.rank())?;
    if x.dims()[axis] == 0 {
        return unsupported("an empty axis");
    }
    let last_wins = cx.node.attr_int("select_last_index") == Some(1);
    let turned = x.array.transpose(axis, x.rank() - 1)?.contiguous()?;
    let rows = Value { array: turned.clone(), dtype: x.dtype }.floats()?;
    let found = rows.chunks(x.dims()[axis]).map(|row| position(row, last_wins)).collect();
    let mut dims = turned.dims().to_vec();
    *dims.last_mut().expect("rank is at least 1") = 1;
    let mut array =
        Value::from_ints(found, &dims, DType::I64)?.array.transpose(axis, x.rank() - 1)?;
    if !keepdims {
        array = array.squeeze(axis)?;
    }
    Value::new(array, DType::I64)
}

fn position(row: &[f64], last_wins: bool) -> i64 {
    let mut best = 0;
    for (index, value) in row.iter().enumerate() {
        if *value > row[best] || (last_wins && *value == row[best]) {
            best = index;
        }
    }
    i64::try_from(best).unwrap_or(i64::MAX)
}
