//! Operators that move elements without computing.

use super::{Coupling, Port, Ports, Relation, factors, input, normal_axis, output};
use crate::{Dim, Role};

/// `Reshape` and `Flatten`: whole factors are links, factors of a merged or split axis are choices.
pub(super) fn reshape(ports: &Ports) -> Coupling {
    let mut coupling = Coupling::default();
    let (Some(from), Some(to)) = (ports.dims(Port::In(0)), ports.dims(Port::Out(0))) else {
        return coupling;
    };
    let found = factors(from, to);
    for &(a, b) in &found.equal {
        coupling.same(input(0, a), output(0, b));
    }
    for factor in &found.factors {
        let link = super::Link {
            a: input(0, factor.from.0),
            b: output(0, factor.to.0),
            relation: factor.relation(),
        };
        if factor.whole {
            coupling.links.push(link);
        } else {
            coupling.choices.push(link);
        }
    }
    coupling
}

/// Output axis `i` is input axis `perm[i]`; reversed without `perm`.
pub(super) fn transpose(perm: Option<&[usize]>, ports: &Ports) -> Result<Coupling, String> {
    let rank = ports.dims(Port::In(0)).map_or(0, <[Dim]>::len);
    let reversed: Vec<usize> = (0..rank).rev().collect();
    let perm = perm.unwrap_or(&reversed);
    if perm.len() != rank || perm.iter().any(|&axis| axis >= rank) {
        return Err(format!("Transpose: perm {perm:?} does not fit rank {rank}"));
    }
    let mut coupling = Coupling::default();
    for (to, &from) in perm.iter().enumerate() {
        coupling.same(input(0, from), output(0, to));
    }
    Ok(coupling)
}

/// `Squeeze` (from the longer input) and `Unsqueeze` (to the longer output); `axes` are of the longer side.
pub(super) fn squeeze(axes: Option<&[i64]>, ports: &Ports) -> Result<Coupling, String> {
    let (from, to) = (ports.rank(Port::In(0)).unwrap_or(0), ports.rank(Port::Out(0)).unwrap_or(0));
    let longer = from.max(to);
    let axes = match axes.or_else(|| ports.ints(1)) {
        Some(axes) => {
            axes.iter().map(|&axis| normal_axis(axis, longer)).collect::<Result<Vec<_>, _>>()?
        }
        None if ports.has(1) => return Err("axes that are computed".to_owned()),
        None => ones(ports),
    };
    let kept: Vec<usize> = (0..longer).filter(|axis| !axes.contains(axis)).collect();
    if kept.len() != from.min(to) {
        return Err(format!("axes {axes:?} do not lead from rank {from} to rank {to}"));
    }
    let mut coupling = Coupling::default();
    for (short, &long) in kept.iter().enumerate() {
        let (a, b) = if from >= to { (long, short) } else { (short, long) };
        coupling.same(input(0, a), output(0, b));
    }
    Ok(coupling)
}

fn ones(ports: &Ports) -> Vec<usize> {
    let dims = ports.dims(Port::In(0)).unwrap_or_default();
    (0..dims.len()).filter(|&axis| dims[axis] == Dim::Fixed(1)).collect()
}

/// Inputs stand one behind the other on `axis`.
pub(super) fn concat(axis: i64, ports: &Ports) -> Result<Coupling, String> {
    let rank = ports.rank(Port::Out(0)).unwrap_or(0);
    let axis = normal_axis(axis, rank)?;
    let mut coupling = Coupling::default();
    let mut offset = Some(0);
    for slot in (0..ports.inputs.len()).filter(|&slot| ports.has(slot)) {
        for other in (0..rank).filter(|&other| other != axis) {
            coupling.same(input(slot, other), output(0, other));
        }
        let size = ports.size(input(slot, axis));
        if let (Some(at), Some(len)) = (offset, size) {
            coupling.link(input(slot, axis), output(0, axis), Relation::Range { a: 0, b: at, len });
        } else {
            coupling.lock(input(slot, axis), "Concat: the offset of this input is not known");
            coupling.lock(output(0, axis), "Concat: the sizes of its inputs are not known");
        }
        offset = offset.zip(size).map(|(at, len)| at + len);
    }
    Ok(coupling)
}

