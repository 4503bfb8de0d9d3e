//! Runs a model over samples in the target's engine and hands out its outputs, batch by batch, in the
//! samples' order.
//!
//! Inner activations become visible by appending them to the graph's outputs. Several sessions run side by side, one
//! thread each, because an engine of one thread would leave the other cores idle; results are handed
//! out in order all the same, so that sums do not depend on timing. What the caller keeps of a
//! batch is the caller's: memory here is bounded by the batches in flight, one for each session and the one taken.

use std::borrow::Cow;
use std::ops::{ControlFlow, Range};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, sync_channel};

use graph::{Cause, Edit, Model, ValueId};
use runtime::{Engine, EngineError, EngineKind, EngineOptions, LoadOptions, Session, Tensor};

use crate::data::Dataset;
use crate::error::CompressError;
use crate::pipeline::Progress;

/// The most samples run at once in one session, where the model's first axis is free.
pub const BATCH: usize = 4;
/// Samples whose inputs take so many bytes or more are run one at a time: their intermediate values are what memory is
/// bounded by, and what a run costs beside its computing is nothing to them.
const LARGE_SAMPLE: usize = 64 << 10;
/// The most sessions side by side.
pub const MAX_SESSIONS: usize = 8;

/// An engine with as many sessions as there are cores.
pub struct Runner {
    engine: Box<dyn Engine>,
    sessions: usize,
}

/// Samples run at once. Fixed for an engine rather than timed, because a batch's size may change the last
/// bits of a sum. tract takes 17 ms a sample of the file-type classifier in batches of 3 and 11 alone
/// (its intermediate values leave the cache); ONNX Runtime takes 8 ms either way.
fn batch(kind: EngineKind, sample_bytes: usize) -> usize {
    match kind {
        EngineKind::Tract => 1,
        EngineKind::Ort if sample_bytes >= LARGE_SAMPLE => 1,
        EngineKind::Ort => BATCH,
    }
}

/// Gives the inputs of a run.
pub type Feed<'a> =
    &'a (dyn Fn(usize) -> Result<Vec<(String, Cow<'a, Tensor>)>, EngineError> + Sync);

/// One batch's outputs.
#[derive(Debug)]
pub struct Batch {
    /// Indices of the samples.
    pub samples: Vec<usize>,
    /// The model's outputs, in its order, for these samples.
    pub outputs: Vec<(String, Tensor)>,
}

impl Runner {
    /// Opens the engine of `options`, with one thread for each session.
    ///
    /// # Errors
    /// The engine cannot be opened.
    pub fn open(options: &EngineOptions) -> Result<Self, CompressError> {
        let single = EngineOptions { threads: 1, ..options.clone() };
        let engine = runtime::open(&single)
            .map_err(CompressError::engine(format!("opening the engine {}", options.kind)))?;
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Ok(Self { engine, sessions: cores.clamp(1, MAX_SESSIONS) })
    }

    /// The engine's version, with its name.
    pub fn describe(&self) -> String {
        format!("{} {}", self.engine.kind(), self.engine.version())
    }

    /// What `range` of `data` is run in.
    pub fn batches(&self, data: &Dataset, range: Range<usize>) -> Vec<Vec<usize>> {
        data.batches(range, batch(self.engine.kind(), data.sample_bytes()))
    }

    /// Runs samples `range` of `data` through the model file and gives each batch to `sink`, in order,
    /// until it breaks.
    ///
    /// # Errors
    /// The model cannot be loaded or run, the sink's own error, or the caller asked to stop.
    pub fn run(
        &self,
        model: &Path,
        data: &Dataset,
        range: Range<usize>,
        progress: &dyn Progress,
        sink: &mut dyn FnMut(Batch) -> Result<ControlFlow<()>, CompressError>,
    ) -> Result<(), CompressError> {
        let batches = self.batches(data, range.clone());
        let size = batches.first().map_or(1, Vec::len);
        let mut sessions = self.load_all(model, Some(size), batches.len())?;
        if size > 1 && !self.splits(&mut sessions, data, &batches[0])? {
            let batches = data.batches(range, 1);
            let mut sessions = self.load_all(model, Some(1), batches.len())?;
            return drive_samples(&mut sessions, data, &batches, 1, progress, sink);
        }
        drive_samples(&mut sessions, data, &batches, size, progress, sink)
    }

