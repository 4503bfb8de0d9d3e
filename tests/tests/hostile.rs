//! Wrong, damaged, oversized and foreign input: each gets its clear error, the old model goes on serving,
//! and no request of anybody else fails.

#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use bundle::{Bundle, Draft, Source};
use e2e::files::{Damage, FileServer};
use e2e::offers::{deployed, end_of, falsify, last_phase, offer, variant};
use e2e::{agent_status, configure, quick_stack, unix_ms, until};
use edge_sim::client::LoadClient;
use edge_sim::live::{Stack, StackOptions};
use edge_sim::watcher::Message;
use wire::{InstallOutcome, ModelPhase, Offer};

const PATIENCE: Duration = Duration::from_secs(90);
const MAX_BUNDLE_BYTES: u64 = 16 << 20;

/// A device that serves a model, somebody who uses it, and a server of bundles that may be anything.
struct Scene {
    client: LoadClient,
    stack: Stack,
    server: FileServer,
    like: Bundle,
    store: PathBuf,
    _folder: tempfile::TempDir,
}

impl Scene {
    fn new(change: impl FnOnce(&mut StackOptions)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = folder.path().join("bundles");
        std::fs::create_dir_all(&store).unwrap();
        let mut options = quick_stack(&folder.path().join("run"));
        change(&mut options);
        let mut stack = Stack::start(options).unwrap();
        stack.deploy().unwrap();
        let first = stack.wait_committed(PATIENCE).unwrap().digest;
        let like = deployed(&stack, &first);
        let server = FileServer::start(&store);
        let client = stack.client("all").unwrap();
        Self { client, stack, server, like, store, _folder: folder }
    }

    fn variant(&self, sequence: u64, change: impl FnOnce(&mut Draft)) -> Bundle {
        variant(&self.like, &self.store, sequence, change)
    }

    /// Offers `bundle` after `change`, which must be refused after `phase` (`None`: at once) with all of
    /// `because` in the reason.
    fn refused(
        &mut self,
        bundle: &Bundle,
        change: impl FnOnce(&mut Offer),
        phase: Option<ModelPhase>,
        because: &[&str],
    ) {
        let digest = bundle.digest.to_string();
        offer(&self.stack, &self.server, bundle, change);
        let event = end_of(&mut self.stack, &digest, PATIENCE);
        assert_eq!(event.outcome, InstallOutcome::Rejected, "{event:?}");
        assert_eq!(last_phase(&self.stack, &digest), phase, "{event:?}");
        let reason = event.reason.unwrap_or_default();
        assert!(because.iter().all(|part| reason.contains(part)), "{because:?} not in: {reason}");
    }

    /// Offers `bundle`, which must be taken.
    fn committed(&mut self, bundle: &Bundle) {
        offer(&self.stack, &self.server, bundle, |_| {});
        let event = end_of(&mut self.stack, &bundle.digest.to_string(), PATIENCE);
        assert_eq!(event.outcome, InstallOutcome::Committed, "{event:?}");
    }

    /// Nobody who used the device noticed anything.
    fn nothing_was_lost(self) {
        let stats = self.client.stop();
        assert_eq!(stats.failed(), 0, "{:?}", stats.failures().collect::<Vec<_>>());
        assert!(stats.requests() > 20, "the client was there all the time");
    }
}

/// As the offer says.
fn honest(_: &mut Offer) {}

const DOWNLOADING: Option<ModelPhase> = Some(ModelPhase::Downloading);
const VERIFYING: Option<ModelPhase> = Some(ModelPhase::Verifying);
const LOADING: Option<ModelPhase> = Some(ModelPhase::Loading);
const SELF_TEST: Option<ModelPhase> = Some(ModelPhase::SelfTest);

#[test]
fn bad_bundles_are_refused_with_their_reason_and_nothing_is_lost() {
    let mut scene = Scene::new(|options| options.install.max_bundle_bytes = MAX_BUNDLE_BYTES);
    refuses_what_was_damaged(&mut scene);
    refuses_what_is_for_another_device(&mut scene);
    refuses_what_is_too_large(&mut scene);
    refuses_what_does_not_work(&mut scene);
    ignores_what_is_no_offer(&scene);
    // After all that the device takes a good one.
    let good = scene.variant(200, |_| {});
    scene.committed(&good);
    // And nothing older than it.
    let older = scene.variant(199, |_| {});
    let because = ["sequence 199 is not newer than the active 200"];
    scene.refused(&older, honest, None, &because);
    scene.nothing_was_lost();
}

