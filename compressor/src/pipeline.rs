//! The whole compression, stage by stage: the only file that knows them all.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::CompressError;
use crate::latency::HostLatency;
use crate::plan::{Plan, Refusal};
use crate::quality::QualityReport;

/// What a bundle of the unmodified source is made from: the first deployment.
#[derive(Debug, Clone)]
pub struct OriginalJob {
    /// Name under which devices serve the model.
    pub name: String,
    /// The model file.
    pub source: PathBuf,
    /// Held-out samples (`.npz`), of which a few become the self-test.
    pub heldout: PathBuf,
    /// Engine of the target; it records the self-test's outputs.
    pub engine: runtime::EngineOptions,
    /// Device class, or `any`.
    pub device_class: String,
    /// Sequence number of the bundle.
    pub sequence: u64,
    /// Version for people.
    pub version: String,
    /// Where the bundle folder is written; it must not exist.
    pub out_dir: PathBuf,
    /// Seed of everything random.
    pub seed: u64,
}

/// What a compression is asked to do.
#[derive(Debug, Clone)]
pub struct CompressJob {
    /// Name under which devices serve the model.
    pub name: String,
    /// The original model: every candidate is made from it, never from an earlier candidate.
    pub source: PathBuf,
    /// Calibration samples (`.npz`): they rate units and fit repairs.
    pub calibration: PathBuf,
    /// Held-out samples (`.npz`): they judge, and are never fitted to.
    pub heldout: PathBuf,
    /// Engine of the target. Latency is measured in it with these threads.
    pub engine: runtime::EngineOptions,
    /// What to reach.
    pub goal: Goal,
    /// What the device measured of the model it runs now.
    pub baseline: Option<DeviceBaseline>,
    /// The model that the device runs now; without it, `source`. Only used with `baseline`.
    pub current_model: Option<PathBuf>,
    /// Device class, or `any`.
    pub device_class: String,
    /// Sequence number of the bundle.
    pub sequence: u64,
    /// Version for people.
    pub version: String,
    /// Where the bundle folder is written; it must not exist.
    pub out_dir: PathBuf,
    /// Seed of everything random.
    pub seed: u64,
}

/// Budgets a candidate must meet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Goal {
    /// 95th percentile of one inference, on the device where there is a baseline, else on this host.
    pub latency_p95_us: Option<u64>,
    /// Memory of the serving process.
    pub memory_bytes: Option<u64>,
    /// Size of the model file.
    pub size_bytes: Option<u64>,
    /// Share of held-out samples (0 to 1) on which the candidate must answer as the original does.
    pub agreement_min: f64,
}

/// Latency that a device measured of the model it runs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct DeviceBaseline {
    /// Median.
    pub p50_us: u64,
    /// 95th percentile.
    pub p95_us: u64,
}

/// One candidate as it was tried, for the report and the caller.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CandidateReport {
    /// Short name, such as `all 62.5 %`.
    pub label: String,
    /// How it is made from the source.
    pub plan: Plan,
    /// Parameters.
    pub params: u64,
    /// Multiply-accumulates of one sample, where they could be counted.
    pub macs: Option<u64>,
    /// Size of the model file.
    pub size_bytes: u64,
    /// What the host measured.
    pub host: HostLatency,
    /// 95th percentile that the goal is compared with.
    pub latency_p95_us: bundle::Estimate,
    /// Memory of the serving process.
    pub memory_bytes: bundle::Estimate,
    /// Quality on held-out samples; none for one that missed the latency goal and was not judged.
    pub quality: Option<QualityReport>,
    /// What became of it.
    pub verdict: Verdict,
}

/// What became of a candidate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "verdict", content = "reason")]
pub enum Verdict {
    /// It is in the bundle.
    Chosen,
    /// It meets the goal, but another does better.
    Feasible,
    /// It does not meet the goal.
    Refused(String),
}

/// What a compression made.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The bundle folder.
    pub bundle_dir: PathBuf,
    /// The bundle's digest.
    pub digest: bundle::Digest,
    /// The HTML report inside the bundle.
    pub report: PathBuf,
    /// The source model as measured beside the candidates.
    pub original: CandidateReport,
    /// What is in the bundle.
    pub chosen: CandidateReport,
    /// Everything that was tried, the chosen one included, in the order tried.
    pub candidates: Vec<CandidateReport>,
    /// Everything that was not done, with its reason.
    pub refused: Vec<Refusal>,
}

/// A bundle of the unmodified source.
#[derive(Debug, Clone)]
pub struct OriginalOutcome {
    /// The bundle folder.
    pub bundle_dir: PathBuf,
    /// The bundle's digest.
    pub digest: bundle::Digest,
    /// Size of all files of the bundle.
    pub size_bytes: u64,
}

/// Hears how a compression goes on, and can end it.
pub trait Progress: Sync {
    /// A stage begins; it has `total` steps, or 0 where that is not known.
    fn stage(&self, name: &str, total: u64) {
        let _ = (name, total);
    }
    /// `done` steps of the stage are done.
    fn step(&self, done: u64) {
        let _ = done;
    }
    /// Something worth a line.
    fn note(&self, text: &str) {
        let _ = text;
    }
    /// Asked between steps; once true, the compression ends with [`CompressError::Cancelled`].
    fn cancelled(&self) -> bool {
        false
    }
}

/// A [`Progress`] that hears nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {}

/// Searches for the best candidate that meets the goal and writes its bundle.
///
/// # Errors
/// See [`CompressError`]. Nothing is left at `out_dir` on any of them.
pub fn compress(job: &CompressJob, progress: &dyn Progress) -> Result<Outcome, CompressError> {
    let _ = (job, progress);
    Err(CompressError::Cancelled("start".into()))
}

/// Writes a bundle of the unmodified source.
///
/// # Errors
/// See [`CompressError`]. Nothing is left at `out_dir` on any of them.
pub fn bundle_original(
    job: &OriginalJob,
    progress: &dyn Progress,
) -> Result<OriginalOutcome, CompressError> {
    let _ = (job, progress);
    Err(CompressError::Cancelled("start".into()))
}
