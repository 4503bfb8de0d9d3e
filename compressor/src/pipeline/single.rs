//! One method at a time: the commands `prune`, `quantize` and `apply`.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::analysis::{self, Lock};
use super::apply::{Applied, apply};
pub use super::auto::{Pick, Tried};
use super::budget::{Allocation, Curve};
use super::hunt::{self, PAYS, Rating, not_faster};
use super::judge::{self, Answers};
use super::observe::Original;
use super::repair::Fitting;
use super::shop::{Bench, Shop, Source, macs, save};
use super::{CompressJob, Goal, Judging, Progress, auto, kinds, locked_dims, norms, observe};
use crate::error::CompressError;
use crate::latency::{HostLatency, Speed};
use crate::plan::{
    GroupChoice, NormStep, Plan, QuantFormat, RefitStep, Refusal, RepairKind, RescaleStep,
    ScoreKind,
};
use crate::quality::QualityReport;
use crate::score::Evidence;
use crate::search::Family;

/// What `prune` is asked to do.
#[derive(Debug, Clone)]
pub struct PruneJob {
    /// The model.
    pub source: PathBuf,
    /// Where the narrowed model is written.
    pub output: PathBuf,
    /// Share of units to keep in every group.
    pub ratio: f64,
    /// How units are rated; most ask for `data`. *Auto* without data is the magnitude.
    pub score: ScoreKind,
    /// Calibration samples.
    pub data: Option<PathBuf>,
    /// How the narrowed model is brought back, in this order, which needs `data`; none for what goes with the score.
    pub repair: Option<Vec<RepairKind>>,
    /// Engine that observes activations.
    pub engine: runtime::EngineOptions,
    /// Whether the result is timed beside the original, where there are samples to time it on.
    pub timed: bool,
    /// Seed of everything random.
    pub seed: u64,
}

/// What `prune` did.
#[derive(Debug, Clone, Serialize)]
pub struct PruneOutcome {
    /// Parameters before.
    pub params_before: u64,
    /// Parameters after.
    pub params_after: u64,
    /// Multiply-accumulates before, where they can be counted.
    pub macs_before: Option<u64>,
    /// Multiply-accumulates after.
    pub macs_after: Option<u64>,
    /// What each group kept.
    pub groups: Vec<GroupChoice>,
    /// All of what was done, to do it again.
    pub plan: Plan,
    /// Sums scaled back.
    pub rescales: Vec<RescaleStep>,
    /// Repairs made.
    pub refits: Vec<RefitStep>,
    /// Consumers that took over what removed channels gave.
    pub grams: Vec<RefitStep>,
    /// Batch normalizations taken anew.
    pub norms: Vec<NormStep>,
    /// What *auto* measured, and took.
    pub auto: Vec<Pick>,
    /// What was not done.
    pub refused: Vec<Refusal>,
    /// Time beside the original's, where there were samples to measure it on.
    pub latency: Option<Speed>,
    /// What narrowing each group loses; empty where widths were not allocated.
    pub curves: Vec<Curve>,
    /// How widths were allocated under a budget, if they were.
    pub allocation: Option<Allocation>,
    /// What keeps its width, and which node says so.
    pub locked: Vec<Lock>,
}

/// Narrows every group of a model.
///
/// # Errors
/// See [`CompressError`]. Nothing is left at `output` on any of them.
pub fn prune(job: &PruneJob, progress: &dyn Progress) -> Result<PruneOutcome, CompressError> {
    let asked = job.repair.as_deref();
    let Some(data) = &job.data else {
        if asked.is_some_and(|kinds| !kinds.is_empty()) {
            return Err(wrong("a repair takes calibration samples, and there are none"));
        }
        let score = if job.score == ScoreKind::Auto { ScoreKind::Magnitude } else { job.score };
        let source = Source::load(&job.source)?;
        let rating = Rating { kind: score, by_group: &[], evidence: &Evidence::default() };
        let (plan, refused) = pruning(&source, job, &rating)?;
        return finish(&source, &job.output, plan, None, refused);
    };
    let shell = shell(&job.source, data, &job.engine, job.seed);
    let shop = Shop::open_whole(&shell, progress)?;
    let kinds = repairs(&shop.source, job);
    let seen = look(&shop, job.score, &kinds, false, job.ratio)?;
    let original = &seen.original;
    let (mut plan, more) = pruning(&shop.source, job, &seen.rating(job.score))?;
    let mut refused = seen.refused;
    refused.extend(more);
    if !kinds.is_empty() {
        let samples = shop.calibration.len();
        let (repair, left_out) = original.repair(&shop, samples, &kinds, &plan.groups);
        if kinds == [RepairKind::Bn] && repair.norms.is_empty() {
            return Err(CompressError::Graph { stage: "repair", what: norms::NONE.into() });
        }
        refused.extend(seen.unrepaired.into_iter().chain(left_out));
        plan.repair = Some(repair);
    }
    let fitting = Fitting { shop: &shop, original };
    let bench = if job.timed { Some(Bench::open(&shop)?) } else { None };
    let mut outcome = finish(&shop.source, &job.output, plan, Some(fitting), refused)?;
    outcome.auto = seen.picks;
    if let Some(mut bench) = bench {
        time(job, &mut bench, &mut outcome)?;
    }
    Ok(outcome)
}

