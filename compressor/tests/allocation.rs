//! `prune` under a budget, on a small residual network that was trained on images (`fixtures/fashion.onnx`), with noise
//! of the same size for samples.
#![allow(clippy::unwrap_used)]

#[path = "support/nets.rs"]
mod nets;

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use espalier::CompressError;
use espalier::pipeline::budget::{Allocation, Amount, Budget, BudgetJob, LossOf, prune_to};
use espalier::pipeline::single::{PruneJob, PruneOutcome, ReplayJob, prune, replay};
use espalier::pipeline::{Progress, Silent};
use espalier::plan::{RepairKind, ScoreKind};
use nets::{mlp, noise, samples, samples_of};
use runtime::{EngineKind, EngineOptions, LoadOptions, Tensor};

const SIDE: usize = 28;
const ENGINE: EngineKind = EngineKind::Ort;

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/fashion.onnx")
}

/// A job on the fixture with 48 samples of noise, of which curves take 24, and nothing re-fitted.
fn job(folder: &Path, name: &str, budget: Budget) -> BudgetJob {
    let data = folder.join("fit.npz");
    if !data.exists() {
        samples_of(&data, "image", 48, &[1, SIDE, SIDE], 3);
    }
    let prune = PruneJob {
        source: fixture(),
        output: folder.join(name),
        ratio: 1.0,
        score: ScoreKind::Activation,
        data: Some(data),
        repair: Some(Vec::new()),
        engine: EngineOptions::new(ENGINE),
        timed: true,
        seed: 0,
    };
    BudgetJob { prune, budget, curves: None, curve_samples: 24 }
}

/// The same without samples.
fn blind(folder: &Path, name: &str, budget: Budget) -> BudgetJob {
    let with = job(folder, name, budget);
    let prune = PruneJob { data: None, score: ScoreKind::Magnitude, ..with.prune };
    BudgetJob { prune, ..with }
}

fn allocation(outcome: &PruneOutcome) -> &Allocation {
    outcome.allocation.as_ref().unwrap()
}

/// Answers of the model at `path` to images that were not fitted to.
fn answers(path: &Path) -> Vec<Vec<f32>> {
    let engine = runtime::open(&EngineOptions::new(ENGINE)).unwrap();
    let options = LoadOptions { batch: Some(1), ..LoadOptions::default() };
    let mut session = engine.load(path, &options).unwrap();
    let images = noise(64 * SIDE * SIDE, 77);
    let run = |image: &[f32]| {
        let tensor = Tensor::from_f32(vec![1, 1, SIDE, SIDE], image).unwrap();
        session.run(&[("image", &tensor)]).unwrap()[0].1.to_f32().unwrap()
    };
    images.chunks(SIDE * SIDE).map(run).collect()
}

/// Mean divergence of the answers of the model at `path` from the original's.
fn error(path: &Path) -> f64 {
    let (whole, cut) = (answers(&fixture()), answers(path));
    let pairs = whole.iter().zip(&cut);
    pairs.map(|(a, b)| espalier::quality::divergence(a, b)).sum::<f64>() / whole.len() as f64
}

/// Hears notes, and asks to stop once so many points of the curves are done.
#[derive(Default)]
struct Ear {
    notes: Mutex<String>,
    in_curves: AtomicBool,
    points: AtomicU64,
    stop_after: Option<u64>,
}

impl Progress for Ear {
    fn stage(&self, name: &str, _: u64) {
        self.in_curves.store(name == "measuring curves", Ordering::Relaxed);
    }
    fn step(&self, done: u64) {
        if self.in_curves.load(Ordering::Relaxed) {
            self.points.store(done, Ordering::Relaxed);
        }
    }
    fn note(&self, text: &str) {
        *self.notes.lock().unwrap() += &format!("{text}\n");
    }
    fn cancelled(&self) -> bool {
        self.stop_after.is_some_and(|most| self.points.load(Ordering::Relaxed) >= most)
    }
}

#[test]
fn every_budget_is_met_and_nearly_used_without_samples() {
    let folder = tempfile::tempdir().unwrap();
    for (at, share) in [0.8, 0.5, 0.3].into_iter().enumerate() {
        let share = Amount::Share(share);
        for budget in [Budget::Params(share), Budget::Macs(share), Budget::Size(share)] {
            let job = blind(folder.path(), &format!("{at}.onnx"), budget);
            let outcome = prune_to(&job, &Silent).unwrap();
            let found = allocation(&outcome);
            assert!(found.real <= found.budget, "{found:?}");
            assert!(found.real >= 0.9 * found.budget, "{budget:?}: {found:?}");
            assert!(found.loss_predicted <= found.even.unwrap().loss_predicted, "{found:?}");
            let written = graph::Model::load(&job.prune.output).unwrap();
            let counted = match budget {
                Budget::Params(_) => graph::cost::params(&written),
                Budget::Macs(_) => graph::cost::macs(&written, &graph::infer(&written), 1),
                _ => std::fs::metadata(&job.prune.output).unwrap().len(),
            };
            assert_eq!(counted as f64, found.real, "{budget:?}");
            assert!(outcome.groups.iter().all(|g| g.keep.len().is_multiple_of(g.alignment)));
            assert!(outcome.curves.iter().all(|curve| curve.loss_of == LossOf::Ratings));
        }
    }
    assert!(!folder.path().join("0.onnx.curves.jsonl").exists());
}

