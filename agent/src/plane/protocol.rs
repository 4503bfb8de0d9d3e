//! What the agent and its worker processes say to each other.
//!
//! A frame is a little-endian `u32` length, then that many bytes: one byte of kind and a payload.
//! Loading is JSON, because it happens once; tensors are binary, because they are the traffic.
//! Neither side trusts the other: a worker may have been corrupted by its engine, so every length is
//! checked against what really arrived before anything is allocated for it.

use std::borrow::Cow;
use std::io::{self, Read};
use std::path::PathBuf;

use engine::{ElementType, IoSpec, Tensor};
use serde::{Deserialize, Serialize};

use super::strings;

/// The longest frame either side sends or accepts.
pub const MAX_FRAME_BYTES: usize = 256 << 20;
/// The most tensors in one run.
pub const MAX_TENSORS: usize = 256;
/// The longest tensor name.
pub const MAX_NAME_BYTES: usize = 1024;
/// The most dimensions of a tensor.
pub const MAX_RANK: usize = 32;
/// A frame's length, in front of it.
pub(super) const HEADER_BYTES: usize = 4;
/// Tensors up to this are copied into a frame's other bytes, which is cheaper than a piece of their own.
const COPIED_BYTES: usize = 16 << 10;
/// What is allocated before any of a frame's bytes have arrived.
const FIRST_ALLOCATION: usize = 64 << 10;

/// Tensors by name, in the model's order.
pub type NamedTensors = Vec<(String, Tensor)>;

/// Why a frame was not understood.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The length says more than [`MAX_FRAME_BYTES`].
    #[error("a frame of {got} bytes exceeds MAX_FRAME_BYTES ({MAX_FRAME_BYTES})")]
    TooLong {
        /// The length that was claimed or needed.
        got: usize,
    },
    /// The stream ended inside a frame.
    #[error("the stream ended {missing} bytes before the end of a frame")]
    Truncated {
        /// How many bytes did not arrive.
        missing: usize,
    },
    /// The frame's content is not a message.
    #[error("malformed frame: {0}")]
    Malformed(String),
    /// The socket failed.
    #[error("worker socket: {0}")]
    Io(#[from] io::Error),
}

/// What to load, and into which engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadRequest {
    /// The model file; absolute.
    pub model: PathBuf,
    /// The engine's name: `tract` or `ort`.
    pub engine: String,
    /// Threads for one inference.
    pub threads: usize,
    /// Where ONNX Runtime's library is, where that is not left to the usual places.
    pub ort_library: Option<PathBuf>,
}

/// A tensor of a model's interface, as it crosses the socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortSpec {
    /// The tensor's name.
    pub name: String,
    /// Its Open Inference Protocol data type.
    pub dtype: String,
    /// Its dimensions; `None` where the model leaves one free.
    pub dims: Vec<Option<usize>>,
}

/// A loaded model's interface and the engine that holds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadedReply {
    /// The inputs.
    pub inputs: Vec<PortSpec>,
    /// The outputs.
    pub outputs: Vec<PortSpec>,
    /// The engine's name and version.
    pub engine_version: String,
}

/// Whether a model that is not loaded is to blame for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoadFault {
    /// The engine refuses the model, and will refuse it again.
    Model,
    /// The engine cannot be opened, the file cannot be read, or the engine panicked: nothing is
    /// known about the model.
    Device,
}

/// A failed load.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadFailure {
    /// What is to blame.
    pub fault: LoadFault,
    /// What went wrong.
    pub error: String,
}

/// Why a run gave no tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// The request's fault.
    Input,
    /// The engine's fault; the worker goes on.
    Engine,
    /// The engine panicked; the worker ends after saying so.
    Fatal,
}

/// A failed run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The run.
    pub id: u64,
    /// Whose fault it is.
    pub kind: FailureKind,
    /// What went wrong.
    pub error: String,
}

/// A message of either direction.
#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    /// To the worker: load this model. Sent first, once.
    Load(LoadRequest),
    /// To the worker: run on these inputs.
    Run {
        /// Names the run in its reply.
        id: u64,
        /// The inputs.
        tensors: NamedTensors,
    },
    /// From the worker: the model is loaded.
    Loaded(LoadedReply),
    /// From the worker: the model cannot be loaded, and why. The worker ends.
    LoadFailed(LoadFailure),
    /// From the worker: the outputs of a run.
    Ran {
        /// The run.
        id: u64,
        /// The time that the inference took.
        compute_us: u64,
        /// The outputs.
        tensors: NamedTensors,
    },
    /// From the worker: a run gave nothing.
    Failed(Failure),
}