fn refuses_what_was_damaged(scene: &mut Scene) {
    // One bit of the model is wrong on the way.
    let bundle = scene.variant(101, |_| {});
    scene.server.set_damage(Damage::FlippedBit);
    let because =
        ["/model.onnx: model.onnx has digest sha256:", "the manifest says", "changed or damaged"];
    scene.refused(&bundle, honest, DOWNLOADING, &because);
    scene.server.release();

    // The model is cut in half on the server: the file is shorter than the manifest says.
    let bundle = scene.variant(102, |_| {});
    let bytes = std::fs::read(bundle.model_path()).unwrap();
    std::fs::write(bundle.model_path(), &bytes[..bytes.len() / 2]).unwrap();
    let sizes = format!(
        "/model.onnx: the server's file has {} bytes, the manifest says {}",
        bytes.len() / 2,
        bytes.len()
    );
    scene.refused(&bundle, honest, DOWNLOADING, &[&sizes]);

    // The manifest is not the one that the offer names.
    let bundle = scene.variant(103, |_| {});
    std::fs::write(bundle.dir.join("manifest.json"), b"{}").unwrap();
    let offered = format!("is not the offered {}", bundle.digest);
    let because = ["/manifest.json: digest sha256:", &offered];
    scene.refused(&bundle, honest, DOWNLOADING, &because);
}

fn refuses_what_is_for_another_device(scene: &mut Scene) {
    // For another engine: by the offer, and by the manifest behind an offer that hides it.
    let bundle = scene.variant(104, |draft| draft.runtime = "ort".to_owned());
    let because = ["made for runtime ort, this device runs tract"];
    scene.refused(&bundle, |offer| offer.runtime = wire::Runtime::Ort, None, &because);
    let bundle = scene.variant(105, |draft| draft.runtime = "ort".to_owned());
    let because = ["the manifest says runtime ort, this device is tract"];
    scene.refused(&bundle, honest, VERIFYING, &because);

    // For another class of device: the same two ways.
    let toaster = |draft: &mut Draft| draft.device_class = "toaster".to_owned();
    let bundle = scene.variant(106, toaster);
    let because = ["made for device class toaster, this is a raspberry-pi-5"];
    scene.refused(&bundle, |offer| offer.device_class = "toaster".to_owned(), None, &because);
    let bundle = scene.variant(107, toaster);
    let because = ["the manifest says device class toaster, this device is raspberry-pi-5"];
    scene.refused(&bundle, honest, VERIFYING, &because);
}

fn refuses_what_is_too_large(scene: &mut Scene) {
    let large = |draft: &mut Draft| {
        draft.external = vec![("weights.bin".to_owned(), Source::Bytes(vec![7; 17 << 20]))];
    };
    // Honestly, and behind an offer that lies.
    let bundle = scene.variant(108, large);
    let limit = format!("over the limit install.max_bundle_bytes of {MAX_BUNDLE_BYTES}");
    let size = format!("{} bytes are ", bundle.size_bytes());
    scene.refused(&bundle, honest, None, &[&size, &limit]);
    let bundle = scene.variant(109, large);
    let because = ["the manifest's files of ", " bytes are ", &limit];
    scene.refused(&bundle, |offer| offer.size_bytes = 1000, DOWNLOADING, &because);
}

fn refuses_what_does_not_work(scene: &mut Scene) {
    // Its answers are not those that it promises.
    let bundle = scene.variant(110, |draft| falsify(&mut draft.selftest));
    let because = ["self-test: ", "output `", "is wanted (rtol "];
    scene.refused(&bundle, honest, SELF_TEST, &because);

    // The model file is half a model, honestly digested.
    let bytes = std::fs::read(scene.like.model_path()).unwrap();
    let half = bytes[..bytes.len() / 2].to_vec();
    let bundle = scene.variant(111, |draft| draft.model = Source::Bytes(half));
    scene.refused(&bundle, honest, LOADING, &["model `magika` cannot be loaded: "]);
}

/// What no offer can be read from is told in the log: there is nobody to answer.
fn ignores_what_is_no_offer(scene: &Scene) {
    let options = scene.stack.options();
    let topics = wire::Topics::new(&options.root, &options.device).unwrap();
    let topic = topics.offer("magika").unwrap();
    scene.stack.publish(&topic, true, b"{\"half\":".to_vec()).unwrap();
    until("the log to name what is ignored", PATIENCE, || {
        let log = std::fs::read_to_string(scene.stack.agent_log()).unwrap();
        let mut lines = log.lines().filter(|line| line.contains("a message is ignored"));
        lines.any(|line| line.contains(&topic) && line.contains("espalier.offer.v1")).then_some(())
    });
}

