//! Tensors: every way of storing elements becomes little-endian bytes.

use bytes::Bytes;

use super::{ImportError, limits};
use crate::{DType, Tensor, proto};
use proto::tensor_proto::DataType as Kind;

/// Splits a `TensorProto` into the tensor and what else was said of it (name, documentation, metadata).
pub(super) fn import(
    mut proto: proto::TensorProto,
    place: &dyn Fn() -> String,
) -> Result<(Tensor, proto::TensorProto), ImportError> {
    let wrong = |reason: String| ImportError::TensorData { place: place(), reason };
    if proto.segment.take().is_some() {
        return Err(wrong("it is a segment of a larger tensor, which is not supported".to_owned()));
    }
    let dims = dims(&std::mem::take(&mut proto.dims), place)?;
    let kind = proto.data_type.take().unwrap_or(0);
    if kind == Kind::Undefined as i32 {
        return Err(wrong("it has no element type".to_owned()));
    }
    let dtype = DType::from_onnx(kind);
    proto.data_location = None;
    proto.external_data.clear();
    let strings = std::mem::take(&mut proto.string_data);
    let data = data(dtype, &dims, &mut proto).map_err(wrong)?;
    if dtype != DType::String && !strings.is_empty() {
        return Err(wrong(format!("it has strings, and its type is {dtype:?}")));
    }
    let tensor = Tensor { dtype, dims, data, strings };
    tensor.check().map_err(|source| ImportError::Tensor { place: place(), source })?;
    Ok((tensor, proto))
}

fn dims(dims: &[i64], place: &dyn Fn() -> String) -> Result<Vec<usize>, ImportError> {
    if dims.len() > limits::RANK {
        let (what, found, limit) = ("dimensions", dims.len(), limits::RANK);
        return Err(ImportError::Limit { place: place(), what, found, limit });
    }
    let size = |&dim| {
        usize::try_from(dim).map_err(|_| ImportError::TensorData {
            place: place(),
            reason: format!("its dimensions {dims:?} are not all sizes"),
        })
    };
    dims.iter().map(size).collect()
}

/// Takes the elements out of whichever field holds them.
fn data(dtype: DType, dims: &[usize], proto: &mut proto::TensorProto) -> Result<Bytes, String> {
    let raw = proto.raw_data.take().unwrap_or_default();
    let floats = std::mem::take(&mut proto.float_data);
    let doubles = std::mem::take(&mut proto.double_data);
    let int32s = std::mem::take(&mut proto.int32_data);
    let int64s = std::mem::take(&mut proto.int64_data);
    let uint64s = std::mem::take(&mut proto.uint64_data);
    let fields = [
        ("raw_data", raw.is_empty()),
        ("float_data", floats.is_empty()),
        ("double_data", doubles.is_empty()),
        ("int32_data", int32s.is_empty()),
        ("int64_data", int64s.is_empty()),
        ("uint64_data", uint64s.is_empty()),
    ];
    let used: Vec<&str> =
        fields.iter().filter(|(_, empty)| !empty).map(|(name, _)| *name).collect();
    let field = match used.as_slice() {
        [] => return Ok(Bytes::new()),
        [field] => *field,
        more => return Err(format!("its elements are in {} at once", more.join(" and "))),
    };
    match (field, field_of(dtype)) {
        ("raw_data", _) if dtype == DType::String => {
            Err("strings cannot be in raw_data".to_owned())
        }
        ("raw_data", _) => Ok(raw),
        (field, Some(wanted)) if field == wanted => Ok(match field {
            "float_data" => floats.iter().flat_map(|v| v.to_le_bytes()).collect(),
            "double_data" => doubles.iter().flat_map(|v| v.to_le_bytes()).collect(),
            "int64_data" => int64s.iter().flat_map(|v| v.to_le_bytes()).collect(),
            "uint64_data" => {
                uint64s.iter().flat_map(|v| low_bytes(v.to_le_bytes(), dtype)).collect()
            }
            _ => int32_bytes(&int32s, dtype, dims),
        }),
        (field, _) => Err(format!("its elements are in {field}, and its type is {dtype:?}")),
    }
}