    /// Runs the model file on the inputs that `feed` gives for each of `count` runs, and gives what came out, with the
    /// number of the run, to `sink`, in order.
    ///
    /// # Errors
    /// The model cannot be loaded or run, the feed's or the sink's own error, or the caller asked to stop.
    pub fn run_fed(
        &self,
        model: &Path,
        count: usize,
        feed: Feed<'_>,
        progress: &dyn Progress,
        sink: &mut dyn FnMut(usize, Vec<(String, Tensor)>) -> Result<(), CompressError>,
    ) -> Result<(), CompressError> {
        let mut sessions = self.load_all(model, None, count)?;
        let run = |session: &mut dyn Session, at: usize| {
            let inputs = feed(at)?;
            let named: Vec<(&str, &Tensor)> = inputs.iter().map(|(n, t)| (&**n, &**t)).collect();
            session.run(&named)
        };
        let what = |at: usize| format!("running batch {at} of {}", model.display());
        drive(&mut sessions, count, &run, &what, progress, &mut |at, outputs| {
            sink(at, outputs).map(ControlFlow::Continue)
        })
    }

    /// Loads `model` into one session.
    ///
    /// # Errors
    /// The engine does not take it.
    pub fn load(
        &self,
        model: &Path,
        options: &LoadOptions,
    ) -> Result<Box<dyn Session>, EngineError> {
        self.engine.load(model, options)
    }

    fn load_all(
        &self,
        model: &Path,
        batch: Option<usize>,
        batches: usize,
    ) -> Result<Vec<Box<dyn Session>>, CompressError> {
        let options = LoadOptions { batch, keep_memory: true, ..LoadOptions::default() };
        let count = self.sessions.min(batches).max(1);
        let loaded: Vec<Result<Box<dyn Session>, EngineError>> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..count).map(|_| scope.spawn(|| self.engine.load(model, &options))).collect();
            threads.into_iter().map(join).collect()
        });
        loaded
            .into_iter()
            .collect::<Result<_, _>>()
            .map_err(CompressError::engine(format!("loading {}", model.display())))
    }

    /// Whether every output of a whole batch carries the samples on its first axis.
    fn splits(
        &self,
        sessions: &mut [Box<dyn Session>],
        data: &Dataset,
        batch: &[usize],
    ) -> Result<bool, CompressError> {
        let Some(session) = sessions.first_mut() else {
            return Ok(false);
        };
        let outputs = match run_one(session.as_mut(), data, batch, batch.len()) {
            Ok(outputs) => outputs,
            Err(_) => return Ok(false),
        };
        Ok(outputs.iter().all(|(_, tensor)| {
            tensor.shape.first().is_some_and(|d| *d > 0 && d.is_multiple_of(batch.len()))
        }))
    }
}

fn join<T>(
    thread: std::thread::ScopedJoinHandle<'_, Result<T, EngineError>>,
) -> Result<T, EngineError> {
    thread.join().unwrap_or_else(|_| Err(panicked()))
}

fn drive_samples(
    sessions: &mut [Box<dyn Session>],
    data: &Dataset,
    batches: &[Vec<usize>],
    size: usize,
    progress: &dyn Progress,
    sink: &mut dyn FnMut(Batch) -> Result<ControlFlow<()>, CompressError>,
) -> Result<(), CompressError> {
    let run = |session: &mut dyn Session, at: usize| run_one(session, data, &batches[at], size);
    let what =
        |at: usize| format!("running samples {:?} of {}", batches[at], data.file().display());
    let mut done = 0;
    drive(sessions, batches.len(), &run, &what, progress, &mut |at, outputs| {
        let samples = batches[at].clone();
        done += samples.len() as u64;
        progress.step(done);
        sink(Batch { samples, outputs })
    })
}

type Outputs = Vec<(String, Tensor)>;

