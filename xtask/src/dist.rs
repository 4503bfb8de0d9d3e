//! `cargo xtask dist`: Debian packages of the programs, for this machine or another.

mod contents;
mod deb;
mod elf;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};

use crate::cross::{self, Foreign};
use crate::{build, paths, process};
use contents::{Parts, RECIPES, Recipe};

/// What is packaged is built for speed and size.
const PROFILE: &str = "dist";
/// Who the packages are from, where `DEBFULLNAME` and `DEBEMAIL` do not say.
const MAINTAINER: (&str, &str) = ("Espalier", "espalier@localhost");

#[derive(Args)]
pub(crate) struct DistArgs {
    /// The packages: espalier-agent (for devices), espalier (the compressor and edge-sim)
    #[arg(default_value = "espalier-agent")]
    packages: Vec<String>,
    /// The machine's target, such as aarch64-unknown-linux-gnu; without it, this machine
    #[arg(long)]
    target: Option<String>,
    /// What builds for another machine
    #[arg(long, value_enum, default_value = "debian", requires = "target")]
    through: Through,
    /// Package the programs of this folder instead of building them
    #[arg(long, value_name = "DIR")]
    built: Option<PathBuf>,
    /// Where the packages go [default: `packages` in the target folder]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// The packages' version [default: the workspace's]
    #[arg(long, value_name = "VERSION", default_value = env!("CARGO_PKG_VERSION"))]
    package_version: String,
}

/// How programs for another machine are built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Through {
    /// Debian's cross compilers, on this machine
    Debian,
    /// `cross` with the settings of cross.toml, in a container
    Cross,
}

pub(crate) fn run(args: &DistArgs) -> Result<ExitCode> {
    let recipes = args.packages.iter().map(|name| recipe(name)).collect::<Result<Vec<_>>>()?;
    check_version(&args.package_version)?;
    let epoch = epoch()?;
    let maintainer = maintainer();
    let programs = match &args.built {
        Some(folder) => folder.clone(),
        None => built(args.target.as_deref(), args.through, &recipes)?,
    };
    // A foreign program cannot write its manual here; the one of this machine is no other.
    let own = if args.target.is_some() { paths::binaries()? } else { programs.clone() };
    let parts = Parts {
        programs: &programs,
        own: &own,
        version: &args.package_version,
        maintainer: &maintainer,
    };
    let out = match &args.out {
        Some(folder) => folder.clone(),
        None => paths::target()?.join("packages"),
    };
    fs::create_dir_all(&out).with_context(|| format!("cannot create {}", out.display()))?;
    for recipe in recipes {
        println!("{}", write(recipe, &parts, epoch, &out)?.display());
    }
    Ok(ExitCode::SUCCESS)
}

fn write(recipe: &Recipe, parts: &Parts<'_>, epoch: u64, out: &Path) -> Result<PathBuf> {
    let (package, architecture) = recipe.gather(parts)?;
    let bytes = package.pack(epoch).with_context(|| format!("cannot pack {}", recipe.name))?;
    let file = out.join(format!("{}_{}_{architecture}.deb", recipe.name, parts.version));
    fs::write(&file, bytes).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(file)
}

fn recipe(name: &str) -> Result<&'static Recipe> {
    RECIPES.iter().find(|recipe| recipe.name == name).with_context(|| {
        let names: Vec<_> = RECIPES.iter().map(|recipe| recipe.name).collect();
        format!("there is no package {name}; there are {}", names.join(", "))
    })
}

/// A version of ours has no epoch and no revision (deb-version(7)).
fn check_version(version: &str) -> Result<()> {
    let fits = |c: char| c.is_ascii_alphanumeric() || ".+~".contains(c);
    ensure!(
        version.starts_with(|c: char| c.is_ascii_digit()) && version.chars().all(fits),
        "{version:?} is no version of a package: it begins with a digit and has letters, digits, `.`, `+` \
         and `~` only"
    );
    Ok(())
}

/// The time that stands in the packages, so that the same source gives the same bytes:
/// `SOURCE_DATE_EPOCH` (reproducible-builds.org), else that of the last commit.
fn epoch() -> Result<u64> {
    let named = env::var("SOURCE_DATE_EPOCH").ok();
    let text = match named {
        Some(text) => text,
        None => process::output(
            Command::new("git").args(["log", "-1", "--format=%ct"]).current_dir(paths::root()),
        )
        .context("the time of the last commit is needed; without git, set SOURCE_DATE_EPOCH")?,
    };
    let text = text.trim();
    text.parse().with_context(|| format!("SOURCE_DATE_EPOCH={text:?} is no number of seconds"))
}

