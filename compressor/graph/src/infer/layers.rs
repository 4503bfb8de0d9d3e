//! Operators that combine along axes: convolutions, products, pooling, reductions.

use super::{
    Context, Inferred, axis_of, elementwise, fold,
    size::{self, Int},
};
use crate::{
    ConvAttrs, DType, Dim, EinsumEquation, GemmAttrs, PoolAttrs, PoolKind, RecurrentAttrs,
    ReduceKind,
};

/// Kernel, strides, dilations and pads of a sliding window.
struct Window<'a> {
    kernel: Vec<Int>,
    strides: &'a [usize],
    dilations: &'a [usize],
    pads: &'a [i64],
    auto_pad: &'a str,
    ceil: bool,
}

/// The filters are input `weights`.
pub(super) fn conv(
    context: &Context<'_>,
    attrs: &ConvAttrs,
    weights: usize,
    dtype: DType,
) -> Option<Vec<Inferred>> {
    let (x, w) = (context.dims(0)?, context.dims(weights)?);
    if x.len() < 2 || w.len() != x.len() {
        return Some(vec![Inferred::new(dtype, None)]);
    }
    let window = Window {
        kernel: kernel(&attrs.kernel_shape, w),
        strides: &attrs.strides,
        dilations: &attrs.dilations,
        pads: &attrs.pads,
        auto_pad: &attrs.auto_pad,
        ceil: false,
    };
    let mut dims = vec![x[0].clone(), w[0].clone()];
    dims.extend(window.outputs(&x[2..]));
    Some(vec![Inferred::new(dtype, Some(dims))])
}

fn kernel(declared: &[usize], weights: &[Dim]) -> Vec<Int> {
    if declared.is_empty() {
        return weights[2..].iter().map(size::from_dim).collect();
    }
    declared.iter().map(|&size| size::from_dim(&Dim::Fixed(size))).collect()
}

impl Window<'_> {
    fn outputs(&self, spatial: &[Dim]) -> Vec<Dim> {
        spatial
            .iter()
            .enumerate()
            .map(|(axis, dim)| size::to_dim(&self.output(axis, spatial.len(), dim)))
            .collect()
    }

    /// `floor((in + pads - dilated kernel) / stride) + 1`, `ceil(in / stride)` for the SAME paddings.
    fn output(&self, axis: usize, rank: usize, input: &Dim) -> Int {
        let input = size::from_dim(input);
        let stride = Int::Known(signed(self.strides.get(axis).copied().unwrap_or(1)));
        if matches!(self.auto_pad, "SAME_UPPER" | "SAME_LOWER") {
            let up = size::sub(&stride, &Int::Known(1));
            return size::div_floor(&size::add(&input, &up), &stride);
        }
        let Some(kernel) = self.kernel.get(axis) else { return Int::Unknown };
        let dilation = Int::Known(signed(self.dilations.get(axis).copied().unwrap_or(1)));
        let reach = size::mul(&size::sub(kernel, &Int::Known(1)), &dilation);
        let (begin, end) = match self.auto_pad {
            "VALID" => (0, 0),
            _ => (pad(self.pads, axis), pad(self.pads, axis + rank)),
        };
        let pads = begin.checked_add(end).map_or(Int::Unknown, Int::Known);
        let input_kept = stride == Int::Known(1) && size::sub(&pads, &reach) == Int::Known(0);
        if input_kept {
            return input;
        }
        // What the window can move by, one step short of its own extent.
        let slack = size::add(&input, &size::sub(&pads, &size::add(&reach, &Int::Known(1))));
        if matches!(slack, Int::Known(..0)) {
            return Int::Unknown;
        }
        let rounded = match self.ceil {
            true => size::add(&slack, &size::sub(&stride, &Int::Known(1))),
            false => slack,
        };
        let output = size::add(&size::div_floor(&rounded, &stride), &Int::Known(1));
        if self.ceil { started_inside(output, &stride, &input, begin) } else { output }
    }
}

/// With `ceil_mode`, a last window that would start in the padding behind the input is dropped.
fn started_inside(output: Int, stride: &Int, input: &Int, begin: i64) -> Int {
    match (&output, stride, input) {
        (Int::Known(count), Int::Known(stride), Int::Known(input)) => {
            let start = (count - 1).checked_mul(*stride);
            let beyond = start.is_some_and(|start| start >= input.saturating_add(begin));
            Int::Known(if beyond { count - 1 } else { *count })
        }
        _ => output,
    }
}

