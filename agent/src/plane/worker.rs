//! The worker process: one model in one engine, driven over the socket that is its standard input. It gets
//! the engine from its caller: `espalier-worker` brings the real ones, and the agent links none.
//!
//! Two threads, so that an inference does not keep the worker from seeing that the agent is gone. One holds
//! the engine: it reads an order, carries it out and answers it, so that an inference waits for no other
//! thread. [`main`]'s own waits for the agent to let go of the worker, by closing the pipe that is its standard
//! output: then it returns even if an inference is still running; the process ends and takes it along.

use std::any::Any;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, PipeReader, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use engine::{ErrorKind, Session, Tensor};

use super::protocol::{
    Failure, FailureKind, FrameError, Hello, LoadFailure, LoadFault, LoadRequest, LoadedReply,
    Message, NamedTensors, ports,
};
use inbox::Inbox;

mod inbox;

/// The exit code after the agent let go of the worker: the ordinary end.
pub const EXIT_CLOSED: i32 = 0;
/// The exit code when the model cannot be loaded.
pub const EXIT_LOAD: i32 = 65;
/// The exit code after the engine panicked.
pub const EXIT_PANIC: i32 = 70;
/// The exit code when the socket failed.
pub const EXIT_SOCKET: i32 = 74;
/// The exit code when what arrived was not the protocol.
pub const EXIT_PROTOCOL: i32 = 76;

/// How long the engine's thread may take, once the agent is gone, to say why it ends if it is not computing.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How often it is looked at meanwhile.
const LAST_WORDS_STEP: Duration = Duration::from_millis(5);

/// What a worker does besides inference: before it loads, and after each inference before it answers.
pub trait ComputeHook {
    /// A model is about to be loaded. Called once.
    fn loading(&mut self, model: &Path) {
        let _ = model;
    }

    /// How often an inference is run again. The fastest of its runs counts, the last one answers.
    fn repeats(&self) -> usize {
        0
    }

    /// Whether [`Took::cpu`] is to be measured, which takes two calls into the kernel for each run.
    fn wants_cpu(&self) -> bool {
        true
    }

    /// Takes what the inference took and gives the time to report. It may take time itself: the
    /// answer waits for it.
    fn after_run(&mut self, took: Took) -> Duration;
}

/// What one inference took of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Took {
    /// Wall time, of the fastest run.
    pub wall: Duration,
    /// CPU time of all threads of this process during that run; zero where it is not wanted.
    pub cpu: Duration,
    /// Wall time of all runs together.
    pub all_runs: Duration,
    /// Says which inferences of this model had inputs of the same shapes.
    pub shapes: u64,
}

/// Reports what was measured.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoHook;

impl ComputeHook for NoHook {
    fn wants_cpu(&self) -> bool {
        false
    }

    fn after_run(&mut self, took: Took) -> Duration {
        took.wall
    }
}

/// Serves one model over standard input until standard output, the reading end of a pipe, closes. The result
/// is the exit code.
pub fn main(hook: Box<dyn ComputeHook + Send>, loader: Loader) -> i32 {
    let (input, output) = (io::stdin(), io::stdout());
    let own = input.as_fd().try_clone_to_owned();
    match own.and_then(|socket| Ok((socket, output.as_fd().try_clone_to_owned()?))) {
        Ok((socket, life)) => serve(UnixStream::from(socket), PipeReader::from(life), hook, loader),
        Err(error) => {
            tracing::error!(%error, "the worker has no socket and pipe as its standard streams");
            EXIT_SOCKET
        }
    }
}

/// Loads a model: the session, and the engine's name and version.
pub type Loader = fn(&LoadRequest) -> Result<(Box<dyn Session>, String), LoadFailure>;

