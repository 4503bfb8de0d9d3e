//! Measures an installed model, in a process that hosts it and nothing else.

use std::process::Command;

use bundle::Digest;
use serde_json::json;

use super::{BenchArgs, Failure, failed, say};
use crate::config::Config;
use crate::shell::worker_program::{self, BenchReport};

pub(super) fn run(args: &BenchArgs) -> Result<(), Failure> {
    let config = Config::load(&args.ask.config.sources())?;
    let dir = args.ask.state.clone().unwrap_or_else(|| config.state_dir.clone());
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
    let program = match &config.worker.program {
        Some(program) => program.clone(),
        None => worker_program::find().map_err(failed)?,
    };
    let mut worker = Command::new(program);
    worker.arg("bench").arg(dir.join("store").join(digest.hex()));
    let report = measure(worker, &config, args)?;
    let stats = report.latency;
    let (p50, p95, p99, mean) = (stats.p50_us, stats.p95_us, stats.p99_us, stats.mean_us);
    if args.ask.json {
        let answer = json!({
            "model": entry.model,
            "digest": entry.installed.digest,
            "engine": config.engine.kind.to_string(),
            "threads": config.engine.threads,
            "runs": stats.runs,
            "p50_us": p50, "p95_us": p95, "p99_us": p99, "mean_us": mean,
            "pss_loaded_bytes": report.pss_loaded_bytes, "pss_bytes": report.pss_bytes,
            "rest_cpu_ms": report.rest_cpu_ms,
        });
        say(&answer.to_string());
    } else {
        let runs = stats.runs;
        let memory = |bytes: Option<u64>| match bytes {
            Some(bytes) => format!("{} KiB", bytes / 1024),
            None => "unknown".to_owned(),
        };
        let (loaded, after) = (memory(report.pss_loaded_bytes), memory(report.pss_bytes));
        say(&format!(
            "{}: p50 {p50:.0} us, p95 {p95:.0} us, p99 {p99:.0} us over {runs} runs; PSS {loaded} loaded, {after} after",
            entry.model
        ));
    }
    Ok(())
}

fn measure(mut worker: Command, config: &Config, args: &BenchArgs) -> Result<BenchReport, Failure> {
    let options = &config.engine;
    worker.args(["--engine", options.kind.name()]);
    worker.args(["--threads", &options.threads.to_string()]);
    worker.args(["--runs", &args.runs.to_string(), "--warmup", &args.warmup.to_string()]);
    if let Some(library) = &options.ort_library {
        worker.arg("--ort-library").arg(library);
    }
    worker.args(options.arena.then_some("--arena"));
    worker.args(options.spinning.then_some("--spinning"));
    let shown = worker.get_program().to_string_lossy().into_owned();
    let output = worker.output().map_err(|e| failed(format!("{shown} cannot be started: {e}")))?;
    if !output.status.success() {
        let told = String::from_utf8_lossy(&output.stderr);
        return Err(failed(format!("{} ({shown}, {})", told.trim(), output.status)));
    }
    serde_json::from_slice(&output.stdout).map_err(|e| failed(format!("{shown} answered: {e}")))
}
