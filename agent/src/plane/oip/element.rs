//! Tensor elements between JSON and little-endian bytes.

use std::fmt;

use engine::{ElementType, Tensor};
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde::ser::{SerializeSeq, Serializer};
use serde::{Deserialize, Serialize};

use crate::plane::strings;

/// One element, as JSON has it.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Scalar<'t> {
    Signed(i64),
    Unsigned(u64),
    Float(f64),
    Bool(bool),
    Text(&'t str),
    Null,
}

impl fmt::Display for Scalar<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Signed(v) => v.fmt(f),
            Self::Unsigned(v) => v.fmt(f),
            Self::Float(v) => v.fmt(f),
            Self::Bool(v) => v.fmt(f),
            Self::Text(_) => f.write_str("a string"),
            Self::Null => f.write_str("null"),
        }
    }
}

/// What the elements of a JSON tensor look like, flat or nested by row as they came. The elements
/// themselves are read in a second pass, once their type is known, straight into their bytes: kept
/// as anything else they would take many times what they took as text.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outline {
    count: usize,
    /// Bytes of all elements that are strings.
    text_bytes: usize,
    /// The length at each level of nesting; one level is flat.
    nesting: Vec<usize>,
}

impl Outline {
    /// How many elements there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    /// Bytes of all elements that are strings.
    #[must_use]
    pub fn text_bytes(&self) -> usize {
        self.text_bytes
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether they are flat, or nested as `shape` says.
    #[must_use]
    pub fn fits(&self, shape: &[usize]) -> bool {
        self.nesting.len() <= 1 || self.nesting == shape
    }

    /// The levels of nesting, as a shape.
    #[must_use]
    pub fn nesting(&self) -> &[usize] {
        &self.nesting
    }
}

/// Collects the elements of a JSON tensor as little-endian bytes of its type, strings as
/// [`tensor_from_parts`](crate::plane::protocol::tensor_from_parts) takes them. Numbers are never
/// rounded into an integer type and never wrap; floats take integers and are rounded to their own
/// precision.
#[derive(Debug)]
pub struct Collector {
    dtype: ElementType,
    bytes: Vec<u8>,
    places: usize,
    /// The first element that is not of the type, with its place and value.
    wrong: Option<String>,
}

impl Collector {
    /// For so many elements of this type.
    #[must_use]
    pub fn new(dtype: ElementType, count: usize) -> Self {
        let size = dtype.size().unwrap_or(size_of::<u32>());
        let bytes = Vec::with_capacity(count.saturating_mul(size));
        Self { dtype, bytes, places: 0, wrong: None }
    }

    /// The bytes.
    ///
    /// # Errors
    /// The first element that is not of the type, with its place and value.
    pub fn finish(self) -> Result<Vec<u8>, String> {
        match self.wrong {
            Some(wrong) => Err(wrong),
            None => Ok(self.bytes),
        }
    }
}

impl<'de> DeserializeSeed<'de> for &mut Collector {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        let mut nesting = Vec::new();
        Level { sink: self, nesting: &mut nesting, depth: 0 }.deserialize(deserializer)?;
        Ok(())
    }
}

