//! Debian packages: installed where they are programs, unpacked into the assets where they are data.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::catalogue::{self, DebianData, Program, Tree};
use crate::{paths, process};

/// A real MQTT 5 broker.
pub(super) fn mosquitto() -> Result<PathBuf> {
    program(&catalogue::MOSQUITTO)
}

/// Checks unit files without a running systemd.
pub(super) fn systemd_analyze() -> Result<PathBuf> {
    program(&catalogue::SYSTEMD_ANALYZE)
}

/// Compiles C++.
pub(super) fn cpp_compiler() -> Result<PathBuf> {
    program(&catalogue::CPP_COMPILER)
}

/// Runs another machine's programs.
pub(super) fn emulator(name: &str) -> Result<PathBuf> {
    found_in(name, catalogue::EMULATORS)
}

/// Installs packages where `program`, which one of them holds, is missing.
pub(super) fn packages(program: &str, packages: &[&str]) -> Result<()> {
    if process::find(program).is_some() {
        return Ok(());
    }
    packages.iter().try_for_each(|package| install(package))?;
    found_in(program, packages.first().copied().unwrap_or_default()).map(drop)
}

/// Writes down the calls of the agent under test.
pub(super) fn strace() -> Result<PathBuf> {
    program(&catalogue::STRACE)
}

/// A tree of files with a systemd that starts: the machine on which the packages are tried.
///
/// It is made once per release and list of packages, which its name says, and never changed.
pub(super) fn tree(wanted: &Tree) -> Result<PathBuf> {
    let (make, _) = (program(&catalogue::MMDEBSTRAP)?, program(&catalogue::NSPAWN)?);
    let trees = paths::target()?.join("trees");
    let packages = wanted.packages.join(",");
    let digest = super::short_digest(&format!("{} {packages}", wanted.suite));
    let tree = trees.join(format!("{}-{digest}", wanted.suite));
    if tree.is_dir() {
        return Ok(tree);
    }
    eprintln!("making a tree of Debian {} with {packages}", wanted.suite);
    fs::create_dir_all(&trees).with_context(|| format!("cannot create {}", trees.display()))?;
    let partial = tree.with_extension("partial");
    process::output(as_root("rm").arg("-rf").arg(&partial))?;
    let mut command = as_root(&make.to_string_lossy());
    command.args(["--variant=minbase", &format!("--include={packages}"), wanted.suite]);
    process::output(command.arg(&partial))
        .context("cannot make a tree of Debian for the tests of the packaged service")?;
    process::output(as_root("mv").arg(&partial).arg(&tree))?;
    Ok(tree)
}

/// Unpacks the package's data into the assets folder, unless all of it is there.
pub(super) fn data(wanted: &DebianData, folder: &Path) -> Result<()> {
    let to = folder.join(wanted.to);
    if count(wanted, &to).is_ok() {
        return Ok(());
    }
    let package = wanted.package;
    eprintln!("fetching {package}");
    let downloads = paths::target()?.join("debs");
    fs::remove_dir_all(&downloads).ok();
    fs::create_dir_all(&downloads)
        .with_context(|| format!("cannot create {}", downloads.display()))?;
    download(package, &downloads)?;
    let file = fs::read_dir(&downloads)?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .with_context(|| format!("apt left no package in {}", downloads.display()))?;
    let unpacked = downloads.join("unpacked");
    process::output(Command::new("dpkg-deb").arg("-x").arg(&file).arg(&unpacked))?;
    let from = unpacked.join(wanted.from);
    count(wanted, &from)?;
    if to.exists() {
        fs::remove_dir_all(&to).with_context(|| format!("cannot remove {}", to.display()))?;
    }
    fs::rename(&from, &to).with_context(|| format!("cannot write {}", to.display()))?;
    fs::remove_dir_all(&downloads).ok();
    Ok(())
}

/// Checks that every folder of the package's data holds as many files as the catalogue says.
fn count(wanted: &DebianData, data: &Path) -> Result<()> {
    for (folder, files) in wanted.counts {
        let found = files_below(&data.join(folder), wanted.extension)
            .with_context(|| format!("{} holds no {folder}", wanted.package))?;
        if found != *files {
            bail!(
                "{} has {found} .{} files in {folder}, wanted the {files} of version {}: it is damaged, \
                 or this is another release of Debian (the catalogue says what is expected)",
                wanted.package,
                wanted.extension,
                wanted.version
            );
        }
    }
    Ok(())
}

fn files_below(folder: &Path, ending: &str) -> std::io::Result<usize> {
    let mut found = 0;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            found += files_below(&path, ending)?;
        } else if path.extension().is_some_and(|extension| extension == ending) {
            found += 1;
        }
    }
    Ok(found)
}

fn download(package: &str, folder: &Path) -> Result<()> {
    let get = || {
        // apt checks the package against the archive's signed index.
        process::output(Command::new("apt-get").args(["download", package]).current_dir(folder))
    };
    if get().is_ok() {
        return Ok(());
    }
    apt(&["update"])?;
    get().map(drop).with_context(|| format!("apt could not fetch {package}"))
}

fn program(wanted: &Program) -> Result<PathBuf> {
    found_in(wanted.name, wanted.package)
}

fn found_in(name: &str, package: &str) -> Result<PathBuf> {
    if let Some(found) = process::find(name) {
        return Ok(found);
    }
    install(package)?;
    process::find(name)
        .with_context(|| format!("Debian's {package} is installed but holds no {name}"))
}

/// Installs a package, with fresh package lists where the ones at hand are too old.
pub(super) fn install(package: &str) -> Result<()> {
    eprintln!("installing {package}");
    let arguments = ["install", "-y", "--no-install-recommends", package];
    if apt(&arguments).is_err() {
        apt(&["update"])?;
        apt(&arguments)?;
    }
    Ok(())
}

fn apt(args: &[&str]) -> Result<String> {
    let mut command = as_root("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").args(args);
    process::output(&mut command).with_context(|| {
        format!("cannot run apt-get {} (run as root, or install by hand)", args.join(" "))
    })
}

/// A command as root, through sudo where we are not root.
fn as_root(program: &str) -> Command {
    let is_root = process::output(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0");
    if is_root {
        return Command::new(program);
    }
    let mut sudo = Command::new("sudo");
    sudo.args(["-n", program]);
    sudo
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const WANTED: DebianData = DebianData {
        package: "libdata",
        version: "1",
        from: "usr/share/data",
        to: "data",
        extension: "onnx",
        counts: &[("node", 2), ("simple", 1)],
    };

    #[test]
    fn data_of_which_one_model_is_missing_is_not_whole() {
        let data = std::env::temp_dir().join(format!("espalier-data-{}", std::process::id()));
        let models = ["node/a/model.onnx", "node/b/model.onnx", "simple/c/model.onnx"];
        for model in models.map(|model| data.join(model)) {
            fs::create_dir_all(model.parent().unwrap()).unwrap();
            fs::write(model, "").unwrap();
        }
        count(&WANTED, &data).unwrap();
        fs::remove_file(data.join("node/b/model.onnx")).unwrap();
        let error = count(&WANTED, &data).unwrap_err().to_string();
        assert!(error.contains("1 .onnx files in node, wanted the 2"), "{error}");
        fs::remove_dir_all(data.join("simple")).unwrap();
        fs::write(data.join("node/b/model.onnx"), "").unwrap();
        assert!(format!("{:#}", count(&WANTED, &data).unwrap_err()).contains("no simple"));
        fs::remove_dir_all(&data).unwrap();
    }
}
