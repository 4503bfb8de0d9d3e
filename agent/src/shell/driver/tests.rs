//! The whole agent in one process: real journal, store, downloads, plane and worker processes; the
//! engine and the broker are stand-ins.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bundle::{Bundle, Case, Draft, NamedTensor, SelfTest, Source, TensorSpec};
use tokio::task::JoinHandle;
use wire::{Command, Header, InstallEvent, InstallOutcome, Offer, Topics};

use super::super::download::tests::{Answer, honest, serve};
use super::super::journal;
use super::super::mqtt::{Busy, Publisher};
use super::*;
use crate::core::InstallState;

mod crashes;
pub(in crate::shell) mod disk;
mod faults;
mod measure;
pub(in crate::shell) mod trace;
mod trust;

/// A topic and what was said there.
type Said = (String, Vec<u8>);

/// A broker that takes and acknowledges everything, and remembers it.
#[derive(Debug, Clone)]
struct Broker {
    said: Arc<Mutex<Vec<Said>>>,
    retained: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
    link: mpsc::Sender<LinkEvent>,
    log: Option<Log>,
}

/// Where commits are written down as they are told.
type Log = Arc<Mutex<std::fs::File>>;

impl Broker {
    fn new(link: mpsc::Sender<LinkEvent>, log: Option<Log>) -> Self {
        Self { said: Arc::default(), retained: Arc::default(), link, log }
    }
}

impl Publisher for Broker {
    fn publish(&self, topic: &str, _: bool, payload: &[u8]) -> Result<(), Busy> {
        let mut said = self.said.lock().unwrap();
        said.push((topic.to_owned(), payload.to_vec()));
        if let (Some(log), true) = (&self.log, topic.ends_with("up/e/install")) {
            let event = wire::decode::<InstallEvent>(payload).unwrap();
            if event.outcome == InstallOutcome::Committed {
                let line = format!("committed {}\n", event.digest);
                log.lock().unwrap().write_all(line.as_bytes()).unwrap();
            }
        }
        let packet = u16::try_from(said.len() % 60_000).unwrap();
        let _ = self.link.try_send(LinkEvent::Sent(packet));
        let _ = self.link.try_send(LinkEvent::Acknowledged { packet, refused: None });
        Ok(())
    }

    fn subscribe(&self, _: &str) -> Result<(), Busy> {
        for (topic, payload) in self.retained.lock().unwrap().clone() {
            let _ = self.link.try_send(LinkEvent::Message { topic, payload });
        }
        Ok(())
    }

    fn disconnect(&self) {}
}

struct Device {
    dir: tempfile::TempDir,
    config: Config,
    broker: Option<Broker>,
    running: Option<JoinHandle<()>>,
    events: Option<mpsc::Sender<Event>>,
    log: Option<Log>,
}

const CONFIG: &str = r#"
[device]
id = "d"
class = "c"
[serve]
http = "127.0.0.1:0"
[mqtt]
host = "unused"
[telemetry]
window_ms = 200
[breach]
min_requests = 1
[install]
shadow_requests = 5
probation_windows = 2
regress_ratio = 50.0
[worker]
args = ["--exact", "plane::fake::child", "--ignored", "--nocapture", "as-a-worker"]
"#;

impl Device {
    fn new() -> Self {
        Self::within(&std::env::temp_dir())
    }

    /// In a new folder in `parent`.
    fn within(parent: &Path) -> Self {
        let dir = tempfile::tempdir_in(parent).unwrap();
        let file = dir.path().join("agent.toml");
        let state = dir.path().join("state");
        let text = format!("{CONFIG}\n[state]\ndir = \"{}\"\n", state.display());
        std::fs::write(&file, text).unwrap();
        let sources = Sources { file: Some(file), ..Sources::default() };
        let mut config = Config::load(&sources).unwrap();
        config.worker.program = Some(std::env::current_exe().unwrap());
        Self { dir, config, broker: None, running: None, events: None, log: None }
    }

    async fn start(&mut self) {
        self.start_with(|_| ()).await;
    }

