//! The traits an engine implements, and the options it is opened with.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::EngineError;
use crate::spec::IoSpec;
use crate::tensor::Tensor;

/// The version of tract that this workspace is built with; a test of `espalier-runtime` compares it with
/// the lock file. ONNX Runtime is a library of its own, and tells its version itself.
pub const TRACT_VERSION: &str = "0.23.9";

/// Which engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EngineKind {
    /// tract: pure Rust, part of the binary.
    Tract,
    /// ONNX Runtime: a shared library, loaded at run time.
    Ort,
}

impl EngineKind {
    /// Every engine, compiled in or not.
    pub const ALL: [Self; 2] = [Self::Tract, Self::Ort];

    /// The name in configuration and on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tract => "tract",
            Self::Ort => "ort",
        }
    }
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The text is the name of no engine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is no engine: there are \"tract\" and \"ort\"")]
pub struct UnknownEngine(pub String);

impl FromStr for EngineKind {
    type Err = UnknownEngine;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == text)
            .ok_or_else(|| UnknownEngine(text.to_owned()))
    }
}

/// How to open an engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineOptions {
    /// Which engine.
    pub kind: EngineKind,
    /// Threads that compute one request; 0 counts as 1. See [`Engine::threads`].
    pub threads: usize,
    /// The ONNX Runtime library; without it, [`crate::find_library`] looks for one.
    pub ort_library: Option<PathBuf>,
    /// Whether ONNX Runtime keeps the memory of one run for the next, as [`LoadOptions::keep_memory`] asks for a single
    /// model. tract has no such memory.
    pub arena: bool,
    /// Whether ONNX Runtime's threads wait for work without sleeping. tract has no threads of its own.
    pub spinning: bool,
}

impl EngineOptions {
    /// `kind` on one thread, its library searched for, as small devices want it.
    pub fn new(kind: EngineKind) -> Self {
        Self { kind, threads: 1, ort_library: None, arena: false, spinning: false }
    }
}

/// How to load a model.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoadOptions {
    /// Fixes the batch: the first axis of each input, where it is free, and every other axis of
    /// the model that goes by the same name. Other free axes stay free.
    pub batch: Option<usize>,
    /// Where ONNX Runtime writes the graph it made of the model. tract refuses it.
    pub optimized_model_path: Option<PathBuf>,
    /// Whether ONNX Runtime keeps the memory of one run for the next: faster for many runs on a
    /// host, at the price of holding the most that any took. tract has no such memory.
    pub keep_memory: bool,
}

/// An engine that is ready to load models.
pub trait Engine: Send + Sync {
    /// Which engine this is.
    fn kind(&self) -> EngineKind;

    /// Its version, as `1.26.0`.
    fn version(&self) -> String;

    /// The threads that compute one request. It can be fewer than asked for: tract as it is built
    /// here computes on the caller's thread alone.
    fn threads(&self) -> usize {
        1
    }

    /// Reads and prepares the model at `model`. External data is looked for beside it.
    ///
    /// # Errors
    /// The file cannot be read, is no model, or is one that this engine does not support.
    fn load(&self, model: &Path, options: &LoadOptions) -> Result<Box<dyn Session>, EngineError>;

    /// Prepares a model held in memory, which has no external data.
    ///
    /// # Errors
    /// The bytes are no model, or one that this engine does not support.
    fn load_bytes(
        &self,
        bytes: &[u8],
        options: &LoadOptions,
    ) -> Result<Box<dyn Session>, EngineError>;
}

/// A loaded model.
pub trait Session: Send {
    /// What the model takes, in the model's order.
    fn inputs(&self) -> &[IoSpec];

    /// What the model gives, in the model's order.
    fn outputs(&self) -> &[IoSpec];

    /// Runs the model once. The outputs come in the order of [`Session::outputs`].
    ///
    /// # Errors
    /// The inputs do not fit (see [`crate::check_inputs`]), or the engine failed.
    fn run(&mut self, inputs: &[(&str, &Tensor)]) -> Result<Vec<(String, Tensor)>, EngineError>;
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn engine_names_lead_back_to_their_kinds() {
        for kind in EngineKind::ALL {
            assert_eq!(kind.to_string().parse::<EngineKind>().unwrap(), kind);
        }
        assert_eq!(
            "rten".parse::<EngineKind>().unwrap_err().to_string(),
            "\"rten\" is no engine: there are \"tract\" and \"ort\""
        );
    }
}
