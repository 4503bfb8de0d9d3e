//! Wrong, damaged, oversized and foreign input: each gets its clear error, the old model goes on serving,
//! and no request of anybody else fails.

use std::time::{Duration, Instant};

use e2e::files::{Damage, FileServer};
use e2e::offers::{deployed, falsify, offer, variant};
use e2e::quick_stack;
use edge_sim::live::Stack;
use edge_sim::watcher::Message;
use wire::{InstallEvent, InstallOutcome};

const PATIENCE: Duration = Duration::from_secs(90);

/// Waits for the end of the install of `digest`.
fn end_of(stack: &mut Stack, digest: &str) -> InstallEvent {
    let mut mark = 0;
    let what = format!("the end of {digest}");
    stack
        .wait_from(&mut mark, &what, PATIENCE, |record| match &record.message {
            Message::Install(event)
                if event.digest == digest && event.outcome != InstallOutcome::Progress =>
            {
                Some(event.clone())
            }
            _ => None,
        })
        .unwrap()
}

fn assert_refused(stack: &mut Stack, digest: &str, because: &[&str]) {
    let event = end_of(stack, digest);
    assert_eq!(event.outcome, InstallOutcome::Rejected, "{event:?}");
    let reason = event.reason.unwrap_or_default().to_lowercase();
    assert!(because.iter().any(|word| reason.contains(word)), "{because:?} not in: {reason}");
}

#[test]
fn bad_bundles_are_refused_with_their_reason_and_nothing_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("bundles");
    std::fs::create_dir_all(&store).unwrap();
    let mut options = quick_stack(&folder.path().join("run"));
    options.install.max_bundle_bytes = 16 << 20;
    let mut stack = Stack::start(options).unwrap();
    stack.deploy().unwrap();
    let first = stack.wait_committed(PATIENCE).unwrap().digest;
    let like = deployed(&stack, &first);
    let server = FileServer::start(&store);
    let client = stack.client("all").unwrap();

    // One bit of the model is wrong on the way.
    let bundle = variant(&like, &store, 101, |_| {});
    server.set_damage(Damage::FlippedBit);
    offer(&stack, &server, &bundle, |_| {});
    assert_refused(&mut stack, &bundle.digest.to_string(), &["sha256", "digest"]);

    // The model is cut in half on the server: the file is shorter than the manifest says.
    server.set_damage(Damage::None);
    let bundle = variant(&like, &store, 102, |_| {});
    let model = bundle.model_path();
    let bytes = std::fs::read(&model).unwrap();
    std::fs::write(&model, &bytes[..bytes.len() / 2]).unwrap();
    offer(&stack, &server, &bundle, |_| {});
    assert_refused(&mut stack, &bundle.digest.to_string(), &["bytes", "size", "short"]);

    // The manifest is not the one that the offer names.
    let bundle = variant(&like, &store, 103, |_| {});
    std::fs::write(bundle.dir.join("manifest.json"), b"{}").unwrap();
    offer(&stack, &server, &bundle, |_| {});
    assert_refused(&mut stack, &bundle.digest.to_string(), &["manifest"]);

    // The bundle is for another engine: by the offer, and by the manifest behind an offer that hides it.
    let bundle = variant(&like, &store, 104, |draft| draft.runtime = "ort".to_owned());
    offer(&stack, &server, &bundle, |offer| offer.runtime = wire::Runtime::Ort);
    assert_refused(&mut stack, &bundle.digest.to_string(), &["runtime", "ort"]);
    let bundle = variant(&like, &store, 105, |draft| draft.runtime = "ort".to_owned());
    offer(&stack, &server, &bundle, |_| {});
    assert_refused(&mut stack, &bundle.digest.to_string(), &["runtime", "ort"]);

    // It is for another class of device.
    let bundle = variant(&like, &store, 106, |draft| draft.device_class = "toaster".to_owned());
    offer(&stack, &server, &bundle, |offer| offer.device_class = "toaster".to_owned());
    assert_refused(&mut stack, &bundle.digest.to_string(), &["class", "toaster"]);

    // It is larger than the device takes: honestly, and behind an offer that lies.
    let large = |draft: &mut bundle::Draft| {
        draft.report_html = None;
        draft.external = vec![("weights.bin".to_owned(), bundle::Source::Bytes(vec![7; 17 << 20]))];
    };
    let bundle = variant(&like, &store, 107, large);
    offer(&stack, &server, &bundle, |_| {});
    assert_refused(&mut stack, &bundle.digest.to_string(), &["limit", "large", "max"]);
    let bundle = variant(&like, &store, 108, large);
    offer(&stack, &server, &bundle, |offer| offer.size_bytes = 1000);
    assert_refused(&mut stack, &bundle.digest.to_string(), &["limit", "large", "max", "bytes"]);

    // Its answers are not those that it promises.
    let bundle = variant(&like, &store, 109, |draft| falsify(&mut draft.selftest));
    offer(&stack, &server, &bundle, |_| {});
    assert_refused(&mut stack, &bundle.digest.to_string(), &["self-test", "self test", "selftest"]);

    // The model file is half a model, honestly digested.
    let half = bytes[..bytes.len() / 2].to_vec();
    let bundle = variant(&like, &store, 110, |draft| draft.model = bundle::Source::Bytes(half));
    offer(&stack, &server, &bundle, |_| {});
    assert_refused(&mut stack, &bundle.digest.to_string(), &["load", "model"]);

    // An older sequence than the one that serves.
    let bundle = variant(&like, &store, 0, |_| {});
    offer(&stack, &server, &bundle, |_| {});
    assert_refused(&mut stack, &bundle.digest.to_string(), &["sequence", "older"]);

    // Not an offer at all.
    let topics = wire::Topics::new(&stack.options().root, &stack.options().device).unwrap();
    stack.publish(&topics.offer("magika").unwrap(), true, b"{\"half\":".to_vec()).unwrap();

    // After all that the device takes a good one.
    let bundle = variant(&like, &store, 200, |_| {});
    offer(&stack, &server, &bundle, |_| {});
    let event = end_of(&mut stack, &bundle.digest.to_string());
    assert_eq!(event.outcome, InstallOutcome::Committed, "{event:?}");

    let stats = client.stop();
    assert_eq!(stats.failed(), 0, "{:?}", stats.failures().collect::<Vec<_>>());
    assert!(stats.requests() > 20, "the client was there all the time");
}

