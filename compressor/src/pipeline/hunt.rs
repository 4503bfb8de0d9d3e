//! The search over widths by latency alone: no data and no repair, since neither changes how long a
//! model takes.

use std::collections::HashMap;
use std::convert::Infallible;
use std::path::PathBuf;

use bundle::{Estimate, Quality};
use runtime::EngineKind;

use super::shop::{Bench, Shop, Source, file_size, macs, save};
use super::{CandidateReport, Verdict};
use crate::error::CompressError;
use crate::latency::HostLatency;
use crate::plan::{
    GroupChoice, Plan, QuantFormat, RefitStep, Refusal, RescaleStep, ScoreKind, aligned_keep,
};
use crate::quality::QualityReport;
use crate::quantize;
use crate::search::{self, Family, Measured, SEARCH_MARGIN, cost_misses, ladder, widest_that_fits};

/// Groups that are tried alone: those whose narrowing saves most.
const MAX_SINGLES: usize = 3;
/// Groups whose saving is worked out.
const MAX_COMPARED: usize = 64;
/// A format pays if even the upper end of its ratio to float is under this.
pub(crate) const PAYS: f64 = 0.98;

/// A candidate on its way.
#[derive(Debug, Clone)]
pub(crate) struct Trial {
    pub(crate) family: Option<Family>,
    pub(crate) ratio: f64,
    pub(crate) format: Option<QuantFormat>,
    pub(crate) label: String,
    pub(crate) choices: Vec<GroupChoice>,
    pub(crate) rescales: Vec<RescaleStep>,
    pub(crate) refits: Vec<RefitStep>,
    pub(crate) path: PathBuf,
    pub(crate) params: u64,
    pub(crate) macs: Option<u64>,
    pub(crate) size_bytes: u64,
    pub(crate) host: HostLatency,
    pub(crate) latency: Estimate,
    pub(crate) quality: Option<QualityReport>,
    pub(crate) verdict: Verdict,
}

impl Trial {
    /// What the search compares.
    pub(crate) fn measured(&self, engine: EngineKind) -> Measured {
        Measured {
            label: self.label.clone(),
            latency_p95_us: self.latency,
            memory_bytes: memory(engine, self.size_bytes).value,
            size_bytes: self.size_bytes,
            agreement: self.quality.as_ref().map(|q| q.agreement),
        }
    }

    /// What the caller and the report get.
    pub(crate) fn report(&self, engine: EngineKind, seed: u64) -> CandidateReport {
        CandidateReport {
            label: self.label.clone(),
            plan: Plan {
                keep_ratio: self.ratio,
                score: ScoreKind::Activation,
                seed,
                groups: self.choices.clone(),
                rescales: self.rescales.clone(),
                refits: self.refits.clone(),
                quantize: self.format,
            },
            params: self.params,
            macs: self.macs,
            size_bytes: self.size_bytes,
            host: self.host,
            latency_p95_us: self.latency,
            memory_bytes: memory(engine, self.size_bytes),
            quality: self.quality.clone(),
            verdict: self.verdict.clone(),
        }
    }
}

/// Memory of a process that serves a model of `size` bytes, modelled: a fixed part and a multiple of the
/// weights, as resident sizes of ResNet-18 (47 MB on disk) in both engines give them.
pub(crate) fn memory(engine: EngineKind, size: u64) -> Estimate {
    let (base, factor) = match engine {
        EngineKind::Ort => (30e6, 3.0),
        EngineKind::Tract => (17e6, 2.3),
    };
    let value = base + factor * size as f64;
    Estimate { value, low: 0.6 * value, high: 1.6 * value, quality: Quality::Modelled }
}

/// What the latency search found.
pub(crate) struct Hunt {
    /// Everything timed; the source is the first.
    pub(crate) trials: Vec<Trial>,
    /// Indices of trials worth judging: the widest of each family that meets the budgets.
    pub(crate) shortlist: Vec<usize>,
    pub(crate) refused: Vec<Refusal>,
    timed: HashMap<Key, usize>,
}

type Key = (Option<Family>, u64, Option<QuantFormat>);

