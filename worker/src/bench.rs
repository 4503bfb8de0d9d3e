//! Measures a bundle's model in this process, on its self-test's input.

use bundle::{Bundle, Limits};
use runtime::measure::{LatencyStats, latency};
use runtime::{ElementType, LoadOptions, Tensor};

use crate::cli::BenchArgs;

pub(crate) fn measure(args: &BenchArgs) -> Result<LatencyStats, String> {
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
    latency(session.as_mut(), &inputs, args.warmup, args.runs).map_err(|e| text(&e))
}
