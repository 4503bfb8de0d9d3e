//! A worker with an engine made for tests: `y = factor * x`, and inputs that make it misbehave.
//!
//! The worker process is this test program again, running [`child`] alone.

#![allow(clippy::unwrap_used)]
// The child is a test that stands for a program's main; nothing else of it may run on.
#![allow(clippy::disallowed_methods)]

use std::fs;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use bundle::{Bundle, Case, Draft, NamedTensor, SelfTest, Source, TensorSpec};
use engine::{ElementType, EngineError, ErrorKind, IoSpec, Session, Tensor};

use super::protocol::{LoadFailure, LoadFault, LoadRequest};
use super::worker::NoHook;
use super::{CandidateId, Plane, PlaneConfig};

/// First elements of an input that make the engine misbehave.
pub(crate) const ABORT: f32 = 1000.0;
pub(super) const PANIC: f32 = 1001.0;
pub(super) const GATE: f32 = 1002.0;
pub(super) const FAIL: f32 = 1003.0;
pub(super) const EXIT: f32 = 1004.0;
pub(super) const HOG: f32 = 1005.0;
/// The bytes that [`HOG`] takes.
pub(super) const HOGGED: usize = 1 << 30;

/// A model that doubles a row by itself, and gives something else for several.
pub(super) const MIXED: &str = "mixed";

/// Tells the child from a test run by hand.
const AS_WORKER: &str = "as-a-worker";

#[test]
#[ignore = "the worker process of other tests"]
fn child() {
    if std::env::args().any(|arg| arg == AS_WORKER) {
        std::process::exit(super::worker::main(Box::new(NoHook), load));
    }
}

/// A plane whose workers are fakes, its folder, and the gate at which [`GATE`] inputs wait.
pub(super) struct Bench {
    pub(super) plane: Plane,
    pub(super) folder: tempfile::TempDir,
}

impl Bench {
    pub(super) async fn start() -> Self {
        Self::with(|_| ()).await
    }

    pub(super) async fn with(change: impl FnOnce(&mut PlaneConfig)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut cfg = config(folder.path());
        change(&mut cfg);
        Self { plane: Plane::start(cfg).await.unwrap(), folder }
    }

    pub(super) fn bundle(&self, model: &str) -> Bundle {
        let digest = bundle::Digest::of(model.as_bytes()).to_string();
        let folder = self.folder.path().join(digest.trim_start_matches("sha256:"));
        if folder.exists() {
            return Bundle::open(&folder, &bundle::Limits::default()).unwrap();
        }
        let mut draft = Draft::new("double", model, Source::Bytes(model.into()));
        draft.inputs = vec![spec("x")];
        draft.outputs = vec![spec("y")];
        draft.selftest = golden(2.0);
        draft.write(&folder).unwrap()
    }

    /// Loads a model that multiplies by `model`, which is also its version and its digest.
    pub(super) async fn load(&self, model: &str) -> CandidateId {
        let bundle = self.bundle(model);
        self.plane.load("double", model, &bundle).await.unwrap()
    }

    pub(super) async fn serve(&self, model: &str) -> CandidateId {
        let candidate = self.load(model).await;
        self.plane.serve(candidate).await.unwrap();
        candidate
    }

    /// Where the next inference with a [`GATE`] input says that it runs, and waits for the
    /// connection to close.
    pub(super) fn gate(&self) -> tokio::net::UnixListener {
        let path = gate_path(&self.plane_dir());
        // An earlier gate's.
        let _ = fs::remove_file(&path);
        tokio::net::UnixListener::bind(path).unwrap()
    }

    fn plane_dir(&self) -> PathBuf {
        self.folder.path().join("run").canonicalize().unwrap()
    }
}

pub(crate) fn config(folder: &Path) -> PlaneConfig {
    PlaneConfig {
        engine: engine::EngineOptions::new(engine::EngineKind::Tract),
        worker_program: std::env::current_exe().unwrap(),
        worker_args: ["--exact", child_name(), "--ignored", "--nocapture", AS_WORKER]
            .map(str::to_owned)
            .to_vec(),
        worker_memory_bytes: None,
        worker_groups: None,
        http: Some("127.0.0.1:0".parse().unwrap()),
        unix: Some("oip.sock".into()),
        queue_depth: 2,
        batch: super::batch::BatchRules::OFF,
        max_request_bytes: 64 << 10,
        max_buffered_bytes: 256 << 10,
        request_deadline: Duration::from_secs(30),
        run_limit: Duration::from_secs(120),
        drift_sample_every: Duration::ZERO,
        run_dir: folder.join("run"),
        roots: crate::sys::Roots::default(),
    }
}

