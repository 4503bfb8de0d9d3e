//! Convolutions that are re-fitted after their channels were cut: a small residual network that was trained on
//! images (`fixtures/fashion.onnx`), on noise of the same size.
#![allow(clippy::unwrap_used)]

#[path = "support/nets.rs"]
mod nets;

use std::path::{Path, PathBuf};

use espalier::pipeline::Silent;
use espalier::pipeline::single::{PruneJob, PruneOutcome, prune};
use espalier::plan::ScoreKind;
use nets::{noise, samples_of};
use runtime::{EngineKind, EngineOptions, LoadOptions, Tensor};

const SIDE: usize = 28;
const CALIBRATION: usize = 96;

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/fashion.onnx")
}

/// Answers of the model at `path` to images that were not fitted to.
fn answers(path: &Path, engine: EngineKind) -> Vec<f32> {
    let engine = runtime::open(&EngineOptions::new(engine)).unwrap();
    let options = LoadOptions { batch: Some(1), ..LoadOptions::default() };
    let mut session = engine.load(path, &options).unwrap();
    let mut all = Vec::new();
    for image in noise(32 * SIDE * SIDE, 77).chunks(SIDE * SIDE) {
        let tensor = Tensor::from_f32(vec![1, 1, SIDE, SIDE], image).unwrap();
        let outputs = session.run(&[("image", &tensor)]).unwrap();
        all.extend(outputs[0].1.to_f32().unwrap());
    }
    all
}

/// Square of the distance of two models' answers, as a share of the first one's square.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    let squares = |v: f64| v * v;
    let off: f64 = a.iter().zip(b).map(|(a, b)| squares(f64::from(a - b))).sum();
    off / a.iter().map(|a| squares(f64::from(*a))).sum::<f64>()
}

fn narrowed(folder: &Path, engine: EngineKind, repair: bool) -> (PathBuf, PruneOutcome) {
    let (data, output) = (folder.join("fit.npz"), folder.join(format!("narrow-{repair}.onnx")));
    let job = PruneJob {
        source: fixture(),
        output: output.clone(),
        ratio: 0.5,
        score: ScoreKind::Activation,
        data: Some(data),
        repair,
        engine: EngineOptions::new(engine),
        seed: 0,
    };
    let outcome = prune(&job, &Silent).unwrap();
    (output, outcome)
}

#[test]
fn convolutions_are_brought_back_to_what_they_computed() {
    for engine in [EngineKind::Ort, EngineKind::Tract] {
        let folder = tempfile::tempdir().unwrap();
        samples_of(&folder.path().join("fit.npz"), "image", CALIBRATION, &[1, SIDE, SIDE], 3);
        let whole = answers(&fixture(), engine);
        let (cut, _) = narrowed(folder.path(), engine, false);
        let (fitted, outcome) = narrowed(folder.path(), engine, true);
        let convolutions = outcome.refits.iter().filter(|step| step.node.contains("Conv"));
        assert!(convolutions.count() >= 10, "{engine}: {:?}", outcome.refused);
        let (before, after) =
            (distance(&whole, &answers(&cut, engine)), distance(&whole, &answers(&fitted, engine)));
        assert!(after < 0.5 * before, "{engine}: {before} before and {after} after the repair");
    }
}
