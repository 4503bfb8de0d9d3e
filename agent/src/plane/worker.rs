//! The worker process: one model in one engine, driven over the socket that is its standard input.
//!
//! Three threads, so that none can keep another from seeing that the agent is gone: one reads
//! frames, one holds the engine and runs, and [`main`]'s own answers. When the socket closes,
//! [`main`] returns even if an inference is still running; the process ends and takes it along.

use std::any::Any;
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use runtime::{EngineOptions, ErrorKind, LoadOptions, Session, Tensor};

use super::protocol::{
    Failure, FailureKind, FrameError, LoadFailure, LoadFault, LoadRequest, LoadedReply, Message,
    NamedTensors, ports, read_frame,
};

/// The exit code after the agent closed the socket: the ordinary end.
pub const EXIT_CLOSED: i32 = 0;
/// The exit code when the model cannot be loaded.
pub const EXIT_LOAD: i32 = 65;
/// The exit code after the engine panicked.
pub const EXIT_PANIC: i32 = 70;
/// The exit code when the socket failed.
pub const EXIT_SOCKET: i32 = 74;
/// The exit code when what arrived was not the protocol.
pub const EXIT_PROTOCOL: i32 = 76;

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

    /// Takes what the inference took and gives the time to report. It may take time itself: the
    /// answer waits for it.
    fn after_run(&mut self, took: Took) -> Duration;
}

/// What one inference took of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Took {
    /// Wall time, of the fastest run.
    pub wall: Duration,
    /// CPU time of all threads of this process during that run.
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
    fn after_run(&mut self, took: Took) -> Duration {
        took.wall
    }
}

/// Serves one model over standard input until that closes. The result is the exit code.
pub fn main(hook: &mut dyn ComputeHook) -> i32 {
    match io::stdin().as_fd().try_clone_to_owned() {
        Ok(socket) => serve(UnixStream::from(socket), hook),
        Err(error) => {
            tracing::error!(%error, "the worker has no socket as its standard input");
            EXIT_SOCKET
        }
    }
}

/// Serves one model over `socket` until it closes. The result is the exit code.
pub fn serve(socket: UnixStream, hook: &mut dyn ComputeHook) -> i32 {
    serve_with(socket, hook, load)
}

/// Loads a model: the session, and the engine's name and version.
pub(super) type Loader = fn(&LoadRequest) -> Result<(Box<dyn Session>, String), LoadFailure>;

/// As [`serve`], with an engine of the caller's.
pub(super) fn serve_with(socket: UnixStream, hook: &mut dyn ComputeHook, loader: Loader) -> i32 {
    let reader = match socket.try_clone() {
        Ok(reader) => reader,
        Err(error) => {
            tracing::error!(%error, "the worker cannot share its socket");
            return EXIT_SOCKET;
        }
    };
    let (events, inbox) = channel();
    let (orders, engine_inbox) = channel();
    let from_reader = events.clone();
    thread::spawn(move || read_all(reader, &from_reader));
    thread::spawn(move || drive_engine(&engine_inbox, &events, loader));
    answer_all(&socket, &inbox, &orders, hook)
}

enum Event {
    Order(Order),
    Closed,
    Unreadable(FrameError),
    Loaded(Result<LoadedReply, LoadFailure>),
    Ran { id: u64, took: Took, result: RunResult },
}

type RunResult = Result<NamedTensors, (FailureKind, String)>;

enum Order {
    Load(LoadRequest),
    Run(Run),
}

/// One inference.
struct Run {
    id: u64,
    tensors: NamedTensors,
    repeats: usize,
}

/// The agent sends one order and waits for its answer, so these channels hold one message or two;
/// they have no bound of their own.
fn read_all(mut socket: UnixStream, events: &Sender<Event>) {
    loop {
        let event = match read_frame(&mut socket) {
            Ok(None) => Event::Closed,
            Ok(Some(body)) => match Message::decode(&body) {
                Ok(Message::Load(load)) => Event::Order(Order::Load(load)),
                Ok(Message::Run { id, tensors }) => {
                    Event::Order(Order::Run(Run { id, tensors, repeats: 0 }))
                }
                Ok(_) => Event::Unreadable(FrameError::Malformed(
                    "an answer where an order was due".to_owned(),
                )),
                Err(error) => Event::Unreadable(error),
            },
            Err(error) => Event::Unreadable(error),
        };
        let last = !matches!(event, Event::Order(_));
        if events.send(event).is_err() || last {
            return;
        }
    }
}