const LOAD: u8 = 1;
const RUN: u8 = 2;
const LOADED: u8 = 3;
const LOAD_FAILED: u8 = 4;
const RAN: u8 = 5;
const FAILED: u8 = 6;

impl Message {
    /// The message as a frame, its length included.
    ///
    /// # Errors
    /// [`FrameError::TooLong`] when a peer would refuse the frame.
    pub fn encode(&self) -> Result<Vec<u8>, FrameError> {
        match self {
            Self::Load(load) => json_frame(LOAD, load),
            Self::Run { id, tensors } => encode_run(*id, tensors),
            Self::Loaded(reply) => json_frame(LOADED, reply),
            Self::LoadFailed(failure) => json_frame(LOAD_FAILED, failure),
            Self::Ran { id, compute_us, tensors } => {
                let mut frame = start(RAN, payload_bytes(tensors) + 16);
                frame.extend_from_slice(&id.to_le_bytes());
                frame.extend_from_slice(&compute_us.to_le_bytes());
                put_tensors(&mut frame, tensors)?;
                finish(frame)
            }
            Self::Failed(failure) => json_frame(FAILED, failure),
        }
    }

    /// Reads a frame's body: its kind and payload, without the length.
    ///
    /// # Errors
    /// [`FrameError::Malformed`] names what is wrong; nothing in `body` can make this panic.
    pub fn decode(body: &[u8]) -> Result<Self, FrameError> {
        let (&kind, payload) = body.split_first().ok_or_else(|| malformed("an empty frame"))?;
        match kind {
            LOAD => Ok(Self::Load(from_json(payload)?)),
            LOADED => Ok(Self::Loaded(from_json(payload)?)),
            LOAD_FAILED => Ok(Self::LoadFailed(from_json(payload)?)),
            FAILED => Ok(Self::Failed(from_json(payload)?)),
            RUN => {
                let mut bytes = Cursor(payload);
                let id = bytes.u64()?;
                Ok(Self::Run { id, tensors: bytes.tensors()? })
            }
            RAN => {
                let mut bytes = Cursor(payload);
                let (id, compute_us) = (bytes.u64()?, bytes.u64()?);
                Ok(Self::Ran { id, compute_us, tensors: bytes.tensors()? })
            }
            other => Err(malformed(format!("unknown kind {other}"))),
        }
    }
}

/// A run's frame, from borrowed tensors.
///
/// # Errors
/// [`FrameError::TooLong`] when the worker would refuse the frame.
pub fn encode_run(id: u64, tensors: &[(String, Tensor)]) -> Result<Vec<u8>, FrameError> {
    run_pieces(id, tensors).map(|pieces| pieces.concat())
}

/// As [`encode_run`], in pieces that are to follow each other: large tensors are not copied.
///
/// # Errors
/// As [`encode_run`].
pub fn run_pieces(id: u64, tensors: &[(String, Tensor)]) -> Result<Vec<Cow<'_, [u8]>>, FrameError> {
    let total = payload_bytes(tensors);
    if total > MAX_FRAME_BYTES {
        return Err(FrameError::TooLong { got: total });
    }
    let mut pieces = Vec::new();
    let mut piece = start(RUN, total.min(COPIED_BYTES) + 8);
    piece.extend_from_slice(&id.to_le_bytes());
    put_count(&mut piece, tensors)?;
    for (name, tensor) in tensors {
        put_head(&mut piece, name, tensor)?;
        let bytes = strings::bytes_of(tensor);
        if bytes.len() <= COPIED_BYTES {
            piece.extend_from_slice(&bytes);
        } else {
            pieces.extend([Cow::Owned(std::mem::take(&mut piece)), bytes]);
        }
    }
    pieces.push(Cow::Owned(piece));
    let got = pieces.iter().map(|piece| piece.len()).sum::<usize>() - HEADER_BYTES;
    if let Some(first) = pieces.first_mut() {
        first.to_mut()[..HEADER_BYTES].copy_from_slice(&header(got)?);
    }
    Ok(pieces)
}

/// Reads one frame's body; `None` when the stream ends between frames.
///
/// # Errors
/// A length over the limit, a stream that ends inside a frame, or a socket error.
pub fn read_frame(stream: &mut impl Read) -> Result<Option<Vec<u8>>, FrameError> {
    let mut header = Vec::with_capacity(HEADER_BYTES);
    stream.take(HEADER_BYTES as u64).read_to_end(&mut header)?;
    if header.is_empty() {
        return Ok(None);
    }
    let missing = FrameError::Truncated { missing: HEADER_BYTES - header.len() };
    let length = frame_length(header.try_into().map_err(|_| missing)?)?;
    let mut body = Vec::with_capacity(length.min(FIRST_ALLOCATION));
    stream.take(length as u64).read_to_end(&mut body)?;
    complete(body, length).map(Some)
}

