//! Tensors as they cross the border to an engine: an element type, a shape and little-endian bytes.
//!
//! Invariant of a checked tensor: `data` holds exactly the bytes that `dtype` and `shape` ask for
//! (or `strings` as many strings), and a boolean's byte is 0 or 1. The fields are public for
//! reading; an engine checks again before it trusts them.

use std::borrow::Cow;
use std::fmt;

use half::{bf16, f16};
use serde::{Deserialize, Serialize};

use crate::error::EngineError;

/// The type of one element. The names on the wire are those of the Open Inference Protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ElementType {
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 double precision.
    F64,
    /// IEEE 754 half precision.
    F16,
    /// The upper half of a single precision number.
    Bf16,
    /// Signed, 8 bits.
    I8,
    /// Signed, 16 bits.
    I16,
    /// Signed, 32 bits.
    I32,
    /// Signed, 64 bits.
    I64,
    /// Unsigned, 8 bits.
    U8,
    /// Unsigned, 16 bits.
    U16,
    /// Unsigned, 32 bits.
    U32,
    /// Unsigned, 64 bits.
    U64,
    /// One byte, 0 or 1.
    Bool,
    /// UTF-8 text of any length.
    String,
}

impl ElementType {
    /// Every type, for tables and tests.
    pub const ALL: [Self; 14] = [
        Self::F32,
        Self::F64,
        Self::F16,
        Self::Bf16,
        Self::I8,
        Self::I16,
        Self::I32,
        Self::I64,
        Self::U8,
        Self::U16,
        Self::U32,
        Self::U64,
        Self::Bool,
        Self::String,
    ];

    /// The name in the Open Inference Protocol.
    pub const fn oip_name(self) -> &'static str {
        match self {
            Self::F32 => "FP32",
            Self::F64 => "FP64",
            Self::F16 => "FP16",
            Self::Bf16 => "BF16",
            Self::I8 => "INT8",
            Self::I16 => "INT16",
            Self::I32 => "INT32",
            Self::I64 => "INT64",
            Self::U8 => "UINT8",
            Self::U16 => "UINT16",
            Self::U32 => "UINT32",
            Self::U64 => "UINT64",
            Self::Bool => "BOOL",
            Self::String => "BYTES",
        }
    }

    /// The type of that name, if there is one. Names are upper case, as the protocol has them.
    pub fn from_oip_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.oip_name() == name)
    }

    /// Bytes of one element; `None` for strings, which have no fixed size.
    pub const fn size(self) -> Option<usize> {
        match self {
            Self::I8 | Self::U8 | Self::Bool => Some(1),
            Self::F16 | Self::Bf16 | Self::I16 | Self::U16 => Some(2),
            Self::F32 | Self::I32 | Self::U32 => Some(4),
            Self::F64 | Self::I64 | Self::U64 => Some(8),
            Self::String => None,
        }
    }
}

impl fmt::Display for ElementType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.oip_name())
    }
}

/// A dense tensor in row-major order.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// The type of each element.
    pub dtype: ElementType,
    /// The extent of each axis; empty for a scalar.
    pub shape: Vec<usize>,
    /// The elements, little-endian; empty for strings.
    pub data: Vec<u8>,
    /// The elements of a string tensor; empty for every other type.
    pub strings: Vec<String>,
}

macro_rules! numeric {
    ($(($from:ident, $to:ident, $t:ty, $variant:ident, $name:literal)),+ $(,)?) => {$(
        #[doc = concat!("A ", $name, " tensor of `shape`; an error where the counts differ.")]
        pub fn $from(shape: Vec<usize>, values: &[$t]) -> Result<Self, EngineError> {
            let data = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            Self::new(ElementType::$variant, shape, data)
        }

        #[doc = concat!("The elements, where this is a ", $name, " tensor; an error otherwise.")]
        pub fn $to(&self) -> Result<Vec<$t>, EngineError> {
            self.expect_type(ElementType::$variant)?;
            Ok(self
                .data
                .as_chunks()
                .0
                .iter()
                .map(|bytes| <$t>::from_le_bytes(*bytes))
                .collect())
        }
    )+};
}

impl Tensor {
    /// A tensor of any type but string from its little-endian bytes.
    ///
    /// # Errors
    /// The element count overflows, the bytes do not match the shape, a boolean is neither 0 nor 1,
    /// or the type is string (use [`Tensor::from_strings`]).
    pub fn new(dtype: ElementType, shape: Vec<usize>, data: Vec<u8>) -> Result<Self, EngineError> {
        if dtype == ElementType::String {
            return Err(EngineError::input("a BYTES tensor is made of strings, not of raw bytes"));
        }
        let tensor = Self { dtype, shape, data, strings: Vec::new() };
        tensor.check()?;
        Ok(tensor)
    }

