//! Debian packages of the programs under test, made as `cargo xtask dist` makes them.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{binary, provided};

/// A time that is the same in every package, in seconds since 1970.
const EPOCH: &str = "1700000000";

/// Debian's name of this machine's architecture.
///
/// # Panics
/// On a machine that is not packaged for.
#[must_use]
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "arm" => "armhf",
        other => panic!("no packages are made for {other}"),
    }
}

/// Packages the programs of `$ESPALIER_BIN` into `out`, and returns the package's file.
///
/// # Panics
/// When it cannot be made.
#[must_use]
pub fn dist(package: &str, version: &str, out: &Path) -> PathBuf {
    let output = dist_command(&provided("ESPALIER_BIN"), package, version, out)
        .output()
        .expect("the task runner starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let file = out.join(format!("{package}_{version}_{}.deb", architecture()));
    assert!(file.is_file(), "{}", String::from_utf8_lossy(&output.stdout));
    file
}

/// The task runner's `dist`, for programs in `built`.
#[must_use]
pub fn dist_command(built: &Path, package: &str, version: &str, out: &Path) -> Command {
    let mut command = Command::new(binary("xtask"));
    command
        .args(["dist", package, "--package-version", version, "--built"])
        .arg(built)
        .arg("--out")
        .arg(out)
        .env("SOURCE_DATE_EPOCH", EPOCH)
        // That of this test's package, by which the runner would take it for another clone's.
        .env_remove("CARGO_MANIFEST_DIR");
    command
}
