//! tract: pure Rust, part of the binary.

use std::path::Path;

use crate::engine::{Engine, EngineKind, LoadOptions, Session};
use crate::error::EngineError;

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
        String::new()
    }
    fn load(&self, _: &Path, _: &LoadOptions) -> Result<Box<dyn Session>, EngineError> {
        Err(EngineError::unsupported("tract loads nothing yet"))
    }
    fn load_bytes(&self, _: &[u8], _: &LoadOptions) -> Result<Box<dyn Session>, EngineError> {
        Err(EngineError::unsupported("tract loads nothing yet"))
    }
}
