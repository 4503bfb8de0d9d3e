//! A metric that a command of the user's computes.
//!
//! The command is given the model's path as its last argument but one and the data's as its last (the
//! model's alone where there is no data), and prints one JSON object:
//! `{"metric": number, "per_sample": [numbers]?, "higher_is_better": bool}`.
//!
//! It runs as the leader of a process group of its own, which is killed as a whole at the timeout, on
//! cancelling, and when the command ends, so that nothing it started outlives it.

use std::collections::VecDeque;
use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use serde::{Deserialize, Serialize};

/// The most bytes that a command may print to standard output.
pub const MAX_OUTPUT_BYTES: usize = 64 << 20;
/// The most numbers in `per_sample`.
pub const MAX_PER_SAMPLE: usize = 5_000_000;
/// How much of the end of standard error an error shows.
pub const SHOWN_BYTES: usize = 2_000;
/// Between two looks at whether the caller has cancelled or the command has ended.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// For its output to arrive once the command and its group are gone; what keeps a pipe open longer has
/// left the group.
const DRAIN: Duration = Duration::from_secs(2);

/// A command that measures a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct External {
    /// Program and arguments.
    pub command: Vec<String>,
    /// How long one evaluation may take.
    pub timeout: Duration,
}

/// What a command found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evaluation {
    /// The value over all samples.
    pub metric: f64,
    /// The value of each sample, for the paired bootstrap of their mean.
    #[serde(default)]
    pub per_sample: Option<Vec<f64>>,
    /// Whether more is better.
    pub higher_is_better: bool,
}

/// Why an evaluation has no result.
#[derive(Debug, thiserror::Error)]
#[error("evaluator `{command}` on {model}: {failure}", model = .model.display())]
pub struct EvaluateError {
    /// The program.
    pub command: String,
    /// The model that it was given.
    pub model: std::path::PathBuf,
    /// What went wrong.
    pub failure: Failure,
}

/// What went wrong with a command.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum Failure {
    #[error("no program is named")]
    NoCommand,
    #[error("cannot be started: {0}")]
    Start(std::io::Error),
    #[error("did not end within its timeout of {0:?}")]
    Timeout(Duration),
    #[error("was cancelled")]
    Cancelled,
    #[error("printed more than MAX_OUTPUT_BYTES = {MAX_OUTPUT_BYTES}")]
    TooMuchOutput,
    #[error("ended with exit code {code}; its last words: {words}")]
    ExitCode { code: i32, words: String },
    #[error("was ended by signal {signal}; its last words: {words}")]
    Signal { signal: i32, words: String },
    #[error("ended, but something it started left its process group and keeps its output open")]
    OutputHeld,
    #[error("cannot be waited for or read: {0}")]
    Io(std::io::Error),
    #[error(
        "printed no JSON object of metric, per_sample and higher_is_better: {why}; it printed: {printed}"
    )]
    Malformed { why: String, printed: String },
    #[error("{what} is not a finite number")]
    NotFinite { what: String },
    #[error("per_sample has {found} numbers, more than MAX_PER_SAMPLE = {MAX_PER_SAMPLE}")]
    TooManySamples { found: usize },
    #[error("per_sample is empty; leave it out if there is none")]
    NoSamples,
}