/// What elements go to, one by one.
trait Sink {
    fn put(&mut self, scalar: Scalar<'_>);
}

/// Elements, and bytes of those that are strings.
impl Sink for (usize, usize) {
    fn put(&mut self, scalar: Scalar<'_>) {
        self.0 += 1;
        if let Scalar::Text(text) = scalar {
            self.1 += text.len();
        }
    }
}

impl Sink for Collector {
    fn put(&mut self, scalar: Scalar<'_>) {
        if self.wrong.is_none() && put(&mut self.bytes, scalar, self.dtype).is_none() {
            let (place, dtype) = (self.places, self.dtype);
            self.wrong = Some(format!("element {place} is {scalar}, wanted {dtype}"));
        }
        self.places += 1;
    }
}

fn put(bytes: &mut Vec<u8>, scalar: Scalar<'_>, dtype: ElementType) -> Option<()> {
    match dtype {
        ElementType::Bool => match scalar {
            Scalar::Bool(v) => bytes.push(u8::from(v)),
            _ => return None,
        },
        ElementType::I8 => bytes.extend(integer::<i8>(scalar)?.to_le_bytes()),
        ElementType::I16 => bytes.extend(integer::<i16>(scalar)?.to_le_bytes()),
        ElementType::I32 => bytes.extend(integer::<i32>(scalar)?.to_le_bytes()),
        ElementType::I64 => bytes.extend(integer::<i64>(scalar)?.to_le_bytes()),
        ElementType::U8 => bytes.extend(integer::<u8>(scalar)?.to_le_bytes()),
        ElementType::U16 => bytes.extend(integer::<u16>(scalar)?.to_le_bytes()),
        ElementType::U32 => bytes.extend(integer::<u32>(scalar)?.to_le_bytes()),
        ElementType::U64 => bytes.extend(integer::<u64>(scalar)?.to_le_bytes()),
        ElementType::F32 => bytes.extend(single(float(scalar)?)?.to_le_bytes()),
        ElementType::F64 => bytes.extend(float(scalar)?.to_le_bytes()),
        ElementType::String => match scalar {
            Scalar::Text(text) => strings::put(bytes, text),
            _ => return None,
        },
        ElementType::F16 | ElementType::Bf16 => return None,
    }
    Some(())
}

fn integer<T: TryFrom<i64> + TryFrom<u64>>(scalar: Scalar<'_>) -> Option<T> {
    match scalar {
        Scalar::Signed(v) => T::try_from(v).ok(),
        Scalar::Unsigned(v) => T::try_from(v).ok(),
        _ => None,
    }
}

#[allow(clippy::cast_precision_loss)]
fn float(scalar: Scalar<'_>) -> Option<f64> {
    match scalar {
        Scalar::Signed(v) => Some(v as f64),
        Scalar::Unsigned(v) => Some(v as f64),
        Scalar::Float(v) => Some(v),
        _ => None,
    }
}

/// JSON has no infinities, so a number that becomes one was out of range.
#[allow(clippy::cast_possible_truncation)]
fn single(value: f64) -> Option<f32> {
    Some(value as f32).filter(|v| v.is_finite())
}

impl<'de> Deserialize<'de> for Outline {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (mut tally, mut nesting) = ((0, 0), Vec::new());
        let level = Level { sink: &mut tally, nesting: &mut nesting, depth: 0 };
        level.deserialize(deserializer)?;
        let (count, text_bytes) = tally;
        Ok(Self { count, text_bytes, nesting })
    }
}

/// Reads one level of nesting: a scalar, or a list of them or of further levels.
struct Level<'a, S> {
    sink: &'a mut S,
    nesting: &'a mut Vec<usize>,
    depth: usize,
}

impl<'de, S: Sink> DeserializeSeed<'de> for Level<'_, S> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<S: Sink> Level<'_, S> {
    fn scalar<E: Error>(self, scalar: Scalar<'_>) -> Result<bool, E> {
        if self.depth == 0 {
            return Err(E::custom("tensor data must be a list"));
        }
        self.sink.put(scalar);
        Ok(false)
    }
}

