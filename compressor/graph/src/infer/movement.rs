//! Operators that move, select or repeat elements.

use super::{
    Context, Inferred, axis_of, elementwise, fold,
    size::{self, Int},
};
use crate::{Dim, SliceAttrs, op::resize};

/// Exporters write "to the end" as `i64::MAX`, `i32::MAX` or a round billion; no axis is that long.
const FAR: i64 = 1_000_000_000;

/// Larger ranks than any runtime takes are not worth following.
const MAX_RANK: usize = 64;

pub(super) fn reshape(context: &Context<'_>, allow_zero: bool) -> Option<Vec<Inferred>> {
    let dims = match context.content(1) {
        Some(target) if target.values.len() <= MAX_RANK => {
            Some(reshaped(context.dims(0), &target.values, allow_zero))
        }
        Some(_) => None,
        None => unknown_dims(context, 1),
    };
    Some(vec![Inferred::new(context.dtype(0)?, dims).with(fold::flat(context, 0))])
}

/// The length of a shape input gives the rank of the output.
fn unknown_dims(context: &Context<'_>, slot: usize) -> Option<Vec<Dim>> {
    match context.dims(slot)? {
        [Dim::Fixed(rank)] if *rank <= MAX_RANK => Some(vec![Dim::Unknown; *rank]),
        _ => None,
    }
}

fn reshaped(input: Option<&[Dim]>, target: &[Int], allow_zero: bool) -> Vec<Dim> {
    let copied = |index: usize| target[index] == Int::Known(0) && !allow_zero;
    let at =
        |index: usize| input.and_then(|input| input.get(index)).cloned().unwrap_or(Dim::Unknown);
    let resolve = |(index, size): (usize, &Int)| match size {
        Int::Known(0) if copied(index) => at(index),
        size => size::to_dim(size),
    };
    let mut output: Vec<Dim> = target.iter().enumerate().map(resolve).collect();
    let open = target.iter().position(|size| *size == Int::Known(-1));
    if let (Some(open), Some(input)) = (open, input) {
        // Copied sizes stand on both sides and cancel, unknown or not.
        let kept = |index: &usize| *index >= target.len() || !copied(*index);
        let total = size::product((0..input.len()).filter(kept).map(|index| &input[index]));
        let rest = (0..output.len()).filter(|&index| index != open && !copied(index));
        let rest = size::product(rest.map(|index| &output[index]));
        output[open] =
            size::div_exact(&total, &rest).map_or(Dim::Unknown, |size| size::to_dim(&size));
    }
    output
}

pub(super) fn flatten(context: &Context<'_>, axis: i64) -> Option<Vec<Inferred>> {
    let Some(dims) = context.dims(0) else { return context.one(None) };
    let rank = i64::try_from(dims.len()).ok()?;
    let axis = usize::try_from(if axis < 0 { axis + rank } else { axis }).ok()?;
    if axis > dims.len() {
        return context.one(None);
    }
    let (front, back) = dims.split_at(axis);
    let joined = [front, back].map(|part| size::to_dim(&size::product(part)));
    context.one(Some(joined.to_vec()))
}

pub(super) fn transpose(context: &Context<'_>, perm: Option<&[usize]>) -> Option<Vec<Inferred>> {
    let Some(dims) = context.dims(0) else { return context.one(None) };
    let reversed: Vec<usize> = (0..dims.len()).rev().collect();
    let perm = perm.unwrap_or(&reversed);
    let moved: Option<Vec<Dim>> = perm.iter().map(|&axis| dims.get(axis).cloned()).collect();
    context.one(moved.filter(|moved| moved.len() == dims.len()))
}

