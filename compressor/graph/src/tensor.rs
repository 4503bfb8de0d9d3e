//! Dense tensors at rest: a dtype, dimensions, and little-endian bytes.

use bytes::Bytes;
use half::{bf16, f16};
use serde::{Deserialize, Serialize};

use crate::proto::tensor_proto::DataType as Kind;

/// ONNX element types, with the specification's own numbers kept for those we do not compute with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum DType {
    F32,
    F64,
    F16,
    Bf16,
    I8,
    I16,
    I32,
    I64,
    U8,
    U16,
    U32,
    U64,
    Bool,
    String,
    /// Any other `TensorProto.DataType` (complex, float8, int4, …), carried but not computed with.
    Other(i32),
}

/// A tensor whose bytes are immutable and shared (a slice of the mapped model file, often).
///
/// `data` is little-endian and row-major. Strings are kept in `strings` and have empty `data`.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// Element type.
    pub dtype: DType,
    /// Dimensions; empty for a scalar.
    pub dims: Vec<usize>,
    /// Raw little-endian elements.
    pub data: Bytes,
    /// Elements of a string tensor.
    pub strings: Vec<Bytes>,
}

/// Why a tensor could not be built or read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TensorError {
    /// The bytes do not match the dimensions and element type.
    #[error("tensor of dims {dims:?} and type {dtype:?} needs {expected} bytes, has {found}")]
    Size {
        /// Dimensions claimed.
        dims: Vec<usize>,
        /// Element type claimed.
        dtype: DType,
        /// Bytes that these need.
        expected: usize,
        /// Bytes present.
        found: usize,
    },
    /// The element type is not the one asked for.
    #[error("tensor holds {found:?}, wanted {wanted}")]
    DType {
        /// Element type present.
        found: DType,
        /// What the caller can read.
        wanted: &'static str,
    },
    /// The product of the dimensions does not fit in memory.
    #[error("tensor dims {dims:?} overflow")]
    Overflow {
        /// Dimensions claimed.
        dims: Vec<usize>,
    },
    /// An axis beyond the rank.
    #[error("axis {axis} is outside a tensor of dims {dims:?}")]
    Axis {
        /// Axis asked for.
        axis: usize,
        /// Dimensions present.
        dims: Vec<usize>,
    },
    /// An index beyond an axis.
    #[error("index {index} is outside axis {axis} of a tensor of dims {dims:?}")]
    Index {
        /// Index asked for.
        index: usize,
        /// On this axis.
        axis: usize,
        /// Dimensions present.
        dims: Vec<usize>,
    },
}

impl DType {
    /// Bits of one element, or `None` for strings and types that this version does not know.
    #[must_use]
    pub fn bits(self) -> Option<usize> {
        Some(match self {
            Self::I8 | Self::U8 | Self::Bool => 8,
            Self::F16 | Self::Bf16 | Self::I16 | Self::U16 => 16,
            Self::F32 | Self::I32 | Self::U32 => 32,
            Self::F64 | Self::I64 | Self::U64 => 64,
            Self::Other(kind) => match Kind::try_from(kind).ok()? {
                Kind::Complex64 => 64,
                Kind::Complex128 => 128,
                Kind::Float8e4m3fn
                | Kind::Float8e4m3fnuz
                | Kind::Float8e5m2
                | Kind::Float8e5m2fnuz
                | Kind::Float8e8m0 => 8,
                Kind::Uint4 | Kind::Int4 | Kind::Float4e2m1 => 4,
                Kind::Uint2 | Kind::Int2 => 2,
                Kind::Float6e2m3 | Kind::Float6e3m2 => 6,
                _ => return None,
            },
            Self::String => return None,
        })
    }

    /// Bytes of one element, or `None` for strings, sub-byte types and unknown ones.
    #[must_use]
    pub fn size(self) -> Option<usize> {
        self.bits().filter(|bits| bits % 8 == 0).map(|bits| bits / 8)
    }

