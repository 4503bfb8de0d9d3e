//! The standard library for another machine, as rustc looks for it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::{Foreign, backports, bare_cargo};
use crate::{paths, process};

/// A package that holds nothing, so that only the standard library is built.
const MANIFEST: &str = "\
[package]
name = \"nothing\"
version = \"0.0.0\"
edition = \"2024\"

[workspace]

[profile.release]
debug = false
";

/// What there is of a standard library.
pub(super) enum Found {
    /// A folder for `--sysroot`.
    At(PathBuf),
    /// Why it can be built no more.
    NoSource(String),
}

/// The standard library for that machine, built if need be: about a minute of processor time.
pub(super) fn of(foreign: &Foreign) -> Result<Found> {
    let toolchain = Toolchain::own()?;
    let root = paths::target()?.join("sysroots").join(toolchain.folder());
    let libraries = root.join("lib/rustlib").join(foreign.triple).join("lib");
    if libraries.is_dir() {
        return Ok(Found::At(root));
    }
    let source = match backports::rust_source(&toolchain.release)? {
        backports::Source::At(folder) => folder,
        backports::Source::Gone(why) => return Ok(Found::NoSource(why)),
    };
    eprintln!("building Rust's standard library for {}", foreign.triple);
    let built = build(foreign, &source)?;
    let partial = libraries.with_extension("partial");
    fs::remove_dir_all(&partial).ok();
    fs::create_dir_all(&partial).with_context(|| format!("cannot create {}", partial.display()))?;
    let mut copied = Vec::new();
    for entry in fs::read_dir(&built).with_context(|| format!("cannot list {}", built.display()))? {
        let file = entry?.path();
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.ends_with(".rlib") && !name.starts_with("libnothing-") {
            fs::copy(&file, partial.join(&name))
                .with_context(|| format!("cannot copy {}", file.display()))?;
            copied.push(name);
        }
    }
    for wanted in ["libcore-", "liballoc-", "libstd-", "libpanic_unwind-"] {
        let is_there = copied.iter().any(|name| name.starts_with(wanted));
        ensure!(is_there, "the build of the standard library left no {wanted}*.rlib");
    }
    fs::rename(&partial, &libraries)
        .with_context(|| format!("cannot write {}", libraries.display()))?;
    Ok(Found::At(root))
}

/// Builds it and returns the folder with its libraries.
fn build(foreign: &Foreign, source: &Path) -> Result<PathBuf> {
    let folder = paths::target()?.join("sysroots").join("nothing");
    // Another version of the compiler must not find what this one left.
    let target = folder.join("target");
    fs::remove_dir_all(&target).ok();
    fs::create_dir_all(folder.join("src"))
        .with_context(|| format!("cannot create {}", folder.display()))?;
    fs::write(folder.join("Cargo.toml"), MANIFEST)?;
    fs::write(folder.join("src/lib.rs"), "#![no_std]\n")?;
    let mut cargo = bare_cargo(foreign)?;
    cargo
        .current_dir(&folder)
        .env("CARGO_TARGET_DIR", &target)
        // The flag that builds it is not stable; the compiler that is given it is the stable one all the same.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("__CARGO_TESTS_ONLY_SRC_ROOT", source)
        // For profiles that optimise over crates.
        .env(super::variable(foreign, "RUSTFLAGS"), "-Cembed-bitcode=yes")
        .args(["build", "--release", "--quiet", "-Zbuild-std=std,panic_abort", "--target"])
        .arg(foreign.triple);
    process::run(&mut cargo)
        .with_context(|| format!("cannot build Rust's standard library for {}", foreign.triple))?;
    Ok(target.join(foreign.triple).join("release/deps"))
}

/// The compiler, as far as its standard library must match it.
struct Toolchain {
    /// Such as `1.95.0`.
    release: String,
    commit: String,
}

impl Toolchain {
    fn own() -> Result<Self> {
        let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        Self::read(&process::output(std::process::Command::new(rustc).arg("-vV"))?)
    }

    fn read(version: &str) -> Result<Self> {
        let field = |name: &str| {
            let line = version.lines().find_map(|line| line.strip_prefix(name));
            line.map(str::trim).map(str::to_owned).with_context(|| format!("rustc -vV: no {name}"))
        };
        Ok(Self { release: field("release:")?, commit: field("commit-hash:")? })
    }

    fn folder(&self) -> String {
        let commit = self.commit.get(..9).unwrap_or(&self.commit);
        format!("{}-{commit}", self.release)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_standard_library_is_kept_for_one_compiler() {
        let text = "rustc 1.95.0 (59807616e 2026-04-14)\nbinary: rustc\n\
                    commit-hash: 59807616e1fa2540724bfbac14d7976d7e4a3860\nrelease: 1.95.0\n";
        let toolchain = Toolchain::read(text).unwrap();
        assert_eq!(toolchain.folder(), "1.95.0-59807616e");
        assert!(Toolchain::read("rustc 1.95.0").is_err());
        Toolchain::own().unwrap();
    }
}
