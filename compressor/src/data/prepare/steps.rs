//! What makes one input of one sample.

use std::path::PathBuf;

use half::{bf16, f16};
use runtime::{ElementType, IoSpec};

use super::{Audio, Image, Layout, Making, Numbers, OneOrMany, Part, Place, Text, UNNAMED};
use crate::data::records::{Raw, Records};
use crate::data::resize::Picture;
use crate::data::wordpiece::WordPiece;
use crate::data::{folder, image, sound};

/// Up to here every whole number is an f64.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// One input of one sample.
pub(super) struct Item {
    pub(super) shape: Vec<usize>,
    pub(super) values: Vec<f64>,
    /// The file that it came from, if it has one of its own.
    pub(super) file: Option<PathBuf>,
}

/// Why a sample has no such input, and the file that is to blame.
pub(super) type Failure = (Option<PathBuf>, String);

/// What a step does, with everything that is the same for all samples made ready.
#[derive(Debug)]
pub(super) struct Step {
    sources: Vec<String>,
    /// To which files named by the data are relative.
    base: PathBuf,
    /// The element type that the file says, if it does.
    pub(super) dtype: Option<ElementType>,
    what: What,
}

#[derive(Debug)]
enum What {
    Numbers { numbers: Numbers, row: bool },
    Image(Image),
    Audio(Audio),
    Text { text: Text, tokenizer: Box<WordPiece> },
}

impl Step {
    /// Checks what a preprocessing file says of an input.
    pub(super) fn new(
        making: &Making,
        spec: &IoSpec,
        fields: &[String],
        apart: &[String],
        place: &Place,
    ) -> Result<Self, String> {
        let sources = sources(making, spec, fields, apart)?;
        let what = match making {
            Making::Numbers(numbers) => {
                divisors(numbers.scale, numbers.std.as_ref())?;
                // A scalar of a table is a row of one for an input with one more axis than samples.
                let row = numbers.shape.is_none() && spec.dims.len() > 1;
                What::Numbers { numbers: numbers.clone(), row }
            }
            Making::Image(image) => {
                check_image(image)?;
                What::Image(image.clone())
            }
            Making::Audio(audio) => {
                divisors(None, audio.std.map(OneOrMany::One).as_ref())?;
                if audio.sample_rate == 0 || audio.sample_rate > sound::MAX_SAMPLE_RATE {
                    let highest = sound::MAX_SAMPLE_RATE;
                    return Err(format!("sample_rate is 1 to MAX_SAMPLE_RATE = {highest}"));
                }
                What::Audio(audio.clone())
            }
            Making::Text(text) => {
                if !(2..=crate::data::MAX_SAMPLE_ELEMENTS).contains(&text.length) {
                    return Err("length is at least 2, for [CLS] and [SEP]".into());
                }
                let path = place.preprocess.join(&text.vocabulary);
                let tokenizer = WordPiece::read(&path, text.lowercase)
                    .map_err(|e| format!("the vocabulary {} {e}", path.display()))?;
                What::Text { text: text.clone(), tokenizer: Box::new(tokenizer) }
            }
        };
        let dtype = match making {
            Making::Numbers(n) => n.dtype,
            Making::Image(i) => i.dtype,
            Making::Audio(a) => a.dtype,
            Making::Text(t) => t.dtype,
        };
        Ok(Self { sources, base: place.data.clone(), dtype, what })
    }

    /// Whether a sample costs the decoding of a file.
    pub(super) fn is_of_files(&self) -> bool {
        matches!(self.what, What::Image(_) | What::Audio(_))
    }

    /// Makes the input of one sample.
    pub(super) fn make(&self, records: &dyn Records, sample: usize) -> Result<Item, Failure> {
        let first = || self.field(records, sample).map_err(|e| (None, e));
        match &self.what {
            What::Numbers { numbers, row } => {
                self.numbers(records, sample, numbers, *row).map_err(|e| (None, e))
            }
            What::Image(image) => self.image(first()?, image),
            What::Audio(audio) => self.audio(first()?, audio),
            What::Text { text, tokenizer } => {
                let Raw::Text(read) = first()? else {
                    return Err((None, "is no text".into()));
                };
                let encoded = tokenizer.encode(&read, text.length);
                let values = match text.part {
                    Part::Ids => encoded.ids,
                    Part::Mask => encoded.mask,
                    Part::Types => vec![0; text.length],
                };
                let values = values.into_iter().map(|v| v as f64).collect();
                Ok(Item { shape: vec![text.length], values, file: None })
            }
        }
    }

