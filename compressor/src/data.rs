//! Samples from an `.npz`: arrays named after the model's inputs, first axis samples, and optionally
//! `labels`.
//!
//! Everything comes from outside: a file is read within named limits, every array is checked against
//! the model's input (name, element type, shape, finite numbers), and each error names file and array.
//! An array of the input's own rank has its samples along the first axis, which the model must leave
//! free or fix at 1; an array with one more axis holds one whole input per sample.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use runtime::{ElementType, IoSpec, Tensor};

/// The most bytes all arrays of one file may unpack to.
pub const MAX_DATA_BYTES: u64 = 4 << 30;
/// The most arrays in one file.
pub const MAX_ARRAYS: usize = 256;
/// The longest header of one array.
pub const MAX_HEADER_BYTES: usize = 64 << 10;
/// Name of the optional array of class indices.
pub const LABELS: &str = "labels";

/// Why samples cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{file}: {problem}", file = .file.display())]
pub struct DataError {
    /// The file.
    pub file: PathBuf,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What is wrong with a data file.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum Problem {
    #[error("cannot be read: {0}")]
    Read(std::io::Error),
    #[error("is no readable .npz (a zip of .npy arrays), or is cut short: {0}")]
    Container(String),
    #[error("array \"{array}\": {what}")]
    Array { array: String, what: String },
    #[error("has no array for the model's input \"{input}\"; it holds {}", list(.present))]
    MissingInput { input: String, present: Vec<String> },
    #[error(
        "array \"{array}\" is {found}, the model's input wants {wanted}; convert it with .astype"
    )]
    WrongType { array: String, found: String, wanted: String },
    #[error(
        "array \"{array}\" has shape {found:?}, the model's input wants {wanted} with samples along the first axis"
    )]
    WrongShape { array: String, found: Vec<usize>, wanted: String },
    #[error("array \"{array}\" holds {value} in sample {sample}; clean the data first")]
    NotFinite { array: String, value: String, sample: usize },
    #[error("array \"{array}\" holds no samples")]
    Empty { array: String },
    #[error("has {samples} samples; at least {wanted} are needed to keep some apart for judging")]
    TooFew { samples: usize, wanted: usize },
    #[error(
        "has {samples} samples; at least {wanted} are needed (MIN_HELDOUT to judge by; HOLD_OUT_EVERY times as many where one file both fits and judges), since on fewer a floor is held or missed by chance"
    )]
    TooFewToJudge { samples: usize, wanted: usize },
    #[error("array \"{array}\" has {found} samples where \"{other}\" has {wanted}")]
    SampleCount { array: String, found: usize, other: String, wanted: usize },
    #[error("{what} is {found}, more than {limit} = {allowed}")]
    Limit { what: String, found: u64, limit: &'static str, allowed: u64 },
}

fn list(names: &[String]) -> String {
    if names.is_empty() {
        return "no arrays at all".into();
    }
    let quoted: Vec<String> = names.iter().map(|n| format!("\"{n}\"")).collect();
    quoted.join(", ")
}

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

/// Checked samples of a model's inputs, in memory.
#[derive(Debug, Clone)]
pub struct Dataset {
    file: PathBuf,
    samples: usize,
    inputs: Vec<InputArray>,
    labels: Option<Vec<i64>>,
    digest: bundle::Digest,
}

#[derive(Debug, Clone)]
struct InputArray {
    name: String,
    array: Array,
    /// Shape of one sample without the batch axis.
    item: Vec<usize>,
    /// Whether several samples can go in along the first axis.
    batchable: bool,
    /// Whether the first axis of the array is the model's own first axis.
    own_axis: bool,
}

impl Dataset {
    /// Reads `file` and checks it against `specs`.
    ///
    /// # Errors
    /// See [`Problem`].
    pub fn load(file: &Path, specs: &[IoSpec]) -> Result<Self, DataError> {
        let fail = |problem| DataError { file: file.to_path_buf(), problem };
        let digest = bundle::Digest::of_file(file)
            .map_err(|e| fail(Problem::Read(std::io::Error::other(e.to_string()))))?;
        let arrays = read_npz(file).map_err(fail)?;
        Self::check(file, arrays, specs, digest).map_err(fail)
    }