/// Serves one model over `socket` until `life` closes. The result is the exit code.
pub fn serve(
    socket: UnixStream,
    mut life: PipeReader,
    hook: Box<dyn ComputeHook + Send>,
    loader: Loader,
) -> i32 {
    if let Err(error) = send(&socket, &Message::Hello(Hello::own())) {
        tracing::error!(%error, "the worker cannot say its version");
        return EXIT_SOCKET;
    }
    let inbox = match socket.try_clone().and_then(Inbox::new) {
        Ok(inbox) => inbox,
        Err(error) => {
            tracing::error!(%error, "the worker cannot wait for its socket");
            return EXIT_SOCKET;
        }
    };
    let (over, ended) = channel();
    let busy = Arc::new(AtomicBool::new(false));
    let host_busy = busy.clone();
    thread::spawn(move || {
        let mut host = Host { socket, hook, loader, session: None, busy: host_busy };
        // A panic outside the engine ends the worker at once: the agent starts another.
        let code = catch_unwind(AssertUnwindSafe(|| host.carry_out_all(inbox)));
        // Nobody hears it once the agent is gone.
        let _ = over.send(code.unwrap_or(EXIT_PANIC));
        // The agent sees it, and lets go.
        let _ = host.socket.shutdown(Shutdown::Both);
    });
    let read = loop {
        match life.read(&mut [0]) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            read => break read,
        }
    };
    match read {
        Ok(0) => last_words(&ended, &busy),
        Ok(_) => EXIT_PROTOCOL,
        Err(error) => {
            tracing::error!(%error, "the worker's standard output is no pipe to be read");
            EXIT_SOCKET
        }
    }
}

