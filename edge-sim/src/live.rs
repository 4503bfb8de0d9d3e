//! The whole loop on one machine: a broker, the compressor service, a real agent on an emulated
//! board, and a watcher that records what they say.
//!
//! ```no_run
//! # fn main() -> Result<(), edge_sim::live::StackError> {
//! use std::time::Duration;
//! use edge_sim::live::{Binaries, Stack, StackOptions};
//! use edge_sim::watcher::Message;
//!
//! let binaries = Binaries::in_dir("target/release".as_ref());
//! let mut stack = Stack::start(StackOptions::new(binaries, "assets".as_ref(), "run".as_ref()))?;
//! stack.deploy()?;
//! stack.wait_committed(Duration::from_secs(60))?;
//! let client = stack.client("before")?;
//! stack.set_latency_budget(100_000)?;
//! let request = stack.wait_for("a re-compression request", Duration::from_secs(60), |record| {
//!     match &record.message {
//!         Message::Request(request) => Some(request.clone()),
//!         _ => None,
//!     }
//! })?;
//! # Ok(())
//! # }
//! ```
//!
//! Every wait has a deadline, ends early when a part that ought to run has ended, and fails with the
//! end of the log that explains it. Dropping a [`Stack`] kills everything it started, and so does the
//! end of the process that holds it.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use wire::{CommandKind, CommandResult, Header, InstallEvent, InstallOutcome, ModelPhase};

use crate::broker::{self, Broker};
use crate::client::{self, ClientOptions, LoadClient};
use crate::fakesys::LiveBoard;
use crate::npz;
use crate::process::{POLL, Process, tail, tied};
use crate::profiles::DataType;
use crate::watcher::{Message, Record, Watcher};
use crate::worker::{self, Slowdown};

pub use self::error::StackError;
pub use self::options::{Assets, Binaries, Breach, ClientRate, Install, StackOptions};

mod config;
mod error;
mod options;

/// How long a part may take until it is ready.
pub const START_DEADLINE: Duration = Duration::from_secs(60);
/// How long a part may take to end when it is asked to.
pub const STOP_PATIENCE: Duration = Duration::from_secs(15);
/// How long a command's result may take.
pub const COMMAND_DEADLINE: Duration = Duration::from_secs(30);
const HTTP_TIMEOUT: Duration = Duration::from_secs(60);
const LOG_LINES: usize = 15;
/// How often a wait looks whether everything still runs.
const LOOK: Duration = Duration::from_millis(250);

/// Broker, service, board, agent and watcher, running.
pub struct Stack {
    // Fields are dropped in this order: the agent says good-bye to a broker that still runs.
    agent: Option<Process>,
    service: Option<Process>,
    watcher: Watcher,
    board: LiveBoard,
    broker: Broker,
    options: StackOptions,
    slowdown: Slowdown,
    inputs: Vec<npz::Array>,
    service_port: u16,
    mark: usize,
    started_ms: u64,
    cancel: Arc<AtomicBool>,
    sent: AtomicU64,
}

impl Stack {
    /// Starts the broker, the watcher, the service, the board and the agent, and waits until each
    /// is ready.
    ///
    /// # Errors
    /// Whatever is not ready within [`START_DEADLINE`], with the end of its log.
    pub fn start(options: StackOptions) -> Result<Self, StackError> {
        Self::start_cancellable(options, Arc::default())
    }

    /// As [`Stack::start`]; every wait ends with [`StackError::Cancelled`] once `cancel` is true.
    ///
    /// # Errors
    /// As [`Stack::start`].
    pub fn start_cancellable(
        options: StackOptions,
        cancel: Arc<AtomicBool>,
    ) -> Result<Self, StackError> {
        options.binaries.check()?;
        let options = options.absolute().map_err(StackError::io("a path"))?;
        let inputs = npz::read(&options.assets.heldout)?;
        let slowdown = Slowdown {
            fp32: options.board.slowdown(options.threads, DataType::Fp32, options.host_speed)?,
            int8: options.board.slowdown(options.threads, DataType::Int8, options.host_speed)?,
        };
        for dir in ["state", "store", "board"] {
            let dir = options.run_dir.join(dir);
            fs::create_dir_all(&dir).map_err(StackError::io(dir.display()))?;
        }
        let started_ms = unix_ms();
        let broker = Broker::start(
            options.broker.clone(),
            &options.run_dir.join("broker"),
            &options.binaries.edge_sim,
        )?;
        let address = (broker.host(), broker.port());
        let watcher = Watcher::start(address, &options.root, START_DEADLINE)?;
        let board =
            LiveBoard::start(&options.run_dir.join("board"), options.board, options.threads)
                .map_err(StackError::io("the emulated board's files"))?;
        let mut stack = Self {
            agent: None,
            service: None,
            watcher,
            board,
            broker,
            slowdown,
            inputs,
            service_port: broker::free_port()?,
            mark: 0,
            started_ms,
            cancel,
            sent: AtomicU64::new(0),
            options,
        };
        stack.service_start()?;
        stack.agent_start()?;
        stack.wait_online(START_DEADLINE)?;
        Ok(stack)
    }

