//! Turns a request into a job, or into the reason why there is none.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use runtime::{EngineKind, EngineOptions};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use wire::{BudgetKind, Cause, RecompressRequest};

use super::config::ModelFiles;
use super::store::Lesson;
use crate::pipeline::{CompressJob, DeviceBaseline, Goal, Judging};

/// Most threads that a device can ask to be measured with.
pub(super) const MAX_THREADS: u32 = 64;

/// What is left of a latency or memory budget each time a bundle made for it was taken back.
const STRICTER: f64 = 0.85;
/// What is left of it at least, however far the prediction was off.
const STRICTEST: f64 = 0.25;
/// Least that is added to the agreement asked for when a device saw less than that.
const AGREEMENT_STEP: f64 = 0.02;
/// Most agreement that is asked for because devices saw less than was promised.
const MOST_AGREEMENT: f64 = 0.99;
/// Another version may search, repair and measure otherwise.
const TOOL: &str = concat!("espalier ", env!("CARGO_PKG_VERSION"));

/// A model the service compresses, with the digests of its files.
#[derive(Debug, Clone)]
pub(super) struct Model {
    pub(super) files: ModelFiles,
    pub(super) source_digest: bundle::Digest,
    /// Over calibration and held-out data.
    pub(super) data_digest: bundle::Digest,
}

/// What makes two compressions the same, and what running one takes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct JobSpec {
    /// The model's name.
    pub(super) model: String,
    /// Digest of the original model.
    pub(super) source: String,
    /// Digest of calibration and held-out data.
    pub(super) data: String,
    /// The program and its version.
    pub(super) tool: String,
    /// The engine of the device.
    pub(super) runtime: wire::Runtime,
    /// The class of the device.
    pub(super) device_class: String,
    /// Threads of an inference.
    pub(super) threads: u32,
    /// Digest of the bundle that the device runs.
    pub(super) current: String,
    /// The budget that the device reports as broken.
    pub(super) budget: BudgetKind,
    /// Budgets, rounded to the stricter side.
    pub(super) goal: Goal,
    /// What the first device that asked had measured; not part of the key.
    pub(super) baseline: DeviceBaseline,
}