#[test]
fn a_download_that_breaks_off_goes_on_where_it_stopped_and_is_installed() {
    let mut scene = Scene::new(|_| {});
    let bundle = scene.variant(101, |_| {});
    let model = format!("{}/model.onnx", bundle.digest.hex());
    scene.server.set_damage(Damage::CutInHalf);
    offer(&scene.stack, &scene.server, &bundle, honest);
    scene.server.wait_asked(&model, 2, PATIENCE);
    scene.server.release();
    let event = end_of(&mut scene.stack, &bundle.digest.to_string(), PATIENCE);
    assert_eq!(event.outcome, InstallOutcome::Committed, "{event:?}");
    let half = std::fs::metadata(bundle.model_path()).unwrap().len() / 2;
    let asked = scene.server.asked_for(&model);
    let (first, resumed) = asked.split_first().unwrap();
    assert_eq!(*first, 0);
    assert!(resumed.iter().all(|from| *from == half), "{asked:?}, cut at {half}");
    scene.nothing_was_lost();
}

#[test]
fn a_file_that_is_not_there_is_asked_for_as_often_as_configured_and_may_come_later() {
    let attempts = 3;
    let mut scene = Scene::new(|options| {
        configure(options, &format!("[install]\nmax_attempts = {attempts}"));
    });
    let bundle = scene.variant(101, |_| {});
    let model = format!("{}/model.onnx", bundle.digest.hex());
    scene.server.set_damage(Damage::Missing);
    let limit = format!("(attempt {attempts}, the limit install.max_attempts)");
    let because = ["/model.onnx: the server answered 404", &limit];
    scene.refused(&bundle, honest, DOWNLOADING, &because);
    assert_eq!(scene.server.asked_for(&model), vec![0; attempts]);
    scene.server.release();
    // The same bundle again: a failed download blocks nothing.
    let mut mark = scene.stack.mark();
    let again = offer(&scene.stack, &scene.server, &bundle, honest);
    let committed = scene.stack.wait_from(&mut mark, "the second try", PATIENCE, |record| {
        match &record.message {
            Message::Install(event)
                if event.digest == again.digest && event.outcome != InstallOutcome::Progress =>
            {
                Some(event.outcome)
            }
            _ => None,
        }
    });
    assert_eq!(committed.unwrap(), InstallOutcome::Committed);
    scene.nothing_was_lost();
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
    for (body, parts) in [
        (
            request("octets", "INT32", &[1, 2048], 2048),
            ["there is no input", "octets", "the model takes", "bytes"],
        ),
        (
            request("bytes", "INT64", &[1, 2048], 2048),
            ["input", "bytes", "wants INT32", "got INT64"],
        ),
        (request("bytes", "INT32", &[1, 7], 7), ["input", "bytes", "2048]", "got [1, 7]"]),
        (
            request("bytes", "INT32", &[1, 2048], 9),
            ["input `bytes`", "shape [1, 2048]", "wants 2048 elements", "got 9"],
        ),
        (serde_json::json!({ "inputs": [] }), ["input", "bytes", "is missing", "INT32"]),
    ] {
        let (status, text) = ask(&stack, "magika", &body);
        assert_eq!(status, 400, "{text}");
        let answer: serde_json::Value = serde_json::from_str(&text).unwrap();
        let error = answer["error"].as_str().unwrap_or_default();
        assert!(parts.iter().all(|part| error.contains(part)), "{parts:?} not in {text}");
    }
    let (status, text) = ask(&stack, "magica", &request("bytes", "INT32", &[1, 2048], 2048));
    assert_eq!(status, 404, "{text}");
    assert!(text.contains("there is no model `magica`; `magika` is served"), "{text}");
}

#[test]
fn an_agent_without_a_broker_serves_what_it_has() {
    let folder = tempfile::tempdir().unwrap();
    let mut stack = Stack::start(quick_stack(folder.path())).unwrap();
    stack.deploy().unwrap();
    stack.wait_committed(PATIENCE).unwrap();
    stack.broker_stop().unwrap();
    stack.agent_stop();
    let offline_ms = unix_ms();
    stack.agent_start().unwrap();
    let client = stack.client("offline").unwrap();
    assert!(client.wait(Instant::now() + PATIENCE, |stats| stats.requests() - stats.failed() >= 5));
    drop(client);
    // The window that is open now holds the last of the requests; its end adds to the spool.
    let kept = || agent_status(&stack)?["spool"]["records"].as_u64();
    let before = until("the agent's status", PATIENCE, kept);
    until("the window's end", PATIENCE, || kept().filter(|records| *records > before));
    let back_ms = unix_ms();
    let mut mark = stack.mark();
    stack.broker_start().unwrap();
    // What was measured without a broker arrives once there is one.
    let found = stack.wait_from(&mut mark, "a window measured offline", PATIENCE, |record| {
        match &record.message {
            Message::Infer(window) if window.requests > 0 => Some(window.header.ts),
            _ => None,
        }
    });
    let ts = found.unwrap();
    assert!((offline_ms..=back_ms).contains(&ts), "{ts} in {offline_ms}..={back_ms}");
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