pub(super) fn squeeze(context: &Context<'_>, axes: Option<&[i64]>) -> Option<Vec<Inferred>> {
    let given = axes.map(<[i64]>::to_vec).or_else(|| context.ints(1));
    let computed = given.is_none() && context.node.input(1).is_some();
    let dims = context.dims(0).filter(|_| !computed);
    let dims = dims.and_then(|dims| squeezed(dims, given.as_deref()));
    Some(vec![Inferred::new(context.dtype(0)?, dims).with(fold::flat(context, 0))])
}

fn squeezed(dims: &[Dim], axes: Option<&[i64]>) -> Option<Vec<Dim>> {
    let Some(axes) = axes else {
        // Without axes every 1 goes; an unknown size may be one.
        let all_known = dims.iter().all(|dim| dim.fixed().is_some());
        return all_known
            .then(|| dims.iter().filter(|dim| **dim != Dim::Fixed(1)).cloned().collect());
    };
    let axes: Vec<usize> =
        axes.iter().map(|&axis| axis_of(axis, dims.len())).collect::<Option<_>>()?;
    let kept = dims.iter().enumerate().filter(|(axis, _)| !axes.contains(axis));
    Some(kept.map(|(_, dim)| dim.clone()).collect())
}

pub(super) fn unsqueeze(context: &Context<'_>, axes: Option<&[i64]>) -> Option<Vec<Inferred>> {
    let axes = axes.map(<[i64]>::to_vec).or_else(|| context.ints(1));
    let dims = context.dims(0).zip(axes).and_then(|(dims, axes)| unsqueezed(dims, &axes));
    Some(vec![Inferred::new(context.dtype(0)?, dims).with(fold::flat(context, 0))])
}

fn unsqueezed(dims: &[Dim], axes: &[i64]) -> Option<Vec<Dim>> {
    let rank = dims.len() + axes.len();
    let axes: Vec<usize> = axes.iter().map(|&axis| axis_of(axis, rank)).collect::<Option<_>>()?;
    let mut rest = dims.iter().cloned();
    let next = |axis: usize| if axes.contains(&axis) { Some(Dim::Fixed(1)) } else { rest.next() };
    (0..rank).map(next).collect()
}

pub(super) fn concat(context: &Context<'_>, axis: i64) -> Option<Vec<Inferred>> {
    let slots = 0..context.node.inputs.len();
    let dtype = slots.clone().find_map(|slot| context.dtype(slot))?;
    let all: Option<Vec<&[Dim]>> = slots.map(|slot| context.dims(slot)).collect();
    let dims = all.and_then(|all| concatenated(&all, axis));
    Some(vec![Inferred::new(dtype, dims).with(fold::concat(context))])
}

fn concatenated(all: &[&[Dim]], axis: i64) -> Option<Vec<Dim>> {
    let (first, rest) = all.split_first()?;
    let axis = axis_of(axis, first.len())?;
    let mut joined = first.to_vec();
    for dims in rest {
        if dims.len() != joined.len() {
            return None;
        }
        for (at, (joined, dim)) in joined.iter_mut().zip(*dims).enumerate() {
            if at == axis {
                *joined = size::to_dim(&size::add(&size::from_dim(joined), &size::from_dim(dim)));
            } else if joined.fixed().is_none() && (dim.fixed().is_some() || *joined == Dim::Unknown)
            {
                *joined = dim.clone();
            }
        }
    }
    Some(joined)
}

pub(super) fn split(
    context: &Context<'_>,
    axis: i64,
    sizes: Option<&[i64]>,
) -> Option<Vec<Inferred>> {
    let dtype = context.dtype(0)?;
    let parts = context.node.outputs.len();
    let sizes = sizes.map(<[i64]>::to_vec).or_else(|| context.ints(1));
    let dims_of = |part: usize| {
        let dims = context.dims(0)?;
        let axis = axis_of(axis, dims.len())?;
        let size = match &sizes {
            Some(sizes) => Int::Known(*sizes.get(part)?),
            None if context.node.input(1).is_some() => Int::Unknown,
            None => even_part(&size::from_dim(&dims[axis]), part, parts),
        };
        let mut dims = dims.to_vec();
        dims[axis] = size::to_dim(&size);
        Some(dims)
    };
    Some((0..parts).map(|part| Inferred::new(dtype, dims_of(part))).collect())
}