pub(super) fn golden(factor: f32) -> SelfTest {
    let named = |name: &str, values: [f32; 2]| NamedTensor {
        name: name.to_owned(),
        dtype: "FP32".to_owned(),
        dims: vec![1, 2],
        data: values.iter().flat_map(|v| v.to_le_bytes()).collect(),
    };
    let case = |x: [f32; 2]| Case {
        inputs: vec![named("x", x)],
        outputs: vec![named("y", x.map(|value| value * factor))],
    };
    SelfTest { cases: vec![case([3.0, 4.0]), case([-5.0, 6.0])], rtol: 1e-3, atol: 1e-6 }
}

pub(super) fn row(first: f32, second: f32) -> Vec<(String, Tensor)> {
    let tensor = Tensor::from_f32(vec![1, 2], &[first, second]).unwrap();
    vec![("x".to_owned(), tensor)]
}

pub(super) fn load(request: &LoadRequest) -> Result<(Box<dyn Session>, String), LoadFailure> {
    let failed = |fault, error| LoadFailure { fault, error };
    let text = fs::read_to_string(&request.model);
    let text = text.map_err(|e| failed(LoadFault::Device, e.to_string()))?;
    match text.trim() {
        "abort" => std::process::abort(),
        "panic" => panic!("asked to panic while loading"),
        "fails" => Ok(session(f32::NAN, Rows::Apart)),
        MIXED => Ok(session(2.0, Rows::Mixed)),
        // A thread with more of a stack than a worker under a limit can have.
        "thread" => match thread::Builder::new().stack_size(HOGGED).spawn(|| ()) {
            Ok(_) => Ok(session(2.0, Rows::Apart)),
            Err(error) => Err(failed(LoadFault::Model, error.to_string())),
        },
        text => {
            let factor = text.parse();
            let factor =
                factor.map_err(|_| failed(LoadFault::Model, format!("`{text}` is no model")))?;
            Ok(session(factor, Rows::Apart))
        }
    }
}

/// A session that multiplies; by NaN it fails every run.
fn session(factor: f32, rows: Rows) -> (Box<dyn Session>, String) {
    let session = Fake { inputs: vec![port("x")], outputs: vec![port("y")], factor, rows };
    (Box::new(session), "fake 1".to_owned())
}

/// Whether a row's answer depends on the others.
#[derive(PartialEq)]
enum Rows {
    Apart,
    Mixed,
}

struct Fake {
    inputs: Vec<IoSpec>,
    outputs: Vec<IoSpec>,
    factor: f32,
    rows: Rows,
}

impl Session for Fake {
    fn inputs(&self) -> &[IoSpec] {
        &self.inputs
    }

    fn outputs(&self) -> &[IoSpec] {
        &self.outputs
    }

    fn run(&mut self, inputs: &[(&str, &Tensor)]) -> Result<Vec<(String, Tensor)>, EngineError> {
        let x = engine::check_inputs(&self.inputs, inputs)?[0];
        let values = x.to_f32()?;
        if self.factor.is_nan() {
            return Err(EngineError::new(ErrorKind::Run, "fails always"));
        }
        for first in values.chunks(2).filter_map(|row| row.first()) {
            misbehave(*first)?;
        }
        let mixed = self.rows == Rows::Mixed && x.shape[0] > 1;
        let factor = if mixed { -self.factor } else { self.factor };
        let doubled: Vec<f32> = values.iter().map(|v| v * factor).collect();
        let y = Tensor::from_f32(x.shape.clone(), &doubled)?;
        Ok(vec![("y".to_owned(), y)])
    }
}

fn misbehave(first: f32) -> Result<(), EngineError> {
    match first {
        ABORT => std::process::abort(),
        PANIC => panic!("asked to panic"),
        EXIT => std::process::exit(3),
        // More than a worker under a limit can have.
        HOG => drop(std::hint::black_box(vec![1u8; HOGGED])),
        FAIL => return Err(EngineError::new(ErrorKind::Run, "asked to fail")),
        GATE => wait_at_gate(),
        _ => {}
    }
    Ok(())
}

fn wait_at_gate() {
    let mut gate = UnixStream::connect(gate_path(&std::env::current_dir().unwrap())).unwrap();
    gate.read_to_end(&mut Vec::new()).unwrap();
}

fn gate_path(run_dir: &Path) -> PathBuf {
    run_dir.join("gate")
}

fn port(name: &str) -> IoSpec {
    IoSpec { name: name.to_owned(), dtype: ElementType::F32, dims: vec![None, Some(2)] }
}

fn spec(name: &str) -> TensorSpec {
    TensorSpec { name: name.to_owned(), dtype: "FP32".to_owned(), dims: vec![-1, 2] }
}

/// This module's [`child`], as the test harness calls it.
fn child_name() -> &'static str {
    // The harness leaves out the crate's name.
    concat!(module_path!(), "::child").split_once("::").map_or("", |(_, name)| name)
}