    // ---- the loop -----------------------------------------------------------------------------

    /// Has the service offer the original model to the device, and gives its answer.
    ///
    /// # Errors
    /// The service cannot be reached or refuses.
    pub fn deploy(&self) -> Result<Value, StackError> {
        let body =
            serde_json::json!({ "device": self.options.device, "model": self.options.model });
        self.http("POST", "/deploy", Some(&body))
    }

    /// The service's job table.
    ///
    /// # Errors
    /// The service cannot be reached.
    pub fn jobs(&self) -> Result<Value, StackError> {
        self.http("GET", "/jobs", None)
    }

    /// Gives the model on the device a p95 budget, by a command over MQTT.
    ///
    /// # Errors
    /// There is no result in time, or the device refuses.
    pub fn set_latency_budget(&mut self, latency_p95_us: u64) -> Result<(), StackError> {
        let args = serde_json::json!({
            "model": self.options.model,
            "latency_p95_us": latency_p95_us,
        });
        let result = self.command(CommandKind::SetBudget, args, COMMAND_DEADLINE)?;
        if result.ok {
            return Ok(());
        }
        Err(StackError::Refused {
            what: "set_budget".to_owned(),
            why: result.error.unwrap_or_else(|| "no reason given".to_owned()),
        })
    }

    /// Sends the device a command and waits for its result.
    ///
    /// # Errors
    /// There is no result in time.
    pub fn command(
        &mut self,
        kind: CommandKind,
        args: Value,
        patience: Duration,
    ) -> Result<CommandResult, StackError> {
        let seq = self.sent.fetch_add(1, Ordering::Relaxed);
        let boot_id = format!("edge-sim-{}", std::process::id());
        let id = format!("{boot_id}-{seq}");
        let topics = wire::Topics::new(&self.options.root, &self.options.device)?;
        let now = unix_ms();
        let payload = wire::encode(&wire::Command {
            header: Header::of::<wire::Command>(now, seq, &boot_id),
            id: id.clone(),
            kind,
            expires_ms: now + u64::try_from(patience.as_millis()).unwrap_or(u64::MAX),
            args,
        });
        let mut mark = self.mark();
        self.watcher.publish(&topics.command(kind, &id)?, false, payload, patience)?;
        self.wait_from(
            &mut mark,
            &format!("the result of {kind}"),
            patience,
            |record| match &record.message {
                Message::Result(result) if result.id == id => Some(result.clone()),
                _ => None,
            },
        )
    }

    /// Publishes anything anywhere, retained or not: hostile offers, for example.
    ///
    /// # Errors
    /// There is no connection to the broker.
    pub fn publish(&self, topic: &str, retain: bool, payload: Vec<u8>) -> Result<(), StackError> {
        Ok(self.watcher.publish(topic, retain, payload, START_DEADLINE)?)
    }

    /// Starts a client that sends the held-out samples to the device.
    ///
    /// # Errors
    /// The data holds no samples.
    pub fn client(&self, phase: &str) -> Result<LoadClient, StackError> {
        let options = ClientOptions {
            model: self.options.model.clone(),
            inputs: self.inputs.clone(),
            endpoints: self.endpoints_path(),
            pause: self.options.client.pause,
            timeout: self.options.client.timeout,
        };
        Ok(LoadClient::start(options, phase)?)
    }

    // ---- waiting ------------------------------------------------------------------------------

    /// The present end of the recording.
    #[must_use]
    pub fn mark(&self) -> usize {
        self.watcher.cursor()
    }

