//! The worker process: one model in one engine, driven over the socket that is its standard input. It gets
//! the engine from its caller: `espalier-worker` brings the real ones, and the agent links none.
//!
//! Three threads, so that none can keep another from seeing that the agent is gone. One reads orders. One
//! holds the engine, carries them out and answers them, so that an inference waits for one other thread
//! only. [`main`]'s own waits for either to say that it is over: when the socket closes it returns even if an
//! inference is still running; the process ends and takes it along.

use std::any::Any;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use engine::{ErrorKind, Session, Tensor};

use super::protocol::{
    Failure, FailureKind, FrameError, Hello, LoadFailure, LoadFault, LoadRequest, LoadedReply,
    Message, NamedTensors, ports, read_frame,
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

/// Serves one model over standard input until that closes. The result is the exit code.
pub fn main(hook: Box<dyn ComputeHook + Send>, loader: Loader) -> i32 {
    match io::stdin().as_fd().try_clone_to_owned() {
        Ok(socket) => serve(UnixStream::from(socket), hook, loader),
        Err(error) => {
            tracing::error!(%error, "the worker has no socket as its standard input");
            EXIT_SOCKET
        }
    }
}

/// Loads a model: the session, and the engine's name and version.
pub type Loader = fn(&LoadRequest) -> Result<(Box<dyn Session>, String), LoadFailure>;

/// Serves one model over `socket` until it closes. The result is the exit code.
pub fn serve(socket: UnixStream, hook: Box<dyn ComputeHook + Send>, loader: Loader) -> i32 {
    if let Err(error) = send(&socket, &Message::Hello(Hello::own())) {
        tracing::error!(%error, "the worker cannot say its version");
        return EXIT_SOCKET;
    }
    let reader = match socket.try_clone() {
        Ok(reader) => reader,
        Err(error) => {
            tracing::error!(%error, "the worker cannot share its socket");
            return EXIT_SOCKET;
        }
    };
    let (over, ended) = channel();
    let (orders, inbox) = channel();
    let last = Arc::new(AtomicBool::new(false));
    let (reader_over, answered_last) = (over.clone(), last.clone());
    thread::spawn(move || {
        let code = read_all(reader, &orders);
        // Once the last answer is on its way, what comes of it is the engine's thread's to say.
        if !answered_last.load(Ordering::SeqCst) {
            // Nobody hears it where that thread was faster.
            let _ = reader_over.send(code);
        }
    });
    thread::spawn(move || {
        let mut host = Host { socket, hook, loader, session: None, last };
        // A panic outside the engine ends the worker at once: the agent starts another.
        let code = catch_unwind(AssertUnwindSafe(|| host.carry_out_all(&inbox)));
        if let Some(code) = code.unwrap_or(Some(EXIT_PANIC)) {
            // Nobody hears it where the reader was faster.
            let _ = over.send(code);
        }
    });
    ended.recv().unwrap_or(EXIT_PANIC)
}

enum Order {
    Load(LoadRequest),
    Run { id: u64, tensors: NamedTensors },
}

type RunResult = Result<NamedTensors, (FailureKind, String)>;

/// Passes orders on until there are no more. The result is the exit code.
///
/// The agent sends one order and waits for its answer, so the channel holds one message or two; it has no
/// bound of its own.
fn read_all(socket: UnixStream, orders: &Sender<Order>) -> i32 {
    let mut socket = BufReader::new(socket);
    loop {
        let order = match read_frame(&mut socket) {
            Ok(None) => return EXIT_CLOSED,
            Ok(Some(body)) => match Message::decode(&body) {
                Ok(Message::Load(load)) => Ok(Order::Load(load)),
                Ok(Message::Run { id, tensors }) => Ok(Order::Run { id, tensors }),
                Ok(_) => Err(FrameError::Malformed("an answer where an order was due".to_owned())),
                Err(error) => Err(error),
            },
            Err(error) => Err(error),
        };
        match order {
            Ok(order) => {
                // The engine's thread has ended, and said why unless it panicked.
                if orders.send(order).is_err() {
                    return EXIT_PANIC;
                }
            }
            Err(error) => {
                tracing::error!(%error, "the worker cannot read what it was sent");
                return EXIT_PROTOCOL;
            }
        }
    }
}

/// What carries the orders out.
struct Host {
    socket: UnixStream,
    hook: Box<dyn ComputeHook + Send>,
    loader: Loader,
    session: Option<Box<dyn Session>>,
    /// Set before the last answer is sent.
    last: Arc<AtomicBool>,
}

impl Host {
    /// Carries out order after order, and answers each. The exit code, unless it is the reader that has to
    /// say why no more orders come.
    fn carry_out_all(&mut self, orders: &Receiver<Order>) -> Option<i32> {
        while let Ok(order) = orders.recv() {
            let (answer, end) = match order {
                Order::Load(request) => self.load(&request),
                Order::Run { id, tensors } => self.run(id, &tensors),
            };
            if end.is_some() {
                self.last.store(true, Ordering::SeqCst);
            }
            if let Err(error) = send(&self.socket, &answer) {
                tracing::error!(%error, "the worker cannot answer");
                return Some(EXIT_SOCKET);
            }
            if end.is_some() {
                return end;
            }
        }
        None
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
