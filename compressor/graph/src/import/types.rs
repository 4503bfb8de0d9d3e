//! Declared types. What a [`TensorType`] cannot say (sequences, denotations) stays in the file's own words.

use crate::{DType, Dim, TensorType, proto};
use proto::{tensor_shape_proto::dimension, type_proto};

/// The tensor type that a `ValueInfoProto` declares; `None` for other types, or where the element type is open.
pub(crate) fn tensor_type(info: &proto::ValueInfoProto) -> Option<TensorType> {
    let Some(type_proto::Value::TensorType(tensor)) = &info.r#type.as_ref()?.value else {
        return None;
    };
    let elem_type = tensor.elem_type.filter(|&elem_type| elem_type != 0)?;
    let dims = tensor.shape.as_ref().map(|shape| shape.dim.iter().map(dim).collect());
    Some(TensorType { dtype: DType::from_onnx(elem_type), dims })
}

/// Exporters write an unknown dimension as absent, as an empty name, or as a negative number.
fn dim(dim: &proto::tensor_shape_proto::Dimension) -> Dim {
    match &dim.value {
        Some(dimension::Value::DimValue(size)) => {
            usize::try_from(*size).map_or(Dim::Unknown, Dim::Fixed)
        }
        Some(dimension::Value::DimParam(name)) if !name.is_empty() => Dim::Symbol(name.clone()),
        _ => Dim::Unknown,
    }
}