    async fn start_with(&mut self, change: impl FnOnce(&mut Driver)) {
        let (link_in, link) = mpsc::channel(4096);
        let broker = match self.broker.take() {
            Some(broker) => Broker { link: link_in, ..broker },
            None => Broker::new(link_in, self.log.clone()),
        };
        let connect = |config: &Config, state: &StateDir, boot_id: &str| {
            let topics = Topics::new("espalier/v1", "d").unwrap();
            let spool = Spool::open(&state.spool(), config.spool.clone())?;
            Ok((Some(Outbox::new(topics, Stamp::new(boot_id), spool, 16)), Some(link)))
        };
        let mut driver =
            Driver::start(self.config.clone(), Sources::default(), connect).await.unwrap();
        change(&mut driver);
        self.events = Some(driver.installer.sender());
        self.running = Some(tokio::spawn(async move {
            driver.go_round().await;
            driver.end().await;
        }));
        let connected = LinkEvent::Connected(Box::new(broker.clone()));
        broker.link.send(connected).await.unwrap();
        self.broker = Some(broker);
    }

    /// Ends the driver between two awaits, with nothing said or written any more.
    async fn crash(&mut self) {
        let running = self.running.take().unwrap();
        running.abort();
        let _ = running.await;
    }

    async fn stop(&mut self) {
        self.events.take().unwrap().send(Event::Shutdown).await.unwrap();
        self.running.take().unwrap().await.unwrap();
    }

