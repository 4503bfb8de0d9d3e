//! Resampling, one axis after the other.

use candle_core::{Device, Tensor as Array};
use graph::AttributeValue;

use super::{Context, axes_of};
use crate::error::{Result, invalid, unsupported};
use crate::value::Value;

/// How an output index finds its place on the input, and what is made of its neighbours.
struct Sampling<'a> {
    mode: &'a str,
    coordinates: &'a str,
    nearest: &'a str,
    cubic: f64,
    exclude_outside: bool,
    extrapolation: f64,
}

/// One axis: sizes, their ratio, and the crop of `tf_crop_and_resize` as shares of the axis.
struct Axis {
    from: usize,
    to: usize,
    scale: f64,
    crop: (f64, f64),
}

/// Input indices of an output index with their weights; `None` outside of the data.
type Taps = Option<Vec<(usize, f64)>>;

pub(super) fn resize(cx: &Context<'_>) -> Result<Value> {
    let x = cx.get(0)?;
    if cx.node.attr_int("antialias") == Some(1) {
        return unsupported("antialias");
    }
    let sampling = sampling(cx);
    let axes = match cx.node.attr_ints("axes") {
        Some(axes) => axes_of(axes, x.rank())?,
        None => (0..x.rank()).collect(),
    };
    let mut array = x.array.clone();
    for (axis, plan) in axes.iter().zip(plans(cx, x, &axes)?) {
        let moves = plan.from != plan.to || plan.scale != 1.0 || sampling.crops();
        if moves {
            array = along(&array, *axis, &plan, &sampling)?;
        }
    }
    Ok(x.with(array))
}

/// `Upsample`, and `Resize` before opset 11, know scales only, count from the origin and round down.
fn sampling<'a>(cx: &'a Context<'_>) -> Sampling<'a> {
    let text = |name: &str, default: &'static str| cx.node.attr_str(name).unwrap_or(default);
    let first_form = cx.node.inputs.len() <= 2;
    let (coordinates, nearest) = match first_form {
        true => ("asymmetric", "floor"),
        false => ("half_pixel", "round_prefer_floor"),
    };
    Sampling {
        mode: text("mode", "nearest"),
        coordinates: text("coordinate_transformation_mode", coordinates),
        nearest: text("nearest_mode", nearest),
        cubic: cx.float("cubic_coeff_a", -0.75),
        exclude_outside: cx.node.attr_int("exclude_outside") == Some(1),
        extrapolation: cx.float("extrapolation_value", 0.0),
    }
}

fn plans(cx: &Context<'_>, x: &Value, axes: &[usize]) -> Result<Vec<Axis>> {
    let crop = match cx.find(1).filter(|_| sampling(cx).crops()) {
        Some(roi) => roi.floats()?,
        None => [vec![0.0; axes.len()], vec![1.0; axes.len()]].concat(),
    };
    let scales = match (cx.node.attr("scales"), cx.node.inputs.len()) {
        (Some(AttributeValue::Floats(scales)), _) => scales.iter().map(|&s| f64::from(s)).collect(),
        (_, 2) => cx.get(1)?.floats()?,
        _ => cx.find(2).map(Value::floats).transpose()?.unwrap_or_default(),
    };
    let sizes = cx.find(3).map(Value::ints).transpose()?;
    let plans: Vec<(usize, f64)> = match sizes.filter(|sizes| !sizes.is_empty()) {
        Some(sizes) => sized(cx, x, axes, &sizes)?,
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        None => axes
            .iter()
            .zip(&scales)
            .map(|(&axis, &scale)| ((x.dims()[axis] as f64 * scale).floor() as usize, scale))
            .collect(),
    };
    if plans.len() != axes.len() || crop.len() != 2 * axes.len() {
        return invalid(format!("{} sizes for {} axes", plans.len(), axes.len()));
    }
    let plan = |(at, (to, scale))| Axis {
        from: x.dims()[axes[at]],
        to,
        scale,
        crop: (crop[at], crop[at + axes.len()]),
    };
    Ok(plans.into_iter().enumerate().map(plan).collect())
}

/// Wanted sizes with their scales; a policy may keep the ratio of the axes.
fn sized(cx: &Context<'_>, x: &Value, axes: &[usize], sizes: &[i64]) -> Result<Vec<(usize, f64)>> {
    let wanted = sizes.iter().map(|&size| super::size_of(size)).collect::<Result<Vec<_>>>()?;
    let ratio = |(&axis, &to): (&usize, &usize)| to as f64 / x.dims()[axis] as f64;
    let ratios = axes.iter().zip(&wanted).map(ratio);
    let common = match cx.node.attr_str("keep_aspect_ratio_policy").unwrap_or("stretch") {
        "not_larger" => Some(ratios.clone().fold(f64::INFINITY, f64::min)),
        "not_smaller" => Some(ratios.clone().fold(0.0, f64::max)),
        _ => None,
    };
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let kept = |axis: &usize, scale: f64| (x.dims()[*axis] as f64 * scale + 0.5).floor() as usize;
    Ok(match common {
        Some(scale) => axes.iter().map(|axis| (kept(axis, scale), scale)).collect(),
        None => wanted.iter().copied().zip(ratios).collect(),
    })
}