/// Times what came out beside the original.
fn time(
    job: &PruneJob,
    bench: &mut Bench,
    outcome: &mut PruneOutcome,
) -> Result<(), CompressError> {
    match bench.against_reference(&job.output, Some(PAYS)) {
        Ok(host) => outcome.latency = Some(Speed::of(&job.engine, &bench.stats, host, PAYS)),
        Err(error) => {
            // An error that is not the model's ends the command, which then leaves no output.
            let why =
                error.of_candidate().inspect_err(|_| drop(std::fs::remove_file(&job.output)))?;
            outcome.refused.push(Refusal::new("latency", "the pruned model", why));
        }
    }
    Ok(())
}

/// The repairs that were asked for, or those that are usual for the score and the model.
pub(super) fn repairs(source: &Source, job: &PruneJob) -> Vec<RepairKind> {
    if let Some(asked) = &job.repair {
        return asked.clone();
    }
    let mut kinds = RepairKind::usual(job.score);
    if !norms::any(source) {
        kinds.retain(|kind| *kind != RepairKind::Bn);
    }
    kinds
}

/// What a pruning has seen of the original.
pub(super) struct Seen {
    pub(super) original: Original,
    by_group: Vec<ScoreKind>,
    /// What *auto* measured.
    pub(super) picks: Vec<Pick>,
    pub(super) refused: Vec<Refusal>,
    /// What cannot be repaired.
    pub(super) unrepaired: Vec<Refusal>,
}

impl Seen {
    /// How units are rated.
    pub(super) fn rating(&self, kind: ScoreKind) -> Rating<'_> {
        Rating { kind, by_group: &self.by_group, evidence: &self.original.evidence }
    }
}

/// Looks at the original for what this score and these repairs need, and at the channel Grams if `grams`. Scores are told
/// apart at the share `kept` of all units.
pub(super) fn look(
    shop: &Shop<'_>,
    score: ScoreKind,
    kinds: &[RepairKind],
    grams: bool,
    kept: f64,
) -> Result<Seen, CompressError> {
    let (by_group, picks, refused) = match score {
        ScoreKind::Auto => {
            let found = auto::pick(shop, kept)?;
            (found.by_group, found.picks, found.refused)
        }
        _ => (Vec::new(), Vec::new(), Vec::new()),
    };
    let fits = kinds.contains(&RepairKind::Ls);
    let rated = std::iter::once(&score).chain(&by_group).any(|kind| kind.needs_grams());
    let looks = observe::Looks {
        reach: fits.then_some(observe::Reach::All),
        grams: if grams || rated || kinds.contains(&RepairKind::Gram) {
            observe::Grams::All
        } else if fits {
            observe::Grams::Wide
        } else {
            observe::Grams::None
        },
        samples: shop.calibration.len(),
    };
    let (original, unrepaired) = observe::observe(shop, &[], 0..0, looks)?;
    Ok(Seen { original, by_group, picks, refused, unrepaired })
}

/// The plan to narrow every group, and what is refused on the way.
fn pruning(
    source: &Source,
    job: &PruneJob,
    rating: &Rating<'_>,
) -> Result<(Plan, Vec<Refusal>), CompressError> {
    if source.grouping.groups.is_empty() {
        return Err(CompressError::NothingToPrune {
            path: source.path.clone(),
            reasons: source.locked(),
        });
    }
    let (groups, unrated) = rating.choices(source, Family::All, job.ratio, job.seed)?;
    let plan = Plan {
        source_sha256: source.digest.to_string(),
        keep_ratio: job.ratio,
        score: rating.kind,
        seed: job.seed,
        groups,
        repair: None,
        quantize: None,
    };
    let refused = locked_dims(source).into_iter().chain(unrated).collect();
    Ok((plan, refused))
}

