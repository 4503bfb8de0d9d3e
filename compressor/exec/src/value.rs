//! A tensor in flight: candle's, with the ONNX element type it stands for.
//!
//! Floats are computed as f32 (f64 stays f64), integers as i64 wrapped to their own width after every
//! operator, booleans as 0 and 1 in u8.

use candle_core::{DType as Kind, Device, Tensor as Array};
use graph::{DType, Tensor};

use crate::error::{OpError, Result, invalid, unsupported};

#[derive(Debug, Clone)]
pub(crate) struct Value {
    pub(crate) array: Array,
    pub(crate) dtype: DType,
}

/// How values of an element type are computed with.
pub(crate) fn kind(dtype: DType) -> Result<Kind> {
    match dtype {
        DType::F32 | DType::F16 | DType::Bf16 => Ok(Kind::F32),
        DType::F64 => Ok(Kind::F64),
        DType::Bool => Ok(Kind::U8),
        DType::I8
        | DType::I16
        | DType::I32
        | DType::I64
        | DType::U8
        | DType::U16
        | DType::U32
        | DType::U64 => Ok(Kind::I64),
        DType::String | DType::Other(_) => unsupported(format!("element type {dtype:?}")),
    }
}

impl Value {
    /// A value of what was just computed, brought to the width of `dtype`.
    pub(crate) fn new(array: Array, dtype: DType) -> Result<Self> {
        let array = array.to_dtype(kind(dtype)?)?;
        Ok(Self { array, dtype })
    }

    pub(crate) fn from_tensor(tensor: &Tensor) -> Result<Self> {
        let dims = tensor.dims.as_slice();
        let text = |error: graph::TensorError| OpError::Invalid(error.to_string());
        tensor.check().map_err(text)?;
        let array = match kind(tensor.dtype)? {
            Kind::F32 => Array::from_vec(tensor.to_f32_vec().map_err(text)?, dims, &Device::Cpu)?,
            Kind::F64 => Array::from_vec(tensor.to_f64_vec().map_err(text)?, dims, &Device::Cpu)?,
            Kind::U8 => {
                let bytes: Vec<u8> = tensor.data.iter().map(|&byte| u8::from(byte != 0)).collect();
                Array::from_vec(bytes, dims, &Device::Cpu)?
            }
            // The upper half of u64 wraps, and comes back on the way out.
            _ if tensor.dtype == DType::U64 => {
                let words = tensor.data.chunks_exact(8).map(|word| {
                    word.iter().rev().fold(0_i64, |value, &byte| (value << 8) | i64::from(byte))
                });
                Array::from_vec(words.collect::<Vec<_>>(), dims, &Device::Cpu)?
            }
            _ => Array::from_vec(tensor.to_i64_vec().map_err(text)?, dims, &Device::Cpu)?,
        };
        Ok(Self { array, dtype: tensor.dtype })
    }

    pub(crate) fn to_tensor(&self) -> Result<Tensor> {
        let dims = self.dims().to_vec();
        let text = |error: graph::TensorError| OpError::Invalid(error.to_string());
        match self.dtype {
            DType::Bool => {
                let bytes: Vec<u8> = self.array.flatten_all()?.to_vec1()?;
                Tensor::new(DType::Bool, dims, bytes).map_err(text)
            }
            DType::F32 => {
                Tensor::from_f32(dims, &self.array.flatten_all()?.to_vec1::<f32>()?).map_err(text)
            }
            dtype if dtype.is_float() => {
                Tensor::from_f64_as(dtype, dims, &self.floats()?).map_err(text)
            }
            dtype => {
                let bytes: Vec<u8> =
                    self.ints()?.into_iter().flat_map(|v| int_bytes(dtype, v)).collect();
                Tensor::new(dtype, dims, bytes).map_err(text)
            }
        }
    }

    pub(crate) fn dims(&self) -> &[usize] {
        self.array.dims()
    }

    pub(crate) fn rank(&self) -> usize {
        self.array.rank()
    }

    pub(crate) fn is_float(&self) -> bool {
        self.dtype.is_float()
    }

    /// Elements as f64, row-major.
    pub(crate) fn floats(&self) -> Result<Vec<f64>> {
        Ok(self.array.to_dtype(Kind::F64)?.flatten_all()?.to_vec1()?)
    }

    /// Elements as i64, row-major; booleans are 0 and 1, floats are truncated.
    pub(crate) fn ints(&self) -> Result<Vec<i64>> {
        Ok(self.array.to_dtype(Kind::I64)?.flatten_all()?.to_vec1()?)
    }

    pub(crate) fn from_floats(values: Vec<f64>, dims: &[usize], dtype: DType) -> Result<Self> {
        Self::new(Array::from_vec(values, dims, &Device::Cpu)?, dtype)
    }

    pub(crate) fn from_ints(values: Vec<i64>, dims: &[usize], dtype: DType) -> Result<Self> {
        let wrapped: Vec<i64> = values.into_iter().map(|value| wrap(dtype, value)).collect();
        Self::new(Array::from_vec(wrapped, dims, &Device::Cpu)?, dtype)
    }

    pub(crate) fn from_bools(values: Vec<bool>, dims: &[usize]) -> Result<Self> {
        let bytes: Vec<u8> = values.into_iter().map(u8::from).collect();
        Self::new(Array::from_vec(bytes, dims, &Device::Cpu)?, DType::Bool)
    }

    /// The same type with other elements.
    pub(crate) fn with(&self, array: Array) -> Self {
        Self { array, dtype: self.dtype }
    }

    /// The only element.
    pub(crate) fn scalar(&self) -> Result<f64> {
        match self.floats()?.as_slice() {
            [value] => Ok(*value),
            values => invalid(format!("wanted a scalar, found {} elements", values.len())),
        }
    }
}

/// `value` in the width of an integer type.
pub(crate) fn wrap(dtype: DType, value: i64) -> i64 {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    match dtype {
        DType::I8 => i64::from(value as i8),
        DType::I16 => i64::from(value as i16),
        DType::I32 => i64::from(value as i32),
        DType::U8 => i64::from(value as u8),
        DType::U16 => i64::from(value as u16),
        DType::U32 => i64::from(value as u32),
        _ => value,
    }
}

fn int_bytes(dtype: DType, value: i64) -> Vec<u8> {
    let bytes = value.to_le_bytes();
    bytes[..dtype.size().unwrap_or(8).min(8)].to_vec()
}
