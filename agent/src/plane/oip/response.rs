//! An inference answer: JSON, and the tensors that follow it as bytes.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use engine::{IoSpec, Tensor};
use serde::{Serialize, Serializer};
use serde_json::{Map, Value, json};

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
    parameters: Map<String, Value>,
    outputs: Vec<Output<'a>>,
}

#[derive(Serialize)]
struct Output<'a> {
    name: &'a str,
    datatype: &'static str,
    shape: &'a [usize],
    #[serde(flatten)]
    payload: Payload<'a>,
}

enum Payload<'a> {
    Json(&'a Tensor),
    Binary(&'a Tensor),
}

impl Serialize for Payload<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Json(tensor) => serializer.collect_map([("data", JsonElements(tensor))]),
            Self::Binary(tensor) => {
                let size = json!({ "binary_data_size": strings::byte_len(tensor) });
                serializer.collect_map([("parameters", size)])
            }
        }
    }
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
    for (name, tensor) in wanted {
        let binary = request.wants_binary(name);
        if binary {
            tail.push(tensor);
        }
        outputs.push(Output {
            name,
            datatype: tensor.dtype.oip_name(),
            shape: &tensor.shape,
            payload: if binary { Payload::Binary(tensor) } else { Payload::Json(tensor) },
        });
    }
    let head = Head {
        model_name: &identity.model,
        model_version: &identity.version,
        id: request.id.as_deref(),
        parameters: parameters(request, answer),
        outputs,
    };
    let mut body = serde_json::to_vec(&head).map_err(|e| failed(e.to_string()))?;
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

fn parameters(request: &InferRequest, answer: &Answer) -> Map<String, Value> {
    let mut parameters: Map<String, Value> = request
        .parameters
        .iter()
        .filter(|(key, _)| !CONSUMED.contains(&key.as_str()))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    parameters.insert("compute_us".to_owned(), micros(answer.compute).into());
    parameters.insert("queue_us".to_owned(), micros(answer.queued).into());
    parameters
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
