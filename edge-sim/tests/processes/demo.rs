//! The demonstration's judgement, against a device and a service that follow a script.

use std::fs;
use std::time::Duration;

use edge_sim::demo::{self, Act, DemoError, DemoOptions, Fault, Point, Silent, Step, Summary};

use crate::puppet::{AGENT, Play, Puppet, SERVICE};
use crate::support::Rig;

fn demonstrate(play: Play, budget_p95_us: Option<u64>) -> Result<Summary, DemoError> {
    demonstrate_with(play, budget_p95_us, Vec::new())
}

fn demonstrate_with(
    play: Play,
    budget_p95_us: Option<u64>,
    faults: Vec<Fault>,
) -> Result<Summary, DemoError> {
    let rig = Rig::new(SERVICE, AGENT);
    fs::write(rig.path("magika.onnx"), "a model").unwrap();
    fs::copy(rig.path("heldout.npz"), rig.path("calib.npz")).unwrap();
    let _puppet = Puppet::start(&rig, play);
    let options = DemoOptions {
        stack: rig.options(),
        budget_p95_us,
        timeout: Duration::from_secs(60),
        faults,
        judge_speed: true,
    };
    demo::run(options, &mut Silent, std::sync::Arc::default())
}

fn failure(play: Play, budget_p95_us: Option<u64>) -> (Step, String) {
    let error = demonstrate(play, budget_p95_us).expect_err("the demonstration must fail");
    (error.step, error.to_string())
}

#[test]
fn a_loop_that_closes_within_the_budget_is_summed_up() {
    let summary = demonstrate(Play::default(), None).unwrap();
    let near = |is: Option<u64>, wanted: u64| is.unwrap().abs_diff(wanted) < wanted / 20;
    assert!(near(summary.before.p95_us, 200_000), "{:?}", summary.before);
    assert!(near(summary.after.p95_us, 120_000), "{:?}", summary.after);
    assert!(near(Some(summary.budget_p95_us), 160_000), "{}", summary.budget_p95_us);
    assert_eq!((summary.requests_failed, summary.windows_over_after), (0, 0));
    assert_eq!(summary.agreement, Some(1.0));
    assert_eq!(summary.shadow_agreement, Some(0.95));
    assert_eq!(summary.install_ms, 1234);
    assert!(summary.requests > 0);
}

#[test]
fn a_new_model_over_the_budget_fails_the_last_step_with_both_numbers() {
    let (step, text) = failure(Play { after_us: 180_000, ..Play::default() }, Some(150_000));
    assert_eq!(step, Step::Judge);
    assert!(text.contains("over the budget of 150.0 ms"), "{text}");
}

#[test]
fn a_rejected_model_fails_the_install_with_the_device_s_reason() {
    let play = Play { reject: Some("self-test: output 0 differs"), ..Play::default() };
    let (step, text) = failure(play, None);
    assert_eq!(step, Step::Install);
    assert!(text.contains("self-test: output 0 differs"), "{text}");
}

#[test]
fn a_failed_compression_fails_the_answer_with_the_service_s_reason() {
    let play = Play { job_fails: Some("no candidate reaches 0.85"), ..Play::default() };
    let (step, text) = failure(play, None);
    assert_eq!(step, Step::Answer);
    assert!(text.contains("no candidate reaches 0.85"), "{text}");
}

#[test]
fn one_request_that_fails_during_the_switch_fails_the_demonstration() {
    let (step, text) = failure(Play { drops_a_request: true, ..Play::default() }, None);
    assert_eq!(step, Step::Judge);
    assert!(text.contains("1 requests failed") && text.contains("the worker is gone"), "{text}");
}

#[test]
fn a_loop_that_closes_without_the_faults_it_was_to_survive_fails_and_names_them() {
    let fault = |at| Fault { at, act: Act::ServiceKill9, down_ms: Some(0) };
    // The puppet's device shadows and never says that it loads.
    let faults = vec![fault(Point::Shadow), fault(Point::Loading)];
    let error = demonstrate_with(Play::default(), None, faults).expect_err("a fault is left");
    let text = error.to_string();
    assert_eq!(error.step, Step::Judge);
    assert!(text.contains("the loop closed without: service_kill9 at loading\n"), "{text}");
}

#[test]
fn a_budget_that_is_met_already_is_nothing_to_show() {
    let (step, text) = failure(Play::default(), Some(500_000));
    assert_eq!(step, Step::Notice);
    assert!(text.contains("already meets the budget of 500.0 ms"), "{text}");
}
