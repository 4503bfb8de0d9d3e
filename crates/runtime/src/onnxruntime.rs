//! ONNX Runtime: a shared library, loaded at run time.

use std::path::Path;

use crate::engine::{Engine, EngineKind, EngineOptions, LoadOptions, Session};
use crate::error::EngineError;

/// The ONNX Runtime engine.
pub(crate) struct OrtEngine;

impl OrtEngine {
    pub(crate) fn open(_: &EngineOptions) -> Result<Self, EngineError> {
        Err(EngineError::unsupported("ONNX Runtime opens nothing yet"))
    }
}

impl Engine for OrtEngine {
    fn kind(&self) -> EngineKind {
        EngineKind::Ort
    }
    fn version(&self) -> String {
        String::new()
    }
    fn load(&self, _: &Path, _: &LoadOptions) -> Result<Box<dyn Session>, EngineError> {
        Err(EngineError::unsupported("ONNX Runtime loads nothing yet"))
    }
    fn load_bytes(&self, _: &[u8], _: &LoadOptions) -> Result<Box<dyn Session>, EngineError> {
        Err(EngineError::unsupported("ONNX Runtime loads nothing yet"))
    }
}