impl JobSpec {
    /// The content key: equal for requests that one compression serves.
    pub(super) fn key(&self) -> String {
        let goal = &self.goal;
        let text = format!(
            "{}|{}|{}|{}|{}|{}|{}|{}|{}|{:?}|{:?}|{:?}|{:.2}",
            self.model,
            self.source,
            self.data,
            self.tool,
            self.runtime,
            self.device_class,
            self.threads,
            self.current,
            self.budget,
            goal.latency_p95_us,
            goal.memory_bytes,
            goal.size_bytes,
            goal.agreement_min
        );
        Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The pipeline's job. `current_model` is the file of the bundle that the device runs.
    pub(super) fn compress_job(
        &self,
        model: &Model,
        run: JobRun,
        ort_library: Option<PathBuf>,
        confidence: Option<f64>,
        seed: u64,
    ) -> CompressJob {
        let engine = EngineOptions {
            threads: self.threads as usize,
            ort_library,
            ..EngineOptions::new(engine_kind(self.runtime))
        };
        CompressJob {
            name: self.model.clone(),
            source: model.files.source.clone(),
            calibration: model.files.calibration.clone(),
            heldout: model.files.heldout.clone(),
            engine,
            goal: run.goal,
            judging: Judging { confidence, ..Judging::default() },
            baseline: Some(self.baseline),
            current_model: Some(run.current_model),
            device_class: self.device_class.clone(),
            sequence: run.sequence,
            version: format!("{}-compressed", run.sequence),
            work_dir: run.out_dir.parent().map(Path::to_path_buf),
            out_dir: run.out_dir,
            seed,
        }
    }
}

/// What is decided only when a job runs.
#[derive(Debug, Clone)]
pub(super) struct JobRun {
    /// The goal, as strict as what devices took back before makes it.
    pub(super) goal: Goal,
    pub(super) sequence: u64,
    pub(super) current_model: PathBuf,
    pub(super) out_dir: PathBuf,
}

/// The goal for a job whose earlier bundles taught these lessons: more agreement for each that agreed
/// less on the device than was asked for, else less latency and memory, so that the search ends at
/// another candidate.
pub(super) fn stricter(goal: &Goal, lessons: &[Lesson]) -> Goal {
    let mut stricter = goal.clone();
    for lesson in lessons {
        match lesson.agreement.filter(|seen| *seen < goal.agreement_min) {
            Some(seen) => {
                let missing = (goal.agreement_min - seen).max(AGREEMENT_STEP);
                let wanted = (stricter.agreement_min + missing).min(MOST_AGREEMENT);
                stricter.agreement_min = percent_up(wanted.max(goal.agreement_min));
            }
            None => {
                let by = |error| move |budget| shrink(budget, error);
                stricter.latency_p95_us = stricter.latency_p95_us.map(by(lesson.latency_error));
                stricter.memory_bytes = stricter.memory_bytes.map(by(lesson.memory_error));
            }
        }
    }
    stricter
}

/// What is left of a budget after a bundle that cost so much more than was predicted. A budget of zero
/// cannot be met.
fn shrink(budget: u64, prediction_error: Option<f64>) -> u64 {
    let over = prediction_error.filter(|error| *error > 0.0).unwrap_or(0.0);
    let kept = (1.0 / (1.0 + over)).clamp(STRICTEST, STRICTER);
    ((budget as f64 * kept) as u64).max(1)
}

/// The engine of a device, as the runtime crate names it.
pub(super) fn engine_kind(runtime: wire::Runtime) -> EngineKind {
    match runtime {
        wire::Runtime::Tract => EngineKind::Tract,
        wire::Runtime::Ort => EngineKind::Ort,
    }
}

/// The engine of a device, as it is named on the wire.
pub(super) fn wire_runtime(kind: EngineKind) -> wire::Runtime {
    match kind {
        EngineKind::Tract => wire::Runtime::Tract,
        EngineKind::Ort => wire::Runtime::Ort,
    }
}

/// The job that a request asks for, or why it cannot be served.
pub(super) fn job_for(
    request: &RecompressRequest,
    models: &BTreeMap<String, Model>,
    agreement_min: f64,
) -> Result<JobSpec, String> {
    let model = models.get(&request.model).ok_or_else(|| {
        let known: Vec<&str> = models.keys().map(String::as_str).collect();
        format!("model {} is unknown here; known are {}", request.model, known.join(", "))
    })?;
    if request.budget == BudgetKind::Drift {
        return Err(drifted(request));
    }
    if request.cause != Cause::Model {
        return Err(format!(
            "the breach is attributed to {}, which no smaller model mends",
            request.cause
        ));
    }
    if !matches!(request.budget, BudgetKind::LatencyP95 | BudgetKind::Memory) {
        return Err(format!(
            "the {} budget cannot be compressed towards; latency_p95 and memory can",
            request.budget
        ));
    }
    if request.budgets.limit(request.budget).is_none() {
        return Err(format!(
            "the {} budget is broken, but the request does not state it",
            request.budget
        ));
    }
    if request.threads > MAX_THREADS {
        return Err(format!(
            "{} threads are over the limit of {MAX_THREADS} (MAX_THREADS)",
            request.threads
        ));
    }
    if request.p50_us == 0 || request.p50_us > request.p95_us {
        return Err(format!(
            "p50 {} us and p95 {} us are no measurements",
            request.p50_us, request.p95_us
        ));
    }
    Ok(JobSpec {
        model: request.model.clone(),
        source: model.source_digest.to_string(),
        data: model.data_digest.to_string(),
        tool: TOOL.to_owned(),
        runtime: request.runtime,
        device_class: request.device_class.clone(),
        threads: request.threads.max(1),
        current: request.digest.clone(),
        budget: request.budget,
        goal: Goal {
            latency_p95_us: request.budgets.latency_p95_us.map(two_digits),
            memory_bytes: request.budgets.memory_bytes.map(two_digits),
            size_bytes: None,
            agreement_min: percent_up(request.budgets.agreement_min.unwrap_or(agreement_min)),
        },
        baseline: DeviceBaseline {
            p50_us: request.p50_us,
            p95_us: request.p95_us,
            memory_bytes: request.workers_pss_bytes,
            breached: Some(request.budget),
        },
    })
}

/// Why drift is not answered by a job: a model made from the same data would be judged on the same data.
fn drifted(request: &RecompressRequest) -> String {
    let first = request.drift.as_ref().and_then(|test| {
        let feature = test.features.iter().find(|feature| feature.drifted)?;
        let wire::DriftFeature { side, tensor, feature, psi, .. } = feature;
        Some(format!(" ({side} {tensor}: {feature}, PSI {psi:.2})"))
    });
    format!(
        "the requests of model {} have drifted from the data it was judged on{}, which no model made \
         from that data mends: start this service with calibration and held-out data of what the \
         device sees now, and deploy the model anew",
        request.model,
        first.unwrap_or_default()
    )
}

/// Rounds down to two significant digits, so that who asks for nearly the same shares a job whose
/// result satisfies them all.
fn two_digits(value: u64) -> u64 {
    let mut unit = 1;
    while value / unit >= 100 {
        unit *= 10;
    }
    value / unit * unit
}

/// Rounds a share up to a whole percent.
fn percent_up(share: f64) -> f64 {
    // 0.9 * 100 is a hair over 90 in binary; what is that close counts as whole.
    ((share * 100.0 - 1e-6).ceil() / 100.0).clamp(0.0, 1.0)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use wire::{Budgets, Header, Payload as _, Runtime};

    use super::*;

    type Edit = fn(&mut RecompressRequest);

    fn models() -> BTreeMap<String, Model> {
        let path = PathBuf::from("x");
        let files = ModelFiles { source: path.clone(), calibration: path.clone(), heldout: path };
        let (source_digest, data_digest) = (bundle::Digest::of(b"m"), bundle::Digest::of(b"data"));
        BTreeMap::from([("m".to_owned(), Model { files, source_digest, data_digest })])
    }

    fn request() -> RecompressRequest {
        RecompressRequest {
            header: Header::of::<RecompressRequest>(0, 0, "b"),
            request_id: "r".into(),
            device: "d".into(),
            model: "m".into(),
            digest: bundle::Digest::of(b"current").to_string(),
            sequence: 1,
            device_class: "pi".into(),
            runtime: Runtime::Tract,
            arch: "aarch64".into(),
            threads: 1,
            budgets: Budgets {
                latency_p95_us: Some(20_000),
                agreement_min: Some(0.9),
                ..Budgets::default()
            },
            budget: BudgetKind::LatencyP95,
            cause: Cause::Model,
            p50_us: 28_000,
            p95_us: 31_000,
            windows_over: 4,
            windows_seen: 5,
            workers_pss_bytes: None,
            emulated: true,
            drift: None,
        }
    }

    fn plan(edit: impl FnOnce(&mut RecompressRequest)) -> Result<JobSpec, String> {
        let mut request = request();
        edit(&mut request);
        request.check().unwrap();
        job_for(&request, &models(), 0.85)
    }

    #[test]
    fn budgets_round_to_the_stricter_side() {
        assert_eq!(
            [0, 7, 99, 100, 20_345, 19_999].map(two_digits),
            [0, 7, 99, 100, 20_000, 19_000]
        );
        assert_eq!(two_digits(u64::MAX), 18_000_000_000_000_000_000);
        assert_eq!([0.9, 0.901, 0.0, 1.0].map(percent_up), [0.9, 0.91, 0.0, 1.0]);
        assert_eq!(plan(|r| r.budgets.agreement_min = None).unwrap().goal.agreement_min, 0.85);
    }

    #[test]
    fn devices_that_ask_for_nearly_the_same_share_a_key() {
        let key = plan(|_| ()).unwrap().key();
        let same = plan(|r| {
            r.device = "other".into();
            r.request_id = "other".into();
            r.budgets.latency_p95_us = Some(20_900);
            r.budgets.agreement_min = Some(0.895);
            r.p95_us = 32_000;
        });
        assert_eq!(same.unwrap().key(), key);
        let others: [Edit; 7] = [
            |r| {
                r.budgets.memory_bytes = Some(1 << 20);
                r.budget = BudgetKind::Memory;
            },
            |r| r.runtime = Runtime::Ort,
            |r| r.device_class = "other".into(),
            |r| r.budgets.latency_p95_us = Some(21_000),
            |r| r.budgets.memory_bytes = Some(1 << 20),
            |r| r.digest = bundle::Digest::of(b"other").to_string(),
            |r| r.threads = 2,
        ];
        for (number, edit) in others.into_iter().enumerate() {
            assert_ne!(plan(edit).unwrap().key(), key, "{number}");
        }
    }

    #[test]
    fn other_data_or_another_version_is_another_job() {
        let spec = plan(|_| ()).unwrap();
        let key = spec.key();
        assert_ne!(JobSpec { data: "sha256:other".into(), ..spec.clone() }.key(), key);
        assert_ne!(JobSpec { tool: "espalier 0.0.0".into(), ..spec }.key(), key);
    }

    #[test]
    fn lessons_make_the_goal_stricter_where_the_bundle_fell_short() {
        let goal = Goal {
            latency_p95_us: Some(20_000),
            memory_bytes: Some(1000),
            size_bytes: Some(7),
            agreement_min: 0.9,
        };
        let lesson = |agreement| Lesson {
            digest: "d".into(),
            content: "c".into(),
            device: "pi".into(),
            reason: "r".into(),
            agreement,
            latency_error: None,
            memory_error: None,
        };
        assert_eq!(stricter(&goal, &[]), goal);
        let slow = stricter(&goal, &[lesson(None), lesson(Some(0.95))]);
        assert_eq!((slow.latency_p95_us, slow.memory_bytes), (Some(14_450), Some(722)));
        assert_eq!((slow.agreement_min, slow.size_bytes), (0.9, Some(7)));
        let far = Lesson { latency_error: Some(1.0), memory_error: Some(0.1), ..lesson(None) };
        let off = stricter(&goal, &[far]);
        assert_eq!((off.latency_p95_us, off.memory_bytes), (Some(10_000), Some(850)));
        let absurd = Lesson { latency_error: Some(1e9), ..lesson(None) };
        assert_eq!(stricter(&goal, &[absurd]).latency_p95_us, Some(5000));
        let wrong = stricter(&goal, &[lesson(Some(0.85))]);
        assert_eq!((wrong.latency_p95_us, wrong.agreement_min), (Some(20_000), 0.95));
        assert_eq!(stricter(&goal, &[lesson(Some(0.1))]).agreement_min, 0.99);
        let exact = Goal { agreement_min: 1.0, ..goal };
        assert_eq!(stricter(&exact, &[lesson(Some(0.1))]).agreement_min, 1.0);
    }

    #[test]
    fn what_cannot_be_served_is_refused_with_the_reason() {
        let refusals: [(Edit, &str); 7] = [
            (
                |r| {
                    r.budget = BudgetKind::Drift;
                    r.cause = Cause::Data;
                },
                "calibration and held-out data of what the device sees now",
            ),
            (|r| r.model = "other".into(), "known are m"),
            (|r| r.cause = Cause::Thermal, "thermal"),
            (|r| r.budget = BudgetKind::Energy, "energy"),
            (|r| r.budget = BudgetKind::Memory, "does not state it"),
            (|r| r.threads = 1000, "MAX_THREADS"),
            (|r| r.p50_us = 0, "no measurements"),
        ];
        for (edit, why) in refusals {
            let error = plan(edit).unwrap_err();
            assert!(error.contains(why), "{why}: {error}");
        }
    }
}