    /// Waits for the first record, after the one that the last `wait_for` found, that `pick` takes.
    ///
    /// # Errors
    /// `patience` is over, a part has ended that ought to run, or the run was cancelled.
    pub fn wait_for<T>(
        &mut self,
        what: &str,
        patience: Duration,
        pick: impl FnMut(&Record) -> Option<T>,
    ) -> Result<T, StackError> {
        let mut mark = self.mark;
        let found = self.wait_from(&mut mark, what, patience, pick);
        self.mark = mark;
        found
    }

    /// As [`Stack::wait_for`], from a mark of the caller's, which moves behind what was found.
    ///
    /// # Errors
    /// As [`Stack::wait_for`].
    pub fn wait_from<T>(
        &mut self,
        mark: &mut usize,
        what: &str,
        patience: Duration,
        mut pick: impl FnMut(&Record) -> Option<T>,
    ) -> Result<T, StackError> {
        let deadline = Instant::now() + patience;
        loop {
            let slice = deadline.min(Instant::now() + LOOK);
            if let Some(found) = self.watcher.wait(mark, slice, &mut pick) {
                return Ok(found);
            }
            self.check_alive(what)?;
            if Instant::now() >= deadline {
                return Err(self.waited_in_vain(what, patience));
            }
        }
    }

    /// Waits until the device says that it is online.
    ///
    /// # Errors
    /// As [`Stack::wait_for`].
    pub fn wait_online(&mut self, patience: Duration) -> Result<(), StackError> {
        let started_ms = self.started_ms;
        self.wait_for("the device to be online", patience, |record| match &record.message {
            // What the broker kept from before this run says nothing.
            Message::State(state) if !record.retained || state.header.ts >= started_ms => {
                (state.state == wire::DeviceState::Online).then_some(())
            }
            _ => None,
        })
    }

    /// Waits until an install is committed; one that is rejected or rolled back is an error.
    ///
    /// # Errors
    /// As [`Stack::wait_for`], or [`StackError::NotInstalled`] with the device's reason.
    pub fn wait_committed(&mut self, patience: Duration) -> Result<InstallEvent, StackError> {
        let event =
            self.wait_for("an install to end", patience, |record| match &record.message {
                Message::Install(event) if event.outcome != InstallOutcome::Progress => {
                    Some(event.clone())
                }
                _ => None,
            })?;
        if event.outcome == InstallOutcome::Committed {
            return Ok(event);
        }
        Err(StackError::NotInstalled {
            digest: event.digest,
            outcome: event.outcome,
            reason: event.reason.unwrap_or_else(|| "no reason given".to_owned()),
        })
    }

    /// Waits until an install reports `phase`.
    ///
    /// # Errors
    /// As [`Stack::wait_for`].
    pub fn wait_phase(
        &mut self,
        phase: ModelPhase,
        patience: Duration,
    ) -> Result<InstallEvent, StackError> {
        let what = format!("an install to reach {phase}");
        self.wait_for(&what, patience, |record| match &record.message {
            Message::Install(event) if event.phase == phase => Some(event.clone()),
            _ => None,
        })
    }

    // ---- faults -------------------------------------------------------------------------------

    /// Starts the agent, and waits until it serves HTTP (not until it is connected).
    ///
    /// # Errors
    /// It ends, or does not serve within [`START_DEADLINE`].
    pub fn agent_start(&mut self) -> Result<(), StackError> {
        let config = self.write_agent_config()?;
        let endpoints = self.endpoints_path();
        let _ = fs::remove_file(&endpoints);
        let mut command = Command::new(&self.options.binaries.agent);
        command.arg("run").arg("--config").arg(config);
        self.pass_ort_library(&mut command);
        let command = tied(&self.options.binaries.edge_sim, &command);
        let agent = Process::spawn("espalier-agent", command, &self.agent_log())?;
        self.board.set_agent(agent.pid());
        self.agent = Some(agent);
        let http = client::http(HTTP_TIMEOUT);
        self.wait_until("the agent to serve", || {
            let address = client::http_address(&endpoints).ok()?;
            let url = format!("http://{address}/v2/health/live");
            http.get(&url).call().ok().filter(|r| r.status() == 200).map(|_| ())
        })
    }