    /// Looks at a sample's file without decoding it.
    pub(super) fn check(&self, records: &dyn Records, sample: usize) -> Result<(), Failure> {
        let raw = self.field(records, sample).map_err(|e| (None, e))?;
        let Some(path) = self.path(&raw) else { return Ok(()) };
        let checked = match &self.what {
            What::Audio(audio) => sound::check(&path).and_then(|rate| same_rate(audio, rate)),
            _ => image::check(&path),
        };
        checked.map_err(|what| (Some(path), what))
    }

    fn field(&self, records: &dyn Records, sample: usize) -> Result<Raw, String> {
        let source = self.sources.first().ok_or("has no source")?;
        records.get(sample, source)
    }

    fn path(&self, raw: &Raw) -> Option<PathBuf> {
        match raw {
            Raw::File(path) => Some(path.clone()),
            Raw::Text(name) => Some(self.base.join(name)),
            _ => None,
        }
    }

    fn numbers(
        &self,
        records: &dyn Records,
        sample: usize,
        numbers: &Numbers,
        row: bool,
    ) -> Result<Item, String> {
        let (mut shape, mut values) = if numbers.columns.is_some() {
            let row = records.get_all(sample, &self.sources)?;
            let mut values = Vec::with_capacity(row.len());
            for (raw, source) in row.into_iter().zip(&self.sources) {
                let column = |e| format!("column \"{source}\": {e}");
                values.extend(parsed(raw).map_err(column)?.1);
            }
            (vec![values.len()], values)
        } else {
            parsed(self.field(records, sample)?)?
        };
        if let Some(wanted) = &numbers.shape {
            let elements = wanted.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
            if elements != Some(values.len()) {
                return Err(format!("has {} numbers, which are no {wanted:?}", values.len()));
            }
            shape.clone_from(wanted);
        } else if shape.is_empty() && row {
            shape.push(1);
        }
        if let Some(length) = numbers.length {
            let Some(first) = shape.first_mut() else {
                return Err("is a single number, which has no length".into());
            };
            let per: usize = values.len().checked_div(*first).unwrap_or(1);
            fit(&mut values, length, per, numbers.pad.unwrap_or(0.0))?;
            *first = length;
        }
        let last = shape.last().copied().unwrap_or(1);
        let scale = numbers.scale.unwrap_or(1.0);
        normalise(&mut values, last, scale, numbers.mean.as_ref(), numbers.std.as_ref())?;
        Ok(Item { shape, values, file: None })
    }

    fn image(&self, raw: Raw, wanted: &Image) -> Result<Item, Failure> {
        let file = self.path(&raw);
        let picture = match (&file, &raw) {
            (Some(path), _) => image::read(path, wanted.channels),
            (None, Raw::Elements { dtype: ElementType::U8, shape, data }) => {
                image::of_array(shape, data, wanted.channels)
            }
            _ => Err("is neither a file nor an array of bytes".into()),
        };
        match picture.and_then(|picture| framed(picture, wanted)) {
            Ok((shape, values)) => Ok(Item { shape, values, file }),
            Err(what) => Err((file, what)),
        }
    }

    fn audio(&self, raw: Raw, wanted: &Audio) -> Result<Item, Failure> {
        let Some(path) = self.path(&raw) else {
            return Err((None, "is no file".into()));
        };
        let heard = || {
            let sound = sound::read(&path)?;
            same_rate(wanted, sound.rate)?;
            let sound = sound.resampled(wanted.sample_rate);
            let mut values: Vec<f64> = sound.samples.iter().map(|v| f64::from(*v)).collect();
            let length = wanted.length.unwrap_or(values.len());
            fit(&mut values, length, 1, wanted.pad.unwrap_or(0.0))?;
            let [mean, std] = [wanted.mean, wanted.std].map(|v| v.map(OneOrMany::One));
            normalise(&mut values, 1, 1.0, mean.as_ref(), std.as_ref())?;
            Ok((vec![length], values))
        };
        match heard() {
            Ok((shape, values)) => Ok(Item { shape, values, file: Some(path) }),
            Err(what) => Err((Some(path), what)),
        }
    }
}