/// Equal parts, the last one smaller where it does not divide.
fn even_part(whole: &Int, part: usize, parts: usize) -> Int {
    let (Ok(part), Ok(parts)) = (i64::try_from(part), i64::try_from(parts)) else {
        return Int::Unknown;
    };
    match whole {
        Int::Known(whole) => {
            let each = whole.saturating_add(parts - 1) / parts.max(1);
            Int::Known(each.min(whole.saturating_sub(each.saturating_mul(part))).max(0))
        }
        whole => size::div_exact(whole, &Int::Known(parts)).unwrap_or(Int::Unknown),
    }
}

pub(super) fn slice(context: &Context<'_>, attrs: Option<&SliceAttrs>) -> Option<Vec<Inferred>> {
    let dtype = context.dtype(0)?;
    let Some(dims) = context.dims(0) else { return context.one(None) };
    let ranges = ranges(context, attrs, dims.len());
    let Some(ranges) = ranges else {
        // The rank stays, whatever is cut.
        return context.one(Some(vec![Dim::Unknown; dims.len()]));
    };
    let mut cut = dims.to_vec();
    for range in &ranges {
        cut[range.axis] = size::to_dim(&range.length(&size::from_dim(&dims[range.axis])));
    }
    let content = match ranges.as_slice() {
        [range] if dims.len() == 1 => fold::slice(context, range),
        _ => None,
    };
    Some(vec![Inferred::new(dtype, Some(cut)).with(content)])
}

/// One axis of a slice.
pub(super) struct Range {
    axis: usize,
    start: i64,
    end: i64,
    step: i64,
}

impl Range {
    fn length(&self, whole: &Int) -> Int {
        match whole {
            Int::Known(whole) => Int::Known(self.indices(*whole).count),
            Int::Name(_) if self.step == 1 => self.length_of_name(whole),
            _ => Int::Unknown,
        }
    }

    /// Without knowing the size, only bounds at the ends and counted from them say something.
    fn length_of_name(&self, whole: &Int) -> Int {
        match (self.start, self.end) {
            (0, end) if end >= FAR => whole.clone(),
            (start, end) if start >= 0 && end >= FAR => size::sub(whole, &Int::Known(start)),
            (start, end) if start >= 0 && end < 0 => {
                size::add(whole, &end.checked_sub(start).map_or(Int::Unknown, Int::Known))
            }
            (start, end) if start < 0 && end >= FAR => {
                start.checked_neg().map_or(Int::Unknown, Int::Known)
            }
            _ => Int::Unknown,
        }
    }

    /// First index, number of indices and step on an axis of `whole` elements.
    pub(super) fn indices(&self, whole: i64) -> Indices {
        let from_front = |at: i64| if at < 0 { at.saturating_add(whole) } else { at };
        let (low, high) = if self.step > 0 { (0, whole) } else { (-1, whole - 1) };
        let first = from_front(self.start).clamp(low.max(0), high.max(0));
        let end = from_front(self.end).clamp(low, high);
        let distance = if self.step > 0 { end - first } else { first - end };
        let step = self.step.unsigned_abs();
        let count = u64::try_from(distance).map_or(0, |distance| distance.div_ceil(step));
        Indices { first, count: i64::try_from(count).unwrap_or(0), step: self.step }
    }
}

/// The indices that a [`Range`] takes of an axis.
pub(super) struct Indices {
    pub(super) first: i64,
    pub(super) count: i64,
    pub(super) step: i64,
}

