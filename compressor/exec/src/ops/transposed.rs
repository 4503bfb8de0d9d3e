//! Transposed convolution.

use graph::ConvAttrs;

use super::Context;
use crate::error::{Result, invalid};
use crate::value::Value;

/// One spatial axis.
#[derive(Clone, Copy)]
struct Axis {
    from: usize,
    to: usize,
    kernel: usize,
    stride: usize,
    dilation: usize,
    before: i64,
}

/// `[N, C, …]` with `[C, O / group, kernel…]` and `[O]`: every input element lays its filter over the output.
pub(super) fn conv_transpose(attrs: &ConvAttrs, cx: &Context<'_>) -> Result<Value> {
    let (x, w) = (cx.get(0)?, cx.get(1)?);
    if x.rank() < 3 || w.rank() != x.rank() {
        return invalid("operands must be [N, C, spatial…] and [C, O / group, kernel…]");
    }
    let (n, c, groups, per_out) = (x.dims()[0], x.dims()[1], attrs.group.max(1), w.dims()[1]);
    if c != w.dims()[0] || !c.is_multiple_of(groups) {
        return invalid(format!("{c} channels, {} filters, {groups} groups", w.dims()[0]));
    }
    let axes = (0..x.rank() - 2)
        .map(|axis| layout(attrs, axis, x.dims()[axis + 2], w.dims()[axis + 2]))
        .collect::<Result<Vec<_>>>()?;
    let per_in = c / groups;
    let taps: usize = axes.iter().map(|axis| axis.kernel).product();
    let places: usize = axes.iter().map(|axis| axis.from).product();
    // [groups, O/g * taps, C/g] · [N, groups, C/g, places]
    let filters = w.array.reshape((1, groups, per_in, per_out * taps))?.transpose(2, 3)?;
    let columns = x.array.contiguous()?.reshape((n, groups, per_in, places))?;
    let laid = filters.contiguous()?.broadcast_matmul(&columns)?;
    let laid = x.with(laid).floats()?;
    let bias = cx.find(2).map(Value::floats).transpose()?;
    let targets = targets(&axes);
    let size: usize = axes.iter().map(|axis| axis.to).product();
    let mut out = vec![0.0; n * groups * per_out * size];
    for (plane, target) in out.chunks_mut(size.max(1)).enumerate() {
        if let Some(bias) = &bias {
            target.fill(bias[plane % (groups * per_out)]);
        }
        let source = &laid[plane * taps * places..(plane + 1) * taps * places];
        for (value, at) in source.iter().zip(&targets) {
            if let Some(at) = at {
                target[*at] += value;
            }
        }
    }
    let dims: Vec<usize> =
        [n, groups * per_out].into_iter().chain(axes.iter().map(|axis| axis.to)).collect();
    Value::from_floats(out, &dims, x.dtype)
}

fn layout(attrs: &ConvAttrs, axis: usize, from: usize, kernel: usize) -> Result<Axis> {
    let or = |given: &[usize], default: usize| given.get(axis).copied().unwrap_or(default);
    let (stride, dilation) = (or(&attrs.strides, 1), or(&attrs.dilations, 1));
    let extent = dilation * (kernel.max(1) - 1) + 1;
    let full = stride * (from.max(1) - 1) + or(&attrs.output_padding, 0) + extent;
    let rank = attrs.pads.len() / 2;
    let same = matches!(attrs.auto_pad.as_str(), "SAME_UPPER" | "SAME_LOWER");
    let wanted = attrs.output_shape.get(axis).copied().or(same.then_some(from * stride));
    let pads = |at: usize| attrs.pads.get(at).copied().unwrap_or(0);
    let signed = |size: usize| i64::try_from(size).unwrap_or(i64::MAX);
    let (before, to) = match wanted {
        Some(to) => {
            // What is missing is added at the end.
            let total = (signed(full) - signed(to)).max(0);
            let less = total / 2;
            (if attrs.auto_pad == "SAME_UPPER" { less } else { total - less }, signed(to))
        }
        None if attrs.auto_pad == "VALID" => (0, signed(full)),
        None => (pads(axis), signed(full) - pads(axis) - pads(axis + rank)),
    };
    let to = super::size_of(to)?;
    Ok(Axis { from, to, kernel, stride, dilation, before })
}

/// Where each (tap, place) lands, row-major; `None` in the padding that is cut off.
fn targets(axes: &[Axis]) -> Vec<Option<usize>> {
    let taps: usize = axes.iter().map(|axis| axis.kernel).product();
    let places: usize = axes.iter().map(|axis| axis.from).product();
    let pairs = (0..taps).flat_map(|tap| (0..places).map(move |place| (tap, place)));
    pairs.map(|(tap, place)| target(axes, tap, place)).collect()
}

fn target(axes: &[Axis], mut tap: usize, mut place: usize) -> Option<usize> {
    let (mut at, mut pitch) = (0, 1);
    for axis in axes.iter().rev() {
        let offset = (place % axis.from) * axis.stride + (tap % axis.kernel) * axis.dilation;
        let index = i64::try_from(offset).ok()?.checked_sub(axis.before)?;
        let index = usize::try_from(index).ok().filter(|&index| index < axis.to)?;
        at += index * pitch;
        pitch *= axis.to;
        tap /= axis.kernel;
        place /= axis.from;
    }
    Some(at)
}