/// The fields an input is made of.
fn sources(
    making: &Making,
    spec: &IoSpec,
    fields: &[String],
    apart: &[String],
) -> Result<Vec<String>, String> {
    let named = match making {
        Making::Numbers(Numbers { columns: Some(columns), source: None, .. }) => {
            match columns.as_slice() {
                [all] if all == "*" => {
                    fields.iter().filter(|f| !apart.contains(f)).cloned().collect()
                }
                _ => columns.clone(),
            }
        }
        Making::Numbers(Numbers { columns: Some(_), source: Some(_), .. }) => {
            return Err("source and columns exclude each other".into());
        }
        _ => {
            let only = [folder::FILE, UNNAMED].into_iter().find(|o| fields == [o.to_owned()]);
            let source = making.source().or(only).unwrap_or(&spec.name);
            vec![source.to_owned()]
        }
    };
    if named.is_empty() {
        return Err("names no columns".into());
    }
    match named.iter().find(|name| !fields.contains(name)) {
        Some(missing) => {
            Err(format!("the data has no \"{missing}\"; it has {}", fields.join(", ")))
        }
        None => Ok(named),
    }
}

fn check_image(image: &Image) -> Result<(), String> {
    divisors(image.scale, image.std.as_ref())?;
    let sides = image.resize.iter().flat_map(|r| r.to.into_iter().flatten().chain(r.shorter));
    let sides = sides.chain(image.crop.into_iter().flatten());
    let longest = image::MAX_IMAGE_SIDE;
    if let Some(side) = sides.into_iter().find(|s| *s == 0 || *s > longest) {
        return Err(format!("a side of {side} is none of 1 to MAX_IMAGE_SIDE = {longest}"));
    }
    match &image.resize {
        Some(r) if r.to.is_some() == r.shorter.is_some() => {
            Err("resize has either to = [height, width] or shorter = length".into())
        }
        _ => Ok(()),
    }
}

fn divisors(scale: Option<f64>, std: Option<&OneOrMany>) -> Result<(), String> {
    let std: &[f64] = match std {
        Some(OneOrMany::One(one)) => &[*one],
        Some(OneOrMany::Many(many)) => many,
        None => &[],
    };
    match scale.iter().chain(std).find(|v| **v == 0.0 || !v.is_finite()) {
        Some(bad) => Err(format!("scale and std divide and cannot be {bad}")),
        None => Ok(()),
    }
}

/// Shape and numbers of a field.
fn parsed(raw: Raw) -> Result<(Vec<usize>, Vec<f64>), String> {
    match raw {
        Raw::Numbers { shape, values } => Ok((shape, values)),
        Raw::Text(text) => {
            let number = text.trim().parse();
            number.map(|v| (Vec::new(), vec![v])).map_err(|_| format!("\"{text}\" is no number"))
        }
        Raw::Elements { dtype, shape, data } => {
            let tensor = runtime::Tensor::new(dtype, shape.clone(), data);
            let values = tensor.and_then(|t| t.to_f64_lossy()).map_err(|e| e.to_string())?;
            Ok((shape, values))
        }
        Raw::File(_) => {
            Err("is a file, of which kind = \"image\" or \"audio\" makes numbers".into())
        }
    }
}

/// Resized, cropped, normalised and laid out.
fn framed(mut picture: Picture, wanted: &Image) -> Result<(Vec<usize>, Vec<f64>), String> {
    if let Some(resize) = &wanted.resize {
        let [height, width] = match (resize.to, resize.shorter) {
            (Some(to), _) => to,
            (None, Some(shorter)) => proportional(&picture, shorter)?,
            (None, None) => [picture.height, picture.width],
        };
        picture = picture.resized(height, width, resize.filter);
    }
    if let Some([height, width]) = wanted.crop {
        let (h, w) = (picture.height, picture.width);
        picture = picture.cropped(height, width).ok_or_else(|| {
            format!("is {w} by {h} pixels, too small for a crop of {width} by {height}")
        })?;
    }
    let Picture { height, width, channels, pixels } = picture;
    let mut values: Vec<f64> = pixels.into_iter().map(f64::from).collect();
    let scale = wanted.scale.unwrap_or(255.0);
    normalise(&mut values, channels, scale, wanted.mean.as_ref(), wanted.std.as_ref())?;
    Ok(match wanted.layout {
        Layout::Nhwc => (vec![height, width, channels], values),
        Layout::Nhw if channels == 1 => (vec![height, width], values),
        Layout::Nhw => return Err("layout nhw is for channels = \"gray\"".into()),
        Layout::Nchw => {
            let plane = |c: usize| values.iter().skip(c).step_by(channels).copied();
            (vec![channels, height, width], (0..channels).flat_map(plane).collect())
        }
    })
}

