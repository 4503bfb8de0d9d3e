//! Tensor elements between JSON and little-endian bytes.
//!
//! What comes in is text whose syntax the JSON parser has checked already. It is walked twice: once to see how
//! much there is, and, once its type is known and its room is granted, straight into bytes. Kept as anything
//! else, elements would take many times what they took as text.

use std::borrow::Cow;
use std::fmt;

use engine::{ElementType, Tensor};
use serde::Serialize;
use serde::ser::{SerializeSeq, Serializer};

use crate::plane::protocol::MAX_RANK;
use crate::plane::strings;

/// One element that is no string, as JSON has it.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Scalar {
    Signed(i64),
    Unsigned(u64),
    Float(f64),
    Bool(bool),
    Text,
    Null,
}

impl Scalar {
    fn of(element: &str) -> Self {
        match element {
            "true" => Self::Bool(true),
            "false" => Self::Bool(false),
            "null" => Self::Null,
            // An integer has no sign for its zero.
            "-0" => Self::Float(-0.0),
            _ if element.starts_with('"') => Self::Text,
            _ => element
                .parse()
                .map(Self::Unsigned)
                .or_else(|_| element.parse().map(Self::Signed))
                .unwrap_or_else(|_| Self::Float(number(element).unwrap_or(f64::NAN))),
        }
    }
}

impl fmt::Display for Scalar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Signed(v) => v.fmt(f),
            Self::Unsigned(v) => v.fmt(f),
            Self::Float(v) => v.fmt(f),
            Self::Bool(v) => v.fmt(f),
            Self::Text => f.write_str("a string"),
            Self::Null => f.write_str("null"),
        }
    }
}

/// What the elements of a JSON tensor look like, flat or nested by row as they came.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outline {
    count: usize,
    /// Bytes of all elements that are strings.
    text_bytes: usize,
    /// The length at each level of nesting; one level is flat.
    nesting: Vec<usize>,
}

impl Outline {
    /// Of JSON whose syntax is known to be right.
    ///
    /// # Errors
    /// It is no list, or its lists are no tensor.
    pub fn of(json: &str) -> Result<Self, String> {
        if let Some(count) = flat_words(json) {
            return Ok(Self { count, text_bytes: 0, nesting: vec![count] });
        }
        let (mut count, mut text_bytes) = (0, 0);
        let nesting = walk(json, |element| {
            count += 1;
            if element.starts_with('"') {
                text_bytes += text(element).map_or(element.len(), |text| text.len());
            }
        })?;
        Ok(Self { count, text_bytes, nesting })
    }

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

/// The elements of a JSON tensor, `count` of them, as little-endian bytes of its type, strings as
/// [`tensor_from_parts`](crate::plane::protocol::tensor_from_parts) takes them. Numbers are never
/// rounded into an integer type and never wrap; floats take integers and are rounded to their own
/// precision.
///
/// # Errors
/// The first element that is not of the type, with its place and value.
pub fn bytes_of(json: &str, dtype: ElementType, count: usize) -> Result<Vec<u8>, String> {
    let size = dtype.size().unwrap_or(size_of::<u32>());
    let mut bytes = Vec::with_capacity(count.saturating_mul(size));
    let mut place = 0_usize;
    let mut wrong = None;
    walk(json, |element| {
        if wrong.is_none() && put(&mut bytes, element, dtype).is_none() {
            wrong = Some(format!("element {place} is {}, wanted {dtype}", Scalar::of(element)));
        }
        place += 1;
    })?;
    wrong.map_or(Ok(bytes), Err)
}

fn put(bytes: &mut Vec<u8>, element: &str, dtype: ElementType) -> Option<()> {
    match dtype {
        ElementType::Bool => match Scalar::of(element) {
            Scalar::Bool(v) => bytes.push(u8::from(v)),
            _ => return None,
        },
        ElementType::I8 => bytes.extend(integer::<i8>(element)?.to_le_bytes()),
        ElementType::I16 => bytes.extend(integer::<i16>(element)?.to_le_bytes()),
        ElementType::I32 => bytes.extend(integer::<i32>(element)?.to_le_bytes()),
        ElementType::I64 => bytes.extend(integer::<i64>(element)?.to_le_bytes()),
        ElementType::U8 => bytes.extend(integer::<u8>(element)?.to_le_bytes()),
        ElementType::U16 => bytes.extend(integer::<u16>(element)?.to_le_bytes()),
        ElementType::U32 => bytes.extend(integer::<u32>(element)?.to_le_bytes()),
        ElementType::U64 => bytes.extend(integer::<u64>(element)?.to_le_bytes()),
        ElementType::F32 => bytes.extend(single(number(element)?)?.to_le_bytes()),
        ElementType::F64 => {
            bytes.extend(number(element).filter(|v| v.is_finite())?.to_le_bytes());
        }
        ElementType::String => strings::put(bytes, &text(element)?),
        ElementType::F16 | ElementType::Bf16 => return None,
    }
    Some(())
}

fn integer<T: TryFrom<i64> + TryFrom<u64>>(element: &str) -> Option<T> {
    match Scalar::of(element) {
        Scalar::Signed(v) => T::try_from(v).ok(),
        Scalar::Unsigned(v) => T::try_from(v).ok(),
        _ => None,
    }
}

/// A number, whose digits are read as precisely as there are.
fn number(element: &str) -> Option<f64> {
    // Words are none, though some of those that JSON does not have would be read as one.
    element.parse().ok().filter(|_| element.starts_with(|c: char| c == '-' || c.is_ascii_digit()))
}

/// A string without its quotes and escapes; `None` for anything else, and for one that is no Unicode.
fn text(element: &str) -> Option<Cow<'_, str>> {
    let inside = element.strip_prefix('"')?.strip_suffix('"')?;
    if inside.contains('\\') {
        return serde_json::from_str(element).ok().map(Cow::Owned);
    }
    Some(Cow::Borrowed(inside))
}

