//! `espalier bench`: the latency of a model in an engine.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args as ClapArgs;
use runtime::{ElementType, IoSpec, LoadOptions, Tensor};
use serde_json::json;

use super::common::Common;
use crate::data::Dataset;

/// Arguments of `bench`.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Example:\n  espalier bench model.onnx --runtime ort --threads 2 --json")]
pub struct Args {
    /// The model.
    model: PathBuf,
    /// Samples of which the first is run (see docs/data.md); without it zeros, and 1 for every free dimension.
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// How the model's inputs are made of the samples.
    #[arg(long, value_name = "FILE", requires = "data")]
    preprocess: Option<PathBuf>,
    /// Timed runs.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    runs: u32,
    /// Runs before that, not timed.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(0..=100_000))]
    warmup: u32,
    #[command(flatten)]
    common: Common,
}

/// Runs `bench`.
///
/// # Errors
/// The engine, the model or the data cannot be used.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let engine = runtime::open(&args.common.engine())?;
    let options = LoadOptions { batch: Some(1), ..LoadOptions::default() };
    let mut session =
        engine.load(&args.model, &options).with_context(|| format!("{}", args.model.display()))?;
    let inputs = match (&args.data, &args.preprocess) {
        (Some(file), Some(preprocess)) => {
            Dataset::load_prepared(file, preprocess, session.inputs())?.batch(&[0])?
        }
        (Some(file), None) => Dataset::load(file, session.inputs())?.batch(&[0])?,
        (None, _) => session.inputs().iter().map(zeros).collect::<anyhow::Result<_>>()?,
    };
    let inputs: Vec<(&str, &Tensor)> = inputs.iter().map(|(n, t)| (n.as_str(), t)).collect();
    let stats = runtime::measure::latency(
        session.as_mut(),
        &inputs,
        args.warmup as usize,
        args.runs as usize,
    )?;
    let pss = pss_bytes();
    if args.common.json {
        println!(
            "{}",
            json!({
                "engine": engine.kind().name(), "engine_version": engine.version(),
                "threads": engine.threads(), "runs": stats.runs,
                "min_us": stats.min_us, "p50_us": stats.p50_us, "p95_us": stats.p95_us,
                "p99_us": stats.p99_us, "mean_us": stats.mean_us,
                "throughput": 1e6 / stats.mean_us, "pss_bytes": pss, "quality": "measured",
            })
        );
        return Ok(());
    }
    println!(
        "{} {} on {} thread(s), {} runs",
        engine.kind(),
        engine.version(),
        engine.threads(),
        stats.runs
    );
    println!(
        "p50 {:.2} ms   p95 {:.2} ms   p99 {:.2} ms   {:.1}/s   PSS {}",
        stats.p50_us / 1e3,
        stats.p95_us / 1e3,
        stats.p99_us / 1e3,
        1e6 / stats.mean_us,
        pss.map_or_else(|| "unknown".into(), |b| crate::search::mebibytes(b as f64)),
    );
    Ok(())
}

fn zeros(spec: &IoSpec) -> anyhow::Result<(String, Tensor)> {
    let shape: Vec<usize> = spec.dims.iter().map(|d| d.unwrap_or(1)).collect();
    let tensor = if spec.dtype == ElementType::String {
        let count = shape.iter().product();
        Tensor::from_strings(shape, vec![String::new(); count])?
    } else {
        Tensor::zeros(spec.dtype, shape)?
    };
    Ok((spec.name.clone(), tensor))
}

/// Proportional set size of this process, engine included, where the system says.
fn pss_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup").ok()?;
    let line = text.lines().find(|l| l.starts_with("Pss:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}