/// As Debian's own tools are told.
fn maintainer() -> String {
    let or = |variable, default: &str| env::var(variable).unwrap_or_else(|_| default.to_owned());
    format!("{} <{}>", or("DEBFULLNAME", MAINTAINER.0), or("DEBEMAIL", MAINTAINER.1))
}

/// Builds the programs and returns their folder.
fn built(target: Option<&str>, through: Through, recipes: &[&Recipe]) -> Result<PathBuf> {
    let (mut command, programs) = match (target, through) {
        (None, _) => (build::cargo()?, paths::target()?.join(PROFILE)),
        (Some(target), Through::Debian) => cross::cargo(foreign(target)?, PROFILE)?,
        (Some(target), Through::Cross) => (contained(target)?, left_by_cross(target)),
    };
    process::run(command.args(arguments(target, recipes)))?;
    if !programs.is_dir() {
        bail!("the build left no folder {}", programs.display());
    }
    Ok(programs)
}

fn foreign(target: &str) -> Result<&'static Foreign> {
    cross::find(target).with_context(|| {
        let names: Vec<_> = cross::FOREIGN.iter().map(|foreign| foreign.triple).collect();
        format!(
            "{target} is not built for with Debian's compilers; {} are, and `--through cross` builds for all \
             that cross.toml has",
            names.join(" and ")
        )
    })
}

/// `cross` builds where its containers see it, unless CARGO_TARGET_DIR says where.
fn left_by_cross(target: &str) -> PathBuf {
    let folder = env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    paths::root().join(folder).join(target).join(PROFILE)
}

/// What cargo is asked for. `cross` passes its arguments on in their order, and cargo takes no option
/// of a subcommand before the subcommand.
fn arguments<'a>(target: Option<&'a str>, recipes: &[&Recipe]) -> Vec<&'a str> {
    let mut arguments = vec!["build"];
    arguments.extend(target.into_iter().flat_map(|target| ["--target", target]));
    arguments.extend(["--profile", PROFILE]);
    for program in recipes.iter().flat_map(|recipe| recipe.built()) {
        arguments.extend(["--package", program]);
    }
    arguments
}

/// `cross` ignores a lower-case `cross.toml` unless `CROSS_CONFIG` names it.
fn contained(target: &str) -> Result<Command> {
    let config = paths::root().join("cross.toml");
    let known = targets(&std::fs::read_to_string(&config).context("cannot read cross.toml")?)?;
    anyhow::ensure!(
        known.iter().any(|name| name == target),
        "cross.toml has no target {target}; it has {}",
        known.join(", ")
    );
    let program = process::find("cross").context(
        "`cross` is not on PATH; install it with `cargo install cross` on a machine with a container engine, \
         or name a folder of programs that were built elsewhere with --built",
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
        let recipes = [recipe("espalier-agent").unwrap()];
        let here = arguments(None, &recipes);
        let packages = ["--package", "espalier-agent", "--package", "espalier-worker"];
        assert_eq!(here[..3], ["build", "--profile", "dist"]);
        assert_eq!(here[3..], packages);
        let there = arguments(Some("armv7-unknown-linux-gnueabihf"), &recipes);
        assert_eq!(there[..3], ["build", "--target", "armv7-unknown-linux-gnueabihf"]);
        assert_eq!(there[3..], here[1..]);
    }

    #[test]
    fn a_target_without_settings_is_refused_with_the_list() {
        let error = contained("riscv64gc-unknown-linux-gnu").unwrap_err().to_string();
        assert!(error.contains("aarch64-unknown-linux-gnu"), "{error}");
    }

    #[test]
    fn a_target_that_debian_has_no_compiler_for_is_refused_with_those_that_it_has() {
        assert_eq!(foreign("aarch64-unknown-linux-gnu").unwrap(), &cross::FOREIGN[0]);
        let error = foreign("x86_64-unknown-linux-gnu").unwrap_err().to_string();
        assert!(error.contains("armv7-unknown-linux-gnueabihf"), "{error}");
        assert!(error.contains("--through cross"), "{error}");
    }

    #[test]
    fn versions_that_dpkg_would_split_or_refuse_are_refused() {
        for version in ["0.1.0", "1", "2.0~rc.1", "1.0+git5"] {
            check_version(version).unwrap();
        }
        for version in ["", "v1", "1.0-1", "1:2", "1 0", "1/2"] {
            assert!(
                check_version(version).unwrap_err().to_string().contains("version"),
                "{version}"
            );
        }
    }

    #[test]
    fn a_package_that_there_is_not_is_refused_with_the_list() {
        let error = recipe("espalier-server").unwrap_err().to_string();
        assert!(error.contains("there are espalier-agent, espalier"), "{error}");
    }
}
