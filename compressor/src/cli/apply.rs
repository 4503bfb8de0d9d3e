//! `espalier apply`: does again what a plan says.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args as ClapArgs;

use super::common::Common;
use super::terminal::Terminal;
use crate::pipeline::single::{self, ReplayJob};
use crate::plan::Plan;
use crate::search::mebibytes;

/// The longest plan file.
pub const MAX_PLAN_BYTES: u64 = 16 << 20;

/// Arguments of `apply`.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  espalier apply model.onnx -o again.onnx --plan small/manifest.json --data calib.npz
  espalier apply model.onnx -o edited.onnx --plan plan.json")]
pub struct Args {
    /// The original model.
    model: PathBuf,
    /// Where the new model is written.
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// A plan, or the manifest of a bundle, whose recipe it is.
    #[arg(long, value_name = "FILE")]
    plan: PathBuf,
    /// The calibration samples that the plan was fitted to; not asked for by a plan without repairs.
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    #[command(flatten)]
    common: Common,
}

/// Runs `apply`. Engine and seed are the plan's own.
///
/// # Errors
/// The plan cannot be read or does not fit; see also [`crate::CompressError`].
pub fn run(args: &Args) -> anyhow::Result<()> {
    let job = ReplayJob {
        source: args.model.clone(),
        output: args.output.clone(),
        plan: read(&args.plan).with_context(|| format!("plan {}", args.plan.display()))?,
        data: args.data.clone(),
        engine: args.common.engine(),
    };
    let outcome = {
        let terminal = Terminal::new();
        single::replay(&job, &terminal)?
    };
    if args.common.json {
        println!("{}", serde_json::to_string(&outcome)?);
        return Ok(());
    }
    let size = std::fs::metadata(&args.output)?.len();
    println!("parameters {} → {}", outcome.params_before, outcome.params_after);
    println!("written {} ({})", args.output.display(), mebibytes(size as f64));
    for refusal in &outcome.refused {
        println!("  not done: {}: {}: {}", refusal.stage, refusal.what, refusal.why);
    }
    Ok(())
}

/// The plan in `file`, which holds it alone or as `lineage.recipe`.
fn read(file: &Path) -> anyhow::Result<Plan> {
    let size = std::fs::metadata(file)?.len();
    anyhow::ensure!(
        size <= MAX_PLAN_BYTES,
        "it has {size} bytes, more than MAX_PLAN_BYTES = {MAX_PLAN_BYTES}"
    );
    let mut value: serde_json::Value = serde_json::from_slice(&std::fs::read(file)?)?;
    if let Some(recipe) = value.pointer_mut("/lineage/recipe") {
        value = recipe.take();
    }
    if value.get("kind").is_some_and(|kind| kind == "original") {
        anyhow::bail!("the bundle holds the unmodified original: there is nothing to apply");
    }
    Ok(serde_json::from_value(value)?)
}