/// Sizes of the outputs of a `Split` of an axis of `size`; equal parts (the last may be smaller) by default.
pub(crate) fn split_sizes(
    given: Option<&[i64]>,
    size: usize,
    outputs: usize,
) -> Result<Vec<usize>, String> {
    let sizes: Vec<usize> = match given {
        Some(sizes) => {
            sizes.iter().map(|&size| usize::try_from(size)).collect::<Result<_, _>>().ok()
        }
        None => {
            let part = size.div_ceil(outputs.max(1));
            Some((0..outputs).map(|i| part.min(size.saturating_sub(i * part))).collect())
        }
    }
    .ok_or("Split: a size is negative")?;
    if sizes.len() != outputs || sizes.iter().sum::<usize>() != size {
        return Err(format!("Split: sizes {sizes:?} do not divide {size} into {outputs}"));
    }
    Ok(sizes)
}

/// The reverse of [`concat`].
pub(super) fn split(axis: i64, sizes: Option<&[i64]>, ports: &Ports) -> Result<Coupling, String> {
    let rank = ports.rank(Port::In(0)).unwrap_or(0);
    let axis = normal_axis(axis, rank)?;
    if sizes.is_none() && ports.has(1) && ports.ints(1).is_none() {
        return Err("Split: sizes that are computed".to_owned());
    }
    let size = ports.size(input(0, axis)).ok_or("Split: the size of the axis is not known")?;
    let sizes = split_sizes(sizes.or_else(|| ports.ints(1)), size, ports.outputs.len())?;
    let mut coupling = Coupling::default();
    let mut offset = 0;
    for (slot, len) in sizes.into_iter().enumerate() {
        if ports.outputs[slot].is_some() {
            for other in (0..rank).filter(|&other| other != axis) {
                coupling.same(input(0, other), output(slot, other));
            }
            coupling.link(
                input(0, axis),
                output(slot, axis),
                Relation::Range { a: offset, b: 0, len },
            );
        }
        offset += len;
    }
    Ok(coupling)
}

/// `(starts, ends, axes)` of a `Slice` before opset 10.
pub(crate) type SliceAttrs = (Vec<i64>, Vec<i64>, Option<Vec<i64>>);

/// One sliced axis: `start..end` by `step`, not yet clamped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) axis: usize,
    pub(crate) start: i64,
    pub(crate) end: i64,
    pub(crate) step: i64,
}

impl Window {
    /// Start and length on an axis of `size`, for steps of 1.
    pub(crate) fn clamp(&self, size: usize) -> Option<(usize, usize)> {
        let total = i64::try_from(size).ok()?;
        let clamp = |bound: i64| {
            if bound < 0 { bound.saturating_add(total) } else { bound }.clamp(0, total)
        };
        let (start, end) = (clamp(self.start), clamp(self.end));
        Some((usize::try_from(start).ok()?, usize::try_from((end - start).max(0)).ok()?))
    }
}

/// The sliced axes, from the attributes or from constant inputs 1 to 4.
pub(crate) fn windows(attrs: Option<&SliceAttrs>, ports: &Ports) -> Result<Vec<Window>, String> {
    let rank = ports.rank(Port::In(0)).unwrap_or(0);
    let given = |slot: usize| match ports.has(slot) {
        true => ports.ints(slot).map(Some).ok_or("Slice: bounds that are computed"),
        false => Ok(None),
    };
    let (starts, ends, axes, steps) = match attrs {
        Some((starts, ends, axes)) => (Some(&starts[..]), Some(&ends[..]), axes.as_deref(), None),
        None => (given(1)?, given(2)?, given(3)?, given(4)?),
    };
    let (starts, ends) = starts.zip(ends).ok_or("Slice: no bounds")?;
    (0..starts.len())
        .map(|i| {
            let axis = match axes {
                Some(axes) => normal_axis(*axes.get(i).ok_or("Slice: too few axes")?, rank)?,
                None => i,
            };
            let end = *ends.get(i).ok_or("Slice: too few ends")?;
            let step = steps
                .map_or(Some(1), |steps| steps.get(i).copied())
                .ok_or("Slice: too few steps")?;
            Ok(Window { axis, start: starts[i], end, step })
        })
        .collect()
}

/// A window of consecutive indices couples with an offset; other steps lock.
pub(super) fn slice(attrs: Option<&SliceAttrs>, ports: &Ports) -> Result<Coupling, String> {
    let windows = windows(attrs, ports)?;
    let rank = ports.rank(Port::In(0)).unwrap_or(0);
    let mut coupling = Coupling::default();
    for axis in 0..rank {
        let Some(window) = windows.iter().find(|window| window.axis == axis) else {
            coupling.same(input(0, axis), output(0, axis));
            continue;
        };
        match ports.size(input(0, axis)).and_then(|size| Some((size, window.clamp(size)?))) {
            Some((size, (0, len))) if len == size && window.step == 1 => {
                coupling.same(input(0, axis), output(0, axis));
            }
            Some((_, (start, len))) if window.step == 1 => {
                coupling.link(
                    input(0, axis),
                    output(0, axis),
                    Relation::Range { a: start, b: 0, len },
                );
            }
            _ => {
                coupling.lock(input(0, axis), "Slice takes positions of this axis");
                coupling.lock(output(0, axis), "Slice takes positions of this axis");
            }
        }
    }
    Ok(coupling)
}