/// The value says whether the level was a list.
impl<'de, S: Sink> Visitor<'de> for Level<'_, S> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("tensor elements: numbers, booleans or strings, flat or nested by row")
    }

    fn visit_bool<E: Error>(self, v: bool) -> Result<bool, E> {
        self.scalar(Scalar::Bool(v))
    }

    fn visit_i64<E: Error>(self, v: i64) -> Result<bool, E> {
        self.scalar(Scalar::Signed(v))
    }

    fn visit_u64<E: Error>(self, v: u64) -> Result<bool, E> {
        self.scalar(Scalar::Unsigned(v))
    }

    fn visit_f64<E: Error>(self, v: f64) -> Result<bool, E> {
        self.scalar(Scalar::Float(v))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<bool, E> {
        self.scalar(Scalar::Text(text))
    }

    fn visit_unit<E: Error>(self) -> Result<bool, E> {
        self.scalar(Scalar::Null)
    }

    fn visit_map<A: MapAccess<'de>>(self, _: A) -> Result<bool, A::Error> {
        Err(A::Error::custom("an object is no tensor element"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<bool, A::Error> {
        let Self { sink, nesting, depth } = self;
        let mut length = 0;
        let mut lists = None;
        while let Some(is_list) = seq.next_element_seed(Level {
            sink: &mut *sink,
            nesting: &mut *nesting,
            depth: depth + 1,
        })? {
            if lists.replace(is_list).is_some_and(|was| was != is_list) {
                return Err(A::Error::custom("tensor data mixes lists and elements"));
            }
            length += 1;
        }
        record(nesting, depth, length).map_err(A::Error::custom)?;
        Ok(true)
    }
}

/// Every list of one level must have the same length; the first to be read sets it. Inner lists end
/// before their outer one, so a level may be set before those above it.
fn record(nesting: &mut Vec<usize>, depth: usize, length: usize) -> Result<(), String> {
    const UNSET: usize = usize::MAX;
    if nesting.len() <= depth {
        nesting.resize(depth + 1, UNSET);
    }
    match nesting[depth] {
        UNSET => nesting[depth] = length,
        other if other != length => {
            return Err(format!(
                "rows of {other} and of {length} elements at level {depth} of the data"
            ));
        }
        _ => {}
    }
    Ok(())
}

/// A tensor's elements as a flat JSON list. NaN and infinities, which JSON does not have, become
/// `null`.
#[derive(Debug, Clone, Copy)]
pub struct JsonElements<'a>(
    /// The tensor; its type must be one that [`has_json`] has.
    pub &'a Tensor,
);

/// Whether elements of this type have a JSON form in the protocol.
#[must_use]
pub fn has_json(dtype: ElementType) -> bool {
    !matches!(dtype, ElementType::F16 | ElementType::Bf16)
}

impl Serialize for JsonElements<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let data = &self.0.data;
        match self.0.dtype {
            ElementType::Bool => list(serializer, data, |[b]: [u8; 1]| b != 0),
            ElementType::I8 => list(serializer, data, i8::from_le_bytes),
            ElementType::I16 => list(serializer, data, i16::from_le_bytes),
            ElementType::I32 => list(serializer, data, i32::from_le_bytes),
            ElementType::I64 => list(serializer, data, i64::from_le_bytes),
            ElementType::U8 => list(serializer, data, u8::from_le_bytes),
            ElementType::U16 => list(serializer, data, u16::from_le_bytes),
            ElementType::U32 => list(serializer, data, u32::from_le_bytes),
            ElementType::U64 => list(serializer, data, u64::from_le_bytes),
            ElementType::F32 => list(serializer, data, f32::from_le_bytes),
            ElementType::F64 => list(serializer, data, f64::from_le_bytes),
            ElementType::String => serializer.collect_seq(&self.0.strings),
            dtype @ (ElementType::F16 | ElementType::Bf16) => {
                Err(serde::ser::Error::custom(format!("{dtype} has no JSON form")))
            }
        }
    }
}

