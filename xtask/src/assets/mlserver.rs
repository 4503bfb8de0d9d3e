//! MLServer, which the agent is measured beside: a Python environment of its own.

use std::path::PathBuf;

use anyhow::Result;

use super::python;
use crate::paths;

/// MLServer, ONNX Runtime and all that they need, each with the hash of its wheel for CPython 3.11 on x86-64
/// Linux; pip refuses it elsewhere. As pip resolved `mlserver==1.7.1
/// onnxruntime==1.26.0`, but for uvloop, with whose later versions MLServer's worker processes do not start.
const PACKAGES: &str = include_str!("mlserver.txt");

/// Installs MLServer if need be; returns the Python that has it.
pub(super) fn environment() -> Result<PathBuf> {
    let folder = paths::target()?.join("venv-mlserver");
    python::make_environment("MLServer", &folder, PACKAGES, python::system_python, &[])
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_package_is_pinned_by_version_and_hash() {
        assert!(PACKAGES.contains("mlserver==1.7.1 "));
        for line in PACKAGES.lines() {
            let (package, hash) = line.split_once(" --hash=sha256:").unwrap();
            assert!(package.contains("=="), "{line}");
            assert!(hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit()), "{line}");
        }
    }
}
