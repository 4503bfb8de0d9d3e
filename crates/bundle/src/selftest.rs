//! Golden inputs and outputs, kept as safetensors.
//!
//! Tensor names are `{case}/in/{position}/{name}` and `{case}/out/{position}/{name}`. One metadata
//! entry, `espalier.selftest`, holds a JSON object with the tolerances, the number of cases and the
//! shapes of string tensors, which are stored as bytes (each string after its length, 32 bits,
//! little endian, as in the Open Inference Protocol's binary form).

use std::collections::{BTreeMap, HashMap};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::error::BundleError;

const METADATA_KEY: &str = "espalier.selftest";
const STRINGS: &str = "BYTES";

/// Golden inputs and outputs, and how far an answer may be off.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SelfTest {
    /// The cases.
    pub cases: Vec<Case>,
    /// Relative tolerance.
    pub rtol: f32,
    /// Absolute tolerance.
    pub atol: f32,
}

/// One input and its answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Case {
    /// The inputs, in the model's order.
    pub inputs: Vec<NamedTensor>,
    /// The outputs, in the model's order.
    pub outputs: Vec<NamedTensor>,
}

/// A tensor with its name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NamedTensor {
    /// Its name in the model.
    pub name: String,
    /// Its type by the Open Inference Protocol's name.
    pub dtype: String,
    /// Its shape.
    pub dims: Vec<usize>,
    /// Its content, little endian; strings each after their length (32 bits).
    pub data: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
struct Metadata {
    version: u32,
    rtol: f32,
    atol: f32,
    cases: usize,
    #[serde(default)]
    strings: BTreeMap<String, Vec<usize>>,
}

impl SelfTest {
    /// The content of `selftest.safetensors`. The same cases give the same bytes.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut strings = BTreeMap::new();
        let mut views = BTreeMap::new();
        for (number, case) in self.cases.iter().enumerate() {
            for (side, tensors) in [("in", &case.inputs), ("out", &case.outputs)] {
                for (position, tensor) in tensors.iter().enumerate() {
                    let key = format!("{number}/{side}/{position}/{}", tensor.name);
                    let (view, dims) = view_of(&key, tensor)?;
                    views.insert(key.clone(), view);
                    strings.extend(dims.map(|dims| (key, dims)));
                }
            }
        }
        let (rtol, atol) = (self.rtol, self.atol);
        check_tolerances(rtol, atol)?;
        let metadata = Metadata { version: 1, rtol, atol, cases: self.cases.len(), strings };
        let metadata =
            serde_json::to_string(&metadata).map_err(|error| wrong(error.to_string()))?;
        let metadata = HashMap::from([(METADATA_KEY.to_owned(), metadata)]);
        safetensors::serialize(views, Some(metadata)).map_err(|error| wrong(error.to_string()))
    }

    /// Reads `selftest.safetensors`.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let metadata = read_metadata(bytes)?;
        let tensors = SafeTensors::deserialize(bytes).map_err(|error| wrong(error.to_string()))?;
        if metadata.cases > tensors.len() {
            return Err(wrong(format!("{} cases in {} tensors", metadata.cases, tensors.len())));
        }
        let mut sides: Vec<[BTreeMap<usize, NamedTensor>; 2]> = Vec::new();
        sides.resize_with(metadata.cases, Default::default);
        for (key, view) in tensors.tensors() {
            let slot = parse_key(&key).filter(|slot| slot.case < sides.len());
            let slot = slot.ok_or_else(|| wrong(format!("tensor {key:?} belongs to no case")))?;
            let tensor = tensor_of(&key, slot.name, &view, &metadata.strings)?;
            if sides[slot.case][slot.side].insert(slot.position, tensor).is_some() {
                return Err(wrong(format!("tensor {key:?} takes a place that is taken")));
            }
        }
        let cases = sides.into_iter().map(|[inputs, outputs]| {
            Ok(Case { inputs: in_order(inputs)?, outputs: in_order(outputs)? })
        });
        Ok(Self { cases: cases.collect::<Result<_>>()?, rtol: metadata.rtol, atol: metadata.atol })
    }
}

struct Slot<'a> {
    case: usize,
    side: usize,
    position: usize,
    name: &'a str,
}

fn parse_key(key: &str) -> Option<Slot<'_>> {
    let mut parts = key.splitn(4, '/');
    let case = parts.next()?.parse().ok()?;
    let side = match parts.next()? {
        "in" => 0,
        "out" => 1,
        _ => return None,
    };
    let position = parts.next()?.parse().ok()?;
    Some(Slot { case, side, position, name: parts.next()? })
}