fn list<S: Serializer, T: Serialize, const N: usize>(
    serializer: S,
    data: &[u8],
    read: impl Fn([u8; N]) -> T,
) -> Result<S::Ok, S::Error> {
    let mut seq = serializer.serialize_seq(Some(data.len() / N))?;
    for chunk in data.as_chunks::<N>().0 {
        seq.serialize_element(&read(*chunk))?;
    }
    seq.end()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Outline, String> {
        serde_json::from_str(text).map_err(|e| e.to_string())
    }

    fn bytes(text: &str, dtype: ElementType) -> Result<Vec<u8>, String> {
        let mut collector = Collector::new(dtype, parse(text)?.len());
        collector.deserialize(&mut serde_json::Deserializer::from_str(text)).unwrap();
        collector.finish()
    }

    #[test]
    fn flat_and_nested_data_hold_the_same_elements() {
        let flat = parse("[1, 2, 3, 4, 5, 6]").unwrap();
        let nested = parse("[[1, 2, 3], [4, 5, 6]]").unwrap();
        let read = |text| bytes(text, ElementType::I16).unwrap();
        assert_eq!(read("[1, 2, 3, 4, 5, 6]"), read("[[1, 2, 3], [4, 5, 6]]"));
        assert_eq!((flat.len(), nested.len()), (6, 6));
        assert!(flat.fits(&[2, 3]) && nested.fits(&[2, 3]));
        assert!(!nested.fits(&[3, 2]));
    }

    #[test]
    fn ragged_and_mixed_rows_are_refused() {
        assert!(parse("[[1, 2], [3]]").unwrap_err().contains("rows of 2 and of 1"));
        assert!(parse("[1, [2]]").unwrap_err().contains("mixes"));
        assert!(parse("[[1], 2]").unwrap_err().contains("mixes"));
        assert!(parse("7").unwrap_err().contains("must be a list"));
        assert!(parse("[{}]").unwrap_err().contains("object"));
        assert!(parse("[NaN]").is_err());
        assert!(parse(&"[".repeat(1000)).is_err());
    }

    #[test]
    fn an_element_of_another_type_is_named_with_its_place_and_value() {
        let error = |text: &str, dtype| bytes(text, dtype).unwrap_err();
        assert_eq!(error("[1, 2.5]", ElementType::I32), "element 1 is 2.5, wanted INT32");
        assert_eq!(error("[256]", ElementType::U8), "element 0 is 256, wanted UINT8");
        assert_eq!(error("[-1]", ElementType::U64), "element 0 is -1, wanted UINT64");
        assert_eq!(error("[0, null]", ElementType::F32), "element 1 is null, wanted FP32");
        assert_eq!(error("[\"x\"]", ElementType::F32), "element 0 is a string, wanted FP32");
        assert_eq!(error("[1]", ElementType::Bool), "element 0 is 1, wanted BOOL");
        assert_eq!(error("[true]", ElementType::I8), "element 0 is true, wanted INT8");
        assert!(error("[1e39]", ElementType::F32).contains("wanted FP32"));
    }

    #[test]
    fn the_extremes_of_every_type_survive() {
        let round = |text: &str, dtype| {
            let bytes = bytes(text, dtype).unwrap();
            let count = bytes.len() / dtype.size().unwrap();
            let tensor = Tensor::new(dtype, vec![count], bytes).unwrap();
            serde_json::to_string(&JsonElements(&tensor)).unwrap()
        };
        for (text, dtype) in [
            ("[-128,127]", ElementType::I8),
            ("[0,255]", ElementType::U8),
            ("[-32768,32767]", ElementType::I16),
            ("[0,65535]", ElementType::U16),
            ("[-2147483648,2147483647]", ElementType::I32),
            ("[0,4294967295]", ElementType::U32),
            ("[-9223372036854775808,9223372036854775807]", ElementType::I64),
            ("[0,18446744073709551615]", ElementType::U64),
            ("[0.1,-3.4028235e+38]", ElementType::F32),
            ("[0.1,1.7976931348623157e+308]", ElementType::F64),
            ("[true,false]", ElementType::Bool),
            ("[]", ElementType::F32),
        ] {
            assert_eq!(round(text, dtype), text);
        }
    }

    #[test]
    fn strings_are_counted_with_their_bytes_and_survive() {
        let text = r#"[["a","Grüße"],["","\u0000\""]]"#;
        let outline = parse(text).unwrap();
        assert_eq!((outline.len(), outline.text_bytes()), (4, 1 + 7 + 2));
        let tensor = strings::tensor(vec![4], &bytes(text, ElementType::String).unwrap()).unwrap();
        let back = serde_json::to_string(&JsonElements(&tensor)).unwrap();
        assert_eq!(back, r#"["a","Grüße","","\u0000\""]"#);
        let error = bytes("[\"a\", 1]", ElementType::String).unwrap_err();
        assert_eq!(error, "element 1 is 1, wanted BYTES");
    }

    #[test]
    fn what_json_cannot_say_becomes_null() {
        let tensor = Tensor::from_f32(vec![3], &[f32::NAN, f32::INFINITY, 1.0]).unwrap();
        assert_eq!(serde_json::to_string(&JsonElements(&tensor)).unwrap(), "[null,null,1.0]");
    }
}
