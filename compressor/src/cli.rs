//! The command line: arguments are parsed into plain data, checked once, and each command is a
//! function from them to an exit code.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage, 64 wrong configuration. With `--json` one object goes
//! to standard output and everything else to standard error.
#![allow(clippy::print_stdout, clippy::print_stderr)]

pub mod analyze;
pub mod apply;
pub mod bench;
pub mod budget;
pub mod common;
pub mod compress;
pub mod inspect;
pub mod judging;
pub mod later;
pub mod prune;
pub mod quantize;
pub mod terminal;
pub mod trust;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

/// Compresses ONNX models towards a device's latency, memory and accuracy budgets.
#[derive(Debug, Parser)]
#[command(name = "espalier", version, arg_required_else_help = true, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "Examples:
  espalier analyze model.onnx
  espalier inspect model.onnx --why Conv_17
  espalier compress model.onnx -o small --data calib.npz --heldout heldout.npz --latency-p95 20ms
  espalier bench model.onnx --runtime ort --threads 2 --json";

#[derive(Debug, Subcommand)]
enum Command {
    /// Say what a model is made of, what can be pruned, and what stands in the way.
    Analyze(analyze::Args),
    /// Say what a file holds, and why a dimension of it stays or can go.
    Inspect(inspect::Args),
    /// Remove units and repair what consumes them.
    Prune(prune::Args),
    /// Store or compute MatMul and Gemm weights as int8, where the engine is faster for it.
    Quantize(quantize::Args),
    /// Search for the best model under the budgets and write its bundle and report.
    Compress(compress::Args),
    /// Apply a plan that was made before: the same source and samples give the same bytes.
    Apply(apply::Args),
    /// Measure the latency of a model in an engine.
    Bench(bench::Args),
    /// Answer devices' requests for smaller models over MQTT, and serve bundles over HTTP.
    Serve(crate::serve::ServeArgs),
    /// Say by signatures which bundles devices may install (The Update Framework).
    Trust(trust::Args),
    /// Write this program's manual pages and shell completions.
    #[command(hide = true)]
    Manual(manual::Arguments),
    #[command(hide = true)]
    Distill(later::Args),
    #[command(hide = true)]
    Compare(later::Args),
    #[command(hide = true)]
    Tune(later::Args),
    #[command(hide = true)]
    Data(later::Args),
    #[command(hide = true)]
    Job(later::Args),
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let code = if error.use_stderr() { 2 } else { 0 };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    let result = match cli.command {
        Command::Analyze(args) => analyze::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Prune(args) => prune::run(&args),
        Command::Quantize(args) => quantize::run(&args),
        Command::Compress(args) => compress::run(&args),
        Command::Apply(args) => apply::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Serve(args) => return crate::serve::run(args),
        Command::Trust(args) => trust::run(&args),
        Command::Manual(args) => {
            manual::write(Cli::command(), manual::Section::User, &args).map_err(Into::into)
        }
        Command::Distill(_) => return later::run("distill"),
        Command::Compare(_) => return later::run("compare"),
        Command::Tune(_) => return later::run("tune"),
        Command::Data(_) => return later::run("data"),
        Command::Job(_) => return later::run("job"),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
