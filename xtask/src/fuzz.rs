//! `cargo xtask fuzz`: fuzzers that follow what code an input reaches, with the toolchain that builds everything else.
//!
//! The compiler is told to count what is reached in our own crates; their dependencies are those of the release build.
//! What an input must hold is in the package `fuzz`, whose tests try the inputs that are kept without any of this.

mod corpus;
mod report;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::thread;

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::{assets, build, paths, process};
use corpus::Folders;
use report::Found;

/// What is fuzzed with every run of the tests: all that comes to an agent from outside.
const AGENT: &[&str] = &["wire", "oip", "bundle", "spool", "manifest"];
/// What comes to the compressor.
const MODELS: &[&str] = &["import", "edit"];
/// For how long, in seconds.
const SECONDS: u32 = 60;
/// One input may take this long; more is a finding.
const INPUT_SECONDS: u32 = 20;
/// One fuzzer may take this much memory; more is a finding.
const MEMORY_MIB: u32 = 1024;
/// The longest input that is made up.
const INPUT_BYTES: u32 = 16 << 10;

/// For what is committed: short, and however often an edge is taken is one.
const FEWEST: [&str; 2] = ["-use_counters=0", "-max_len=2048"];

/// What LLVM's pass for coverage is asked for, as libFuzzer wants it: which edge was taken how often, and what
/// was compared with what.
const COUNTING: &[&str] = &[
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];

#[derive(Args)]
pub(crate) struct FuzzArgs {
    /// What to fuzz: wire, oip, bundle, spool, manifest (all five if none is named), import, edit
    targets: Vec<String>,
    /// For how long, each of them
    #[arg(long, default_value_t = SECONDS, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    seconds: u32,
    /// Put the least inputs that reach all that was reached into fuzz/corpus
    #[arg(long)]
    keep: bool,
}

pub(crate) fn run(args: &FuzzArgs) -> Result<ExitCode> {
    let named: Vec<&str> = args.targets.iter().map(String::as_str).collect();
    let targets = if named.is_empty() { AGENT.to_vec() } else { named };
    for target in &targets {
        let known = AGENT.iter().chain(MODELS).any(|known| known == target);
        ensure!(known, "{target} is not fuzzed; {} are", [AGENT, MODELS].concat().join(", "));
    }
    let binaries = binaries(&targets)?;
    let code = all(&targets, &binaries, args.seconds)?;
    if args.keep && code == ExitCode::SUCCESS {
        for target in &targets {
            Folders::of(target)?.keep(|folders| merge(&binaries, target, &FEWEST, folders))?;
        }
    }
    Ok(code)
}

/// As the tests do it: each of the agent's targets for a minute.
pub(crate) fn with_the_tests() -> Result<ExitCode> {
    all(AGENT, &binaries(AGENT)?, SECONDS)
}

/// Builds the fuzzers and returns their folder.
fn binaries(targets: &[&str]) -> Result<PathBuf> {
    assets::cpp_compiler()?;
    build::forget_other_clone()?;
    let wrapper = wrapper()?;
    let mut cargo = build::cargo()?;
    cargo.env("RUSTC_WORKSPACE_WRAPPER", wrapper);
    cargo.args(["build", "--release", "--workspace", "--features", "espalier-fuzz/libfuzzer"]);
    if targets.iter().any(|target| MODELS.contains(target)) {
        cargo.args(["--features", "espalier-fuzz/models"]);
    }
    for target in targets {
        cargo.args(["--bin", &format!("fuzz-{target}")]);
    }
    process::run(&mut cargo)?;
    paths::binaries()
}

/// A compiler that counts. Cargo keeps what it makes apart from what the plain one makes, by the wrapper's path: that
/// is the same for every clone, and another for other flags.
fn wrapper() -> Result<PathBuf> {
    // Build scripts run here and now, without libFuzzer, and have nobody to count for.
    let text = format!(
        "#!/bin/sh\ncase \" $* \" in *' build_script_'*) exec \"$@\" ;; esac\nexec \"$@\" {}\n",
        COUNTING.join(" ")
    );
    let file = paths::target()?.join("fuzz").join(format!("rustc-{}", assets::short_digest(&text)));
    if fs::read_to_string(&file).is_ok_and(|there| there == text) {
        return Ok(file);
    }
    let folder = file.parent().unwrap_or(&file);
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let partial = file.with_extension("partial");
    fs::write(&partial, &text).with_context(|| format!("cannot write {}", partial.display()))?;
    fs::set_permissions(&partial, fs::Permissions::from_mode(0o755))?;
    fs::rename(&partial, &file).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(file)
}

