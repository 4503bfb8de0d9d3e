//! The preprocessing file: TOML that says, for each input of the model, how it is made of a sample.
//!
//! Reading and doing are apart: [`Preprocess`] is data, and a prepared feed applies it sample by
//! sample. Every sample is checked as it is made: its shape against the first one's, its numbers for NaN
//! and infinity, and each against the input's element type.

mod steps;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use runtime::{ElementType, IoSpec};
use serde::Deserialize;

use self::steps::{Item, Step};
pub use super::image::Channels;
use super::records::{Raw, Records, UNNAMED, open as open_records, read_labels};
pub use super::resize::Filter;
use super::series::{Feed, Series};
use super::{LABELS, MAX_SAMPLE_ELEMENTS, Opened, Problem, file_digest, folder};

/// What a sound file is said to hold.
pub(crate) const SOUND: &str = "sound";
/// The longest preprocessing file.
pub const MAX_PREPROCESS_BYTES: u64 = 1 << 20;

/// A preprocessing file.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preprocess {
    /// The data, relative to this file, where the file itself is given as the data.
    #[serde(default)]
    pub data: Option<PathBuf>,
    /// Where class indices come from.
    #[serde(default)]
    pub labels: Option<Labels>,
    /// Where reference texts come from.
    #[serde(default)]
    pub texts: Option<Texts>,
    /// How each input is made, by its name in the model.
    #[serde(default)]
    pub input: BTreeMap<String, Making>,
}

/// Where class indices come from.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Labels {
    /// Column, field or array; folders say the class themselves.
    pub source: Option<String>,
    /// Names of the classes in the order of the model's output; without them names are numbers, or
    /// folders in the order of their names.
    pub classes: Option<Vec<String>>,
}

/// Where reference texts come from.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Texts {
    /// Column or field.
    pub source: String,
}

/// How an input is made.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Making {
    /// Of numbers.
    Numbers(Numbers),
    /// Of a picture.
    Image(Image),
    /// Of a sound.
    Audio(Audio),
    /// Of a text.
    Text(Text),
}

/// Numbers, as `(x / scale − mean) / std`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Numbers {
    /// Column, field or array; the input's name without it.
    pub source: Option<String>,
    /// Columns that are put side by side; `["*"]` for all but labels and texts.
    pub columns: Option<Vec<String>>,
    /// Divides each number; 1 without it.
    pub scale: Option<f64>,
    /// One for all, or one per element of the last axis.
    pub mean: Option<OneOrMany>,
    /// As `mean`.
    pub std: Option<OneOrMany>,
    /// Length to which the first axis is padded at its end, or cut.
    pub length: Option<usize>,
    /// The number that pads; 0 without it.
    pub pad: Option<f64>,
    /// Shape of one sample, of as many elements as there are.
    pub shape: Option<Vec<usize>>,
    /// The element type that the input must have.
    pub dtype: Option<ElementType>,
}

/// A picture, as `(x / scale − mean) / std` after resizing and cropping.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Image {
    /// Column or field that names the file, or array of bytes; the file itself in a folder.
    pub source: Option<String>,
    /// Channels that the model sees.
    #[serde(default)]
    pub channels: Channels,
    /// Change of size.
    pub resize: Option<Resize>,
    /// `[height, width]` of the middle that is kept.
    pub crop: Option<[usize; 2]>,
    /// Divides each value from 0 to 255; 255 without it.
    pub scale: Option<f64>,
    /// One for all channels, or one per channel.
    pub mean: Option<OneOrMany>,
    /// As `mean`.
    pub std: Option<OneOrMany>,
    /// Order of the axes.
    #[serde(default)]
    pub layout: Layout,
    /// The element type that the input must have.
    pub dtype: Option<ElementType>,
}

/// Change of a picture's size: `to` stretches, `shorter` keeps the proportions.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resize {
    /// `[height, width]`.
    pub to: Option<[usize; 2]>,
    /// Length of the shorter side.
    pub shorter: Option<usize>,
    /// How pixels are made.
    #[serde(default)]
    pub filter: Filter,
}