    /// Whether it is one of the floating-point types we compute with.
    #[must_use]
    pub fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F64 | Self::F16 | Self::Bf16)
    }

    /// From the specification's number (`TensorProto.DataType`).
    #[must_use]
    pub fn from_onnx(kind: i32) -> Self {
        match Kind::try_from(kind) {
            Ok(Kind::Float) => Self::F32,
            Ok(Kind::Double) => Self::F64,
            Ok(Kind::Float16) => Self::F16,
            Ok(Kind::Bfloat16) => Self::Bf16,
            Ok(Kind::Int8) => Self::I8,
            Ok(Kind::Int16) => Self::I16,
            Ok(Kind::Int32) => Self::I32,
            Ok(Kind::Int64) => Self::I64,
            Ok(Kind::Uint8) => Self::U8,
            Ok(Kind::Uint16) => Self::U16,
            Ok(Kind::Uint32) => Self::U32,
            Ok(Kind::Uint64) => Self::U64,
            Ok(Kind::Bool) => Self::Bool,
            Ok(Kind::String) => Self::String,
            _ => Self::Other(kind),
        }
    }

    /// The specification's number (`TensorProto.DataType`).
    #[must_use]
    pub fn to_onnx(self) -> i32 {
        let kind = match self {
            Self::F32 => Kind::Float,
            Self::F64 => Kind::Double,
            Self::F16 => Kind::Float16,
            Self::Bf16 => Kind::Bfloat16,
            Self::I8 => Kind::Int8,
            Self::I16 => Kind::Int16,
            Self::I32 => Kind::Int32,
            Self::I64 => Kind::Int64,
            Self::U8 => Kind::Uint8,
            Self::U16 => Kind::Uint16,
            Self::U32 => Kind::Uint32,
            Self::U64 => Kind::Uint64,
            Self::Bool => Kind::Bool,
            Self::String => Kind::String,
            Self::Other(kind) => return kind,
        };
        kind as i32
    }
}

impl Tensor {
    /// A tensor of `dims` over little-endian `data`; the sizes must agree.
    ///
    /// Strings are made by [`Tensor::from_strings`].
    pub fn new(
        dtype: DType,
        dims: Vec<usize>,
        data: impl Into<Bytes>,
    ) -> Result<Self, TensorError> {
        let tensor = Self { dtype, dims, data: data.into(), strings: Vec::new() };
        tensor.check()?;
        Ok(tensor)
    }

    /// A float tensor.
    pub fn from_f32(dims: Vec<usize>, values: &[f32]) -> Result<Self, TensorError> {
        Self::new(DType::F32, dims, le_bytes(values, f32::to_le_bytes))
    }

    /// An int64 tensor.
    pub fn from_i64(dims: Vec<usize>, values: &[i64]) -> Result<Self, TensorError> {
        Self::new(DType::I64, dims, le_bytes(values, i64::to_le_bytes))
    }

    /// An int32 tensor.
    pub fn from_i32(dims: Vec<usize>, values: &[i32]) -> Result<Self, TensorError> {
        Self::new(DType::I32, dims, le_bytes(values, i32::to_le_bytes))
    }

    /// A string tensor.
    pub fn from_strings(dims: Vec<usize>, strings: Vec<Bytes>) -> Result<Self, TensorError> {
        let tensor = Self { dtype: DType::String, dims, data: Bytes::new(), strings };
        tensor.check()?;
        Ok(tensor)
    }

