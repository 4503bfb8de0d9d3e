//! Asks a server of the Open Inference Protocol as fast as it answers, and says what that took.
//!
//! `cargo xtask bench agent` drives it: it makes the models, installs them for an agent, and measures with
//! the same code whatever serves them. One JSON object on standard output.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use e2e::load::{Address, Encoding, Subject, install, overhead, throughput};
use runtime::{EngineKind, EngineOptions};

#[derive(Parser)]
#[command(about = "Load for a server of the Open Inference Protocol, and what it took")]
struct Cli {
    #[command(subcommand)]
    mode: Mode,
}

#[derive(Subcommand)]
enum Mode {
    /// Write the model to a file
    Model(ModelArgs),
    /// Make the model the active one of an agent's empty state directory
    Install(InstallArgs),
    /// Compare the engine in this process with the same model behind the agent's doors
    Overhead(OverheadArgs),
    /// Ask over several connections, each as soon as its last answer is there
    Throughput(ThroughputArgs),
}

#[derive(Args)]
struct ModelArgs {
    /// tiny, wide:COUNT, or the file of a model that is known here
    #[arg(long)]
    model: Subject,
    /// Where to
    to: PathBuf,
}

#[derive(Args)]
struct EngineArgs {
    /// tract or ort
    #[arg(long)]
    engine: EngineKind,
    /// The ONNX Runtime library
    #[arg(long)]
    ort_library: Option<PathBuf>,
}

impl EngineArgs {
    fn options(&self) -> EngineOptions {
        EngineOptions { ort_library: self.ort_library.clone(), ..EngineOptions::new(self.engine) }
    }
}

#[derive(Args)]
struct InstallArgs {
    #[arg(long)]
    model: Subject,
    #[command(flatten)]
    engine: EngineArgs,
    /// The state directory
    state: PathBuf,
}

#[derive(Args)]
struct OverheadArgs {
    #[arg(long)]
    model: Subject,
    #[command(flatten)]
    engine: EngineArgs,
    /// Rounds, each of which asks every way
    #[arg(long, default_value_t = 20)]
    rounds: usize,
    /// Requests of a round and way
    #[arg(long, default_value_t = 200)]
    runs: usize,
    /// Keep the engine's memory from run to run in this process too
    #[arg(long)]
    keep_memory: bool,
    /// Where the model is served: http:ADDRESS:PORT or unix:PATH
    #[arg(required = true)]
    at: Vec<Address>,
}

#[derive(Args)]
struct ThroughputArgs {
    #[arg(long)]
    model: Subject,
    /// json or binary
    #[arg(long, default_value = "json")]
    encoding: Encoding,
    /// Connections at once
    #[arg(long, default_value_t = 4)]
    connections: usize,
    /// For so long, after a tenth of it that does not count
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Where the model is served: http:ADDRESS:PORT or unix:PATH
    at: Address,
}

fn main() -> ExitCode {
    match run(Cli::parse().mode) {
        Ok(found) => {
            println!("{found}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("agent-load: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(mode: Mode) -> Result<serde_json::Value> {
    match mode {
        Mode::Model(args) => install::write_model(&args.model, &args.to),
        Mode::Install(args) => install::install(&args.model, &args.engine.options(), &args.state),
        Mode::Overhead(args) => overhead::measure(&overhead::Plan {
            model: args.model,
            engine: args.engine.options(),
            keep_memory: args.keep_memory,
            rounds: args.rounds,
            runs: args.runs,
            at: args.at,
        }),
        Mode::Throughput(args) => throughput::measure(&throughput::Plan {
            model: args.model,
            encoding: args.encoding,
            connections: args.connections,
            time: Duration::try_from_secs_f64(args.seconds)?,
            at: args.at,
        }),
    }
}