/// JSON has no infinities, so a number that becomes one was out of range.
#[allow(clippy::cast_possible_truncation)]
fn single(value: f64) -> Option<f32> {
    Some(value as f32).filter(|v| v.is_finite())
}

/// A list that is being read.
#[derive(Debug, Default)]
struct List {
    length: usize,
    /// Whether its members are lists; unknown before the first.
    of_lists: Option<bool>,
}

impl List {
    fn add(&mut self, list: bool) -> Result<(), String> {
        if self.of_lists.replace(list).is_some_and(|was| was != list) {
            return Err("tensor data mixes lists and elements".to_owned());
        }
        self.length += 1;
        Ok(())
    }
}

/// Passes each element's text on, in order, and says how they are nested.
fn walk<'t>(json: &'t str, mut element: impl FnMut(&'t str)) -> Result<Vec<usize>, String> {
    let no_list = || "tensor data must be a list".to_owned();
    let bytes = json.as_bytes();
    let (mut open, mut nesting): (Vec<List>, Vec<usize>) = (Vec::new(), Vec::new());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b' ' | b'\t' | b'\n' | b'\r' | b',' => at += 1,
            b'[' => {
                if open.len() == MAX_RANK {
                    return Err(format!("tensor data is nested over {MAX_RANK} levels (MAX_RANK)"));
                }
                open.last_mut().map_or(Ok(()), |outer| outer.add(true))?;
                open.push(List::default());
                at += 1;
            }
            b']' => {
                let list = open.pop().ok_or_else(no_list)?;
                record(&mut nesting, open.len(), list.length)?;
                at += 1;
            }
            b'{' => return Err("an object is no tensor element".to_owned()),
            _ => {
                open.last_mut().ok_or_else(no_list)?.add(false)?;
                let length = length_of(&bytes[at..]);
                element(json.get(at..at + length).ok_or_else(no_list)?);
                at += length;
            }
        }
    }
    if nesting.is_empty() || !open.is_empty() {
        return Err(no_list());
    }
    Ok(nesting)
}

/// How many elements a list has that holds numbers and words only, as most do: then a comma is always between
/// two of them. `None` for any other list.
fn flat_words(json: &str) -> Option<usize> {
    let inside = json.trim_ascii().strip_prefix('[')?.strip_suffix(']')?;
    let mut commas = 0;
    for &byte in inside.as_bytes() {
        if SPECIAL[usize::from(byte)] {
            if byte != b',' {
                return None;
            }
            commas += 1;
        }
    }
    Some(if inside.trim_ascii().is_empty() { 0 } else { commas + 1 })
}

/// Which bytes stand between elements, or begin what is neither a number nor a word.
const SPECIAL: [bool; 256] = table(b",[]{}\"");
/// Which bytes end a word.
const ENDS: [bool; 256] = table(b",] \t\n\r");

const fn table(bytes: &[u8]) -> [bool; 256] {
    let mut table = [false; 256];
    let mut at = 0;
    while at < bytes.len() {
        table[bytes[at] as usize] = true;
        at += 1;
    }
    table
}