    /// A string tensor of `shape`.
    ///
    /// # Errors
    /// The number of strings is not the shape's.
    pub fn from_strings(shape: Vec<usize>, strings: Vec<String>) -> Result<Self, EngineError> {
        let tensor = Self { dtype: ElementType::String, shape, data: Vec::new(), strings };
        tensor.check()?;
        Ok(tensor)
    }

    /// A tensor of `shape` full of zeros (false, or empty strings).
    ///
    /// # Errors
    /// The size overflows.
    pub fn zeros(dtype: ElementType, shape: Vec<usize>) -> Result<Self, EngineError> {
        match dtype.size() {
            None => {
                let count = element_count(&shape)?;
                Self::from_strings(shape, vec![String::new(); count])
            }
            Some(size) => {
                let bytes = byte_count(&shape, size)?;
                Self::new(dtype, shape, vec![0; bytes])
            }
        }
    }

    numeric!(
        (from_f32, to_f32, f32, F32, "FP32"),
        (from_f64, to_f64, f64, F64, "FP64"),
        (from_f16, to_f16, f16, F16, "FP16"),
        (from_bf16, to_bf16, bf16, Bf16, "BF16"),
        (from_i8, to_i8, i8, I8, "INT8"),
        (from_i16, to_i16, i16, I16, "INT16"),
        (from_i32, to_i32, i32, I32, "INT32"),
        (from_i64, to_i64, i64, I64, "INT64"),
        (from_u8, to_u8, u8, U8, "UINT8"),
        (from_u16, to_u16, u16, U16, "UINT16"),
        (from_u32, to_u32, u32, U32, "UINT32"),
        (from_u64, to_u64, u64, U64, "UINT64"),
    );

    /// The elements where they lie, if this is an FP32 tensor: copied only where the machine cannot read them so.
    ///
    /// # Errors
    /// The tensor is of another type.
    pub fn as_f32(&self) -> Result<Cow<'_, [f32]>, EngineError> {
        self.expect_type(ElementType::F32)?;
        match bytemuck::try_cast_slice(&self.data) {
            Ok(elements) if cfg!(target_endian = "little") => Ok(Cow::Borrowed(elements)),
            _ => self.to_f32().map(Cow::Owned),
        }
    }

    /// A BOOL tensor of `shape`; an error where the counts differ.
    pub fn from_bool(shape: Vec<usize>, values: &[bool]) -> Result<Self, EngineError> {
        let data = values.iter().map(|v| u8::from(*v)).collect();
        Self::new(ElementType::Bool, shape, data)
    }

    /// The elements, where this is a BOOL tensor; an error otherwise.
    pub fn to_bool(&self) -> Result<Vec<bool>, EngineError> {
        self.expect_type(ElementType::Bool)?;
        Ok(self.data.iter().map(|b| *b != 0).collect())
    }

    /// The elements as `f64` whatever the numeric type; booleans count as 0 and 1. 64-bit integers
    /// beyond 2^53 are rounded.
    ///
    /// # Errors
    /// The tensor holds strings.
    #[allow(clippy::cast_precision_loss)]
    pub fn to_f64_lossy(&self) -> Result<Vec<f64>, EngineError> {
        fn widen<T>(values: Vec<T>, convert: impl Fn(T) -> f64) -> Vec<f64> {
            values.into_iter().map(convert).collect()
        }
        Ok(match self.dtype {
            ElementType::F32 => widen(self.to_f32()?, f64::from),
            ElementType::F64 => self.to_f64()?,
            ElementType::F16 => widen(self.to_f16()?, f64::from),
            ElementType::Bf16 => widen(self.to_bf16()?, f64::from),
            ElementType::I8 => widen(self.to_i8()?, f64::from),
            ElementType::I16 => widen(self.to_i16()?, f64::from),
            ElementType::I32 => widen(self.to_i32()?, f64::from),
            ElementType::I64 => widen(self.to_i64()?, |v| v as f64),
            ElementType::U8 => widen(self.to_u8()?, f64::from),
            ElementType::U16 => widen(self.to_u16()?, f64::from),
            ElementType::U32 => widen(self.to_u32()?, f64::from),
            ElementType::U64 => widen(self.to_u64()?, |v| v as f64),
            ElementType::Bool => widen(self.to_bool()?, |v| f64::from(u8::from(v))),
            ElementType::String => {
                return Err(EngineError::input("a BYTES tensor has no numeric value"));
            }
        })
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        match self.dtype.size() {
            Some(size) => self.data.len() / size,
            None => self.strings.len(),
        }
    }

    /// Whether there is no element, as when one extent is 0.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Checks the invariant; see the module's text.
    ///
    /// # Errors
    /// It does not hold.
    pub fn check(&self) -> Result<(), EngineError> {
        let (held, wanted, unit) = match self.dtype.size() {
            Some(size) => (self.data.len(), byte_count(&self.shape, size)?, "bytes"),
            None => (self.strings.len(), element_count(&self.shape)?, "strings"),
        };
        if held != wanted {
            return Err(EngineError::input(format!(
                "{} of shape {:?} needs {wanted} {unit}, got {held}",
                self.dtype, self.shape
            )));
        }
        let stray = match self.dtype.size() {
            Some(_) => !self.strings.is_empty(),
            None => !self.data.is_empty(),
        };
        if stray {
            return Err(EngineError::input(format!(
                "{} of shape {:?} holds both bytes and strings",
                self.dtype, self.shape
            )));
        }
        if self.dtype == ElementType::Bool
            && let Some(at) = self.data.iter().position(|b| *b > 1)
        {
            return Err(EngineError::input(format!(
                "BOOL element {at} is {}, neither 0 nor 1",
                self.data[at]
            )));
        }
        Ok(())
    }

    fn expect_type(&self, wanted: ElementType) -> Result<(), EngineError> {
        if self.dtype == wanted {
            return Ok(());
        }
        Err(EngineError::input(format!("the tensor is {}, not {wanted}", self.dtype)))
    }
}