fn answer_all(
    socket: &UnixStream,
    inbox: &Receiver<Event>,
    orders: &Sender<Order>,
    hook: &mut dyn ComputeHook,
) -> i32 {
    while let Ok(event) = inbox.recv() {
        let (answer, end) = match event {
            Event::Closed => return EXIT_CLOSED,
            Event::Unreadable(error) => {
                tracing::error!(%error, "the worker cannot read what it was sent");
                return EXIT_PROTOCOL;
            }
            Event::Order(mut order) => {
                match &mut order {
                    Order::Load(request) => hook.loading(&request.model),
                    Order::Run(run) => run.repeats = hook.repeats(),
                }
                if orders.send(order).is_err() {
                    return EXIT_PANIC;
                }
                continue;
            }
            Event::Loaded(Ok(reply)) => (Message::Loaded(reply), None),
            Event::Loaded(Err(failure)) => (Message::LoadFailed(failure), Some(EXIT_LOAD)),
            Event::Ran { id, took, result } => run_answer(id, result, || hook.after_run(took)),
        };
        if let Err(error) = send(socket, &answer) {
            tracing::error!(%error, "the worker cannot answer");
            return EXIT_SOCKET;
        }
        if let Some(code) = end {
            return code;
        }
    }
    EXIT_PANIC
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

fn drive_engine(orders: &Receiver<Order>, events: &Sender<Event>, loader: Loader) {
    let mut session: Option<Box<dyn Session>> = None;
    while let Ok(order) = orders.recv() {
        let event = match order {
            Order::Load(request) => {
                let loaded = guarded(|| loader(&request), |error| device(&error));
                Event::Loaded(loaded.map(|(loaded, engine_version)| {
                    let reply = LoadedReply {
                        inputs: ports(loaded.inputs()),
                        outputs: ports(loaded.outputs()),
                        engine_version,
                    };
                    session = Some(loaded);
                    reply
                }))
            }
            Order::Run(order) => {
                let (took, result) = match &mut session {
                    Some(session) => measured_run(session.as_mut(), &order),
                    None => {
                        let error = (FailureKind::Fatal, "no model is loaded".to_owned());
                        (Took::default(), Err(error))
                    }
                };
                Event::Ran { id: order.id, took, result }
            }
        };
        if events.send(event).is_err() {
            return;
        }
    }
}

fn load(request: &LoadRequest) -> Result<(Box<dyn Session>, String), LoadFailure> {
    let kind = request.engine.parse();
    let kind = kind.map_err(|e: runtime::UnknownEngine| device(&e))?;
    let engine = runtime::open(&EngineOptions {
        kind,
        threads: request.threads,
        ort_library: request.ort_library.clone(),
    })
    .map_err(|e| device(&e))?;
    // Engines report a file that cannot be read as they report a bad model.
    let readable = File::open(&request.model);
    readable.map_err(|e| device(&format!("{}: {e}", request.model.display())))?;
    let loaded = engine.load(&request.model, &LoadOptions::default());
    let session = loaded.map_err(|e| match e.kind() {
        ErrorKind::Library => device(&e),
        _ => LoadFailure { fault: LoadFault::Model, error: e.to_string() },
    })?;
    let version = format!("{} {}", engine.kind(), engine.version());
    Ok((session, version))
}

/// A failure that says nothing about the model.
fn device(error: &dyn std::fmt::Display) -> LoadFailure {
    LoadFailure { fault: LoadFault::Device, error: error.to_string() }
}

/// Runs an inference, repeats it, and says what the fastest run took and what the last one gave.
fn measured_run(session: &mut dyn Session, order: &Run) -> (Took, RunResult) {
    let began = Instant::now();
    let (mut took, mut result) = timed_run(session, &order.tensors);
    for _ in 0..order.repeats {
        if result.is_err() {
            break;
        }
        let (again, latest) = timed_run(session, &order.tensors);
        if again.wall < took.wall {
            took = again;
        }
        result = latest;
    }
    (Took { all_runs: began.elapsed(), shapes: shapes_of(&order.tensors), ..took }, result)
}

fn timed_run(session: &mut dyn Session, tensors: &NamedTensors) -> (Took, RunResult) {
    let (started, cpu) = (Instant::now(), process_cpu());
    let result = guarded(|| run(session, tensors), |error| (FailureKind::Fatal, error));
    let wall = started.elapsed();
    (Took { wall, cpu: process_cpu().saturating_sub(cpu), ..Took::default() }, result)
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
