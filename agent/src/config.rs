//! Configuration: layers of text in, validated values or every error at once out.
//!
//! Layers, each over the one before: the file, `conf.d/*.toml` beside it in order of name, the
//! environment (`ESPALIER__SECTION__KEY`), and `--set key=value`. Tables are merged key by key. An
//! unknown key is an error: a mistyped budget must not pass for no budget. `docs/agent.md` lists the
//! keys.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use engine::{EngineKind, EngineOptions};
use wire::{Budgets, Topics};

use crate::core::{BreachRules, DriftRules, InstallRules, ProbationRules, check_budgets};
use crate::plane::batch::BatchRules;
use crate::sys::PowerConfig;

pub use trust::TrustConfig;

use layers::Layers;
use reader::Reader;

mod doubts;
mod download;
mod homeassistant;
mod layers;
mod otlp;
mod probation;
mod reader;
mod secure;
mod spool;
mod trust;

pub use doubts::Doubt;
pub use download::DownloadConfig;
pub use homeassistant::HomeAssistantConfig;
pub use otlp::OtlpConfig;
pub use secure::Checked;
pub use spool::{Fsync, SpoolConfig};

/// Where the configuration is looked for when no file is named.
pub const DEFAULT_FILE: &str = "/etc/espalier/agent.toml";

/// Where configuration comes from.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The file named on the command line.
    pub file: Option<PathBuf>,
    /// `key=value` pairs of the command line.
    pub overrides: Vec<String>,
    /// Environment variables.
    pub environment: Vec<(String, String)>,
}

/// The validated configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// Who the device is.
    pub device: DeviceConfig,
    /// Where everything durable lies.
    pub state_dir: PathBuf,
    /// The inference engine.
    pub engine: EngineOptions,
    /// The inference endpoints.
    pub serve: ServeConfig,
    /// The program that hosts one model.
    pub worker: WorkerConfig,
    /// The broker; none serves without one.
    pub mqtt: Option<MqttConfig>,
    /// The length of a telemetry window.
    pub window: Duration,
    /// What waits for the broker.
    pub spool: SpoolConfig,
    /// Budgets by model.
    pub budgets: BTreeMap<String, Budgets>,
    /// When a budget counts as broken.
    pub breach: BreachRules,
    /// When requests count as drifted.
    pub drift: DriftRules,
    /// The least time between two requests that are looked at for drift.
    pub drift_sample_every: Duration,
    /// How an install is judged.
    pub install: InstallRules,
    /// When a new model counts as worse than it may be.
    pub probation: ProbationRules,
    /// Whose keys must have signed what is installed; without them a digest is enough.
    pub trust: Option<TrustConfig>,
    /// How bundles are fetched.
    pub download: DownloadConfig,
    /// Where metrics are sent to, if anywhere.
    pub otlp: Option<OtlpConfig>,
    /// Whether and where Home Assistant is told of the device.
    pub homeassistant: HomeAssistantConfig,
    /// How power is to be had.
    pub power: PowerConfig,
    /// The prefix of `/proc` and `/sys`.
    pub sys_root: PathBuf,
    /// Where tests say which install states to hold in; packaged builds have no such key.
    #[cfg(debug_assertions)]
    pub hold_dir: Option<PathBuf>,
}

/// Who the device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceConfig {
    /// Its name on the broker.
    pub id: String,
    /// What bundles are made for.
    pub class: String,
    /// Whether it is emulated.
    pub emulated: bool,
}

impl DeviceConfig {
    /// Stands in for one that the configuration does not have, which is a problem already.
    fn unset() -> Self {
        Self { id: String::new(), class: "any".to_owned(), emulated: false }
    }
}

