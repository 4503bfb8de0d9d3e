//! Samples as they lie in a file, before anything is made of them.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use runtime::{ElementType, IoSpec};

use super::folder::Folder;
use super::series::{Array, FileArray, Series};
use super::{LABELS, Opened, Problem, file_digest, npy, npz, prepare, safetensors, table};

/// One field of one sample.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Raw {
    /// Elements of an array without its sample axis.
    Elements { dtype: ElementType, shape: Vec<usize>, data: Vec<u8> },
    /// Numbers that were text.
    Numbers { shape: Vec<usize>, values: Vec<f64> },
    /// Text.
    Text(String),
    /// A file whose content is the sample.
    File(PathBuf),
}

/// Samples with named fields.
pub(crate) trait Records: Debug + Send + Sync {
    /// Number of samples.
    fn len(&self) -> usize;

    /// Names of the fields, in the order of the file.
    fn fields(&self) -> Vec<String>;

    /// One field of one sample.
    ///
    /// # Errors
    /// There is no such field, or it cannot be read.
    fn get(&self, sample: usize, field: &str) -> Result<Raw, String>;

    /// Several fields of one sample, which a table reads at once.
    ///
    /// # Errors
    /// As [`Self::get`].
    fn get_all(&self, sample: usize, fields: &[String]) -> Result<Vec<Raw>, String> {
        fields.iter().map(|field| self.get(sample, field)).collect()
    }

    /// Class name of each sample, where folders say it.
    fn classes(&self) -> Option<&[String]> {
        None
    }

    /// An array as it is, where the file holds arrays.
    fn series(&self, _field: &str) -> Option<&Series> {
        None
    }

    /// Digest of everything but files that fields name.
    fn digest(&self) -> bundle::Digest;
}

/// Opens a file as named samples.
pub(crate) fn open(file: &Path) -> Result<Arc<dyn Records>, Problem> {
    let metadata = std::fs::metadata(file).map_err(Problem::Read)?;
    if metadata.is_dir() {
        return Ok(Arc::new(Folder::open(file)?));
    }
    let extension = file.extension().map(|e| e.to_string_lossy().to_lowercase());
    Ok(match extension.as_deref() {
        Some("npz" | "npy" | "safetensors") => Arc::new(Arrays::open(file)?),
        Some("wav") => Arc::new(Folder::single(file)?),
        Some("csv") => Arc::new(table::Csv::open(file)?),
        Some("jsonl" | "ndjson") => Arc::new(table::JsonLines::open(file)?),
        _ => return Err(Problem::UnknownFormat),
    })
}

/// Opens a file whose fields are the model's inputs as they are.
pub(crate) fn open_plain(file: &Path, specs: &[IoSpec]) -> Result<Opened, Problem> {
    let metadata = std::fs::metadata(file).map_err(Problem::Read)?;
    let extension = file.extension().map(|e| e.to_string_lossy().to_lowercase());
    let holds = match extension.as_deref() {
        _ if metadata.is_dir() => "images or sound",
        Some("wav") => prepare::SOUND,
        Some("csv" | "jsonl" | "ndjson") => return prepare::open_fields(open(file)?, specs),
        _ => return Arrays::open_or_npz(file, extension.as_deref())?.opened(specs),
    };
    Err(Problem::NeedsPreprocess { holds, example: prepare::example(file, holds, specs) })
}

/// Named arrays.
#[derive(Debug)]
pub(crate) struct Arrays {
    series: BTreeMap<String, Series>,
    digest: bundle::Digest,
    /// Whether the file gives its one array no name.
    unnamed: bool,
}

/// The name under which the array of an `.npy` is known.
pub(crate) const UNNAMED: &str = "array";

impl Arrays {
    fn open(file: &Path) -> Result<Self, Problem> {
        let extension = file.extension().map(|e| e.to_string_lossy().to_lowercase());
        Self::open_or_npz(file, extension.as_deref())
    }

