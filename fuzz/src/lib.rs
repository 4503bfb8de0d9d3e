//! What fuzzers feed with arbitrary bytes.
//!
//! Each module has one function, `take`, which reads bytes as the agent reads them from outside and holds the
//! outcome against what must be true of it: nothing panics, what was accepted is written and read back as the
//! same, and no limit is passed. `cargo xtask fuzz` feeds them with what changes which code is reached; the tests
//! of this package with what is kept in `corpus/` and `regressions/`.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

pub mod bundle;
pub mod manifest;
pub mod oip;
pub mod spool;
pub mod wire;

/// What became of an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is what it was read as.
    Accepted,
    /// It is not, and that was said.
    Refused,
}

impl Verdict {
    fn of<T, E>(result: &Result<T, E>) -> Self {
        if result.is_ok() { Self::Accepted } else { Self::Refused }
    }
}

/// Reads one input.
pub type Take = fn(&[u8]) -> Verdict;

/// Every target by its name, which is that of its folder of inputs.
pub const TARGETS: &[(&str, Take)] = &[
    ("wire", wire::take),
    ("oip", oip::take),
    ("bundle", bundle::take),
    ("spool", spool::take),
    ("manifest", manifest::take),
];

/// This package's folder.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_path_buf()
}

/// A folder of its own for one input.
///
/// # Panics
/// When there is no place for temporary files.
pub(crate) fn scratch() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder for temporary files")
}