/// Runs all targets, as many at once as there are processors, and tells what was found.
fn all(targets: &[&str], binaries: &Path, seconds: u32) -> Result<ExitCode> {
    let at_once = thread::available_parallelism().map_or(1, usize::from).min(targets.len());
    eprintln!("fuzzing {} for {seconds} s each, {at_once} at once", targets.join(", "));
    let waiting = Mutex::new(targets.iter());
    let next = || waiting.lock().ok().and_then(|mut targets| targets.next());
    let work = || {
        let mut found = Vec::new();
        while let Some(target) = next() {
            found.push((*target, one(target, binaries, seconds)));
        }
        found
    };
    let found: Vec<_> = thread::scope(|scope| {
        let workers: Vec<_> = (0..at_once).map(|_| scope.spawn(work)).collect();
        workers.into_iter().filter_map(|worker| worker.join().ok()).flatten().collect()
    });
    ensure!(found.len() == targets.len(), "a fuzzer could not be watched to its end");
    let mut failed = 0;
    for (target, found) in found {
        let found = found.with_context(|| format!("cannot fuzz {target}"))?;
        println!("{target:10} {found}");
        if let Some(input) = &found.input {
            failed += 1;
            eprintln!("{}", found.tail);
            eprintln!("{target}: what to do:\n{}", remedy(target, input));
        }
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn remedy(target: &str, input: &Path) -> String {
    let name = input.file_name().unwrap_or_default().to_string_lossy();
    format!(
        "  cp {} fuzz/regressions/{target}/{name}\n  cargo nextest run --release --workspace \
         -E 'package(espalier-fuzz)'\nand once that is mended, commit the input with what mended it.",
        input.display()
    )
}

/// Runs one fuzzer to its end.
fn one(target: &str, binaries: &Path, seconds: u32) -> Result<Found> {
    let folders = Folders::of(target)?;
    folders.thin_out(|folders| merge(binaries, target, &[], folders))?;
    let mut command = fuzzer(binaries, target);
    command
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-timeout={INPUT_SECONDS}"))
        .arg(format!("-max_len={INPUT_BYTES}"))
        .arg("-print_final_stats=1")
        .arg(format!("-artifact_prefix={}/", folders.findings.display()));
    let words = paths::root().join("fuzz/dict").join(format!("{target}.dict"));
    if words.is_file() {
        command.arg(format!("-dict={}", words.display()));
    }
    // What is new goes into the first folder.
    command.arg(&folders.grown).args(folders.given());
    let output = command.output().with_context(|| format!("cannot start fuzz-{target}"))?;
    let log = String::from_utf8_lossy(&output.stderr);
    let found = Found::read(&log, output.status.success())?;
    ensure!(
        output.status.success() || found.input.is_some(),
        "fuzz-{target} ended with {}:\n{}",
        output.status,
        found.tail
    );
    Ok(found)
}

/// Copies from `from` into `to` a few inputs that reach what all of `from` reach, those first that reach most.
fn merge(
    binaries: &Path,
    target: &str,
    options: &[&str],
    (to, from): (&Path, &[PathBuf]),
) -> Result<()> {
    let mut command = fuzzer(binaries, target);
    command.arg("-set_cover_merge=1").args(options).arg(to).args(from);
    process::output(&mut command).map(drop).with_context(|| format!("cannot thin out {target}"))
}

fn fuzzer(binaries: &Path, target: &str) -> Command {
    let mut command = Command::new(binaries.join(format!("fuzz-{target}")));
    command.arg(format!("-rss_limit_mb={MEMORY_MIB}")).stdin(Stdio::null()).env_remove("RUST_LOG");
    // Bundles and segments are files, and syncing them to a disk is not what is tried here.
    let memory = Path::new("/dev/shm");
    if memory.is_dir() {
        command.env("TMPDIR", memory);
    }
    command
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Every target has a binary of its name, inputs to begin with, and a word in what can be asked for.
    #[test]
    fn every_target_is_a_binary_of_the_package_with_inputs() {
        let root = paths::root().join("fuzz");
        let manifest: toml::Table =
            fs::read_to_string(root.join("Cargo.toml")).unwrap().parse().unwrap();
        let names: Vec<_> =
            manifest["bin"].as_array().unwrap().iter().map(|bin| &bin["name"]).collect();
        for target in [AGENT, MODELS].concat() {
            let name = format!("fuzz-{target}");
            assert!(names.iter().any(|there| there.as_str() == Some(&name)), "{name}");
            assert!(root.join("fuzz_targets").join(format!("{target}.rs")).is_file());
        }
        assert_eq!(names.len(), AGENT.len() + MODELS.len());
        for target in AGENT {
            let inputs = fs::read_dir(root.join("corpus").join(target)).unwrap().count();
            assert!(inputs > 0, "{target}");
        }
    }

    #[test]
    fn a_target_that_there_is_not_is_refused_with_the_list() {
        let args = FuzzArgs { targets: vec!["wires".to_owned()], seconds: 1, keep: false };
        let error = run(&args).unwrap_err().to_string();
        assert!(error.contains("wires") && error.contains("wire, oip"), "{error}");
    }
}
