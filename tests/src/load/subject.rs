//! The models that are asked, and what they are asked.

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, Result, anyhow};
use graph::{AttributeValue, Builder, DType, Dim};
use runtime::{ElementType, Tensor};

/// A model that load is made with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// Two dense layers, 16 to 32 to 4, made here: as small as a model gets that computes something.
    Tiny,
    /// PP-OCRv4's classifier of text direction, from its file: a small convolutional net.
    Cls(PathBuf),
    /// The maximum of so many numbers, made here: next to nothing is computed, and much is carried.
    Wide(usize),
}

/// The most numbers that [`Subject::Wide`] takes.
const MAX_WIDE: usize = 16 << 20;

/// Widths of the tiny model.
const TINY: [usize; 3] = [16, 32, 4];
/// The classifier's input: one line of text.
const LINE: [usize; 4] = [1, 3, 48, 192];

impl FromStr for Subject {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "tiny" => Ok(Self::Tiny),
            path if path.ends_with("ppocr_cls.onnx") => Ok(Self::Cls(path.into())),
            _ => match text.strip_prefix("wide:").map(str::parse) {
                Some(Ok(count)) if (1..=MAX_WIDE).contains(&count) => Ok(Self::Wide(count)),
                _ => Err(format!(
                    "{text:?} is neither tiny, nor the path of a ppocr_cls.onnx, nor wide:COUNT (1 to {MAX_WIDE})"
                )),
            },
        }
    }
}

impl Subject {
    /// What it is served as.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Tiny => "tiny",
            Self::Cls(_) => "cls",
            Self::Wide(_) => "wide",
        }
    }

    /// The ONNX file's content.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn bytes(&self) -> Result<Vec<u8>> {
        match self {
            Self::Tiny => tiny(),
            Self::Wide(count) => wide(*count),
            Self::Cls(path) => {
                std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
            }
        }
    }

    /// One request's input: its name, and numbers between -1 and 1 that are always the same.
    ///
    /// # Errors
    /// None that a known model brings.
    pub fn input(&self) -> Result<(&'static str, Tensor)> {
        let shape = match self {
            Self::Tiny => vec![1, TINY[0]],
            Self::Cls(_) => LINE.to_vec(),
            Self::Wide(count) => vec![1, *count],
        };
        let count = shape.iter().product();
        let data = numbers(count, 7).iter().flat_map(|x| x.to_le_bytes()).collect();
        Ok(("x", Tensor::new(ElementType::F32, shape, data)?))
    }
}

fn tiny() -> Result<Vec<u8>> {
    let mut builder = Builder::new(17);
    let rows = Dim::Symbol("N".into());
    let mut value = builder.input("x", DType::F32, vec![rows, Dim::Fixed(TINY[0])]);
    for (layer, widths) in TINY.windows(2).enumerate() {
        let (from, to) = (widths[0], widths[1]);
        let seed = u32::try_from(layer)?;
        let weights = graph::Tensor::from_f32(vec![from, to], &numbers(from * to, seed))?;
        let weights = builder.constant("w", weights)?;
        let bias = builder.constant("b", graph::Tensor::from_f32(vec![to], &numbers(to, seed))?)?;
        value = builder.node("Gemm", &[value, weights, bias], [])?;
        if layer + 2 < TINY.len() {
            value = builder.node("Relu", &[value], [])?;
        }
    }
    builder.rename(value, "y")?;
    let model = builder.finish(&[value]).map_err(|found| anyhow!("the tiny model: {found:?}"))?;
    Ok(model.to_bytes()?)
}

fn wide(count: usize) -> Result<Vec<u8>> {
    let mut builder = Builder::new(17);
    let x = builder.input("x", DType::F32, vec![Dim::Fixed(1), Dim::Fixed(count)]);
    let y = builder.node("ReduceMax", &[x], [("axes", AttributeValue::Ints(vec![1]))])?;
    builder.rename(y, "y")?;
    let model = builder.finish(&[y]).map_err(|found| anyhow!("the wide model: {found:?}"))?;
    Ok(model.to_bytes()?)
}

/// Numbers between -1 and 1: a linear congruence (Numerical Recipes' constants), its high bits.
fn numbers(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        // 16 bits are exact in a float.
        f32::from(u16::try_from(state >> 16).unwrap_or(0)) / 32_768.0 - 1.0
    };
    (0..count).map(next).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use runtime::{EngineKind, EngineOptions, LoadOptions};

    use super::*;

    #[test]
    fn the_tiny_model_is_a_few_kilobytes_and_answers_the_same_bytes_each_time() {
        let bytes = Subject::Tiny.bytes().unwrap();
        assert!(bytes.len() < 4096, "{} bytes", bytes.len());
        assert_eq!(bytes, Subject::Tiny.bytes().unwrap());
        let engine = runtime::open(&EngineOptions::new(EngineKind::Tract)).unwrap();
        let mut session = engine.load_bytes(&bytes, &LoadOptions::default()).unwrap();
        let (name, input) = Subject::Tiny.input().unwrap();
        let first = session.run(&[(name, &input)]).unwrap();
        assert_eq!(first[0].0, "y");
        assert_eq!(first[0].1.shape, [1, 4]);
        assert_eq!(first, session.run(&[(name, &input)]).unwrap());
    }

    #[test]
    fn the_wide_model_takes_as_many_numbers_as_it_is_asked_to() {
        let model: Subject = "wide:1000".parse().unwrap();
        let engine = runtime::open(&EngineOptions::new(EngineKind::Tract)).unwrap();
        let bytes = model.bytes().unwrap();
        let mut session = engine.load_bytes(&bytes, &LoadOptions::default()).unwrap();
        let (name, input) = model.input().unwrap();
        let most = input.to_f32().unwrap().into_iter().fold(f32::MIN, f32::max);
        assert_eq!(session.run(&[(name, &input)]).unwrap()[0].1.to_f32().unwrap(), [most]);
        assert!("wide:0".parse::<Subject>().is_err() && "wide:x".parse::<Subject>().is_err());
    }

    #[test]
    fn a_model_that_is_not_known_is_named() {
        let error = "resnet.onnx".parse::<Subject>().unwrap_err();
        assert!(error.contains("resnet.onnx"), "{error}");
    }
}