fn pad(pads: &[i64], index: usize) -> i64 {
    pads.get(index).copied().unwrap_or(0)
}

fn signed(size: usize) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

/// `stride * (in - 1) + output_padding + dilated kernel - pads`.
pub(super) fn conv_transpose(context: &Context<'_>, attrs: &ConvAttrs) -> Option<Vec<Inferred>> {
    let (x, w) = (context.dims(0)?, context.dims(1)?);
    if x.len() < 2 || w.len() != x.len() {
        return context.one(None);
    }
    let rank = x.len() - 2;
    let channels = size::mul(&size::from_dim(&w[1]), &Int::Known(signed(attrs.group)));
    let kernel = kernel(&attrs.kernel_shape, w);
    let mut dims = vec![x[0].clone(), size::to_dim(&channels)];
    for axis in 0..rank {
        if let Some(&declared) = attrs.output_shape.get(axis) {
            dims.push(Dim::Fixed(declared));
            continue;
        }
        let stride = Int::Known(signed(attrs.strides.get(axis).copied().unwrap_or(1)));
        let input = size::from_dim(&x[axis + 2]);
        if matches!(attrs.auto_pad.as_str(), "SAME_UPPER" | "SAME_LOWER") {
            dims.push(size::to_dim(&size::mul(&input, &stride)));
            continue;
        }
        let dilation = Int::Known(signed(attrs.dilations.get(axis).copied().unwrap_or(1)));
        let Some(kernel) = kernel.get(axis) else { return context.one(None) };
        let reach = size::mul(&size::sub(kernel, &Int::Known(1)), &dilation);
        let extra = signed(attrs.output_padding.get(axis).copied().unwrap_or(0));
        let pads = pad(&attrs.pads, axis).checked_add(pad(&attrs.pads, axis + rank));
        let added = pads.and_then(|pads| extra.checked_sub(pads)?.checked_add(1));
        let moved = size::mul(&stride, &size::sub(&input, &Int::Known(1)));
        let grown = size::add(&reach, &added.map_or(Int::Unknown, Int::Known));
        dims.push(size::to_dim(&size::add(&moved, &grown)));
    }
    context.one(Some(dims))
}

pub(super) fn gemm(context: &Context<'_>, attrs: &GemmAttrs) -> Option<Vec<Inferred>> {
    let ([a0, a1], [b0, b1]) = (context.dims(0)?, context.dims(1)?) else {
        return context.one(None);
    };
    let rows = if attrs.trans_a { a1 } else { a0 };
    let columns = if attrs.trans_b { b0 } else { b1 };
    context.one(Some(vec![rows.clone(), columns.clone()]))
}

/// The factors are the inputs `slots`.
pub(super) fn matmul(
    context: &Context<'_>,
    slots: (usize, usize),
    dtype: DType,
) -> Option<Vec<Inferred>> {
    let (Some(a), Some(b)) = (context.dims(slots.0), context.dims(slots.1)) else {
        return Some(vec![Inferred::new(dtype, None)]);
    };
    let ([.., _], [.., _]) = (a, b) else { return Some(vec![Inferred::new(dtype, None)]) };
    let (a_batch, rows) =
        if a.len() == 1 { (&a[..0], None) } else { (&a[..a.len() - 2], a.get(a.len() - 2)) };
    let (b_batch, columns) =
        if b.len() == 1 { (&b[..0], None) } else { (&b[..b.len() - 2], b.last()) };
    let mut dims = elementwise::broadcast(a_batch, b_batch);
    dims.extend(rows.cloned());
    dims.extend(columns.cloned());
    Some(vec![Inferred::new(dtype, Some(dims))])
}

/// Every letter has the size of an axis that it stands for, a number where one is known.
pub(super) fn einsum(context: &Context<'_>, equation: &EinsumEquation) -> Option<Vec<Inferred>> {
    let size = |letter: char| {
        let dims = equation.axes(letter).map(|(slot, axis)| context.dims(slot)?.get(axis).cloned());
        let dims: Vec<Dim> = dims.map(|dim| dim.unwrap_or(Dim::Unknown)).collect();
        let wide = |dim: &&Dim| dim.fixed().is_some_and(|size| size > 1);
        let known = |dim: &&Dim| **dim != Dim::Unknown;
        dims.iter().find(wide).or(dims.iter().find(known)).cloned().unwrap_or(Dim::Unknown)
    };
    context.one(Some(equation.output.iter().map(|&letter| size(letter)).collect()))
}