fn element_count(shape: &[usize]) -> Result<usize, EngineError> {
    // A zero extent makes the product zero however large the others are, and the engines agree.
    if shape.contains(&0) {
        return Ok(0);
    }
    shape
        .iter()
        .try_fold(1_usize, |n, d| n.checked_mul(*d))
        .ok_or_else(|| EngineError::input(format!("shape {shape:?} has too many elements")))
}

fn byte_count(shape: &[usize], size: usize) -> Result<usize, EngineError> {
    element_count(shape)?
        .checked_mul(size)
        .filter(|bytes| isize::try_from(*bytes).is_ok())
        .ok_or_else(|| EngineError::input(format!("shape {shape:?} has too many bytes")))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_oip_name_leads_back_to_its_type() {
        for t in ElementType::ALL {
            assert_eq!(ElementType::from_oip_name(t.oip_name()), Some(t));
        }
        assert_eq!(ElementType::from_oip_name("fp32"), None);
        assert_eq!(ElementType::from_oip_name("FP8"), None);
    }

    #[test]
    fn numbers_come_back_as_they_went_in() {
        let t = Tensor::from_f32(vec![2, 2], &[1.0, -0.0, f32::NAN, 3.5]).unwrap();
        let back = t.to_f32().unwrap();
        assert_eq!(back[0].to_bits(), 1.0_f32.to_bits());
        assert_eq!(back[1].to_bits(), (-0.0_f32).to_bits());
        assert!(back[2].is_nan());
        let i = Tensor::from_i64(vec![3], &[i64::MIN, 0, i64::MAX]).unwrap();
        assert_eq!(i.to_i64().unwrap(), vec![i64::MIN, 0, i64::MAX]);
        let h = Tensor::from_f16(vec![1], &[f16::from_f32(0.5)]).unwrap();
        assert_eq!(h.data, vec![0x00, 0x38]);
    }

    #[test]
    fn bytes_that_do_not_fill_the_shape_are_refused_with_both_counts() {
        let error = Tensor::new(ElementType::I32, vec![2, 3], vec![0; 20]).unwrap_err();
        assert_eq!(error.to_string(), "INT32 of shape [2, 3] needs 24 bytes, got 20");
    }

    #[test]
    fn a_shape_whose_product_overflows_is_refused() {
        let error = Tensor::new(ElementType::F32, vec![usize::MAX, 2], vec![]).unwrap_err();
        assert!(error.to_string().contains("too many elements"), "{error}");
        let error = Tensor::zeros(ElementType::F64, vec![usize::MAX / 4]).unwrap_err();
        assert!(error.to_string().contains("too many bytes"), "{error}");
    }

    #[test]
    fn a_zero_extent_makes_an_empty_tensor() {
        let t = Tensor::zeros(ElementType::F32, vec![0, usize::MAX, 4]).unwrap();
        assert!(t.is_empty());
    }

    #[test]
    fn a_boolean_that_is_neither_true_nor_false_is_refused() {
        let error = Tensor::new(ElementType::Bool, vec![2], vec![1, 2]).unwrap_err();
        assert_eq!(error.to_string(), "BOOL element 1 is 2, neither 0 nor 1");
    }

    #[test]
    fn strings_and_bytes_do_not_mix() {
        assert!(Tensor::new(ElementType::String, vec![0], vec![]).is_err());
        assert!(Tensor::from_strings(vec![2], vec!["a".into()]).is_err());
        let mut t = Tensor::from_strings(vec![1], vec!["a".into()]).unwrap();
        assert_eq!(t.len(), 1);
        assert!(t.to_f64_lossy().is_err());
        t.data.push(1);
        assert!(t.check().is_err());
    }

    #[test]
    fn reading_as_another_type_is_an_error_that_names_both() {
        let t = Tensor::from_i32(vec![1], &[1]).unwrap();
        assert_eq!(t.to_f32().unwrap_err().to_string(), "the tensor is INT32, not FP32");
    }
}
