//! Inference engines behind one trait: tract and ONNX Runtime.
//!
//! [`open`] gives an [`Engine`], an engine loads a model into a [`Session`], and a session runs.
//! Nothing outside this crate names tract or ort.
//!
//! Invariants:
//! 1. What comes from outside (a library, a model file, a request's tensors) never panics here: it is
//!    an [`EngineError`] that says what was wrong, where, and what was wanted.
//! 2. A session checks the names, element types and shapes of its inputs before the engine sees
//!    them, so that both engines refuse the same things with the same words.
//! 3. An engine that is not compiled in is refused by name, never replaced by the other one.
//!
//! What it does not do: it does not download a library, schedule requests, or read configuration.

#[cfg(all(any(feature = "tract", feature = "ort"), target_endian = "big"))]
compile_error!("tensors are little-endian bytes and are handed to the engines as they are");

mod engine;
mod error;
pub mod features;
mod library;
pub mod measure;
#[cfg(any(feature = "tract", feature = "ort"))]
mod model_file;
#[cfg(feature = "ort")]
mod onnxruntime;
mod spec;
mod tensor;
#[cfg(feature = "tract")]
mod tract;

pub use engine::{
    Engine, EngineKind, EngineOptions, LoadOptions, Session, UnknownEngine, available, open,
};
pub use error::{EngineError, ErrorKind};
pub use library::{LIBRARY_VARIABLE, MINIMUM_VERSION, check_library, find_library};
#[cfg(any(feature = "tract", feature = "ort"))]
pub use model_file::MAX_MODEL_BYTES;
pub use spec::{IoSpec, check_inputs};
pub use tensor::{ElementType, Tensor};