/// With the repair, whose new biases count.
#[test]
fn a_budget_is_met_by_the_repaired_model_and_its_plan_gives_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let mut job = job(folder.path(), "fitted.onnx", Budget::Params(Amount::Of(110_000.0)));
    job.prune.repair = Some(vec![RepairKind::Ls]);
    let outcome = prune_to(&job, &Silent).unwrap();
    let found = allocation(&outcome);
    assert!(found.real <= 110_000.0 && found.real >= 100_000.0, "{found:?}");
    assert_eq!(outcome.params_after as f64, found.real);
    // The biases that the repair adds are foreseen.
    assert!((found.predicted - found.real).abs() <= 0.005 * found.real, "{found:?}");
    assert!(outcome.latency.is_some() && !outcome.refits.is_empty());
    let again = ReplayJob {
        source: fixture(),
        output: folder.path().join("again.onnx"),
        plan: outcome.plan.clone(),
        data: job.prune.data.clone(),
        engine: EngineOptions::new(ENGINE),
    };
    replay(&again, &Silent).unwrap();
    let bytes = |path: &Path| std::fs::read(path).unwrap();
    assert!(bytes(&job.prune.output) == bytes(&again.output));
}

/// As many parameters as the same share of every group leaves, and less lost, on images that nothing was chosen by.
#[test]
fn widths_that_were_allocated_lose_less_than_the_same_share_of_every_group() {
    let folder = tempfile::tempdir().unwrap();
    for ratio in [0.75, 0.5] {
        let job = job(folder.path(), "allocated.onnx", Budget::Global(ratio));
        let outcome = prune_to(&job, &Silent).unwrap();
        let found = allocation(&outcome);
        let even = PruneJob { ratio, output: folder.path().join("even.onnx"), ..job.prune.clone() };
        let even_outcome = prune(&even, &Silent).unwrap();
        assert!(outcome.params_after <= even_outcome.params_after);
        let (ours, theirs) = (error(&job.prune.output), error(&even.output));
        assert!(ours <= theirs, "{ours} allocated, {theirs} even at {ratio}: {found:?}");
        assert!(found.loss_measured <= found.even.unwrap().loss_measured, "{found:?}");
    }
}

#[test]
fn a_run_that_was_stopped_goes_on_and_a_second_run_measures_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let budget = Budget::Params(Amount::Share(0.6));
    let straight = job(folder.path(), "straight.onnx", budget);
    let outcome = prune_to(&straight, &Silent).unwrap();
    let all = allocation(&outcome).points.clone().unwrap();
    assert!(all.measured > 12 && all.reused == 0, "{all:?}");

    let halting = job(folder.path(), "halting.onnx", budget);
    let ear = Ear { stop_after: Some(7), ..Ear::default() };
    let error = prune_to(&halting, &ear).unwrap_err();
    assert!(matches!(error, CompressError::Cancelled(_)), "{error}");
    let error = error.to_string();
    assert!(
        error.contains("7 measurements are kept in") && error.contains("halting.onnx.curves.jsonl")
    );
    assert!(!halting.prune.output.exists());
    let resumed = prune_to(&halting, &Silent).unwrap();
    let rest = allocation(&resumed).points.clone().unwrap();
    assert_eq!((rest.reused, rest.measured), (7, all.measured - 7));
    assert_eq!(resumed.plan, outcome.plan);
    let bytes = |path: &Path| std::fs::read(path).unwrap();
    assert!(bytes(&halting.prune.output) == bytes(&straight.prune.output));

    let again = prune_to(&halting, &Silent).unwrap();
    let none = allocation(&again).points.clone().unwrap();
    assert_eq!((none.reused, none.measured), (all.measured, 0));
    assert_eq!((again.plan, again.curves), (outcome.plan, outcome.curves));

    // Another budget takes the curves as they are; only its own choices are measured.
    let mut other = job(folder.path(), "other.onnx", Budget::Macs(Amount::Share(0.6)));
    other.curves = Some(halting.curves_file());
    let points: usize = again_points(&prune_to(&other, &Silent).unwrap(), all.measured);
    assert!(points < all.measured, "{points}");
}