/// Order of a picture's axes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// Channels, rows, columns.
    #[default]
    Nchw,
    /// Rows, columns, channels.
    Nhwc,
    /// Rows, columns; for a single channel.
    Nhw,
}

/// A sound from −1 to 1, mono, as `(x − mean) / std`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Audio {
    /// Column or field that names the file; the file itself in a folder.
    pub source: Option<String>,
    /// The rate that the model takes, in Hz.
    pub sample_rate: u32,
    /// Whether a file of another rate is converted; without it that is an error.
    #[serde(default)]
    pub resample: bool,
    /// Samples to which a sound is padded at its end, or cut.
    pub length: Option<usize>,
    /// The value that pads; 0 without it.
    pub pad: Option<f64>,
    /// Subtracted.
    pub mean: Option<f64>,
    /// Divides.
    pub std: Option<f64>,
    /// The element type that the input must have.
    pub dtype: Option<ElementType>,
}

/// A text in pieces of a vocabulary.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Text {
    /// Column or field; the input's name without it.
    pub source: Option<String>,
    /// WordPiece vocabulary, a piece a line; relative to the preprocessing file.
    pub vocabulary: PathBuf,
    /// Whether case and accents are dropped first.
    #[serde(default = "yes")]
    pub lowercase: bool,
    /// Pieces to which a text is padded, or cut.
    pub length: usize,
    /// Which of the tokenizer's outputs.
    #[serde(default)]
    pub part: Part,
    /// The element type that the input must have.
    pub dtype: Option<ElementType>,
}

fn yes() -> bool {
    true
}

/// Which of the tokenizer's outputs an input is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// Indices of pieces.
    #[default]
    Ids,
    /// 1 for a piece, 0 for padding.
    Mask,
    /// The sentence a piece belongs to: 0 for the only one.
    Types,
}

/// One number, or several.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum OneOrMany {
    /// For all.
    One(f64),
    /// One each.
    Many(Vec<f64>),
}

/// The data that a preprocessing file names as its own.
pub(crate) fn described(preprocess: &Path) -> Result<PathBuf, Problem> {
    let (_, parsed) = parse(preprocess)?;
    let data = parsed.data.ok_or_else(|| Problem::Preprocess {
        file: preprocess.to_path_buf(),
        what: "names no data; begin it with data = \"…\", a file or folder relative to it".into(),
    })?;
    Ok(folder_of(preprocess).join(data))
}

fn parse(preprocess: &Path) -> Result<(String, Preprocess), Problem> {
    let wrong = |what| Problem::Preprocess { file: preprocess.to_path_buf(), what };
    let text = read(preprocess).map_err(wrong)?;
    let parsed = toml::from_str(&text).map_err(|e| wrong(e.to_string()))?;
    Ok((text, parsed))
}

/// Opens data that a preprocessing file describes.
pub(crate) fn open(file: &Path, preprocess: &Path, specs: &[IoSpec]) -> Result<Opened, Problem> {
    let wrong = |what| Problem::Preprocess { file: preprocess.to_path_buf(), what };
    let (text, parsed) = parse(preprocess)?;
    let records = open_records(file)?;
    let place = Place {
        data: if file.is_dir() { file.to_path_buf() } else { folder_of(file) },
        preprocess: folder_of(preprocess),
    };
    let mut opened =
        assemble(&records, &parsed, &place, specs).map_err(|problem| match problem {
            Problem::Format(what) => wrong(what),
            other => other,
        })?;
    opened.digest = digest(&opened, &records, &text, &parsed, &place)?;
    Ok(opened)
}

/// Opens a table whose fields are the inputs as they are.
pub(crate) fn open_fields(records: Arc<dyn Records>, specs: &[IoSpec]) -> Result<Opened, Problem> {
    let place = Place { data: PathBuf::new(), preprocess: PathBuf::new() };
    assemble(&records, &Preprocess::default(), &place, specs)
}

