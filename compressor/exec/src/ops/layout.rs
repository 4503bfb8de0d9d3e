//! Operators that move elements without computing.

use candle_core::{Device, Tensor as Array};
use graph::{AttributeValue, DType};

use super::arithmetic::broadcast_dims;
use super::{Context, axes_of, axis_of, size_of};
use crate::error::{Result, invalid, unsupported};
use crate::value::Value;

/// Elements of the largest tensor that is made from a shape alone.
const MAX_FILLED: usize = 1 << 30;

/// 0 copies the input's axis (unless `allow_zero`), one −1 is inferred.
pub(super) fn reshape(allow_zero: bool, cx: &Context<'_>) -> Result<Value> {
    let x = cx.get(0)?;
    let wanted = cx.get(1)?.ints()?;
    let mut dims = Vec::with_capacity(wanted.len());
    let mut open = None;
    for (axis, &size) in wanted.iter().enumerate() {
        dims.push(match size {
            -1 if open.is_none() => {
                open = Some(axis);
                1
            }
            0 if !allow_zero => match x.dims().get(axis) {
                Some(&size) => size,
                None => {
                    return invalid(format!(
                        "axis {axis} is to be copied, but the input has no such axis"
                    ));
                }
            },
            size => size_of(size)?,
        });
    }
    if let Some(axis) = open {
        let rest: usize = dims.iter().product();
        let Some(size) = x.array.elem_count().checked_div(rest) else {
            return invalid("−1 beside a size of 0");
        };
        dims[axis] = size;
    }
    if dims.iter().product::<usize>() != x.array.elem_count() {
        return invalid(format!("cannot be reshaped to {wanted:?}"));
    }
    Ok(x.with(x.array.contiguous()?.reshape(dims)?))
}

pub(super) fn flatten(axis: i64, cx: &Context<'_>) -> Result<Value> {
    let x = cx.get(0)?;
    let rank = i64::try_from(x.rank()).unwrap_or(i64::MAX);
    let axis = if axis < 0 { axis + rank } else { axis };
    let Some((outer, inner)) =
        usize::try_from(axis).ok().and_then(|at| x.dims().split_at_checked(at))
    else {
        return invalid(format!("axis {axis} is outside of rank {rank}"));
    };
    let dims = (outer.iter().product::<usize>(), inner.iter().product::<usize>());
    Ok(x.with(x.array.contiguous()?.reshape(dims)?))
}

pub(super) fn transpose(perm: Option<&[usize]>, cx: &Context<'_>) -> Result<Value> {
    let x = cx.get(0)?;
    let reversed: Vec<usize> = (0..x.rank()).rev().collect();
    Ok(x.with(x.array.permute(perm.unwrap_or(&reversed))?.contiguous()?))
}

pub(super) fn squeeze(axes: Option<&[i64]>, cx: &Context<'_>) -> Result<Value> {
    let x = cx.get(0)?;
    let axes = match cx.ints_or(axes, 1)? {
        Some(axes) => axes_of(&axes, x.rank())?,
        None => (0..x.rank()).filter(|&axis| x.dims()[axis] == 1).collect(),
    };
    if let Some(axis) = axes.iter().find(|&&axis| x.dims()[axis] != 1) {
        return invalid(format!("axis {axis} is not 1"));
    }
    let kept = (0..x.rank()).filter(|axis| !axes.contains(axis));
    let dims: Vec<usize> = kept.map(|axis| x.dims()[axis]).collect();
    Ok(x.with(x.array.contiguous()?.reshape(dims)?))
}

pub(super) fn unsqueeze(axes: Option<&[i64]>, cx: &Context<'_>) -> Result<Value> {
    let x = cx.get(0)?;
    let Some(axes) = cx.ints_or(axes, 1)? else { return invalid("no axes") };
    let mut axes = axes_of(&axes, x.rank() + axes.len())?;
    axes.sort_unstable();
    let mut dims = x.dims().to_vec();
    for axis in axes {
        if axis > dims.len() {
            return invalid(format!("axis {axis} is outside of rank {}", dims.len()));
        }
        dims.insert(axis, 1);
    }
    Ok(x.with(x.array.contiguous()?.reshape(dims)?))
}

pub(super) fn concat(axis: i64, cx: &Context<'_>) -> Result<Value> {
    let parts: Vec<&Value> =
        (0..cx.operands.len()).map(|slot| cx.get(slot)).collect::<Result<_>>()?;
    let Some(first) = parts.first() else { return invalid("no operands") };
    if let Some(part) = parts.iter().find(|part| part.dtype != first.dtype) {
        return invalid(format!("{:?} beside {:?}", first.dtype, part.dtype));
    }
    let arrays: Vec<&Array> = parts.iter().map(|part| &part.array).collect();
    Ok(first.with(Array::cat(&arrays, axis_of(axis, first.rank())?)?))
}

