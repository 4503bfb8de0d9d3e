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
    ///
    /// # Errors
    /// Tensors that do not fit their types, impossible tolerances, or a test that any model passes.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        self.check_substance()?;
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
    ///
    /// # Errors
    /// Damage, contradictions, or a test that any model passes.
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
        let cases = cases.collect::<Result<_>>()?;
        let test = Self { cases, rtol: metadata.rtol, atol: metadata.atol };
        test.check_substance()?;
        Ok(test)
    }

    /// Whether a wrong model could fail it.
    fn check_substance(&self) -> Result<()> {
        if self.cases.is_empty() {
            return Err(BundleError::VacuousSelfTest("it has no cases".to_owned()));
        }
        match self.cases.iter().position(|case| case.outputs.is_empty()) {
            Some(at) => Err(BundleError::VacuousSelfTest(format!("case {at} has no outputs"))),
            None => Ok(()),
        }
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
    // The library multiplies dimensions without a check.
    if elements(&tensor.dims).is_none() {
        return Err(wrong(format!("tensor {key:?} has an impossible shape {:?}", tensor.dims)));
    }
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
    let wanted = elements(dims);
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

/// The number of elements, if their bits can be counted.
fn elements(dims: &[usize]) -> Option<usize> {
    let count = dims.iter().try_fold(1usize, |product, dim| product.checked_mul(*dim))?;
    count.checked_mul(64).map(|_| count)
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn tensor(name: &str, dtype: &str, dims: &[usize], data: &[u8]) -> NamedTensor {
        NamedTensor {
            name: name.into(),
            dtype: dtype.into(),
            dims: dims.to_vec(),
            data: data.to_vec(),
        }
    }

    fn with(inputs: Vec<NamedTensor>) -> SelfTest {
        let outputs = vec![tensor("y", "BOOL", &[1], &[1])];
        SelfTest { cases: vec![Case { inputs, outputs }], rtol: 0.01, atol: 0.0 }
    }

    #[test]
    fn every_type_name_order_and_odd_shape_survives() {
        let mut inputs = vec![
            tensor("z", "FP32", &[], &[0; 4]),
            tensor("a/b/0/in", "INT64", &[2, 1], &[1; 16]),
            tensor("", "BOOL", &[0, 3], &[]),
            tensor("text", "BYTES", &[2], b"\x02\0\0\0hi\0\0\0\0"),
            tensor("no text", "BYTES", &[0], b""),
            tensor("z", "FP16", &[1], &[9; 2]),
        ];
        inputs.extend(
            DTYPES.map(|(name, dtype)| tensor(name, name, &[3], &vec![5; 3 * dtype.bitsize() / 8])),
        );
        let test = with(inputs);
        let bytes = test.to_bytes().unwrap();
        assert_eq!(SelfTest::from_bytes(&bytes).unwrap(), test);
        assert_eq!(bytes, test.to_bytes().unwrap());
    }

    #[test]
    fn a_self_test_that_any_model_passes_is_neither_written_nor_read() {
        let mut silent = with(vec![tensor("x", "BOOL", &[1], &[1])]);
        silent.cases[0].outputs.clear();
        for (test, why) in [(SelfTest::default(), "no cases"), (silent, "case 0 has no outputs")] {
            let error = test.to_bytes().unwrap_err();
            assert!(matches!(&error, BundleError::VacuousSelfTest(said) if said.contains(why)));
        }
        let file = |cases: usize, key: &str| {
            let metadata = format!(r#"{{"version":1,"rtol":0.0,"atol":0.0,"cases":{cases}}}"#);
            let metadata = HashMap::from([(METADATA_KEY.to_owned(), metadata)]);
            let views = BTreeMap::from([(key, TensorView::new(Dtype::U8, vec![1], &[1]).unwrap())]);
            let views: BTreeMap<_, _> = if cases == 0 { BTreeMap::new() } else { views };
            safetensors::serialize(views, Some(metadata)).unwrap()
        };
        for bytes in [file(0, ""), file(1, "0/in/0/x")] {
            let error = SelfTest::from_bytes(&bytes).unwrap_err();
            assert!(matches!(error, BundleError::VacuousSelfTest(_)), "{error}");
        }
        assert!(SelfTest::from_bytes(&file(1, "0/out/0/y")).is_ok());
    }

    #[test]
    fn what_does_not_fit_its_type_and_shape_is_not_written() {
        for tensor in [
            tensor("x", "FP32", &[2], &[0; 4]),
            tensor("x", "FP32", &[usize::MAX, 8], &[0; 4]),
            tensor("x", "FP8", &[1], &[0]),
            tensor("x", "BYTES", &[1], b"\x05\0\0\0hi"),
            tensor("x", "BYTES", &[2], b"\x01\0\0\0h"),
            tensor("x", "BYTES", &[usize::MAX, 2], b""),
        ] {
            let error = with(vec![tensor]).to_bytes().unwrap_err().to_string();
            assert!(error.starts_with("selftest.safetensors"), "{error}");
        }
        assert!(SelfTest { rtol: f32::NAN, ..with(vec![]) }.to_bytes().is_err());
    }

    #[test]
    fn hostile_files_are_refused() {
        let good = with(vec![tensor("x", "FP32", &[1], &[0; 4])]).to_bytes().unwrap();
        for length in 0..good.len() {
            assert!(SelfTest::from_bytes(&good[..length]).is_err(), "cut at {length}");
        }
        let mut huge = good.clone();
        huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(SelfTest::from_bytes(&huge).is_err());
    }

    #[test]
    fn metadata_that_does_not_match_the_tensors_is_refused() {
        let data = [0; 4];
        let write = |key: &str, metadata: Option<&str>| {
            let view = TensorView::new(Dtype::F32, vec![1], &data).unwrap();
            let metadata =
                metadata.map(|text| HashMap::from([(METADATA_KEY.to_owned(), text.to_owned())]));
            safetensors::serialize([(key, view)], metadata).unwrap()
        };
        let one = r#"{"version":1,"rtol":0.0,"atol":0.0,"cases":1}"#;
        assert!(SelfTest::from_bytes(&write("0/out/0/x", Some(one))).is_ok());
        for (key, metadata, why) in [
            ("0/in/0/x", None, "no metadata"),
            ("0/in/0/x", Some("{"), "EOF"),
            ("0/in/0/x", Some(r#"{"version":2,"rtol":0.0,"atol":0.0,"cases":1}"#), "version 2"),
            ("0/in/0/x", Some(r#"{"version":1,"rtol":-1.0,"atol":0.0,"cases":1}"#), "tolerances"),
            ("0/in/0/x", Some(r#"{"version":1,"rtol":0.0,"atol":0.0,"cases":999999999}"#), "cases"),
            ("1/in/0/x", Some(one), "no case"),
            ("0/sideways/0/x", Some(one), "no case"),
            ("x", Some(one), "no case"),
            ("0/in/1/x", Some(one), "gap"),
        ] {
            let error = SelfTest::from_bytes(&write(key, metadata)).unwrap_err().to_string();
            assert!(error.contains(why), "{key} {metadata:?}: {error}");
        }
    }
}