    fn check(
        file: &Path,
        mut arrays: BTreeMap<String, Array>,
        specs: &[IoSpec],
        digest: bundle::Digest,
    ) -> Result<Self, Problem> {
        let present: Vec<String> = arrays.keys().cloned().collect();
        let mut inputs: Vec<InputArray> = Vec::with_capacity(specs.len());
        for spec in specs {
            let array = arrays.remove(&spec.name).ok_or_else(|| Problem::MissingInput {
                input: spec.name.clone(),
                present: present.clone(),
            })?;
            inputs.push(check_input(spec, array)?);
        }
        let Some(first) = inputs.first() else {
            return Err(Problem::Container("the model takes no inputs".into()));
        };
        let samples = first.array.shape[0];
        for other in &inputs[1..] {
            same_count(&other.name, other.array.shape[0], &first.name, samples)?;
        }
        let labels = arrays.remove(LABELS).map(read_labels).transpose()?;
        if let Some(labels) = &labels {
            same_count(LABELS, labels.len(), &first.name, samples)?;
        }
        Ok(Self { file: file.to_path_buf(), samples, inputs, labels, digest })
    }

    /// Every `every`-th sample apart from the others, for judging on what was not fitted: `(others, held out)`.
    ///
    /// # Errors
    /// There are fewer than `every` samples, so that one side would be empty.
    pub fn hold_out(self, every: usize) -> Result<(Self, Self), DataError> {
        let (heldout, others): (Vec<usize>, Vec<usize>) =
            (0..self.samples).partition(|sample| sample % every == every - 1);
        if heldout.is_empty() || others.is_empty() {
            let problem = Problem::TooFew { samples: self.samples, wanted: every.max(2) };
            return Err(DataError { file: self.file, problem });
        }
        Ok((self.select(&others), self.select(&heldout)))
    }

    fn select(&self, samples: &[usize]) -> Self {
        let narrow = |input: &InputArray| {
            let mut input = input.clone();
            let stride = input.array.data.len() / self.samples;
            let rows = samples.iter().flat_map(|i| &input.array.data[i * stride..(i + 1) * stride]);
            input.array.data = rows.copied().collect();
            input.array.shape[0] = samples.len();
            input
        };
        Self {
            file: self.file.clone(),
            samples: samples.len(),
            inputs: self.inputs.iter().map(narrow).collect(),
            labels: self.labels.as_ref().map(|l| samples.iter().map(|i| l[*i]).collect()),
            digest: self.digest,
        }
    }

    /// Number of samples, at least 1.
    pub fn len(&self) -> usize {
        self.samples
    }

    /// Never true: an empty set is refused when it is read.
    pub fn is_empty(&self) -> bool {
        self.samples == 0
    }

    /// The file it came from.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Digest of the file.
    pub fn digest(&self) -> bundle::Digest {
        self.digest
    }

    /// Class index of each sample, where the file has them.
    pub fn labels(&self) -> Option<&[i64]> {
        self.labels.as_deref()
    }

    /// Whether more than one sample can be run at once.
    pub fn batchable(&self) -> bool {
        self.inputs.iter().all(|i| i.batchable)
    }

    /// The inputs of samples `at`, which must not be empty; more than one only if [`Self::batchable`].
    ///
    /// # Errors
    /// The samples do not make a tensor, which only happens when more than one is asked of a set
    /// that cannot be batched.
    pub fn batch(&self, at: &[usize]) -> Result<Vec<(String, Tensor)>, runtime::EngineError> {
        self.inputs
            .iter()
            .map(|input| {
                let mut shape = input.item.clone();
                if input.own_axis {
                    shape.insert(0, at.len());
                }
                let stride = input.array.data.len() / self.samples;
                let data = at
                    .iter()
                    .flat_map(|i| &input.array.data[i * stride..(i + 1) * stride])
                    .copied()
                    .collect();
                Tensor::new(input.array.dtype, shape, data).map(|t| (input.name.clone(), t))
            })
            .collect()
    }

    /// Groups of up to `batch` neighbouring samples that cover `range` in order.
    pub fn batches(&self, range: std::ops::Range<usize>, batch: usize) -> Vec<Vec<usize>> {
        let size = if self.batchable() { batch.max(1) } else { 1 };
        let all: Vec<usize> = (range.start..range.end.min(self.samples)).collect();
        all.chunks(size).map(<[usize]>::to_vec).collect()
    }
}

fn same_count(array: &str, found: usize, other: &str, wanted: usize) -> Result<(), Problem> {
    if found == wanted {
        return Ok(());
    }
    Err(Problem::SampleCount { array: array.to_owned(), found, other: other.to_owned(), wanted })
}

