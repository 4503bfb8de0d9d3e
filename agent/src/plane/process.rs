//! A worker process as the agent holds it: started, loaded, asked, and found dead.

use std::io::{self, PipeWriter};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use engine::IoSpec;
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::frames::Frames;
use super::groups::{self, Groups, WorkerGroup};
use super::protocol::{
    Failure, FailureKind, FrameError, HEADER_BYTES, LoadFailure, LoadFault, LoadRequest, Message,
    NamedTensors, run_pieces, specs,
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
    /// Makes its control group, where it has one of its own.
    pub(super) groups: Option<Arc<Groups>>,
    pub(super) working_dir: PathBuf,
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
    /// After the child, so that it is empty when it goes.
    group: Option<Arc<WorkerGroup>>,
    next_id: u64,
}

impl WorkerProcess {
    /// Starts a worker and has it load its model.
    pub(super) async fn start(spec: &WorkerSpec) -> Result<(Self, Interface), WorkerError> {
        let mut worker = Self::spawn(spec).map_err(WorkerError::Spawn)?;
        let loaded = timeout(LOAD_DEADLINE, worker.load(&spec.load)).await;
        match loaded {
            Ok(Ok(interface)) => Ok((worker, interface)),
            Ok(Err(error @ (WorkerError::Refused(_) | WorkerError::Unloaded(_)))) => {
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

    pub(super) fn pid(&self) -> Option<u32> {
        self.child.id()
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
            spec.memory_bytes.map_or(Ok(()), |bytes| limit_memory(pid, bytes))?;
        }
        let (run_limit, memory_bytes) = (spec.run_limit, spec.memory_bytes);
        let (frames, life, group) = (Frames::default(), Some(life), group.map(Arc::new));
        Ok(Self { child, socket, frames, life, run_limit, memory_bytes, group, next_id: 0 })
    }

    /// How it ended.
    fn describe(&self, status: io::Result<ExitStatus>) -> String {
        let ended = describe(&status);
        match status.ok().and_then(|status| status.signal()) {
            Some(SIGABRT) => ended + &self.limit(),
            Some(SIGKILL) => self.out_of_memory().unwrap_or(ended),
            _ => ended,
        }
    }

    /// What the kernel says of its end, if it was the kernel that ended it.
    fn out_of_memory(&self) -> Option<String> {
        let usage = self.group.as_ref()?.usage();
        usage.oom_kills.filter(|&kills| kills > 0)?;
        let peak = usage.peak_bytes.map(|bytes| format!(" when it had taken {bytes} bytes"));
        let limit = self.memory_bytes.map(|bytes| format!(" (worker.memory_bytes = {bytes})"));
        let (peak, limit) = (peak.unwrap_or_default(), limit.unwrap_or_default());
        Some(format!("was killed by the kernel, which was out of memory{peak}{limit}"))
    }

    /// Names the limit on its memory, if it has one.
    fn limit(&self) -> String {
        let name = |bytes| format!(" (more memory than worker.memory_bytes = {bytes}?)");
        self.memory_bytes.map(name).unwrap_or_default()
    }

    async fn load(&mut self, request: &LoadRequest) -> Result<Interface, WorkerError> {
        let broken = |error: FrameError| WorkerError::Died(error.to_string());
        let frame = Message::Load(request.clone()).encode().map_err(broken)?;
        self.socket.send(&[frame]).await.map_err(|e| broken(e.into()))?;
        match expect_frame(&mut self.socket, &mut self.frames).await.map_err(broken)? {
            Message::Loaded(reply) => Ok(Interface {
                inputs: specs(reply.inputs).map_err(broken)?,
                outputs: specs(reply.outputs).map_err(broken)?,
                engine_version: reply.engine_version,
            }),
            Message::LoadFailed(LoadFailure { fault, error }) => Err(match fault {
                // Engines report memory that they do not get as they report a bad model.
                _ if error.contains("alloc") && self.memory_bytes.is_some() => {
                    WorkerError::Unloaded(error + &self.limit())
                }
                LoadFault::Model => WorkerError::Refused(error),
                LoadFault::Device => WorkerError::Unloaded(error),
            }),
            _ => Err(broken(FrameError::Malformed("not an answer to loading".to_owned()))),
        }
    }
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