    /// By the extension; what has another one is tried as an `.npz`.
    fn open_or_npz(file: &Path, extension: Option<&str>) -> Result<Self, Problem> {
        let digest = file_digest(file)?;
        let series = match extension {
            Some("npy") => BTreeMap::from([(UNNAMED.to_owned(), open_npy(file)?)]),
            Some("safetensors") => safetensors::open(file)?,
            _ => {
                let arrays = npz::read_npz(file)?;
                arrays.into_iter().map(|(name, array)| (name, Series::from(array))).collect()
            }
        };
        Ok(Self { series, digest, unnamed: extension == Some("npy") })
    }

    fn opened(mut self, specs: &[IoSpec]) -> Result<Opened, Problem> {
        if self.unnamed
            && let [spec] = specs
            && let Some(only) = self.series.remove(UNNAMED)
        {
            self.series.insert(spec.name.clone(), only);
        }
        let labels = self.series.remove(LABELS).map(|s| read_labels(&s)).transpose()?;
        Ok(Opened {
            series: self.series.into_iter().collect(),
            labels,
            texts: None,
            digest: self.digest,
        })
    }
}

impl Records for Arrays {
    fn len(&self) -> usize {
        self.series.values().filter_map(|s| s.shape.first().copied()).max().unwrap_or(0)
    }

    fn fields(&self) -> Vec<String> {
        self.series.keys().cloned().collect()
    }

    fn get(&self, sample: usize, field: &str) -> Result<Raw, String> {
        let series = self.series.get(field).ok_or_else(|| format!("has no array \"{field}\""))?;
        let mut data = Vec::new();
        series.feed.read(sample, &mut data).map_err(|e| e.to_string())?;
        let shape = series.shape.get(1..).unwrap_or(&[]).to_vec();
        Ok(Raw::Elements { dtype: series.dtype, shape, data })
    }

    fn series(&self, field: &str) -> Option<&Series> {
        self.series.get(field)
    }

    fn digest(&self) -> bundle::Digest {
        self.digest
    }
}

fn open_npy(path: &Path) -> Result<Series, Problem> {
    let wrong = |what: String| Problem::Format(format!("the array {what}"));
    let file = File::open(path).map_err(Problem::Read)?;
    let size = file.metadata().map_err(Problem::Read)?.len();
    let mut reader = BufReader::new(&file);
    let (dtype, shape) = npy::read_header(reader.by_ref()).map_err(wrong)?;
    let offset = reader.stream_position().map_err(Problem::Read)?;
    let bytes = npy::claimed(dtype, &shape, size.saturating_sub(offset)).map_err(wrong)?;
    if offset + bytes as u64 != size {
        return Err(wrong(format!("has more elements than its shape {shape:?}")));
    }
    Ok(FileArray { file: Arc::new(file), offset, dtype, shape }.into_series())
}

/// Class indices out of an array.
pub(crate) fn read_labels(series: &Series) -> Result<Vec<i64>, Problem> {
    let wrong = |what: &str| Problem::Array { array: LABELS.into(), what: what.into() };
    let [samples] = series.shape[..] else {
        return Err(wrong("labels are one class index per sample, a single axis"));
    };
    let mut data = Vec::new();
    for sample in 0..samples {
        series.feed.read(sample, &mut data)?;
    }
    let array = Array { dtype: series.dtype, shape: series.shape.clone(), data };
    integers(&array).ok_or_else(|| wrong("labels are class indices of an integer type"))
}

fn integers(array: &Array) -> Option<Vec<i64>> {
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
    Some(match array.dtype {
        ElementType::I8 => ints!(i8, 1),
        ElementType::U8 => ints!(u8, 1),
        ElementType::I16 => ints!(i16, 2),
        ElementType::U16 => ints!(u16, 2),
        ElementType::I32 => ints!(i32, 4),
        ElementType::U32 => ints!(u32, 4),
        ElementType::I64 => ints!(i64, 8),
        _ => return None,
    })
}
