//! Operators whose output has the shape of their inputs, broadcast.

use super::{Context, Inferred, axis_of, fold};
use crate::{BinaryOp, DType, Dim, UnaryOp};

pub(super) fn unary(context: &Context<'_>, op: UnaryOp) -> Option<Vec<Inferred>> {
    let ty = context.ty(0)?;
    let dtype = match op {
        UnaryOp::Cast => DType::from_onnx(i32::try_from(context.node.attr_int("to")?).ok()?),
        UnaryOp::IsNan => DType::Bool,
        _ => ty.dtype,
    };
    let output = Inferred::new(dtype, ty.dims.clone()).with(fold::unary(context, op, dtype));
    Some(match op {
        UnaryOp::Dropout => vec![output, Inferred::new(DType::Bool, ty.dims.clone())],
        _ => vec![output],
    })
}

pub(super) fn binary(context: &Context<'_>, op: BinaryOp) -> Option<Vec<Inferred>> {
    let dtype = match op {
        BinaryOp::Equal
        | BinaryOp::Greater
        | BinaryOp::GreaterOrEqual
        | BinaryOp::Less
        | BinaryOp::LessOrEqual
        | BinaryOp::And
        | BinaryOp::Or
        | BinaryOp::Xor => DType::Bool,
        BinaryOp::Where => context.dtype(1).or_else(|| context.dtype(2))?,
        _ => (0..context.node.inputs.len()).find_map(|slot| context.dtype(slot))?,
    };
    let all: Option<Vec<&[Dim]>> =
        (0..context.node.inputs.len()).map(|slot| context.dims(slot)).collect();
    let dims =
        all.map(|all| all.into_iter().fold(Vec::new(), |joined, dims| broadcast(&joined, dims)));
    Some(vec![Inferred::new(dtype, dims).with(fold::binary(context, op))])
}

/// Multidirectional broadcasting; where two sizes cannot both stand, the result is unknown.
pub(super) fn broadcast(a: &[Dim], b: &[Dim]) -> Vec<Dim> {
    let rank = a.len().max(b.len());
    let one = Dim::Fixed(1);
    let at = |dims: &'_ [Dim], position: usize| -> Dim {
        let missing = rank - dims.len();
        position.checked_sub(missing).map_or(one.clone(), |position| dims[position].clone())
    };
    (0..rank).map(|position| broadcast_dim(at(a, position), at(b, position))).collect()
}

fn broadcast_dim(a: Dim, b: Dim) -> Dim {
    match (a, b) {
        (a, b) if a == b => a,
        (Dim::Fixed(1), other) | (other, Dim::Fixed(1)) => other,
        (Dim::Fixed(_), Dim::Fixed(_)) => Dim::Unknown,
        // A name or an unknown that meets a size above 1 is that size, or 1.
        (Dim::Fixed(size), _) | (_, Dim::Fixed(size)) => Dim::Fixed(size),
        _ => Dim::Unknown,
    }
}

pub(super) fn batch_normalization(context: &Context<'_>) -> Option<Vec<Inferred>> {
    let mut outputs = context.like(0)?;
    let statistics =
        context.ty(3).map(|ty| Inferred::new(ty.dtype, ty.dims.clone())).unwrap_or_default();
    outputs.extend(std::iter::repeat_n(statistics, 4));
    Some(outputs)
}

pub(super) fn layer_normalization(context: &Context<'_>, axis: i64) -> Option<Vec<Inferred>> {
    let mut outputs = context.like(0)?;
    let dims = context.dims(0)?;
    let axis = axis_of(axis, dims.len())?;
    let kept = dims.iter().enumerate();
    let kept = kept.map(|(at, dim)| if at < axis { dim.clone() } else { Dim::Fixed(1) }).collect();
    outputs.extend(std::iter::repeat_n(Inferred::new(DType::F32, Some(kept)), 2));
    Some(outputs)
}

/// The output has the type of the scale.
pub(super) fn dequantize(context: &Context<'_>) -> Option<Vec<Inferred>> {
    let dims = context.ty(0)?.dims.clone();
    Some(vec![Inferred::new(context.dtype(1)?, dims)])
}

/// The output has the type of the zero point, `uint8` without one.
pub(super) fn quantize(context: &Context<'_>) -> Option<Vec<Inferred>> {
    let dims = context.ty(0)?.dims.clone();
    let declared = context.node.attr_int("output_dtype").filter(|&kind| kind != 0);
    let declared = declared.and_then(|kind| i32::try_from(kind).ok()).map(DType::from_onnx);
    let dtype = context.dtype(2).or(declared).unwrap_or(DType::U8);
    Some(vec![Inferred::new(dtype, dims)])
}

pub(super) fn dynamic_quantize(context: &Context<'_>) -> Option<Vec<Inferred>> {
    let dims = context.ty(0)?.dims.clone();
    let scalar = |dtype| Inferred::new(dtype, Some(Vec::new()));
    Some(vec![Inferred::new(DType::U8, dims), scalar(DType::F32), scalar(DType::U8)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broadcasting_joins_names_ones_and_sizes() {
        let n = || Dim::Symbol("N".to_owned());
        let joined =
            broadcast(&[n(), Dim::Fixed(1), Dim::Fixed(4)], &[Dim::Fixed(3), Dim::Unknown]);
        assert_eq!(joined, [n(), Dim::Fixed(3), Dim::Fixed(4)]);
        assert_eq!(broadcast(&[n()], &[Dim::Symbol("M".to_owned())]), [Dim::Unknown]);
        assert_eq!(broadcast(&[Dim::Fixed(2)], &[Dim::Fixed(3)]), [Dim::Unknown]);
    }
}
