//! The whole loop with a real mosquitto: a budget breaks, a smaller model comes and is installed. Whether the emulated
//! board is then fast enough is for the demonstration to say: a busy host shows in its percentiles.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use e2e::{agent_status, asset, binary, configure, provided, quick_stack, unix_ms, until};
use edge_sim::broker::BrokerKind;
use edge_sim::demo::{Act, DemoOptions, Fault, Point, Silent, Summary, run};
use edge_sim::live::{Binaries, Stack, StackOptions};
use edge_sim::watcher::Message;

const PATIENCE: Duration = Duration::from_secs(90);

fn options(runtime: wire::Runtime, folder: &tempfile::TempDir) -> DemoOptions {
    let binaries = Binaries::in_dir(binary("espalier").parent().unwrap());
    let mut stack =
        StackOptions::new(binaries, asset("magika.onnx").parent().unwrap(), folder.path());
    stack.broker = BrokerKind::Mosquitto;
    stack.runtime = runtime;
    stack.assets.ort_library = (runtime == wire::Runtime::Ort).then(|| provided("ORT_DYLIB_PATH"));
    // Slow enough that what else the host does is lost in the board's own time.
    stack.board = edge_sim::profiles::find("raspberry-pi-4").unwrap();
    DemoOptions {
        stack,
        budget_p95_us: None,
        timeout: Duration::from_secs(240),
        faults: Vec::new(),
        judge_speed: false,
    }
}

fn close(options: DemoOptions) -> Summary {
    match run(options, &mut Silent, Arc::default()) {
        Ok(summary) => summary,
        Err(error) => panic!("{error}"),
    }
}

fn assert_closed(summary: &Summary) {
    assert_eq!(summary.cause, wire::Cause::Model);
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

#[test]
fn a_request_made_without_a_broker_is_kept_and_reaches_the_compressor_once_there_is_one() {
    let folder = tempfile::tempdir().unwrap();
    let mut stack = Stack::start(quick_stack(folder.path())).unwrap();
    stack.deploy().unwrap();
    stack.wait_committed(PATIENCE).unwrap();
    let client = stack.client("offline").unwrap();
    let mut mark = stack.mark();
    stack.broker_stop().unwrap();
    // A budget that nothing meets, given on the device itself: nobody could send one.
    let model = stack.options().model.clone();
    let budget = format!("[budgets.{model}]\nlatency_p95_us = 1");
    configure(stack.options_mut(), &budget);
    let offline_ms = unix_ms();
    stack.agent_reload().unwrap();
    let id = until("the device to ask without a broker", PATIENCE, || {
        let status = agent_status(&stack)?;
        Some(status["core"]["models"][0]["requests"][0].as_str()?.to_owned())
    });
    drop(client);
    let back_ms = unix_ms();
    stack.broker_start().unwrap();
    let (mut breach, mut request) = (None, None);
    let what = "the breach and the request of the time without a broker";
    let (breach, request) = stack
        .wait_from(&mut mark, what, PATIENCE, |record| {
            match &record.message {
                Message::Breach(event) if event.recompress => {
                    breach = breach.take().or(Some(event.clone()));
                }
                Message::Request(wanted) => request = request.take().or(Some(wanted.clone())),
                _ => {}
            }
            Some((breach.clone()?, request.clone()?))
        })
        .unwrap();
    assert_eq!(breach.cause, wire::Cause::Model);
    assert_eq!((request.request_id.as_str(), request.budgets.latency_p95_us), (&*id, Some(1)));
    for (what, ts) in [("breach", breach.header.ts), ("request", request.header.ts)] {
        assert!((offline_ms..=back_ms).contains(&ts), "{what}: {ts} in {offline_ms}..={back_ms}");
    }
    until("the compressor to have the request", PATIENCE, || {
        let jobs = stack.jobs().ok()?;
        jobs["requests"].as_array()?.iter().any(|row| row["request_id"] == *id).then_some(())
    });
}
