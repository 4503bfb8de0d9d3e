//! The way of a request through the protocol without a network and a model, for a fuzzer: nothing else calls it.

use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use engine::ElementType;
use serde_json::{Map, Value};

use super::coding::Coding;
use super::error::OipError;
use super::request::InferRequest;
use super::{check_headers, response};
use crate::plane::CandidateId;
use crate::plane::instance::{Answer, Identity};
use crate::plane::protocol::NamedTensors;
use crate::plane::strings;

/// Reads a request as the server does, and answers it with its own inputs, in the way that it asks for and as
/// bytes.
///
/// # Errors
/// What the client would be told.
///
/// # Panics
/// When tensors take more room than was asked for before they were made, or an answer is not what went into it.
pub fn take(headers: &[(&[u8], &[u8])], body: &[u8], max_bytes: usize) -> Result<(), OipError> {
    let headers = header_map(headers);
    let header_length = check_headers(&headers, max_bytes)?;
    let coding = Coding::of_request(&headers)?;
    if body.len() > max_bytes {
        return Err(OipError::too_large(max_bytes));
    }
    let plain = match coding {
        None => None,
        Some(coding) => Some(unpacked(coding, body, max_bytes)?),
    };
    let body = plain.as_deref().unwrap_or(body);
    let mut asked = None;
    let mut request = InferRequest::decode_within(body, header_length, |bytes| {
        asked = Some(bytes);
        Ok(())
    })?;
    let held: usize = request.inputs.iter().map(|(_, tensor)| held(tensor)).sum();
    assert!(asked.is_some_and(|room| held <= room), "{held} bytes in a room of {asked:?}");
    let inputs = Arc::new(std::mem::take(&mut request.inputs));
    // Outputs that are not there are a model's fault here; that they are answered as an error is enough.
    let _ = encoded(&request, &inputs).map(|it| it.compressed(Coding::of_answer(&headers)));
    request.outputs = None;
    request.binary_outputs = true;
    let (answer, length) = encoded(&request, &inputs)?.into_parts();
    assert_eq!(read_back(&answer, length), *inputs, "an answer says what the model gave");
    Ok(())
}

fn header_map(lines: &[(&[u8], &[u8])]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in lines {
        // Others are refused before the server sees them.
        if let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(name), HeaderValue::from_bytes(value))
        {
            headers.append(name, value);
        }
    }
    headers
}

fn unpacked(coding: Coding, body: &[u8], max_bytes: usize) -> Result<bytes::Bytes, OipError> {
    let length = coding.plain_length(body, max_bytes)?;
    assert!(length <= max_bytes, "{length} bytes are over the limit");
    let plain = coding.decode(body, length)?;
    assert_eq!(plain.len(), length, "it is as long as was counted");
    Ok(plain)
}

/// What a tensor takes in memory.
fn held(tensor: &engine::Tensor) -> usize {
    if tensor.dtype != ElementType::String {
        return tensor.data.capacity();
    }
    tensor.strings.iter().map(|text| strings::ELEMENT_BYTES + text.capacity()).sum()
}

fn encoded(
    request: &InferRequest,
    outputs: &Arc<NamedTensors>,
) -> Result<response::Encoded, OipError> {
    let identity = Identity {
        id: CandidateId(0),
        model: "echo".to_owned(),
        digest: "sha256:0".to_owned(),
        version: "1".to_owned(),
        sequence: 0,
    };
    let answer =
        Answer { outputs: outputs.clone(), compute: Duration::ZERO, queued: Duration::ZERO };
    response::encode(request, &identity, &answer)
}

/// The tensors of an answer in bytes, read as those of a request: the two differ in one name.
fn read_back(answer: &[u8], header_length: Option<usize>) -> NamedTensors {
    let (json, tail) = answer.split_at(header_length.unwrap_or(answer.len()));
    let mut head: Map<String, Value> = serde_json::from_slice(json).expect("answers are JSON");
    let outputs = head.remove("outputs").expect("an answer has outputs");
    let head = serde_json::json!({ "inputs": outputs }).to_string();
    let request = [head.as_bytes(), tail].concat();
    InferRequest::decode(&request, Some(head.len())).expect("outputs are tensors").inputs
}