    /// Writes a line to the log of what is told.
    fn note(&self, line: &str) {
        let log = self.log.as_ref().unwrap();
        log.lock().unwrap().write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    async fn offer(&self, bundle: &Bundle, url: &str) {
        let manifest = &bundle.manifest;
        let offer = Offer {
            header: Header::of::<Offer>(1, 1, "host"),
            model: manifest.name.clone(),
            version: manifest.version.clone(),
            sequence: manifest.sequence,
            digest: bundle.digest.to_string(),
            url: url.to_owned(),
            size_bytes: bundle.size_bytes(),
            runtime: wire::Runtime::Tract,
            device_class: "any".into(),
            request_id: None,
        };
        let topic = "espalier/v1/d/d/dn/offer/double".to_owned();
        let payload = wire::encode(&offer);
        let broker = self.broker.as_ref().unwrap();
        broker.retained.lock().unwrap().insert(topic.clone(), payload.clone());
        broker.link.send(LinkEvent::Message { topic, payload }).await.unwrap();
    }

    /// Deletes the retained offer.
    async fn withdraw(&self) {
        let broker = self.broker.as_ref().unwrap();
        let (topic, _) = broker.retained.lock().unwrap().pop_first().unwrap();
        broker.link.send(LinkEvent::Message { topic, payload: Vec::new() }).await.unwrap();
    }

    /// Says the retained offers again, as on a new subscription.
    fn repeat_offer(&self) {
        self.broker.as_ref().unwrap().subscribe("").unwrap();
    }

    async fn ping(&self, id: &str) {
        let command = Command {
            header: Header::of::<Command>(1, 1, "host"),
            id: id.to_owned(),
            kind: wire::CommandKind::Ping,
            expires_ms: 0,
            args: Value::Null,
        };
        let topic = format!("espalier/v1/d/d/dn/cmd/ping/{id}");
        let message = LinkEvent::Message { topic, payload: wire::encode(&command) };
        self.broker.as_ref().unwrap().link.send(message).await.unwrap();
    }

    fn said_on(&self, end: &str) -> bool {
        let said = self.broker.as_ref().unwrap().said.lock().unwrap();
        said.iter().any(|(topic, _)| topic.ends_with(end))
    }

    fn state_dir(&self) -> std::path::PathBuf {
        self.dir.path().join("state")
    }

    fn journal(&self) -> Vec<Record> {
        journal::peek(&self.state_dir().join("journal")).unwrap_or_default()
    }

    fn reached(&self, sequence: u64, wanted: InstallState) -> bool {
        let records = self.journal();
        let of = |record: &Record| match record {
            Record::Offered { install, offer, .. } if offer.sequence == sequence => Some(*install),
            _ => None,
        };
        let Some(own) = records.iter().rev().find_map(of) else { return false };
        records.iter().any(|record| {
            matches!(record, Record::Install { install, state, .. }
                if *install == own && *state == wanted)
        })
    }

    fn ends(&self) -> Vec<InstallEvent> {
        let broker = self.broker.as_ref().unwrap();
        let said = broker.said.lock().unwrap();
        let installs = said.iter().filter(|(topic, _)| topic.ends_with("up/e/install"));
        let decoded = installs.map(|(_, payload)| wire::decode::<InstallEvent>(payload).unwrap());
        decoded.filter(|event| event.outcome != InstallOutcome::Progress).collect()
    }

    fn states(&self) -> Vec<String> {
        let broker = self.broker.as_ref().unwrap();
        let said = broker.said.lock().unwrap();
        let states = said.iter().filter(|(topic, _)| topic.ends_with("up/state"));
        states.map(|(_, payload)| String::from_utf8(payload.clone()).unwrap()).collect()
    }

    /// Whether the last state of the model names this bundle.
    fn names_serving(&self, digest: &str) -> bool {
        let said = self.broker.as_ref().unwrap().said.lock().unwrap();
        let last = said.iter().rev().find(|(topic, _)| topic.ends_with("up/model/double"));
        last.is_some_and(|(_, payload)| {
            let state: wire::ModelState = wire::decode(payload).unwrap();
            state.digest.as_deref() == Some(digest)
        })
    }

    fn served(&self) -> String {
        let text = std::fs::read(self.state_dir().join("active.json")).unwrap();
        let active: Vec<ActiveEntry> = serde_json::from_slice(&text).unwrap();
        active[0].installed.version.clone()
    }

    fn address(&self) -> String {
        address_in(&self.state_dir())
    }

    async fn status(&self) -> Value {
        let socket = super::super::state_dir::status_socket(&self.state_dir());
        tokio::task::spawn_blocking(move || status::ask(&socket)).await.unwrap().unwrap()
    }
}

/// Where an agent with this state serves.
fn address_in(state: &Path) -> String {
    let text = std::fs::read(state.join("run/endpoints.json")).unwrap();
    let endpoints: Value = serde_json::from_slice(&text).unwrap();
    endpoints["http"].as_str().unwrap().to_owned()
}

/// Waits for a condition; the deadline is for the machine, not for the test.
async fn until(what: &str, mut met: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !met() {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn tensor(name: &str, values: [f32; 2]) -> NamedTensor {
    NamedTensor {
        name: name.into(),
        dtype: "FP32".into(),
        dims: vec![1, 2],
        data: values.iter().flat_map(|v| v.to_le_bytes()).collect(),
    }
}

/// A model that doubles, as version and sequence `n`; `factor` is what it really does.
fn bundle(dir: &Path, n: u64, factor: &str) -> Bundle {
    let spec =
        |name: &str| TensorSpec { name: name.into(), dtype: "FP32".into(), dims: vec![-1, 2] };
    let mut draft = Draft::new("double", &format!("1.0.{n}"), Source::Bytes(factor.into()));
    draft.sequence = n;
    draft.inputs = vec![spec("x")];
    draft.outputs = vec![spec("y")];
    let case =
        Case { inputs: vec![tensor("x", [3.0, 4.0])], outputs: vec![tensor("y", [6.0, 8.0])] };
    draft.selftest = SelfTest { cases: vec![case], rtol: 1e-3, atol: 1e-6 };
    draft.write(&dir.join(format!("published-{n}"))).unwrap()
}

/// Sends requests until it is dropped, and counts those that fail.
struct Traffic {
    stop: Arc<AtomicBool>,
    failed: Arc<AtomicU64>,
    answered: Arc<AtomicU64>,
}

/// Whether a request is answered.
fn infer(address: &str, first: f32) -> bool {
    let url = format!("http://{address}/v2/models/double/infer");
    let input = json!({ "name": "x", "shape": [1, 2], "datatype": "FP32", "data": [first, 4.0] });
    let body = json!({ "inputs": [input] }).to_string();
    ureq::post(&url).content_type("application/json").send(body).is_ok()
}

fn traffic(address: &str) -> Traffic {
    let (stop, failed, answered) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
        Arc::new(AtomicU64::new(0)),
    );
    let url = format!("http://{address}/v2/models/double/infer");
    let body = r#"{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[3,4]}]}"#;
    let told = (stop.clone(), failed.clone(), answered.clone());
    std::thread::spawn(move || {
        while !told.0.load(Ordering::Relaxed) {
            let counter = match ureq::post(&url).content_type("application/json").send(body) {
                Ok(_) => &told.2,
                Err(_) => &told.1,
            };
            counter.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    Traffic { stop, failed, answered }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

async fn installed(n: u64) -> Device {
    let mut device = Device::new();
    device.start().await;
    let first = bundle(device.dir.path(), n, "2");
    let server = serve(&first.dir, Box::new(honest));
    device.offer(&first, &server.url).await;
    until("the first commit", || !device.ends().is_empty()).await;
    assert_eq!(device.ends()[0].outcome, InstallOutcome::Committed, "{:?}", device.ends());
    device
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_model_is_installed_under_traffic_and_no_request_fails() {
    let mut device = installed(1).await;
    let traffic = traffic(&device.address());
    let second = bundle(device.dir.path(), 2, "2.0");
    let server = serve(&second.dir, Box::new(honest));
    device.offer(&second, &server.url).await;
    until("the second commit", || device.ends().len() > 1).await;
    let end = device.ends().pop().unwrap();
    assert_eq!(end.outcome, InstallOutcome::Committed, "{end:?}");
    let comparison = end.comparison.unwrap();
    assert!(comparison.shadow_requests >= 5 && comparison.agreement > 0.99, "{comparison:?}");
    assert_eq!(traffic.failed.load(Ordering::Relaxed), 0);
    assert!(traffic.answered.load(Ordering::Relaxed) > 5);
    drop(traffic);
    assert_eq!(device.served(), "1.0.2");
    device.stop().await;
    let broker = device.broker.as_ref().unwrap();
    let said = broker.said.lock().unwrap();
    let last = said.iter().rev().find(|(topic, _)| topic.ends_with("up/state")).unwrap();
    assert!(String::from_utf8_lossy(&last.1).contains("offline"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unfit_bundles_are_rejected_with_their_reason_and_the_old_model_serves_on() {
    let mut device = installed(1).await;
    let traffic = traffic(&device.address());
    let damaged: Box<Answer> = Box::new(|name, content, from| {
        let content = if name == "model.onnx" { b"9" } else { content };
        honest(name, content, from)
    });
    let wrong = bundle(device.dir.path(), 2, "3");
    let broken = bundle(device.dir.path(), 3, "nonsense");
    let corrupt = bundle(device.dir.path(), 4, "2");
    let cases: [(&Bundle, Box<Answer>, &str); 3] = [
        (&wrong, Box::new(honest), "self-test"),
        (&broken, Box::new(honest), "`nonsense` is no model"),
        (&corrupt, damaged, "model.onnx"),
    ];
    for (i, (bundle, answer, reason)) in cases.into_iter().enumerate() {
        let server = serve(&bundle.dir, answer);
        device.offer(bundle, &server.url).await;
        until(reason, || device.ends().len() > i + 1).await;
        let end = device.ends().pop().unwrap();
        assert_eq!(end.outcome, InstallOutcome::Rejected);
        assert!(end.reason.as_ref().unwrap().contains(reason), "{end:?}");
    }
    assert_eq!(device.served(), "1.0.1");
    assert_eq!(traffic.failed.load(Ordering::Relaxed), 0);
    drop(traffic);
    device.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_committed_worker_that_cannot_come_back_gives_way_to_the_bundle_before() {
    let mut device = installed(1).await;
    let second = bundle(device.dir.path(), 2, "2.0");
    let server = serve(&second.dir, Box::new(honest));
    let busy = traffic(&device.address());
    device.offer(&second, &server.url).await;
    until("the second commit", || device.ends().len() > 1).await;
    drop(busy);
    let stored = device.state_dir().join("store").join(second.digest.hex());
    std::fs::remove_file(stored.join("model.onnx")).unwrap();
    let address = device.address();
    let killed = tokio::task::spawn_blocking(move || infer(&address, crate::plane::ABORT));
    assert!(!killed.await.unwrap(), "the worker answered");
    until("the fall back", || device.served() == "1.0.1").await;
    let address = device.address();
    until("the first model serves", || infer(&address, 3.0)).await;
    until("the device tells of both", || {
        let states = device.states();
        let degraded = states.iter().any(|state| state.contains("degraded"));
        degraded && states.last().unwrap().contains("online")
    })
    .await;
    device.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_costs_neither_an_offer_nor_a_command_nor_the_install_at_hand() {
    // The first record is the offer's; after four of them the candidate has just been loaded.
    for room in [0, 4] {
        let mut device = Device::new();
        device.start_with(|driver| driver.journal.room = Some(room)).await;
        let first = bundle(device.dir.path(), 1, "2");
        let server = serve(&first.dir, Box::new(honest));
        device.offer(&first, &server.url).await;
        if room == 0 {
            device.ping("early").await;
            until("the answer", || device.said_on("up/rs/early")).await;
        }
        until("the end", || !device.ends().is_empty()).await;
        assert_eq!(device.ends()[0].outcome, InstallOutcome::Committed, "{:?}", device.ends());
        assert_eq!(device.served(), "1.0.1", "after {room} records");
        device.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopped_dead_in_any_state_the_agent_comes_back_serving_and_finishes() {
    for state in [
        InstallState::Downloading,
        InstallState::Verifying,
        InstallState::Loading,
        InstallState::SelfTest,
        InstallState::Shadow,
        InstallState::Switching,
        InstallState::Probation,
    ] {
        let mut device = installed(1).await;
        let second = bundle(device.dir.path(), 2, "2.0");
        let server = serve(&second.dir, Box::new(honest));
        let early = traffic(&device.address());
        device.offer(&second, &server.url).await;
        until("the state", || device.reached(2, state)).await;
        device.crash().await;
        drop(early);
        device.start().await;
        let late = traffic(&device.address());
        until("the commit", || device.reached(2, InstallState::Committed)).await;
        assert_eq!(device.served(), "1.0.2", "stopped in {state:?}");
        assert!(late.answered.load(Ordering::Relaxed) > 0);
        drop(late);
        device.stop().await;
    }
}

#[tokio::test]
async fn a_configuration_read_again_is_taken_over_whole_or_not_at_all() {
    let mut device = Device::new();
    let file = device.dir.path().join("agent.toml");
    let good = std::fs::read_to_string(&file).unwrap();
    device
        .start_with(|driver| {
            driver.sources = Sources { file: Some(file.clone()), ..Sources::default() };
            let budget = |driver: &Driver| {
                driver.settings.budgets.get("double").and_then(|budgets| budgets.latency_p95_us)
            };
            let reload = |driver: &mut Driver, text: &str| {
                std::fs::write(&file, text).unwrap();
                driver.on_reload();
            };
            reload(driver, &format!("{good}[budgets.double]\nlatency_p95_us = 700\n"));
            assert_eq!(budget(driver), Some(700));
            let before = format!("{:?}", driver.config);
            let broken = "[budgets.double]\nlatency_p95_us = 9\n[budgets.other]\npower_mw = 0\n";
            for bad in [format!("{good}{broken}"), "half a [".to_owned(), String::new()] {
                reload(driver, &bad);
                assert_eq!(budget(driver), Some(700), "{bad}");
                assert_eq!(format!("{:?}", driver.config), before, "{bad}");
            }
        })
        .await;
    device.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_whose_task_has_ended_is_told_and_the_model_serves_on() {
    let mut device = installed(1).await;
    assert_eq!(device.status().await["agent"]["ended"], json!([]));
    let Broker { link, .. } = device.broker.take().unwrap();
    // The outbox holds the other end.
    link.send(LinkEvent::Disconnected("gone".into())).await.unwrap();
    drop(link);
    let mut ended = Value::Null;
    let deadline = Instant::now() + Duration::from_secs(60);
    while ended != json!(["the connection to the broker"]) {
        assert!(Instant::now() < deadline, "{ended}");
        ended = device.status().await["agent"]["ended"].take();
    }
    assert!(infer(&device.address(), 3.0));
    device.crash().await;
}