pub(super) fn pool(context: &Context<'_>, attrs: &PoolAttrs) -> Option<Vec<Inferred>> {
    let x = context.dims(0)?;
    if x.len() < 2 {
        return context.one(None);
    }
    let mut dims = x[..2].to_vec();
    match attrs.kind {
        PoolKind::GlobalMax | PoolKind::GlobalAverage | PoolKind::GlobalLp => {
            dims.extend(std::iter::repeat_n(Dim::Fixed(1), x.len() - 2));
        }
        PoolKind::Max | PoolKind::Average | PoolKind::Lp => {
            let window = Window {
                kernel: attrs.kernel_shape.iter().map(|&k| Int::Known(signed(k))).collect(),
                strides: &attrs.strides,
                dilations: &attrs.dilations,
                pads: &attrs.pads,
                auto_pad: &attrs.auto_pad,
                ceil: attrs.ceil_mode,
            };
            dims.extend(window.outputs(&x[2..]));
        }
    }
    let indices = Inferred::new(DType::I64, Some(dims.clone()));
    let mut outputs = context.one(Some(dims))?;
    outputs.push(indices);
    Some(outputs)
}

/// Outputs `y`, the last hidden state and, for LSTM, the last cell state.
pub(super) fn recurrent(context: &Context<'_>, attrs: &RecurrentAttrs) -> Option<Vec<Inferred>> {
    let dtype = context.dtype(0)?;
    let directions = Dim::Fixed(attrs.directions);
    let hidden = match attrs.hidden {
        // The recurrence weights are [directions, gates * hidden, hidden].
        0 => context.dims(2).and_then(|dims| dims.last().cloned()).unwrap_or(Dim::Unknown),
        hidden => Dim::Fixed(hidden),
    };
    let (first, second) = match context.dims(0) {
        Some([first, second, _]) => (first.clone(), second.clone()),
        _ => (Dim::Unknown, Dim::Unknown),
    };
    let (all, last) = match attrs.batch_first {
        true => (
            vec![first.clone(), second, directions.clone(), hidden.clone()],
            vec![first, directions, hidden],
        ),
        false => (
            vec![first, directions.clone(), second.clone(), hidden.clone()],
            vec![directions, second, hidden],
        ),
    };
    let last = Inferred::new(dtype, Some(last));
    Some(vec![Inferred::new(dtype, Some(all)), last.clone(), last])
}

pub(super) fn reduce(
    context: &Context<'_>,
    kind: ReduceKind,
    axes: Option<&[i64]>,
    keepdims: bool,
    noop: bool,
) -> Option<Vec<Inferred>> {
    let Some(dims) = context.dims(0) else { return context.one(None) };
    let reduced: Vec<usize> = match axes {
        None if noop => Vec::new(),
        None => (0..dims.len()).collect(),
        Some(axes) => axes.iter().map(|&axis| axis_of(axis, dims.len())).collect::<Option<_>>()?,
    };
    let content =
        (kind == ReduceKind::Prod && reduced.len() == dims.len()).then(|| fold::product(context));
    let dims = without(dims, &reduced, keepdims);
    Some(vec![Inferred::new(context.dtype(0)?, Some(dims)).with(content.flatten())])
}

pub(super) fn arg_max(context: &Context<'_>, axis: i64, keepdims: bool) -> Option<Vec<Inferred>> {
    let dims = context.dims(0);
    let dims = dims.and_then(|dims| Some(without(dims, &[axis_of(axis, dims.len())?], keepdims)));
    Some(vec![Inferred::new(DType::I64, dims)])
}

fn without(dims: &[Dim], reduced: &[usize], keepdims: bool) -> Vec<Dim> {
    let one = |axis: usize, dim: &Dim| match (reduced.contains(&axis), keepdims) {
        (false, _) => Some(dim.clone()),
        (true, true) => Some(Dim::Fixed(1)),
        (true, false) => None,
    };
    dims.iter().enumerate().filter_map(|(axis, dim)| one(axis, dim)).collect()
}
