//! The whole compression, stage by stage: the only file that knows them all.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub mod analysis;
mod apply;
mod auto;
pub mod budget;
mod check;
mod counted;
mod curves;
mod finish;
mod gauge;
mod hunt;
pub mod inspect;
mod judge;
mod kinds;
mod mend;
mod norms;
mod observe;
mod passes;
mod recall;
mod reference;
mod relay;
mod repair;
mod seen;
mod select;
pub(crate) mod shop;
pub mod single;
mod takeover;
#[cfg(test)]
mod testing;

use finish::Label;
use gauge::Gauge;
pub use gauge::{Judging, Measure};
use hunt::Hunt;
use judge::Answers;
pub use recall::Recall;
use recall::{Key, Known, Observed};
use shop::{Bench, Shop, Source};

use crate::calibrate::WorkDir;
use crate::data::Dataset;
use crate::error::CompressError;
use crate::latency::HostLatency;
use crate::memory::{self, Serving};
use crate::plan::{Plan, RefitStep, Refusal, RescaleStep, ScoreKind};
use crate::quality::{Compared, QualityReport, Share};
use crate::report::{self, Story};
use crate::search::Unreachable;

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
    /// Where intermediate models are written; the system's temporary folder without it.
    pub work_dir: Option<PathBuf>,
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
    /// What shows that a candidate answers well enough.
    pub judging: Judging,
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
    /// Where intermediate models are written; the system's temporary folder without it.
    pub work_dir: Option<PathBuf>,
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

/// What a device measured of the model it runs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct DeviceBaseline {
    /// Median.
    pub p50_us: u64,
    /// 95th percentile.
    pub p95_us: u64,
    /// Memory of the serving process (proportional set size), where it was measured.
    #[serde(default)]
    pub memory_bytes: Option<u64>,
    /// The budget that the device reports as broken by the model it runs. That model never counts as meeting it,
    /// whatever a single measurement says.
    #[serde(default)]
    pub breached: Option<wire::BudgetKind>,
}

impl DeviceBaseline {
    /// Of latency alone, with no budget broken.
    pub fn latency(p50_us: u64, p95_us: u64) -> Self {
        Self { p50_us, p95_us, memory_bytes: None, breached: None }
    }

    /// With the latency no better than the budget, if that is what broke.
    fn at_least_the_breach(self, goal: &Goal) -> Self {
        let broken = self.breached == Some(wire::BudgetKind::LatencyP95);
        let least = goal.latency_p95_us.filter(|_| broken).unwrap_or(0);
        Self { p95_us: self.p95_us.max(least), ..self }
    }

    /// What the device measured of its memory with a model of `size_bytes`, no better than the budget if that is
    /// what broke; none where it neither measured nor broke it.
    fn serving(self, goal: &Goal, engine: runtime::EngineKind, size_bytes: u64) -> Option<Serving> {
        if self.breached != Some(wire::BudgetKind::Memory) {
            return self.memory_bytes.map(|pss_bytes| Serving { pss_bytes, size_bytes });
        }
        let modelled = || memory::predict(engine, size_bytes, None).value as u64;
        let known = self.memory_bytes.unwrap_or_else(modelled);
        Some(Serving { pss_bytes: known.max(goal.memory_bytes.unwrap_or(0)), size_bytes })
    }
}

/// One candidate as it was tried, for the report and the caller.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CandidateReport {
    /// Short name, such as `all 62.5 %`.
    pub label: String,
    /// How it is made from the source.
    pub plan: Plan,
    /// What became of the sums over narrowed units.
    pub rescales: Vec<RescaleStep>,
    /// What became of the re-fits, in the order in which they were made.
    pub refits: Vec<RefitStep>,
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
    /// It was judged and meets the goal, but another does better.
    Feasible,
    /// It meets the budgets as far as the search measured it, and was not judged on the held-out samples.
    NotJudged(String),
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
    compress_recalling(job, progress, &Recall::default())
}