/// Points measured, of a run that found `reused`.
fn again_points(outcome: &PruneOutcome, reused: usize) -> usize {
    let points = allocation(outcome).points.clone().unwrap();
    assert_eq!(points.reused, reused);
    points.measured
}

#[test]
fn measurements_of_another_model_are_not_taken_and_no_other_file_is_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let (model, data) = (folder.path().join("mlp.onnx"), folder.path().join("x.npz"));
    samples(&data, 32, &[12], 5);
    let run = |widths: &[usize], curve_samples| {
        mlp(widths).save(&model).unwrap();
        let base = job(folder.path(), "out.onnx", Budget::Params(Amount::Share(0.6)));
        let (source, data) = (model.clone(), Some(data.clone()));
        let prune = PruneJob { source, data, ..base.prune };
        let job = BudgetJob { prune, curve_samples, ..base };
        let ear = Ear::default();
        let outcome = prune_to(&job, &ear);
        (outcome, ear.notes.into_inner().unwrap())
    };
    let reused = |outcome: &PruneOutcome| allocation(outcome).points.as_ref().unwrap().reused;
    let (first, notes) = run(&[12, 32, 24, 4], 16);
    assert_eq!((reused(&first.unwrap()), notes.contains("anew")), (0, false), "{notes}");
    let (second, notes) = run(&[12, 32, 16, 4], 16);
    assert_eq!(reused(&second.unwrap()), 0);
    assert!(notes.contains("measured with another model"), "{notes}");
    let (third, notes) = run(&[12, 32, 16, 4], 17);
    assert_eq!(reused(&third.unwrap()), 0);
    assert!(notes.contains("measured with another samples"), "{notes}");

    let curves = folder.path().join("out.onnx.curves.jsonl");
    let whole = std::fs::read(&curves).unwrap();
    std::fs::write(&curves, &whole[..whole.len() - 5]).unwrap();
    let (cut, notes) = run(&[12, 32, 16, 4], 17);
    let points = allocation(&cut.unwrap()).points.clone().unwrap();
    assert_eq!(points.measured, 1, "{notes}");

    std::fs::remove_file(folder.path().join("out.onnx")).unwrap();
    std::fs::write(&curves, "my own notes\n").unwrap();
    let (refused, _) = run(&[12, 32, 16, 4], 17);
    assert!(refused.unwrap_err().to_string().contains("is left as it is"));
    assert_eq!(std::fs::read_to_string(&curves).unwrap(), "my own notes\n");
    assert!(!folder.path().join("out.onnx").exists());
}

#[test]
fn a_budget_out_of_reach_names_the_nearest_and_writes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    for (budget, part) in [
        (Budget::Params(Amount::Of(10.0)), "a budget of 10 parameters is out of reach"),
        (Budget::Macs(Amount::Share(1e-4)), "multiply-accumulates"),
        (Budget::Size(Amount::Of(100.0)), "a budget of 100 bytes"),
        (Budget::Params(Amount::Share(1.5)), "at most 1"),
        (Budget::Params(Amount::Of(f64::NAN)), "above zero"),
        (Budget::Latency(Amount::Share(0.5)), "--data"),
    ] {
        let job = blind(folder.path(), "no.onnx", budget);
        let error = prune_to(&job, &Silent).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
        assert!(!job.prune.output.exists());
    }
}

/// However fast this machine is: either the budget was measured to be met, or nothing was written and the nearest is
/// named. A second run times nothing but whole choices that are new.
#[test]
fn a_latency_is_met_by_measurement_or_refused_with_the_nearest() {
    let folder = tempfile::tempdir().unwrap();
    let job = job(folder.path(), "fast.onnx", Budget::Latency(Amount::Share(0.7)));
    match prune_to(&job, &Silent) {
        Ok(outcome) => {
            let (found, speed) = (allocation(&outcome), outcome.latency.unwrap());
            assert!(found.real <= found.budget, "{found:?}");
            assert!((speed.host.ratio * found.original - found.real).abs() < 1e-6 * found.real);
            assert!(!found.timed.is_empty());
            assert!(outcome.macs_after < outcome.macs_before);
        }
        Err(error) => {
            assert!(error.to_string().contains("is out of reach: the nearest is"), "{error}");
            assert!(!job.prune.output.exists());
        }
    }
    let kept = std::fs::read_to_string(job.curves_file()).unwrap();
    assert!(kept.lines().filter(|line| line.starts_with("{\"latency\"")).count() > 5, "{kept}");

    let hopeless = BudgetJob { budget: Budget::Latency(Amount::Of(0.001)), ..job };
    let error = prune_to(&hopeless, &Silent).unwrap_err().to_string();
    assert!(error.contains("out of reach"), "{error}");
}