/// The inference endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServeConfig {
    /// Where to serve HTTP; port 0 takes a free one.
    pub http: Option<SocketAddr>,
    /// The socket to serve HTTP on.
    pub unix: Option<PathBuf>,
    /// Threads that serve the network.
    pub threads: usize,
    /// How many requests may wait for one model.
    pub queue_depth: usize,
    /// When requests that wait for one model run together.
    pub batch: BatchRules,
    /// The largest request body.
    pub max_request_bytes: usize,
    /// The most bytes that requests take together.
    pub max_buffered_bytes: usize,
    /// How long a request may take in all.
    pub request_deadline: Duration,
    /// How long the end of the service waits for requests at hand.
    pub drain_deadline: Duration,
}

/// The program that hosts one model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerConfig {
    /// The program; this one if not given.
    pub program: Option<PathBuf>,
    /// Its arguments.
    pub args: Vec<String>,
    /// The most bytes of private memory that it may ask for; no limit if not given.
    pub memory_bytes: Option<u64>,
    /// How long one inference may take before it counts as hung.
    pub run_limit: Duration,
    /// The control group that it runs in.
    pub cgroup: WorkerCgroup,
}

/// The control group of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkerCgroup {
    /// The agent's.
    Shared,
    /// One of its own below the agent's, which must be delegated to the agent.
    Own,
}

/// The broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MqttConfig {
    /// Its host.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// What every topic begins with.
    pub root: String,
    /// How often an idle connection is checked.
    pub keep_alive: Duration,
    /// How long the broker remembers a disconnected device.
    pub session_expiry: Duration,
    /// How long the broker waits before it calls a silent device offline.
    pub will_delay: Duration,
    /// Messages sent and not yet acknowledged.
    pub inflight: u16,
    /// The user name, where the broker asks for one.
    pub username: Option<String>,
    /// The file with the password.
    pub password_file: Option<PathBuf>,
    /// What the connection is secured with; none sends in the clear.
    pub tls: Option<tls::Settings>,
}

/// One thing wrong with the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file, environment variable or flag.
    pub origin: String,
    /// The key, dotted.
    pub key: String,
    /// What is wrong and what would be right.
    pub what: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { origin, key, what } = self;
        if key.is_empty() {
            write!(f, "{origin}: {what}")
        } else {
            write!(f, "{origin}: {key}: {what}")
        }
    }
}

/// Everything wrong with the configuration.
#[derive(Debug, thiserror::Error)]
#[error("{}", self.0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct ConfigError(pub Vec<Problem>);

impl Sources {
    /// The process's environment, beside what the command line names.
    #[must_use]
    pub fn with_environment(file: Option<PathBuf>, overrides: Vec<String>) -> Self {
        Self {
            file,
            overrides,
            environment: std::env::vars_os()
                .filter_map(|(key, value)| {
                    Some((key.into_string().ok()?, value.into_string().ok()?))
                })
                .collect(),
        }
    }
}

impl Config {
    /// Reads and validates.
    ///
    /// # Errors
    /// Everything that is wrong, each with its origin and key.
    pub fn load(sources: &Sources) -> Result<Self, ConfigError> {
        Self::load_with(sources, |_, _| {})
    }

    /// `more` may add to the problems.
    fn load_with(
        sources: &Sources,
        more: impl FnOnce(&mut Reader, &Self),
    ) -> Result<Self, ConfigError> {
        let (layers, mut problems) = Layers::collect(sources);
        let mut reader = Reader::new(&layers);
        let config = read(&mut reader, &sources.environment);
        more(&mut reader, &config);
        problems.extend(reader.finish());
        if problems.is_empty() { Ok(config) } else { Err(ConfigError(problems)) }
    }

    /// The topics of this device, where there is a broker.
    #[must_use]
    pub fn topics(&self) -> Option<Topics> {
        let mqtt = self.mqtt.as_ref()?;
        Topics::new(&mqtt.root, &self.device.id).ok()
    }

    /// What differs from `other` and can only be taken over by a restart: everything but budgets.
    #[must_use]
    pub fn needs_restart(&self, other: &Self) -> bool {
        let without = |config: &Self| {
            let budgets = BTreeMap::new();
            format!("{:?}", Self { budgets, ..config.clone() })
        };
        without(self) != without(other)
    }
}