/// As [`compress`], with what an earlier compression learned of the same original, and for a later one.
/// The outcome is the same.
///
/// # Errors
/// As [`compress`].
pub fn compress_recalling(
    job: &CompressJob,
    progress: &dyn Progress,
    recall: &Recall,
) -> Result<Outcome, CompressError> {
    check(job)?;
    job.judging.check(job.goal.agreement_min)?;
    let shop = Shop::open(job, progress)?;
    gauge::references(&shop)?;
    let mut bench = Bench::open(&shop)?;
    let mut hunt = hunt::hunt(&shop, &mut bench)?;
    hunt.refuse_all(locked_dims(&shop.source));
    if hunt.shortlist.is_empty() {
        return Err(unreachable(&shop, &hunt));
    }
    let (outputs, others) = judge::outputs(&shop)?;
    let key = Key::of(&shop);
    let mut known = key.as_ref().map_or_else(Known::default, |key| recall.take(key));
    let mut answers =
        Answers::new(&shop.heldout, &outputs).with(0, std::mem::take(&mut known.answers));
    answers.hold(&shop, 0, shop.heldout.len())?;
    let (compared, refused) = kinds::comparisons(&shop, &outputs, &others, &answers);
    hunt.refuse_all(refused);
    let chosen = if hunt.shortlist[0] == 0 {
        keep_original(&shop, &mut hunt, &mut answers, &compared).map(Some)
    } else {
        narrowed(&shop, &mut hunt, &mut bench, &mut answers, &compared, &mut known)
    };
    known.answers = answers.into_first();
    if let Some(key) = key {
        recall.keep(key, known);
    }
    match chosen? {
        Some(chosen) => write_outcome(&shop, &hunt, chosen, &compared),
        None => Err(unreachable(&shop, &hunt)),
    }
}

/// Repairs and judges the shortlist; the best that meets the goal.
fn narrowed(
    shop: &Shop<'_>,
    hunt: &mut Hunt,
    bench: &mut Bench,
    answers: &mut Answers<'_>,
    compared: &[Compared],
    known: &mut Known,
) -> Result<Option<usize>, CompressError> {
    let finals = select::finals(hunt.shortlist.len());
    gauge::enough(shop, finals)?;
    let gauge = Gauge::open(shop, compared)?;
    let outputs: Vec<String> = compared.iter().map(|c| c.output.clone()).collect();
    let observed = observed(shop, &outputs, hunt.shortlist.len(), known)?;
    hunt.refuse_all(observed.refused.iter().cloned());
    let craft = select::Craft {
        shop,
        original: &observed.original,
        score: ScoreKind::Activation,
        outputs: &outputs,
        compared,
        gauge: &gauge,
        finals,
    };
    craft.screen(hunt)?;
    craft.finals(hunt, bench, answers)
}

/// The original as it is observed for a screening of so many candidates: from memory, or now.
fn observed<'k>(
    shop: &Shop<'_>,
    outputs: &[String],
    shortlist: usize,
    known: &'k mut Known,
) -> Result<&'k Observed, CompressError> {
    let (fit, judged) = select::split(shop.calibration.len());
    let screened = if shortlist < 2 { 0..0 } else { fit..fit + judged };
    let observed = match known.take_observed(&screened) {
        Some(observed) => observed,
        None => {
            let looks = observe::Looks {
                reach: Some(observe::Reach::LastProducts),
                grams: observe::Grams::None,
                samples: shop.calibration.len(),
            };
            let (original, refused) = observe::observe(shop, outputs, screened.clone(), looks)?;
            Observed { screened, original, refused }
        }
    };
    Ok(known.observed.insert(observed))
}

