//! Debian packages: installed where they are programs, unpacked into the assets where they are data.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::catalogue::NODE_TESTS_PACKAGE;
use crate::{paths, process};

/// A real MQTT 5 broker.
pub(super) fn mosquitto() -> Result<PathBuf> {
    program("mosquitto", "mosquitto")
}

/// Checks unit files without a running systemd.
pub(super) fn systemd_analyze() -> Result<PathBuf> {
    program("systemd-analyze", "systemd")
}

/// Unpacks the official ONNX node tests into `onnx-testdata/`.
pub(super) fn node_tests(folder: &Path) -> Result<()> {
    let to = folder.join("onnx-testdata");
    if to.join("node/test_relu/model.onnx").exists() {
        return Ok(());
    }
    eprintln!("fetching {NODE_TESTS_PACKAGE}");
    let downloads = paths::target()?.join("debs");
    fs::create_dir_all(&downloads)
        .with_context(|| format!("cannot create {}", downloads.display()))?;
    download(&downloads)?;
    let package = fs::read_dir(&downloads)?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with(NODE_TESTS_PACKAGE) && name.ends_with(".deb")
        })
        .with_context(|| format!("apt left no package in {}", downloads.display()))?;
    let unpacked = downloads.join("unpacked");
    process::output(Command::new("dpkg-deb").arg("-x").arg(&package).arg(&unpacked))?;
    let data = unpacked.join("usr/share").join(NODE_TESTS_PACKAGE).join("data");
    fs::remove_dir_all(&to).ok();
    fs::rename(&data, &to).with_context(|| format!("{NODE_TESTS_PACKAGE} holds no data folder"))?;
    fs::remove_dir_all(&downloads).ok();
    Ok(())
}

fn download(folder: &Path) -> Result<()> {
    let get = |folder: &Path| {
        // apt checks the package against the archive's signed index.
        process::output(
            Command::new("apt-get").args(["download", NODE_TESTS_PACKAGE]).current_dir(folder),
        )
    };
    if get(folder).is_ok() {
        return Ok(());
    }
    apt(&["update"])?;
    get(folder).map(drop).with_context(|| format!("apt could not fetch {NODE_TESTS_PACKAGE}"))
}

fn program(name: &str, package: &str) -> Result<PathBuf> {
    if let Some(found) = process::find(name) {
        return Ok(found);
    }
    eprintln!("installing {package}");
    if apt(&["install", "-y", "--no-install-recommends", package]).is_err() {
        apt(&["update"])?;
        apt(&["install", "-y", "--no-install-recommends", package])?;
    }
    match process::find(name) {
        Some(found) => Ok(found),
        None => bail!("Debian's {package} is installed but holds no {name}"),
    }
}

/// Runs apt-get as root, through sudo where we are not root.
fn apt(args: &[&str]) -> Result<String> {
    let is_root = process::output(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0");
    let mut command = if is_root {
        Command::new("apt-get")
    } else {
        let mut sudo = Command::new("sudo");
        sudo.args(["-n", "apt-get"]);
        sudo
    };
    command.env("DEBIAN_FRONTEND", "noninteractive").args(args);
    process::output(&mut command).with_context(|| {
        format!("cannot run apt-get {} (run as root, or install by hand)", args.join(" "))
    })
}