/// The length of the string or the word that `bytes` begin with; at least one.
fn length_of(bytes: &[u8]) -> usize {
    if bytes.first() != Some(&b'"') {
        let mut length = 1;
        for &byte in bytes.iter().skip(1) {
            if ENDS[usize::from(byte)] {
                break;
            }
            length += 1;
        }
        return length;
    }
    let mut escaped = false;
    for (at, &byte) in bytes.iter().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    bytes.len()
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
    use proptest::prelude::*;
    use serde_json::value::RawValue;

    use super::*;

    fn parse(text: &str) -> Result<Outline, String> {
        let json: &RawValue = serde_json::from_str(text).map_err(|e| e.to_string())?;
        Outline::of(json.get())
    }

    fn bytes(text: &str, dtype: ElementType) -> Result<Vec<u8>, String> {
        bytes_of(text, dtype, parse(text)?.len())
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
        let deep = ["[".repeat(MAX_RANK + 1), "]".repeat(MAX_RANK + 1)].concat();
        assert!(parse(&deep).unwrap_err().contains("MAX_RANK"));
        assert!(parse(&deep[1..deep.len() - 1]).is_ok());
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
        assert_eq!(error("[1e999]", ElementType::F64), "element 0 is inf, wanted FP64");
        assert_eq!(error("[-0]", ElementType::I32), "element 0 is -0, wanted INT32");
        assert!(error("[18446744073709551616]", ElementType::U64).contains("wanted UINT64"));
        assert_eq!(
            error(r#"["\ud800"]"#, ElementType::String),
            "element 0 is a string, wanted BYTES"
        );
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

    #[test]
    fn text_that_was_not_checked_does_no_harm() {
        for text in ["", "]", "[", "[\"", "[\"\\", "}", "[}", "[é", "[1]]", "[\"a", "1", "[[]"] {
            let _ = Outline::of(text);
            let _ = bytes_of(text, ElementType::F32, 1);
            let _ = bytes_of(text, ElementType::String, 1);
        }
    }

    /// A JSON value, written with spaces that mean nothing.
    fn any_json() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            any::<i64>().prop_map(|v| v.to_string()),
            any::<u64>().prop_map(|v| v.to_string()),
            any::<f64>()
                .prop_filter("JSON has it", |v| v.is_finite())
                .prop_map(|v| format!("{v:e}")),
            (-1e6..1e6_f64).prop_map(|v| v.to_string()),
            any::<String>().prop_map(|v| serde_json::to_string(&v).unwrap()),
            Just("null".to_owned()),
            Just(" true".to_owned()),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            proptest::collection::vec(inner, 0..4)
                .prop_map(|all| format!("[ {} ]\n", all.join(" ,")))
        })
    }

    /// The elements in order, as `serde_json` reads them.
    fn flat<'v>(value: &'v serde_json::Value, into: &mut Vec<&'v serde_json::Value>) {
        match value {
            serde_json::Value::Array(all) => all.iter().for_each(|value| flat(value, into)),
            other => into.push(other),
        }
    }

    proptest! {
        #[test]
        fn elements_are_what_the_json_parser_says(json in any_json()) {
            let value: serde_json::Value = serde_json::from_str(&json).unwrap();
            let mut wanted = Vec::new();
            flat(&value, &mut wanted);
            if let Ok(outline) = parse(&json) {
                prop_assert_eq!(outline.len(), wanted.len());
                let doubles: Option<Vec<u8>> = wanted
                    .iter()
                    .map(|v| v.as_f64().map(f64::to_le_bytes))
                    .collect::<Option<Vec<_>>>()
                    .map(|all| all.concat());
                prop_assert_eq!(bytes(&json, ElementType::F64).ok(), doubles);
                let longs: Option<Vec<u8>> = wanted
                    .iter()
                    .map(|v| v.as_i64().map(i64::to_le_bytes))
                    .collect::<Option<Vec<_>>>()
                    .map(|all| all.concat());
                prop_assert_eq!(bytes(&json, ElementType::I64).ok(), longs);
                let texts: Option<Vec<String>> =
                    wanted.iter().map(|v| v.as_str().map(str::to_owned)).collect();
                let read = bytes(&json, ElementType::String).ok();
                let read = read.map(|all| strings::tensor(vec![wanted.len()], &all).unwrap().strings);
                prop_assert_eq!(read, texts);
            }
        }
    }
}