    /// Numbers of any of our numeric types, converted from `f64` (round to nearest, saturating).
    pub fn from_f64_as(
        dtype: DType,
        dims: Vec<usize>,
        values: &[f64],
    ) -> Result<Self, TensorError> {
        #![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let data = match dtype {
            DType::F32 => le_bytes(values, |v: f64| (v as f32).to_le_bytes()),
            DType::F64 => le_bytes(values, f64::to_le_bytes),
            DType::F16 => le_bytes(values, |v: f64| f16::from_f64(v).to_le_bytes()),
            DType::Bf16 => le_bytes(values, |v: f64| bf16::from_f64(v).to_le_bytes()),
            DType::I8 => le_bytes(values, |v: f64| (v as i8).to_le_bytes()),
            DType::I16 => le_bytes(values, |v: f64| (v as i16).to_le_bytes()),
            DType::I32 => le_bytes(values, |v: f64| (v as i32).to_le_bytes()),
            DType::I64 => le_bytes(values, |v: f64| (v as i64).to_le_bytes()),
            DType::U8 => le_bytes(values, |v: f64| (v as u8).to_le_bytes()),
            DType::U16 => le_bytes(values, |v: f64| (v as u16).to_le_bytes()),
            DType::U32 => le_bytes(values, |v: f64| (v as u32).to_le_bytes()),
            DType::U64 => le_bytes(values, |v: f64| (v as u64).to_le_bytes()),
            DType::Bool => le_bytes(values, |v: f64| [u8::from(v != 0.0)]),
            DType::String | DType::Other(_) => {
                return Err(TensorError::DType { found: dtype, wanted: "a numeric type" });
            }
        };
        Self::new(dtype, dims, data)
    }

    /// Number of elements. A tensor that passed [`Tensor::check`] never overflows here.
    #[must_use]
    pub fn len(&self) -> usize {
        self.dims.iter().fold(1usize, |len, &dim| len.saturating_mul(dim))
    }

    /// Whether it has no elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes that the elements take, strings included.
    #[must_use]
    pub fn byte_size(&self) -> usize {
        self.data.len() + self.strings.iter().map(Bytes::len).sum::<usize>()
    }

    /// Checks that dimensions, type and bytes agree.
    pub fn check(&self) -> Result<(), TensorError> {
        let overflow = || TensorError::Overflow { dims: self.dims.clone() };
        let mut len = 1usize;
        for &dim in &self.dims {
            len = len.checked_mul(dim).ok_or_else(overflow)?;
        }
        let (expected, found) = match (self.dtype, self.dtype.bits()) {
            (DType::String, _) => (len, self.strings.len()),
            (_, Some(bits)) => {
                let total = len.checked_mul(bits).ok_or_else(overflow)?;
                (total.div_ceil(8), self.data.len())
            }
            (_, None) => return Ok(()),
        };
        if expected != found {
            let (dims, dtype) = (self.dims.clone(), self.dtype);
            return Err(TensorError::Size { dims, dtype, expected, found });
        }
        Ok(())
    }

    /// The elements as `f32`, converted from any numeric type.
    pub fn to_f32_vec(&self) -> Result<Vec<f32>, TensorError> {
        #![allow(clippy::cast_possible_truncation)]
        match self.dtype {
            DType::F32 => Ok(self.elements(f32::from_le_bytes)),
            _ => Ok(self.to_f64_vec()?.into_iter().map(|v| v as f32).collect()),
        }
    }

    /// The elements as `f64`, converted from any numeric type (64-bit integers lose low bits beyond 2^53).
    pub fn to_f64_vec(&self) -> Result<Vec<f64>, TensorError> {
        #![allow(clippy::cast_precision_loss)]
        self.check()?;
        Ok(match self.dtype {
            DType::F32 => self.elements(|b| f64::from(f32::from_le_bytes(b))),
            DType::F64 => self.elements(f64::from_le_bytes),
            DType::F16 => self.elements(|b| f16::from_le_bytes(b).to_f64()),
            DType::Bf16 => self.elements(|b| bf16::from_le_bytes(b).to_f64()),
            DType::I8 => self.elements(|b| f64::from(i8::from_le_bytes(b))),
            DType::I16 => self.elements(|b| f64::from(i16::from_le_bytes(b))),
            DType::I32 => self.elements(|b| f64::from(i32::from_le_bytes(b))),
            DType::I64 => self.elements(|b| i64::from_le_bytes(b) as f64),
            DType::U8 | DType::Bool => self.elements(|b| f64::from(u8::from_le_bytes(b))),
            DType::U16 => self.elements(|b| f64::from(u16::from_le_bytes(b))),
            DType::U32 => self.elements(|b| f64::from(u32::from_le_bytes(b))),
            DType::U64 => self.elements(|b| u64::from_le_bytes(b) as f64),
            found => return Err(TensorError::DType { found, wanted: "a numeric type" }),
        })
    }

    /// The elements as `i64`, converted from any integer or boolean type that fits.
    pub fn to_i64_vec(&self) -> Result<Vec<i64>, TensorError> {
        self.check()?;
        Ok(match self.dtype {
            DType::I8 => self.elements(|b| i64::from(i8::from_le_bytes(b))),
            DType::I16 => self.elements(|b| i64::from(i16::from_le_bytes(b))),
            DType::I32 => self.elements(|b| i64::from(i32::from_le_bytes(b))),
            DType::I64 => self.elements(i64::from_le_bytes),
            DType::U8 | DType::Bool => self.elements(|b| i64::from(u8::from_le_bytes(b))),
            DType::U16 => self.elements(|b| i64::from(u16::from_le_bytes(b))),
            DType::U32 => self.elements(|b| i64::from(u32::from_le_bytes(b))),
            found => {
                return Err(TensorError::DType {
                    found,
                    wanted: "an integer type of at most 63 bits",
                });
            }
        })
    }

    /// Keeps `indices` along `axis`, in that order; `indices` may repeat.
    pub fn select(&self, axis: usize, indices: &[usize]) -> Result<Self, TensorError> {
        self.check()?;
        let Some(&width) = self.dims.get(axis) else {
            return Err(TensorError::Axis { axis, dims: self.dims.clone() });
        };
        if let Some(&index) = indices.iter().find(|&&index| index >= width) {
            return Err(TensorError::Index { index, axis, dims: self.dims.clone() });
        }
        let outer: usize = self.dims[..axis].iter().product();
        let inner: usize = self.dims[axis + 1..].iter().product();
        let mut dims = self.dims.clone();
        dims[axis] = indices.len();
        if self.dtype == DType::String {
            return Self::from_strings(dims, pick(&self.strings, outer, width, inner, indices));
        }
        let size = self
            .dtype
            .size()
            .ok_or(TensorError::DType { found: self.dtype, wanted: "elements of whole bytes" })?;
        Self::new(self.dtype, dims, pick(&self.data, outer, width, inner * size, indices))
    }

    fn elements<const N: usize, T>(&self, read: impl Fn([u8; N]) -> T) -> Vec<T> {
        self.data.as_chunks::<N>().0.iter().map(|&chunk| read(chunk)).collect()
    }
}