fn ranges(context: &Context<'_>, attrs: Option<&SliceAttrs>, rank: usize) -> Option<Vec<Range>> {
    let (starts, ends, axes, steps) = match attrs {
        Some((starts, ends, axes)) => (starts.clone(), ends.clone(), axes.clone(), None),
        None => {
            let optional = |slot: usize| match context.node.input(slot) {
                None => Some(None),
                Some(_) => context.ints(slot).map(Some),
            };
            (context.ints(1)?, context.ints(2)?, optional(3)?, optional(4)?)
        }
    };
    let axes = axes.unwrap_or_else(|| (0i64..).take(starts.len()).collect());
    let steps = steps.unwrap_or_else(|| vec![1; starts.len()]);
    if ends.len() != starts.len() || axes.len() != starts.len() || steps.len() != starts.len() {
        return None;
    }
    let range = |index: usize| {
        let axis = axis_of(axes[index], rank)?;
        let step = steps[index];
        (step != 0).then(|| Range { axis, start: starts[index], end: ends[index], step })
    };
    (0..starts.len()).map(range).collect()
}

pub(super) fn gather(context: &Context<'_>, axis: i64) -> Option<Vec<Inferred>> {
    let dtype = context.dtype(0)?;
    let dims = context.dims(0).zip(context.dims(1)).and_then(|(data, indices)| {
        let axis = axis_of(axis, data.len())?;
        Some([&data[..axis], indices, &data[axis + 1..]].concat())
    });
    Some(vec![Inferred::new(dtype, dims).with(fold::gather(context))])
}

pub(super) fn expand(context: &Context<'_>) -> Option<Vec<Inferred>> {
    let target: Option<Vec<Dim>> = match context.content(1) {
        Some(target) if target.values.len() <= MAX_RANK => {
            Some(target.values.iter().map(size::to_dim).collect())
        }
        Some(_) => None,
        None => unknown_dims(context, 1),
    };
    let dims =
        context.dims(0).zip(target).map(|(dims, target)| elementwise::broadcast(dims, &target));
    let content = fold::expand(context, dims.as_deref());
    Some(vec![Inferred::new(context.dtype(0)?, dims).with(content)])
}

/// Sizes are given, or follow from scales: `floor(size * scale)`.
pub(super) fn resize(context: &Context<'_>) -> Option<Vec<Inferred>> {
    let Some(dims) = context.dims(0) else { return context.one(None) };
    let mut resized = vec![Dim::Unknown; dims.len()];
    let stretched =
        context.node.attr_str("keep_aspect_ratio_policy").is_none_or(|policy| policy == "stretch");
    let axes: Option<Vec<usize>> = match context.node.attr_ints("axes") {
        None => Some((0..dims.len()).collect()),
        Some(axes) => axes.iter().map(|&axis| axis_of(axis, dims.len())).collect(),
    };
    let Some(axes) = axes.filter(|_| stretched) else { return context.one(Some(resized)) };
    let scales = resize::scales(context.node, |slot| context.floats(slot));
    let wanted: Option<Vec<Int>> = match (context.content(3), scales) {
        (Some(sizes), _) => Some(sizes.values.clone()),
        (None, Some(scales)) if scales.len() == axes.len() => {
            Some(axes.iter().zip(scales).map(|(&axis, scale)| scaled(&dims[axis], scale)).collect())
        }
        _ => None,
    };
    if let Some(wanted) = wanted.filter(|wanted| wanted.len() == axes.len()) {
        resized.clone_from_slice(dims);
        for (&axis, size) in axes.iter().zip(&wanted) {
            resized[axis] = size::to_dim(size);
        }
    }
    context.one(Some(resized))
}

fn scaled(dim: &Dim, scale: f64) -> Int {
    #![allow(clippy::cast_possible_truncation, clippy::cast_precision_loss)]
    let whole = scale.fract() == 0.0 && (1.0..1e9).contains(&scale);
    match size::from_dim(dim) {
        Int::Known(size) if (0.0..1e9).contains(&scale) => {
            Int::Known((size as f64 * scale).floor() as i64)
        }
        name if whole => size::mul(&name, &Int::Known(scale as i64)),
        _ => Int::Unknown,
    }
}

