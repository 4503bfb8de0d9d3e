//! Stacks of layers that are consumers of one group and producers of the next, compressed in both engines; and what
//! was done, done again from the manifest.
#![allow(clippy::unwrap_used)]

#[path = "support/nets.rs"]
mod nets;

use std::path::Path;
use std::sync::Mutex;

use bundle::{Bundle, Limits};
use espalier::pipeline::single::{ReplayJob, replay};
use espalier::pipeline::{
    CompressJob, DeviceBaseline, Goal, Progress, Recall, Silent, Verdict, compress,
    compress_recalling,
};
use espalier::plan::Plan;
use graph::{AttributeValue, Builder, DType, Dim, Model, Tensor};
use nets::{mlp, noise, samples, weight};
use runtime::{EngineKind, EngineOptions};

const ENGINES: [EngineKind; 2] = [EngineKind::Tract, EngineKind::Ort];

/// A goal of size alone, which no busy machine can miss: `share` of the model's file.
fn job(kind: EngineKind, folder: &Path, model: &Model, dims: &[usize], share: f64) -> CompressJob {
    let source = folder.join("model.onnx");
    model.save(&source).unwrap();
    let size = std::fs::metadata(&source).unwrap().len();
    let (fit, judge) = (folder.join("fit.npz"), folder.join("judge.npz"));
    samples(&fit, 256, dims, 1);
    samples(&judge, 64, dims, 2);
    CompressJob {
        name: "stack".into(),
        source,
        calibration: fit,
        heldout: judge,
        engine: EngineOptions::new(kind),
        goal: Goal {
            latency_p95_us: None,
            memory_bytes: None,
            size_bytes: Some((size as f64 * share) as u64),
            agreement_min: 0.1,
        },
        judging: espalier::pipeline::Judging::default(),
        baseline: None,
        current_model: None,
        device_class: bundle::ANY.into(),
        sequence: 1,
        version: "1".into(),
        out_dir: folder.join("bundle"),
        work_dir: Some(folder.to_path_buf()),
        seed: 5,
    }
}

/// Compresses, checks that every layer in `layers` was re-fitted and helped, and does it again from the manifest.
fn narrows_and_repairs(kind: EngineKind, model: &Model, dims: &[usize], share: f64, layers: usize) {
    let folder = tempfile::tempdir().unwrap();
    let job = job(kind, folder.path(), model, dims, share);
    let outcome = compress(&job, &Silent).unwrap();
    let chosen = &outcome.chosen;
    assert!(chosen.plan.groups.len() >= 2, "{kind}: {:?}", chosen.plan.groups);
    assert_eq!(chosen.refits.len(), layers, "{kind}: {:?} {:?}", chosen.refits, outcome.refused);
    for refit in &chosen.refits {
        assert!(refit.residual_after < refit.residual_before, "{kind}: {refit:?}");
    }
    let left: Vec<_> =
        std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(left.len(), 4, "model, samples and bundle, and no work folder: {left:?}");
    let bundle = Bundle::open(&job.out_dir, &Limits::default()).unwrap();
    does_it_again(&job, &bundle, folder.path());
}

/// The recipe in the manifest gives the model of the bundle, byte for byte.
fn does_it_again(job: &CompressJob, bundle: &Bundle, folder: &Path) {
    let plan: Plan = serde_json::from_value(bundle.manifest.lineage.recipe.clone()).unwrap();
    let again = ReplayJob {
        source: job.source.clone(),
        output: folder.join("again.onnx"),
        plan,
        data: Some(job.calibration.clone()),
        engine: EngineOptions::new(EngineKind::Tract),
    };
    replay(&again, &Silent).unwrap();
    let first = std::fs::read(bundle.model_path()).unwrap();
    assert!(first == std::fs::read(&again.output).unwrap(), "the plan gave other bytes");
    let mut other = again.clone();
    other.data = Some(job.heldout.clone());
    other.output = folder.join("other.onnx");
    let error = replay(&other, &Silent).unwrap_err().to_string();
    assert!(error.contains("fitted to the samples"), "{error}");
    other.data = None;
    assert!(replay(&other, &Silent).unwrap_err().to_string().contains("calibration samples"));
    other.plan.source_sha256 = "sha256:00".into();
    other.plan.repair = None;
    assert!(replay(&other, &Silent).unwrap_err().to_string().contains("for the model"));
    assert!(!other.output.exists());
}

#[test]
fn a_perceptron_of_three_layers_is_narrowed_repaired_and_done_again() {
    for kind in ENGINES {
        narrows_and_repairs(kind, &mlp(&[16, 64, 64, 10]), &[16], 0.25, 2);
    }
}

/// A convolution, flattened into three dense layers with biases.
fn lenet() -> Model {
    let mut builder = Builder::new(15);
    let size = Dim::Fixed(8);
    let dims = vec![Dim::Symbol("N".into()), Dim::Fixed(1), size.clone(), size];
    let x = builder.input("x", DType::F32, dims);
    let kernel = Tensor::from_f32(vec![16, 1, 3, 3], &noise(144, 9)).unwrap();
    let kernel = builder.constant("kernel", kernel).unwrap();
    let strides = ("strides", AttributeValue::Ints(vec![2, 2]));
    let mut value = builder.node("Conv", &[x, kernel], [strides]).unwrap();
    value = builder.node("Relu", &[value], []).unwrap();
    value = builder.node("Flatten", &[value], []).unwrap();
    for (at, pair) in [144, 64, 32, 10].windows(2).enumerate() {
        if at > 0 {
            value = builder.node("Relu", &[value], []).unwrap();
        }
        let w = weight(&mut builder, &format!("w{at}"), pair[0], pair[1]);
        let b = Tensor::from_f32(vec![pair[1]], &noise(pair[1], 11)).unwrap();
        let b = builder.constant(&format!("b{at}"), b).unwrap();
        value = builder.node("Gemm", &[value, w, b], []).unwrap();
    }
    let y = builder.node("Softmax", &[value], [("axis", AttributeValue::Int(1))]).unwrap();
    builder.finish(&[y]).unwrap()
}