fn pick<T: Clone>(
    data: &[T],
    outer: usize,
    width: usize,
    block: usize,
    indices: &[usize],
) -> Vec<T> {
    let mut picked = Vec::with_capacity(outer * indices.len() * block);
    for row in 0..outer {
        for &index in indices {
            let start = (row * width + index) * block;
            picked.extend_from_slice(&data[start..start + block]);
        }
    }
    picked
}

fn le_bytes<T: Copy, const N: usize>(values: &[T], write: impl Fn(T) -> [u8; N]) -> Vec<u8> {
    let mut data = Vec::with_capacity(values.len() * N);
    for &value in values {
        data.extend_from_slice(&write(value));
    }
    data
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_tensor_whose_bytes_do_not_match_is_refused() {
        let error = Tensor::new(DType::F32, vec![2, 3], vec![0u8; 23]).unwrap_err();
        assert!(matches!(error, TensorError::Size { expected: 24, found: 23, .. }));
        let dims = vec![usize::MAX, 2];
        assert!(matches!(Tensor::new(DType::I8, dims, vec![]), Err(TensorError::Overflow { .. })));
    }

    #[test]
    fn sub_byte_elements_are_counted_rounded_up() {
        let int4 = DType::from_onnx(22);
        assert!(Tensor::new(int4, vec![3], vec![0u8; 2]).is_ok());
        assert!(Tensor::new(int4, vec![3], vec![0u8; 3]).is_err());
    }

    #[test]
    fn select_keeps_indices_of_the_middle_axis_in_order() {
        let values: Vec<f32> = (0..12u8).map(f32::from).collect();
        let tensor = Tensor::from_f32(vec![2, 3, 2], &values).unwrap();
        let kept = tensor.select(1, &[2, 0]).unwrap();
        assert_eq!(kept.dims, [2, 2, 2]);
        assert_eq!(kept.to_f32_vec().unwrap(), [4., 5., 0., 1., 10., 11., 6., 7.]);
        assert!(matches!(tensor.select(1, &[3]), Err(TensorError::Index { index: 3, .. })));
        assert!(matches!(tensor.select(3, &[0]), Err(TensorError::Axis { axis: 3, .. })));
    }

    #[test]
    fn every_numeric_type_reads_back_what_was_written() {
        let values = [0.0, 1.0, 3.0];
        for dtype in [
            DType::F32,
            DType::F64,
            DType::F16,
            DType::Bf16,
            DType::I8,
            DType::I16,
            DType::I32,
            DType::I64,
            DType::U8,
            DType::U16,
            DType::U32,
            DType::U64,
        ] {
            let tensor = Tensor::from_f64_as(dtype, vec![3], &values).unwrap();
            assert_eq!(tensor.to_f64_vec().unwrap(), values, "{dtype:?}");
            assert_eq!(tensor.byte_size(), 3 * dtype.size().unwrap());
        }
    }

    #[test]
    fn every_onnx_number_survives_the_round_trip() {
        for kind in -1..40 {
            assert_eq!(DType::from_onnx(kind).to_onnx(), kind);
        }
    }
}