/// The folders to which names of files are relative.
struct Place {
    data: PathBuf,
    preprocess: PathBuf,
}

fn folder_of(file: &Path) -> PathBuf {
    file.parent().map(Path::to_path_buf).unwrap_or_default()
}

fn read(path: &Path) -> Result<String, String> {
    use std::io::Read;
    let unreadable = |e: std::io::Error| format!("cannot be read: {e}");
    let file = std::fs::File::open(path).map_err(unreadable)?;
    let mut text = String::new();
    file.take(MAX_PREPROCESS_BYTES + 1).read_to_string(&mut text).map_err(unreadable)?;
    if text.len() as u64 > MAX_PREPROCESS_BYTES {
        return Err(format!("is longer than MAX_PREPROCESS_BYTES = {MAX_PREPROCESS_BYTES}"));
    }
    Ok(text)
}

fn assemble(
    records: &Arc<dyn Records>,
    parsed: &Preprocess,
    place: &Place,
    specs: &[IoSpec],
) -> Result<Opened, Problem> {
    let names: Vec<&str> = specs.iter().map(|s| s.name.as_str()).collect();
    if let Some(unknown) = parsed.input.keys().find(|k| !names.contains(&k.as_str())) {
        return Err(Problem::Format(format!(
            "[input.{unknown}] is for no input of the model; its inputs are {}",
            names.join(", ")
        )));
    }
    if records.len() == 0 {
        return Err(Problem::NoSamples);
    }
    let mut series = Vec::with_capacity(specs.len());
    for spec in specs {
        if let Some(made) = make(records, parsed, place, spec)? {
            series.push((spec.name.clone(), made));
        }
    }
    // What is there but serves no input, for the error that names it.
    let used = |field: &String| names.contains(&field.as_str());
    if series.len() < specs.len() {
        let missing = specs.iter().find(|s| !series.iter().any(|(name, _)| *name == s.name));
        let input = missing.map_or_else(String::new, |s| s.name.clone());
        let present = records.fields().into_iter().filter(|f| !used(f)).collect();
        return Err(Problem::MissingInput { input, present });
    }
    Ok(Opened {
        series,
        labels: labels(records.as_ref(), parsed.labels.as_ref())?,
        texts: parsed.texts.as_ref().map(|t| texts(records.as_ref(), t)).transpose()?,
        digest: records.digest(),
    })
}

/// The series of one input; `None` if nothing is named after it.
fn make(
    records: &Arc<dyn Records>,
    parsed: &Preprocess,
    place: &Place,
    spec: &IoSpec,
) -> Result<Option<Series>, Problem> {
    let plain = Making::Numbers(Numbers::default());
    let making = match parsed.input.get(&spec.name) {
        Some(making) => making,
        None if records.series(&spec.name).is_some() => {
            return Ok(records.series(&spec.name).cloned());
        }
        None if records.fields().contains(&spec.name) => &plain,
        None => return Ok(None),
    };
    let wrong = |what: String| Problem::Format(format!("[input.{}]: {what}", spec.name));
    let fields = records.fields();
    let apart = apart(parsed);
    let step = Step::new(making, spec, &fields, &apart, place).map_err(wrong)?;
    if step.dtype.is_some_and(|dtype| dtype != spec.dtype) {
        let asked = step.dtype.map(|d| d.to_string()).unwrap_or_default();
        return Err(wrong(format!("makes {asked} where the model's input is {}", spec.dtype)));
    }
    let mut prepared = Prepared {
        records: records.clone(),
        input: spec.name.clone(),
        step,
        dtype: spec.dtype,
        item: Vec::new(),
    };
    prepared.item = prepared.item(0)?.shape;
    let mut shape = vec![records.len()];
    shape.extend(&prepared.item);
    Ok(Some(Series { dtype: spec.dtype, shape, feed: Arc::new(prepared) }))
}

