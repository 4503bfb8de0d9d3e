//! Inference engines behind one trait: tract and ONNX Runtime.
//!
//! [`open`] gives an [`Engine`]. What an engine is, and what goes into it and out of it, is in
//! `espalier-engine`, whose types this crate hands on. Nothing outside this crate names tract or ort.
//!
//! Invariant: an engine that is not compiled in is refused by name, never replaced by the other one.
//!
//! What it does not do: it does not download a library, schedule requests, or read configuration.

#[cfg(all(any(feature = "tract", feature = "ort"), target_endian = "big"))]
compile_error!("tensors are little-endian bytes and are handed to the engines as they are");

#[cfg(any(feature = "tract", feature = "ort"))]
mod model_file;
#[cfg(feature = "ort")]
mod onnxruntime;
#[cfg(feature = "tract")]
mod tract;

pub use engine::{
    ElementType, Engine, EngineError, EngineKind, EngineOptions, ErrorKind, IoSpec,
    LIBRARY_VARIABLE, LoadOptions, MINIMUM_VERSION, Session, Tensor, UnknownEngine, check_inputs,
    check_library, features, find_library, measure,
};
#[cfg(any(feature = "tract", feature = "ort"))]
pub use model_file::MAX_MODEL_BYTES;

/// Opens an engine.
///
/// ONNX Runtime has one environment per process, for ever: the first library that opens is the one
/// this process uses. A later call that asks for another file is an error; one that asks for none
/// in particular gets the one that is open.
///
/// # Errors
/// The engine is not compiled in, or its library is missing, is no library for this machine, is
/// not ONNX Runtime, or is too old; the text names the path and the version wanted.
pub fn open(options: &EngineOptions) -> Result<Box<dyn Engine>, EngineError> {
    match options.kind {
        #[cfg(feature = "tract")]
        EngineKind::Tract => Ok(Box::new(crate::tract::TractEngine::open())),
        #[cfg(feature = "ort")]
        EngineKind::Ort => Ok(Box::new(crate::onnxruntime::OrtEngine::open(options)?)),
        #[cfg(not(all(feature = "tract", feature = "ort")))]
        kind => Err(EngineError::library(format!(
            "the engine {kind} is not compiled into this program (feature \"{kind}\" of espalier-runtime); it has {}",
            compiled_in()
        ))),
    }
}

/// Each engine with its version, or why it cannot be opened here.
///
/// This opens them: afterwards the ONNX Runtime library that was found is this process's.
pub fn available() -> Vec<(EngineKind, Result<String, EngineError>)> {
    EngineKind::ALL
        .into_iter()
        .map(|kind| {
            let version = open(&EngineOptions::new(kind)).map(|engine| engine.version());
            (kind, version)
        })
        .collect()
}

#[cfg(not(all(feature = "tract", feature = "ort")))]
fn compiled_in() -> &'static str {
    if cfg!(feature = "tract") {
        "tract only"
    } else if cfg!(feature = "ort") {
        "ort only"
    } else {
        "no engine at all"
    }
}

#[cfg(all(test, not(any(feature = "tract", feature = "ort"))))]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_that_is_not_compiled_in_is_refused_by_name() {
        for (kind, result) in available() {
            let error = result.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Library);
            assert!(
                error.to_string().contains(&format!("the engine {kind} is not compiled")),
                "{error}"
            );
        }
    }
}
