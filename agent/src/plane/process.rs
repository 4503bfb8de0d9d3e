//! A worker process as the agent holds it: started, loaded, asked, and found dead.

use std::collections::BTreeSet;
use std::io::{self, PipeWriter};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use engine::IoSpec;
use rustix::process::{Pid, Resource, Rlimit, prlimit, setpriority_process};
use tokio::process::{Child, Command};
use tokio::time::timeout;
use wire::Priority;

use super::frames::Frames;
use super::groups::{self, Groups, WorkerGroup};
use super::protocol::{
    Failure, FailureKind, FrameError, HEADER_BYTES, Hello, LoadFailure, LoadFault, LoadRequest,
    Message, NamedTensors, run_pieces, specs,
};
use super::socket::Socket;

/// How long a model may take to load.
pub(super) const LOAD_DEADLINE: Duration = Duration::from_secs(180);
/// How long a worker whose socket closed may take to end before it is killed.
const EXIT_GRACE: Duration = Duration::from_secs(2);

/// What workers add to their score when the kernel looks for a process to kill, of at most 1000.
const OOM_SCORE_ADJ: &str = "500";

/// Everything needed to start a worker, again and again.
#[derive(Debug, Clone)]
pub(super) struct WorkerSpec {
    pub(super) program: PathBuf,
    pub(super) args: Vec<String>,
    /// The most bytes of private memory that it may ask for.
    pub(super) memory_bytes: Option<u64>,
    /// Whose limit that is.
    pub(super) memory_limit: &'static str,
    /// How it stands against the device's other work.
    pub(super) priority: Priority,
    /// Whether it may ask for more, to see what becomes of the model then. Its control group is limited all the same.
    pub(super) on_trial: bool,
    /// Makes its control group, where it has one of its own.
    pub(super) groups: Option<Arc<Groups>>,
    pub(super) working_dir: PathBuf,
    /// The bundle's folder, and the digest that it has.
    pub(super) bundle: (PathBuf, bundle::Digest),
    pub(super) load: LoadRequest,
    /// How long one inference may take before the worker counts as hung.
    pub(super) run_limit: Duration,
}

/// Why a worker is not there.
#[derive(Debug, thiserror::Error)]
pub(super) enum WorkerError {
    #[error("cannot be started: {0}")]
    Spawn(#[source] io::Error),
    /// The engine refuses the model.
    #[error("{0}")]
    Refused(String),
    /// The engine cannot be used, or the file not be read.
    #[error("{0}")]
    Unable(String),
    /// Loading did not get as far as a judgement of the model.
    #[error("{0}")]
    Unloaded(String),
    #[error("{0}")]
    Died(String),
}

/// An inference that was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RunId(u64);

/// What came of a run whose worker survived it.
#[derive(Debug)]
pub(super) enum RunOutcome {
    Done { compute: Duration, outputs: NamedTensors },
    Failed { kind: FailureKind, error: String },
}

/// What a loaded worker serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Interface {
    pub(super) inputs: Vec<IoSpec>,
    pub(super) outputs: Vec<IoSpec>,
    pub(super) engine_version: String,
}

#[derive(Debug)]
pub(super) struct WorkerProcess {
    child: Child,
    socket: Socket,
    /// What was read from it.
    frames: Frames,
    /// Open for as long as the worker shall live, however busy it is.
    life: Option<PipeWriter>,
    run_limit: Duration,
    memory_bytes: Option<u64>,
    memory_limit: &'static str,
    /// What became of the wish in the spec.
    priority: Priority,
    /// After the child, so that it is empty when it goes.
    group: Option<Arc<WorkerGroup>>,
    next_id: u64,
}

