//! Puts a model into an agent's state directory, as if it had been installed.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use bundle::{Case, Draft, NamedTensor, SelfTest, Source, TensorSpec};
use runtime::{EngineOptions, IoSpec, LoadOptions, Tensor};
use serde_json::{Value, json};

use super::Subject;

/// Tolerances of the self-test: the same engine answers, on the same machine.
const TOLERANCE: f32 = 1e-4;

/// Writes the model to `to`.
///
/// # Errors
/// It cannot be read, made or written.
pub fn write_model(model: &Subject, to: &Path) -> Result<Value> {
    let bytes = model.bytes()?;
    fs::write(to, &bytes).with_context(|| format!("cannot write {}", to.display()))?;
    Ok(json!({ "model": model.name(), "bytes": bytes.len() }))
}

/// Makes `model` the active one of the agent whose state will be in `state`, which must hold none.
///
/// # Errors
/// There is a journal already; the engine does not take the model; something cannot be written.
pub fn install(model: &Subject, engine: &EngineOptions, state: &Path) -> Result<Value> {
    ensure!(!state.join("journal").exists(), "{} is in use already", state.display());
    let store = state.join("store");
    fs::create_dir_all(&store).with_context(|| format!("cannot create {}", store.display()))?;
    let bytes = model.bytes()?;
    let mut session = runtime::open(engine)?
        .load_bytes(&bytes, &LoadOptions { batch: None, ..LoadOptions::default() })?;
    let (name, input) = model.input()?;
    let outputs = session.run(&[(name, &input)])?;
    let mut draft = Draft::new(model.name(), "1", Source::Bytes(bytes));
    draft.sequence = 1;
    draft.inputs = session.inputs().iter().map(spec).collect();
    draft.outputs = session.outputs().iter().map(spec).collect();
    let outputs = outputs.into_iter().map(|(name, tensor)| named(&name, tensor)).collect();
    let case = Case { inputs: vec![named(name, input)], outputs };
    draft.selftest = SelfTest { cases: vec![case], rtol: TOLERANCE, atol: TOLERANCE };
    let bundle = draft.write_into(&store)?;
    let (digest, size) = (bundle.digest.to_string(), bundle.size_bytes());
    let entry = json!([{
        "model": model.name(), "digest": digest, "version": "1", "sequence": 1, "size_bytes": size,
    }]);
    // The agent takes what its journal does not know from here.
    fs::write(state.join("active.json"), entry.to_string())?;
    Ok(json!({ "model": model.name(), "digest": digest, "bundle_bytes": size }))
}

fn spec(spec: &IoSpec) -> TensorSpec {
    let free = |dim: &Option<usize>| dim.and_then(|n| i64::try_from(n).ok()).unwrap_or(-1);
    TensorSpec {
        name: spec.name.clone(),
        dtype: spec.dtype.oip_name().to_owned(),
        dims: spec.dims.iter().map(free).collect(),
    }
}

fn named(name: &str, tensor: Tensor) -> NamedTensor {
    NamedTensor {
        name: name.to_owned(),
        dtype: tensor.dtype.oip_name().to_owned(),
        dims: tensor.shape,
        data: tensor.data,
    }
}
