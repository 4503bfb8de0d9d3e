//! tract: pure Rust, part of the binary.
//!
//! A model is parsed once, its batch fixed where that is asked for, and optimized into a plan that
//! every run shares. Axes that stay free become symbols. Where tract cannot carry one through, the
//! session makes a plan per combination of input shapes when it first comes and keeps the last
//! four: then the first run of a shape takes as long as a load, and only that run finds out what
//! tract does not support. It computes on the caller's thread: the build leaves out its
//! multi-threaded matrix product, which is a feature of tract-linalg.
//!
//! tract panics on some broken models, so loading and running stop the unwinding. A stack overflow
//! or an abort is not stopped by that: whoever loads models of others gives them a process.

mod session;

use std::path::Path;

use tract_onnx::pb;
use tract_onnx::prelude::{Framework, TractResult};

use crate::model_file::{check_bytes, check_file, check_options, shorten};
use engine::{
    Engine, EngineError, EngineKind, ErrorKind, LoadOptions, Session, TRACT_VERSION, guard,
};

use session::TractSession;

/// The tract engine.
pub(crate) struct TractEngine;

impl TractEngine {
    pub(crate) fn open() -> Self {
        Self
    }
}

impl Engine for TractEngine {
    fn kind(&self) -> EngineKind {
        EngineKind::Tract
    }

    fn version(&self) -> String {
        TRACT_VERSION.to_owned()
    }

    fn load(&self, model: &Path, options: &LoadOptions) -> Result<Box<dyn Session>, EngineError> {
        check_file(model)?;
        let what = format!("the model {}", model.display());
        let folder = model.parent().and_then(Path::to_str);
        prepare(&what, options, folder, || tract_onnx::onnx().proto_model_for_path(model))
    }

    fn load_bytes(
        &self,
        bytes: &[u8],
        options: &LoadOptions,
    ) -> Result<Box<dyn Session>, EngineError> {
        check_bytes(bytes)?;
        let mut reader = bytes;
        prepare("the model", options, None, || tract_onnx::onnx().proto_model_for_read(&mut reader))
    }
}

fn prepare(
    what: &str,
    options: &LoadOptions,
    folder: Option<&str>,
    decode: impl FnOnce() -> TractResult<pb::ModelProto>,
) -> Result<Box<dyn Session>, EngineError> {
    check_options(options)?;
    if options.optimized_model_path.is_some() {
        return Err(EngineError::unsupported("tract cannot write its optimized model as ONNX"));
    }
    guard(ErrorKind::Load, what, || {
        let proto = decode().map_err(|e| {
            EngineError::load(format!(
                "{what} is not a whole ONNX model: {}",
                shorten(format!("{e:#}"))
            ))
        })?;
        let session = TractSession::new(what, proto, folder, options.batch)?;
        Ok(Box::new(session) as Box<dyn Session>)
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_the_one_in_the_lock_file() {
        let lock = concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.lock");
        let text = std::fs::read_to_string(lock).unwrap();
        let wanted = format!("name = \"tract-onnx\"\nversion = \"{TRACT_VERSION}\"\n");
        assert!(text.contains(&wanted), "Cargo.lock has another tract-onnx");
    }
}
