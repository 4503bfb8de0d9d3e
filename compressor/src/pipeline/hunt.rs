//! The search over widths by latency alone: no data and no repair, since neither changes how long a
//! model takes.

use std::collections::HashMap;
use std::path::PathBuf;

use bundle::Estimate;
use rayon::iter::{IntoParallelRefIterator, ParallelIterator};

use super::apply::apply;
use super::shop::{Bench, Shop, Source, macs, save};
use super::{CandidateReport, Verdict};
use crate::error::CompressError;
use crate::latency::HostLatency;
use crate::memory;
use crate::plan::{
    GroupChoice, Plan, QuantFormat, RefitStep, Refusal, RescaleStep, ScoreKind, aligned_keep,
};
use crate::quality::QualityReport;
use crate::quantize;
use crate::score::{self, Evidence};
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
    pub(crate) label: String,
    pub(crate) plan: Plan,
    pub(crate) rescales: Vec<RescaleStep>,
    pub(crate) refits: Vec<RefitStep>,
    pub(crate) path: PathBuf,
    pub(crate) params: u64,
    pub(crate) macs: Option<u64>,
    pub(crate) size_bytes: u64,
    pub(crate) host: HostLatency,
    pub(crate) latency: Estimate,
    pub(crate) memory: Estimate,
    pub(crate) quality: Option<QualityReport>,
    pub(crate) verdict: Verdict,
}

impl Trial {
    /// What the search compares.
    pub(crate) fn measured(&self) -> Measured {
        Measured {
            label: self.label.clone(),
            latency_p95_us: self.latency,
            memory_bytes: self.memory.value,
            size_bytes: self.size_bytes,
            agreement: self.quality.as_ref().map(|q| q.agreement),
        }
    }

    /// What the caller and the report get.
    pub(crate) fn report(&self) -> CandidateReport {
        CandidateReport {
            label: self.label.clone(),
            plan: self.plan.clone(),
            rescales: self.rescales.clone(),
            refits: self.refits.clone(),
            params: self.params,
            macs: self.macs,
            size_bytes: self.size_bytes,
            host: self.host,
            latency_p95_us: self.latency,
            memory_bytes: self.memory,
            quality: self.quality.clone(),
            verdict: self.verdict.clone(),
        }
    }
}

/// Memory of the process that will serve a model of `size` bytes, from what the device measured if it did.
pub(crate) fn memory(shop: &Shop<'_>, size: u64) -> Estimate {
    memory::predict(shop.job.engine.kind, size, shop.serving)
}