/// A model's interface for the socket.
#[must_use]
pub fn ports(specs: &[IoSpec]) -> Vec<PortSpec> {
    specs
        .iter()
        .map(|spec| PortSpec {
            name: spec.name.clone(),
            dtype: spec.dtype.oip_name().to_owned(),
            dims: spec.dims.clone(),
        })
        .collect()
}

/// A model's interface from the socket.
///
/// # Errors
/// [`FrameError::Malformed`] for a data type that does not exist.
pub fn specs(ports: Vec<PortSpec>) -> Result<Vec<IoSpec>, FrameError> {
    ports
        .into_iter()
        .map(|port| {
            let dtype = ElementType::from_oip_name(&port.dtype)
                .ok_or_else(|| malformed(format!("unknown data type `{}`", port.dtype)))?;
            Ok(IoSpec { name: port.name, dtype, dims: port.dims })
        })
        .collect()
}

fn malformed(what: impl Into<String>) -> FrameError {
    FrameError::Malformed(what.into())
}

/// The length of the body behind a header.
pub(super) fn frame_length(header: [u8; HEADER_BYTES]) -> Result<usize, FrameError> {
    let got = u32::from_le_bytes(header) as usize;
    if got > MAX_FRAME_BYTES {
        return Err(FrameError::TooLong { got });
    }
    Ok(got)
}

fn complete(body: Vec<u8>, length: usize) -> Result<Vec<u8>, FrameError> {
    if body.len() < length {
        return Err(FrameError::Truncated { missing: length - body.len() });
    }
    Ok(body)
}

fn start(kind: u8, payload_bytes: usize) -> Vec<u8> {
    let mut frame = Vec::with_capacity(5 + payload_bytes.min(MAX_FRAME_BYTES));
    frame.extend_from_slice(&[0; 4]);
    frame.push(kind);
    frame
}

fn finish(mut frame: Vec<u8>) -> Result<Vec<u8>, FrameError> {
    let header = header(frame.len() - HEADER_BYTES)?;
    frame[..HEADER_BYTES].copy_from_slice(&header);
    Ok(frame)
}

/// What goes in front of a body of so many bytes.
fn header(got: usize) -> Result<[u8; HEADER_BYTES], FrameError> {
    let length = u32::try_from(got).ok().filter(|_| got <= MAX_FRAME_BYTES);
    length.map(u32::to_le_bytes).ok_or(FrameError::TooLong { got })
}

fn json_frame(kind: u8, value: &impl Serialize) -> Result<Vec<u8>, FrameError> {
    let mut frame = start(kind, 256);
    serde_json::to_writer(&mut frame, value).map_err(|e| malformed(e.to_string()))?;
    finish(frame)
}

fn from_json<T: for<'a> Deserialize<'a>>(payload: &[u8]) -> Result<T, FrameError> {
    serde_json::from_slice(payload).map_err(|e| malformed(e.to_string()))
}

fn payload_bytes(tensors: &[(String, Tensor)]) -> usize {
    tensors
        .iter()
        .map(|(name, tensor)| name.len() + 8 * tensor.shape.len() + strings::byte_len(tensor) + 16)
        .sum()
}

fn put_tensors(frame: &mut Vec<u8>, tensors: &[(String, Tensor)]) -> Result<(), FrameError> {
    let total = payload_bytes(tensors);
    if total > MAX_FRAME_BYTES {
        return Err(FrameError::TooLong { got: total });
    }
    put_count(frame, tensors)?;
    for (name, tensor) in tensors {
        put_head(frame, name, tensor)?;
        frame.extend_from_slice(&strings::bytes_of(tensor));
    }
    Ok(())
}

fn put_count(frame: &mut Vec<u8>, tensors: &[(String, Tensor)]) -> Result<(), FrameError> {
    frame.extend_from_slice(&short(tensors.len(), MAX_TENSORS, "tensors")?.to_le_bytes());
    Ok(())
}

