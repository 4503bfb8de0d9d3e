//! One method at a time: the commands `prune` and `quantize`.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::hunt::{self, PAYS, not_faster};
use super::judge::{self, Reference, judge};
use super::observe;
use super::repair;
use super::shop::{Bench, Shop, Source, file_size, macs, save};
use super::{CompressJob, Goal, Progress, locked_dims};
use crate::error::CompressError;
use crate::latency::HostLatency;
use crate::plan::{GroupChoice, QuantFormat, RefitStep, Refusal, RescaleStep, ScoreKind};
use crate::quality::QualityReport;
use crate::quantize;
use crate::score::{self, Deviations};
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
    /// How units are rated; activations need `data`.
    pub score: ScoreKind,
    /// Calibration samples.
    pub data: Option<PathBuf>,
    /// Whether consumers are re-fitted, which needs `data`.
    pub repair: bool,
    /// Engine that observes activations.
    pub engine: runtime::EngineOptions,
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
    /// Sums scaled back.
    pub rescales: Vec<RescaleStep>,
    /// Repairs made.
    pub refits: Vec<RefitStep>,
    /// What was not done.
    pub refused: Vec<Refusal>,
}

/// Narrows every group of a model.
///
/// # Errors
/// See [`CompressError`]. Nothing is left at `output` on any of them.
pub fn prune(job: &PruneJob, progress: &dyn Progress) -> Result<PruneOutcome, CompressError> {
    let Some(data) = &job.data else {
        let source = Source::load(&job.source)?;
        let choices = rated(&source, job, &Deviations::new())?;
        let model = source.pruned(&choices)?;
        let made = Made { groups: choices, refused: locked_dims(&source), ..Made::default() };
        return finish(&source, job, &model, made);
    };
    let shell = shell(&job.source, data, &job.engine, job.seed);
    let shop = Shop::open_whole(&shell, progress)?;
    let mut refused = locked_dims(&shop.source);
    let (value, _) = judge::compared_output(&shop)?;
    let (original, more) = observe::observe(&shop, value)?;
    let choices = rated(&shop.source, job, &original.deviations)?;
    let mut model = shop.source.pruned(&choices)?;
    let (mut rescales, mut refits) = (Vec::new(), Vec::new());
    if job.repair {
        refused.extend(more);
        let (steps, more) = repair::rescale(&shop, &original, &mut model)?;
        rescales = steps;
        refused.extend(more);
        let (steps, more) = repair::repair(&shop, &original, &mut model, shop.calibration.len())?;
        refits = steps;
        refused.extend(more);
    }
    let made = Made { groups: choices, rescales, refits, refused };
    finish(&shop.source, job, &model, made)
}

fn rated(
    source: &Source,
    job: &PruneJob,
    deviations: &Deviations,
) -> Result<Vec<GroupChoice>, CompressError> {
    if source.grouping.groups.is_empty() {
        return Err(CompressError::NothingToPrune {
            path: source.path.clone(),
            reasons: source.locked(),
        });
    }
    hunt::choices(source, Family::All, job.ratio, &mut |index, count| {
        let group = &source.grouping.groups[index];
        score::rate(job.score, source.graph_of(&group.scope), group, deviations, job.seed)
            .map(|rating| score::best(&rating, count))
    })
    .map_err(|what| CompressError::Graph { stage: "score", what })
}

/// What was done on the way to a narrowed model.
#[derive(Debug, Default)]
struct Made {
    groups: Vec<GroupChoice>,
    rescales: Vec<RescaleStep>,
    refits: Vec<RefitStep>,
    refused: Vec<Refusal>,
}

fn finish(
    source: &Source,
    job: &PruneJob,
    model: &graph::Model,
    made: Made,
) -> Result<PruneOutcome, CompressError> {
    save(model, &job.output)?;
    Ok(PruneOutcome {
        params_before: graph::cost::params(&source.model),
        params_after: graph::cost::params(model),
        macs_before: macs(&source.model, &source.shapes),
        macs_after: macs(model, &graph::infer(model)),
        groups: made.groups,
        rescales: made.rescales,
        refits: made.refits,
        refused: made.refused,
    })
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
    let mut best: Option<(QuantFormat, quantize::Quantized, HostLatency)> = None;
    for format in formats {
        match measured(&shop, &mut bench, format)? {
            Err(why) => refused.push(Refusal::new("quantize", format.to_string(), why)),
            Ok((quantized, host)) => {
                if job.format.is_none() && host.ratio_high >= PAYS {
                    let why = not_faster(&host);
                    refused.push(Refusal::new("quantize", format.to_string(), why));
                } else if best.as_ref().is_none_or(|(_, _, b)| host.ratio < b.ratio) {
                    best = Some((format, quantized, host));
                }
            }
        }
    }
    let Some((format, quantized, latency)) = best else {
        let reasons: Vec<String> =
            refused.iter().map(|r| format!("{}: {}", r.what, r.why)).collect();
        return Err(CompressError::Graph {
            stage: "quantize",
            what: format!("no format was kept: {}", reasons.join("; ")),
        });
    };
    let path = shop.work.join("quantized.onnx");
    save(&quantized.model, &path)?;
    let quality = compare(&shop, &path)?;
    refused.extend(quantized.refused.iter().cloned());
    Ok(QuantizeOutcome {
        format,
        audit: Audit {
            intended: quantized.sites.len() + quantized.refused.len(),
            integer: quantized.sites.len(),
            reverted: quantized.refused.len(),
        },
        size_before: file_size(&job.source)?,
        size_after: save(&quantized.model, &job.output)?,
        latency,
        before_us: bench.stats.p50_us,
        quality,
        refused,
    })
}

type Measured = Result<(quantize::Quantized, HostLatency), String>;

fn measured(
    shop: &Shop<'_>,
    bench: &mut Bench,
    format: QuantFormat,
) -> Result<Measured, CompressError> {
    let quantized = match quantize::quantize(&shop.source.model, &shop.source.shapes, format) {
        Ok(quantized) => quantized,
        Err(why) => return Ok(Err(why)),
    };
    let path = shop.work.join("quantized.onnx");
    save(&quantized.model, &path)?;
    match bench.against_reference(&path, Some(PAYS)) {
        Ok(host) => Ok(Ok((quantized, host))),
        Err(CompressError::Engine { source, .. }) => {
            Ok(Err(format!("the engine does not take it: {source}")))
        }
        Err(other) => Err(other),
    }
}

fn compare(shop: &Shop<'_>, path: &Path) -> Result<QualityReport, CompressError> {
    let (_, output) = judge::compared_output(shop)?;
    let answers = judge::answers(shop, &shop.source.path, &shop.heldout, &output)?;
    let reference = Reference {
        data: &shop.heldout,
        output: &output,
        answers: &answers,
        row: judge::row(shop, &output, &answers),
    };
    judge(shop, path, &reference, 0..shop.heldout.len(), None)
}

/// A job that only opens a shop.
fn shell(source: &Path, data: &Path, engine: &runtime::EngineOptions, seed: u64) -> CompressJob {
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
        baseline: None,
        current_model: None,
        device_class: bundle::ANY.into(),
        sequence: 0,
        version: "0".into(),
        out_dir: PathBuf::new(),
        seed,
    }
}