/// Times the source, the integer formats at full width, and the families, and shortlists.
pub(crate) fn hunt(shop: &Shop<'_>, bench: &mut Bench) -> Result<Hunt, CompressError> {
    let mut hunt = Hunt {
        trials: Vec::new(),
        shortlist: Vec::new(),
        refused: Vec::new(),
        timed: HashMap::new(),
    };
    shop.progress.stage("timing widths", 0);
    let original = hunt.time(shop, bench, None, 1.0, None)?;
    if hunt.meets(shop, original) {
        hunt.shortlist.push(original);
        return Ok(hunt);
    }
    let mut formats = vec![None];
    for format in [QuantFormat::DynamicInt8, QuantFormat::Int8] {
        if hunt.pays(shop, bench, format)? {
            formats.push(Some(format));
        }
    }
    let families = hunt.families(shop)?;
    let widths = shop.source.widths();
    for format in formats {
        if let Some(at) = hunt.full_width(shop, format) {
            hunt.shortlist.push(at);
            continue;
        }
        for family in &families {
            let rungs = ladder(*family, &widths);
            let widest = widest_that_fits(rungs.len(), &mut |rung| {
                shop.check("timing")?;
                let at = hunt.time(shop, bench, Some(*family), rungs[rung], format)?;
                Ok::<bool, CompressError>(hunt.meets(shop, at))
            })?;
            if let Some(rung) = widest {
                let key = key(Some(*family), rungs[rung], format);
                hunt.shortlist.extend(hunt.timed.get(&key).copied());
            }
        }
    }
    hunt.explain(shop);
    Ok(hunt)
}

fn key(family: Option<Family>, ratio: f64, format: Option<QuantFormat>) -> Key {
    (family, ratio.to_bits(), format)
}

impl Hunt {
    fn meets(&self, shop: &Shop<'_>, at: usize) -> bool {
        let measured = self.trials[at].measured(shop.job.engine.kind);
        cost_misses(&measured, &shop.job.goal, SEARCH_MARGIN).is_empty()
    }

    /// The full-width trial of an integer format, if it meets the budgets.
    fn full_width(&self, shop: &Shop<'_>, format: Option<QuantFormat>) -> Option<usize> {
        let format = Some(format?);
        let at = self.timed.get(&key(None, 1.0, format)).copied()?;
        self.meets(shop, at).then_some(at)
    }

    /// Times one candidate and adds it to the trials; its index. A second time costs nothing.
    pub(crate) fn time(
        &mut self,
        shop: &Shop<'_>,
        bench: &mut Bench,
        family: Option<Family>,
        ratio: f64,
        format: Option<QuantFormat>,
    ) -> Result<usize, CompressError> {
        let key = key(family, ratio, format);
        if let Some(at) = self.timed.get(&key) {
            return Ok(*at);
        }
        let trial = build(shop, bench, family, ratio, format)?;
        shop.progress.note(&format!(
            "{}: p95 {}",
            trial.label,
            search::milliseconds(trial.latency.value)
        ));
        self.trials.push(trial);
        self.timed.insert(key, self.trials.len() - 1);
        Ok(self.trials.len() - 1)
    }

    /// Whether a format is faster than float at full width, in this engine; if not, the refusal says by how much.
    fn pays(
        &mut self,
        shop: &Shop<'_>,
        bench: &mut Bench,
        format: QuantFormat,
    ) -> Result<bool, CompressError> {
        let quantized = match quantize::quantize(&shop.source.model, &shop.source.shapes, format) {
            Ok(quantized) => quantized,
            Err(why) => {
                self.refuse(format, why);
                return Ok(false);
            }
        };
        self.refused.extend(quantized.refused);
        let path = shop.work.join("format.onnx");
        save(&quantized.model, &path)?;
        let host = match bench.against(&path, &shop.source.path) {
            Ok(host) => host,
            Err(CompressError::Engine { source, .. }) => {
                self.refuse(format, format!("the engine does not take it: {source}"));
                return Ok(false);
            }
            Err(other) => return Err(other),
        };
        if host.ratio_high < PAYS {
            self.time(shop, bench, None, 1.0, Some(format))?;
            return Ok(true);
        }
        self.refuse(format, not_faster(&host));
        Ok(false)
    }

    fn refuse(&mut self, format: QuantFormat, why: String) {
        self.refused.push(Refusal::new("quantize", format.to_string(), why));
    }

    /// All groups together, and the groups that save most alone.
    fn families(&mut self, shop: &Shop<'_>) -> Result<Vec<Family>, CompressError> {
        let widths = shop.source.widths();
        let mut families = Vec::new();
        if widths.len() != 1 {
            families.push(Family::All);
        }
        let mut savings: Vec<(usize, u64)> = Vec::new();
        for index in 0..widths.len().min(MAX_COMPARED) {
            let choices = first_units(&shop.source, Family::Single(index), 0.5);
            let model = shop.source.pruned(&choices)?;
            savings.push((index, cost(&model)));
        }
        savings.sort_by_key(|(_, cost)| *cost);
        families.extend(savings.iter().take(MAX_SINGLES).map(|(i, _)| Family::Single(*i)));
        if widths.len() > MAX_SINGLES {
            self.refused.push(Refusal::new(
                "search",
                format!("{} groups alone", widths.len() - MAX_SINGLES),
                format!("only the {MAX_SINGLES} groups that save most are tried alone; all are narrowed together"),
            ));
        }
        Ok(families)
    }