impl WorkerSpec {
    /// Holds the bundle on disk against its digest once more: a bit may have flipped since it was loaded.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) async fn verify(&self) -> Result<(), WorkerError> {
        let (folder, digest) = self.bundle.clone();
        let opened = tokio::task::spawn_blocking(move || {
            let opened = bundle::Bundle::open(&folder, &bundle::Limits::default());
            opened
                .map_err(|error| error.to_string())
                .map(|opened| (opened.digest == digest, digest))
        });
        let damaged = |what: String| {
            Err(WorkerError::Unloaded(format!("the bundle on disk is not what it was: {what}")))
        };
        match opened.await {
            Ok(Ok((true, _))) => Ok(()),
            Ok(Ok((false, digest))) => damaged(format!("its digest is not {digest}")),
            Ok(Err(error)) => damaged(error),
            Err(error) => Err(WorkerError::Unloaded(error.to_string())),
        }
    }
}

impl WorkerProcess {
    /// Starts a worker and has it load its model.
    pub(super) async fn start(spec: &WorkerSpec) -> Result<(Self, Interface), WorkerError> {
        let mut worker = Self::spawn(spec).map_err(WorkerError::Spawn)?;
        let loaded = timeout(LOAD_DEADLINE, worker.load(&spec.load)).await;
        match loaded {
            Ok(Ok(interface)) => Ok((worker, interface)),
            Ok(Err(error @ (WorkerError::Refused(_) | WorkerError::Unable(_)))) => {
                worker.end().await;
                Err(error)
            }
            Ok(Err(error)) => {
                let ended = worker.end().await;
                Err(WorkerError::Unloaded(format!("{error}; the worker {ended} while loading")))
            }
            Err(_) => {
                worker.end().await;
                Err(WorkerError::Unloaded(format!(
                    "not loaded after {} s (LOAD_DEADLINE)",
                    LOAD_DEADLINE.as_secs()
                )))
            }
        }
    }

    /// The same; what the engine refuses under a limit on its memory is told with that limit.
    pub(super) async fn start_limited(spec: &WorkerSpec) -> Result<(Self, Interface), WorkerError> {
        match Self::start(spec).await {
            Err(WorkerError::Refused(reason) | WorkerError::Unable(reason))
                if spec.memory_bytes.is_some() =>
            {
                Err(WorkerError::Unloaded(reason + &spec.limit()))
            }
            outcome => outcome,
        }
    }

    /// The same, with a judgement of the model. Engines report memory that they do not get as they report a bad model,
    /// each in its own words, and a thread that cannot be started likewise. So what fails under a limit is loaded once
    /// more without: where that goes well it was the limit, and what is said otherwise is said of the model.
    pub(super) async fn start_judged(spec: &WorkerSpec) -> Result<(Self, Interface), WorkerError> {
        let reason = match Self::start(spec).await {
            Err(WorkerError::Refused(reason) | WorkerError::Unable(reason))
                if spec.memory_bytes.is_some() =>
            {
                reason
            }
            outcome => return outcome,
        };
        let limit = spec.limit();
        match Self::start(&WorkerSpec { on_trial: true, ..spec.clone() }).await {
            Err(error @ (WorkerError::Refused(_) | WorkerError::Unable(_))) => Err(error),
            Ok((mut worker, _)) => {
                worker.end().await;
                Err(WorkerError::Unloaded(format!("{reason}{limit}")))
            }
            Err(error) => {
                Err(WorkerError::Unloaded(format!("{reason}{limit}; without the limit: {error}")))
            }
        }
    }

    pub(super) fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// How it stands against the device's other work.
    pub(super) fn priority(&self) -> Priority {
        self.priority
    }

    /// Its control group, if it has one of its own.
    pub(super) fn group(&self) -> Option<Arc<WorkerGroup>> {
        self.group.clone()
    }

