//! Pools.

use candle_core::Tensor as Array;
use graph::{PoolAttrs, PoolKind};

use super::Context;
use super::window::{Layout, Windows};
use crate::error::{Result, invalid};
use crate::value::Value;

pub(super) fn pool(attrs: &PoolAttrs, cx: &Context<'_>) -> Result<Value> {
    let x = cx.get(0)?;
    if x.rank() < 3 {
        return invalid("no spatial axes");
    }
    let (n, c) = (x.dims()[0], x.dims()[1]);
    match attrs.kind {
        PoolKind::GlobalMax | PoolKind::GlobalAverage | PoolKind::GlobalLp => {
            let flat = x.array.contiguous()?.reshape((n, c, ()))?;
            let pooled = fold(attrs, &flat)?;
            let ones = std::iter::repeat_n(1, x.rank() - 2);
            Ok(x.with(pooled.reshape([n, c].into_iter().chain(ones).collect::<Vec<_>>())?))
        }
        PoolKind::Max | PoolKind::Average | PoolKind::Lp => windowed(attrs, x),
    }
}

fn windowed(attrs: &PoolAttrs, x: &Value) -> Result<Value> {
    let layout = Layout {
        auto_pad: &attrs.auto_pad,
        kernel: &attrs.kernel_shape,
        strides: &attrs.strides,
        dilations: &attrs.dilations,
        pads: &attrs.pads,
        ceil: attrs.ceil_mode,
    };
    let windows = Windows::new(&layout, &x.dims()[2..])?;
    let fill = if attrs.kind == PoolKind::Max { f64::NEG_INFINITY } else { 0.0 };
    // [N, C, taps, places] → fold the taps.
    let unfolded = windows.unfold(&x.array, fill)?.transpose(2, 3)?.contiguous()?;
    let pooled = match attrs.kind {
        PoolKind::Average => (unfolded.sum(3)? / counted(attrs, &windows, x)?)?,
        _ => fold(attrs, &unfolded)?,
    };
    let dims: Vec<usize> = x.dims()[..2].iter().copied().chain(windows.counts).collect();
    Ok(x.with(pooled.reshape(dims)?))
}

/// Folds the last axis.
fn fold(attrs: &PoolAttrs, x: &Array) -> Result<Array> {
    let last = x.rank() - 1;
    Ok(match attrs.kind {
        PoolKind::Max | PoolKind::GlobalMax => x.max(last)?,
        PoolKind::Average | PoolKind::GlobalAverage => x.mean(last)?,
        PoolKind::Lp | PoolKind::GlobalLp => {
            let p = attrs.p as f64;
            x.abs()?.powf(p)?.sum(last)?.powf(p.recip())?
        }
    })
}

/// By how much each window's sum is divided: elements of the data, and of its padding where that counts.
fn counted(attrs: &PoolAttrs, windows: &Windows, x: &Value) -> Result<Array> {
    let mut ones = x.array.ones_like()?;
    if attrs.count_include_pad {
        for (axis, &pad) in windows.pads.iter().enumerate() {
            ones = super::window::pad_axis(&ones, axis + 2, pad, 1.0)?;
        }
        let unpadded = Windows {
            kernel: windows.kernel.clone(),
            strides: windows.strides.clone(),
            dilations: windows.dilations.clone(),
            pads: vec![(0, 0); windows.pads.len()],
            counts: windows.counts.clone(),
        };
        return Ok(unpadded.unfold(&ones, 0.0)?.sum(2)?);
    }
    Ok(windows.unfold(&ones, 0.0)?.sum(2)?)
}
