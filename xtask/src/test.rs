//! `cargo xtask test`: installs what the tests need, then runs every check and every test.

use std::ffi::OsString;
use std::process::{Command, ExitCode};

use anyhow::Result;
use clap::Args;

use crate::assets::{self, TestAssets};
use crate::cross::{self, ForTests};
use crate::{build, fuzz, paths, preflight, process, tidy};

#[derive(Args)]
pub(crate) struct TestArgs {
    /// Only the tests: no formatting, lints, boundaries or documentation
    #[arg(long)]
    tests_only: bool,
    /// Passed on to `cargo nextest run`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<OsString>,
}

pub(crate) fn run(args: &TestArgs) -> Result<ExitCode> {
    preflight::check(args.tests_only)?;
    let needs = assets::for_tests()?;
    let binaries = build::binaries()?;
    let foreign = cross::for_tests()?;
    if !args.tests_only {
        checks()?;
    }
    let mut nextest = with(build::cargo()?, &needs);
    nextest
        .env("ESPALIER_BIN", &binaries)
        .env("ESPALIER_FOREIGN", built(&foreign))
        .args(["nextest", "run", "--release", "--workspace", "--no-fail-fast"])
        .args(&args.rest);
    let tested = process::status(&mut nextest)?;
    let mut doc = with(build::cargo()?, &needs);
    doc.args(["test", "--release", "--workspace", "--doc", "--quiet"]);
    let documented = process::status(&mut doc)?;
    // Tests that were picked are not about this.
    let fuzzed = if args.rest.is_empty() { fuzz::with_the_tests()? } else { ExitCode::SUCCESS };
    let fuzzed = fuzzed == ExitCode::SUCCESS;
    if let ForTests::Skipped(why) = &foreign {
        eprintln!("NOT TESTED: the programs for other machines: {why}");
    }
    if tested.success() && documented.success() && fuzzed {
        Ok(ExitCode::SUCCESS)
    } else {
        let fuzzed = if fuzzed { "nothing found" } else { "an input that breaks something" };
        eprintln!(
            "error: tests failed (unit and integration: {tested}; documentation: {documented}; \
             fuzzing: {fuzzed})"
        );
        Ok(ExitCode::FAILURE)
    }
}

/// Where programs for other machines are; `none` has no tests of them.
fn built(foreign: &ForTests) -> OsString {
    match foreign {
        ForTests::Built(folder) => folder.into(),
        ForTests::Skipped(_) => "none".into(),
    }
}

/// Formatting, lints, boundaries, documentation.
fn checks() -> Result<()> {
    process::run(build::cargo()?.args(["fmt", "--all", "--check"]))?;
    if tidy::run()? != ExitCode::SUCCESS {
        anyhow::bail!("tidy found violations");
    }
    process::run(build::cargo()?.args([
        "clippy",
        "--release",
        "--workspace",
        "--all-targets",
        "--quiet",
        "--",
        "-D",
        "warnings",
    ]))?;
    process::run(build::cargo()?.env("RUSTDOCFLAGS", "-D warnings").args([
        "doc",
        "--release",
        "--workspace",
        "--no-deps",
        "--quiet",
    ]))
}

/// Tells the tests where everything lies.
fn with(mut command: Command, needs: &TestAssets) -> Command {
    command
        .env("ESPALIER_ASSETS", &needs.folder)
        .env("ESPALIER_PYTHON", &needs.python)
        .env("ESPALIER_MOSQUITTO", &needs.mosquitto)
        .env("ESPALIER_TREE", &needs.tree)
        .env("ORT_DYLIB_PATH", &needs.onnxruntime)
        .env("ESPALIER_ROOT", paths::root());
    command
}