/// Sizes from the attribute or input 1; equal parts without.
pub(super) fn split(axis: i64, sizes: Option<&[i64]>, cx: &Context<'_>) -> Result<Vec<Value>> {
    let x = cx.get(0)?;
    let axis = axis_of(axis, x.rank())?;
    let (size, parts) = (x.dims()[axis], cx.node.outputs.len().max(1));
    let sizes: Vec<usize> = match cx.ints_or(sizes, 1)? {
        Some(sizes) => sizes.into_iter().map(size_of).collect::<Result<_>>()?,
        None => {
            let part = size.div_ceil(parts);
            (0..parts).map(|i| part.min(size.saturating_sub(i * part))).collect()
        }
    };
    if sizes.iter().sum::<usize>() != size || sizes.len() != parts {
        return invalid(format!("sizes {sizes:?} do not divide {size} into {parts}"));
    }
    let mut start = 0;
    sizes
        .into_iter()
        .map(|len| {
            let part = x.array.narrow(axis, start, len)?.contiguous()?;
            start += len;
            Ok(x.with(part))
        })
        .collect()
}

/// `(starts, ends, axes)` before opset 10.
type SliceAttrs = (Vec<i64>, Vec<i64>, Option<Vec<i64>>);

pub(super) fn slice(attrs: Option<&SliceAttrs>, cx: &Context<'_>) -> Result<Value> {
    let x = cx.get(0)?;
    let (starts, ends, axes, steps) = match attrs {
        Some((starts, ends, axes)) => (starts.clone(), ends.clone(), axes.clone(), None),
        None => {
            (cx.get(1)?.ints()?, cx.get(2)?.ints()?, cx.ints_or(None, 3)?, cx.ints_or(None, 4)?)
        }
    };
    let axes = match axes {
        Some(axes) => axes_of(&axes, x.rank())?,
        None => (0..starts.len().min(x.rank())).collect(),
    };
    let steps = steps.unwrap_or_else(|| vec![1; starts.len()]);
    if [ends.len(), axes.len(), steps.len()] != [starts.len(); 3] {
        return invalid("starts, ends, axes and steps differ in length");
    }
    let mut array = x.array.clone();
    for (i, &axis) in axes.iter().enumerate() {
        let indices = sliced(starts[i], ends[i], steps[i], x.dims()[axis])?;
        array = pick(&array, axis, &indices)?;
    }
    Ok(x.with(array))
}

/// Positions of `start..end` by `step`, clamped to an axis of `size`.
fn sliced(start: i64, end: i64, step: i64, size: usize) -> Result<Vec<usize>> {
    let total = i64::try_from(size).unwrap_or(i64::MAX);
    let from_back = |bound: i64| if bound < 0 { bound.saturating_add(total) } else { bound };
    let (mut at, end) = match step {
        0 => return invalid("a step of 0"),
        1.. => (from_back(start).clamp(0, total), from_back(end).clamp(0, total)),
        _ => (from_back(start).clamp(-1, total - 1), from_back(end).clamp(-1, total - 1)),
    };
    let mut positions = Vec::new();
    while (step > 0 && at < end) || (step < 0 && at > end) {
        positions.push(size_of(at)?);
        at = at.saturating_add(step);
    }
    Ok(positions)
}

/// Selects positions of one axis.
fn pick(x: &Array, axis: usize, positions: &[usize]) -> Result<Array> {
    if let [first, .., last] = positions
        && last - first.min(last) == positions.len() - 1
        && positions.windows(2).all(|pair| pair[1] == pair[0] + 1)
    {
        return Ok(x.narrow(axis, *first, positions.len())?.contiguous()?);
    }
    if positions.is_empty() {
        return Ok(x.narrow(axis, 0, 0)?.contiguous()?);
    }
    let positions: Vec<u32> = positions
        .iter()
        .map(|&at| u32::try_from(at).or_else(|_| invalid("an axis wider than 2³²")))
        .collect::<Result<_>>()?;
    let count = positions.len();
    Ok(x.contiguous()?.index_select(&Array::from_vec(positions, count, &Device::Cpu)?, axis)?)
}

/// Indices may count from the back.
pub(super) fn gather(axis: i64, cx: &Context<'_>) -> Result<Value> {
    let (x, indices) = (cx.get(0)?, cx.get(1)?);
    let axis = axis_of(axis, x.rank())?;
    let size = x.dims()[axis];
    let positions: Vec<usize> =
        indices.ints()?.into_iter().map(|index| axis_of(index, size)).collect::<Result<_>>()?;
    let picked = pick(&x.array, axis, &positions)?;
    let mut dims = x.dims().to_vec();
    dims.splice(axis..=axis, indices.dims().iter().copied());
    Ok(x.with(picked.reshape(dims)?))
}