fn proportional(picture: &Picture, shorter: usize) -> Result<[usize; 2], String> {
    let side = picture.height.min(picture.width);
    let scaled = |v: usize| (v as f64 * shorter as f64 / side as f64).round() as usize;
    let [height, width] = [scaled(picture.height), scaled(picture.width)];
    if height.max(width) > image::MAX_IMAGE_SIDE {
        return Err(format!(
            "becomes {width} by {height} pixels, more than MAX_IMAGE_SIDE = {}",
            image::MAX_IMAGE_SIDE
        ));
    }
    Ok([height, width])
}

fn same_rate(wanted: &Audio, rate: u32) -> Result<(), String> {
    if rate == wanted.sample_rate || wanted.resample {
        return Ok(());
    }
    let wanted = wanted.sample_rate;
    Err(format!("has {rate} Hz where the model takes {wanted}; convert it with resample = true"))
}

/// Cuts or pads to `length` rows of `per` numbers.
fn fit(values: &mut Vec<f64>, length: usize, per: usize, pad: f64) -> Result<(), String> {
    let elements = length.saturating_mul(per);
    if elements > crate::data::MAX_SAMPLE_ELEMENTS {
        let allowed = crate::data::MAX_SAMPLE_ELEMENTS;
        return Err(format!(
            "would have {elements} numbers, more than MAX_SAMPLE_ELEMENTS = {allowed}"
        ));
    }
    values.resize(elements, pad);
    Ok(())
}

/// `(x / scale − mean) / std`, where mean and std repeat along `last` numbers.
fn normalise(
    values: &mut [f64],
    last: usize,
    scale: f64,
    mean: Option<&OneOrMany>,
    std: Option<&OneOrMany>,
) -> Result<(), String> {
    let spread = |given: Option<&OneOrMany>, without: f64, name: &str| match given {
        None => Ok(vec![without]),
        Some(OneOrMany::One(one)) => Ok(vec![*one]),
        Some(OneOrMany::Many(many)) if many.len() == last => Ok(many.clone()),
        Some(OneOrMany::Many(many)) => {
            Err(format!("{name} has {} numbers, and the last axis {last}", many.len()))
        }
    };
    let (mean, std) = (spread(mean, 0.0, "mean")?, spread(std, 1.0, "std")?);
    for (at, value) in values.iter_mut().enumerate() {
        *value = (*value / scale - mean[at % mean.len()]) / std[at % std.len()];
    }
    Ok(())
}

/// Appends numbers as elements of a type.
///
/// # Errors
/// One is NaN or infinite, or the type does not hold it.
pub(super) fn cast(values: &[f64], dtype: ElementType, into: &mut Vec<u8>) -> Result<(), String> {
    if let Some(at) = values.iter().position(|v| !v.is_finite()) {
        return Err(format!("holds {} at element {at}; clean the data first", values[at]));
    }
    let whole = |low: f64, high: f64| match values
        .iter()
        .position(|v| v.fract() != 0.0 || *v < low || *v > high)
    {
        Some(at) => Err(format!("holds {} at element {at}, which no {dtype} is", values[at])),
        None => Ok(()),
    };
    macro_rules! integers {
        ($t:ty) => {{
            whole((<$t>::MIN as f64).max(-EXACT), (<$t>::MAX as f64).min(EXACT))?;
            values.iter().for_each(|v| into.extend((*v as $t).to_le_bytes()));
        }};
    }
    macro_rules! floats {
        ($from:expr) => {{
            for (at, value) in values.iter().enumerate() {
                let element = $from(*value);
                if !element.is_finite() {
                    return Err(format!("holds {value} at element {at}, too large for {dtype}"));
                }
                into.extend(element.to_le_bytes());
            }
        }};
    }
    match dtype {
        ElementType::F32 => floats!(|v: f64| v as f32),
        ElementType::F64 => floats!(|v: f64| v),
        ElementType::F16 => floats!(f16::from_f64),
        ElementType::Bf16 => floats!(bf16::from_f64),
        ElementType::I8 => integers!(i8),
        ElementType::I16 => integers!(i16),
        ElementType::I32 => integers!(i32),
        ElementType::I64 => integers!(i64),
        ElementType::U8 => integers!(u8),
        ElementType::U16 => integers!(u16),
        ElementType::U32 => integers!(u32),
        ElementType::U64 => integers!(u64),
        ElementType::Bool => {
            whole(0.0, 1.0)?;
            into.extend(values.iter().map(|v| u8::from(*v == 1.0)));
        }
        ElementType::String => return Err("inputs of text are not made of numbers".into()),
    }
    Ok(())
}