/// What cannot be read has a stand-in, so that every problem is found; the reader knows of it.
fn read(r: &mut Reader, environment: &[(String, String)]) -> Config {
    let device = device(r);
    let state_dir = r.path("state.dir");
    let engine = engine(r);
    let serve = serve(r);
    let worker = WorkerConfig {
        program: r.path("worker.program"),
        args: r.strings("worker.args").unwrap_or_else(|| vec!["worker".to_owned()]),
        memory_bytes: r.optional_integer("worker.memory_bytes", 16 << 20..=1 << 40),
        run_limit: r.millis("worker.run_limit_ms", 120_000, 100..=3_600_000),
        cgroup: worker_cgroup(r),
    };
    let mqtt = mqtt(r);
    let window = r.millis("telemetry.window_ms", 10_000, 100..=3_600_000);
    let spool = spool::read(r);
    let budgets = budgets(r);
    let breach = breach(r);
    let drift = drift(r);
    let drift_sample_every = r.millis("drift.sample_every_ms", 0, 0..=3_600_000);
    let install = install(r);
    let probation = probation::read(r);
    let trust = trust::read(r, environment);
    let download = download::read(r);
    let otlp = otlp::read(r);
    let homeassistant = homeassistant::read(r);
    let power = power(r);
    let sys_root = r.path("sys.root").unwrap_or_else(|| PathBuf::from("/"));
    #[cfg(debug_assertions)]
    let hold_dir = r.path("test.hold_dir");
    Config {
        device: device.unwrap_or_else(DeviceConfig::unset),
        state_dir: state_dir.unwrap_or_else(|| PathBuf::from("/var/lib/espalier")),
        engine: engine.unwrap_or_else(|| EngineOptions::new(EngineKind::Tract)),
        serve,
        worker,
        mqtt,
        window,
        spool,
        budgets,
        breach,
        drift,
        drift_sample_every,
        install,
        probation,
        trust,
        download,
        otlp,
        homeassistant,
        power,
        sys_root,
        #[cfg(debug_assertions)]
        hold_dir,
    }
}

fn worker_cgroup(r: &mut Reader) -> WorkerCgroup {
    let parsed = match r.string("worker.cgroup").as_deref() {
        None | Some("shared") => Ok(WorkerCgroup::Shared),
        Some("own") => Ok(WorkerCgroup::Own),
        Some(other) => Err(format!("{other:?} is neither \"shared\" nor \"own\"")),
    };
    r.check("worker.cgroup", parsed).unwrap_or(WorkerCgroup::Shared)
}

fn device(r: &mut Reader) -> Option<DeviceConfig> {
    let id = r.required("device.id");
    let class = r.string("device.class").unwrap_or_else(|| "any".to_owned());
    let emulated = r.flag("device.emulated", false);
    r.check("device.class", wire::check_name("device class", &class));
    let id = id?;
    r.check("device.id", wire::check_name("device", &id));
    Some(DeviceConfig { id, class, emulated })
}

fn engine(r: &mut Reader) -> Option<EngineOptions> {
    let kind = r.string("runtime.engine").unwrap_or_else(|| "tract".to_owned());
    let threads = r.integer("runtime.threads", 1, 1..=256);
    let ort_library = r.path("runtime.ort_library");
    let arena = r.flag("runtime.ort_arena", false);
    let spinning = r.flag("runtime.ort_spinning", false);
    let kind: EngineKind = r.check("runtime.engine", kind.parse())?;
    Some(EngineOptions {
        threads: usize::try_from(threads).unwrap_or(1),
        ort_library,
        arena,
        spinning,
        ..EngineOptions::new(kind)
    })
}

