//! An inference request: JSON, and the tensors that follow it as bytes.

use std::borrow::Cow;
use std::time::Duration;

use engine::{ElementType, IoSpec, Tensor};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::element::{Outline, bytes_of, has_json};
use super::error::OipError;
use crate::plane::process::Interface;
use crate::plane::protocol::{
    MAX_NAME_BYTES, MAX_RANK, MAX_TENSORS, NamedTensors, tensor_from_parts,
};
use crate::plane::strings;

/// A decoded request.
#[derive(Debug, Clone, PartialEq)]
pub struct InferRequest {
    /// The client's name for it, which the answer repeats.
    pub id: Option<String>,
    /// The request's own parameters.
    pub parameters: Map<String, Value>,
    /// The inputs.
    pub inputs: NamedTensors,
    /// The outputs that are wanted; `None` wants all.
    pub outputs: Option<Vec<WantedOutput>>,
    /// Whether outputs that do not say are answered as bytes.
    pub binary_outputs: bool,
}

/// One output that the client wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedOutput {
    /// Its name.
    pub name: String,
    /// Whether as bytes; `None` as the request says.
    pub binary: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct Head<'a> {
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    parameters: Option<Map<String, Value>>,
    #[serde(borrow)]
    inputs: Vec<HeadInput<'a>>,
    #[serde(default)]
    outputs: Option<Vec<HeadOutput>>,
}

#[derive(Debug, Deserialize)]
struct HeadInput<'a> {
    name: String,
    shape: Vec<i64>,
    #[serde(borrow)]
    datatype: Cow<'a, str>,
    #[serde(default)]
    parameters: Option<Map<String, Value>>,
    /// As it came.
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
}

#[derive(Debug, Deserialize)]
struct HeadOutput {
    name: String,
    #[serde(default)]
    parameters: Option<Map<String, Value>>,
}

impl InferRequest {
    /// Reads a request's body; `header_length` is the length of its JSON where tensors follow it.
    ///
    /// # Errors
    /// 400, naming the tensor, what was wanted and what came.
    pub fn decode(body: &[u8], header_length: Option<usize>) -> Result<Self, OipError> {
        Self::decode_within(body, header_length, |_| Ok(()))
    }

    /// As [`Self::decode`]; `room` is told the bytes of all tensors before any of them is made, and
    /// may refuse them.
    ///
    /// # Errors
    /// As [`Self::decode`], or what `room` says.
    pub fn decode_within(
        body: &[u8],
        header_length: Option<usize>,
        room: impl FnOnce(usize) -> Result<(), OipError>,
    ) -> Result<Self, OipError> {
        let length = header_length.unwrap_or(body.len());
        let (json, mut rest) = body.split_at_checked(length).ok_or_else(|| {
            OipError::bad(format!(
                "Inference-Header-Content-Length is {length}, the body has {} bytes",
                body.len()
            ))
        })?;
        let head: Head = serde_json::from_slice(json).map_err(|e| not_json(&e))?;
        if head.inputs.len() > MAX_TENSORS {
            return Err(OipError::bad(format!(
                "{} inputs, at most {MAX_TENSORS} are allowed",
                head.inputs.len()
            )));
        }
        let parameters = head.parameters.unwrap_or_default();
        let binary_outputs = flag(&parameters, "binary_data_output")?.unwrap_or(false);
        timeout_of(&parameters)?;
        let plans: Vec<Plan> =
            head.inputs.into_iter().map(HeadInput::plan).collect::<Result<_, _>>()?;
        let total = plans.iter().map(|plan| plan.room);
        room(total.fold(0, usize::saturating_add))?;
        let inputs =
            plans.into_iter().map(|plan| plan.tensor(&mut rest)).collect::<Result<_, _>>()?;
        if !rest.is_empty() {
            return Err(OipError::bad(format!(
                "{} bytes of binary data belong to no input",
                rest.len()
            )));
        }
        let outputs = head
            .outputs
            .map(|outputs| outputs.into_iter().map(HeadOutput::decode).collect())
            .transpose()?;
        Ok(Self { id: head.id, parameters, inputs, outputs, binary_outputs })
    }

    /// Checks inputs and wanted outputs against what the model has.
    ///
    /// # Errors
    /// 400, naming the tensor, what was wanted and what came.
    pub(in crate::plane) fn check(
        &self,
        inputs: &NamedTensors,
        interface: &Interface,
    ) -> Result<(), OipError> {
        let given: Vec<(&str, &Tensor)> = inputs.iter().map(|(n, t)| (n.as_str(), t)).collect();
        engine::check_inputs(&interface.inputs, &given)
            .map_err(|e| OipError::bad(e.to_string()))?;
        self.check_outputs(&interface.outputs)
    }

