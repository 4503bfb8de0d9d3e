//! Convolutions as matrix products: the window of activations that each output position sums over (im2col), in
//! the order of the weight's elements.
//!
//! A window of a convolution with weight `[O, C/g, k…]` has `C/g · Π k` elements; positions outside of the input are
//! zero. Nothing is materialised beyond one row.

use graph::ConvAttrs;

/// The geometry of one convolution over inputs `[N, C, …]`, for one shape of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Windows {
    groups: usize,
    channels: usize,
    kernel: Vec<usize>,
    strides: Vec<usize>,
    dilations: Vec<usize>,
    begins: Vec<i64>,
    from: Vec<usize>,
    to: Vec<usize>,
}

impl Windows {
    /// The windows of a convolution with weight `[O, C/g, k…]` from `x` `[N, C, …]` to `y` `[N, O, …]`.
    ///
    /// # Errors
    /// The ranks do not fit, or the group does not divide the channels.
    pub fn new(
        attrs: &ConvAttrs,
        weight: &[usize],
        x: &[usize],
        y: &[usize],
    ) -> Result<Self, String> {
        let axes = weight.len().saturating_sub(2);
        if axes == 0 || x.len() != axes + 2 || y.len() != axes + 2 {
            return Err(format!("its weight {weight:?}, input {x:?} and output {y:?} do not fit"));
        }
        let groups = attrs.group.max(1);
        if x[1] != weight[1] * groups || !weight[0].is_multiple_of(groups) {
            return Err(format!("{groups} groups of weight {weight:?} do not fit input {x:?}"));
        }
        let given = |values: &[usize]| match values.len() {
            0 => Ok(vec![1; axes]),
            n if n == axes => Ok(values.to_vec()),
            n => Err(format!("{n} strides or dilations for {axes} axes")),
        };
        let (strides, dilations) = (given(&attrs.strides)?, given(&attrs.dilations)?);
        let kernel = weight[2..].to_vec();
        let begins = begins(attrs, &kernel, &strides, &dilations, &x[2..])?;
        Ok(Self {
            groups,
            channels: weight[1],
            kernel,
            strides,
            dilations,
            begins,
            from: x[2..].to_vec(),
            to: y[2..].to_vec(),
        })
    }

    /// Elements of a window.
    pub fn width(&self) -> usize {
        self.channels * self.taps()
    }

    /// Elements of a window for each channel.
    pub fn taps(&self) -> usize {
        self.kernel.iter().product()
    }

    /// Output positions of one sample.
    pub fn positions(&self) -> usize {
        self.to.iter().product()
    }

    /// Writes the window of `group` at output `position` of `sample` (`[C, …]`, row-major) to `row`.
    pub fn write(&self, sample: &[f32], group: usize, position: usize, row: &mut [f32]) {
        let plane: usize = self.from.iter().product();
        let first = group.min(self.groups - 1) * self.channels;
        let corner = self.corner(position);
        let taps = self.taps();
        for tap in 0..taps {
            let at = self.offset(&corner, tap);
            for channel in 0..self.channels {
                let value = at.and_then(|at| sample.get((first + channel) * plane + at));
                row[channel * taps + tap] = value.copied().unwrap_or(0.0);
            }
        }
    }

    /// Where the window at `position` begins on each axis.
    fn corner(&self, position: usize) -> Vec<i64> {
        let mut rest = position;
        let mut corner = vec![0; self.to.len()];
        for axis in (0..self.to.len()).rev() {
            let size = self.to[axis].max(1);
            corner[axis] = ((rest % size) * self.strides[axis]) as i64 - self.begins[axis];
            rest /= size;
        }
        corner
    }

    /// Index within the plane of one tap of a window, unless it lies in the padding.
    fn offset(&self, corner: &[i64], tap: usize) -> Option<usize> {
        let (mut rest, mut at, mut stride) = (tap, 0, 1);
        for axis in (0..self.kernel.len()).rev() {
            let along = (rest % self.kernel[axis]) * self.dilations[axis];
            rest /= self.kernel[axis];
            let index = usize::try_from(corner[axis] + along as i64).ok()?;
            if index >= self.from[axis] {
                return None;
            }
            at += index * stride;
            stride *= self.from[axis];
        }
        Some(at)
    }
}