pub(super) fn expand(cx: &Context<'_>) -> Result<Value> {
    let x = cx.get(0)?;
    let wanted: Vec<usize> = cx.get(1)?.ints()?.into_iter().map(size_of).collect::<Result<_>>()?;
    let dims = broadcast_dims([x.dims(), &wanted].into_iter())?;
    Ok(x.with(x.array.broadcast_as(dims)?.contiguous()?))
}

pub(super) fn shape(start: i64, end: Option<i64>, cx: &Context<'_>) -> Result<Value> {
    let dims: Vec<i64> =
        cx.get(0)?.dims().iter().filter_map(|&size| i64::try_from(size).ok()).collect();
    let positions = sliced(start, end.unwrap_or(i64::MAX), 1, dims.len())?;
    let picked: Vec<i64> = positions.into_iter().map(|at| dims[at]).collect();
    let count = picked.len();
    Value::from_ints(picked, &[count], DType::I64)
}

pub(super) fn size(cx: &Context<'_>) -> Result<Value> {
    let count = i64::try_from(cx.get(0)?.array.elem_count()).unwrap_or(i64::MAX);
    Value::from_ints(vec![count], &[], DType::I64)
}

/// `value` defaults to one f32 zero.
pub(super) fn filled(cx: &Context<'_>) -> Result<Value> {
    let dims: Vec<usize> = cx.get(0)?.ints()?.into_iter().map(size_of).collect::<Result<_>>()?;
    match dims.iter().try_fold(1_usize, |count, &size| count.checked_mul(size)) {
        Some(count) if count <= MAX_FILLED => {}
        _ => return invalid(format!("{dims:?} is more than {MAX_FILLED} elements")),
    }
    let value = match cx.node.attr("value") {
        Some(AttributeValue::Tensor(tensor)) => Value::from_tensor(tensor)?,
        Some(_) => return invalid("a value that is not a tensor"),
        None => Value::from_floats(vec![0.0], &[1], DType::F32)?,
    };
    if value.array.elem_count() != 1 {
        return invalid("a value of several elements");
    }
    Ok(value.with(value.array.reshape(())?.broadcast_as(dims)?.contiguous()?))
}

/// `start, start + delta, …` before `limit`.
pub(super) fn range(cx: &Context<'_>) -> Result<Value> {
    let (start, limit, delta) = (cx.get(0)?, cx.get(1)?.scalar()?, cx.get(2)?.scalar()?);
    let first = start.scalar()?;
    let count = ((limit - first) / delta).ceil().max(0.0);
    if !count.is_finite() || count > MAX_FILLED as f64 {
        return invalid(format!("more than {MAX_FILLED} elements"));
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let count = count as usize;
    let values: Vec<f64> = (0..count).map(|i| first + i as f64 * delta).collect();
    Value::from_floats(values, &[count], start.dtype)
}

pub(super) fn pad(mode: &str, pads: Option<&[i64]>, cx: &Context<'_>) -> Result<Value> {
    let x = cx.get(0)?;
    let Some(pads) = cx.ints_or(pads, 1)? else { return invalid("no amounts") };
    let axes = match cx.find(3) {
        Some(axes) => axes_of(&axes.ints()?, x.rank())?,
        None => (0..x.rank()).collect(),
    };
    if pads.len() != 2 * axes.len() {
        return invalid(format!("{} amounts for {} axes", pads.len(), axes.len()));
    }
    let fill = match cx.find(2) {
        Some(value) => value.scalar()?,
        None => cx.float("value", 0.0),
    };
    let mut array = x.array.clone();
    for (i, &axis) in axes.iter().enumerate() {
        array = pad_one(mode, &array, axis, (pads[i], pads[i + axes.len()]), fill)?;
    }
    Ok(x.with(array))
}

/// Negative amounts cut.
fn pad_one(
    mode: &str,
    x: &Array,
    axis: usize,
    (begin, end): (i64, i64),
    fill: f64,
) -> Result<Array> {
    let size = i64::try_from(x.dims()[axis]).unwrap_or(i64::MAX);
    if begin == 0 && end == 0 {
        return Ok(x.clone());
    }
    if matches!(mode, "" | "constant") {
        let cut = sliced((-begin).max(0), size - (-end).max(0), 1, x.dims()[axis])?;
        let grown = (size_of(begin.max(0))?, size_of(end.max(0))?);
        return super::window::pad_axis(&pick(x, axis, &cut)?, axis, grown, fill);
    }
    let at = |i: i64| match mode {
        "edge" => Ok(i.clamp(0, size - 1)),
        "wrap" => Ok(i.rem_euclid(size.max(1))),
        "reflect" => {
            let period = (2 * (size - 1)).max(1);
            let folded = i.rem_euclid(period);
            Ok(if folded < size { folded } else { period - folded })
        }
        other => unsupported(format!("mode `{other}`")),
    };
    let positions: Vec<usize> =
        (-begin..size + end).map(|i| size_of(at(i)?)).collect::<Result<_>>()?;
    pick(x, axis, &positions)
}
