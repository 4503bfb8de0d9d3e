//! Operators that multiply by a weight and sum.

use candle_core::Tensor as Array;
use graph::{ConvAttrs, GemmAttrs};

use super::Context;
use super::window::{Layout, Windows};
use crate::error::{Result, invalid};
use crate::value::Value;

/// `[N, C, …] * [O, C / group, kernel…] + [O]`, by unfolding and one product for each group.
pub(super) fn conv(attrs: &ConvAttrs, cx: &Context<'_>) -> Result<Value> {
    let (x, w) = (cx.get(0)?, cx.get(1)?);
    Ok(x.with(convolved(attrs, &x.array, &w.array, cx.find(2).map(|bias| &bias.array))?))
}

/// As [`conv`], of bare arrays.
pub(super) fn convolved(
    attrs: &ConvAttrs,
    x: &Array,
    w: &Array,
    bias: Option<&Array>,
) -> Result<Array> {
    if x.rank() < 3 || w.rank() != x.rank() {
        return invalid("operands must be [N, C, spatial…] and [O, C / group, kernel…]");
    }
    let (n, c, o, per_group) = (x.dims()[0], x.dims()[1], w.dims()[0], w.dims()[1]);
    let groups = attrs.group.max(1);
    if c != per_group * groups || !o.is_multiple_of(groups) {
        return invalid(format!(
            "{c} channels, {o} filters of {per_group} channels, {groups} groups"
        ));
    }
    let layout = Layout {
        auto_pad: &attrs.auto_pad,
        kernel: &w.dims()[2..],
        strides: &attrs.strides,
        dilations: &attrs.dilations,
        pads: &attrs.pads,
        ceil: false,
    };
    let windows = Windows::new(&layout, &x.dims()[2..])?;
    let taps: usize = windows.kernel.iter().product();
    let places: usize = windows.counts.iter().product();
    let columns = windows.unfold(x, 0.0)?.reshape((n, groups, per_group * taps, places))?;
    let filters = w.contiguous()?.reshape((1, groups, o / groups, per_group * taps))?;
    let product = filters.broadcast_matmul(&columns)?.reshape((n, o, places))?;
    let biased = match bias {
        Some(bias) => product.broadcast_add(&bias.reshape((1, o, 1))?)?,
        None => product,
    };
    let dims: Vec<usize> = [n, o].into_iter().chain(windows.counts).collect();
    Ok(biased.reshape(dims)?)
}

/// `alpha A B + beta C`.
pub(super) fn gemm(attrs: &GemmAttrs, cx: &Context<'_>) -> Result<Value> {
    let (a, b) = (cx.get(0)?, cx.get(1)?);
    let turned = |value: &Value, turn: bool| -> Result<Array> {
        let array = if turn { value.array.t()? } else { value.array.clone() };
        Ok(array.contiguous()?)
    };
    let product = turned(a, attrs.trans_a)?.matmul(&turned(b, attrs.trans_b)?)?;
    let product = (product * f64::from(attrs.alpha))?;
    let sum = match cx.find(2) {
        Some(c) => product.broadcast_add(&(&c.array * f64::from(attrs.beta))?)?,
        None => product,
    };
    Ok(a.with(sum))
}

/// Batched with broadcasting; rank 1 is a row on the left and a column on the right.
pub(super) fn matmul(cx: &Context<'_>) -> Result<Value> {
    let (a, b) = (cx.get(0)?, cx.get(1)?);
    Ok(a.with(multiplied(&a.array, &b.array)?))
}

/// As [`matmul`], of bare arrays.
pub(super) fn multiplied(a: &Array, b: &Array) -> Result<Array> {
    if a.rank() == 0 || b.rank() == 0 {
        return invalid("a scalar operand");
    }
    let left = if a.rank() == 1 { a.unsqueeze(0)? } else { a.clone() };
    let right = if b.rank() == 1 { b.unsqueeze(1)? } else { b.clone() };
    let mut product = product(&left, &right)?;
    if b.rank() == 1 {
        product = product.squeeze(product.rank() - 1)?;
    }
    if a.rank() == 1 {
        let row = product.rank() - if b.rank() == 1 { 1 } else { 2 };
        product = product.squeeze(row)?;
    }
    Ok(product)
}

/// One product over all rows where the right operand has no batch, which saves copying it.
fn product(left: &Array, right: &Array) -> Result<Array> {
    let (left, right) = (left.contiguous()?, right.contiguous()?);
    if left.rank() > 2 && right.rank() == 2 {
        let mut dims = left.dims().to_vec();
        let k = dims.pop().unwrap_or(0);
        let rows: usize = dims.iter().product();
        let flat = left.reshape((rows, k))?.matmul(&right)?;
        dims.push(right.dims()[1]);
        return Ok(flat.reshape(dims)?);
    }
    Ok(left.broadcast_matmul(&right)?)
}