fn finish(
    source: &Source,
    output: &Path,
    plan: Plan,
    fitting: Option<Fitting<'_>>,
    refused: Vec<Refusal>,
) -> Result<PruneOutcome, CompressError> {
    let made = apply(source, &plan, fitting)?;
    save(&made.model, output)?;
    Ok(outcome(source, plan, made, refused))
}

/// What a plan came to.
pub(super) fn outcome(
    source: &Source,
    plan: Plan,
    made: Applied,
    mut refused: Vec<Refusal>,
) -> PruneOutcome {
    refused.extend(made.refused);
    let float = made.float.as_ref().unwrap_or(&made.model);
    PruneOutcome {
        params_before: source.file_params,
        params_after: graph::cost::params(float),
        macs_before: macs(&source.model, &source.shapes),
        macs_after: macs(float, &graph::infer(float)),
        groups: plan.groups.clone(),
        plan,
        rescales: made.rescales,
        refits: made.refits,
        grams: made.grams,
        norms: made.norms,
        auto: Vec::new(),
        refused,
        latency: None,
        curves: Vec::new(),
        allocation: None,
        locked: analysis::locks(source),
    }
}

/// What `apply` is asked to do.
#[derive(Debug, Clone)]
pub struct ReplayJob {
    /// The model that the plan is for.
    pub source: PathBuf,
    /// Where the new model is written.
    pub output: PathBuf,
    /// What to do.
    pub plan: Plan,
    /// The samples that the plan's repairs were fitted to; only asked for by plans that repair.
    pub data: Option<PathBuf>,
    /// Options of the engine that computes activations; which one it is stands in the plan.
    pub engine: runtime::EngineOptions,
}

/// Applies a plan that was made before: the same source, samples and engine give the same bytes.
///
/// # Errors
/// See [`CompressError`]; among others the plan is for another model or was fitted to other samples. Nothing is left
/// at `output` on any of them.
pub fn replay(job: &ReplayJob, progress: &dyn Progress) -> Result<PruneOutcome, CompressError> {
    let Some(repair) = &job.plan.repair else {
        let source = Source::load(&job.source)?;
        return finish(&source, &job.output, job.plan.clone(), None, Vec::new());
    };
    let data = job
        .data
        .as_ref()
        .ok_or_else(|| wrong("it repairs, which takes the calibration samples it was fitted to"))?;
    if repair.hold_out_every.is_some_and(|every| every < 2) {
        return Err(wrong("hold_out_every is under 2, which leaves no samples to fit"));
    }
    let engine = runtime::EngineOptions { kind: repair.engine, ..job.engine.clone() };
    let shell = shell(&job.source, data, &engine, job.plan.seed);
    let shop = Shop::open_fitted(&shell, progress, repair.hold_out_every)?;
    let original = observe::observe_again(&shop, repair)?;
    let fitting = Fitting { shop: &shop, original: &original };
    finish(&shop.source, &job.output, job.plan.clone(), Some(fitting), Vec::new())
}

fn wrong(what: &str) -> CompressError {
    CompressError::Graph { stage: "plan", what: what.to_owned() }
}

/// What `quantize` is asked to do.
#[derive(Debug, Clone)]
pub struct QuantizeJob {
    /// The model.
    pub source: PathBuf,
    /// Where the quantized model is written.
    pub output: PathBuf,
    /// Samples that judge.
    pub data: PathBuf,
    /// The format; without it the one that is measured fastest.
    pub format: Option<QuantFormat>,
    /// Engine in which it must be faster.
    pub engine: runtime::EngineOptions,
    /// Seed of everything random.
    pub seed: u64,
}

/// Which layers became integer.
#[derive(Debug, Clone, Serialize)]
pub struct Audit {
    /// Layers that the format is meant for.
    pub intended: usize,
    /// Layers converted.
    pub integer: usize,
    /// Layers left as they are.
    pub reverted: usize,
}

