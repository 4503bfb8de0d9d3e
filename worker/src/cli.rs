//! The command line, which is the agent's to use.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use espalier_agent::plane::worker::NoHook;
use espalier_agent::shell::logging;
use runtime::{EngineKind, EngineOptions};

use crate::bench;

/// Hosts one model for a running espalier-agent, which starts it
#[derive(Debug, Parser)]
#[command(name = "espalier-worker", version)]
struct Cli {
    #[command(subcommand)]
    mode: Mode,
}

#[derive(Debug, Subcommand)]
enum Mode {
    /// Serve one model over the socket that is standard input
    Worker,
    /// Measure a bundle's model in this process (`espalier-agent bench` does so)
    Bench(BenchArgs),
}

#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// The bundle's folder
    pub(crate) bundle: PathBuf,
    /// The engine: tract or ort
    #[arg(long)]
    engine: EngineKind,
    /// Threads that compute one inference
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// The ONNX Runtime library
    #[arg(long, value_name = "FILE")]
    ort_library: Option<PathBuf>,
    /// Let ONNX Runtime keep the memory of one inference for the next
    #[arg(long)]
    arena: bool,
    /// Let ONNX Runtime's threads wait for work without sleeping
    #[arg(long)]
    spinning: bool,
    /// Runs that count
    #[arg(long, default_value_t = 100)]
    pub(crate) runs: usize,
    /// Runs before them
    #[arg(long, default_value_t = 10)]
    pub(crate) warmup: usize,
}

impl BenchArgs {
    pub(crate) fn engine(&self) -> EngineOptions {
        EngineOptions {
            threads: self.threads,
            ort_library: self.ort_library.clone(),
            arena: self.arena,
            spinning: self.spinning,
            ..EngineOptions::new(self.engine)
        }
    }
}

/// Runs the program.
#[must_use]
pub fn main() -> ExitCode {
    match Cli::parse().mode {
        Mode::Worker => {
            logging::start();
            ExitCode::from(u8::try_from(crate::main(Box::new(NoHook))).unwrap_or(1))
        }
        Mode::Bench(args) => measure(&args),
    }
}

#[allow(clippy::print_stderr)]
fn measure(args: &BenchArgs) -> ExitCode {
    let measured = bench::measure(args).and_then(|report| {
        let text = serde_json::to_string(&report).map_err(|e| e.to_string())?;
        writeln!(std::io::stdout(), "{text}").map_err(|e| format!("standard output: {e}"))
    });
    match measured {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("espalier-worker: {reason}");
            ExitCode::FAILURE
        }
    }
}
