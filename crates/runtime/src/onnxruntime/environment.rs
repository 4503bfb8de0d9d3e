//! The library of this process and its one environment.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use ort::environment::Environment;

use super::raw;
use engine::{EngineError, ErrorKind, MINIMUM_VERSION, find_library, guard};

/// The library that this process has loaded, and its environment.
#[derive(Clone)]
pub(super) struct Loaded {
    pub(super) path: PathBuf,
    pub(super) version: String,
    pub(super) environment: Environment,
}

static LOADED: Mutex<Option<Loaded>> = Mutex::new(None);

/// The environment of `chosen`, or of whatever library is loaded or found where none is chosen.
///
/// # Errors
/// The library is not usable, or another one is loaded already.
pub(super) fn loaded(chosen: Option<&Path>) -> Result<Loaded, EngineError> {
    let mut slot = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(loaded) = &*slot {
        check_same(loaded, chosen)?;
        return Ok(loaded.clone());
    }
    let found = find_library(chosen)?;
    // The loader and the comparison of a later call both want the file, not a way to it.
    let path = found.canonicalize().unwrap_or(found);
    let loaded = guard(ErrorKind::Library, path.display(), || load(&path))?;
    *slot = Some(loaded.clone());
    Ok(loaded)
}

fn check_same(loaded: &Loaded, chosen: Option<&Path>) -> Result<(), EngineError> {
    let Some(chosen) = chosen else {
        return Ok(());
    };
    if chosen.canonicalize().is_ok_and(|path| path == loaded.path) {
        return Ok(());
    }
    Err(EngineError::library(format!(
        "this process already runs ONNX Runtime {} from {}, and it cannot load {} beside it: start another process for that",
        loaded.version,
        loaded.path.display(),
        chosen.display(),
    )))
}

fn load(path: &Path) -> Result<Loaded, EngineError> {
    let version = raw::library_version(path)?;
    if !new_enough(&version) {
        return Err(EngineError::library(format!(
            "{} is ONNX Runtime {version}, which is too old: {MINIMUM_VERSION} or later is needed",
            path.display()
        )));
    }
    let builder = ort::init_from(path).map_err(|e| {
        EngineError::caused(
            ErrorKind::Library,
            format_args!("ONNX Runtime cannot be loaded from {}", path.display()),
            &e,
        )
    })?;
    let environment = builder.with_name("espalier").with_telemetry(false).build().map_err(|e| {
        EngineError::caused(
            ErrorKind::Library,
            format_args!("ONNX Runtime at {} does not start", path.display()),
            &e,
        )
    })?;
    Ok(Loaded { path: path.to_path_buf(), version, environment })
}

fn new_enough(version: &str) -> bool {
    fn numbers(text: &str) -> Option<(u32, u32)> {
        let mut parts = text.split('.');
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    }
    numbers(version) >= numbers(MINIMUM_VERSION)
}

#[cfg(test)]
mod tests {
    use super::new_enough;

    #[test]
    fn versions_compare_as_numbers() {
        assert!(new_enough("1.17.0"));
        assert!(new_enough("1.26.0"));
        assert!(new_enough("2.0.0"));
        assert!(!new_enough("1.16.3"));
        assert!(!new_enough("1.9.0"));
        assert!(!new_enough("nonsense"));
    }
}