/// What `quantize` did.
#[derive(Debug, Clone, Serialize)]
pub struct QuantizeOutcome {
    /// The format.
    pub format: QuantFormat,
    /// Which layers became integer.
    pub audit: Audit,
    /// Size of the model file before.
    pub size_before: u64,
    /// Size of the model file after.
    pub size_after: u64,
    /// Latency beside the original.
    pub latency: HostLatency,
    /// Median of the original.
    pub before_us: f64,
    /// Quality on the samples.
    pub quality: QualityReport,
    /// What was not done.
    pub refused: Vec<Refusal>,
}

/// Quantizes a model where it pays. A format that was named is written even if it is slower; without a
/// name, only one that is measured faster.
///
/// # Errors
/// See [`CompressError`]. Nothing is left at `output` on any of them.
pub fn quantize(
    job: &QuantizeJob,
    progress: &dyn Progress,
) -> Result<QuantizeOutcome, CompressError> {
    let shell = shell(&job.source, &job.data, &job.engine, job.seed);
    let shop = Shop::open_whole(&shell, progress)?;
    let mut bench = Bench::open(&shop)?;
    let formats = match job.format {
        Some(format) => vec![format],
        None => vec![QuantFormat::DynamicInt8, QuantFormat::Int8],
    };
    let mut refused = Vec::new();
    let mut best: Option<(QuantFormat, Applied, HostLatency)> = None;
    for format in formats {
        match measured(&shop, &mut bench, format) {
            Err(error) => {
                let why = error.of_candidate()?;
                refused.push(Refusal::new("quantize", format.to_string(), why));
            }
            Ok((_, host)) if job.format.is_none() && host.ratio_high >= PAYS => {
                refused.push(Refusal::new("quantize", format.to_string(), not_faster(&host)));
            }
            Ok((made, host)) => {
                if best.as_ref().is_none_or(|(_, _, b)| host.ratio < b.ratio) {
                    best = Some((format, made, host));
                }
            }
        }
    }
    let Some((format, made, latency)) = best else {
        let reasons: Vec<String> =
            refused.iter().map(|r| format!("{}: {}", r.what, r.why)).collect();
        return Err(CompressError::Graph {
            stage: "quantize",
            what: format!("no format was kept: {}", reasons.join("; ")),
        });
    };
    let path = shop.work.join("quantized.onnx");
    save(&made.model, &path)?;
    let (quality, others) = compare(&shop, &path)?;
    refused.extend(others);
    let (integer, reverted) = (made.integer.len(), made.refused.len());
    refused.extend(made.refused);
    Ok(QuantizeOutcome {
        format,
        audit: Audit { intended: integer + reverted, integer, reverted },
        size_before: shop.source.size_bytes,
        size_after: save(&made.model, &job.output)?,
        latency,
        before_us: bench.stats.p50_us,
        quality,
        refused,
    })
}

fn measured(
    shop: &Shop<'_>,
    bench: &mut Bench,
    format: QuantFormat,
) -> Result<(Applied, HostLatency), CompressError> {
    let made = apply(&shop.source, &hunt::plan(shop, 1.0, Vec::new(), Some(format)), None)?;
    let path = shop.work.join("quantized.onnx");
    save(&made.model, &path)?;
    let host = bench.against_reference(&path, Some(PAYS))?;
    Ok((made, host))
}

fn compare(shop: &Shop<'_>, path: &Path) -> Result<(QualityReport, Vec<Refusal>), CompressError> {
    let (outputs, others) = judge::outputs(shop)?;
    let mut answers = Answers::new(&shop.heldout, &outputs);
    answers.hold(shop, 0, shop.heldout.len())?;
    let (compared, refused) = kinds::comparisons(shop, &outputs, &others, &answers);
    let all = 0..shop.heldout.len();
    let quality = judge::judge(shop, path, &mut answers, &compared, all, None)?;
    Ok((quality, refused))
}

/// A job that only opens a shop.
pub(super) fn shell(
    source: &Path,
    data: &Path,
    engine: &runtime::EngineOptions,
    seed: u64,
) -> CompressJob {
    CompressJob {
        name: "model".into(),
        source: source.to_path_buf(),
        calibration: data.to_path_buf(),
        heldout: data.to_path_buf(),
        engine: engine.clone(),
        goal: Goal {
            latency_p95_us: None,
            memory_bytes: None,
            size_bytes: None,
            agreement_min: 0.0,
        },
        judging: Judging::default(),
        baseline: None,
        current_model: None,
        device_class: bundle::ANY.into(),
        sequence: 0,
        version: "0".into(),
        out_dir: PathBuf::new(),
        work_dir: None,
        seed,
    }
}
