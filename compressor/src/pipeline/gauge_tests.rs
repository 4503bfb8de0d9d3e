use super::*;
use crate::pipeline::Silent;
use crate::pipeline::judge;
use crate::pipeline::testing::{job, mlp};
use crate::quality::{Comparison as By, Judge};

/// What `lost` of `samples` say at a margin of a tenth.
fn tested(samples: usize, lost: usize) -> QualityReport {
    let shares: Vec<f64> = (0..samples).map(|i| f64::from(u8::from(i >= lost))).collect();
    let test = compare_agreement(&shares, 0.1, Plan::default(), &Resampling::default()).unwrap();
    QualityReport { tests: vec![test], ..Judge::new(&[]).report(false) }
}

fn judging(confidence: Option<f64>) -> Judging {
    Judging { confidence, ..Judging::default() }
}

#[test]
fn what_was_seen_decides_unless_confidence_is_asked_for() {
    // Six of a hundred: within the margin, and not shown to be.
    let near = tested(100, 6).tests;
    assert!(misses(&judging(None), &near, 1).is_empty());
    let strict = misses(&judging(Some(0.95)), &near, 3);
    assert!(strict[0].contains("undecided: about") && strict[0].contains("among 3"), "{strict:?}");
    let good = tested(500, 10).tests;
    assert!(misses(&judging(Some(0.95)), &good, 1).is_empty());
    let bad = tested(100, 11).tests;
    assert!(misses(&judging(None), &bad, 1)[0].contains("over its margin"), "{bad:?}");
    // A loss of exactly the margin is not over it.
    assert!(misses(&judging(None), &tested(100, 10).tests, 1).is_empty());
}

/// One candidate alone is shown to be good enough; as the first of three that may be judged it is not yet.
#[test]
fn a_candidate_is_held_to_the_standard_of_all_that_may_be_judged() {
    let mut alone = tested(50, 1);
    let p = alone.tests[0].evidence.p_noninferior;
    assert!((0.05 / 3.0..0.05).contains(&p), "{p}");
    settle(&mut [&mut alone], 1, Plan::default());
    assert_eq!(alone.tests[0].verdict, Verdict::NonInferior);
    settle(&mut [&mut alone], 3, Plan::default());
    assert!(matches!(alone.tests[0].verdict, Verdict::Undecided { .. }), "{alone:?}");
    let (mut first, mut second, mut third) = (tested(50, 1), tested(500, 5), tested(500, 5));
    settle(&mut [&mut first, &mut second, &mut third], 3, Plan::default());
    let all = [first, second, third].map(|quality| quality.tests[0].verdict);
    assert_eq!(all, [Verdict::NonInferior; 3], "the others leave the last one all of alpha");
}

#[test]
fn samples_that_could_show_nothing_are_refused_before_the_work() {
    let folder = tempfile::tempdir().unwrap();
    let mut job = job(folder.path(), &mlp(&[8, 16, 4]), 8, 80);
    job.goal.agreement_min = 0.9;
    let told = |job: &crate::pipeline::CompressJob, finals: usize| {
        let shop = Shop::open(job, &Silent).unwrap();
        enough(&shop, finals).map_err(|error| error.to_string())
    };
    assert_eq!(told(&job, 3), Ok(()), "no confidence is asked for");
    job.judging.confidence = Some(0.95);
    // √(n m / (1 − m)) must reach the normal quantile: 25 samples at 0.95, 41 at a third of the error.
    let text = told(&job, 1).unwrap_err();
    assert!(text.contains("20 held-out samples are too few") && text.contains(" 25 are"), "{text}");
    let text = told(&job, 3).unwrap_err();
    assert!(text.contains(" 41 are") && text.contains("best of 3"), "{text}");
    job.goal.agreement_min = 0.5;
    assert_eq!(told(&job, 1), Ok(()));
}

#[test]
fn what_makes_no_sense_is_refused_by_name() {
    let wrong = |judging: Judging, floor: f64| judging.check(floor).unwrap_err().to_string();
    assert!(wrong(judging(Some(95.0)), 0.9).contains("confidence is 95"));
    assert!(wrong(judging(Some(0.95)), 1.0).contains("no number of samples"));
    let measure = Measure::Metric { metric: Metric::Cosine, output: None, margin: 0.0 };
    assert!(wrong(Judging { confidence: None, measure }, 0.9).contains("may drop by 0"));
}

/// A metric of the answers is measured in the same pass, beside the agreement.
#[test]
fn a_metric_is_tested_beside_agreement_and_its_output_must_exist() {
    let folder = tempfile::tempdir().unwrap();
    let mut job = job(folder.path(), &mlp(&[8, 16, 4]), 8, 80);
    job.goal.agreement_min = 0.2;
    let measure = |metric: Metric, output: Option<&str>| Measure::Metric {
        metric,
        output: output.map(str::to_owned),
        margin: 0.5,
    };
    job.judging.measure = measure(Metric::Cosine, None);
    let other = folder.path().join("other.onnx");
    mlp(&[8, 12, 4]).save(&other).unwrap();
    let shop = Shop::open(&job, &Silent).unwrap();
    let (outputs, _) = judge::outputs(&shop).unwrap();
    let compared = [Compared { output: outputs[0].clone(), by: By::Class, axis: Some(1) }];
    let mut answers = Answers::new(&shop.heldout, &outputs);
    references(&shop).unwrap();
    let gauge = Gauge::open(&shop, &compared).unwrap();
    let quality = gauge.judge(&shop, &other, &mut answers, &compared).unwrap();
    let names: Vec<&str> = quality.tests.iter().map(|test| test.metric.as_str()).collect();
    assert_eq!(names, ["agreement", "cosine"]);
    let cosine = &quality.tests[1];
    assert!((cosine.candidate - quality.cosine_mean).abs() < 1e-9, "{cosine:?}");
    assert_eq!((cosine.original, cosine.samples), (1.0, 20));
    job.judging.measure = measure(Metric::Cosine, Some("nothing"));
    let shop = Shop::open(&job, &Silent).unwrap();
    let error = Gauge::open(&shop, &compared).err().unwrap().to_string();
    assert!(error.contains("no f32 output \"nothing\"; there are"), "{error}");
    job.judging.measure = measure(Metric::TopK(1), None);
    let shop = Shop::open(&job, &Silent).unwrap();
    let error = references(&shop).unwrap_err().to_string();
    assert!(error.contains("accuracy needs labels"), "{error}");
}

/// The file that an evaluator is given must hold nothing that was fitted.
#[test]
fn an_evaluator_needs_held_out_samples_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let mut job = job(folder.path(), &mlp(&[8, 16, 4]), 8, 80);
    let command =
        External { command: vec!["false".into()], timeout: std::time::Duration::from_secs(60) };
    job.judging.measure = Measure::External { command, margin: 0.1 };
    let shop = Shop::open(&job, &Silent).unwrap();
    let error = Gauge::open(&shop, &[]).err().unwrap().to_string();
    assert!(error.contains("exit code 1"), "{error}");
    job.heldout.clone_from(&job.calibration);
    let shop = Shop::open(&job, &Silent).unwrap();
    let error = Gauge::open(&shop, &[]).err().unwrap().to_string();
    assert!(error.contains("a held-out file of its own"), "{error}");
}
