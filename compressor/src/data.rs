//! Samples of a model's inputs: `.npz`, `.npy`, `.safetensors`, folders of images or sound, `.wav`,
//! `.csv` and `.jsonl`, with a declarative preprocessing file ([`prepare`]) where a model does not take
//! what the file holds.
//!
//! Everything comes from outside: a file is read within named limits, every array is checked against
//! the model's input (name, element type, shape, finite numbers), and each error names file and array.
//! An array of the input's own rank has its samples along the first axis, which the model must leave
//! free or fix at 1; an array with one more axis holds one whole input per sample.
//!
//! Only `.npz`, whose arrays are compressed as wholes, is kept in memory. Everything else is read sample
//! by sample: what is checked when the data is opened is its structure and whatever can be checked
//! without decoding images and sound, whose pixels are checked when they are read.

pub(crate) mod folder;
pub(crate) mod image;
pub(crate) mod npy;
pub(crate) mod npz;
pub mod prepare;
pub(crate) mod records;
pub(crate) mod resize;
pub(crate) mod safetensors;
pub(crate) mod series;
pub(crate) mod sound;
pub(crate) mod table;
pub mod wordpiece;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use runtime::{ElementType, ErrorKind, IoSpec, Tensor};

pub use self::series::Array;
use self::series::{Feed, Series};

/// The most bytes all arrays of one file may unpack to.
pub const MAX_DATA_BYTES: u64 = 4 << 30;
/// The most arrays in one file.
pub const MAX_ARRAYS: usize = 256;
/// The most samples of one set.
pub const MAX_SAMPLES: usize = 10_000_000;
/// The most elements of one prepared sample of one input.
pub const MAX_SAMPLE_ELEMENTS: usize = 256 << 20;
/// Name of the optional array of class indices.
pub const LABELS: &str = "labels";