/// What the latency search found.
pub(crate) struct Hunt {
    /// Everything timed; the source is the first.
    pub(crate) trials: Vec<Trial>,
    /// Indices of trials worth judging: the widest of each family that meets the budgets.
    pub(crate) shortlist: Vec<usize>,
    pub(crate) refused: Vec<Refusal>,
    /// None for what could not be built or run.
    timed: HashMap<Key, Option<usize>>,
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
    let original = build(shop, bench, None, 1.0, None)?;
    hunt.add(shop, original);
    if hunt.meets(shop, 0) {
        hunt.shortlist.push(0);
        return Ok(hunt);
    }
    let mut formats = vec![None];
    for format in [QuantFormat::DynamicInt8, QuantFormat::Int8] {
        if hunt.pays(shop, bench, format)? {
            formats.push(Some(format));
        }
    }
    let families = hunt.families(shop)?;
    for format in formats {
        if let Some(at) = hunt.full_width(shop, format) {
            hunt.shortlist.push(at);
            continue;
        }
        for family in &families {
            let widest = hunt.widest(shop, bench, *family, format)?;
            hunt.shortlist.extend(widest);
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
        cost_misses(&self.trials[at].measured(), &shop.job.goal, SEARCH_MARGIN).is_empty()
    }

    /// The full-width trial of an integer format, if it meets the budgets.
    fn full_width(&self, shop: &Shop<'_>, format: Option<QuantFormat>) -> Option<usize> {
        let format = Some(format?);
        let at = self.timed.get(&key(None, 1.0, format)).copied().flatten()?;
        self.meets(shop, at).then_some(at)
    }

    /// The widest trial of a family that meets the budgets.
    fn widest(
        &mut self,
        shop: &Shop<'_>,
        bench: &mut Bench,
        family: Family,
        format: Option<QuantFormat>,
    ) -> Result<Option<usize>, CompressError> {
        let mut rungs = ladder(family, &shop.source.widths());
        // The bisection takes a narrowest that fails for a hopeless family: one that cannot be built at all
        // (nothing is left that the format is for) says nothing of the wider ones.
        while let Some(narrowest) = rungs.last() {
            shop.check("timing")?;
            if self.time(shop, bench, Some(family), *narrowest, format)?.is_some() {
                break;
            }
            rungs.pop();
        }
        let widest = widest_that_fits(rungs.len(), &mut |rung| {
            shop.check("timing")?;
            let at = self.time(shop, bench, Some(family), rungs[rung], format)?;
            Ok::<bool, CompressError>(at.is_some_and(|at| self.meets(shop, at)))
        })?;
        let found = widest.map(|rung| key(Some(family), rungs[rung], format));
        Ok(found.and_then(|key| self.timed.get(&key).copied().flatten()))
    }

    /// Times one candidate and adds it to the trials; its index, or none where it cannot be built or run, which
    /// is refused. A second time costs nothing.
    pub(crate) fn time(
        &mut self,
        shop: &Shop<'_>,
        bench: &mut Bench,
        family: Option<Family>,
        ratio: f64,
        format: Option<QuantFormat>,
    ) -> Result<Option<usize>, CompressError> {
        let key = key(family, ratio, format);
        if let Some(at) = self.timed.get(&key) {
            return Ok(*at);
        }
        let at = match build(shop, bench, family, ratio, format) {
            Ok(trial) => Some(self.add(shop, trial)),
            Err(error) => {
                let why = error.of_candidate()?;
                self.refuse("search", &label(shop, family, ratio, format), why);
                None
            }
        };
        self.timed.insert(key, at);
        Ok(at)
    }

    fn add(&mut self, shop: &Shop<'_>, trial: Trial) -> usize {
        let p95 = search::milliseconds(trial.latency.value);
        shop.progress.note(&format!("{}: p95 {p95}", trial.label));
        self.trials.push(trial);
        self.trials.len() - 1
    }

    /// Whether a format is faster than float at full width, in this engine; if not, the refusal says by how much.
    fn pays(
        &mut self,
        shop: &Shop<'_>,
        bench: &mut Bench,
        format: QuantFormat,
    ) -> Result<bool, CompressError> {
        let name = format.to_string();
        let quantized = match quantize::quantize(&shop.source.model, &shop.source.shapes, format) {
            Ok(quantized) => quantized,
            Err(why) => {
                self.refuse("quantize", &name, why);
                return Ok(false);
            }
        };
        self.refused.extend(quantized.refused);
        let path = shop.work.join("format.onnx");
        save(&quantized.model, &path)?;
        match bench.against(&path, &shop.source.path) {
            Ok(host) if host.ratio_high < PAYS => {
                Ok(self.time(shop, bench, None, 1.0, Some(format))?.is_some())
            }
            Ok(host) => {
                self.refuse("quantize", &name, not_faster(&host));
                Ok(false)
            }
            Err(error) => {
                let why = error.of_candidate()?;
                self.refuse("quantize", &name, format!("the engine does not take it: {why}"));
                Ok(false)
            }
        }
    }

    /// Adds a refusal, once.
    pub(crate) fn refuse(&mut self, stage: &str, what: &str, why: String) {
        self.refuse_all([Refusal::new(stage, what, why)]);
    }

    /// Adds refusals, each once.
    pub(crate) fn refuse_all(&mut self, refusals: impl IntoIterator<Item = Refusal>) {
        for refusal in refusals {
            if !self.refused.contains(&refusal) {
                self.refused.push(refusal);
            }
        }
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
            match shop.source.pruned(&choices) {
                Ok(model) => savings.push((index, cost(&model))),
                Err(error) => {
                    let why = error.of_candidate()?;
                    self.refuse("search", &shop.source.group_label(index), why);
                }
            }
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
        for (at, trial) in self.trials.iter_mut().enumerate() {
            if self.shortlist.contains(&at) {
                continue;
            }
            let misses = cost_misses(&trial.measured(), &shop.job.goal, SEARCH_MARGIN);
            trial.verdict = if misses.is_empty() {
                let why = "a wider candidate of its family meets the budgets too";
                Verdict::NotJudged(why.into())
            } else {
                Verdict::Refused(misses.join("; "))
            };
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
    let first = |(index, count)| source.choice(index, (0..count as u32).collect());
    narrowed(source, family, ratio).into_iter().map(first).collect()
}

/// The groups that a family narrows at a ratio, with how many units each keeps.
fn narrowed(source: &Source, family: Family, ratio: f64) -> Vec<(usize, usize)> {
    let widths = source.widths();
    let groups = widths.iter().enumerate().filter(|(index, _)| family.narrows(*index));
    groups
        .map(|(index, width)| (index, *width, aligned_keep(*width, ratio)))
        .filter(|(_, width, count)| count < width)
        .map(|(index, _, count)| (index, count))
        .collect()
}

/// How the units of groups are rated.
pub(crate) struct Rating<'a> {
    pub(crate) kind: ScoreKind,
    /// For each group, where they are not all rated alike; else empty.
    pub(crate) by_group: &'a [ScoreKind],
    pub(crate) evidence: &'a Evidence,
}

impl Rating<'_> {
    /// The score of a group.
    pub(crate) fn of(&self, index: usize) -> ScoreKind {
        self.by_group.get(index).copied().unwrap_or(self.kind)
    }

    /// Choices of a family at a ratio with the best rated units, and a refusal for each group that could not be rated
    /// as asked.
    pub(crate) fn choices(
        &self,
        source: &Source,
        family: Family,
        ratio: f64,
        seed: u64,
    ) -> Result<(Vec<GroupChoice>, Vec<Refusal>), CompressError> {
        let narrowed = narrowed(source, family, ratio);
        let groups: Vec<usize> = narrowed.iter().map(|(index, _)| *index).collect();
        let (units, refused) = self.units(source, &groups, seed)?;
        let best = |(units, (index, count)): (&Vec<f64>, &(usize, usize))| {
            source.choice(*index, score::best(units, *count))
        };
        Ok((units.iter().zip(&narrowed).map(best).collect(), refused))
    }

    /// As [`Self::units`], of every group.
    pub(crate) fn all_units(
        &self,
        source: &Source,
        seed: u64,
    ) -> Result<(Vec<Vec<f64>>, Vec<Refusal>), CompressError> {
        let all: Vec<usize> = (0..source.grouping.groups.len()).collect();
        self.units(source, &all, seed)
    }

    /// How important each unit of `groups` is, and a refusal for each group that could not be rated as asked.
    fn units(
        &self,
        source: &Source,
        groups: &[usize],
        seed: u64,
    ) -> Result<(Vec<Vec<f64>>, Vec<Refusal>), CompressError> {
        let rated = groups.par_iter().map(|index| {
            let group = &source.grouping.groups[*index];
            let graph = source.graph_of(&group.scope);
            score::rate(self.of(*index), graph, group, self.evidence, seed)
        });
        let rated: Vec<score::Rating> = rated
            .collect::<Result<_, _>>()
            .map_err(|what| CompressError::Graph { stage: "score", what })?;
        let mut refused = Vec::new();
        let units = rated.into_iter().zip(groups).map(|(rating, index)| {
            let label = || source.group_label(*index);
            refused.extend(rating.fell_back.map(|why| Refusal::new("score", label(), why)));
            rating.units
        });
        Ok((units.collect(), refused))
    }
}

/// A plan that narrows and quantizes, and repairs nothing.
pub(crate) fn plan(
    shop: &Shop<'_>,
    keep_ratio: f64,
    groups: Vec<GroupChoice>,
    quantize: Option<QuantFormat>,
) -> Plan {
    Plan {
        source_sha256: shop.source.digest.to_string(),
        keep_ratio,
        score: ScoreKind::Activation,
        seed: shop.job.seed,
        groups,
        repair: None,
        quantize,
    }
}

/// Makes and times a candidate, with arbitrary units in place of the best.
fn build(
    shop: &Shop<'_>,
    bench: &mut Bench,
    family: Option<Family>,
    ratio: f64,
    format: Option<QuantFormat>,
) -> Result<Trial, CompressError> {
    let choices = family.map_or_else(Vec::new, |f| first_units(&shop.source, f, ratio));
    let plan = plan(shop, ratio, choices, format);
    let made = apply(&shop.source, &plan, None)?;
    let float = made.float.as_ref().unwrap_or(&made.model);
    let (params, macs) = (graph::cost::params(float), macs(float, &graph::infer(float)));
    let untouched = plan.groups.is_empty() && format.is_none();
    let (path, size_bytes) = if untouched {
        (shop.source.path.clone(), shop.source.size_bytes)
    } else {
        let path = shop.work.join("timed.onnx");
        let size = save(&made.model, &path)?;
        (path, size)
    };
    let host = bench.against_reference(&path, limit(shop, bench, SEARCH_MARGIN))?;
    Ok(Trial {
        label: label(shop, family, ratio, format),
        latency: host.predict(&bench.stats, shop.baseline),
        memory: memory(shop, size_bytes),
        family,
        plan,
        rescales: Vec::new(),
        refits: Vec::new(),
        path,
        params,
        macs,
        size_bytes,
        host,
        quality: None,
        verdict: Verdict::NotJudged("it was on the shortlist when the search ended".into()),
    })
}

/// The ratio to the reference that decides, if latency is a budget.
pub(crate) fn limit(shop: &Shop<'_>, bench: &Bench, margin: f64) -> Option<f64> {
    let budget = shop.job.goal.latency_p95_us?;
    Some(HostLatency::limit(budget, margin, &bench.stats, shop.baseline))
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "hunt_tests.rs"]
mod tests;