/// Everything of a tensor but its elements, which follow.
fn put_head(frame: &mut Vec<u8>, name: &str, tensor: &Tensor) -> Result<(), FrameError> {
    frame.extend_from_slice(&short(name.len(), MAX_NAME_BYTES, "name bytes")?.to_le_bytes());
    frame.extend_from_slice(name.as_bytes());
    let dtype = tensor.dtype.oip_name().as_bytes();
    frame.push(u8::try_from(dtype.len()).map_err(|_| malformed("data type name"))?);
    frame.extend_from_slice(dtype);
    frame.extend_from_slice(&short(tensor.shape.len(), MAX_RANK, "dimensions")?.to_le_bytes());
    for &dim in &tensor.shape {
        frame.extend_from_slice(&(dim as u64).to_le_bytes());
    }
    frame.extend_from_slice(&(strings::byte_len(tensor) as u64).to_le_bytes());
    Ok(())
}

fn short(count: usize, limit: usize, what: &str) -> Result<u16, FrameError> {
    u16::try_from(count)
        .ok()
        .filter(|_| count <= limit)
        .ok_or_else(|| malformed(format!("{count} {what}, at most {limit} are allowed")))
}

struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], FrameError> {
        let (head, tail) = self.0.split_at_checked(count).ok_or_else(|| {
            malformed(format!("{count} bytes are announced, {} are left", self.0.len()))
        })?;
        self.0 = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], FrameError> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N)?);
        Ok(bytes)
    }

    fn u16(&mut self) -> Result<usize, FrameError> {
        self.array().map(|b| u16::from_le_bytes(b).into())
    }

    fn u64(&mut self) -> Result<u64, FrameError> {
        self.array().map(u64::from_le_bytes)
    }

    fn size(&mut self) -> Result<usize, FrameError> {
        usize::try_from(self.u64()?).map_err(|_| malformed("a size does not fit this machine"))
    }

    fn text(&mut self, bytes: usize) -> Result<&'a str, FrameError> {
        std::str::from_utf8(self.take(bytes)?).map_err(|_| malformed("a name is not UTF-8"))
    }

    /// The tensors, which must be the rest of the frame.
    fn tensors(mut self) -> Result<NamedTensors, FrameError> {
        let count = self.u16()?;
        if count > MAX_TENSORS {
            return Err(malformed(format!("{count} tensors, at most {MAX_TENSORS} are allowed")));
        }
        let mut tensors = Vec::with_capacity(count);
        for _ in 0..count {
            tensors.push(self.tensor()?);
        }
        if !self.0.is_empty() {
            return Err(malformed(format!("{} bytes after the last tensor", self.0.len())));
        }
        Ok(tensors)
    }

    fn tensor(&mut self) -> Result<(String, Tensor), FrameError> {
        let length = self.u16()?;
        if length > MAX_NAME_BYTES {
            return Err(malformed(format!("a name of {length} bytes")));
        }
        let name = self.text(length)?.to_owned();
        let length = usize::from(self.array::<1>()?[0]);
        let dtype = self.text(length)?;
        let dtype = ElementType::from_oip_name(dtype)
            .ok_or_else(|| malformed(format!("unknown data type `{dtype}`")))?;
        let rank = self.u16()?;
        if rank > MAX_RANK {
            return Err(malformed(format!("tensor `{name}` has {rank} dimensions")));
        }
        let shape = (0..rank).map(|_| self.size()).collect::<Result<Vec<_>, _>>()?;
        let length = self.size()?;
        let data = self.take(length)?;
        tensor_from_parts(&name, dtype, shape, data.to_vec())
            .map(|tensor| (name, tensor))
            .map_err(FrameError::Malformed)
    }
}

/// A tensor whose bytes are known to fill its shape.
///
/// # Errors
/// Says which tensor has how many bytes where how many are wanted, or which of its strings is none.
pub fn tensor_from_parts(
    name: &str,
    dtype: ElementType,
    shape: Vec<usize>,
    data: Vec<u8>,
) -> Result<Tensor, String> {
    let Some(size) = dtype.size() else {
        return strings::tensor(shape, &data).map_err(|error| format!("tensor `{name}`: {error}"));
    };
    let wanted = shape.iter().try_fold(size, |bytes, &dim| bytes.checked_mul(dim));
    if wanted != Some(data.len()) {
        return Err(format!(
            "tensor `{name}`: {} {shape:?} wants {} bytes, got {}",
            dtype.oip_name(),
            wanted.map_or_else(|| "more than fit in memory".to_owned(), |w| w.to_string()),
            data.len()
        ));
    }
    Tensor::new(dtype, shape, data).map_err(|e| format!("tensor `{name}`: {e}"))
}

#[cfg(test)]
mod tests;