#[test]
fn a_convolution_and_three_dense_layers_are_narrowed_repaired_and_done_again() {
    for kind in ENGINES {
        narrows_and_repairs(kind, &lenet(), &[1, 8, 8], 0.4, 3);
    }
}

/// What a device reports as too large for it is never offered again, though it is modelled to fit.
#[test]
fn a_memory_breach_is_answered_with_a_smaller_model() {
    let folder = tempfile::tempdir().unwrap();
    let mut job = job(EngineKind::Tract, folder.path(), &mlp(&[16, 64, 64, 10]), &[16], 1.0);
    job.goal.size_bytes = None;
    job.goal.memory_bytes = Some(1_000_000);
    job.baseline = Some(DeviceBaseline {
        memory_bytes: Some(900_000),
        breached: Some(wire::BudgetKind::Memory),
        ..DeviceBaseline::latency(100, 200)
    });
    let outcome = compress(&job, &Silent).unwrap();
    assert!(outcome.chosen.size_bytes < outcome.original.size_bytes, "{:?}", outcome.chosen);
    assert!(outcome.chosen.memory_bytes.value * 1.02 <= 1_000_000.0, "{:?}", outcome.chosen);
    let original = &outcome.candidates[0];
    assert!(
        matches!(&original.verdict, Verdict::Refused(why) if why.contains("memory")),
        "{original:?}"
    );
}

/// The same bytes under two names are one set of data, of which some samples are kept apart.
#[test]
fn a_copy_of_the_calibration_data_does_not_judge_what_was_fitted_to_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut job = job(EngineKind::Tract, folder.path(), &mlp(&[16, 64, 10]), &[16], 0.5);
    job.heldout = folder.path().join("copy.npz");
    std::fs::copy(&job.calibration, &job.heldout).unwrap();
    let outcome = compress(&job, &Silent).unwrap();
    assert_eq!(outcome.chosen.quality.as_ref().unwrap().samples, 64);
    let repair = outcome.chosen.plan.repair.as_ref().unwrap();
    assert_eq!((repair.hold_out_every, repair.samples), (Some(4), 192));
    let bundle = Bundle::open(&job.out_dir, &Limits::default()).unwrap();
    let plan: Plan = serde_json::from_value(bundle.manifest.lineage.recipe.clone()).unwrap();
    let again = ReplayJob {
        source: job.source.clone(),
        output: folder.path().join("again.onnx"),
        plan,
        data: Some(job.calibration.clone()),
        engine: EngineOptions::new(EngineKind::Tract),
    };
    replay(&again, &Silent).unwrap();
    let first = std::fs::read(bundle.model_path()).unwrap();
    assert!(first == std::fs::read(&again.output).unwrap());
}

#[test]
fn too_few_samples_to_judge_by_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut job = job(EngineKind::Tract, folder.path(), &mlp(&[16, 64, 10]), &[16], 0.5);
    samples(&job.heldout, 7, &[16], 2);
    let error = compress(&job, &Silent).unwrap_err().to_string();
    assert!(error.contains("has 7 samples; at least 8"), "{error}");
    samples(&job.calibration, 31, &[16], 2);
    job.heldout = job.calibration.clone();
    let error = compress(&job, &Silent).unwrap_err().to_string();
    assert!(error.contains("has 31 samples; at least 32"), "{error}");
    assert!(!job.out_dir.exists());
}

/// The stages of a compression, as it says them.
#[derive(Default)]
struct Stages(Mutex<Vec<String>>);

impl Progress for Stages {
    fn stage(&self, name: &str, _total: u64) {
        self.0.lock().unwrap().push(name.to_owned());
    }
}

#[test]
fn a_second_compression_of_the_same_original_looks_at_it_no_more_and_ends_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let mut job = job(EngineKind::Tract, folder.path(), &mlp(&[16, 64, 64, 10]), &[16], 0.25);
    let recall = Recall::default();
    let mut number = 0;
    let mut made = |job: &mut CompressJob| {
        number += 1;
        job.out_dir = folder.path().join(format!("bundle-{number}"));
        let stages = Stages::default();
        let outcome = compress_recalling(job, &stages, &recall).unwrap();
        let looks = ["answers of the original", "observing the original"];
        let heard = stages.0.into_inner().unwrap();
        let looked = looks.map(|look| heard.iter().any(|stage| stage == look));
        let bundle = Bundle::open(&job.out_dir, &Limits::default()).unwrap();
        (looked, outcome.chosen.plan, std::fs::read(bundle.model_path()).unwrap())
    };
    let (looked, plan, bytes) = made(&mut job);
    assert_eq!(looked, [true; 2]);
    assert_eq!(made(&mut job), ([false; 2], plan.clone(), bytes.clone()));
    samples(&job.calibration, 256, &[16], 3);
    let (looked, other, _) = made(&mut job);
    assert_eq!(looked, [true; 2], "other samples were given");
    assert_ne!(other.repair, plan.repair);
    job.engine = EngineOptions::new(EngineKind::Ort);
    assert_eq!(made(&mut job).0, [true; 2], "another engine was asked for");
}
