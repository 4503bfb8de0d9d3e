//! `espalier prune`: narrows the groups of a model, all alike or under a budget, and repairs what reads them.

use std::path::PathBuf;

use clap::Args as ClapArgs;

use super::budget::{self, BudgetArgs};
use super::common::Common;
use super::later::word;
use super::terminal::Terminal;
use crate::pipeline::single::{self, PruneJob};
use crate::plan::ScoreKind;

/// How units are rated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Score {
    Auto,
    Magnitude,
    Activation,
    Random,
}

fn score(text: &str) -> Result<Score, String> {
    let done = [
        ("auto", Score::Auto),
        ("magnitude", Score::Magnitude),
        ("activation", Score::Activation),
        ("random", Score::Random),
    ];
    word(text, &done, &["obs", "gradient", "combined"])
}

/// How consumers are repaired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Repair {
    Ls,
    None,
}

fn repair(text: &str) -> Result<Repair, String> {
    word(text, &[("ls", Repair::Ls), ("none", Repair::None)], &["gram", "bn"])
}

/// Arguments of `prune`.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  espalier prune model.onnx -o half.onnx --ratio 0.5
  espalier prune model.onnx -o half.onnx --ratio 50% --data calib.npz --score activation --repair ls
  espalier prune model.onnx -o small.onnx --params 60% --data calib.npz --plan-out small.json
  espalier prune model.onnx -o fast.onnx --latency 5ms --data calib.npz --runtime ort --threads 2")]
pub struct Args {
    /// The model.
    model: PathBuf,
    /// Where the narrowed model is written.
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    #[command(flatten)]
    budget: BudgetArgs,
    /// Calibration samples: arrays named after the model's inputs, or a preprocessing file (docs/data.md).
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// How units are rated: auto (activation where there are samples, else magnitude), magnitude (L2 norm of a unit's
    /// weights), activation (deviation of a unit times what its consumers do with it), or random (from the seed).
    #[arg(long, value_parser = score, default_value = "auto")]
    score: Score,
    /// How consumers are repaired: ls (regularised least squares on the samples; needs --data) or none.
    #[arg(long, value_parser = repair)]
    repair: Option<Repair>,
    #[command(flatten)]
    common: Common,
}

/// Runs `prune`.
///
/// # Errors
/// See [`crate::CompressError`].
pub fn run(args: &Args) -> anyhow::Result<()> {
    let needs_data = args.score == Score::Activation || args.repair == Some(Repair::Ls);
    anyhow::ensure!(
        args.data.is_some() || !needs_data,
        "--score activation and --repair ls need samples; give them with --data"
    );
    let job = PruneJob {
        source: args.model.clone(),
        output: args.output.clone(),
        ratio: args.budget.ratio(),
        score: match (args.score, &args.data) {
            (Score::Magnitude, _) | (Score::Auto, None) => ScoreKind::Magnitude,
            (Score::Random, _) => ScoreKind::Random,
            (Score::Auto | Score::Activation, _) => ScoreKind::Activation,
        },
        data: args.data.clone(),
        repair: args.repair != Some(Repair::None),
        engine: args.common.engine(),
        seed: args.common.seed,
    };
    let outcome = {
        let terminal = Terminal::interruptible()?;
        match args.budget.budget() {
            None => single::prune(&job, &terminal)?,
            Some(budget) => args.budget.prune(job, budget, &terminal)?,
        }
    };
    if let Some(file) = &args.budget.plan_out {
        budget::write_plan(&outcome.plan, file)?;
    }
    if args.common.json {
        println!("{}", serde_json::to_string(&outcome)?);
        return Ok(());
    }
    println!("parameters {} → {}", outcome.params_before, outcome.params_after);
    if let (Some(before), Some(after)) = (outcome.macs_before, outcome.macs_after) {
        println!("multiply-accumulates {before} → {after}");
    }
    budget::describe(&outcome);
    for group in &outcome.groups {
        println!("  {:5} → {:5}  {}", group.width, group.keep.len(), group.label);
    }
    for refusal in &outcome.refused {
        println!("  not done: {}: {}: {}", refusal.stage, refusal.what, refusal.why);
    }
    Ok(())
}
