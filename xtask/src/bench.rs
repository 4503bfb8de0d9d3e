//! `cargo xtask bench`: measures, and writes the table that it prints.

mod loop_bench;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};

#[derive(Args)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// The loop end to end: seconds from breach to commit, failed requests, memory, sizes of the release binaries
    Loop,
}

pub(crate) fn run(args: &BenchArgs) -> Result<ExitCode> {
    match args.what {
        What::Loop => loop_bench::run(),
    }
}