fn check_input(spec: &IoSpec, array: Array) -> Result<InputArray, Problem> {
    let name = spec.name.clone();
    if array.dtype != spec.dtype {
        return Err(Problem::WrongType {
            array: name,
            found: array.dtype.to_string(),
            wanted: spec.dtype.to_string(),
        });
    }
    let fits = |item: &[usize], dims: &[Option<usize>]| {
        item.len() == dims.len() && dims.iter().zip(item).all(|(d, i)| d.is_none_or(|d| d == *i))
    };
    let free = spec.dims.first().is_some_and(Option::is_none);
    let single = spec.dims.first() == Some(&Some(1));
    let item = array.shape.get(1..).unwrap_or(&[]).to_vec();
    let own_axis = (free || single) && fits(&item, spec.dims.get(1..).unwrap_or(&[]));
    if array.shape.is_empty() || !(own_axis || fits(&item, &spec.dims)) {
        return Err(Problem::WrongShape {
            array: name,
            found: array.shape,
            wanted: dims_text(&spec.dims),
        });
    }
    if array.shape.contains(&0) {
        return Err(Problem::Empty { array: name });
    }
    finite(&name, &array)?;
    Ok(InputArray { name, array, item, batchable: own_axis && free, own_axis })
}

fn dims_text(dims: &[Option<usize>]) -> String {
    let dims: Vec<String> =
        dims.iter().map(|d| d.map_or_else(|| "?".into(), |d| d.to_string())).collect();
    format!("[{}]", dims.join(", "))
}

fn finite(name: &str, array: &Array) -> Result<(), Problem> {
    let bad = match array.dtype {
        ElementType::F32 => array
            .data
            .as_chunks::<4>()
            .0
            .iter()
            .map(|b| f64::from(f32::from_le_bytes(*b)))
            .enumerate()
            .find(|(_, v)| !v.is_finite()),
        ElementType::F64 => array
            .data
            .as_chunks::<8>()
            .0
            .iter()
            .map(|b| f64::from_le_bytes(*b))
            .enumerate()
            .find(|(_, v)| !v.is_finite()),
        _ => None,
    };
    let per_sample = array.shape.iter().skip(1).product::<usize>().max(1);
    match bad {
        None => Ok(()),
        Some((at, value)) => Err(Problem::NotFinite {
            array: name.to_owned(),
            value: value.to_string(),
            sample: at / per_sample,
        }),
    }
}

fn read_labels(array: Array) -> Result<Vec<i64>, Problem> {
    let wrong = |what: &str| Problem::Array { array: LABELS.into(), what: what.into() };
    if array.shape.len() != 1 {
        return Err(wrong("labels are one class index per sample, a single axis"));
    }
    macro_rules! ints {
        ($t:ty, $n:literal) => {
            array
                .data
                .as_chunks::<$n>()
                .0
                .iter()
                .map(|b| i64::from(<$t>::from_le_bytes(*b)))
                .collect()
        };
    }
    Ok(match array.dtype {
        ElementType::I8 => ints!(i8, 1),
        ElementType::U8 => ints!(u8, 1),
        ElementType::I16 => ints!(i16, 2),
        ElementType::U16 => ints!(u16, 2),
        ElementType::I32 => ints!(i32, 4),
        ElementType::U32 => ints!(u32, 4),
        ElementType::I64 => ints!(i64, 8),
        _ => return Err(wrong("labels are class indices of an integer type")),
    })
}

/// Reads every array of an `.npz`.
fn read_npz(file: &Path) -> Result<BTreeMap<String, Array>, Problem> {
    let handle = File::open(file).map_err(Problem::Read)?;
    let mut zip = zip::ZipArchive::new(handle).map_err(|e| Problem::Container(e.to_string()))?;
    limit("number of arrays", zip.len() as u64, "MAX_ARRAYS", MAX_ARRAYS as u64)?;
    let mut arrays = BTreeMap::new();
    let mut total = 0u64;
    for at in 0..zip.len() {
        let entry = zip.by_index(at).map_err(|e| Problem::Container(e.to_string()))?;
        let name = entry.name().map_err(|e| Problem::Container(e.to_string()))?.into_owned();
        let Some(array) = name.strip_suffix(".npy") else {
            return Err(Problem::Container(format!("it holds \"{name}\", which is no .npy")));
        };
        total = total.saturating_add(entry.size());
        limit("size of the arrays in bytes", total, "MAX_DATA_BYTES", MAX_DATA_BYTES)?;
        let size = entry.size();
        let read = read_npy(entry.take(size), size)
            .map_err(|what| Problem::Array { array: array.to_owned(), what })?;
        arrays.insert(array.to_owned(), read);
    }
    Ok(arrays)
}