/// Writes a bundle of the unmodified source.
///
/// # Errors
/// See [`CompressError`]. Nothing is left at `out_dir` on any of them.
pub fn bundle_original(
    job: &OriginalJob,
    progress: &dyn Progress,
) -> Result<OriginalOutcome, CompressError> {
    progress.stage("bundling the original", 0);
    let source = Source::load(&job.source)?;
    let engine = runtime::open(&job.engine)
        .map_err(CompressError::engine(format!("opening the engine {}", job.engine.kind)))?;
    let specs = engine
        .load(&job.source, &runtime::LoadOptions::default())
        .map_err(CompressError::engine(format!("loading {}", job.source.display())))?
        .inputs()
        .to_vec();
    let heldout = Dataset::load(&job.heldout, &specs)?;
    let label = Label {
        predicted: bundle::Predicted {
            memory_bytes: Some(memory::predict(job.engine.kind, source.size_bytes, None)),
            agreement: Some(bundle::Estimate {
                value: 1.0,
                low: 1.0,
                high: 1.0,
                quality: bundle::Quality::Measured,
            }),
            ..bundle::Predicted::default()
        },
        lineage: bundle::Lineage {
            source_sha256: Some(source.digest),
            recipe: serde_json::json!({ "kind": "original" }),
            data_sha256: Some(heldout.digest()),
            parent: None,
            tool: finish::TOOL.to_owned(),
        },
        report_html: None,
    };
    let work = WorkDir::new(job.work_dir.as_deref())?;
    let file = source.file(&work)?;
    let bundle = finish::write(job, &file, engine.as_ref(), &source, &heldout, label)?;
    Ok(OriginalOutcome {
        size_bytes: bundle.size_bytes(),
        bundle_dir: bundle.dir.clone(),
        digest: bundle.digest,
    })
}

fn check(job: &CompressJob) -> Result<(), CompressError> {
    let goal = &job.goal;
    if !(0.0..=1.0).contains(&goal.agreement_min) {
        return Err(CompressError::Goal(format!(
            "agreement_min is {}, and must lie between 0 and 1",
            goal.agreement_min
        )));
    }
    let budgets = [goal.latency_p95_us, goal.memory_bytes, goal.size_bytes];
    if budgets.iter().all(Option::is_none) {
        return Err(CompressError::Goal(
            "there is no budget; give one for latency, memory or size".into(),
        ));
    }
    if budgets.contains(&Some(0)) {
        return Err(CompressError::Goal("a budget of zero cannot be met".into()));
    }
    if job.baseline.is_some_and(|b| b.p95_us == 0 || b.memory_bytes == Some(0)) {
        return Err(CompressError::Goal(
            "the device's p95 or memory is zero: it measured nothing".into(),
        ));
    }
    if std::fs::symlink_metadata(&job.out_dir).is_ok() {
        return Err(CompressError::Bundle {
            path: job.out_dir.clone(),
            what: "exists already; nothing is overwritten".into(),
        });
    }
    Ok(())
}

/// What the model's structure keeps from being narrowed.
fn locked_dims(source: &Source) -> Vec<Refusal> {
    let locks = analysis::locks(source);
    let unknown = source.model.warnings.iter();
    let unknown = unknown.map(|w| Refusal::new("import", w.place.clone(), w.reason.clone()));
    locks.iter().map(analysis::Lock::refusal).chain(unknown).collect()
}

/// The source meets the goal as it is.
fn keep_original(
    shop: &Shop<'_>,
    hunt: &mut Hunt,
    answers: &mut Answers<'_>,
    compared: &[Compared],
) -> Result<usize, CompressError> {
    shop.progress.note("the original meets the goal as it is");
    let all = 0..shop.heldout.len();
    let trial = &mut hunt.trials[0];
    let mut quality = judge::judge(shop, &trial.path, answers, compared, all, None)?;
    // The original needs no evidence that it is as good as itself.
    quality.tests.clear();
    trial.quality = Some(quality);
    trial.verdict = Verdict::Chosen;
    Ok(0)
}

fn unreachable(shop: &Shop<'_>, hunt: &Hunt) -> CompressError {
    if shop.source.grouping.groups.is_empty() {
        return CompressError::NothingToPrune {
            path: shop.source.path.clone(),
            reasons: shop.source.locked(),
        };
    }
    let mut tried: Vec<_> = hunt.trials.iter().map(hunt::Trial::measured).collect();
    if let Some(original) = tried.first_mut() {
        original.agreement = Some(Share { value: 1.0, low: 1.0, high: 1.0 });
    }
    CompressError::GoalUnreachable(Box::new(Unreachable {
        goal: shop.job.goal.clone(),
        tried,
        refused: hunt
            .refused
            .iter()
            .map(|r| format!("{}: {}: {}", r.stage, r.what, r.why))
            .collect(),
    }))
}

