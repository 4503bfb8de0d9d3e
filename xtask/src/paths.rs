//! Where things are: the workspace, the kept target folder, the fetched assets.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The workspace's root folder.
pub(crate) fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    let compiled_in = manifest.parent().unwrap_or(manifest);
    // The runner may have been built in another clone that shares the target folder.
    env::var_os("CARGO_MANIFEST_DIR")
        .map(PathBuf::from)
        .and_then(|dir| dir.parent().map(Path::to_path_buf))
        .unwrap_or_else(|| compiled_in.to_path_buf())
}

/// The target folder, kept between clones in the user's cache unless `CARGO_TARGET_DIR` says otherwise.
pub(crate) fn target() -> Result<PathBuf> {
    if let Some(dir) = env::var_os("CARGO_TARGET_DIR") {
        return Ok(root().join(dir));
    }
    let cache = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|dir| dir.is_absolute())
        .or_else(|| env::home_dir().map(|home| home.join(".cache")))
        .context(
            "neither CARGO_TARGET_DIR, XDG_CACHE_HOME nor HOME is set: no place for the build",
        )?;
    Ok(cache.join("espalier/target"))
}

/// Where built binaries lie.
pub(crate) fn binaries() -> Result<PathBuf> {
    Ok(target()?.join("release"))
}

/// Where fetched models and data lie.
pub(crate) fn assets() -> Result<PathBuf> {
    Ok(target()?.join("assets"))
}

/// The Python environment of the tests.
pub(crate) fn python_env() -> Result<PathBuf> {
    Ok(target()?.join("venv"))
}
