//! The parts together, with real servers: what the tests of this package share.

use std::env;
use std::path::PathBuf;

/// The workspace's root.
#[must_use]
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A path that `cargo xtask test` hands to the tests.
///
/// # Panics
/// When the variable is unset: the tests need real servers, models and data.
#[must_use]
pub fn provided(variable: &str) -> PathBuf {
    env::var_os(variable).map_or_else(
        || panic!("{variable} is not set: run the tests through `cargo xtask test`"),
        PathBuf::from,
    )
}

/// A binary of this workspace, built in release mode.
///
/// # Panics
/// When it was not built.
#[must_use]
pub fn binary(name: &str) -> PathBuf {
    let path = provided("ESPALIER_BIN").join(name);
    assert!(path.is_file(), "{} was not built", path.display());
    path
}

/// A fetched model or data file.
///
/// # Panics
/// When it was not fetched.
#[must_use]
pub fn asset(name: &str) -> PathBuf {
    let path = provided("ESPALIER_ASSETS").join(name);
    assert!(path.exists(), "{} was not fetched", path.display());
    path
}
