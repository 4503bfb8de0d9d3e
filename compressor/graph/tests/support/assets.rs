//! Where the models lie that tests read.

use std::path::{Path, PathBuf};

/// The folder of models, from the environment.
pub(crate) fn assets() -> PathBuf {
    let folder = std::env::var_os("ESPALIER_ASSETS");
    folder.expect("ESPALIER_ASSETS is not set: run through `cargo xtask test`").into()
}

/// Every model of the folder, sorted.
#[allow(dead_code)]
pub(crate) fn models() -> Vec<PathBuf> {
    let mut found = Vec::new();
    collect(&assets(), &mut found);
    found.sort();
    found
}

#[allow(dead_code)]
fn collect(folder: &Path, found: &mut Vec<PathBuf>) {
    let entries =
        std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "onnx") {
            found.push(path);
        }
    }
}

/// The Python that has `onnx` and `onnxruntime`.
#[allow(dead_code)]
pub(crate) fn python() -> PathBuf {
    let python = std::env::var_os("ESPALIER_PYTHON");
    python.expect("ESPALIER_PYTHON is not set: run through `cargo xtask test`").into()
}
