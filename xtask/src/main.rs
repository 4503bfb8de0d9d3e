//! The task runner: `demo`, `test`, `tidy`, `fuzz`, `assets`, `dist`, `bench`.
//!
//! Everything a fresh machine lacks is fetched here, by package name through the ordinary clients.

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod assets;
mod bench;
mod build;
mod cross;
mod demo;
mod dist;
mod fuzz;
mod paths;
mod preflight;
mod process;
mod test;
mod tidy;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Espalier's task runner")]
struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build, fetch the model and close the loop once on an emulated board
    Demo(demo::DemoArgs),
    /// Install what the tests need and run every check and test
    Test(test::TestArgs),
    /// Check the boundaries between crates and the rules of style that are executable
    Tidy,
    /// Fetch models, data and tools; the one place that knows packages, versions and hashes
    Assets(assets::AssetsArgs),
    /// Build the packaged agent, for this machine or another
    Dist(dist::DistArgs),
    /// Feed what comes from outside with made-up bytes, and keep what reaches more of the code
    Fuzz(fuzz::FuzzArgs),
    /// Measure, and write the table that is printed
    Bench(bench::BenchArgs),
}

fn main() -> ExitCode {
    let args = Args::parse();
    let result = build::check_runner().and_then(|()| perform(args.task));
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform(task: Task) -> anyhow::Result<ExitCode> {
    match task {
        Task::Demo(args) => demo::run(&args),
        Task::Test(args) => test::run(&args),
        Task::Tidy => tidy::run(),
        Task::Assets(args) => assets::run(&args),
        Task::Dist(args) => dist::run(&args),
        Task::Fuzz(args) => fuzz::run(&args),
        Task::Bench(args) => bench::run(&args),
    }
}