fn serve(r: &mut Reader) -> ServeConfig {
    let http = r.string("serve.http").filter(|text| !text.is_empty());
    let size = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
    let max_request_bytes = r.integer("serve.max_request_bytes", 16 << 20, 1024..=1 << 30);
    let max_buffered_bytes = r.integer("serve.max_buffered_bytes", 64 << 20, 1024..=1 << 32);
    if max_buffered_bytes < max_request_bytes {
        let wrong: Result<(), String> = Err(format!(
            "no request of serve.max_request_bytes = {max_request_bytes} fits into it"
        ));
        r.check("serve.max_buffered_bytes", wrong);
    }
    ServeConfig {
        http: http.and_then(|text| {
            let parsed = text.parse::<SocketAddr>();
            r.check("serve.http", parsed.map_err(|_| format!("{text:?} is no ADDRESS:PORT")))
        }),
        unix: r.path("serve.unix"),
        threads: size(r.integer("serve.threads", 1, 1..=64)),
        queue_depth: size(r.integer("serve.queue_depth", 64, 1..=65_536)),
        batch: BatchRules {
            max_rows: size(r.integer("serve.batch.max_rows", 1, 1..=1024)),
            max_delay: r.millis("serve.batch.max_delay_ms", 0, 0..=1000),
        },
        max_request_bytes: size(max_request_bytes),
        max_buffered_bytes: size(max_buffered_bytes),
        request_deadline: r.millis("serve.request_deadline_ms", 30_000, 1..=3_600_000),
        drain_deadline: r.millis("serve.drain_deadline_ms", 10_000, 0..=600_000),
    }
}

fn mqtt(r: &mut Reader) -> Option<MqttConfig> {
    let host = r.string("mqtt.host").filter(|host| !host.is_empty());
    let root = r.string("mqtt.root").unwrap_or_else(|| wire::DEFAULT_ROOT.to_owned());
    r.check("mqtt.root", wire::requests_filter(&root));
    let narrow = |n: u64| u16::try_from(n).unwrap_or(u16::MAX);
    let tls = secure::mqtt(r);
    let config = MqttConfig {
        host: host.clone().unwrap_or_default(),
        port: narrow(r.integer("mqtt.port", secure::default_port(tls.as_ref()), 1..=65_535)),
        root,
        keep_alive: Duration::from_secs(r.integer("mqtt.keep_alive", 30, 5..=65_535)),
        session_expiry: Duration::from_secs(r.integer(
            "mqtt.session_expiry_s",
            7 * 86_400,
            0..=u64::from(u32::MAX),
        )),
        will_delay: Duration::from_secs(r.integer("mqtt.will_delay_s", 10, 0..=86_400)),
        inflight: narrow(r.integer("mqtt.inflight", 16, 1..=1024)),
        username: r.string("mqtt.username"),
        password_file: secure::credential(r, "mqtt.password_file"),
        tls,
    };
    host.map(|_| config)
}

fn budgets(r: &mut Reader) -> BTreeMap<String, Budgets> {
    let mut all = BTreeMap::new();
    for model in r.names("budgets") {
        let key = |field: &str| format!("budgets.{model}.{field}");
        let any = 1..=u64::MAX;
        let budgets = Budgets {
            latency_p95_us: r.optional_integer(&key("latency_p95_us"), any.clone()),
            memory_bytes: r.optional_integer(&key("memory_bytes"), any.clone()),
            power_mw: r.optional_integer(&key("power_mw"), any),
            energy_mj: r.optional_number(&key("energy_mj")),
            agreement_min: r.optional_number(&key("agreement_min")),
            drift_psi: r.optional_number(&key("drift_psi")),
        };
        let key = format!("budgets.{model}");
        r.check(&key, wire::check_name("model", &model));
        r.check(&key, check_budgets(&budgets));
        all.insert(model, budgets);
    }
    all
}

