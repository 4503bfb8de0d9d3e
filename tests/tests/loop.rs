//! The whole loop with a real mosquitto: a budget breaks, a smaller model comes, the budget is met.

use std::sync::Arc;
use std::time::Duration;

use e2e::{asset, binary, provided};
use edge_sim::broker::BrokerKind;
use edge_sim::demo::{Act, DemoOptions, Fault, Point, Silent, Summary, run};
use edge_sim::live::{Binaries, StackOptions};

fn options(runtime: wire::Runtime, folder: &tempfile::TempDir) -> DemoOptions {
    let binaries = Binaries::in_dir(binary("espalier").parent().unwrap());
    let mut stack =
        StackOptions::new(binaries, asset("magika.onnx").parent().unwrap(), folder.path());
    stack.broker = BrokerKind::Mosquitto;
    stack.runtime = runtime;
    stack.assets.ort_library = (runtime == wire::Runtime::Ort).then(|| provided("ORT_DYLIB_PATH"));
    stack.board = edge_sim::profiles::find("raspberry-pi-5").unwrap();
    DemoOptions {
        stack,
        budget_p95_us: None,
        timeout: Duration::from_secs(240),
        faults: Vec::new(),
    }
}

fn close(options: DemoOptions) -> Summary {
    match run(options, &mut Silent, Arc::default()) {
        Ok(summary) => summary,
        Err(error) => panic!("{error}"),
    }
}

fn assert_closed(summary: &Summary) {
    assert!(summary.ok);
    assert_eq!(summary.cause, wire::Cause::Model);
    assert!(summary.after.p95_us < summary.before.p95_us);
    assert!(summary.after.p95_us.unwrap() <= summary.budget_p95_us, "the budget is met");
    assert!(summary.after.model_bytes < summary.before.model_bytes, "the model is smaller");
    assert_ne!(summary.after.digest, summary.before.digest);
    assert!(summary.agreement.unwrap() > 0.7, "{summary:?}");
}

#[test]
fn the_loop_closes_with_tract() {
    let folder = tempfile::tempdir().unwrap();
    let summary = close(options(wire::Runtime::Tract, &folder));
    assert_closed(&summary);
    assert_eq!(summary.requests_failed, 0);
}

#[test]
fn the_loop_closes_with_onnx_runtime() {
    let folder = tempfile::tempdir().unwrap();
    let summary = close(options(wire::Runtime::Ort, &folder));
    assert_closed(&summary);
    assert_eq!(summary.requests_failed, 0);
}

#[test]
fn the_loop_closes_although_broker_and_service_go_away_in_the_middle() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(wire::Runtime::Tract, &folder);
    options.faults = vec![
        Fault { at: Point::Breach, act: Act::BrokerRestart, down_ms: Some(1500) },
        Fault { at: Point::Request, act: Act::ServiceKill9, down_ms: Some(500) },
        Fault { at: Point::Shadow, act: Act::BrokerRestart, down_ms: Some(1500) },
    ];
    let summary = close(options);
    assert_closed(&summary);
    assert_eq!(summary.requests_failed, 0, "neither is on the path of a request");
}
