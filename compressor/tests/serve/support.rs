//! A broker, a device, a host and a stand-in for the pipeline.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use bundle::{Bundle, Case, Draft, Limits, NamedTensor, Source};
use espalier::CompressError;
use espalier::pipeline::{CompressJob, OriginalJob, Progress};
use espalier::serve::{Compressor, ModelFiles, ServeConfig, ServeError, Service};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::Packet;
use rumqttc::v5::{AsyncClient, Event, MqttOptions};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{Notify, mpsc};
use wire::{
    BudgetKind, Budgets, Cause, EventKind, Header, InstallEvent, InstallOutcome, ModelPhase, Offer,
    RecompressRequest, Runtime,
};

const PATIENCE: Duration = Duration::from_secs(30);

/// mosquitto on a port of its own; started again it has forgotten everything.
pub(crate) struct Broker {
    child: Option<Child>,
    port: u16,
    config: TempDir,
}

impl Broker {
    pub(crate) fn stopped() -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = tempfile::tempdir().unwrap();
        let text = format!("listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\n");
        fs::write(config.path().join("mosquitto.conf"), text).unwrap();
        Self { child: None, port, config }
    }

    pub(crate) fn start() -> Self {
        let mut broker = Self::stopped();
        broker.run();
        broker
    }

    /// One that lets everybody do everything but publish on this topic.
    pub(crate) fn denying(topic: &str) -> Self {
        use std::io::Write as _;

        let mut broker = Self::stopped();
        let rules = broker.config.path().join("acl");
        fs::write(&rules, format!("topic readwrite #\ntopic deny {topic}\n")).unwrap();
        let config = broker.config.path().join("mosquitto.conf");
        let mut config = fs::OpenOptions::new().append(true).open(config).unwrap();
        writeln!(config, "acl_file {}", rules.display()).unwrap();
        broker.run();
        broker
    }

    pub(crate) fn run(&mut self) {
        let program = std::env::var_os("ESPALIER_MOSQUITTO")
            .expect("ESPALIER_MOSQUITTO is not set: run through `cargo xtask test`");
        let child = Command::new(program)
            .arg("-c")
            .arg(self.config.path().join("mosquitto.conf"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        self.child = Some(child.unwrap());
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(Instant::now() < deadline, "mosquitto does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A device's end of the broker: hears its offers and sends requests.
pub(crate) struct Listener {
    client: AsyncClient,
    offers: mpsc::Receiver<Offer>,
    topics: wire::Topics,
}

impl Listener {
    pub(crate) async fn start(broker: &Broker, device: &str) -> Self {
        let topics = wire::Topics::new(wire::DEFAULT_ROOT, device).unwrap();
        let id = format!("{device}-{:?}", Instant::now());
        let mut options = MqttOptions::new(id, "127.0.0.1", broker.port);
        options.set_max_packet_size(Some(4 << 20));
        let (client, mut eventloop) = AsyncClient::new(options, 64);
        let (sender, offers) = mpsc::channel(64);
        let ready = Arc::new(Notify::new());
        let heard = Arc::clone(&ready);
        tokio::spawn(async move {
            loop {
                match eventloop.poll().await {
                    Ok(Event::Incoming(Packet::SubAck(_))) => heard.notify_one(),
                    Ok(Event::Incoming(Packet::Publish(publish))) => {
                        let offer = wire::decode(&publish.payload).unwrap();
                        if sender.send(offer).await.is_err() {
                            return;
                        }
                    }
                    Ok(_) => {}
                    Err(_) => return,
                }
            }
        });
        client.subscribe(topics.down_filter(), QoS::AtLeastOnce).await.unwrap();
        tokio::time::timeout(PATIENCE, ready.notified())
            .await
            .expect("no answer to the subscription");
        Self { client, offers, topics }
    }

    pub(crate) async fn offer(&mut self) -> Offer {
        let offer = tokio::time::timeout(PATIENCE, self.offers.recv()).await;
        offer.expect("no offer came").expect("the device lost its broker")
    }

    /// The next offer newer than this one: what the broker had not acknowledged before a restart is
    /// sent again.
    pub(crate) async fn newer(&mut self, than: &Offer) -> Offer {
        loop {
            let offer = self.offer().await;
            if offer.sequence > than.sequence {
                return offer;
            }
            assert_eq!(
                offer.digest, than.digest,
                "an older offer came, and it is not the one before"
            );
        }
    }

    pub(crate) async fn ask(&self, request: &RecompressRequest) {
        self.publish(wire::encode(request)).await;
    }

    /// Tells how an install of the offered bundle ended.
    pub(crate) async fn tell(&self, offer: &Offer, outcome: InstallOutcome) {
        let event = InstallEvent {
            header: Header::of::<InstallEvent>(1, 1, "boot"),
            model: offer.model.clone(),
            digest: offer.digest.clone(),
            phase: ModelPhase::RolledBack,
            outcome,
            reason: Some("it is slow here".into()),
            from_digest: None,
            elapsed_ms: 1,
            comparison: None,
            blocked: outcome != InstallOutcome::Committed,
            trial: None,
        };
        self.client
            .publish(
                self.topics.event(EventKind::Install),
                QoS::AtLeastOnce,
                false,
                wire::encode(&event),
            )
            .await
            .unwrap();
    }

    pub(crate) async fn publish(&self, payload: Vec<u8>) {
        self.client
            .publish(self.topics.recompress(), QoS::AtLeastOnce, false, payload)
            .await
            .unwrap();
    }
}

/// A request of a device that runs what it was offered.
pub(crate) fn request(device: &str, id: &str, current: &Offer) -> RecompressRequest {
    RecompressRequest {
        header: Header::of::<RecompressRequest>(1, 1, "boot"),
        request_id: id.into(),
        device: device.into(),
        model: "m".into(),
        digest: current.digest.clone(),
        sequence: current.sequence,
        device_class: "raspberry-pi-4".into(),
        runtime: Runtime::Tract,
        arch: "aarch64".into(),
        threads: 1,
        budgets: Budgets {
            latency_p95_us: Some(20_000),
            agreement_min: Some(0.9),
            ..Budgets::default()
        },
        budget: BudgetKind::LatencyP95,
        cause: Cause::Model,
        p50_us: 28_000,
        p95_us: 31_000,
        windows_over: 4,
        windows_seen: 5,
        workers_pss_bytes: None,
        emulated: true,
        drift: None,
    }
}

/// What the stand-in does with its next job.
#[derive(Clone, Copy)]
pub(crate) enum Act {
    Make,
    Fail,
    Panic,
    /// Waits for [`Fake::go_on`], or to be cancelled.
    Wait,
    /// Writes a bundle whose model is cut in half.
    Damage,
    /// Writes a bundle with the model of the one with this sequence number.
    Repeat(u64),
}

/// A stand-in for the pipeline: acts as scripted, then always makes.
#[derive(Default)]
pub(crate) struct Fake {
    script: Mutex<VecDeque<Act>>,
    jobs: Mutex<Vec<CompressJob>>,
    started: Notify,
    released: Mutex<bool>,
    changed: Condvar,
}

impl Fake {
    pub(crate) fn with(script: impl IntoIterator<Item = Act>) -> Self {
        Self { script: Mutex::new(script.into_iter().collect()), ..Self::default() }
    }

    /// The jobs it was given.
    pub(crate) fn jobs(&self) -> Vec<CompressJob> {
        self.jobs.lock().unwrap().clone()
    }

    /// Waits for a job to start.
    pub(crate) async fn started(&self) {
        tokio::time::timeout(PATIENCE, self.started.notified()).await.expect("no job started");
    }

    pub(crate) fn go_on(&self) {
        *self.released.lock().unwrap() = true;
        self.changed.notify_all();
    }

    /// The model file of the bundle with this sequence number.
    pub(crate) fn model(sequence: u64) -> Vec<u8> {
        (0..100_000u64).map(|n| (n * sequence).to_le_bytes()[usize::from(n % 3 == 0)]).collect()
    }

    pub(crate) fn write(out: &Path, name: &str, sequence: u64) -> Result<PathBuf, CompressError> {
        Self::write_model(out, name, sequence, Self::model(sequence))
    }

    fn write_model(
        out: &Path,
        name: &str,
        sequence: u64,
        model: Vec<u8>,
    ) -> Result<PathBuf, CompressError> {
        let mut draft = Draft::new(name, "v", Source::Bytes(model));
        draft.sequence = sequence;
        let output = NamedTensor {
            name: "y".to_owned(),
            dtype: "UINT8".to_owned(),
            dims: vec![1],
            data: vec![1],
        };
        draft.selftest.cases = vec![Case { inputs: Vec::new(), outputs: vec![output] }];
        if sequence > 1 {
            draft.report_html = Some(format!("<h1>{sequence}</h1>"));
        }
        let written = draft.write(out).map_err(|error| CompressError::Goal(error.to_string()))?;
        Ok(written.dir)
    }

    fn wait(&self, progress: &dyn Progress) -> Result<(), CompressError> {
        let mut released = self.released.lock().unwrap();
        while !*released {
            if progress.cancelled() {
                return Err(CompressError::Cancelled("the wait".into()));
            }
            released = self.changed.wait_timeout(released, Duration::from_millis(20)).unwrap().0;
        }
        Ok(())
    }
}

impl Compressor for Fake {
    fn compress(
        &self,
        job: &CompressJob,
        progress: &dyn Progress,
    ) -> Result<PathBuf, CompressError> {
        self.jobs.lock().unwrap().push(job.clone());
        self.started.notify_one();
        let act = self.script.lock().unwrap().pop_front().unwrap_or(Act::Make);
        match act {
            Act::Make => {}
            Act::Fail => return Err(CompressError::Goal("out of luck".into())),
            Act::Panic => panic!("out of nerve"),
            Act::Wait => self.wait(progress)?,
            Act::Repeat(of) => {
                return Self::write_model(&job.out_dir, &job.name, job.sequence, Self::model(of));
            }
            Act::Damage => {
                let dir = Self::write(&job.out_dir, &job.name, job.sequence)?;
                fs::write(dir.join(bundle::MODEL_FILE), &Self::model(job.sequence)[..50_000])
                    .unwrap();
                return Ok(dir);
            }
        }
        Self::write(&job.out_dir, &job.name, job.sequence)
    }

    fn bundle_original(
        &self,
        job: &OriginalJob,
        _: &dyn Progress,
    ) -> Result<PathBuf, CompressError> {
        Self::write(&job.out_dir, &job.name, job.sequence)
    }
}

/// A folder with a model, data and a store; no service runs.
pub(crate) struct Prepared {
    dir: TempDir,
    pub(crate) trust: Option<PathBuf>,
}

impl Prepared {
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn config(&self, broker: &Broker) -> ServeConfig {
        let dir = self.dir.path();
        let files = ModelFiles {
            source: dir.join("model.onnx"),
            calibration: dir.join("calib.npz"),
            heldout: dir.join("heldout.npz"),
        };
        ServeConfig {
            trust: self.trust.clone(),
            root: wire::DEFAULT_ROOT.into(),
            broker: ("127.0.0.1".into(), broker.port),
            tls: None,
            client_id: None,
            listen: "127.0.0.1:0".parse().unwrap(),
            http_url: None,
            store: dir.join("store"),
            models: BTreeMap::from([("m".to_owned(), files)]),
            runtime: runtime::EngineKind::Tract,
            ort_library: None,
            agreement_min: 0.85,
            confidence: None,
            seed: 0,
        }
    }

    pub(crate) async fn start(self, broker: &Broker, fake: Fake) -> Host {
        let fake = Arc::new(fake);
        let compressor: Arc<dyn Compressor> = fake.clone();
        let service = Service::start(self.config(broker), compressor).await.unwrap();
        let host = Host { prepared: self, service, fake };
        if broker.child.is_some() {
            host.until_health("broker_connected", true).await;
        }
        host
    }
}

/// A running service.
pub(crate) struct Host {
    prepared: Prepared,
    service: Service,
    pub(crate) fake: Arc<Fake>,
}

impl Host {
    pub(crate) fn prepare() -> Prepared {
        let dir = tempfile::tempdir().unwrap();
        for name in ["model.onnx", "calib.npz", "heldout.npz"] {
            fs::write(dir.path().join(name), name).unwrap();
        }
        Prepared { dir, trust: None }
    }

    pub(crate) async fn start(broker: &Broker, fake: Fake) -> Self {
        Self::prepare().start(broker, fake).await
    }

    /// Another service on the same store.
    pub(crate) async fn start_another(&self, broker: &Broker) -> Result<Service, ServeError> {
        Service::start(self.prepared.config(broker), Arc::new(Fake::default())).await
    }

    pub(crate) async fn stop(self) -> Prepared {
        self.service.stop().await;
        self.prepared
    }

    /// Drops the service in the middle of whatever it does and starts one on the same store.
    pub(crate) async fn restart(self, broker: &Broker, fake: Fake) -> Self {
        let Self { prepared, service, .. } = self;
        tokio::task::spawn_blocking(move || drop(service)).await.unwrap();
        prepared.start(broker, fake).await
    }

    pub(crate) fn url(&self) -> &str {
        self.service.http_url()
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.prepared.dir().join("store")
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Http {
        let json = [("Content-Type", "application/json")];
        Http::send("POST", &format!("{}{path}", self.url()), &json, body.to_string().as_bytes())
            .await
    }

    pub(crate) async fn deploy(&self, device: &str) -> Value {
        let answer = self.post("/deploy", &json!({ "device": device, "model": "m" })).await;
        assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
        serde_json::from_slice(&answer.body).unwrap()
    }

    /// Downloads a bundle as a device does, the model in two parts, and verifies it.
    pub(crate) async fn download(&self, offer: &Offer) -> Bundle {
        let dir = self.prepared.dir().join(format!("download-{}", offer.sequence));
        fs::create_dir(&dir).unwrap();
        let manifest = Http::get(&format!("{}/manifest.json", offer.url), &[]).await.body;
        assert_eq!(bundle::Digest::of(&manifest).to_string(), offer.digest);
        fs::write(dir.join("manifest.json"), &manifest).unwrap();
        let manifest = bundle::Manifest::from_bytes(&manifest, &Limits::default()).unwrap();
        for name in manifest.files.keys() {
            let url = format!("{}/{name}", offer.url);
            let mut content = Http::get(&url, &[("Range", "bytes=0-40")]).await.body;
            content.extend(Http::get(&url, &[("Range", "bytes=41-")]).await.body);
            if name == bundle::REPORT_FILE {
                content = Http::get(&url, &[]).await.body;
            }
            fs::write(dir.join(name), content).unwrap();
        }
        Bundle::open(&dir, &Limits::default()).unwrap()
    }

    /// The service's database, to make it fail.
    pub(crate) fn database(&self) -> rusqlite::Connection {
        let database = rusqlite::Connection::open(self.store().join("jobs.sqlite")).unwrap();
        database.busy_timeout(PATIENCE).unwrap();
        database
    }

    /// Waits until a count of `/healthz` is at least this.
    pub(crate) async fn until_at_least(&self, key: &str, wanted: u64) {
        self.until("/healthz", |health| (health[key].as_u64() >= Some(wanted)).then_some(())).await;
    }

    /// Waits for something in the list of jobs.
    pub(crate) async fn until_jobs<T>(&self, found: impl Fn(&Value) -> Option<T>) -> T {
        self.until("/jobs", found).await
    }

    pub(crate) async fn until_health(&self, key: &str, wanted: impl Into<Value>) {
        let wanted = wanted.into();
        self.until("/healthz", |health| (health[key] == wanted).then_some(())).await;
    }

    /// Waits for a request to get into a state, and returns its row.
    pub(crate) async fn until_request(&self, device: &str, id: &str, state: &str) -> Value {
        self.until("/jobs", |jobs| {
            let mut rows = jobs["requests"].as_array().unwrap().iter();
            rows.find(|row| {
                row["device"] == device && row["request_id"] == id && row["state"] == state
            })
            .cloned()
        })
        .await
    }

    async fn until<T>(&self, path: &str, found: impl Fn(&Value) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = Http::get(&format!("{}{path}", self.url()), &[]).await;
            let value: Value = serde_json::from_slice(&answer.body).unwrap();
            if let Some(found) = found(&value) {
                return found;
            }
            assert!(Instant::now() < deadline, "{path} stays {value}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// An HTTP answer.
pub(crate) struct Http {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Http {
    pub(crate) async fn get(url: &str, headers: &[(&str, &str)]) -> Self {
        Self::send("GET", url, headers, b"").await
    }

    /// Sends the path as it stands, dots and all, which an ordinary client would not.
    pub(crate) async fn send(
        method: &str,
        url: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Self {
        let rest = url.strip_prefix("http://").unwrap();
        let (host, path) = rest.split_at(rest.find('/').unwrap());
        let mut stream = tokio::net::TcpStream::connect(host).await.unwrap();
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n");
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str(&format!("Content-Length: {}\r\n\r\n", body.len()));
        stream.write_all(head.as_bytes()).await.unwrap();
        // A server that refuses a body early may close before it has read it.
        let _ = stream.write_all(body).await;
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer))
            .await
            .expect("no answer");
        Self::parse(&answer)
    }

    fn parse(answer: &[u8]) -> Self {
        let end =
            answer.windows(4).position(|four| four == b"\r\n\r\n").expect("no end of headers");
        let head = std::str::from_utf8(&answer[..end]).unwrap();
        let mut lines = head.split("\r\n");
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers: Vec<(String, String)> = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect();
        Self { status, headers, body: answer[end + 4..].to_vec() }
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
    }
}