fn in_order(tensors: BTreeMap<usize, NamedTensor>) -> Result<Vec<NamedTensor>> {
    if tensors.keys().copied().ne(0..tensors.len()) {
        return Err(wrong("a case has a gap between its tensors".to_owned()));
    }
    Ok(tensors.into_values().collect())
}

fn read_metadata(bytes: &[u8]) -> Result<Metadata> {
    let (_, header) =
        SafeTensors::read_metadata(bytes).map_err(|error| wrong(error.to_string()))?;
    let text = header.metadata().as_ref().and_then(|map| map.get(METADATA_KEY));
    let text = text.ok_or_else(|| wrong(format!("it has no metadata entry {METADATA_KEY}")))?;
    let metadata: Metadata =
        serde_json::from_str(text).map_err(|error| wrong(error.to_string()))?;
    if metadata.version != 1 {
        return Err(wrong(format!("version {} is unknown", metadata.version)));
    }
    check_tolerances(metadata.rtol, metadata.atol)?;
    Ok(metadata)
}

fn check_tolerances(rtol: f32, atol: f32) -> Result<()> {
    if [rtol, atol].iter().any(|t| !t.is_finite() || *t < 0.0) {
        return Err(wrong(format!("tolerances {rtol} and {atol} are not finite and positive")));
    }
    Ok(())
}

/// A view for writing, and the shape where the view does not tell it.
fn view_of<'a>(key: &str, tensor: &'a NamedTensor) -> Result<(TensorView<'a>, Option<Vec<usize>>)> {
    if tensor.dtype == STRINGS {
        check_strings(key, &tensor.dims, &tensor.data)?;
        let view = TensorView::new(Dtype::U8, vec![tensor.data.len()], &tensor.data);
        return Ok((view.map_err(|error| wrong(error.to_string()))?, Some(tensor.dims.clone())));
    }
    let known = DTYPES.iter().find(|(name, _)| *name == tensor.dtype);
    let (_, dtype) = known
        .ok_or_else(|| wrong(format!("tensor {key:?} has unknown type {:?}", tensor.dtype)))?;
    let view = TensorView::new(*dtype, tensor.dims.clone(), &tensor.data);
    let view = view.map_err(|error| wrong(format!("tensor {key:?}: {error}")))?;
    Ok((view, None))
}

fn tensor_of(
    key: &str,
    name: &str,
    view: &TensorView<'_>,
    strings: &BTreeMap<String, Vec<usize>>,
) -> Result<NamedTensor> {
    let (name, data) = (name.to_owned(), view.data().to_vec());
    if let Some(dims) = strings.get(key) {
        check_strings(key, dims, &data)?;
        return Ok(NamedTensor { name, dtype: STRINGS.to_owned(), dims: dims.clone(), data });
    }
    let known = DTYPES.iter().find(|(_, dtype)| *dtype == view.dtype());
    let (dtype, _) =
        known.ok_or_else(|| wrong(format!("tensor {key:?} has type {:?}", view.dtype())))?;
    Ok(NamedTensor { name, dtype: (*dtype).to_owned(), dims: view.shape().to_vec(), data })
}

/// Whether the bytes are as many length-prefixed strings as the shape says.
fn check_strings(key: &str, dims: &[usize], data: &[u8]) -> Result<()> {
    let wanted = dims.iter().try_fold(1usize, |product, dim| product.checked_mul(*dim));
    let mut rest = data;
    let mut count = 0usize;
    while let Some((length, tail)) = rest.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*length) as usize;
        let Some(tail) = tail.get(length..) else { break };
        rest = tail;
        count += 1;
    }
    if rest.is_empty() && wanted == Some(count) {
        return Ok(());
    }
    Err(wrong(format!("tensor {key:?} does not hold the strings of its shape {dims:?}")))
}

fn wrong(why: String) -> BundleError {
    BundleError::SelfTest(why.chars().take(300).collect())
}

/// Names of the Open Inference Protocol and of safetensors.
const DTYPES: [(&str, Dtype); 13] = [
    ("BOOL", Dtype::BOOL),
    ("UINT8", Dtype::U8),
    ("UINT16", Dtype::U16),
    ("UINT32", Dtype::U32),
    ("UINT64", Dtype::U64),
    ("INT8", Dtype::I8),
    ("INT16", Dtype::I16),
    ("INT32", Dtype::I32),
    ("INT64", Dtype::I64),
    ("FP16", Dtype::F16),
    ("BF16", Dtype::BF16),
    ("FP32", Dtype::F32),
    ("FP64", Dtype::F64),
];
