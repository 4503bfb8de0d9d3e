//! Building the workspace into the kept target folder.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::{paths, process};

/// A `cargo` that builds into the kept target folder.
pub(crate) fn cargo() -> Result<Command> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .current_dir(paths::root())
        .env("CARGO_TARGET_DIR", paths::target()?)
        // Settings of this runner's own package must not leak into what it builds.
        .env_remove("CARGO_MANIFEST_DIR")
        .env_remove("CARGO_PKG_NAME");
    Ok(command)
}

/// Builds every binary in release mode and returns the folder that holds them.
///
/// Always the whole workspace: one feature set, so that tract is never built twice.
pub(crate) fn binaries() -> Result<PathBuf> {
    forget_other_clone()?;
    eprintln!("building (the first build takes 10 to 20 minutes on two cores)");
    process::run(cargo()?.args(["build", "--release", "--workspace", "--bins"]))?;
    paths::binaries()
}

/// Cargo judges our crates by file times, which mean nothing between two clones that share the target
/// folder: when another clone built last, our crates (not their dependencies) are built anew.
pub(crate) fn forget_other_clone() -> Result<()> {
    let target = paths::target()?;
    fs::create_dir_all(&target)
        .with_context(|| format!("cannot create the target folder {}", target.display()))?;
    let stamp = target.join("last-clone");
    let root = paths::root();
    let root = root.to_string_lossy();
    let last = fs::read_to_string(&stamp).unwrap_or_default();
    if last == root {
        return Ok(());
    }
    if !last.is_empty() {
        let mut clean = cargo()?;
        clean.args(["clean", "--release", "--quiet"]);
        for package in members()? {
            clean.args(["--package", &package]);
        }
        process::run(&mut clean)?;
    }
    fs::write(&stamp, root.as_bytes()).with_context(|| format!("cannot write {}", stamp.display()))
}

/// Names of the workspace's packages, without this runner (which is running).
fn members() -> Result<Vec<String>> {
    let metadata = cargo_metadata::MetadataCommand::new()
        .manifest_path(paths::root().join("Cargo.toml"))
        .no_deps()
        .exec()
        .context("cannot read the workspace's metadata")?;
    Ok(metadata
        .packages
        .into_iter()
        .map(|package| package.name.to_string())
        .filter(|name| name != "xtask")
        .collect())
}