/// The exit code once the agent has let go: what the engine's thread says, unless it is in an inference.
fn last_words(ended: &Receiver<i32>, busy: &AtomicBool) -> i32 {
    let began = Instant::now();
    while began.elapsed() < LAST_WORDS {
        match ended.recv_timeout(LAST_WORDS_STEP) {
            Ok(code) => return code,
            Err(RecvTimeoutError::Disconnected) => return EXIT_PANIC,
            Err(RecvTimeoutError::Timeout) if busy.load(Ordering::SeqCst) => return EXIT_CLOSED,
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
    EXIT_CLOSED
}

enum Order {
    Load(LoadRequest),
    Run { id: u64, tensors: NamedTensors },
}

type RunResult = Result<NamedTensors, (FailureKind, String)>;

/// The next order, or the exit code when there is none.
fn next_order(inbox: &mut Inbox) -> Result<Order, i32> {
    match inbox.next() {
        Ok(Some(Message::Load(load))) => Ok(Order::Load(load)),
        Ok(Some(Message::Run { id, tensors })) => Ok(Order::Run { id, tensors }),
        Ok(None) => Err(EXIT_CLOSED),
        // The agent went without reading an answer.
        Err(FrameError::Io(error)) if is_gone(&error) => Err(EXIT_CLOSED),
        Ok(Some(_)) => {
            Err(unreadable(&FrameError::Malformed("an answer where an order was due".to_owned())))
        }
        Err(error) => Err(unreadable(&error)),
    }
}

fn unreadable(error: &FrameError) -> i32 {
    tracing::error!(%error, "the worker cannot read what it was sent");
    EXIT_PROTOCOL
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

/// What carries the orders out.
struct Host {
    socket: UnixStream,
    hook: Box<dyn ComputeHook + Send>,
    loader: Loader,
    session: Option<Box<dyn Session>>,
    /// Whether an order is being carried out.
    busy: Arc<AtomicBool>,
}

impl Host {
    /// Carries out order after order, and answers each. The result is the exit code.
    fn carry_out_all(&mut self, mut inbox: Inbox) -> i32 {
        loop {
            let order = match next_order(&mut inbox) {
                Ok(order) => order,
                Err(code) => return code,
            };
            self.busy.store(true, Ordering::SeqCst);
            let (answer, end) = match order {
                Order::Load(request) => self.load(&request),
                Order::Run { id, tensors } => self.run(id, &tensors),
            };
            self.busy.store(false, Ordering::SeqCst);
            match send(&self.socket, &answer) {
                Ok(()) => {}
                Err(FrameError::Io(error)) if is_gone(&error) => return EXIT_CLOSED,
                Err(error) => {
                    tracing::error!(%error, "the worker cannot answer");
                    return EXIT_SOCKET;
                }
            }
            if let Some(code) = end {
                return code;
            }
        }
    }

    fn load(&mut self, request: &LoadRequest) -> (Message, Option<i32>) {
        self.hook.loading(&request.model);
        match guarded(|| (self.loader)(request), device) {
            Ok((loaded, engine_version)) => {
                let reply = LoadedReply {
                    inputs: ports(loaded.inputs()),
                    outputs: ports(loaded.outputs()),
                    engine_version,
                };
                self.session = Some(loaded);
                (Message::Loaded(reply), None)
            }
            Err(failure) => (Message::LoadFailed(failure), Some(EXIT_LOAD)),
        }
    }

    fn run(&mut self, id: u64, tensors: &NamedTensors) -> (Message, Option<i32>) {
        let Some(session) = &mut self.session else {
            let (kind, error) = (FailureKind::Fatal, "no model is loaded".to_owned());
            return (Message::Failed(Failure { id, kind, error }), Some(EXIT_PANIC));
        };
        let clock: fn() -> Duration =
            if self.hook.wants_cpu() { process_cpu } else { Duration::default };
        let repeats = self.hook.repeats();
        let (took, result) = measured_run(session.as_mut(), tensors, repeats, clock);
        run_answer(id, result, || self.hook.after_run(took))
    }
}

fn run_answer(
    id: u64,
    result: RunResult,
    report: impl FnOnce() -> Duration,
) -> (Message, Option<i32>) {
    match result {
        Ok(tensors) => {
            let compute_us = u64::try_from(report().as_micros()).unwrap_or(u64::MAX);
            let ran = Message::Ran { id, compute_us, tensors };
            (ran, None)
        }
        Err((kind, error)) => {
            let end = (kind == FailureKind::Fatal).then_some(EXIT_PANIC);
            (Message::Failed(Failure { id, kind, error }), end)
        }
    }
}

/// Outputs too large for a frame fail that run, not the worker.
fn send(mut socket: &UnixStream, message: &Message) -> Result<(), FrameError> {
    let frame = match (message.encode(), message) {
        (Err(error @ FrameError::TooLong { .. }), Message::Ran { id, .. }) => {
            Message::Failed(Failure {
                id: *id,
                kind: FailureKind::Engine,
                error: format!("the outputs cannot be sent: {error}"),
            })
            .encode()?
        }
        (frame, _) => frame?,
    };
    socket.write_all(&frame)?;
    Ok(())
}

/// A failure that says nothing about the model.
fn device(error: String) -> LoadFailure {
    LoadFailure { fault: LoadFault::Device, error }
}

/// Runs an inference, repeats it, and says what the fastest run took and what the last one gave.
fn measured_run(
    session: &mut dyn Session,
    tensors: &NamedTensors,
    repeats: usize,
    cpu_clock: fn() -> Duration,
) -> (Took, RunResult) {
    let began = Instant::now();
    let (mut took, mut result) = timed_run(session, tensors, cpu_clock);
    for _ in 0..repeats {
        if result.is_err() {
            break;
        }
        let (again, latest) = timed_run(session, tensors, cpu_clock);
        if again.wall < took.wall {
            took = again;
        }
        result = latest;
    }
    (Took { all_runs: began.elapsed(), shapes: shapes_of(tensors), ..took }, result)
}

fn timed_run(
    session: &mut dyn Session,
    tensors: &NamedTensors,
    cpu_clock: fn() -> Duration,
) -> (Took, RunResult) {
    let (started, cpu) = (Instant::now(), cpu_clock());
    let result = guarded(|| run(session, tensors), |error| (FailureKind::Fatal, error));
    let wall = started.elapsed();
    (Took { wall, cpu: cpu_clock().saturating_sub(cpu), ..Took::default() }, result)
}

fn shapes_of(tensors: &NamedTensors) -> u64 {
    let mut hasher = DefaultHasher::new();
    for (name, tensor) in tensors {
        (name, &tensor.shape).hash(&mut hasher);
    }
    hasher.finish()
}

/// CPU time of all threads of this process, those that have ended among them.
fn process_cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    // Neither part is ever negative or large.
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

fn run(session: &mut dyn Session, tensors: &NamedTensors) -> RunResult {
    let inputs: Vec<(&str, &Tensor)> = tensors.iter().map(|(n, t)| (n.as_str(), t)).collect();
    session.run(&inputs).map_err(|error| {
        let kind = match error.kind() {
            ErrorKind::Input => FailureKind::Input,
            _ => FailureKind::Engine,
        };
        (kind, error.to_string())
    })
}

/// A panic in an engine leaves its session in an unknown state: it is reported, and the worker ends.
fn guarded<T, E>(
    work: impl FnOnce() -> Result<T, E>,
    panicked: impl FnOnce(String) -> E,
) -> Result<T, E> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic_text(panic.as_ref());
        Err(panicked(format!("the engine panicked: {text}")))
    })
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

#[cfg(test)]
mod tests;