pub(super) fn pad(context: &Context<'_>, pads: Option<&[i64]>) -> Option<Vec<Inferred>> {
    let Some(dims) = context.dims(0) else { return context.one(None) };
    let unknown = || context.one(Some(vec![Dim::Unknown; dims.len()]));
    let Some(pads) = pads.map(<[i64]>::to_vec).or_else(|| context.ints(1)) else {
        return unknown();
    };
    let axes: Option<Vec<usize>> = match context.node.input(3) {
        None => Some((0..dims.len()).collect()),
        Some(_) => {
            context.ints(3).and_then(|axes| axes.iter().map(|&a| axis_of(a, dims.len())).collect())
        }
    };
    let Some(axes) = axes.filter(|axes| pads.len() == 2 * axes.len()) else { return unknown() };
    let mut padded = dims.to_vec();
    for (index, &axis) in axes.iter().enumerate() {
        let more =
            pads[index].checked_add(pads[index + axes.len()]).map_or(Int::Unknown, Int::Known);
        padded[axis] = size::to_dim(&size::add(&size::from_dim(&dims[axis]), &more));
    }
    context.one(Some(padded))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn names(dims: &[Dim]) -> String {
        let text = |dim: &Dim| match dim {
            Dim::Fixed(size) => size.to_string(),
            Dim::Symbol(name) => name.clone(),
            Dim::Unknown => "?".to_owned(),
        };
        dims.iter().map(text).collect::<Vec<_>>().join(",")
    }

    #[test]
    fn a_reshape_divides_names_and_copies_unknown_sizes() {
        let n = Dim::Symbol("N".to_owned());
        let input = [n, Dim::Fixed(2048), Dim::Fixed(64)];
        let target = [Int::Known(-1), Int::Known(512), Int::Known(256)];
        assert_eq!(names(&reshaped(Some(&input), &target, false)), "N,512,256");
        let input = [Dim::Unknown, Dim::Fixed(6), Dim::Fixed(4)];
        let target = [Int::Known(0), Int::Known(-1), Int::Known(8)];
        assert_eq!(names(&reshaped(Some(&input), &target, false)), "?,3,8");
        assert_eq!(names(&reshaped(None, &[Int::Known(-1), Int::Known(8)], false)), "?,8");
        assert_eq!(
            names(&reshaped(Some(&[Dim::Fixed(0)]), &[Int::Known(0), Int::Known(5)], true)),
            "0,5"
        );
    }

    #[test]
    fn a_slice_clamps_counts_from_the_end_and_steps_backwards() {
        let length =
            |start, end, step, whole| Range { axis: 0, start, end, step }.indices(whole).count;
        assert_eq!(length(0, i64::MAX, 1, 5), 5);
        assert_eq!(length(-2, i64::MAX, 1, 5), 2);
        assert_eq!(length(1, -1, 2, 6), 2);
        assert_eq!(length(-1, i64::MIN, -1, 5), 5);
        assert_eq!(length(3, 1, 1, 5), 0);
        assert_eq!(length(9, 12, 1, 5), 0);
        assert_eq!(length(0, 5, 1, 0), 0);
        let named =
            |start, end| Range { axis: 0, start, end, step: 1 }.length(&Int::Name("N".to_owned()));
        assert_eq!(named(0, i64::MAX), Int::Name("N".to_owned()));
        assert_eq!(named(1, i64::MAX), Int::Name("(N-1)".to_owned()));
        assert_eq!(named(0, 3), Int::Unknown);
    }

    #[test]
    fn uneven_splits_leave_the_last_part_smaller() {
        let parts: Vec<Int> = (0..4).map(|part| even_part(&Int::Known(7), part, 4)).collect();
        assert_eq!(parts, [2, 2, 2, 1].map(Int::Known));
    }
}