/// Does run after run, each session every so many, and gives what comes out to `sink` in order, until it breaks. While the
/// sink takes one result, the sessions compute the next ones: each holds one result at most.
fn drive(
    sessions: &mut [Box<dyn Session>],
    count: usize,
    run: &(dyn Fn(&mut dyn Session, usize) -> Result<Outputs, EngineError> + Sync),
    what: &dyn Fn(usize) -> String,
    progress: &dyn Progress,
    sink: &mut dyn FnMut(usize, Outputs) -> Result<ControlFlow<()>, CompressError>,
) -> Result<(), CompressError> {
    let stride = sessions.len().max(1);
    std::thread::scope(|scope| {
        let results: Vec<Receiver<Result<Outputs, EngineError>>> = sessions
            .iter_mut()
            .enumerate()
            .map(|(first, session)| {
                let (give, take) = sync_channel(0);
                scope.spawn(move || {
                    for at in (first..count).step_by(stride) {
                        let result = caught(|| run(session.as_mut(), at));
                        let failed = result.is_err();
                        // Nobody takes it once the sink broke.
                        if give.send(result).is_err() || failed {
                            return;
                        }
                    }
                });
                take
            })
            .collect();
        for at in 0..count {
            if progress.cancelled() {
                return Err(CompressError::Cancelled("a pass over the samples".into()));
            }
            let result = results[at % stride].recv().unwrap_or_else(|_| Err(panicked()));
            let outputs = result.map_err(|error| CompressError::engine(what(at))(error))?;
            if sink(at, outputs)?.is_break() {
                break;
            }
        }
        Ok(())
    })
}

fn caught<T>(run: impl FnOnce() -> Result<T, EngineError>) -> Result<T, EngineError> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| Err(panicked()))
}

fn panicked() -> EngineError {
    EngineError::new(runtime::ErrorKind::Run, "the engine panicked")
}

/// Runs one batch. One that is short is filled up with its last sample, since the session may have a
/// fixed batch, and the filling is cut off the outputs.
fn run_one(
    session: &mut dyn Session,
    data: &Dataset,
    batch: &[usize],
    size: usize,
) -> Result<Vec<(String, Tensor)>, EngineError> {
    let mut filled = batch.to_vec();
    while let (true, Some(&last)) = (filled.len() < size, filled.last()) {
        filled.push(last);
    }
    let inputs = data.batch(&filled)?;
    let inputs: Vec<(&str, &Tensor)> = inputs.iter().map(|(n, t)| (n.as_str(), t)).collect();
    let mut outputs = session.run(&inputs)?;
    if batch.len() < size {
        for (_, tensor) in &mut outputs {
            cut(tensor, batch.len(), size);
        }
    }
    Ok(outputs)
}

fn cut(tensor: &mut Tensor, wanted: usize, size: usize) {
    if let Some(first) = tensor.shape.first_mut()
        && first.is_multiple_of(size)
    {
        *first = *first / size * wanted;
        tensor.data.truncate(tensor.data.len() / size * wanted);
        tensor.strings.truncate(tensor.strings.len() / size * wanted);
    }
}

/// A copy of `model` whose outputs are `values` and nothing else.
///
/// # Errors
/// A value cannot become an output.
pub fn observed(model: &Model, values: &[ValueId]) -> Result<Model, CompressError> {
    let mut copy = model.clone();
    let cause = Cause::new("calibrate", "observe activations");
    graph::apply(&mut copy.graph, Edit::SetOutputs { values: values.to_vec() }, &cause)
        .map_err(|e| CompressError::Graph { stage: "calibrate", what: e.to_string() })?;
    Ok(copy)
}

/// A folder for intermediate models that goes away with its owner.
#[derive(Debug)]
pub struct WorkDir {
    path: PathBuf,
}

impl WorkDir {
    /// A new folder in `parent`, or in the system's temporary folder. Its owner's end by a signal leaves it behind:
    /// a service gives a parent that it clears when it starts.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn new(parent: Option<&Path>) -> Result<Self, CompressError> {
        static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let parent = parent.map_or_else(std::env::temp_dir, Path::to_path_buf);
        loop {
            let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let path = parent.join(format!("espalier-{}-{number}", std::process::id()));
            match std::fs::create_dir(&path) {
                Ok(()) => return Ok(Self { path }),
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(CompressError::io(&path)(e)),
            }
        }
    }

    /// The path of `name` in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}
