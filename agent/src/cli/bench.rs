//! Measures an installed model in this process.

use bundle::{Bundle, Digest, Limits};
use runtime::{EngineOptions, LoadOptions, Tensor};
use serde_json::json;

use super::{BenchArgs, Failure, failed, say};
use crate::config::Config;

pub(super) fn run(args: &BenchArgs) -> Result<(), Failure> {
    let config = Config::load(&args.ask.config.sources())?;
    let dir = args.ask.state.clone().unwrap_or(config.state_dir);
    let active = args.ask.active(&dir)?;
    let names = || active.iter().map(|entry| entry.model.clone()).collect::<Vec<_>>().join(", ");
    let entry = match (&args.model, active.as_slice()) {
        (Some(name), _) => active.iter().find(|entry| entry.model == *name),
        (None, [only]) => Some(only),
        (None, _) => None,
    };
    let entry =
        entry.ok_or_else(|| failed(format!("name one of the installed models: {}", names())))?;
    let digest: Digest = entry.installed.digest.parse().map_err(failed)?;
    let folder = dir.join("store").join(digest.hex());
    let bundle = Bundle::open(&folder, &Limits::default()).map_err(failed)?;
    let stats = measure(&bundle, &config.engine, args).map_err(failed)?;
    let (p50, p95, p99, mean) = (stats.p50_us, stats.p95_us, stats.p99_us, stats.mean_us);
    if args.ask.json {
        let report = json!({
            "model": entry.model,
            "digest": entry.installed.digest,
            "engine": config.engine.kind.to_string(),
            "threads": config.engine.threads,
            "runs": stats.runs,
            "p50_us": p50, "p95_us": p95, "p99_us": p99, "mean_us": mean,
        });
        say(&report.to_string());
    } else {
        let runs = stats.runs;
        say(&format!(
            "{}: p50 {p50:.0} us, p95 {p95:.0} us, p99 {p99:.0} us over {runs} runs",
            entry.model
        ));
    }
    Ok(())
}

fn measure(
    bundle: &Bundle,
    engine: &EngineOptions,
    args: &BenchArgs,
) -> Result<runtime::measure::LatencyStats, String> {
    let text = |e: &dyn std::fmt::Display| e.to_string();
    let test = bundle.selftest().map_err(|e| text(&e))?;
    let case = test.cases.first().ok_or("the bundle's self-test has no case")?;
    let mut inputs = Vec::new();
    for tensor in &case.inputs {
        let dtype = runtime::ElementType::from_oip_name(&tensor.dtype).ok_or_else(|| {
            format!("input {} has the unknown type {}", tensor.name, tensor.dtype)
        })?;
        let tensor_of = Tensor::new(dtype, tensor.dims.clone(), tensor.data.clone());
        inputs.push((tensor.name.as_str(), tensor_of.map_err(|e| text(&e))?));
    }
    let inputs: Vec<(&str, &Tensor)> =
        inputs.iter().map(|(name, tensor)| (*name, tensor)).collect();
    let engine = runtime::open(engine).map_err(|e| text(&e))?;
    let loaded = engine.load(&bundle.model_path(), &LoadOptions::default());
    let mut session = loaded.map_err(|e| text(&e))?;
    let (warmup, runs) = (args.warmup as usize, args.runs as usize);
    let stats = runtime::measure::latency(session.as_mut(), &inputs, warmup, runs);
    stats.map_err(|e| text(&e))
}
