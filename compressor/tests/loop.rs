//! Real compressions of a real model in real engines.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;

use bundle::{Bundle, Limits, Quality};
use espalier::CompressError;
use espalier::pipeline::{
    CompressJob, DeviceBaseline, Goal, OriginalJob, Progress, Silent, Verdict, bundle_original,
    compress,
};
use runtime::{EngineKind, LoadOptions};
use support::{asset, engine, first_samples};

/// Says on the test's output what the compression does: read when a test fails.
struct Spoken;

impl Progress for Spoken {
    fn stage(&self, name: &str, total: u64) {
        eprintln!("{name} ({total})");
    }
    fn note(&self, text: &str) {
        eprintln!("  {text}");
    }
}

fn job(kind: EngineKind, folder: &Path) -> CompressJob {
    CompressJob {
        name: "magika".into(),
        source: asset("magika.onnx"),
        calibration: asset("calib.npz"),
        heldout: asset("heldout.npz"),
        engine: engine(kind),
        goal: Goal {
            latency_p95_us: Some(60_000),
            memory_bytes: None,
            size_bytes: None,
            // Low enough that a noisy machine, which pushes the search to narrower models, cannot decide the test.
            agreement_min: 0.6,
        },
        judging: espalier::pipeline::Judging::default(),
        // A device that takes 100 ms: the budget of 60 ms is 60 % of that.
        baseline: Some(DeviceBaseline::latency(90_000, 100_000)),
        current_model: None,
        device_class: "raspberry-pi-4".into(),
        sequence: 2,
        version: "2".into(),
        out_dir: folder.join("bundle"),
        work_dir: None,
        seed: 1,
    }
}

fn meets_the_goal_on(kind: EngineKind) {
    let folder = tempfile::tempdir().unwrap();
    let job = job(kind, folder.path());
    let outcome = compress(&job, &Spoken).unwrap();
    let chosen = &outcome.chosen;
    assert_eq!(chosen.verdict, Verdict::Chosen);
    assert!(chosen.latency_p95_us.value <= 60_000.0, "{chosen:?}");
    assert_eq!(chosen.latency_p95_us.quality, Quality::Modelled);
    let quality = chosen.quality.as_ref().unwrap();
    assert!(!quality.screening && quality.samples >= 500);
    assert!(quality.agreement.value >= 0.6, "{quality:?}");
    assert!(chosen.size_bytes < outcome.original.size_bytes);
    assert!(!chosen.refits.is_empty());

    let bundle = Bundle::open(&job.out_dir, &Limits::default()).unwrap();
    assert_eq!(bundle.digest, outcome.digest);
    assert_eq!(bundle.manifest.sequence, 2);
    assert_eq!(bundle.manifest.runtime, kind.name());
    assert_eq!(bundle.manifest.inputs[0].name, "bytes");
    assert_eq!(bundle.manifest.inputs[0].dtype, "INT32");
    assert_eq!(bundle.manifest.inputs[0].dims, vec![-1, 2048]);
    assert!(bundle.manifest.lineage.source_sha256.is_some());
    passes_its_selftest(&bundle, kind);
    holds_what_requests_look_like(&bundle);
    let html = std::fs::read_to_string(&outcome.report).unwrap();
    for refusal in &outcome.refused {
        let start: String =
            refusal.why.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == ' ').collect();
        assert!(html.contains(&start), "{refusal:?} is not in the report");
    }
    assert!(html.contains("modelled"));
}

/// What the agent does first: the golden cases give what the manifest's engine gave.
fn passes_its_selftest(bundle: &Bundle, kind: EngineKind) {
    let selftest = bundle.selftest().unwrap();
    assert_eq!(selftest.cases.len(), 4);
    let options = LoadOptions { batch: Some(1), ..LoadOptions::default() };
    let mut session =
        runtime::open(&engine(kind)).unwrap().load(&bundle.model_path(), &options).unwrap();
    for case in &selftest.cases {
        let input = &case.inputs[0];
        let tensor =
            runtime::Tensor::new(runtime::ElementType::I32, input.dims.clone(), input.data.clone())
                .unwrap();
        let outputs = session.run(&[(input.name.as_str(), &tensor)]).unwrap();
        let floats = |bytes: &[u8]| -> Vec<f32> {
            bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
        };
        for (got, want) in outputs[0].1.to_f32().unwrap().iter().zip(floats(&case.outputs[0].data))
        {
            assert!((got - want).abs() <= selftest.atol + selftest.rtol * want.abs());
        }
    }
}