    /// Sends inferences to be run, in this order: how each is called, or why it was not sent. An error means
    /// that the worker is lost; it says how it ended.
    ///
    /// Together they must fit into the socket, or be one: a worker that has an answer to write reads nothing.
    pub(super) async fn send(
        &mut self,
        runs: &[Arc<NamedTensors>],
    ) -> Result<Vec<Result<RunId, String>>, WorkerError> {
        let mut ids = Vec::with_capacity(runs.len());
        let mut pieces = Vec::with_capacity(runs.len());
        for inputs in runs {
            self.next_id += 1;
            let id = self.next_id;
            let frame = run_pieces(id, inputs);
            ids.push(match frame {
                Ok(frame) => {
                    pieces.extend(frame);
                    Ok(RunId(id))
                }
                Err(error) => Err(error.to_string()),
            });
        }
        let lost = match timeout(self.run_limit, self.socket.send(&pieces)).await {
            Ok(Ok(())) => return Ok(ids),
            Ok(Err(_)) => String::new(),
            Err(_) => self.hung(),
        };
        Err(self.lose(lost).await)
    }

    /// Waits for the answer to the oldest inference that was sent and has none. An error means that the worker
    /// is lost; it says how it ended.
    pub(super) async fn answer(&mut self, RunId(id): RunId) -> Result<RunOutcome, WorkerError> {
        let answer = expect_frame(&mut self.socket, &mut self.frames);
        let lost = match timeout(self.run_limit, answer).await {
            Ok(Ok(message)) => match outcome(id, message) {
                Ok(outcome) => return Ok(outcome),
                Err(error) => error,
            },
            Ok(Err(FrameError::Io(_) | FrameError::Truncated { .. })) => String::new(),
            Ok(Err(error)) => error.to_string(),
            Err(_) => self.hung(),
        };
        Err(self.lose(lost).await)
    }

    /// Runs one inference. An error means that the worker is lost; it says how it ended.
    pub(super) async fn run(
        &mut self,
        inputs: Arc<NamedTensors>,
    ) -> Result<RunOutcome, WorkerError> {
        match self.send(&[inputs]).await?.pop() {
            Some(Ok(run)) => self.answer(run).await,
            Some(Err(error)) => Ok(RunOutcome::Failed { kind: FailureKind::Input, error }),
            None => Err(WorkerError::Died("was sent nothing".to_owned())),
        }
    }

    fn hung(&self) -> String {
        format!("no answer after {} ms, taken for hung", self.run_limit.as_millis())
    }

    /// Ends a worker that is of no use any more.
    async fn lose(&mut self, why: String) -> WorkerError {
        let ended = self.end().await;
        WorkerError::Died(if why.is_empty() { ended } else { format!("{why}; {ended}") })
    }

    /// Waits until the worker ends by itself, and says how. Safe to cancel.
    pub(super) async fn exited(&mut self) -> String {
        let status = self.child.wait().await;
        self.describe(status)
    }

    /// Lets go of the worker, waits for it to end, kills it if it does not, and says how it ended.
    pub(super) async fn end(&mut self) -> String {
        self.socket.close();
        self.life = None;
        match timeout(EXIT_GRACE, self.child.wait()).await {
            Ok(status) => self.describe(status),
            Err(_) => match self.child.kill().await {
                Ok(()) => "was killed because it did not end".to_owned(),
                Err(error) => format!("cannot be killed: {error}"),
            },
        }
    }