    /// The client's own deadline: parameter `timeout`, in microseconds.
    #[must_use]
    pub fn timeout(&self) -> Option<Duration> {
        timeout_of(&self.parameters).ok().flatten()
    }

    /// Whether an output is answered as bytes.
    #[must_use]
    pub fn wants_binary(&self, output: &str) -> bool {
        self.outputs
            .iter()
            .flatten()
            .find(|wanted| wanted.name == output)
            .and_then(|wanted| wanted.binary)
            .unwrap_or(self.binary_outputs)
    }

    fn check_outputs(&self, specs: &[IoSpec]) -> Result<(), OipError> {
        for (place, wanted) in self.outputs.iter().flatten().enumerate() {
            let known = specs.iter().any(|spec| spec.name == wanted.name);
            let before = self.outputs.iter().flatten().take(place);
            if !known {
                let names: Vec<String> = specs.iter().map(|s| format!("`{}`", s.name)).collect();
                return Err(OipError::bad(format!(
                    "there is no output `{}`; the model has {}",
                    wanted.name,
                    names.join(", ")
                )));
            }
            if before.into_iter().any(|other| other.name == wanted.name) {
                return Err(OipError::bad(format!("output `{}` is asked for twice", wanted.name)));
            }
        }
        for spec in specs {
            let wanted =
                self.outputs.as_ref().is_none_or(|list| list.iter().any(|w| w.name == spec.name));
            if wanted && !has_json(spec.dtype) && !self.wants_binary(&spec.name) {
                return Err(OipError::bad(format!(
                    "output `{}` is {}, which has no JSON form; ask for it with binary_data",
                    spec.name, spec.dtype
                )));
            }
        }
        Ok(())
    }
}

/// An input that is known to be sound but for its elements.
struct Plan<'a> {
    name: String,
    dtype: ElementType,
    shape: Vec<usize>,
    /// The elements in the JSON, and how many; none where they follow it as bytes.
    elements: Option<(&'a str, usize)>,
    /// In the body, where they stand behind the JSON.
    bytes: usize,
    /// What the tensor takes in memory at most.
    room: usize,
}

/// What strings take in memory beside the bytes that they come in: as many as the shape says, and as `bytes` can hold,
/// and their text once more.
fn string_bytes(bytes: usize, shape: &[usize]) -> usize {
    let wanted = shape.iter().fold(1_usize, |count, &dim| count.saturating_mul(dim));
    let elements = wanted.min(bytes / size_of::<u32>());
    elements.saturating_mul(strings::ELEMENT_BYTES).saturating_add(bytes)
}

impl<'a> HeadInput<'a> {
    fn plan(self) -> Result<Plan<'a>, OipError> {
        let Self { name, shape, datatype, parameters, data } = self;
        let parameters = parameters.unwrap_or_default();
        let bad = |what: String| bad_input(&name, &what);
        if name.len() > MAX_NAME_BYTES {
            return Err(bad(format!("a name of {} bytes", name.len())));
        }
        refuse_shared_memory(&parameters).map_err(bad)?;
        let dtype = ElementType::from_oip_name(&datatype)
            .ok_or_else(|| bad(format!("there is no datatype `{}`", brief(&datatype))))?;
        let shape = checked_shape(&shape).map_err(bad)?;
        let binary = size(&parameters, "binary_data_size").map_err(bad)?;
        let (elements, bytes) = match (binary, data) {
            (Some(_), Some(_)) => {
                return Err(bad("has both data and binary_data_size".to_owned()));
            }
            (None, None) => {
                return Err(bad("has neither data nor binary_data_size".to_owned()));
            }
            (Some(size), None) => (None, size),
            (None, Some(data)) => {
                let outline = Outline::of(data.get()).map_err(bad)?;
                check_elements(&outline, dtype, &shape).map_err(bad)?;
                let each = dtype.size().unwrap_or(size_of::<u32>());
                let bytes = outline.len().saturating_mul(each);
                let elements = (data.get(), outline.len());
                (Some(elements), bytes.saturating_add(outline.text_bytes()))
            }
        };
        let strings = if dtype == ElementType::String { string_bytes(bytes, &shape) } else { 0 };
        let room = bytes.saturating_add(strings);
        Ok(Plan { name, dtype, shape, elements, bytes, room })
    }
}

