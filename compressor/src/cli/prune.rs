//! `espalier prune`: narrows the groups of a model, all alike or under a budget, and repairs what reads them.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args as ClapArgs;

use super::budget::{self, BudgetArgs};
use super::common::Common;
use super::later::word;
use super::terminal::Terminal;
use crate::pipeline::single::{self, PruneJob, PruneOutcome};
use crate::plan::{RepairKind, ScoreKind};
use crate::report::{Curve, PruneStory, ScoreTried, render_prune};

fn score(text: &str) -> Result<ScoreKind, String> {
    word(text, &ScoreKind::ALL.map(|kind| (kind.name(), kind)), &["gradient"])
}

/// How the narrowed model is brought back, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Repairs(Vec<RepairKind>);

/// `none`, or kinds with commas between them.
fn repairs(text: &str) -> Result<Repairs, String> {
    if text == "none" {
        return Ok(Repairs(Vec::new()));
    }
    let done = RepairKind::ALL.map(|kind| (kind.name(), Some(kind)));
    let all = [("none", None)].into_iter().chain(done).collect::<Vec<_>>();
    let mut kinds = Vec::new();
    for name in text.split(',') {
        let kind = word(name, &all, &[])?.ok_or("none goes with no other repair")?;
        if kinds.contains(&kind) {
            return Err(format!("{kind} is there twice"));
        }
        kinds.push(kind);
    }
    Ok(Repairs(kinds))
}

/// Arguments of `prune`.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  espalier prune model.onnx -o half.onnx --ratio 0.5
  espalier prune model.onnx -o half.onnx --ratio 50% --data calib.npz --score activation --repair ls
  espalier prune model.onnx -o half.onnx --ratio 50% --data calib.npz --score obs
  espalier prune model.onnx -o half.onnx --ratio 50% --data calib.npz --repair bn,ls
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
    /// How units are rated: by their weights (magnitude, magnitude-l1), by what consumers read of them (activation,
    /// wanda, mean-abs, apoz), by second-order removal (obs), by rank over several (combined), at random (random), or
    /// for each kind of group by what loses least on samples (auto; without --data magnitude). See docs/pruning.md.
    #[arg(long, value_parser = score, default_value = "auto", value_name = "SCORE")]
    score: ScoreKind,
    /// How the model is brought back without training, in this order: gram (the channels that stay take over), bn (batch
    /// normalizations taken anew), ls (least squares, layer by layer), or none. Without it gram,bn for obs, else ls.
    #[arg(long, value_parser = repairs, value_name = "REPAIR[,..]")]
    repair: Option<Repairs>,
    /// With --ratio and --data: do not time the result beside the original, which takes seconds.
    #[arg(long, conflicts_with_all = ["global", "params", "macs", "size", "latency"])]
    no_timing: bool,
    /// Also write a report, one HTML file, about what was done and what was not.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    #[command(flatten)]
    common: Common,
}

/// Runs `prune`.
///
/// # Errors
/// See [`crate::CompressError`].
pub fn run(args: &Args) -> anyhow::Result<()> {
    let repairs = args.repair.as_ref().is_some_and(|repairs| !repairs.0.is_empty());
    anyhow::ensure!(
        args.data.is_some() || !(repairs || args.score.needs_data()),
        "--repair, and every score but magnitude, magnitude-l1 and random, need samples; give them with --data"
    );
    let job = PruneJob {
        source: args.model.clone(),
        output: args.output.clone(),
        ratio: args.budget.ratio(),
        score: args.score,
        data: args.data.clone(),
        repair: args.repair.clone().map(|repairs| repairs.0),
        engine: args.common.engine(),
        timed: !args.no_timing,
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
    if let Some(file) = &args.report {
        report(args, &outcome, file).with_context(|| format!("report {}", file.display()))?;
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
    for pick in &outcome.auto {
        println!("  {} rates {} ({} groups)", pick.score, pick.kind, pick.groups);
    }
    for refusal in &outcome.refused {
        println!("  not done: {}: {}: {}", refusal.stage, refusal.what, refusal.why);
    }
    Ok(())
}

fn report(args: &Args, outcome: &PruneOutcome, file: &Path) -> anyhow::Result<()> {
    let size = |path: &Path| std::fs::metadata(path).map(|m| m.len());
    let curves: Vec<Curve> = outcome
        .curves
        .iter()
        .map(|curve| Curve {
            label: curve.label.clone(),
            width: curve.width,
            points: curve.points.iter().map(|p| (p.width, p.loss)).collect(),
        })
        .collect();
    let html = render_prune(&PruneStory {
        source: &args.model,
        size_bytes: (size(&args.model)?, size(&args.output)?),
        goal: args.budget.sentence(),
        outcome,
        curves: &curves,
        scores: &tried(outcome),
    })?;
    std::fs::write(file, html)?;
    Ok(())
}

/// What *auto* measured, a line for each score and kind of group.
fn tried(outcome: &PruneOutcome) -> Vec<ScoreTried> {
    let picks = outcome.auto.iter();
    let lines = picks.flat_map(|pick| {
        pick.tried.iter().filter_map(|tried| {
            Some(ScoreTried {
                kind: pick.kind.to_string(),
                score: tried.score.to_string(),
                loss: tried.loss?,
                taken: tried.score == pick.score,
            })
        })
    });
    lines.collect()
}
