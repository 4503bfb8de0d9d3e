//! Convolutions that are re-fitted after their channels were cut: a small residual network that was trained on
//! images (`fixtures/fashion.onnx`), on noise of the same size.
#![allow(clippy::unwrap_used)]

#[path = "support/nets.rs"]
mod nets;

use std::path::{Path, PathBuf};

use espalier::pipeline::Silent;
use espalier::pipeline::single::{PruneJob, ReplayJob, Tried, prune, replay};
use espalier::plan::{RepairKind, ScoreKind};
use espalier::score::GroupKind;
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

fn job(folder: &Path, engine: EngineKind, score: ScoreKind, kinds: &[RepairKind]) -> PruneJob {
    let names: Vec<&str> = kinds.iter().map(|kind| kind.name()).collect();
    PruneJob {
        source: fixture(),
        output: folder.join(format!("narrow-{score}-{}.onnx", names.join("-"))),
        ratio: 0.5,
        score,
        data: Some(folder.join("fit.npz")),
        repair: Some(kinds.to_vec()),
        engine: EngineOptions::new(engine),
        timed: true,
        seed: 0,
    }
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    samples_of(&folder.path().join("fit.npz"), "image", CALIBRATION, &[1, SIDE, SIDE], 3);
    folder
}

#[test]
fn convolutions_are_brought_back_to_what_they_computed() {
    for engine in [EngineKind::Ort, EngineKind::Tract] {
        let folder = folder();
        let whole = answers(&fixture(), engine);
        let narrowed = |kinds: &[RepairKind]| {
            let mut job = job(folder.path(), engine, ScoreKind::Activation, kinds);
            job.ratio = 0.75;
            let outcome = prune(&job, &Silent).unwrap();
            (distance(&whole, &answers(&job.output, engine)), outcome)
        };
        let (cut, _) = narrowed(&[]);
        let (ls, outcome) = narrowed(&[RepairKind::Ls]);
        let convolutions = outcome.refits.iter().filter(|step| step.node.contains("Conv"));
        assert!(convolutions.count() >= 2, "{engine}: {:?}", outcome.refused);
        let (gram, outcome) = narrowed(&[RepairKind::Gram]);
        assert!(outcome.grams.len() >= 3, "{engine}: {:?}", outcome.grams);
        for step in &outcome.grams {
            assert!(step.residual_after < step.residual_before, "{engine}: {step:?}");
        }
        let (bn, outcome) = narrowed(&[RepairKind::Bn]);
        assert!(outcome.norms.len() >= 3, "{engine}: {:?}", outcome.norms);
        let all = format!("{engine}: cut {cut}, bn {bn}, gram {gram}, ls {ls}");
        assert!(cut > bn && cut > gram && gram >= ls && ls < 0.5 * cut, "{all}");
    }
}

/// What every repair wrote is written again, byte for byte, from the plan alone.
#[test]
fn every_repair_is_done_again_from_its_plan() {
    let folder = folder();
    let kinds: [&[RepairKind]; 3] = [
        &[RepairKind::Gram],
        &[RepairKind::Bn, RepairKind::Ls],
        &[RepairKind::Gram, RepairKind::Bn],
    ];
    for (engine, kinds) in
        [EngineKind::Ort, EngineKind::Tract, EngineKind::Ort].into_iter().zip(kinds)
    {
        let job = job(folder.path(), engine, ScoreKind::Wanda, kinds);
        let outcome = prune(&job, &Silent).unwrap();
        let text = serde_json::to_string(&outcome.plan).unwrap();
        let again = ReplayJob {
            source: fixture(),
            output: folder.path().join("again.onnx"),
            plan: serde_json::from_str(&text).unwrap(),
            data: job.data.clone(),
            engine: EngineOptions::new(EngineKind::Tract),
        };
        let replayed = replay(&again, &Silent).unwrap();
        assert_eq!(replayed.grams, outcome.grams, "{engine}: {kinds:?}");
        let (first, second) =
            (std::fs::read(&job.output).unwrap(), std::fs::read(&again.output).unwrap());
        assert!(first == second, "{engine}: {kinds:?} gave other bytes");
    }
}

/// Second-order removal brings its compensation along, and the scores that see the data are all asked.
#[test]
fn second_order_removal_repairs_and_auto_says_what_it_measured() {
    let folder = folder();
    let mut job = job(folder.path(), EngineKind::Ort, ScoreKind::Obs, &[]);
    job.repair = None;
    let outcome = prune(&job, &Silent).unwrap();
    assert_eq!(outcome.plan.repair.unwrap().kinds, vec![RepairKind::Gram, RepairKind::Bn]);
    assert!(outcome.grams.len() >= 5, "{:?}", outcome.refused);
    assert!(!outcome.refused.iter().any(|r| r.stage == "score"), "{:?}", outcome.refused);
    job.score = ScoreKind::Auto;
    let outcome = prune(&job, &Silent).unwrap();
    let kinds: Vec<GroupKind> = outcome.auto.iter().map(|pick| pick.kind).collect();
    assert_eq!(kinds, vec![GroupKind::Residual, GroupKind::Channels]);
    for pick in &outcome.auto {
        let of = |tried: &Tried| tried.loss.unwrap();
        let taken = pick.tried.iter().find(|tried| tried.score == pick.score).unwrap();
        assert!(pick.tried.iter().all(|tried| of(tried) >= of(taken)), "{pick:?}");
    }
    let text = serde_json::to_value(&outcome).unwrap();
    assert_eq!(text["auto"][0]["kind"], "residual");
    assert_eq!(text["plan"]["score"], "auto");
}