    fn spawn(spec: &WorkerSpec) -> io::Result<Self> {
        let (ours, theirs) = StdUnixStream::pair()?;
        let socket = Socket::new(ours)?;
        let (lives, life) = io::pipe()?;
        let mut group = groups::for_worker(spec.groups.as_ref(), spec.memory_bytes);
        let mut command = Command::new(&spec.program);
        command
            .args(&spec.args)
            .current_dir(&spec.working_dir)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::from(OwnedFd::from(lives)))
            // A Ctrl-C in a terminal is for the agent, which then drains its workers.
            .process_group(0)
            .env_remove("NOTIFY_SOCKET")
            .env_remove("WATCHDOG_USEC")
            .kill_on_drop(true);
        if spec.memory_bytes.is_some() {
            // A panic for want of memory would find none for its backtrace either, and stand still there.
            command.env("RUST_BACKTRACE", "0");
        }
        let child = command.spawn()?;
        if let Some(pid) = child.id() {
            prefer_for_oom_kill(pid);
            // It allocates nothing to speak of before it is told what to load.
            group = group.filter(|group| is_admitted(group, pid));
            let limit = spec.memory_bytes.filter(|_| !spec.on_trial);
            limit.map_or(Ok(()), |bytes| limit_memory(pid, bytes))?;
        }
        let lowered = spec.priority == Priority::Low && child.id().is_some_and(lower_priority);
        Ok(Self {
            child,
            socket,
            frames: Frames::default(),
            life: Some(life),
            run_limit: spec.run_limit,
            memory_bytes: spec.memory_bytes,
            memory_limit: spec.memory_limit,
            priority: if lowered { Priority::Low } else { Priority::Normal },
            group: group.map(Arc::new),
            next_id: 0,
        })
    }

    /// How it ended.
    fn describe(&self, status: io::Result<ExitStatus>) -> String {
        let ended = describe(&status);
        match status.ok().and_then(|status| status.signal()) {
            Some(SIGABRT) => ended + &limit_named(self.memory_limit, self.memory_bytes),
            Some(SIGKILL) => self.out_of_memory().unwrap_or(ended),
            _ => ended,
        }
    }

    /// What the kernel says of its end, if it was the kernel that ended it.
    fn out_of_memory(&self) -> Option<String> {
        let usage = self.group.as_ref()?.usage();
        usage.oom_kills.filter(|&kills| kills > 0)?;
        let peak = usage.peak_bytes.map(|bytes| format!(" when it had taken {bytes} bytes"));
        let name = self.memory_limit;
        let limit = self.memory_bytes.map(|bytes| format!(" ({name} = {bytes})"));
        let (peak, limit) = (peak.unwrap_or_default(), limit.unwrap_or_default());
        Some(format!("was killed by the kernel, which was out of memory{peak}{limit}"))
    }

    /// Hears the worker say its version.
    async fn greeted(&mut self) -> Result<(), WorkerError> {
        let broken = |error: FrameError| WorkerError::Died(error.to_string());
        let hello = loop {
            if let Some(body) = self.frames.next().map_err(broken)? {
                break Hello::expect(body).map_err(WorkerError::Unloaded)?;
            }
            let read = self.socket.receive(self.frames.room()).await;
            if read.map_err(|error| broken(error.into()))? == 0 {
                return Err(broken(FrameError::Truncated { missing: HEADER_BYTES }));
            }
        };
        if hello != Hello::own() {
            let (worker, agent) = (hello.version, Hello::own().version);
            tracing::warn!(
                worker,
                agent,
                "the worker is of another version, and understands this one"
            );
        }
        Ok(())
    }

    async fn load(&mut self, request: &LoadRequest) -> Result<Interface, WorkerError> {
        let broken = |error: FrameError| WorkerError::Died(error.to_string());
        let frame = Message::Load(request.clone()).encode().map_err(broken)?;
        self.socket.send(&[frame]).await.map_err(|e| broken(e.into()))?;
        // The order is on its way by then, so that nobody waits for the other side's turn.
        self.greeted().await?;
        match expect_frame(&mut self.socket, &mut self.frames).await.map_err(broken)? {
            Message::Loaded(reply) => Ok(Interface {
                inputs: specs(reply.inputs).map_err(broken)?,
                outputs: specs(reply.outputs).map_err(broken)?,
                engine_version: reply.engine_version,
            }),
            Message::LoadFailed(LoadFailure { fault, error }) => Err(match fault {
                LoadFault::Model => WorkerError::Refused(error),
                LoadFault::Device => WorkerError::Unable(error),
            }),
            _ => Err(broken(FrameError::Malformed("not an answer to loading".to_owned()))),
        }
    }
}

impl WorkerSpec {
    fn limit(&self) -> String {
        limit_named(self.memory_limit, self.memory_bytes)
    }
}

