//! What can end a compression.

use std::path::{Path, PathBuf};

use crate::data::DataError;
use crate::search::Unreachable;

/// Why a compression ended without a bundle. Each message says what, where and which limit.
#[derive(Debug, thiserror::Error)]
pub enum CompressError {
    /// Calibration or held-out data cannot be used.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The model cannot be read, or is not one that can be worked on.
    #[error("model {path}: {what}")]
    Model {
        /// The model file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The engine cannot be opened, or cannot load or run a model.
    #[error("{what}: {source}")]
    Engine {
        /// What was being done.
        what: String,
        /// The engine's own error.
        source: runtime::EngineError,
    },
    /// A change of the graph failed; the source model is untouched.
    #[error("{stage}: {what}")]
    Graph {
        /// Which stage made the change.
        stage: &'static str,
        /// What went wrong.
        what: String,
    },
    /// The model has nothing that may be removed; every reason is listed.
    #[error("model {path} has nothing to prune:{}", lines(.reasons))]
    NothingToPrune {
        /// The model file.
        path: PathBuf,
        /// Why each candidate dimension is locked.
        reasons: Vec<String>,
    },
    /// No candidate meets the goal; the best found for each constraint is listed.
    #[error("{0}")]
    GoalUnreachable(Box<Unreachable>),
    /// The job's own numbers make no sense (a negative budget, an agreement above 1).
    #[error("goal: {0}")]
    Goal(String),
    /// What the metric needs is not there, or the evaluator cannot measure the original.
    #[error("metric: {0}")]
    Metric(String),
    /// The bundle could not be written.
    #[error("bundle {path}: {what}")]
    Bundle {
        /// Where it was to be written.
        path: PathBuf,
        /// What went wrong.
        what: String,
    },
    /// The file of measured widths cannot be used.
    #[error("curves {path}: {what}")]
    Curves {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The report could not be rendered.
    #[error("report: {0}")]
    Report(String),
    /// The caller asked to stop; nothing was left half-written.
    #[error("cancelled during {0}")]
    Cancelled(String),
}

impl CompressError {
    /// An engine error with what was being done.
    pub fn engine(what: impl Into<String>) -> impl FnOnce(runtime::EngineError) -> Self {
        let what = what.into();
        move |source| Self::Engine { what, source }
    }

    /// The message of an error that concerns one candidate, which is refused for it while the search goes on.
    ///
    /// # Errors
    /// The error itself, where it concerns the whole job.
    pub fn of_candidate(self) -> Result<String, Self> {
        match self {
            Self::Graph { .. } | Self::Engine { .. } => Ok(self.to_string()),
            other => Err(other),
        }
    }

    /// An input or output error with its file.
    pub fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { path, source }
    }
}

fn lines(reasons: &[String]) -> String {
    reasons.iter().fold(String::new(), |mut all, reason| {
        all.push_str("\n  ");
        all.push_str(reason);
        all
    })
}