impl Sampling<'_> {
    fn crops(&self) -> bool {
        self.coordinates == "tf_crop_and_resize"
    }

    /// The place of output index `i` on the input axis.
    fn place(&self, i: usize, axis: &Axis) -> Result<f64> {
        let (i, from, to) = (i as f64, axis.from as f64, axis.to as f64);
        let centred = (i + 0.5) / axis.scale - 0.5;
        Ok(match self.coordinates {
            "half_pixel" => centred,
            "pytorch_half_pixel" if axis.to > 1 => centred,
            "pytorch_half_pixel" => 0.0,
            "half_pixel_symmetric" => {
                let adjustment = to / (axis.scale * from);
                from / 2.0 * (1.0 - adjustment) + centred
            }
            "align_corners" if axis.to == 1 => 0.0,
            "align_corners" => i * (from - 1.0) / (axis.scale * from - 1.0),
            "asymmetric" => i / axis.scale,
            "tf_half_pixel_for_nn" => (i + 0.5) / axis.scale,
            "tf_crop_and_resize" => {
                let (start, end) = axis.crop;
                match axis.to {
                    1 => 0.5 * (start + end) * (from - 1.0),
                    _ => start * (from - 1.0) + i * (end - start) * (from - 1.0) / (to - 1.0),
                }
            }
            other => return unsupported(format!("coordinates `{other}`")),
        })
    }

    fn taps(&self, i: usize, axis: &Axis) -> Result<Taps> {
        let place = self.place(i, axis)?;
        if self.crops() && (place < 0.0 || place > axis.from as f64 - 1.0) {
            return Ok(None);
        }
        let base = place.floor();
        let share = place - base;
        let spread: Vec<(f64, f64)> = match self.mode {
            "nearest" => vec![(self.rounded(place)?, 1.0)],
            "linear" => vec![(base, 1.0 - share), (base + 1.0, share)],
            "cubic" => {
                (-1..3).map(|d| (base + f64::from(d), self.kernel(share - f64::from(d)))).collect()
            }
            other => return unsupported(format!("mode `{other}`")),
        };
        Ok(Some(self.inside(&spread, axis.from)))
    }

    /// Neighbours beyond the ends are the ends, or left out.
    fn inside(&self, spread: &[(f64, f64)], from: usize) -> Vec<(usize, f64)> {
        let last = from.saturating_sub(1) as f64;
        let excludes = self.exclude_outside && self.mode == "cubic";
        let kept = spread.iter().filter(|(at, _)| !excludes || (0.0..=last).contains(at));
        let total: f64 = if excludes { kept.clone().map(|tap| tap.1).sum() } else { 1.0 };
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        kept.map(|&(at, weight)| (at.clamp(0.0, last) as usize, weight / total)).collect()
    }

    fn rounded(&self, place: f64) -> Result<f64> {
        Ok(match self.nearest {
            "round_prefer_floor" => (place - 0.5).ceil(),
            "round_prefer_ceil" => (place + 0.5).floor(),
            "floor" => place.floor(),
            "ceil" => place.ceil(),
            other => return unsupported(format!("nearest mode `{other}`")),
        })
    }

    /// Cubic convolution, at a distance of less than 2.
    fn kernel(&self, distance: f64) -> f64 {
        let (a, d) = (self.cubic, distance.abs());
        if d <= 1.0 {
            ((a + 2.0) * d - (a + 3.0)) * d * d + 1.0
        } else {
            ((a * d - 5.0 * a) * d + 8.0 * a) * d - 4.0 * a
        }
    }
}

fn along(x: &Array, axis: usize, plan: &Axis, sampling: &Sampling<'_>) -> Result<Array> {
    let taps: Vec<Taps> =
        (0..plan.to).map(|i| sampling.taps(i, plan)).collect::<Result<Vec<_>>>()?;
    let count = taps.iter().flatten().map(Vec::len).max().unwrap_or(0);
    if sampling.mode == "nearest" && !taps.contains(&None) {
        return picked(x, axis, taps.iter().map(first));
    }
    if !x.dtype().is_float() {
        return unsupported("interpolation of integers");
    }
    let laid = |values: Vec<f64>| -> Result<Array> {
        let dims: Vec<usize> = (0..x.rank()).map(|a| if a == axis { plan.to } else { 1 }).collect();
        Ok(Array::from_vec(values, dims, &Device::Cpu)?.to_dtype(x.dtype())?)
    };
    let outside = taps.iter().map(|taps| if taps.is_none() { sampling.extrapolation } else { 0.0 });
    let mut dims = x.dims().to_vec();
    dims[axis] = plan.to;
    let mut sum = laid(outside.collect())?.broadcast_as(dims)?;
    for tap in 0..count {
        let at = |taps: &Taps| taps.as_ref().and_then(|taps| taps.get(tap).copied());
        let indices = taps.iter().map(|taps| at(taps).map_or(0, |(index, _)| index));
        let weights = taps.iter().map(|taps| at(taps).map_or(0.0, |(_, weight)| weight)).collect();
        sum = (sum + picked(x, axis, indices)?.broadcast_mul(&laid(weights)?)?)?;
    }
    Ok(sum)
}

fn first(taps: &Taps) -> usize {
    taps.as_ref().and_then(|taps| taps.first()).map_or(0, |(index, _)| *index)
}

fn picked(x: &Array, axis: usize, indices: impl Iterator<Item = usize>) -> Result<Array> {
    let indices: Vec<u32> = indices.map(|index| u32::try_from(index).unwrap_or(u32::MAX)).collect();
    let len = indices.len();
    Ok(x.contiguous()?.index_select(&Array::from_vec(indices, len, &Device::Cpu)?, axis)?)
}
