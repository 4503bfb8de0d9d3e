//! Dense tensors at rest: a dtype, dimensions, and little-endian bytes.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

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
}
