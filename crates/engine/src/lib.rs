//! What an inference engine is, without any: the traits, what goes in and out, and how long it takes.
//!
//! An [`Engine`] loads a model into a [`Session`], and a session runs. The engines themselves are in
//! `espalier-runtime`, which whoever only speaks of tensors does not link: tract alone is 30 MB of
//! program.
//!
//! Invariants:
//! 1. What comes from outside (a library, a model file, a request's tensors) never panics here: it is
//!    an [`EngineError`] that says what was wrong, where, and what was wanted.
//! 2. A session checks the names, element types and shapes of its inputs before the engine sees
//!    them, so that both engines refuse the same things with the same words.
//!
//! What it does not do: it does not compute, download a library, schedule requests, or read
//! configuration.

#![forbid(unsafe_code)]

mod engine;
mod error;
pub mod features;
mod library;
pub mod measure;
mod spec;
mod tensor;

pub use engine::{
    Engine, EngineKind, EngineOptions, LoadOptions, Session, TRACT_VERSION, UnknownEngine,
};
pub use error::{EngineError, ErrorKind, guard};
pub use library::{LIBRARY_VARIABLE, MINIMUM_VERSION, check_library, find_library};
pub use spec::{Axis, Declared, IoSpec, check_inputs, fix_batch};
pub use tensor::{ElementType, Tensor};
