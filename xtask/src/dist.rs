//! `cargo xtask dist`: the packaged binaries, for this machine or through `cross` for another.

use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use clap::Args;

use crate::{build, paths, process};

#[derive(Args)]
pub(crate) struct DistArgs {
    /// A target of cross.toml; without it, this machine
    #[arg(long)]
    target: Option<String>,
}

pub(crate) fn run(args: &DistArgs) -> Result<ExitCode> {
    let mut command = match &args.target {
        None => build::cargo()?,
        Some(target) => cross(target)?,
    };
    process::run(command.args(arguments(args.target.as_deref())))?;
    Ok(ExitCode::SUCCESS)
}

/// What cargo is asked for. `cross` passes its arguments on in their order, and cargo takes no option
/// of a subcommand before the subcommand.
fn arguments(target: Option<&str>) -> Vec<&str> {
    let mut arguments = vec!["build"];
    arguments.extend(target.into_iter().flat_map(|target| ["--target", target]));
    arguments.extend(["--profile", "dist"]);
    arguments.extend(["--package", "espalier-agent", "--package", "espalier-worker"]);
    arguments
}

/// `cross` ignores a lower-case `cross.toml` unless `CROSS_CONFIG` names it.
fn cross(target: &str) -> Result<Command> {
    let config = paths::root().join("cross.toml");
    let known = targets(&std::fs::read_to_string(&config).context("cannot read cross.toml")?)?;
    anyhow::ensure!(
        known.iter().any(|name| name == target),
        "cross.toml has no target {target}; it has {}",
        known.join(", ")
    );
    let program = process::find("cross").context(
        "`cross` is not on PATH; install it with `cargo install cross` on a machine with a container engine",
    )?;
    let mut command = Command::new(program);
    command.current_dir(paths::root()).env("CROSS_CONFIG", config);
    Ok(command)
}

/// Target triples that have settings.
fn targets(text: &str) -> Result<Vec<String>> {
    let table: toml::Table = text.parse().context("cross.toml is not TOML")?;
    let targets = table.get("target").and_then(toml::Value::as_table).context("no [target.…]")?;
    Ok(targets.keys().cloned().collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// The keys that cross's configuration knows (its documentation, "Config file").
    const TARGET_KEYS: &[&str] =
        &["xargo", "build-std", "zig", "image", "pre-build", "runner", "dockerfile", "env"];
    const BUILD_KEYS: &[&str] =
        &["xargo", "build-std", "zig", "default-target", "pre-build", "dockerfile", "env", "image"];

    fn text() -> String {
        std::fs::read_to_string(paths::root().join("cross.toml")).unwrap()
    }

    #[test]
    fn cross_toml_names_the_three_targets() {
        let found = targets(&text()).unwrap();
        for wanted in [
            "aarch64-unknown-linux-gnu",
            "armv7-unknown-linux-gnueabihf",
            "x86_64-unknown-linux-gnu",
        ] {
            assert!(
                found.iter().any(|target| target == wanted),
                "{wanted} is missing in {found:?}"
            );
        }
    }

    #[test]
    fn cross_toml_has_no_key_that_cross_would_ignore() {
        let table: toml::Table = text().parse().unwrap();
        for (section, value) in &table {
            match section.as_str() {
                "build" => assert_keys(value, BUILD_KEYS),
                "target" => {
                    value.as_table().unwrap().values().for_each(|v| assert_keys(v, TARGET_KEYS))
                }
                other => panic!("unknown section {other}"),
            }
        }
    }

    fn assert_keys(value: &toml::Value, known: &[&str]) {
        for key in value.as_table().unwrap().keys() {
            assert!(known.contains(&key.as_str()), "unknown key {key}");
        }
    }

    #[test]
    fn the_subcommand_comes_first_with_and_without_a_target() {
        let here = arguments(None);
        let packages = ["--package", "espalier-agent", "--package", "espalier-worker"];
        assert_eq!(here[..3], ["build", "--profile", "dist"]);
        assert_eq!(here[3..], packages);
        let there = arguments(Some("armv7-unknown-linux-gnueabihf"));
        assert_eq!(there[..3], ["build", "--target", "armv7-unknown-linux-gnueabihf"]);
        assert_eq!(there[3..], here[1..]);
    }

    #[test]
    fn a_target_without_settings_is_refused_with_the_list() {
        let error = cross("riscv64gc-unknown-linux-gnu").unwrap_err().to_string();
        assert!(error.contains("aarch64-unknown-linux-gnu"), "{error}");
    }
}
