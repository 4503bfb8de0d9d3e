//! One named series of samples of one type and shape, in memory or in a file.

use std::fmt::Debug;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use runtime::ElementType;

use super::Problem;

/// Bytes looked at together when a file is checked.
const CHECKED_AT_ONCE: usize = 1 << 20;

/// One array as stored, C order.
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    /// Element type.
    pub dtype: ElementType,
    /// Extents; samples first.
    pub shape: Vec<usize>,
    /// Little-endian elements.
    pub data: Vec<u8>,
}

/// Where samples of one input come from.
pub(crate) trait Feed: Debug + Send + Sync {
    /// Appends one sample's elements, little-endian.
    ///
    /// # Errors
    /// The sample cannot be read, or is not what the data promised when it was opened.
    fn read(&self, sample: usize, into: &mut Vec<u8>) -> Result<(), Problem>;

    /// Looks at everything that can be checked without decoding images and sound.
    ///
    /// # Errors
    /// A sample holds what no model computes with.
    fn check(&self, name: &str) -> Result<(), Problem>;
}

/// Samples of one type and shape.
#[derive(Debug, Clone)]
pub(crate) struct Series {
    pub(crate) dtype: ElementType,
    /// Extents; samples first.
    pub(crate) shape: Vec<usize>,
    pub(crate) feed: Arc<dyn Feed>,
}

impl From<Array> for Series {
    fn from(array: Array) -> Self {
        Self { dtype: array.dtype, shape: array.shape.clone(), feed: Arc::new(array) }
    }
}

/// Bytes of an array; `None` for text or where it overflows.
pub(crate) fn byte_len(dtype: ElementType, shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(dtype.size()?, |n, d| n.checked_mul(*d))
}

/// Bytes of one sample.
fn stride(dtype: ElementType, shape: &[usize]) -> usize {
    byte_len(dtype, shape.get(1..).unwrap_or(&[])).unwrap_or_default()
}

impl Feed for Array {
    fn read(&self, sample: usize, into: &mut Vec<u8>) -> Result<(), Problem> {
        let stride = stride(self.dtype, &self.shape);
        let start = sample.saturating_mul(stride);
        let bytes = self.data.get(start..start.saturating_add(stride));
        into.extend_from_slice(bytes.ok_or_else(|| gone(sample))?);
        Ok(())
    }

    fn check(&self, name: &str) -> Result<(), Problem> {
        match not_finite(self.dtype, &self.data) {
            None => Ok(()),
            Some((at, value)) => Err(bad(name, self.dtype, &self.shape, at, value)),
        }
    }
}

/// An uncompressed array inside a file, read sample by sample.
#[derive(Debug)]
pub(crate) struct FileArray {
    pub(crate) file: Arc<File>,
    /// Where its first element lies.
    pub(crate) offset: u64,
    pub(crate) dtype: ElementType,
    pub(crate) shape: Vec<usize>,
}

impl FileArray {
    pub(crate) fn into_series(self) -> Series {
        Series { dtype: self.dtype, shape: self.shape.clone(), feed: Arc::new(self) }
    }
}

impl Feed for FileArray {
    fn read(&self, sample: usize, into: &mut Vec<u8>) -> Result<(), Problem> {
        let stride = stride(self.dtype, &self.shape);
        if sample >= self.shape.first().copied().unwrap_or(0) {
            return Err(gone(sample));
        }
        let end = into.len();
        into.resize(end + stride, 0);
        let offset = self.offset + sample as u64 * stride as u64;
        self.file.read_exact_at(&mut into[end..], offset).map_err(Problem::Read)
    }

    fn check(&self, name: &str) -> Result<(), Problem> {
        let total = byte_len(self.dtype, &self.shape).unwrap_or_default();
        let size = self.dtype.size().unwrap_or(1);
        let mut chunk = vec![0u8; CHECKED_AT_ONCE.min(total)];
        let mut done = 0;
        while done < total {
            let part = chunk.len().min(total - done);
            let offset = self.offset + done as u64;
            self.file.read_exact_at(&mut chunk[..part], offset).map_err(Problem::Read)?;
            if let Some((at, value)) = not_finite(self.dtype, &chunk[..part]) {
                return Err(bad(name, self.dtype, &self.shape, done / size + at, value));
            }
            done += part;
        }
        Ok(())
    }
}

fn gone(sample: usize) -> Problem {
    Problem::Format(format!("has no sample {sample} any more"))
}

fn bad(name: &str, dtype: ElementType, shape: &[usize], at: usize, value: f64) -> Problem {
    let per_sample = shape.iter().skip(1).product::<usize>().max(1);
    if dtype == ElementType::Bool {
        let what =
            format!("holds the byte {value} in sample {}, which is no bool", at / per_sample);
        return Problem::Array { array: name.to_owned(), what };
    }
    Problem::NotFinite { array: name.to_owned(), value: value.to_string(), sample: at / per_sample }
}

/// The first element that is NaN or infinite (or a bool that is neither 0 nor 1), with its index.
fn not_finite(dtype: ElementType, data: &[u8]) -> Option<(usize, f64)> {
    macro_rules! first {
        ($n:literal, $read:expr) => {
            data.as_chunks::<$n>()
                .0
                .iter()
                .map($read)
                .enumerate()
                .find(|(_, v): &(usize, f64)| !v.is_finite())
        };
    }
    match dtype {
        ElementType::F32 => first!(4, |b| f64::from(f32::from_le_bytes(*b))),
        ElementType::F64 => first!(8, |b| f64::from_le_bytes(*b)),
        ElementType::F16 => first!(2, |b| half::f16::from_le_bytes(*b).to_f64()),
        ElementType::Bf16 => first!(2, |b| half::bf16::from_le_bytes(*b).to_f64()),
        ElementType::Bool => data.iter().position(|b| *b > 1).map(|at| (at, f64::from(data[at]))),
        _ => None,
    }
}
