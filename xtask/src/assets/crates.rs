//! Data that travels inside crates: fetched by cargo into its own registry folder, never built.

use std::path::Path;

use anyhow::{Context, Result, bail};
use cargo_metadata::{CargoOpt, MetadataCommand};

use super::catalogue::CrateFile;
use super::{is_placed, place};
use crate::{build, paths, process};

/// Fetches the crate (pinned with its checksum in the lock file beside the manifest) and places the file.
pub(super) fn fetch(file: &CrateFile, folder: &Path) -> Result<()> {
    let to = folder.join(file.name);
    if is_placed(&to, file.sha256) {
        return Ok(());
    }
    let source = source_of(file)?;
    place(&source.join(file.path), &to, file.sha256)
}

/// Unpacks the sources of every crate that this workspace builds on this machine into cargo's registry
/// folder; nothing is built.
pub(super) fn fetch_sources() -> Result<()> {
    let version = process::output(build::cargo()?.arg("-vV"))?;
    let host = host(&version).context("`cargo -vV` names no host")?;
    process::output(build::cargo()?.args(["fetch", "--locked", "--target", host]))
        .map(drop)
        .context("cargo could not fetch this workspace's crates (is the crate registry reachable?)")
}

fn host(version: &str) -> Option<&str> {
    version.lines().find_map(|line| line.strip_prefix("host: "))
}

fn source_of(file: &CrateFile) -> Result<std::path::PathBuf> {
    let metadata = MetadataCommand::new()
        .manifest_path(paths::root().join("xtask/assets/Cargo.toml"))
        .features(CargoOpt::AllFeatures)
        .other_options([
            "--locked".into(),
            "--filter-platform".into(),
            "x86_64-unknown-linux-gnu".into(),
        ])
        .exec()
        .with_context(|| {
            format!(
                "cargo could not fetch {} {} (is the crate registry reachable?)",
                file.krate, file.version
            )
        })?;
    let found = metadata.packages.iter().find(|package| {
        *package.name == *file.krate && package.version.to_string() == file.version
    });
    let Some(package) = found else {
        bail!("xtask/assets/Cargo.lock does not pin {} {}", file.krate, file.version);
    };
    let manifest = package.manifest_path.as_std_path();
    Ok(manifest.parent().unwrap_or(manifest).to_path_buf())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_host_is_read_from_cargo_s_version() {
        let text = "cargo 1.95.0\nrelease: 1.95.0\nhost: aarch64-unknown-linux-gnu\nos: Debian\n";
        assert_eq!(super::host(text), Some("aarch64-unknown-linux-gnu"));
        assert_eq!(super::host("cargo 1.95.0"), None);
    }
}
