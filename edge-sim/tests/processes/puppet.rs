//! Plays the agent and the service over real MQTT and HTTP, from a script: the demonstration's judge
//! is tested against devices that behave, and devices that do not.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use edge_sim::watcher::{Message, Watcher};
use serde_json::json;
use wire::{
    BudgetBreach, BudgetKind, Budgets, Cause, CommandResult, Comparison, DeviceState, EventKind,
    Header, Histogram, InferWindow, InstallEvent, InstallOutcome, ModelPhase, Offer, Payload,
    RecompressRequest, Runtime, StateReport, Stream, Topics,
};

use crate::support::Rig;

const PATIENCE: Duration = Duration::from_secs(30);
const MODEL: &str = "magika";
const BEFORE_US: u64 = 200_000;

/// How the device and the service behave.
#[derive(Clone)]
pub(crate) struct Play {
    /// The new model's latency.
    pub(crate) after_us: u64,
    /// The new model is rejected, and why.
    pub(crate) reject: Option<&'static str>,
    /// The compression fails, and why.
    pub(crate) job_fails: Option<&'static str>,
    /// The first request after the switch is answered with 503.
    pub(crate) drops_a_request: bool,
}

impl Default for Play {
    fn default() -> Self {
        Self { after_us: 120_000, reject: None, job_fails: None, drops_a_request: false }
    }
}

/// Says that it is ready and leaves its arguments.
pub(crate) const SERVICE: &str = "echo \"$@\" > \"$(dirname \"$0\")/service.args\"; \
     echo '{\"ready\":true,\"http\":\"-\"}'; exec sleep 1000";
/// Leaves a file once the stack has written its configuration and forgotten old endpoints.
pub(crate) const AGENT: &str = "touch \"$(dirname \"$0\")/agent.started\"; exec sleep 1000";

/// Plays until it is dropped.
pub(crate) struct Puppet {
    stage: Arc<Stage>,
    thread: Option<JoinHandle<()>>,
}

struct Stage {
    dir: PathBuf,
    play: Play,
    deployed: AtomicBool,
    drop_next: AtomicBool,
    over: AtomicBool,
}

impl Puppet {
    /// Waits for the stack in `rig` to come up and plays its agent and service.
    pub(crate) fn start(rig: &Rig, play: Play) -> Self {
        let stage = Arc::new(Stage {
            dir: rig.path("."),
            play,
            deployed: AtomicBool::new(false),
            drop_next: AtomicBool::new(false),
            over: AtomicBool::new(false),
        });
        let thread = {
            let stage = stage.clone();
            std::thread::spawn(move || stage.run())
        };
        Self { stage, thread: Some(thread) }
    }
}

