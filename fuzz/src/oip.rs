//! Inference requests: the headers that say how the body is to be read, an empty line, the body.

use espalier_agent::plane::oip::fuzzing;

use crate::Verdict;

/// The largest body, as `serve.max_request_bytes` would say.
const MAX_BODY_BYTES: usize = 1 << 20;
/// The most headers that are looked at.
const MAX_HEADERS: usize = 8;

/// Reads bytes as a request, and answers it with its own inputs.
///
/// # Panics
/// Where [`fuzzing::take`] does.
pub fn take(bytes: &[u8]) -> Verdict {
    let mut rest = bytes;
    let mut headers = Vec::new();
    while headers.len() < MAX_HEADERS {
        let Some(end) = rest.iter().position(|byte| *byte == b'\n') else { break };
        let line = &rest[..end];
        rest = &rest[end + 1..];
        if line.is_empty() {
            break;
        }
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        headers.push((&line[..colon], line[colon + 1..].trim_ascii()));
    }
    Verdict::of(&fuzzing::take(&headers, rest, MAX_BODY_BYTES))
}