/// Padding before each axis, as the attributes say it.
fn begins(
    attrs: &ConvAttrs,
    kernel: &[usize],
    strides: &[usize],
    dilations: &[usize],
    from: &[usize],
) -> Result<Vec<i64>, String> {
    let axes = kernel.len();
    match attrs.auto_pad.as_str() {
        "" | "NOTSET" if attrs.pads.is_empty() => Ok(vec![0; axes]),
        "" | "NOTSET" if attrs.pads.len() == 2 * axes => Ok(attrs.pads[..axes].to_vec()),
        "" | "NOTSET" => Err(format!("{} pads for {axes} axes", attrs.pads.len())),
        "VALID" => Ok(vec![0; axes]),
        same @ ("SAME_UPPER" | "SAME_LOWER") => Ok((0..axes)
            .map(|axis| {
                let reach = (kernel[axis] - 1) * dilations[axis] + 1;
                let windows = from[axis].div_ceil(strides[axis].max(1)).max(1);
                let needed = ((windows - 1) * strides[axis] + reach).saturating_sub(from[axis]);
                (if same == "SAME_UPPER" { needed / 2 } else { needed.div_ceil(2) }) as i64
            })
            .collect()),
        other => Err(format!("auto_pad {other} is not known")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn attrs(group: usize, strides: &[usize], pads: &[i64], dilations: &[usize]) -> ConvAttrs {
        ConvAttrs {
            auto_pad: String::new(),
            group,
            kernel_shape: vec![],
            strides: strides.to_vec(),
            dilations: dilations.to_vec(),
            pads: pads.to_vec(),
            output_padding: vec![],
            output_shape: vec![],
        }
    }

    fn rows(windows: &Windows, sample: &[f32], group: usize) -> Vec<Vec<f32>> {
        (0..windows.positions())
            .map(|position| {
                let mut row = vec![f32::NAN; windows.width()];
                windows.write(sample, group, position, &mut row);
                row
            })
            .collect()
    }

    #[test]
    fn a_pointwise_window_is_the_channels_at_the_position() {
        let windows =
            Windows::new(&attrs(1, &[], &[], &[]), &[5, 2, 1, 1], &[1, 2, 1, 3], &[1, 5, 1, 3]);
        let found = rows(&windows.unwrap(), &[1., 2., 3., 4., 5., 6.], 0);
        assert_eq!(found, [[1., 4.], [2., 5.], [3., 6.]]);
    }

    #[test]
    fn padding_is_zero_and_strides_and_dilations_move_the_window() {
        let sample: Vec<f32> = (1..=5).map(|v| v as f32).collect();
        let windows =
            Windows::new(&attrs(1, &[2], &[1, 1], &[2]), &[1, 1, 2], &[1, 1, 5], &[1, 1, 3]);
        assert_eq!(rows(&windows.unwrap(), &sample, 0), [[0., 2.], [2., 4.], [4., 0.]]);
    }

    #[test]
    fn a_group_sees_its_own_channels() {
        let windows =
            Windows::new(&attrs(2, &[], &[], &[]), &[4, 1, 1], &[1, 2, 2], &[1, 4, 2]).unwrap();
        assert_eq!(rows(&windows, &[1., 2., 3., 4.], 1), [[3.], [4.]]);
    }

    #[test]
    fn same_padding_puts_the_odd_element_where_the_attribute_says() {
        let sample = [1., 2., 3., 4.];
        for (auto_pad, first) in [("SAME_UPPER", [1., 2.]), ("SAME_LOWER", [0., 1.])] {
            let mut attrs = attrs(1, &[], &[], &[]);
            attrs.auto_pad = auto_pad.to_owned();
            let windows = Windows::new(&attrs, &[1, 1, 2], &[1, 1, 4], &[1, 1, 4]).unwrap();
            assert_eq!(rows(&windows, &sample, 0)[0], first, "{auto_pad}");
        }
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        let plain = attrs(1, &[], &[], &[]);
        assert!(Windows::new(&plain, &[4, 3, 1], &[1, 2, 5], &[1, 4, 5]).is_err());
        assert!(Windows::new(&plain, &[4, 2], &[1, 2], &[1, 4]).is_err());
        let mut unknown = plain;
        unknown.auto_pad = "FULL".to_owned();
        assert!(Windows::new(&unknown, &[4, 2, 1], &[1, 2, 5], &[1, 4, 5]).is_err());
    }
}
