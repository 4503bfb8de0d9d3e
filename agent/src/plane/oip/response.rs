//! An inference answer: JSON, and the tensors that follow it as bytes.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use engine::{IoSpec, Tensor};
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use super::coding::Coding;
use super::element::JsonElements;
use super::error::OipError;
use super::request::InferRequest;
use super::{HEADER_LENGTH, dims};
use crate::plane::instance::{Answer, Identity};
use crate::plane::strings;
use crate::plane::window::micros;

/// Parameters that steer this server and mean nothing in an answer.
const CONSUMED: [&str; 2] = ["binary_data_output", "timeout"];
/// Those that an answer has of its own.
const ADDED: [&str; 2] = ["compute_us", "queue_us"];
/// Room for an answer's JSON, beside its elements.
const HEAD_BYTES: usize = 256;
/// Room for one element's digits.
const ELEMENT_BYTES: usize = 12;
/// What is made room for at once for the digits of a tensor.
const MAX_FIRST_BYTES: usize = 1 << 20;

/// An encoded answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    body: Vec<u8>,
    /// The length of the JSON, where tensors follow it.
    header_length: Option<usize>,
    /// How the body is compressed.
    coding: Option<Coding>,
}

impl Encoded {
    /// The body, and the length of its JSON where tensors follow it.
    pub(super) fn into_parts(self) -> (Vec<u8>, Option<usize>) {
        (self.body, self.header_length)
    }

    /// With its body compressed, where the client asked for it and it is worth it.
    pub(super) fn compressed(self, coding: Option<Coding>) -> Self {
        match coding.and_then(|coding| Some((coding, coding.encode(&self.body)?))) {
            Some((coding, body)) => Self { body, coding: Some(coding), ..self },
            None => self,
        }
    }
}

#[derive(Serialize)]
struct Head<'a> {
    model_name: &'a str,
    model_version: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    parameters: Parameters<'a>,
    outputs: Vec<Output<'a>>,
}

/// The request's parameters again, and what the answer took.
struct Parameters<'a>(&'a InferRequest, &'a Answer);

impl Serialize for Parameters<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(request, answer) = self;
        let repeated = |key: &str| !CONSUMED.contains(&key) && !ADDED.contains(&key);
        let given = request.parameters.iter().filter(|(key, _)| repeated(key));
        let mut map = serializer.serialize_map(None)?;
        for (key, value) in given {
            map.serialize_entry(key, value)?;
        }
        for (key, took) in ADDED.iter().zip([answer.compute, answer.queued]) {
            map.serialize_entry(key, &micros(took))?;
        }
        map.end()
    }
}

#[derive(Serialize)]
struct Output<'a> {
    name: &'a str,
    datatype: &'static str,
    shape: &'a [usize],
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<Binary>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<JsonElements<'a>>,
}

/// What is said of an output that follows the JSON.
#[derive(Serialize)]
struct Binary {
    binary_data_size: usize,
}

/// Encodes the outputs that a request wants, in the order in which it wants them.
///
/// The answer repeats the request's parameters, and adds `compute_us` and `queue_us`.
pub(in crate::plane) fn encode(
    request: &InferRequest,
    identity: &Identity,
    answer: &Answer,
) -> Result<Encoded, OipError> {
    let failed = |what: String| OipError::new(StatusCode::INTERNAL_SERVER_ERROR, what);
    let wanted: Vec<&(String, Tensor)> =
        match &request.outputs {
            None => answer.outputs.iter().collect(),
            Some(wanted) => wanted
                .iter()
                .map(|wanted| {
                    answer.outputs.iter().find(|(name, _)| *name == wanted.name).ok_or_else(|| {
                        failed(format!("the model gave no output `{}`", wanted.name))
                    })
                })
                .collect::<Result<_, _>>()?,
        };
    let mut outputs = Vec::with_capacity(wanted.len());
    let mut tail: Vec<&Tensor> = Vec::new();
    let mut room = HEAD_BYTES;
    for (name, tensor) in wanted {
        let size = strings::byte_len(tensor);
        let binary = request.wants_binary(name);
        if binary {
            tail.push(tensor);
        }
        room += if binary { size } else { (tensor.len() * ELEMENT_BYTES).min(MAX_FIRST_BYTES) };
        outputs.push(Output {
            name,
            datatype: tensor.dtype.oip_name(),
            shape: &tensor.shape,
            parameters: binary.then_some(Binary { binary_data_size: size }),
            data: (!binary).then_some(JsonElements(tensor)),
        });
    }
    let head = Head {
        model_name: &identity.model,
        model_version: &identity.version,
        id: request.id.as_deref(),
        parameters: Parameters(request, answer),
        outputs,
    };
    let mut body = Vec::with_capacity(room);
    serde_json::to_writer(&mut body, &head).map_err(|e| failed(e.to_string()))?;
    let header_length = (!tail.is_empty()).then_some(body.len());
    tail.iter().for_each(|tensor| body.extend_from_slice(&strings::bytes_of(tensor)));
    Ok(Encoded { body, header_length, coding: None })
}

/// A model's inputs or outputs for its metadata; a free dimension is -1.
pub(super) fn ports(specs: &[IoSpec]) -> Vec<Value> {
    specs
        .iter()
        .map(|spec| {
            json!({ "name": spec.name, "datatype": spec.dtype.oip_name(), "shape": dims(spec) })
        })
        .collect()
}

impl IntoResponse for Encoded {
    fn into_response(self) -> Response {
        let kind = if self.header_length.is_some() {
            "application/octet-stream"
        } else {
            "application/json"
        };
        let mut response = Response::new(Body::from(self.body));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        headers.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
        if let Some(coding) = self.coding {
            headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(coding.name()));
        }
        if let Some(length) = self.header_length {
            headers.insert(HEADER_LENGTH, HeaderValue::from(length));
        }
        response
    }
}
