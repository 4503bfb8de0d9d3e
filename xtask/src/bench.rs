//! `cargo xtask bench`: measures, and writes the table that it prints.

mod agent;
mod loop_bench;
mod prune;

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
    /// The agent itself: memory, overhead, throughput beside MLServer, idle costs, start, sizes
    Agent(agent::AgentArgs),
    /// The loop end to end: seconds from breach to commit, failed requests, memory, sizes of the release binaries
    Loop,
    /// Structured pruning of real models beside onnxsim and torch-pruning: what is removed, what the answers are
    /// worth then, latency, time and memory
    Prune(prune::PruneArgs),
}

pub(crate) fn run(args: &BenchArgs) -> Result<ExitCode> {
    match &args.what {
        What::Agent(args) => agent::run(args),
        What::Loop => loop_bench::run(),
        What::Prune(args) => prune::run(args),
    }
}