impl Drop for Puppet {
    fn drop(&mut self) {
        self.stage.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Stage {
    fn run(self: Arc<Self>) {
        let agent = TcpListener::bind("127.0.0.1:0").unwrap();
        let service = TcpListener::bind(self.service_address()).unwrap();
        self.until(|stage| stage.dir.join("agent.started").is_file().then_some(()));
        let run = self.dir.join("run/state/run");
        fs::create_dir_all(&run).unwrap();
        let endpoints = json!({ "http": agent.local_addr().unwrap().to_string() });
        fs::write(run.join("endpoints.json"), endpoints.to_string()).unwrap();
        let (for_agent, for_service) = (self.clone(), self.clone());
        std::thread::spawn(move || for_agent.answer_all(&agent, Stage::agent_route));
        std::thread::spawn(move || for_service.answer_all(&service, Stage::service_route));
        let device = Device::connect(&self.dir.join("run/agent.toml"));
        self.perform(&device);
        // What was handed over leaves while the device lives.
        while !self.over.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The whole loop, from the device's and the service's side.
    fn perform(&self, device: &Device) {
        device.state(DeviceState::Online);
        self.until(|stage| stage.deployed.load(Ordering::Relaxed).then_some(()));
        device.install(A, ModelPhase::Probation, InstallOutcome::Progress, None);
        (0..4).for_each(|_| device.window(A, BEFORE_US));
        device.install(A, ModelPhase::Committed, InstallOutcome::Committed, None);
        // A run that ended before it set a budget has nothing more to see.
        let Some((id, args)) = self.command(device) else { return };
        device.result(&id);
        device.breach_and_request(args["latency_p95_us"].as_u64().unwrap());
        if self.play.job_fails.is_some() {
            return;
        }
        device.offer();
        device.install(B, ModelPhase::Shadow, InstallOutcome::Progress, None);
        if let Some(reason) = self.play.reject {
            device.install(B, ModelPhase::Rejected, InstallOutcome::Rejected, Some(reason));
            return;
        }
        self.drop_next.store(self.play.drops_a_request, Ordering::Relaxed);
        device.install(B, ModelPhase::Probation, InstallOutcome::Progress, None);
        device.install(B, ModelPhase::Committed, InstallOutcome::Committed, None);
        while !self.over.load(Ordering::Relaxed) {
            device.window(B, self.play.after_us);
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The first command, unless the run is over before.
    fn command(&self, device: &Device) -> Option<(String, serde_json::Value)> {
        let mut mark = 0;
        while !self.over.load(Ordering::Relaxed) {
            let soon = Instant::now() + Duration::from_millis(50);
            let found = device.watcher.wait(&mut mark, soon, |record| match &record.message {
                Message::Command(command) => Some((command.id.clone(), command.args.clone())),
                _ => None,
            });
            if found.is_some() {
                return found;
            }
        }
        None
    }

    fn service_address(&self) -> String {
        self.until(|stage| {
            let args = fs::read_to_string(stage.dir.join("service.args")).ok()?;
            let mut words = args.split_ascii_whitespace();
            words.find(|word| *word == "--listen")?;
            words.next().map(str::to_owned)
        })
    }

    /// Looks until something is there.
    fn until<T>(&self, look: impl Fn(&Self) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = look(self) {
                return found;
            }
            assert!(Instant::now() < deadline && !self.over.load(Ordering::Relaxed), "no stack");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn answer_all(&self, listener: &TcpListener, route: fn(&Self, &str) -> Reply) {
        for stream in listener.incoming().flatten() {
            let Some(path) = read_request(&stream) else { continue };
            route(self, &path).send(stream);
        }
    }

    fn agent_route(&self, path: &str) -> Reply {
        if !path.ends_with("/infer") {
            return Reply::json(200, &json!({ "live": true }));
        }
        if self.drop_next.swap(false, Ordering::Relaxed) {
            return Reply::json(503, &json!({ "error": "the worker is gone" }));
        }
        let outputs = json!([{ "name": "y", "datatype": "FP32", "data": [0.1, 0.9] }]);
        Reply::json(200, &json!({ "outputs": outputs }))
    }

    fn service_route(&self, path: &str) -> Reply {
        if path == "/deploy" {
            self.deployed.store(true, Ordering::Relaxed);
            return Reply::json(200, &json!({ "digest": A }));
        }
        let state = if self.play.job_fails.is_some() { "failed" } else { "running" };
        let job = json!({ "id": 1, "state": state, "reason": self.play.job_fails });
        Reply::json(200, &json!({ "jobs": [job], "requests": [], "stage": "pruning" }))
    }
}

struct Reply(u16, Vec<u8>);

impl Reply {
    fn json(status: u16, value: &serde_json::Value) -> Self {
        Self(status, value.to_string().into_bytes())
    }

    fn send(self, mut stream: TcpStream) {
        let Self(status, body) = self;
        let length = body.len();
        let head =
            format!("HTTP/1.1 {status} x\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
        let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
    }
}

/// The path of a request, read to its end.
fn read_request(stream: &TcpStream) -> Option<String> {
    let mut reader = BufReader::new(stream);
    let mut first = String::new();
    reader.read_line(&mut first).ok()?;
    let mut length = 0;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? <= 2 {
            break;
        }
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
    }
    reader.read_exact(&mut vec![0; length]).ok()?;
    first.split(' ').nth(1).map(str::to_owned)
}

const A: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const B: &str = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

/// A device's and a service's voice.
struct Device {
    watcher: Watcher,
    topics: Topics,
    seq: AtomicU64,
}

impl Device {
    fn connect(config: &Path) -> Self {
        let config: toml::Table = toml::from_str(&fs::read_to_string(config).unwrap()).unwrap();
        let text = |section: &str, key: &str| config[section][key].as_str().unwrap().to_owned();
        let port = u16::try_from(config["mqtt"]["port"].as_integer().unwrap()).unwrap();
        let (host, root) = (text("mqtt", "host"), text("mqtt", "root"));
        let watcher = Watcher::start((&host, port), &root, PATIENCE).unwrap();
        let topics = Topics::new(&root, &text("device", "id")).unwrap();
        Self { watcher, topics, seq: AtomicU64::new(0) }
    }

    fn header<P: Payload>(&self) -> Header {
        let seq = self.seq.fetch_add(1, Ordering::Relaxed);
        let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_millis();
        Header::of::<P>(u64::try_from(now).unwrap(), seq, "puppet")
    }

    fn publish<P: Payload>(&self, topic: &str, payload: &P) {
        let bytes = wire::try_encode(payload).unwrap();
        self.watcher.publish(topic, P::RETAINED, bytes, PATIENCE).unwrap();
    }

    fn state(&self, state: DeviceState) {
        let report = StateReport {
            header: self.header::<StateReport>(),
            state,
            reason: None,
            log_level: None,
        };
        self.publish(&self.topics.state(), &report);
    }

    fn window(&self, digest: &str, us: u64) {
        let mut compute = Histogram::default();
        (0..10).for_each(|_| compute.record(us));
        let window = InferWindow {
            header: self.header::<InferWindow>(),
            model: MODEL.to_owned(),
            digest: digest.to_owned(),
            window_ms: 2500,
            windows: 1,
            requests: 10,
            errors: 0,
            rejected: 0,
            p50_us: compute.quantile(0.5),
            p90_us: None,
            p95_us: compute.quantile(0.95),
            p99_us: None,
            max_us: None,
            mean_us: None,
            queue_p95_us: None,
            wait_us: None,
            major_faults: None,
            pss_bytes: None,
            group_memory_bytes: None,
            group_memory_peak_bytes: None,
            group_memory_high_events: None,
            group_memory_max_events: None,
            group_oom_kills: None,
            compute,
            queue: Histogram::default(),
            drift: None,
        };
        let topic = self.topics.metrics(&Stream::Infer(MODEL.to_owned())).unwrap();
        self.publish(&topic, &window);
    }

    fn install(
        &self,
        digest: &str,
        phase: ModelPhase,
        outcome: InstallOutcome,
        reason: Option<&str>,
    ) {
        let event = InstallEvent {
            header: self.header::<InstallEvent>(),
            model: MODEL.to_owned(),
            digest: digest.to_owned(),
            phase,
            outcome,
            reason: reason.map(str::to_owned),
            from_digest: (digest == B).then(|| A.to_owned()),
            elapsed_ms: 1234,
            blocked: false,
            trial: None,
            comparison: Some(Comparison {
                shadow_requests: 20,
                agreement: 0.95,
                before_p95_us: Some(BEFORE_US),
                after_p95_us: None,
            }),
        };
        self.publish(&self.topics.event(EventKind::Install), &event);
    }

    fn result(&self, id: &str) {
        let result = CommandResult {
            header: self.header::<CommandResult>(),
            id: id.to_owned(),
            ok: true,
            error: None,
            data: json!({}),
        };
        self.publish(&self.topics.result(id).unwrap(), &result);
    }

    #[allow(clippy::cast_precision_loss)]
    fn breach_and_request(&self, limit: u64) {
        let breach = BudgetBreach {
            header: self.header::<BudgetBreach>(),
            model: MODEL.to_owned(),
            digest: A.to_owned(),
            budget: BudgetKind::LatencyP95,
            cause: Cause::Model,
            limit: limit as f64,
            observed: BEFORE_US as f64,
            windows_over: 3,
            windows_seen: 3,
            recompress: true,
            drift: None,
        };
        let budgets = Budgets { latency_p95_us: Some(limit), ..Budgets::default() };
        let request = RecompressRequest {
            header: self.header::<RecompressRequest>(),
            request_id: "r1".to_owned(),
            device: self.topics.device().to_owned(),
            model: MODEL.to_owned(),
            digest: A.to_owned(),
            sequence: 1,
            device_class: "raspberry-pi-4".to_owned(),
            runtime: Runtime::Tract,
            arch: "x86_64".to_owned(),
            threads: 1,
            budgets,
            budget: BudgetKind::LatencyP95,
            cause: Cause::Model,
            p50_us: BEFORE_US,
            p95_us: BEFORE_US,
            windows_over: 3,
            windows_seen: 3,
            workers_pss_bytes: None,
            emulated: true,
            drift: None,
        };
        // The request may overtake the breach: the demonstration must not care.
        self.publish(&self.topics.recompress(), &request);
        self.publish(&self.topics.event(EventKind::BudgetBreach), &breach);
    }

    fn offer(&self) {
        let offer = Offer {
            header: self.header::<Offer>(),
            model: MODEL.to_owned(),
            version: "2".to_owned(),
            sequence: 2,
            digest: B.to_owned(),
            url: "http://127.0.0.1:9/bundles/bb".to_owned(),
            size_bytes: 1000,
            runtime: Runtime::Tract,
            device_class: "raspberry-pi-4".to_owned(),
            request_id: Some("r1".to_owned()),
        };
        self.publish(&self.topics.offer(MODEL).unwrap(), &offer);
    }
}