    /// Gives every trial that was not shortlisted its reason.
    fn explain(&mut self, shop: &Shop<'_>) {
        let engine = shop.job.engine.kind;
        for (at, trial) in self.trials.iter_mut().enumerate() {
            if self.shortlist.contains(&at) {
                continue;
            }
            let misses = cost_misses(&trial.measured(engine), &shop.job.goal, SEARCH_MARGIN);
            trial.verdict = Verdict::Refused(if misses.is_empty() {
                "a wider candidate of its family meets the budgets too".into()
            } else {
                misses.join("; ")
            });
        }
    }
}

/// Says by how much a format is not faster.
pub(crate) fn not_faster(host: &HostLatency) -> String {
    format!(
        "it is not measurably faster than float in this engine: {:.2} times the time ({:.2} to {:.2}, {} rounds)",
        host.ratio, host.ratio_low, host.ratio_high, host.rounds
    )
}

fn cost(model: &graph::Model) -> u64 {
    let shapes = graph::infer(model);
    macs(model, &shapes).unwrap_or_else(|| graph::cost::params(model))
}

/// The first units of each narrowed group: enough to time a width.
fn first_units(source: &Source, family: Family, ratio: f64) -> Vec<GroupChoice> {
    let first = &mut |_, count| Ok::<_, Infallible>((0..count as u32).collect());
    match choices(source, family, ratio, first) {
        Ok(choices) => choices,
        Err(never) => match never {},
    }
}

/// Choices of a family at a ratio, with the units that `pick` gives for a group and a width.
///
/// # Errors
/// Those of `pick`.
pub(crate) fn choices<E>(
    source: &Source,
    family: Family,
    ratio: f64,
    pick: &mut dyn FnMut(usize, usize) -> Result<Vec<u32>, E>,
) -> Result<Vec<GroupChoice>, E> {
    let widths = source.widths();
    let narrowed = widths.iter().enumerate().filter(|(index, _)| family.narrows(*index));
    narrowed
        .map(|(index, width)| (index, *width, aligned_keep(*width, ratio)))
        .filter(|(_, width, count)| count < width)
        .map(|(index, _, count)| Ok(source.choice(index, pick(index, count)?)))
        .collect()
}

fn build(
    shop: &Shop<'_>,
    bench: &mut Bench,
    family: Option<Family>,
    ratio: f64,
    format: Option<QuantFormat>,
) -> Result<Trial, CompressError> {
    let choices = family.map_or_else(Vec::new, |f| first_units(&shop.source, f, ratio));
    let mut model = shop.source.pruned(&choices)?;
    let (params, macs) = {
        let shapes = graph::infer(&model);
        (graph::cost::params(&model), macs(&model, &shapes))
    };
    if let Some(format) = format {
        model = quantized(&model, format)?;
    }
    let untouched = choices.is_empty() && format.is_none();
    let (path, size_bytes) = if untouched {
        (shop.source.path.clone(), file_size(&shop.source.path)?)
    } else {
        let path = shop.work.join("timed.onnx");
        let size = save(&model, &path)?;
        (path, size)
    };
    let host = bench.against_reference(&path, limit(shop, bench, SEARCH_MARGIN))?;
    Ok(Trial {
        label: label(shop, family, ratio, format),
        latency: host.predict(&bench.stats, shop.job.baseline),
        family,
        ratio,
        format,
        choices,
        rescales: Vec::new(),
        refits: Vec::new(),
        path,
        params,
        macs,
        size_bytes,
        host,
        quality: None,
        verdict: Verdict::Feasible,
    })
}

/// The ratio to the reference that decides, if latency is a budget.
pub(crate) fn limit(shop: &Shop<'_>, bench: &Bench, margin: f64) -> Option<f64> {
    let job = shop.job;
    let budget = job.goal.latency_p95_us?;
    Some(HostLatency::limit(budget, margin, &bench.stats, job.baseline))
}

/// `model` in `format`; the format has been found possible on the source before.
pub(crate) fn quantized(
    model: &graph::Model,
    format: QuantFormat,
) -> Result<graph::Model, CompressError> {
    quantize::quantize(model, &graph::infer(model), format)
        .map(|q| q.model)
        .map_err(|what| CompressError::Graph { stage: "quantize", what })
}

fn label(
    shop: &Shop<'_>,
    family: Option<Family>,
    ratio: f64,
    format: Option<QuantFormat>,
) -> String {
    let mut text = match family {
        None => "original".to_owned(),
        Some(Family::All) => format!("all groups {} %", ratio * 100.0),
        Some(Family::Single(index)) => {
            format!("{} {} %", short(&shop.source.group_label(index)), ratio * 100.0)
        }
    };
    if let Some(format) = format {
        text.push_str(", ");
        text.push_str(&format.to_string());
    }
    text
}

/// The last two parts of a long path-like name.
fn short(name: &str) -> String {
    let parts: Vec<&str> = name.rsplit('/').take(2).collect();
    parts.into_iter().rev().collect::<Vec<_>>().join("/")
}