pub use self::npy::MAX_HEADER_BYTES;

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
    #[error("{0}")]
    Format(String),
    #[error(
        "is of no format that is read (.npz, .npy, .safetensors, .wav, .csv, .jsonl, or a folder of \
         images or .wav files; .toml for a preprocessing file that names its data)"
    )]
    UnknownFormat,
    #[error("the preprocessing {file}: {what}", file = .file.display())]
    Preprocess { file: PathBuf, what: String },
    #[error(
        "holds {holds}, and what the model takes of it has to be said: write a preprocessing file and \
         give it as the data, such as:\n{example}"
    )]
    NeedsPreprocess { holds: &'static str, example: String },
    #[error("input \"{input}\" of sample {sample}{place}: {what}", place = place(.file))]
    Sample { input: String, sample: usize, file: Option<PathBuf>, what: String },
    #[error("array \"{array}\": {what}")]
    Array { array: String, what: String },
    #[error("the model takes no inputs")]
    NoInputs,
    #[error("has no array for the model's input \"{input}\"; it holds {}", list(.present))]
    MissingInput { input: String, present: Vec<String> },
    #[error(
        "array \"{array}\" is {found}, the model's input wants {wanted}; convert it with .astype, or by \
         a preprocessing file"
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
    #[error("holds no samples")]
    NoSamples,
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

fn place(file: &Option<PathBuf>) -> String {
    file.as_ref().map_or_else(String::new, |file| format!(", {}", file.display()))
}

/// Samples of a model's inputs, checked when they are opened.
#[derive(Debug, Clone)]
pub struct Dataset {
    file: PathBuf,
    /// Which samples of the feeds these are, in order.
    picks: Vec<usize>,
    inputs: Vec<Input>,
    labels: Option<Vec<i64>>,
    texts: Option<Vec<String>>,
    digest: bundle::Digest,
}

#[derive(Debug, Clone)]
struct Input {
    name: String,
    dtype: ElementType,
    /// Shape of one sample without the batch axis.
    item: Vec<usize>,
    /// Whether several samples can go in along the first axis.
    batchable: bool,
    /// Whether the first axis of the array is the model's own first axis.
    own_axis: bool,
    feed: Arc<dyn Feed>,
}

/// What an opened file gives, before it is checked against the model.
pub(crate) struct Opened {
    /// One series per input that it can serve.
    pub(crate) series: Vec<(String, Series)>,
    pub(crate) labels: Option<Vec<i64>>,
    pub(crate) texts: Option<Vec<String>>,
    pub(crate) digest: bundle::Digest,
}

impl Dataset {
    /// Opens a file whose arrays (or fields) are named after the model's inputs, or a preprocessing file
    /// (`.toml`) that names its data, and checks it against `specs`.
    ///
    /// # Errors
    /// See [`Problem`].
    pub fn load(file: &Path, specs: &[IoSpec]) -> Result<Self, DataError> {
        let described = file.extension().is_some_and(|e| e.eq_ignore_ascii_case("toml"));
        if described {
            let fail = |problem| DataError { file: file.to_path_buf(), problem };
            let data = prepare::described(file).map_err(fail)?;
            return Self::load_prepared(&data, file, specs);
        }
        Self::opened(file, records::open_plain(file, specs), specs)
    }

    /// Opens a file, or a folder of files, whose samples are made into the model's inputs as a
    /// preprocessing file says.
    ///
    /// # Errors
    /// See [`Problem`].
    pub fn load_prepared(
        file: &Path,
        preprocess: &Path,
        specs: &[IoSpec],
    ) -> Result<Self, DataError> {
        Self::opened(file, prepare::open(file, preprocess, specs), specs)
    }

    fn opened(
        file: &Path,
        opened: Result<Opened, Problem>,
        specs: &[IoSpec],
    ) -> Result<Self, DataError> {
        opened
            .and_then(|opened| Self::check(file, opened, specs))
            .map_err(|problem| DataError { file: file.to_path_buf(), problem })
    }

    fn check(file: &Path, mut opened: Opened, specs: &[IoSpec]) -> Result<Self, Problem> {
        let present: Vec<String> = opened.series.iter().map(|(name, _)| name.clone()).collect();
        let mut inputs: Vec<Input> = Vec::with_capacity(specs.len());
        let mut first: Option<(String, usize)> = None;
        for spec in specs {
            let at = opened.series.iter().position(|(name, _)| *name == spec.name);
            let at = at.ok_or_else(|| Problem::MissingInput {
                input: spec.name.clone(),
                present: present.clone(),
            })?;
            let series = opened.series.swap_remove(at).1;
            let samples = series.shape.first().copied().unwrap_or(0);
            inputs.push(check_input(spec, series)?);
            let (name, wanted) = first.get_or_insert((spec.name.clone(), samples));
            same_count(&spec.name, samples, name, *wanted)?;
        }
        let (first, samples) = first.ok_or(Problem::NoInputs)?;
        limit("number of samples", samples as u64, "MAX_SAMPLES", MAX_SAMPLES as u64)?;
        if let Some(labels) = &opened.labels {
            same_count(LABELS, labels.len(), &first, samples)?;
        }
        Ok(Self {
            file: file.to_path_buf(),
            picks: (0..samples).collect(),
            inputs,
            labels: opened.labels,
            texts: opened.texts,
            digest: opened.digest,
        })
    }

    /// Every `every`-th sample apart from the others, for judging on what was not fitted: `(others, held out)`.
    ///
    /// # Errors
    /// There are fewer than `every` samples, so that one side would be empty.
    pub fn hold_out(self, every: usize) -> Result<(Self, Self), DataError> {
        let (heldout, others): (Vec<usize>, Vec<usize>) =
            (0..self.len()).partition(|sample| sample % every == every - 1);
        if heldout.is_empty() || others.is_empty() {
            let problem = Problem::TooFew { samples: self.len(), wanted: every.max(2) };
            return Err(DataError { file: self.file, problem });
        }
        Ok((self.select(&others), self.select(&heldout)))
    }

    fn select(&self, samples: &[usize]) -> Self {
        Self {
            file: self.file.clone(),
            picks: samples.iter().map(|i| self.picks[*i]).collect(),
            inputs: self.inputs.clone(),
            labels: self.labels.as_ref().map(|l| samples.iter().map(|i| l[*i]).collect()),
            texts: self.texts.as_ref().map(|t| samples.iter().map(|i| t[*i].clone()).collect()),
            digest: self.digest,
        }
    }

    /// Number of samples, at least 1.
    pub fn len(&self) -> usize {
        self.picks.len()
    }

    /// Never true: an empty set is refused when it is opened.
    pub fn is_empty(&self) -> bool {
        self.picks.is_empty()
    }

    /// The file or folder it came from.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Digest of the file; of a folder, of its files' names and digests; with preprocessing, of that
    /// file and of what both name as well.
    pub fn digest(&self) -> bundle::Digest {
        self.digest
    }

    /// Class index of each sample, where the data has them.
    pub fn labels(&self) -> Option<&[i64]> {
        self.labels.as_deref()
    }

    /// Text of each sample, where a preprocessing file names them.
    pub fn texts(&self) -> Option<&[String]> {
        self.texts.as_deref()
    }

    /// Whether more than one sample can be run at once.
    pub fn batchable(&self) -> bool {
        self.inputs.iter().all(|i| i.batchable)
    }

    /// The inputs of samples `at`, which must not be empty; more than one only if [`Self::batchable`].
    ///
    /// # Errors
    /// A sample cannot be read any more or turns out damaged (kind [`ErrorKind::Input`]), or the samples
    /// do not make a tensor, which only happens when more than one is asked of a set that cannot be
    /// batched.
    pub fn batch(&self, at: &[usize]) -> Result<Vec<(String, Tensor)>, runtime::EngineError> {
        self.inputs
            .iter()
            .map(|input| {
                let mut shape = input.item.clone();
                if input.own_axis {
                    shape.insert(0, at.len());
                }
                let stride = series::byte_len(input.dtype, &input.item).unwrap_or_default();
                let mut data = Vec::with_capacity(stride.saturating_mul(at.len()));
                for sample in at {
                    input.feed.read(self.picks[*sample], &mut data).map_err(|problem| {
                        let text = format!("{}: {problem}", self.file.display());
                        runtime::EngineError::new(ErrorKind::Input, text)
                    })?;
                }
                Tensor::new(input.dtype, shape, data).map(|t| (input.name.clone(), t))
            })
            .collect()
    }

    /// Bytes of one sample's inputs.
    pub fn sample_bytes(&self) -> usize {
        let sizes = self.inputs.iter().map(|input| series::byte_len(input.dtype, &input.item));
        sizes.map(Option::unwrap_or_default).fold(0, usize::saturating_add)
    }

    /// Groups of up to `batch` neighbouring samples that cover `range` in order.
    pub fn batches(&self, range: std::ops::Range<usize>, batch: usize) -> Vec<Vec<usize>> {
        let size = if self.batchable() { batch.max(1) } else { 1 };
        let all: Vec<usize> = (range.start..range.end.min(self.len())).collect();
        all.chunks(size).map(<[usize]>::to_vec).collect()
    }
}

fn same_count(array: &str, found: usize, other: &str, wanted: usize) -> Result<(), Problem> {
    if found == wanted {
        return Ok(());
    }
    Err(Problem::SampleCount { array: array.to_owned(), found, other: other.to_owned(), wanted })
}

fn check_input(spec: &IoSpec, series: Series) -> Result<Input, Problem> {
    let name = spec.name.clone();
    if series.dtype != spec.dtype {
        return Err(Problem::WrongType {
            array: name,
            found: series.dtype.to_string(),
            wanted: spec.dtype.to_string(),
        });
    }
    let fits = |item: &[usize], dims: &[Option<usize>]| {
        item.len() == dims.len() && dims.iter().zip(item).all(|(d, i)| d.is_none_or(|d| d == *i))
    };
    let free = spec.dims.first().is_some_and(Option::is_none);
    let single = spec.dims.first() == Some(&Some(1));
    let item = series.shape.get(1..).unwrap_or(&[]).to_vec();
    let own_axis = (free || single) && fits(&item, spec.dims.get(1..).unwrap_or(&[]));
    if series.shape.is_empty() || !(own_axis || fits(&item, &spec.dims)) {
        return Err(Problem::WrongShape {
            array: name,
            found: series.shape,
            wanted: dims_text(&spec.dims),
        });
    }
    if series.shape.contains(&0) {
        return Err(Problem::Empty { array: name });
    }
    series.feed.check(&name)?;
    Ok(Input {
        name,
        dtype: series.dtype,
        item,
        batchable: own_axis && free,
        own_axis,
        feed: series.feed,
    })
}

fn dims_text(dims: &[Option<usize>]) -> String {
    let dims: Vec<String> =
        dims.iter().map(|d| d.map_or_else(|| "?".into(), |d| d.to_string())).collect();
    format!("[{}]", dims.join(", "))
}

pub(crate) fn limit(
    what: &str,
    found: u64,
    limit: &'static str,
    allowed: u64,
) -> Result<(), Problem> {
    if found <= allowed {
        return Ok(());
    }
    Err(Problem::Limit { what: what.into(), found, limit, allowed })
}

/// Digest of a file, as a problem of the data.
pub(crate) fn file_digest(file: &Path) -> Result<bundle::Digest, Problem> {
    bundle::Digest::of_file(file).map_err(|e| Problem::Read(std::io::Error::other(e.to_string())))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "data_tests.rs"]
mod tests;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "data_formats_tests.rs"]
mod formats_tests;