fn breach(r: &mut Reader) -> BreachRules {
    let d = BreachRules::default();
    let narrow = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    let rules = BreachRules {
        windows_over: narrow(r.integer("breach.windows_over", d.windows_over.into(), 1..=1000)),
        windows_seen: narrow(r.integer("breach.windows_seen", d.windows_seen.into(), 1..=1000)),
        min_requests: r.integer("breach.min_requests", d.min_requests, 1..=1 << 32),
        cooldown_ms: r.integer("breach.cooldown_ms", d.cooldown_ms, 0..=1 << 40),
        hysteresis: r.number("breach.hysteresis", d.hysteresis, 0.0..=0.9),
        request_timeout_ms: r.integer(
            "breach.request_timeout_ms",
            d.request_timeout_ms,
            1..=1 << 40,
        ),
        steal_percent: r.number("breach.steal_percent", d.steal_percent, 0.0..=100.0),
        swap_in_pages: r.integer("breach.swap_in_pages", d.swap_in_pages, 1..=1 << 40),
    };
    if rules.windows_over > rules.windows_seen {
        let (over, seen) = (rules.windows_over, rules.windows_seen);
        let wrong: Result<(), String> =
            Err(format!("{over} of breach.windows_seen = {seen} windows can never be reached"));
        r.check("breach.windows_over", wrong);
    }
    rules
}

fn drift(r: &mut Reader) -> DriftRules {
    let d = DriftRules::default();
    DriftRules {
        false_alarms_per_day: r.number(
            "drift.false_alarms_per_day",
            d.false_alarms_per_day,
            1e-9..=1.0,
        ),
        pool_ms: r.integer("drift.pool_ms", d.pool_ms, 1..=7 * 86_400_000),
        min_requests: r.integer("drift.min_requests", d.min_requests, 20..=1 << 32),
        request_timeout_ms: r.integer(
            "drift.request_timeout_ms",
            d.request_timeout_ms,
            1..=1 << 40,
        ),
    }
}

fn install(r: &mut Reader) -> InstallRules {
    let d = InstallRules::default();
    let narrow = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    InstallRules {
        shadow_requests: r.integer("install.shadow_requests", d.shadow_requests, 0..=1 << 32),
        shadow_timeout_ms: r.integer("install.shadow_timeout_ms", d.shadow_timeout_ms, 1..=1 << 40),
        probation_windows: narrow(r.integer(
            "install.probation_windows",
            d.probation_windows.into(),
            1..=1000,
        )),
        max_bundle_bytes: r.integer("install.max_bundle_bytes", d.max_bundle_bytes, 1..=1 << 40),
        max_models: usize::try_from(r.integer("install.max_models", 8, 1..=64)).unwrap_or(8),
        regress_ratio: r.number("install.regress_ratio", d.regress_ratio, 1.0..=100.0),
        max_error_rate: r.number("install.max_error_rate", d.max_error_rate, 0.0..=1.0),
        step_timeout_ms: r.integer("install.step_timeout_ms", d.step_timeout_ms, 1000..=1 << 40),
        max_attempts: narrow(r.integer("install.max_attempts", d.max_attempts.into(), 1..=1000)),
        max_restarts: narrow(r.integer("install.max_restarts", d.max_restarts.into(), 1..=1000)),
    }
}

fn power(r: &mut Reader) -> PowerConfig {
    let source = r.string("power.source").unwrap_or_else(|| "auto".to_owned());
    let config = PowerConfig {
        source: r.check("power.source", source.parse()).unwrap_or_default(),
        idle_mw: r.optional_number("power.idle_mw"),
        load_mw: r.optional_number("power.load_mw"),
        profile: r
            .strings("power.profile")
            .and_then(|points| r.check("power.profile", crate::sys::power::profile(&points))),
    };
    for (key, value) in [("power.idle_mw", config.idle_mw), ("power.load_mw", config.load_mw)] {
        if value.is_some_and(|mw| !mw.is_finite() || mw < 0.0) {
            let wrong: Result<(), &str> = Err("must be 0 mW or more");
            r.check(key, wrong);
        }
    }
    config
}

/// The folder of configuration pieces beside a file: every `*.toml` in it is read after the file, in
/// order of name.
#[must_use]
pub fn pieces(file: &Path) -> PathBuf {
    file.parent().unwrap_or(Path::new(".")).join("conf.d")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
