//! Resampling: an axis that keeps its size is copied, whatever the interpolation.

use super::{Coupling, Port, Ports, input, normal_axis, output};
use crate::op::resize::{SIZES, scales};
use crate::{Dim, Node};

/// Axes that are not resized, or by a scale of 1, pass; the others mix their positions.
pub(super) fn resize(node: &Node, ports: &Ports) -> Result<Coupling, String> {
    let mode = node.attr_str("coordinate_transformation_mode").unwrap_or_default();
    // These two move positions even where the size stays.
    if matches!(mode, "tf_crop_and_resize" | "tf_half_pixel_for_nn") {
        return Err(format!("{} with {mode}", node.op_type));
    }
    let (Some(from), Some(to)) = (ports.dims(Port::In(0)), ports.dims(Port::Out(0))) else {
        return Ok(Coupling::default());
    };
    let axes: Vec<usize> = match node.attr_ints("axes") {
        Some(axes) => axes.iter().map(|&a| normal_axis(a, from.len())).collect::<Result<_, _>>()?,
        None => (0..from.len()).collect(),
    };
    let scales = scales(node, |slot| ports.get(Port::In(slot))?.floats.clone());
    if scales.is_none() && !ports.has(SIZES) {
        return Err(format!("{} with scales that are computed", node.op_type));
    }
    let mut coupling = Coupling::default();
    for axis in 0..from.len().min(to.len()) {
        let scale = axes.iter().position(|&a| a == axis).map(|at| match &scales {
            Some(scales) => scales.get(at).copied(),
            // Sizes: the scale is their ratio.
            None => (from[axis] == to[axis] && from[axis] != Dim::Unknown).then_some(1.0),
        });
        if matches!(scale, None | Some(Some(1.0))) {
            coupling.same(input(0, axis), output(0, axis));
        } else {
            let why = format!("{} interpolates along this axis", node.op_type);
            coupling.lock(input(0, axis), why.clone());
            coupling.lock(output(0, axis), why);
        }
    }
    Ok(coupling)
}
