//! Outputs of two models, compared.

use std::collections::HashMap;

use exec::Executor;
use graph::{Model, Tensor};

/// Every output of the model, as f64.
pub(crate) fn outputs(model: &Model, inputs: &HashMap<String, Tensor>) -> Vec<Vec<f64>> {
    let executor = Executor::new(model).unwrap();
    let found = executor
        .run(inputs.clone(), model.graph.outputs())
        .unwrap_or_else(|error| panic!("{error}"));
    model.graph.outputs().iter().map(|output| found[output].to_f64_vec().unwrap()).collect()
}

/// The largest difference, relative to the largest output.
pub(crate) fn difference(a: &[Vec<f64>], b: &[Vec<f64>]) -> f64 {
    let pairs = || a.iter().zip(b).flat_map(|(a, b)| a.iter().zip(b));
    assert!(a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.len() == b.len()));
    let scale = pairs().fold(1e-3_f64, |top, (a, b)| top.max(a.abs()).max(b.abs()));
    pairs().fold(
        0.0_f64,
        |top, (a, b)| if (a - b).is_nan() { f64::INFINITY } else { top.max((a - b).abs()) },
    ) / scale
}