/// What a device holds its requests against.
fn holds_what_requests_look_like(bundle: &Bundle) {
    use bundle::{Feature, Rows, Side};
    let reference = bundle.reference().unwrap().unwrap();
    assert!((300..=512).contains(&reference.samples), "{}", reference.samples);
    let [input, output] = reference.tensors.as_slice() else { panic!("{reference:?}") };
    assert_eq!((input.side, input.name.as_str(), input.batched), (Side::Input, "bytes", true));
    assert_eq!((output.side, output.rows), (Side::Output, Some(Rows { axis: 1, scores: false })));
    let features: Vec<Feature> = output.features.iter().map(|f| f.feature).collect();
    assert_eq!(features, [Feature::Class, Feature::Confidence]);
    for feature in input.features.iter().chain(&output.features) {
        assert_eq!(feature.counts.iter().sum::<u64>(), reference.samples, "{feature:?}");
    }
}

#[test]
fn a_latency_goal_of_sixty_percent_is_met_in_tract() {
    meets_the_goal_on(EngineKind::Tract);
}

#[test]
fn a_latency_goal_of_sixty_percent_is_met_in_onnx_runtime() {
    meets_the_goal_on(EngineKind::Ort);
}

#[test]
fn a_goal_that_no_width_reaches_ends_with_what_came_nearest_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut job = job(EngineKind::Ort, folder.path());
    job.goal.latency_p95_us = Some(1_000);
    let error = compress(&job, &Silent).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, CompressError::GoalUnreachable(_)), "{text}");
    assert!(text.contains("fastest of all") && text.contains("p95 up to 1.00 ms"), "{text}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn an_accuracy_floor_that_no_fast_candidate_holds_is_not_lowered_silently() {
    let folder = tempfile::tempdir().unwrap();
    let mut job = job(EngineKind::Ort, folder.path());
    job.calibration = folder.path().join("few.npz");
    job.heldout = folder.path().join("judge.npz");
    first_samples("calib.npz", 48, &job.calibration);
    first_samples("heldout.npz", 96, &job.heldout);
    job.goal.agreement_min = 0.999;
    job.goal.latency_p95_us = Some(40_000);
    let error = compress(&job, &Silent).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, CompressError::GoalUnreachable(_)), "{text}");
    assert!(text.contains("fastest at or above the floor: original"), "{text}");
    assert!(!job.out_dir.exists());
}

#[test]
fn a_goal_that_the_original_meets_keeps_the_original() {
    let folder = tempfile::tempdir().unwrap();
    let mut job = job(EngineKind::Ort, folder.path());
    job.goal.latency_p95_us = Some(1_000_000);
    job.heldout = folder.path().join("judge.npz");
    first_samples("heldout.npz", 16, &job.heldout);
    let outcome = compress(&job, &Silent).unwrap();
    assert_eq!(outcome.chosen.label, "original");
    assert!(outcome.chosen.plan.groups.is_empty());
    let bundle = Bundle::open(&job.out_dir, &Limits::default()).unwrap();
    let model = std::fs::read(bundle.model_path()).unwrap();
    assert_eq!(model, std::fs::read(&job.source).unwrap());
}

#[test]
fn the_original_is_bundled_byte_for_byte() {
    let folder = tempfile::tempdir().unwrap();
    let job = OriginalJob {
        name: "magika".into(),
        source: asset("magika.onnx"),
        heldout: asset("heldout.npz"),
        engine: engine(EngineKind::Tract),
        device_class: "any".into(),
        sequence: 1,
        version: "1".into(),
        out_dir: folder.path().join("original"),
        work_dir: None,
        seed: 0,
    };
    let outcome = bundle_original(&job, &Silent).unwrap();
    let bundle = Bundle::open(&outcome.bundle_dir, &Limits::default()).unwrap();
    assert_eq!(bundle.digest, outcome.digest);
    assert_eq!(std::fs::read(bundle.model_path()).unwrap(), std::fs::read(&job.source).unwrap());
    passes_its_selftest(&bundle, EngineKind::Tract);
    let again = bundle_original(&job, &Silent).unwrap_err();
    assert!(again.to_string().contains("original"), "{again}");
}

#[test]
fn a_job_that_is_asked_to_stop_stops_and_leaves_nothing() {
    struct Stop;
    impl Progress for Stop {
        fn cancelled(&self) -> bool {
            true
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let job = job(EngineKind::Ort, folder.path());
    let error = compress(&job, &Stop).unwrap_err();
    assert!(matches!(error, CompressError::Cancelled(_)), "{error}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}