impl Plan<'_> {
    /// Takes the input's bytes from the front of `rest` where it is a binary one.
    fn tensor(self, rest: &mut &[u8]) -> Result<(String, Tensor), OipError> {
        let Self { name, dtype, shape, elements, bytes: size, .. } = self;
        let bad = |what: String| bad_input(&name, &what);
        let bytes = match elements {
            Some((json, count)) => bytes_of(json, dtype, count).map_err(bad)?,
            None => {
                let (front, tail) = rest.split_at_checked(size).ok_or_else(|| {
                    bad(format!(
                        "binary_data_size is {size}, {} bytes are left in the body",
                        rest.len()
                    ))
                })?;
                *rest = tail;
                front.to_vec()
            }
        };
        let tensor = tensor_from_parts(&name, dtype, shape, bytes).map_err(OipError::bad)?;
        Ok((name, tensor))
    }
}

fn not_json(error: &serde_json::Error) -> OipError {
    OipError::bad(format!("the request is not a valid JSON request: {error}"))
}

fn bad_input(name: &str, what: &str) -> OipError {
    OipError::bad(format!("input `{}`: {what}", brief(name)))
}

impl HeadOutput {
    fn decode(self) -> Result<WantedOutput, OipError> {
        let parameters = self.parameters.unwrap_or_default();
        let bad = |what: String| OipError::bad(format!("output `{}`: {what}", brief(&self.name)));
        refuse_shared_memory(&parameters).map_err(bad)?;
        if parameters.get("classification").is_some_and(|v| v != 0) {
            return Err(bad("classification is not served".to_owned()));
        }
        let binary = flag(&parameters, "binary_data")?;
        Ok(WantedOutput { name: self.name, binary })
    }
}

fn check_elements(data: &Outline, dtype: ElementType, shape: &[usize]) -> Result<(), String> {
    if !has_json(dtype) {
        return Err(format!("{dtype} has no JSON form; send it with binary_data_size"));
    }
    let wanted = shape.iter().try_fold(1_usize, |n, &d| n.checked_mul(d));
    if wanted != Some(data.len()) {
        return Err(format!(
            "shape {shape:?} wants {} elements, got {}",
            wanted.map_or_else(|| "too many".to_owned(), |w| w.to_string()),
            data.len()
        ));
    }
    if !data.fits(shape) {
        return Err(format!("the data is nested as {:?}, the shape is {shape:?}", data.nesting()));
    }
    Ok(())
}

fn checked_shape(shape: &[i64]) -> Result<Vec<usize>, String> {
    if shape.len() > MAX_RANK {
        return Err(format!("{} dimensions, at most {MAX_RANK} are allowed", shape.len()));
    }
    shape
        .iter()
        .map(|&dim| usize::try_from(dim))
        .collect::<Result<_, _>>()
        .map_err(|_| format!("shape {shape:?} has a negative dimension"))
}

fn refuse_shared_memory(parameters: &Map<String, Value>) -> Result<(), String> {
    if parameters.contains_key("shared_memory_region") {
        return Err("shared memory is not served".to_owned());
    }
    Ok(())
}

fn size(parameters: &Map<String, Value>, key: &str) -> Result<Option<usize>, String> {
    parameters
        .get(key)
        .map(|value| {
            value.as_u64().and_then(|v| usize::try_from(v).ok()).ok_or_else(|| {
                format!("parameter {key} is {}, not a size", brief(&value.to_string()))
            })
        })
        .transpose()
}

fn flag(parameters: &Map<String, Value>, key: &str) -> Result<Option<bool>, OipError> {
    parameters
        .get(key)
        .map(|value| {
            value.as_bool().ok_or_else(|| {
                OipError::bad(format!(
                    "parameter {key} is {}, not true or false",
                    brief(&value.to_string())
                ))
            })
        })
        .transpose()
}

/// Zero means none, as in the reference server.
fn timeout_of(parameters: &Map<String, Value>) -> Result<Option<Duration>, OipError> {
    let Some(value) = parameters.get("timeout") else {
        return Ok(None);
    };
    let micros = value.as_u64().ok_or_else(|| {
        OipError::bad(format!(
            "parameter timeout is {}, not a number of microseconds",
            brief(&value.to_string())
        ))
    })?;
    Ok((micros > 0).then(|| Duration::from_micros(micros)))
}

/// What a client sent, short enough to be sent back.
fn brief(text: &str) -> String {
    const SHOWN: usize = 80;
    if text.chars().count() <= SHOWN {
        text.to_owned()
    } else {
        text.chars().take(SHOWN).chain("…".chars()).collect()
    }
}

#[cfg(test)]
mod tests;