/// Fields that are labels or texts and no input.
fn apart(parsed: &Preprocess) -> Vec<String> {
    let labels = parsed.labels.as_ref().and_then(|l| l.source.clone());
    let texts = parsed.texts.as_ref().map(|t| t.source.clone());
    [Some(labels.unwrap_or_else(|| LABELS.into())), texts].into_iter().flatten().collect()
}

/// Samples made one by one.
#[derive(Debug)]
struct Prepared {
    records: Arc<dyn Records>,
    input: String,
    step: Step,
    dtype: ElementType,
    /// Shape of the first sample, which all have.
    item: Vec<usize>,
}

impl Prepared {
    fn item(&self, sample: usize) -> Result<Item, Problem> {
        let item = self.step.make(self.records.as_ref(), sample);
        let item = item.map_err(|(file, what)| self.problem(sample, file, what))?;
        if item.values.len() > MAX_SAMPLE_ELEMENTS {
            return Err(Problem::Limit {
                what: format!("number of elements of \"{}\" in sample {sample}", self.input),
                found: item.values.len() as u64,
                limit: "MAX_SAMPLE_ELEMENTS",
                allowed: MAX_SAMPLE_ELEMENTS as u64,
            });
        }
        Ok(item)
    }

    fn problem(&self, sample: usize, file: Option<PathBuf>, what: String) -> Problem {
        Problem::Sample { input: self.input.clone(), sample, file, what }
    }
}

impl Feed for Prepared {
    fn read(&self, sample: usize, into: &mut Vec<u8>) -> Result<(), Problem> {
        let item = self.item(sample)?;
        if item.shape != self.item {
            let what = format!(
                "has shape {:?} where the first sample has {:?}; give its resize, crop or length",
                item.shape, self.item
            );
            return Err(self.problem(sample, item.file, what));
        }
        let dtype = self.dtype;
        steps::cast(&item.values, dtype, into)
            .map_err(|what| self.problem(sample, item.file.clone(), what))
    }

    fn check(&self, _name: &str) -> Result<(), Problem> {
        let mut bytes = Vec::new();
        for sample in 0..self.records.len() {
            if self.step.is_of_files() {
                self.step
                    .check(self.records.as_ref(), sample)
                    .map_err(|(file, what)| self.problem(sample, file, what))?;
            } else {
                bytes.clear();
                self.read(sample, &mut bytes)?;
            }
        }
        Ok(())
    }
}

fn labels(records: &dyn Records, asked: Option<&Labels>) -> Result<Option<Vec<i64>>, Problem> {
    let classes = asked.and_then(|l| l.classes.as_deref());
    if let Some(names) = records.classes() {
        let mut sorted: Vec<String> = names.to_vec();
        sorted.sort();
        sorted.dedup();
        let of = |name: &String| index(name, Some(classes.unwrap_or(&sorted)));
        return names.iter().map(of).collect::<Result<_, _>>().map(Some).map_err(Problem::Format);
    }
    let source = match asked.and_then(|l| l.source.as_deref()) {
        Some(source) => source,
        None if records.fields().iter().any(|f| f == LABELS) => LABELS,
        None => return Ok(None),
    };
    if let Some(series) = records.series(source) {
        return read_labels(series).map(Some);
    }
    let of = |sample: usize| {
        let fail = |what| Problem::Sample { input: source.to_owned(), sample, file: None, what };
        match records.get(sample, source).map_err(fail)? {
            Raw::Text(name) => index(name.trim(), classes).map_err(fail),
            Raw::Numbers { shape, values } if shape.is_empty() && values[0].fract() == 0.0 => {
                index(&format!("{:.0}", values[0]), classes).map_err(fail)
            }
            _ => Err(fail("is no class: neither a name nor a whole number".into())),
        }
    };
    (0..records.len()).map(of).collect::<Result<_, _>>().map(Some)
}

