//! Measures a bundle's model in this process, on its self-test's input: time, memory, and what the engine goes on
//! doing afterwards.

use std::time::Duration;

use bundle::{Bundle, Limits};
use espalier_agent::shell::worker_program::BenchReport;
use espalier_agent::sys::{Roots, machine, memory};
use runtime::measure::latency;
use runtime::{ElementType, LoadOptions, Tensor};

use crate::cli::BenchArgs;

/// How long the process is watched after the last run.
const REST: Duration = Duration::from_secs(1);

pub(crate) fn measure(args: &BenchArgs) -> Result<BenchReport, String> {
    let text = |e: &dyn std::fmt::Display| e.to_string();
    let bundle = Bundle::open(&args.bundle, &Limits::default()).map_err(|e| text(&e))?;
    let test = bundle.selftest().map_err(|e| text(&e))?;
    let case = test.cases.first().ok_or("the bundle's self-test has no case")?;
    let mut inputs = Vec::new();
    for tensor in &case.inputs {
        let dtype = ElementType::from_oip_name(&tensor.dtype).ok_or_else(|| {
            format!("input {} has the unknown type {}", tensor.name, tensor.dtype)
        })?;
        let tensor_of = Tensor::new(dtype, tensor.dims.clone(), tensor.data.clone());
        inputs.push((tensor.name.as_str(), tensor_of.map_err(|e| text(&e))?));
    }
    let inputs: Vec<(&str, &Tensor)> =
        inputs.iter().map(|(name, tensor)| (*name, tensor)).collect();
    let engine = runtime::open(&args.engine()).map_err(|e| text(&e))?;
    let loaded = engine.load(&bundle.model_path(), &LoadOptions::default());
    let mut session = loaded.map_err(|e| text(&e))?;
    let pss = || memory::pss_bytes(&Roots::default(), std::process::id());
    let used = || machine::process_cpu_ms(&Roots::default(), std::process::id());
    let pss_loaded_bytes = pss();
    let stats = latency(session.as_mut(), &inputs, args.warmup, args.runs);
    let latency = stats.map_err(|e| text(&e))?;
    let (pss_bytes, before) = (pss(), used());
    std::thread::sleep(REST);
    let rest_cpu_ms = before.zip(used()).map(|(before, after)| after.saturating_sub(before));
    Ok(BenchReport { latency, pss_loaded_bytes, pss_bytes, rest_cpu_ms })
}
