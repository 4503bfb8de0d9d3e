//! Hosts one model for the agent.
//!
//! The agent starts a process of this program for each model and speaks to it over a socket; how is the
//! agent's business (`espalier_agent::plane`). What this crate adds are the engines. They are kept out of
//! the agent's own program because of what their mere presence costs a process that never computes:
//! tract's tables, relocations and constructors (`docs/adr/0013`).

#![forbid(unsafe_code)]

mod bench;
pub mod cli;

use std::fmt::Display;
use std::fs::File;

use espalier_agent::plane::protocol::{LoadFailure, LoadFault, LoadRequest};
use espalier_agent::plane::worker::{self, ComputeHook};
use runtime::{EngineOptions, ErrorKind, LoadOptions, Session, UnknownEngine};

/// Serves one model over standard input until that closes. The result is the exit code.
pub fn main(hook: Box<dyn ComputeHook + Send>) -> i32 {
    worker::main(hook, load)
}

/// Loads a model: the session, and the engine's name and version.
///
/// # Errors
/// The engine cannot be opened or the file not be read, which says nothing about the model; or the engine
/// refuses it.
pub fn load(request: &LoadRequest) -> Result<(Box<dyn Session>, String), LoadFailure> {
    let kind = request.engine.parse();
    let kind = kind.map_err(|e: UnknownEngine| device(&e))?;
    let engine = runtime::open(&EngineOptions {
        kind,
        threads: request.threads,
        ort_library: request.ort_library.clone(),
        arena: request.arena,
        spinning: request.spinning,
    })
    .map_err(|e| device(&e))?;
    // Engines report a file that cannot be read as they report a bad model.
    let readable = File::open(&request.model);
    readable.map_err(|e| device(&format!("{}: {e}", request.model.display())))?;
    let loaded = engine.load(&request.model, &LoadOptions::default());
    let session = loaded.map_err(|e| match e.kind() {
        ErrorKind::Library => device(&e),
        _ => LoadFailure { fault: LoadFault::Model, error: e.to_string() },
    })?;
    let version = format!("{} {}", engine.kind(), engine.version());
    Ok((session, version))
}

/// A failure that says nothing about the model.
fn device(error: &dyn Display) -> LoadFailure {
    LoadFailure { fault: LoadFault::Device, error: error.to_string() }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn neither_a_missing_engine_nor_a_missing_file_is_the_models_fault() {
        let request = |engine: &str, ort_library: Option<&str>| LoadRequest {
            model: "/nowhere/model.onnx".into(),
            engine: engine.to_owned(),
            threads: 1,
            ort_library: ort_library.map(Into::into),
            arena: false,
            spinning: false,
        };
        let wrong = [
            request("none", None),
            request("ort", Some("/nowhere/libonnxruntime.so")),
            request("tract", None),
        ];
        for request in wrong {
            let failure = load(&request).map(drop).unwrap_err();
            assert_eq!(failure.fault, LoadFault::Device, "{failure:?}");
        }
    }
}