fn ask(stack: &Stack, model: &str, body: &serde_json::Value) -> (u16, String) {
    let url = format!("http://{}/v2/models/{model}/infer", stack.agent_http().unwrap());
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(Duration::from_secs(30)))
        .build()
        .into();
    let mut response =
        agent.post(&url).header("content-type", "application/json").send(body.to_string()).unwrap();
    (response.status().as_u16(), response.body_mut().read_to_string().unwrap())
}

#[test]
fn a_request_of_the_wrong_form_is_answered_with_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let mut stack = Stack::start(quick_stack(folder.path())).unwrap();
    stack.deploy().unwrap();
    stack.wait_committed(PATIENCE).unwrap();
    let request = |name: &str, datatype: &str, shape: &[usize], count: usize| {
        serde_json::json!({ "inputs": [
            { "name": name, "datatype": datatype, "shape": shape, "data": vec![1; count] }
        ] })
    };
    let (status, text) = ask(&stack, "magika", &request("bytes", "INT32", &[1, 2048], 2048));
    assert_eq!(status, 200, "{text}");
    for (body, words) in [
        (request("octets", "INT32", &[1, 2048], 2048), ["octets", "bytes"]),
        (request("bytes", "INT64", &[1, 2048], 2048), ["INT64", "INT32"]),
        (request("bytes", "INT32", &[1, 7], 7), ["7", "2048"]),
        (request("bytes", "INT32", &[1, 2048], 9), ["9", "2048"]),
        (serde_json::json!({ "inputs": [] }), ["bytes", "inputs"]),
    ] {
        let (status, text) = ask(&stack, "magika", &body);
        assert_eq!(status, 400, "{text}");
        assert!(words.iter().any(|word| text.contains(word)), "{words:?} not in {text}");
        assert!(text.contains("\"error\""), "{text}");
    }
    let (status, text) = ask(&stack, "magica", &request("bytes", "INT32", &[1, 2048], 2048));
    assert_eq!(status, 404, "{text}");
}

#[test]
fn an_agent_without_a_broker_serves_what_it_has() {
    let folder = tempfile::tempdir().unwrap();
    let mut stack = Stack::start(quick_stack(folder.path())).unwrap();
    stack.deploy().unwrap();
    stack.wait_committed(PATIENCE).unwrap();
    stack.broker_stop().unwrap();
    stack.agent_stop();
    stack.agent_start().unwrap();
    let client = stack.client("offline").unwrap();
    assert!(client.wait(Instant::now() + PATIENCE, |stats| stats.requests() - stats.failed() >= 5));
    stack.broker_start().unwrap();
    // What was measured without a broker arrives once there is one.
    let found =
        stack.wait_for("a window measured offline", PATIENCE, |record| match &record.message {
            Message::Infer(window) if window.requests > 0 => Some(()),
            _ => None,
        });
    found.unwrap();
}

#[test]
fn a_worker_that_is_killed_costs_one_restart_and_not_the_agent() {
    let folder = tempfile::tempdir().unwrap();
    let mut stack = Stack::start(quick_stack(folder.path())).unwrap();
    stack.deploy().unwrap();
    stack.wait_committed(PATIENCE).unwrap();
    let agent = stack.agent_pid().unwrap();
    let workers = children(agent);
    assert_eq!(workers.len(), 1, "one worker per model: {workers:?}");
    let client = stack.client("worker").unwrap();
    assert!(client.wait(Instant::now() + PATIENCE, |stats| stats.requests() > 3));
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(workers[0]).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    let before = client.stats().requests();
    assert!(client.wait(Instant::now() + PATIENCE, |stats| {
        stats.requests() - stats.failed() > before + 5
    }));
    assert_eq!(stack.agent_pid(), Some(agent));
    let after = children(agent);
    assert_eq!(after.len(), 1);
    assert_ne!(after, workers);
}

fn children(parent: u32) -> Vec<i32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let fields: Vec<_> =
            stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        if fields.get(1) == Some(&parent.to_string().as_str()) && fields.first() != Some(&"Z") {
            found.push(pid);
        }
    }
    found
}