fn notes(shop: &Shop<'_>, compared: &[Compared]) -> Vec<String> {
    let job = shop.job;
    let mut notes: Vec<String> = compared
        .iter()
        .map(|c| format!("Answers at output {} count as the same where {}.", c.output, c.by))
        .collect();
    if !job.latency_is_of_target() {
        notes.push(format!(
            "Latency is this host's and says nothing of {0}: no measurement of {0} was given, and the bundle predicts none.",
            job.device_class
        ));
    }
    notes
}

fn write_outcome(
    shop: &Shop<'_>,
    hunt: &Hunt,
    chosen: usize,
    compared: &[Compared],
) -> Result<Outcome, CompressError> {
    let job = shop.job;
    shop.progress.stage("writing the bundle", 0);
    let kind = job.engine.kind;
    let candidates: Vec<CandidateReport> = hunt.trials.iter().map(hunt::Trial::report).collect();
    let (original, taken) = (&candidates[0], &candidates[chosen]);
    let report_html = report::render(&Story {
        job,
        engine: shop.runner.describe(),
        original,
        chosen: taken,
        candidates: &candidates,
        refused: &hunt.refused,
        calibration_samples: shop.calibration.len(),
        source_digest: shop.source.digest.to_string(),
        notes: &notes(shop, compared),
        locks: &analysis::locks(&shop.source),
        curves: &[],
        scores: &[],
    })?;
    let label = Label {
        predicted: bundle::Predicted {
            latency_p95_us: job.latency_is_of_target().then_some(taken.latency_p95_us),
            memory_bytes: Some(taken.memory_bytes),
            energy_mj: None,
            agreement: taken.quality.as_ref().map(|q| finish::measured(q.agreement)),
        },
        lineage: bundle::Lineage {
            source_sha256: Some(shop.source.digest),
            recipe: serde_json::to_value(&taken.plan)
                .map_err(|e| CompressError::Report(e.to_string()))?,
            data_sha256: Some(shop.calibration.digest()),
            parent: None,
            tool: finish::TOOL.to_owned(),
        },
        report_html: Some(report_html),
    };
    let engine = runtime::open(&job.engine)
        .map_err(CompressError::engine(format!("opening the engine {kind}")))?;
    let file = if chosen == 0 {
        shop.source.file(&shop.work)?
    } else {
        // Written anew, because the search only remembers the main file.
        let model = graph::Model::load(&hunt.trials[chosen].path)
            .map_err(|e| CompressError::Graph { stage: "export", what: e.to_string() })?;
        shop::save_as(&model, &shop.work.join("chosen.onnx"))?
    };
    let (origin, engine) = (job.bundle_job(), engine.as_ref());
    let bundle = finish::write(&origin, &file, engine, &shop.source, &shop.heldout, label)?;
    Ok(Outcome {
        report: bundle.dir.join(bundle::REPORT_FILE),
        bundle_dir: bundle.dir.clone(),
        digest: bundle.digest,
        original: original.clone(),
        chosen: taken.clone(),
        refused: hunt.refused.clone(),
        candidates,
    })
}

impl CompressJob {
    /// Whether the latency that is worked out here says something of the target: the target measured the model it
    /// runs, or it is any device, this host included.
    pub fn latency_is_of_target(&self) -> bool {
        self.baseline.is_some() || self.device_class == bundle::ANY
    }

    /// The part of the job that a bundle's folder needs.
    fn bundle_job(&self) -> OriginalJob {
        OriginalJob {
            name: self.name.clone(),
            source: self.source.clone(),
            heldout: self.heldout.clone(),
            engine: self.engine.clone(),
            device_class: self.device_class.clone(),
            sequence: self.sequence,
            version: self.version.clone(),
            out_dir: self.out_dir.clone(),
            work_dir: self.work_dir.clone(),
            seed: self.seed,
        }
    }
}
