use std::path::PathBuf;

use bundle::{Estimate, Quality};
use runtime::{EngineKind, EngineOptions};

use super::*;
use crate::latency::HostLatency;
use crate::pipeline::{Goal, Judging};
use crate::plan::{GroupChoice, Plan, RefitStep, ScoreKind};
use crate::quality::{Answer, Compared, Comparison, Judge};

fn job() -> CompressJob {
    CompressJob {
        name: "magika".into(),
        source: PathBuf::from("/models/magika.onnx"),
        calibration: PathBuf::new(),
        heldout: PathBuf::new(),
        engine: EngineOptions::new(EngineKind::Tract),
        goal: Goal {
            latency_p95_us: Some(20_000),
            memory_bytes: None,
            size_bytes: None,
            agreement_min: 0.9,
        },
        judging: Judging::default(),
        baseline: None,
        current_model: None,
        device_class: "raspberry-pi-4".into(),
        sequence: 2,
        version: "2".into(),
        out_dir: PathBuf::new(),
        work_dir: None,
        seed: 7,
    }
}

fn candidate(label: &str, p95: f64, judged: bool, verdict: Verdict) -> CandidateReport {
    let compared = Compared { output: "y".into(), by: Comparison::Class, axis: Some(1) };
    let mut judge = Judge::new(&[compared]);
    let answer = |data: [f32; 2]| [Answer { shape: vec![1, 2], data: data.to_vec() }];
    judge.push(&answer([0.1, 0.9]), &answer([0.2, 0.8]), None);
    CandidateReport {
        label: label.into(),
        plan: Plan {
            source_sha256: "sha256:00".into(),
            keep_ratio: 0.5,
            score: ScoreKind::Activation,
            seed: 7,
            groups: vec![GroupChoice {
                group: 0,
                label: "conv<1>".into(),
                width: 512,
                keep: (0..256).collect(),
                alignment: 16,
            }],
            repair: None,
            quantize: None,
        },
        rescales: vec![],
        refits: vec![RefitStep {
            node: "dense".into(),
            ridge: 0.1,
            residual_before: 0.5,
            residual_after: 0.2,
            rows: 512,
            note: Some("512 rows for 513 inputs".into()),
        }],
        params: 10,
        macs: Some(1_000_000),
        size_bytes: 1 << 20,
        host: HostLatency {
            p50_us: p95,
            p95_us: p95,
            ratio: 0.5,
            ratio_low: 0.4,
            ratio_high: 0.6,
            rounds: 9,
        },
        latency_p95_us: Estimate { value: p95, low: p95, high: p95, quality: Quality::Modelled },
        memory_bytes: Estimate { value: 1e7, low: 1e7, high: 1e7, quality: Quality::Modelled },
        quality: judged.then(|| judge.report(false)),
        verdict,
    }
}

fn html() -> String {
    let job = job();
    let candidates = [
        candidate("original", 40_000.0, false, Verdict::Refused("p95 is over".into())),
        candidate("half", 18_000.0, true, Verdict::Chosen),
    ];
    render(&Story {
        job: &job,
        engine: "tract 0.23".into(),
        original: &candidates[0],
        chosen: &candidates[1],
        candidates: &candidates,
        refused: &[
            Refusal::new("refit", "embedding <b>", "it is an input of the model"),
            lock().refusal(),
        ],
        calibration_samples: 512,
        source_digest: "sha256:00".into(),
        notes: &["a remark".into()],
        locks: &[lock()],
        curves: &[curve()],
        scores: &[score()],
    })
    .unwrap()
}

fn lock() -> Lock {
    Lock {
        dim: "probabilities[1] = 214".into(),
        value: "probabilities".into(),
        axis: 1,
        width: 214,
        by: "softmax<1>".into(),
        op: Some("Softmax".into()),
        why: "Softmax normalises over this axis".into(),
        holds: 109_782,
    }
}

fn curve() -> Curve {
    Curve { label: "conv<2>".into(), width: 64, points: vec![(64, 0.0), (32, 0.25)] }
}

fn score() -> ScoreTried {
    ScoreTried { kind: "Conv".into(), score: "activation".into(), loss: 0.125, taken: true }
}

#[test]
fn a_lock_is_shown_once_with_the_node_that_sets_it() {
    let html = html();
    for part in ["probabilities[1] = 214", "softmax&lt;1&gt;", "109782"] {
        assert!(html.contains(part), "{part}");
    }
    assert!(!html.contains("probabilities (axis 1"), "the refusals repeat the locks");
}

#[test]
fn curves_scores_and_the_front_are_drawn() {
    let html = html();
    assert!(html.contains("conv&lt;2&gt;") && html.contains("32 of 64 units: 0.2500"));
    assert!(html.contains("activation") && html.contains("0.125"));
    assert_eq!(html.matches("class=\"front\"").count(), 2, "the front and one curve");
    let front = html.matches("onfront\"").count();
    assert_eq!(front, 1, "the original answers no better than the other and is slower");
}

/// The report says how sure a verdict is, and that it was taken by what was seen.
#[test]
fn the_verdict_stands_in_the_report_with_the_samples_it_would_need() {
    let job = job();
    let mut candidates = [
        candidate("original", 40_000.0, false, Verdict::Refused("p95 is over".into())),
        candidate("half", 18_000.0, true, Verdict::Chosen),
    ];
    let shares: Vec<f64> = (0..100).map(|i| f64::from(u8::from(i >= 6))).collect();
    let plan = stats::Plan::default();
    let test =
        metric::compare_agreement(&shares, 0.1, plan, &stats::Resampling::default()).unwrap();
    candidates[1].quality.as_mut().unwrap().tests = vec![test];
    let html = render(&Story {
        job: &job,
        engine: "tract".into(),
        original: &candidates[0],
        chosen: &candidates[1],
        candidates: &candidates,
        refused: &[],
        calibration_samples: 512,
        source_digest: "sha256:00".into(),
        notes: &[],
        locks: &[],
        curves: &[],
        scores: &[],
    })
    .unwrap();
    for part in ["6.0 %", "undecided: about", "samples are needed", "Accepted by what was seen"] {
        assert!(html.contains(part), "{part}");
    }
    assert!(html.contains("Nothing is locked"));
}

#[test]
fn everything_refused_stands_in_the_report_with_its_reason() {
    let html = html();
    assert!(html.contains("it is an input of the model"));
    assert!(html.contains("p95 is over"));
    assert!(html.contains("512 rows for 513 inputs"));
}

#[test]
fn names_from_a_model_are_escaped() {
    let html = html();
    assert!(html.contains("embedding &lt;b&gt;"), "{html}");
    assert!(!html.contains("embedding <b>") && !html.contains("conv<1>"));
}

#[test]
fn before_and_after_widths_and_their_source_are_shown() {
    let html = html();
    for part in
        ["512 → 256", "width: 50", "40.00 ms", "18.00 ms", "-55 %", "modelled", "raspberry-pi-4"]
    {
        assert!(html.contains(part), "{part} is missing");
    }
}

#[test]
fn the_report_needs_no_other_file() {
    let html = html();
    for part in ["http://", "https://", "<script", "<link", "<img", "url("] {
        assert!(!html.contains(part), "{part} is in the report");
    }
    assert!(html.contains("name=\"viewport\""));
    let dots = html.matches("<circle").count();
    assert_eq!(dots, 4, "the original, the one that was judged, and two points of a curve");
}