impl External {
    /// Runs the command on a model, and ends it once `cancelled` says so.
    ///
    /// # Errors
    /// See [`Failure`].
    pub fn evaluate(
        &self,
        model: &Path,
        data: Option<&Path>,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Evaluation, EvaluateError> {
        self.run(model, data, cancelled).and_then(|printed| parse(&printed)).map_err(|failure| {
            EvaluateError {
                command: self.command.first().cloned().unwrap_or_default(),
                model: model.to_path_buf(),
                failure,
            }
        })
    }

    fn run(
        &self,
        model: &Path,
        data: Option<&Path>,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Vec<u8>, Failure> {
        let (program, arguments) = self.command.split_first().ok_or(Failure::NoCommand)?;
        let child = Command::new(program)
            .args(arguments)
            .arg(model)
            .args(data)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(Failure::Start)?;
        let deadline = Instant::now().checked_add(self.timeout);
        let mut running = Running::new(child)?;
        let status = running.wait(deadline, self.timeout, cancelled)?;
        let (printed, words) = running.output()?;
        match (status.code(), status.signal()) {
            (Some(0), _) => Ok(printed),
            (Some(code), _) => Err(Failure::ExitCode { code, words }),
            (None, signal) => Err(Failure::Signal { signal: signal.unwrap_or_default(), words }),
        }
    }
}

/// What the readers of the two pipes report.
enum Heard {
    Printed(Vec<u8>),
    Words(String),
    TooMuch,
    Failed(std::io::Error),
}

/// A started command; dropping it kills its group.
struct Running {
    child: Child,
    group: Option<Pid>,
    heard: Receiver<Heard>,
    printed: Option<Vec<u8>>,
    words: Option<String>,
}

impl Running {
    fn new(mut child: Child) -> Result<Self, Failure> {
        let (told, heard) = channel();
        let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let running = Self { child, group, heard, printed: None, words: None };
        let spawn = |name: &str, read: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new().name(name.into()).spawn(read).map_err(Failure::Io)
        };
        if let Some(stdout) = stdout {
            let told: Sender<Heard> = told.clone();
            spawn("evaluator-output", Box::new(move || drop(told.send(read_output(stdout)))))?;
        }
        if let Some(stderr) = stderr {
            spawn("evaluator-errors", Box::new(move || drop(told.send(read_words(stderr)))))?;
        }
        Ok(running)
    }

    /// Until the command ends; its group is killed before its number is free for others.
    fn wait(
        &mut self,
        deadline: Option<Instant>,
        timeout: Duration,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<ExitStatus, Failure> {
        while !self.ended()? {
            if cancelled() {
                return Err(Failure::Cancelled);
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Err(Failure::Timeout(timeout));
            }
            self.listen(LOOK_EVERY)?;
        }
        self.kill();
        self.child.wait().map_err(Failure::Io)
    }

    /// Whether the command has ended, without collecting it.
    fn ended(&self) -> Result<bool, Failure> {
        let Some(pid) = self.group else { return Ok(true) };
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        match waitid(WaitId::Pid(pid), options) {
            Ok(state) => Ok(state.is_some()),
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(error) => Err(Failure::Io(error.into())),
        }
    }

    /// Takes a report of the readers, if one comes within `patience`.
    fn listen(&mut self, patience: Duration) -> Result<bool, Failure> {
        match self.heard.recv_timeout(patience) {
            Ok(Heard::Printed(bytes)) => self.printed = Some(bytes),
            Ok(Heard::Words(words)) => self.words = Some(words),
            Ok(Heard::TooMuch) => return Err(Failure::TooMuchOutput),
            Ok(Heard::Failed(error)) => return Err(Failure::Io(error)),
            Err(RecvTimeoutError::Timeout) => return Ok(false),
            // Both have reported; what is left is to wait for the end.
            Err(RecvTimeoutError::Disconnected) => std::thread::sleep(patience),
        }
        Ok(true)
    }

    fn output(&mut self) -> Result<(Vec<u8>, String), Failure> {
        loop {
            if let (Some(printed), Some(words)) = (&mut self.printed, &mut self.words) {
                return Ok((std::mem::take(printed), std::mem::take(words)));
            }
            if !self.listen(DRAIN)? {
                return Err(Failure::OutputHeld);
            }
        }
    }

    fn kill(&mut self) {
        if let Some(group) = self.group.take() {
            // A group that is already gone is what was wanted.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
        // Collects the command, which cannot outlive the signal.
        let _ = self.child.wait();
    }
}

fn read_output(pipe: impl Read) -> Heard {
    let mut printed = Vec::new();
    match pipe.take(MAX_OUTPUT_BYTES as u64 + 1).read_to_end(&mut printed) {
        Ok(_) if printed.len() > MAX_OUTPUT_BYTES => Heard::TooMuch,
        Ok(_) => Heard::Printed(printed),
        Err(error) => Heard::Failed(error),
    }
}

/// The end of what is said, in bounded memory however much it is.
fn read_words(mut pipe: impl Read) -> Heard {
    let mut last: VecDeque<u8> = VecDeque::new();
    let mut chunk = [0u8; 4096];
    loop {
        match pipe.read(&mut chunk) {
            Ok(0) => break,
            Ok(n) => {
                last.extend(&chunk[..n]);
                last.drain(..last.len().saturating_sub(SHOWN_BYTES));
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Heard::Failed(error),
        }
    }
    let bytes: Vec<u8> = last.into();
    let words = String::from_utf8_lossy(&bytes).trim().to_owned();
    Heard::Words(if words.is_empty() { "none".into() } else { words })
}

/// The object that was printed.
fn parse(printed: &[u8]) -> Result<Evaluation, Failure> {
    let evaluation: Evaluation = serde_json::from_slice(printed).map_err(|error| {
        let text = String::from_utf8_lossy(printed);
        // What Python's json.dumps writes for numbers that JSON does not have.
        match ["NaN", "Infinity"].into_iter().find(|bad| text.contains(bad)) {
            Some(bad) => Failure::NotFinite { what: format!("a value of {bad}") },
            None => Failure::Malformed { why: error.to_string(), printed: beginning(&text) },
        }
    })?;
    if !evaluation.metric.is_finite() {
        return Err(Failure::NotFinite { what: "metric".into() });
    }
    if let Some(values) = &evaluation.per_sample {
        if values.is_empty() {
            return Err(Failure::NoSamples);
        }
        if values.len() > MAX_PER_SAMPLE {
            return Err(Failure::TooManySamples { found: values.len() });
        }
        if let Some(at) = values.iter().position(|v| !v.is_finite()) {
            return Err(Failure::NotFinite { what: format!("per_sample[{at}]") });
        }
    }
    Ok(evaluation)
}

fn beginning(text: &str) -> String {
    let short: String = text.trim().chars().take(200).collect();
    if short.is_empty() { "nothing".into() } else { format!("\"{short}\"") }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "external_tests.rs"]
mod tests;
