//! Sliding windows over spatial axes, for convolutions and pools of any rank.

use candle_core::{Device, Tensor as Array};

use crate::error::{Result, invalid};

/// How windows are laid over the spatial axes.
pub(super) struct Windows {
    pub(super) kernel: Vec<usize>,
    pub(super) strides: Vec<usize>,
    pub(super) dilations: Vec<usize>,
    /// Padding before and after each axis.
    pub(super) pads: Vec<(usize, usize)>,
    /// Number of windows on each axis.
    pub(super) counts: Vec<usize>,
}

/// The attributes that convolutions and pools share, as the file gives them.
pub(super) struct Layout<'a> {
    pub(super) auto_pad: &'a str,
    pub(super) kernel: &'a [usize],
    pub(super) strides: &'a [usize],
    pub(super) dilations: &'a [usize],
    pub(super) pads: &'a [i64],
    pub(super) ceil: bool,
}

impl Windows {
    /// Fills in the specification's defaults for spatial axes of the given sizes.
    pub(super) fn new(layout: &Layout<'_>, sizes: &[usize]) -> Result<Self> {
        let rank = sizes.len();
        let or_ones = |given: &[usize]| match given {
            [] => Ok(vec![1; rank]),
            given if given.len() == rank && given.iter().all(|&v| v > 0) => Ok(given.to_vec()),
            given => invalid(format!("{given:?} does not fit {rank} spatial axes")),
        };
        let mut windows = Self {
            kernel: or_ones(layout.kernel)?,
            strides: or_ones(layout.strides)?,
            dilations: or_ones(layout.dilations)?,
            pads: Vec::new(),
            counts: Vec::new(),
        };
        for (axis, &size) in sizes.iter().enumerate() {
            windows.add_axis(layout, axis, size)?;
        }
        Ok(windows)
    }

    fn add_axis(&mut self, layout: &Layout<'_>, axis: usize, size: usize) -> Result<()> {
        let (stride, extent) =
            (self.strides[axis], self.dilations[axis] * (self.kernel[axis] - 1) + 1);
        let rank = self.kernel.len();
        let pad = match layout.auto_pad {
            "SAME_UPPER" | "SAME_LOWER" => {
                let count = size.div_ceil(stride);
                let total = ((count.max(1) - 1) * stride + extent).saturating_sub(size);
                let (less, more) = (total / 2, total - total / 2);
                if layout.auto_pad == "SAME_UPPER" { (less, more) } else { (more, less) }
            }
            "VALID" => (0, 0),
            _ if layout.pads.is_empty() => (0, 0),
            _ => match (layout.pads.get(axis), layout.pads.get(axis + rank)) {
                (Some(&begin), Some(&end)) => (super::size_of(begin)?, super::size_of(end)?),
                _ => {
                    return invalid(format!(
                        "pads {:?} do not fit {rank} spatial axes",
                        layout.pads
                    ));
                }
            },
        };
        let Some(room) = (size + pad.0 + pad.1).checked_sub(extent) else {
            return invalid(format!(
                "a window of {extent} does not fit an axis of {size} padded by {pad:?}"
            ));
        };
        let mut count = room / stride + 1;
        // A window that starts in the padding behind the data is left out.
        if layout.ceil && !room.is_multiple_of(stride) && count * stride < size + pad.0 {
            count += 1;
        }
        self.pads.push(pad);
        self.counts.push(count);
        Ok(())
    }

    /// `[N, C, spatial…] → [N, C, window elements, windows]`, with `fill` outside of the data.
    pub(super) fn unfold(&self, x: &Array, fill: f64) -> Result<Array> {
        let (n, c) = (x.dims()[0], x.dims()[1]);
        let mut x = x.clone();
        // Axes so far: n, c, then a (kernel, count) pair for each done axis, then the rest.
        for axis in 0..self.kernel.len() {
            let at = 2 + 2 * axis;
            x = self.unfold_axis(&x, axis, at, fill)?;
        }
        let kernels = (0..self.kernel.len()).map(|axis| 2 + 2 * axis);
        let counts = (0..self.kernel.len()).map(|axis| 3 + 2 * axis);
        let order: Vec<usize> = [0, 1].into_iter().chain(kernels).chain(counts).collect();
        let (taps, places): (usize, usize) =
            (self.kernel.iter().product(), self.counts.iter().product());
        Ok(x.permute(order)?.contiguous()?.reshape((n, c, taps, places))?)
    }

    fn unfold_axis(&self, x: &Array, axis: usize, at: usize, fill: f64) -> Result<Array> {
        let (kernel, count) = (self.kernel[axis], self.counts[axis]);
        let size = x.dims()[at];
        let reach = (count - 1) * self.strides[axis] + self.dilations[axis] * (kernel - 1) + 1;
        let (before, after) = (self.pads[axis].0, reach.saturating_sub(self.pads[axis].0 + size));
        let padded = pad_axis(x, at, (before, after), fill)?;
        let step = |tap: usize| {
            (0..count).map(move |i| i * self.strides[axis] + tap * self.dilations[axis])
        };
        let indices: Vec<u32> = (0..kernel).flat_map(step).map(|i| i as u32).collect();
        let indices = Array::from_vec(indices, kernel * count, &Device::Cpu)?;
        let mut dims = x.dims().to_vec();
        dims.splice(at..=at, [kernel, count]);
        Ok(padded.contiguous()?.index_select(&indices, at)?.reshape(dims)?)
    }
}

/// Lengthens one axis by a constant.
pub(super) fn pad_axis(x: &Array, axis: usize, pad: (usize, usize), fill: f64) -> Result<Array> {
    let block = |len: usize| -> Result<Array> {
        let mut dims = x.dims().to_vec();
        dims[axis] = len;
        Ok(Array::full(fill, dims, &Device::Cpu)?.to_dtype(x.dtype())?)
    };
    let mut parts = Vec::new();
    if pad.0 > 0 {
        parts.push(block(pad.0)?);
    }
    parts.push(x.clone());
    if pad.1 > 0 {
        parts.push(block(pad.1)?);
    }
    Ok(if parts.len() == 1 { x.clone() } else { Array::cat(&parts, axis)? })
}