/// The typed field that the specification assigns to an element type.
fn field_of(dtype: DType) -> Option<&'static str> {
    Some(match dtype {
        DType::F32 => "float_data",
        DType::F64 => "double_data",
        DType::I64 => "int64_data",
        DType::U32 | DType::U64 => "uint64_data",
        DType::Other(kind) if kind == Kind::Complex64 as i32 => "float_data",
        DType::Other(kind) if kind == Kind::Complex128 as i32 => "double_data",
        DType::String => return None,
        DType::Other(_) if dtype.bits().is_none() => return None,
        _ => "int32_data",
    })
}

/// An `int32_data` entry holds one element, or as many sub-byte ones as fit a byte; 6-bit ones stand alone.
fn int32_bytes(entries: &[i32], dtype: DType, dims: &[usize]) -> Bytes {
    if dtype.bits() == Some(6) {
        return pack_six_bits(entries, dims);
    }
    entries.iter().flat_map(|v| low_bytes(v.to_le_bytes(), dtype)).collect()
}

fn low_bytes<const N: usize>(bytes: [u8; N], dtype: DType) -> impl Iterator<Item = u8> {
    let size = dtype.bits().map_or(N, |bits| bits.div_ceil(8));
    bytes.into_iter().take(size)
}

fn pack_six_bits(entries: &[i32], dims: &[usize]) -> Bytes {
    let len = dims.iter().fold(1usize, |len, &dim| len.saturating_mul(dim));
    // A wrong count shows as a wrong size to the caller's check.
    let mut packed = vec![0u8; entries.len().saturating_mul(6).div_ceil(8)];
    for (index, entry) in entries.iter().enumerate().take(len) {
        for bit in 0..6 {
            let position = index * 6 + bit;
            packed[position / 8] |= u8::from(entry >> bit & 1 == 1) << (position % 8);
        }
    }
    packed.into()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn read(proto: proto::TensorProto) -> Result<Tensor, ImportError> {
        import(proto, &|| "test".to_owned()).map(|(tensor, _)| tensor)
    }

    fn of(kind: Kind, dims: &[i64]) -> proto::TensorProto {
        proto::TensorProto {
            data_type: Some(kind as i32),
            dims: dims.to_vec(),
            ..Default::default()
        }
    }

    #[test]
    fn half_floats_in_int32_data_become_two_bytes_each() {
        let proto =
            proto::TensorProto { int32_data: vec![0x3c00, 0xc000], ..of(Kind::Float16, &[2]) };
        assert_eq!(read(proto).unwrap().to_f32_vec().unwrap(), [1.0, -2.0]);
    }

    #[test]
    fn bytes_booleans_and_unsigned_words_are_narrowed() {
        let proto = proto::TensorProto { int32_data: vec![-1, 127], ..of(Kind::Int8, &[2]) };
        assert_eq!(read(proto).unwrap().to_i64_vec().unwrap(), [-1, 127]);
        let proto = proto::TensorProto { int32_data: vec![0, 1], ..of(Kind::Bool, &[2]) };
        assert_eq!(read(proto).unwrap().data.as_ref(), [0, 1]);
        let proto =
            proto::TensorProto { uint64_data: vec![u64::from(u32::MAX)], ..of(Kind::Uint32, &[1]) };
        assert_eq!(read(proto).unwrap().to_i64_vec().unwrap(), [i64::from(u32::MAX)]);
    }

    #[test]
    fn six_bit_floats_are_packed_as_the_specification_packs_them() {
        let proto =
            proto::TensorProto { int32_data: vec![1, 2, 3, 4, 63], ..of(Kind::Float6e2m3, &[5]) };
        let packed = read(proto).unwrap().data;
        assert_eq!(packed.as_ref(), [1 | 2 << 6, 3 << 4, 4 << 2, 63]);
    }

    #[test]
    fn the_wrong_field_two_fields_and_negative_dims_are_refused() {
        let proto = proto::TensorProto { int64_data: vec![1], ..of(Kind::Float, &[1]) };
        assert!(read(proto).unwrap_err().to_string().contains("int64_data"));
        let proto = proto::TensorProto {
            float_data: vec![1.0],
            raw_data: Some(Bytes::from_static(&[0; 4])),
            ..of(Kind::Float, &[1])
        };
        assert!(read(proto).unwrap_err().to_string().contains("at once"));
        let error = read(of(Kind::Float, &[2, -1])).unwrap_err();
        assert!(error.to_string().contains("-1"), "{error}");
        assert!(read(of(Kind::Float, &[i64::MAX, i64::MAX])).is_err());
        assert!(read(of(Kind::Float, &[3])).is_err());
    }
}