fn limit(what: &str, found: u64, limit: &'static str, allowed: u64) -> Result<(), Problem> {
    if found <= allowed {
        return Ok(());
    }
    Err(Problem::Limit { what: what.into(), found, limit, allowed })
}

/// Reads one array of `size` bytes in all, by NumPy's format specification (NEP 1): magic, version,
/// header length, a Python dictionary, elements.
fn read_npy(mut reader: impl Read, size: u64) -> Result<Array, String> {
    let cut = |e: std::io::Error| format!("is cut short or damaged: {e}");
    let mut start = [0u8; 8];
    reader.read_exact(&mut start).map_err(cut)?;
    if &start[..6] != b"\x93NUMPY" {
        return Err("is no .npy: it does not begin with the NumPy magic".into());
    }
    let header_len = match start[6] {
        1 => {
            let mut len = [0u8; 2];
            reader.read_exact(&mut len).map_err(cut)?;
            usize::from(u16::from_le_bytes(len))
        }
        2 | 3 => {
            let mut len = [0u8; 4];
            reader.read_exact(&mut len).map_err(cut)?;
            u32::from_le_bytes(len) as usize
        }
        other => return Err(format!("has .npy version {other}; versions 1 to 3 are read")),
    };
    if header_len > MAX_HEADER_BYTES {
        return Err(format!(
            "has a header of {header_len} bytes, more than MAX_HEADER_BYTES = {MAX_HEADER_BYTES}"
        ));
    }
    let mut header = vec![0u8; header_len];
    reader.read_exact(&mut header).map_err(cut)?;
    let header = String::from_utf8(header).map_err(|_| "has a header that is no text")?;
    let (dtype, shape) = parse_header(&header)?;
    let bytes = shape
        .iter()
        .try_fold(dtype.size().unwrap_or(1), |n, d| n.checked_mul(*d))
        .filter(|n| *n as u64 <= size)
        .ok_or_else(|| {
            format!("claims shape {shape:?} of {dtype}, more than the {size} bytes it has")
        })?;
    let mut data = vec![0u8; bytes];
    reader.read_exact(&mut data).map_err(cut)?;
    if reader.read(&mut [0u8]).map_err(cut)? != 0 {
        return Err(format!("has more elements than its shape {shape:?}"));
    }
    Ok(Array { dtype, shape, data })
}

/// The element type and shape out of `{'descr': '<i4', 'fortran_order': False, 'shape': (512, 2048), }`.
fn parse_header(header: &str) -> Result<(ElementType, Vec<usize>), String> {
    let after = |key: &str| {
        header
            .split_once(&format!("'{key}':"))
            .map(|(_, rest)| rest.trim_start())
            .ok_or_else(|| format!("has no '{key}' in its header"))
    };
    let descr = after("descr")?
        .strip_prefix('\'')
        .and_then(|rest| rest.split_once('\''))
        .map(|(descr, _)| descr)
        .ok_or("has a structured element type, which no model input takes")?;
    if !after("fortran_order")?.starts_with("False") {
        return Err("is in Fortran order; store it with numpy.ascontiguousarray".into());
    }
    let dims = after("shape")?
        .strip_prefix('(')
        .and_then(|rest| rest.split_once(')'))
        .map(|(dims, _)| dims)
        .ok_or("has no readable shape in its header")?;
    let shape = dims
        .split(',')
        .map(str::trim)
        .filter(|d| !d.is_empty())
        .map(|d| d.parse().map_err(|_| format!("has \"{d}\" in its shape")))
        .collect::<Result<Vec<usize>, String>>()?;
    Ok((element_type(descr)?, shape))
}

fn element_type(descr: &str) -> Result<ElementType, String> {
    Ok(match descr {
        "<f4" => ElementType::F32,
        "<f8" => ElementType::F64,
        "<f2" => ElementType::F16,
        "|i1" => ElementType::I8,
        "<i2" => ElementType::I16,
        "<i4" => ElementType::I32,
        "<i8" => ElementType::I64,
        "|u1" => ElementType::U8,
        "<u2" => ElementType::U16,
        "<u4" => ElementType::U32,
        "<u8" => ElementType::U64,
        "|b1" => ElementType::Bool,
        other => return Err(format!("has element type {other}, which cannot be read")),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "data_tests.rs"]
mod tests;
