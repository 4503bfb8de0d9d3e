//! Programs for other machines, built on this one without a container (docs/adr/0019).
//!
//! Debian has the compilers and C libraries for them. The toolchain's standard library for them is built here, once for
//! each target and version of the compiler, from the source that Debian's backports carry.

mod backports;
mod sysroot;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::{assets, build, paths, process};

/// A machine that is built for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Foreign {
    /// Rust's name of it.
    pub(crate) triple: &'static str,
    /// Begins the names of GNU's tools for it.
    gnu: &'static str,
    /// Debian packages with those tools and the C library.
    packages: &'static [&'static str],
    /// Runs its programs here.
    emulator: &'static str,
}

/// The machines that are built for without a container.
pub(crate) const FOREIGN: &[Foreign] = &[
    Foreign {
        triple: "aarch64-unknown-linux-gnu",
        gnu: "aarch64-linux-gnu",
        packages: &["gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"],
        emulator: "qemu-aarch64-static",
    },
    Foreign {
        triple: "armv7-unknown-linux-gnueabihf",
        gnu: "arm-linux-gnueabihf",
        packages: &["gcc-arm-linux-gnueabihf", "libc6-dev-armhf-cross"],
        emulator: "qemu-arm-static",
    },
];

/// The profile of what the tests run: cheap to compile, slow.
const TEST_PROFILE: &str = "cross";
/// What runs on a device.
const PROGRAMS: [&str; 2] = ["espalier-agent", "espalier-worker"];
/// Where Debian has the cross compilers for all of [`FOREIGN`].
const HOST: &str = "x86_64";

/// What the tests have of other machines.
pub(crate) enum ForTests {
    /// The folder that holds `TRIPLE/cross` with the programs.
    Built(PathBuf),
    /// Why there is nothing.
    Skipped(String),
}

/// The machine of a target's name.
pub(crate) fn find(triple: &str) -> Option<&'static Foreign> {
    FOREIGN.iter().find(|foreign| foreign.triple == triple)
}

/// Builds the agent and its worker for every other machine, as the tests run them.
pub(crate) fn for_tests() -> Result<ForTests> {
    if std::env::consts::ARCH != HOST {
        return Ok(ForTests::Skipped(format!("they are built on {HOST} alone")));
    }
    assets::for_foreign()?;
    for foreign in FOREIGN {
        assets::emulator(foreign.emulator)?;
        let std = match sysroot::of(foreign)? {
            sysroot::Found::At(folder) => folder,
            sysroot::Found::NoSource(why) => return Ok(ForTests::Skipped(why)),
        };
        let mut cargo = cargo_with(foreign, &std)?;
        forget_other_clone(foreign, TEST_PROFILE)?;
        cargo.args(["build", "--bins", "--profile", TEST_PROFILE, "--target", foreign.triple]);
        cargo.args(PROGRAMS.iter().flat_map(|program| ["--package", program]));
        process::run(&mut cargo)?;
    }
    Ok(ForTests::Built(target()?))
}

/// A `cargo` that builds for that machine with this profile, and the folder where it leaves programs.
pub(crate) fn cargo(foreign: &Foreign, profile: &str) -> Result<(Command, PathBuf)> {
    ensure!(
        std::env::consts::ARCH == HOST,
        "Debian has the compilers for {} on {HOST} alone; build there, or with `--through cross`",
        foreign.triple
    );
    let std = match sysroot::of(foreign)? {
        sysroot::Found::At(folder) => folder,
        sysroot::Found::NoSource(why) => anyhow::bail!("{why}; `--through cross` needs none"),
    };
    forget_other_clone(foreign, profile)?;
    Ok((cargo_with(foreign, &std)?, target()?.join(foreign.triple).join(profile)))
}

fn cargo_with(foreign: &Foreign, std: &Path) -> Result<Command> {
    let mut cargo = bare_cargo(foreign)?;
    let flags = format!("--sysroot={}", std.display());
    ensure!(!flags.contains(' '), "RUSTFLAGS cannot hold the space in {}", std.display());
    cargo.env(variable(foreign, "RUSTFLAGS"), flags);
    Ok(cargo)
}

/// Without a standard library.
fn bare_cargo(foreign: &Foreign) -> Result<Command> {
    assets::packages(&tool(foreign, "gcc"), foreign.packages)?;
    let mut cargo = build::cargo()?;
    let underscored = foreign.triple.replace('-', "_");
    cargo
        .env("CARGO_TARGET_DIR", target()?)
        // They would take the place of the target's own, the standard library's folder among them.
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env(variable(foreign, "LINKER"), tool(foreign, "gcc"))
        .env(format!("CC_{underscored}"), tool(foreign, "gcc"))
        .env(format!("AR_{underscored}"), tool(foreign, "ar"));
    Ok(cargo)
}

fn variable(foreign: &Foreign, what: &str) -> String {
    let triple = foreign.triple.replace('-', "_").to_ascii_uppercase();
    format!("CARGO_TARGET_{triple}_{what}")
}

fn tool(foreign: &Foreign, name: &str) -> String {
    format!("{}-{name}", foreign.gnu)
}

/// Apart from the target folder of this machine's programs: other flags, other dependencies.
fn target() -> Result<PathBuf> {
    Ok(paths::target()?.join("foreign"))
}

fn forget_other_clone(foreign: &Foreign, profile: &str) -> Result<()> {
    let folder = target()?.join(foreign.triple);
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("cannot create {}", folder.display()))?;
    let stamp = folder.join(format!("last-clone-{profile}"));
    build::forget_clone_of(&stamp, || {
        let mut clean = build::cargo()?;
        clean.env("CARGO_TARGET_DIR", target()?);
        clean.args(["clean", "--quiet", "--profile", profile, "--target", foreign.triple]);
        Ok(clean)
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn every_tool_is_named_as_debian_names_it_and_cargo_asks_for_it() {
        let arm = find("armv7-unknown-linux-gnueabihf").unwrap();
        assert_eq!(tool(arm, "gcc"), "arm-linux-gnueabihf-gcc");
        assert_eq!(variable(arm, "LINKER"), "CARGO_TARGET_ARMV7_UNKNOWN_LINUX_GNUEABIHF_LINKER");
        for foreign in FOREIGN {
            assert_eq!(foreign.packages[0], format!("gcc-{}", foreign.gnu));
        }
        assert_eq!(find("riscv64gc-unknown-linux-gnu"), None);
    }

    #[test]
    fn the_test_s_profile_is_cheap_and_unwinds_as_the_agent_must() {
        let manifest = std::fs::read_to_string(paths::root().join("Cargo.toml")).unwrap();
        let manifest: toml::Table = manifest.parse().unwrap();
        let profile = &manifest["profile"][TEST_PROFILE];
        // `release` would hand on its optimised dependencies, which take 25 minutes for tract alone.
        assert_eq!(profile["inherits"].as_str(), Some("dev"));
        assert_eq!(profile["incremental"].as_bool(), Some(false));
        assert_eq!(profile["debug"].as_bool(), Some(false));
        assert!(profile.get("panic").is_none());
    }

    #[test]
    fn cross_knows_every_target_too() {
        let text = std::fs::read_to_string(paths::root().join("cross.toml")).unwrap();
        let table: BTreeMap<String, toml::Value> = toml::from_str(&text).unwrap();
        let targets = table["target"].as_table().unwrap();
        for foreign in FOREIGN {
            let text = targets[foreign.triple]["pre-build"].to_string();
            for package in foreign.packages {
                assert!(text.contains(package), "{package}: {text}");
            }
        }
    }
}
