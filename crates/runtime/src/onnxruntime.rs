//! ONNX Runtime: a shared library, loaded at run time.
//!
//! The process has one environment, for ever, and so one library: [`loaded`] keeps both. What a
//! device cannot afford is off: telemetry, the parallel executor, and unless asked for spinning threads and the memory
//! arena (which keeps the peak of all requests). Optimization is at `All`, the one level that every
//! version takes.

mod environment;
mod raw;
mod session;

use std::path::Path;

use ort::ep::CPU;
use ort::logging::LogLevel;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};

use crate::model_file::{check_bytes, check_file, check_options, shorten};
use engine::{
    Engine, EngineError, EngineKind, EngineOptions, ErrorKind, LoadOptions, Session, guard,
};

use environment::Loaded;
use session::OrtSession;

/// The most threads one request may use.
const MAX_THREADS: usize = 1024;

/// The ONNX Runtime engine.
pub(crate) struct OrtEngine {
    loaded: Loaded,
    threads: usize,
    arena: bool,
    spinning: bool,
}

impl OrtEngine {
    pub(crate) fn open(options: &EngineOptions) -> Result<Self, EngineError> {
        if options.threads > MAX_THREADS {
            return Err(EngineError::new(
                ErrorKind::Limit,
                format!("{} threads are more than MAX_THREADS = {MAX_THREADS}", options.threads),
            ));
        }
        Ok(Self {
            loaded: environment::loaded(options.ort_library.as_deref())?,
            threads: options.threads.max(1),
            arena: options.arena,
            spinning: options.spinning,
        })
    }

    fn builder(&self, options: &LoadOptions) -> ort::Result<SessionBuilder> {
        let builder = SessionBuilder::new(&self.loaded.environment)?
            .with_log_level(LogLevel::Warning)?
            .with_optimization_level(GraphOptimizationLevel::All)?
            .with_parallel_execution(false)?
            .with_intra_threads(self.threads)?
            .with_inter_threads(1)?
            .with_intra_op_spinning(self.spinning)?
            .with_inter_op_spinning(false)?
            .with_execution_providers([CPU::default()
                .with_arena_allocator(self.arena || options.keep_memory)
                .build()])?;
        match &options.optimized_model_path {
            Some(path) => Ok(builder.with_optimized_model_path(path)?),
            None => Ok(builder),
        }
    }

    fn commit(
        &self,
        what: &str,
        options: &LoadOptions,
        commit: impl FnOnce(&mut SessionBuilder) -> ort::Result<ort::session::Session>,
    ) -> Result<Box<dyn Session>, EngineError> {
        check_options(options)?;
        guard(ErrorKind::Load, what, || {
            let session = self
                .builder(options)
                .and_then(|mut builder| commit(&mut builder))
                .map_err(|e| {
                    EngineError::new(
                        load_error_kind(&e),
                        format!("ONNX Runtime cannot load {what}: {}", shorten(e.to_string())),
                    )
                })?;
            Ok(Box::new(OrtSession::new(session, options.batch)?) as Box<dyn Session>)
        })
    }
}

impl Engine for OrtEngine {
    fn kind(&self) -> EngineKind {
        EngineKind::Ort
    }

    fn version(&self) -> String {
        self.loaded.version.clone()
    }

    fn threads(&self) -> usize {
        self.threads
    }

    fn load(&self, model: &Path, options: &LoadOptions) -> Result<Box<dyn Session>, EngineError> {
        check_file(model)?;
        let what = format!("the model {}", model.display());
        self.commit(&what, options, |builder| builder.commit_from_file(model))
    }

    fn load_bytes(
        &self,
        bytes: &[u8],
        options: &LoadOptions,
    ) -> Result<Box<dyn Session>, EngineError> {
        check_bytes(bytes)?;
        self.commit("the model", options, |builder| builder.commit_from_memory(bytes))
    }
}

/// An operator without a kernel has a code of its own; one that is not known at all has not.
fn load_error_kind(error: &ort::Error) -> ErrorKind {
    const UNKNOWN: [&str; 2] = ["is not a registered function/op", "No Op registered for"];
    let unknown = UNKNOWN.iter().any(|text| error.message().contains(text));
    if unknown || error.code() == ort::ErrorCode::NotImplemented {
        ErrorKind::Unsupported
    } else {
        ErrorKind::Load
    }
}