/// `indices` pick on `axis`; the other axes of the table (an embedding's width) pass.
pub(super) fn gather(axis: i64, ports: &Ports) -> Result<Coupling, String> {
    let rank = ports.rank(Port::In(0)).unwrap_or(0);
    let picked = ports.rank(Port::In(1)).unwrap_or(0);
    let axis = normal_axis(axis, rank)?;
    let mut coupling = Coupling::default();
    for other in (0..rank).filter(|&other| other != axis) {
        let to = if other < axis { other } else { other + picked - 1 };
        coupling.same(input(0, other), output(0, to));
        coupling.role(0, other, Role::Producer);
    }
    coupling.lock(input(0, axis), "Gather picks positions of this axis");
    for index in 0..picked {
        coupling.same(input(1, index), output(0, axis + index));
    }
    Ok(coupling)
}

/// Axes of 1 are repeated; the others pass.
pub(super) fn expand(ports: &Ports) -> Coupling {
    let mut coupling = Coupling::default();
    super::elementwise::broadcast(&mut coupling, ports, 0, Role::Elementwise);
    coupling.fresh = unlinked_outputs(&coupling, ports);
    coupling
}

/// A tensor made of its shape alone.
pub(super) fn filled(ports: &Ports) -> Coupling {
    let fresh = unlinked_outputs(&Coupling::default(), ports);
    Coupling { fresh, ..Coupling::default() }
}

fn unlinked_outputs(coupling: &Coupling, ports: &Ports) -> Vec<super::AxisRef> {
    let rank = ports.rank(Port::Out(0)).unwrap_or(0);
    (0..rank).map(|axis| output(0, axis)).filter(|&at| !coupling.mentions(at)).collect()
}

/// `Shape` reads sizes, not elements; where these sizes go is checked over the whole graph.
pub(super) fn observed(ports: &Ports) -> Coupling {
    let rank = ports.rank(Port::In(0)).unwrap_or(0);
    Coupling { fresh: (0..rank).map(|axis| input(0, axis)).collect(), ..Coupling::default() }
}

/// Axes that are not padded pass; one that is lengthened by a constant passes with an offset, and the filler are
/// units of their own.
pub(super) fn pad(mode: &str, pads: Option<&[i64]>, ports: &Ports) -> Result<Coupling, String> {
    let amounts = pad_amounts(pads, ports)?;
    let constant = matches!(mode, "" | "constant");
    let mut coupling = Coupling::default();
    for (axis, &(begin, end)) in amounts.iter().enumerate() {
        let size = ports.size(input(0, axis)).zip(usize::try_from(begin).ok());
        match size {
            _ if (begin, end) == (0, 0) => coupling.same(input(0, axis), output(0, axis)),
            Some((len, begin)) if constant && end >= 0 => coupling.link(
                input(0, axis),
                output(0, axis),
                Relation::Range { a: 0, b: begin, len },
            ),
            _ => {
                coupling.lock(input(0, axis), "Pad lengthens this axis");
                coupling.lock(output(0, axis), "Pad lengthens this axis");
            }
        }
    }
    Ok(coupling)
}

/// How much a `Pad` adds before and behind each axis.
pub(crate) fn pad_amounts(pads: Option<&[i64]>, ports: &Ports) -> Result<Vec<(i64, i64)>, String> {
    let rank = ports.rank(Port::In(0)).unwrap_or(0);
    let pads = pads.or_else(|| ports.ints(1)).ok_or("Pad: amounts that are computed")?;
    let axes = match ports.has(3) {
        true => ports.ints(3).ok_or("Pad: axes that are computed")?.to_vec(),
        false => (0..rank).filter_map(|axis| i64::try_from(axis).ok()).collect(),
    };
    if pads.len() != 2 * axes.len() {
        return Err(format!("Pad: {} amounts for {} axes", pads.len(), axes.len()));
    }
    let mut amounts = vec![(0, 0); rank];
    for (i, &axis) in axes.iter().enumerate() {
        amounts[normal_axis(axis, rank)?] = (pads[i], pads[i + axes.len()]);
    }
    Ok(amounts)
}