    /// Kills the agent with SIGKILL; its workers are left to notice.
    pub fn agent_kill9(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            agent.kill9();
        }
    }

    /// Kills the agent and its workers at once, as a power cut does.
    pub fn agent_power_cut(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            agent.kill_family();
        }
    }

    /// Asks the agent to end and waits for it.
    pub fn agent_stop(&mut self) -> Option<std::process::ExitStatus> {
        self.agent.take().and_then(|mut agent| agent.stop(STOP_PATIENCE))
    }

    /// Asks the agent to read its configuration again, after writing it anew from the options.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn agent_reload(&mut self) -> Result<(), StackError> {
        self.write_agent_config()?;
        if let Some(agent) = &mut self.agent {
            agent.hang_up();
        }
        Ok(())
    }

    /// The agent's process id.
    #[must_use]
    pub fn agent_pid(&self) -> Option<u32> {
        self.agent.as_ref().map(Process::pid)
    }

    /// Starts the compressor service, on the port it always has here, and waits until it is ready.
    ///
    /// # Errors
    /// It ends, or is not ready within [`START_DEADLINE`].
    pub fn service_start(&mut self) -> Result<(), StackError> {
        let stdout = self.options.run_dir.join("service.out");
        let _ = fs::remove_file(&stdout);
        let mut command = Command::new(&self.options.binaries.espalier);
        command.args(self.service_args());
        self.pass_ort_library(&mut command);
        let command = tied(&self.options.binaries.edge_sim, &command);
        let service = Process::spawn_to("espalier serve", command, &self.service_log(), &stdout)?;
        self.service = Some(service);
        self.wait_until("the service to be ready", || {
            let text = fs::read_to_string(&stdout).ok()?;
            text.lines()
                .filter_map(|line| serde_json::from_str::<Value>(line).ok())
                .find(|line| line["ready"] == true)
                .map(|_| ())
        })
    }

    /// Kills the service with SIGKILL.
    pub fn service_kill9(&mut self) {
        if let Some(mut service) = self.service.take() {
            service.kill_family();
        }
    }

    /// Ends the broker in good order.
    ///
    /// # Errors
    /// The broker was not started here.
    pub fn broker_stop(&mut self) -> Result<(), StackError> {
        Ok(self.broker.stop()?)
    }

    /// Starts the broker again on the same port; the others reconnect when they do.
    ///
    /// # Errors
    /// The broker was not started here, or does not come up.
    pub fn broker_start(&mut self) -> Result<(), StackError> {
        Ok(self.broker.resume()?)
    }

    // ---- looking ------------------------------------------------------------------------------

    /// What it was started with.
    #[must_use]
    pub fn options(&self) -> &StackOptions {
        &self.options
    }

    /// Changes the options; the agent's apply when it is started or reloaded the next time.
    pub fn options_mut(&mut self) -> &mut StackOptions {
        &mut self.options
    }

    /// The factors by which the board's workers are slowed down.
    #[must_use]
    pub fn slowdown(&self) -> Slowdown {
        self.slowdown
    }

    /// Temperature, power and clock of the board.
    #[must_use]
    pub fn board(&self) -> &LiveBoard {
        &self.board
    }

    /// The recording.
    #[must_use]
    pub fn watcher(&self) -> &Watcher {
        &self.watcher
    }

    /// Address of the broker, `host:port`.
    #[must_use]
    pub fn broker_address(&self) -> String {
        self.broker.address()
    }

    /// URL of the service.
    #[must_use]
    pub fn service_url(&self) -> String {
        format!("http://{}:{}", Ipv4Addr::LOCALHOST, self.service_port)
    }

    /// `host:port` on which the agent serves HTTP now.
    ///
    /// # Errors
    /// It does not serve.
    pub fn agent_http(&self) -> Result<String, StackError> {
        Ok(client::http_address(&self.endpoints_path())?)
    }

    /// The samples that clients send.
    #[must_use]
    pub fn inputs(&self) -> &[npz::Array] {
        &self.inputs
    }

    /// The agent's state folder.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.options.run_dir.join("state")
    }

    /// The agent's install journal.
    #[must_use]
    pub fn journal_path(&self) -> PathBuf {
        self.state_dir().join("journal")
    }

    /// The service's folder of bundles, each called by the hexadecimal digits of its digest.
    #[must_use]
    pub fn bundles_dir(&self) -> PathBuf {
        self.options.run_dir.join("store").join("bundles")
    }

    /// The folder in the store of the bundle with this digest.
    #[must_use]
    pub fn bundle_dir(&self, digest: &str) -> PathBuf {
        self.bundles_dir().join(digest.strip_prefix("sha256:").unwrap_or(digest))
    }

    /// Where the agent logs.
    #[must_use]
    pub fn agent_log(&self) -> PathBuf {
        self.options.run_dir.join("agent.log")
    }

    /// Where the service logs.
    #[must_use]
    pub fn service_log(&self) -> PathBuf {
        self.options.run_dir.join("service.log")
    }

    fn endpoints_path(&self) -> PathBuf {
        self.state_dir().join("run").join("endpoints.json")
    }

    // ---- helpers ------------------------------------------------------------------------------

    fn service_args(&self) -> Vec<String> {
        let o = &self.options;
        let named = |path: &Path| format!("{}={}", o.model, path.display());
        let listen = format!("{}:{}", Ipv4Addr::LOCALHOST, self.service_port);
        let pairs = [
            ("--root", o.root.clone()),
            ("--broker", self.broker.address()),
            ("--listen", listen),
            ("--http-url", self.service_url()),
            ("--store", o.run_dir.join("store").display().to_string()),
            ("--model", named(&o.assets.model)),
            ("--calibration", named(&o.assets.calibration)),
            ("--heldout", named(&o.assets.heldout)),
            ("--runtime", o.runtime.to_string()),
            ("--agreement-min", o.agreement_min.to_string()),
        ];
        let pairs = pairs.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]);
        std::iter::once("serve".to_owned()).chain(pairs).chain(o.service_args.clone()).collect()
    }

    fn write_agent_config(&self) -> Result<PathBuf, StackError> {
        let worker_args = worker::arguments(self.slowdown, &self.options.run_dir.join("board"));
        let table = config::agent(&config::Facts {
            options: &self.options,
            state_dir: &self.state_dir(),
            broker: (self.broker.host(), self.broker.port()),
            worker_args,
            sys_root: &self.board.files().root(),
        });
        let file = self.options.run_dir.join("agent.toml");
        let text = toml::to_string(&table).map_err(|e| StackError::Config(e.to_string()))?;
        fs::write(&file, text).map_err(StackError::io(file.display()))?;
        Ok(file)
    }

    fn pass_ort_library(&self, command: &mut Command) {
        if let Some(library) = &self.options.assets.ort_library {
            command.env("ORT_DYLIB_PATH", library);
        }
    }

    fn http(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value, StackError> {
        let url = format!("{}{path}", self.service_url());
        let fail = |why: String| StackError::Refused { what: format!("{method} {url}"), why };
        let agent = client::http(HTTP_TIMEOUT);
        let sent = match body {
            Some(body) => agent
                .post(&url)
                .header("content-type", "application/json")
                .send(body.to_string().as_bytes()),
            None => agent.get(&url).call(),
        };
        let mut response = sent.map_err(|error| fail(error.to_string()))?;
        let text = response.body_mut().read_to_string().map_err(|error| fail(error.to_string()))?;
        if !response.status().is_success() {
            return Err(fail(format!("status {}: {text}", response.status().as_u16())));
        }
        serde_json::from_str(&text).map_err(|error| fail(format!("{error} in {text}")))
    }

    /// Waits for something that is not announced over MQTT.
    fn wait_until(
        &mut self,
        what: &str,
        mut ready: impl FnMut() -> Option<()>,
    ) -> Result<(), StackError> {
        let deadline = Instant::now() + START_DEADLINE;
        while ready().is_none() {
            self.check_alive(what)?;
            if Instant::now() >= deadline {
                return Err(self.waited_in_vain(what, START_DEADLINE));
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// An error when a part has ended that nobody asked to end, or the run is cancelled.
    pub(crate) fn check_alive(&mut self, what: &str) -> Result<(), StackError> {
        if self.cancel.load(Ordering::Relaxed) {
            return Err(StackError::Cancelled);
        }
        for process in [&mut self.agent, &mut self.service].into_iter().flatten() {
            if let Some(status) = process.exited() {
                return Err(StackError::Ended {
                    name: process.name().to_owned(),
                    status,
                    what: what.to_owned(),
                    log: process.log().to_owned(),
                    tail: process.log_tail(LOG_LINES),
                });
            }
        }
        Ok(())
    }

    fn waited_in_vain(&self, what: &str, patience: Duration) -> StackError {
        StackError::Waited {
            what: what.to_owned(),
            patience,
            agent_log: tail(&self.agent_log(), LOG_LINES),
            service_log: tail(&self.service_log(), LOG_LINES),
        }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // In good order where that is quick; each part's own drop kills what is left.
        if let Some(agent) = &mut self.agent {
            agent.stop(Duration::from_secs(3));
        }
        if let Some(service) = &mut self.service {
            service.stop(Duration::from_secs(3));
        }
    }
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