/// The index of a class by its name, or the number that the name is.
fn index(name: &str, classes: Option<&[String]>) -> Result<i64, String> {
    match classes {
        Some(classes) => {
            let at = classes.iter().position(|c| c == name);
            at.and_then(|at| i64::try_from(at).ok())
                .ok_or_else(|| format!("\"{name}\" is none of the classes"))
        }
        None => name.parse().map_err(|_| {
            format!("\"{name}\" is no class index; name the classes in [labels] classes")
        }),
    }
}

fn texts(records: &dyn Records, asked: &Texts) -> Result<Vec<String>, Problem> {
    let of = |sample: usize| {
        let input = asked.source.clone();
        match records.get(sample, &asked.source) {
            Ok(Raw::Text(text)) => Ok(text),
            Ok(_) => Err(Problem::Sample { input, sample, file: None, what: "is no text".into() }),
            Err(what) => Err(Problem::Sample { input, sample, file: None, what }),
        }
    };
    (0..records.len()).map(of).collect()
}

/// Of the data, the preprocessing, and every file that either names.
fn digest(
    opened: &Opened,
    records: &Arc<dyn Records>,
    text: &str,
    parsed: &Preprocess,
    place: &Place,
) -> Result<bundle::Digest, Problem> {
    let mut lines = format!("{}\n{}\n", opened.digest, bundle::Digest::of(text.as_bytes()));
    for making in parsed.input.values() {
        if let Making::Text(text) = making {
            let vocabulary = file_digest(&place.preprocess.join(&text.vocabulary))?;
            lines.push_str(&format!("{vocabulary}\n"));
        }
        if let (Making::Image(_) | Making::Audio(_), Some(source)) = (making, making.source())
            && source != folder::FILE
            && records.series(source).is_none()
        {
            for sample in 0..records.len() {
                if let Ok(Raw::Text(name)) = records.get(sample, source) {
                    let file = place.data.join(name);
                    let digest = sample_digest(&file).map_err(|what| Problem::Sample {
                        input: source.to_owned(),
                        sample,
                        file: Some(file),
                        what,
                    })?;
                    lines.push_str(&format!("{digest}\n"));
                }
            }
        }
    }
    Ok(bundle::Digest::of(lines.as_bytes()))
}

fn sample_digest(file: &Path) -> Result<bundle::Digest, String> {
    match std::fs::metadata(file) {
        Ok(metadata) if metadata.is_file() => file_digest(file).map_err(|e| e.to_string()),
        Ok(_) => Err("is no regular file".into()),
        Err(error) => Err(format!("cannot be read: {error}")),
    }
}

impl Making {
    fn source(&self) -> Option<&str> {
        match self {
            Self::Numbers(n) => n.source.as_deref(),
            Self::Image(i) => i.source.as_deref(),
            Self::Audio(a) => a.source.as_deref(),
            Self::Text(t) => t.source.as_deref(),
        }
    }
}

/// A preprocessing file for these inputs, as far as the model says it.
pub(crate) fn example(file: &Path, holds: &str, specs: &[IoSpec]) -> String {
    let mut text = format!("data = \"{}\"\n", file.display());
    for spec in specs {
        text.push_str(&format!(
            "[input.\"{}\"]  # takes {}\n",
            spec.name,
            super::dims_text(&spec.dims)
        ));
        if holds == SOUND {
            text.push_str("kind = \"audio\"\nsample_rate = 16000\n");
            continue;
        }
        text.push_str("kind = \"image\"\n");
        if let [_, Some(_), Some(height), Some(width)] = spec.dims[..] {
            text.push_str(&format!("resize = {{ to = [{height}, {width}] }}\n"));
        }
        text.push_str("mean = [0.485, 0.456, 0.406]\nstd = [0.229, 0.224, 0.225]\n");
    }
    text.push_str("with the numbers that the model was trained with");
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "prepare_tests.rs"]
mod tests;
