//! Building the workspace into the kept target folder.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::{paths, process};

/// Refuses to go on as the runner of another clone: its checks and hashes are not this clone's.
///
/// Cargo takes such a runner for fresh where two clones share a target folder, because it judges by
/// file times.
pub(crate) fn check_runner() -> Result<()> {
    match std::env::var_os("CARGO_MANIFEST_DIR") {
        Some(asked) => same_clone(Path::new(env!("CARGO_MANIFEST_DIR")), Path::new(&asked)),
        None => Ok(()),
    }
}

fn same_clone(built_in: &Path, asked_in: &Path) -> Result<()> {
    // One folder may be reached by two names.
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    anyhow::ensure!(
        real(built_in) == real(asked_in),
        "this task runner was built in {}, not in {}; make cargo build it anew with \
         `cargo clean --release --package xtask`",
        built_in.display(),
        asked_in.display()
    );
    Ok(())
}

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
    forget_clone_of(&target.join("last-clone"), || {
        let mut clean = cargo()?;
        clean.args(["clean", "--release", "--quiet"]);
        Ok(clean)
    })
}

/// As [`forget_other_clone`], for what `clean` cleans once it is told packages; `stamp` names who built last.
pub(crate) fn forget_clone_of(stamp: &Path, clean: impl FnOnce() -> Result<Command>) -> Result<()> {
    let root = paths::root();
    let root = root.to_string_lossy();
    let last = fs::read_to_string(stamp).unwrap_or_default();
    if last == root {
        return Ok(());
    }
    if !last.is_empty() {
        let mut clean = clean()?;
        for package in members()? {
            clean.args(["--package", &package]);
        }
        process::run(&mut clean)?;
    }
    fs::write(stamp, root.as_bytes()).with_context(|| format!("cannot write {}", stamp.display()))
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_runner_of_another_clone_is_refused_with_the_remedy() {
        let here = Path::new("/a/xtask");
        same_clone(here, here).unwrap();
        let error = same_clone(Path::new("/b/xtask"), here).unwrap_err().to_string();
        assert!(error.contains("/b/xtask") && error.contains("cargo clean"), "{error}");
    }

    /// Runs `.ci/run` with a cargo that only writes down what it is asked, and returns that.
    fn asked_of_cargo(scratch: &Path) -> String {
        let log = scratch.join("log");
        fs::write(&log, "").unwrap();
        let path = format!("{}:/usr/bin:/bin", scratch.display());
        let status = Command::new(paths::root().join(".ci/run"))
            .env_clear()
            .env("PATH", path)
            .env("LOG", &log)
            .env("CARGO_TARGET_DIR", scratch.join("target"))
            .status()
            .unwrap();
        assert!(status.success(), "{status}");
        fs::read_to_string(&log).unwrap()
    }

    #[test]
    fn ci_cleans_the_runner_of_another_clone_and_needs_no_home() {
        let scratch = std::env::temp_dir().join(format!("espalier-ci-{}", std::process::id()));
        let target = scratch.join("target");
        fs::create_dir_all(&scratch).unwrap();
        let cargo = scratch.join("cargo");
        fs::write(&cargo, "#!/bin/sh\necho \"$@\" >>\"$LOG\"\n").unwrap();
        fs::set_permissions(&cargo, fs::Permissions::from_mode(0o755)).unwrap();
        let cleans = "clean --quiet --release --package xtask\nxtask test\n";

        assert_eq!(asked_of_cargo(&scratch), "xtask test\n", "nothing was built yet");
        fs::create_dir(target.join("release")).unwrap();
        assert_eq!(asked_of_cargo(&scratch), "xtask test\n", "this clone built last");
        fs::write(target.join("last-runner"), "/another/clone").unwrap();
        assert_eq!(asked_of_cargo(&scratch), cleans);
        assert_eq!(asked_of_cargo(&scratch), "xtask test\n");
        fs::remove_file(target.join("last-runner")).unwrap();
        assert_eq!(asked_of_cargo(&scratch), cleans, "nobody knows who built it");
        fs::remove_dir_all(&scratch).unwrap();
    }
}
