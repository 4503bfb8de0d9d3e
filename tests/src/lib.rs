//! The parts together, with real servers: what the tests of this package share.

pub mod files;
pub mod offers;

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

/// Options for a stack that is faster than any real board, so that a test of behaviour is not a test of
/// patience: mosquitto, one thread, short windows.
#[must_use]
pub fn quick_stack(run: &std::path::Path) -> edge_sim::live::StackOptions {
    use edge_sim::live::{Binaries, StackOptions};
    let binaries = Binaries::in_dir(&provided("ESPALIER_BIN"));
    let mut options = StackOptions::new(binaries, &provided("ESPALIER_ASSETS"), run);
    options.broker = edge_sim::broker::BrokerKind::Mosquitto;
    options.board = edge_sim::profiles::find("raspberry-pi-5").expect("an embedded profile");
    options.window = std::time::Duration::from_millis(500);
    options.install.shadow_requests = 3;
    options.install.probation_windows = 2;
    options.breach.min_requests = 2;
    options
}