/// Names the limit on a worker's memory, if it has one.
fn limit_named(name: &str, memory_bytes: Option<u64>) -> String {
    let tell = |bytes| format!(" (more memory than {name} = {bytes}?)");
    memory_bytes.map(tell).unwrap_or_default()
}

/// What a program does to itself that gets no memory.
const SIGABRT: i32 = 6;
/// What the kernel does to what it takes memory from.
const SIGKILL: i32 = 9;

/// Holds a process to so many bytes of private memory that it may write to, the stacks of its threads among them: the
/// kernel refuses it more, and what asks for more ends or fails.
fn limit_memory(pid: u32, bytes: u64) -> io::Result<()> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let limit = Rlimit { current: Some(bytes), maximum: Some(bytes) };
    prlimit(pid, Resource::Data, limit)?;
    Ok(())
}

/// When memory runs out the kernel had better take a worker, which is started again, than the agent.
fn prefer_for_oom_kill(pid: u32) {
    if let Err(error) = std::fs::write(format!("/proc/{pid}/oom_score_adj"), OOM_SCORE_ADJ) {
        tracing::debug!(pid, %error, "cannot prefer the worker for an out-of-memory kill");
    }
}

/// The last place in line for the processor.
const LAST_IN_LINE: i32 = 19;

/// Puts all threads of a process last in line, those that it is just starting among them; says whether that worked.
fn lower_priority(pid: u32) -> bool {
    let mut lowered = BTreeSet::new();
    loop {
        let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
            return false;
        };
        let ids = tasks.filter_map(|task| task.ok()?.file_name().to_str()?.parse::<i32>().ok());
        let new: Vec<i32> = ids.filter(|id| *id > 0 && !lowered.contains(id)).collect();
        if new.is_empty() {
            return !lowered.is_empty();
        }
        for id in new {
            // A thread that a lowered one starts is lowered from its start.
            if let Err(error) = setpriority_process(Pid::from_raw(id), LAST_IN_LINE) {
                tracing::warn!(pid, %error, "a measurement cannot be put last in line");
                return false;
            }
            lowered.insert(id);
        }
    }
}

fn is_admitted(group: &WorkerGroup, pid: u32) -> bool {
    let admitted = group.admit(pid);
    if let Err(error) = &admitted {
        tracing::warn!(pid, %error, "a worker does not get into its control group");
    }
    admitted.is_ok()
}

async fn expect_frame(socket: &mut Socket, frames: &mut Frames) -> Result<Message, FrameError> {
    loop {
        if let Some(message) = frames.next()?.map(Message::decode) {
            frames.let_go();
            return message;
        }
        if socket.receive(frames.room()).await? == 0 {
            return Err(frames.cut().unwrap_or(FrameError::Truncated { missing: HEADER_BYTES }));
        }
    }
}

fn outcome(id: u64, message: Message) -> Result<RunOutcome, String> {
    match message {
        Message::Ran { id: got, compute_us, tensors } if got == id => {
            Ok(RunOutcome::Done { compute: Duration::from_micros(compute_us), outputs: tensors })
        }
        Message::Failed(Failure { id: got, kind, error }) if got == id => match kind {
            FailureKind::Fatal => Err(error),
            kind => Ok(RunOutcome::Failed { kind, error }),
        },
        _ => Err("an answer to something that was not asked".to_owned()),
    }
}

fn describe(status: &io::Result<ExitStatus>) -> String {
    match status {
        Err(error) => format!("ended, how is unknown: {error}"),
        Ok(status) => match (status.signal(), status.code()) {
            (Some(SIGKILL), _) => "was killed by signal 9 (SIGKILL; out of memory?)".to_owned(),
            (Some(signal), _) => format!("was ended by signal {signal}"),
            (None, Some(code)) => format!("exited with status {code}"),
            (None, None) => "ended".to_owned(),
        },
    }
}
