//! Where the models lie that tests read.

use std::path::{Path, PathBuf};

/// The folder of models, from the environment.
pub(crate) fn assets() -> PathBuf {
    let folder = std::env::var_os("ESPALIER_ASSETS");
    folder.expect("ESPALIER_ASSETS is not set: run through `cargo xtask test`").into()
}

/// How many models each part of the folder holds; the parts of [`NODE_TESTS`] are its whole Debian package.
const PARTS: &[(&str, usize)] = &[
    ("magika.onnx", 1),
    ("models", 11),
    ("light", 9),
    ("onnx-testdata/node", 932),
    ("onnx-testdata/pytorch-converted", 82),
    ("onnx-testdata/pytorch-operator", 35),
    ("onnx-testdata/simple", 23),
];

/// The part of the folder with generated models of few nodes; all others are of real topologies.
#[allow(dead_code)]
pub(crate) const NODE_TESTS: &str = "onnx-testdata";

/// Every model of the folder, sorted.
///
/// # Panics
/// When it holds more or fewer than were counted: "every model" would mean something else.
#[allow(dead_code)]
pub(crate) fn models() -> Vec<PathBuf> {
    let root = assets();
    let mut found = Vec::new();
    collect(&root, &mut found);
    found.sort();
    for (part, count) in PARTS {
        let there = found.iter().filter(|path| path.starts_with(root.join(part))).count();
        assert_eq!(there, *count, "models in {}", root.join(part).display());
    }
    let counted: usize = PARTS.iter().map(|(_, count)| count).sum();
    assert_eq!(found.len(), counted, "models outside the counted parts of {}", root.display());
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
