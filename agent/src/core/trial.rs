//! The probation of a new model as a sequential test.
//!
//! Per metric there is a claim, that the model is no worse than it may be, and evidence against it,
//! which may be looked at after every window ([`evidence`] says why). A model is taken back when the
//! evidence of one metric is over 1 / that metric's part of `probation.false_rollback_rate`; the parts
//! add up to the rate, whatever the metrics have in common.
//!
//! **No worse** means no worse than *one* of its references: the record of the model before it, with a
//! tolerance (`install.regress_ratio`, and an absolute floor); what its bundle predicts; the device's
//! budget. Evidence has to be there against each of them, and the least of it counts. Budgets, and
//! predictions that were not measured, only excuse: alone they take no model back.
//!
//! - *Latency*: a request is over where its bucket lies wholly above the limit. Against a budget or a
//!   prediction, both of which are p95, one in twenty may be. The record's own p95 is a guess, so that
//!   the share allowed over it is the most that the record leaves possible, and half of the level pays for
//!   that bound. Requests within `probation.correlation_ms` of each other count as one.
//! - *Memory, energy*: one observation a window in which there were requests, over or not.
//! - *Errors*: a request fails or not; four in a row may fail for one reason.
//! - *Crashes*: a second death of the worker. No test, but a rule: [`CRASHES`] says what it promises.
//! - *Agreement* is tested in the shadow, before the switch, and only told here.
//!
//! The limits are fixed at the switch and stand in the journal, with the counts of every window that had
//! requests: an agent that starts again goes on counting. What it does not do: measure, decide where
//! there is no model to go back to, or keep a sample.

use serde::{Deserialize, Serialize};
use wire::{Budgets, Histogram, Metric, Quality, Reference};

use super::record::Baseline;
use super::settings::InstallRules;
use evidence::{ln_evidence, upper};
pub use rules::ProbationRules;

pub(super) mod evidence;
mod report;
mod rules;
#[cfg(test)]
mod simulations;

/// Deaths of the worker from which a model is taken back. Workers that die for reasons outside the
/// model with a rate r bring that about in a time T with a chance below (rT)²/2: with the default rate,
/// windows and part, once in 35 minutes on average is still within the bound.
pub(super) const CRASHES: u32 = 2;
/// The class of a bundle that fits every device.
const ANY_CLASS: &str = "any";
/// The share of requests over a 95th percentile.
const P95_SHARE: f64 = 0.05;
/// The share of memory readings of a model that may be over its limit.
const MEMORY_SHARE: f64 = 0.01;
/// The share of energy readings of a model that may be over its limit.
const ENERGY_SHARE: f64 = 0.05;
/// Where there is a latency budget, the floor is no more than this share of it.
const FLOOR_OF_BUDGET: f64 = 0.1;
/// A model fails no more than the one before it up to this many times its share.
const ERROR_RATIO: f64 = 2.0;
/// From this evidence on a probation is not over at its regular end.
const SUSPICION: f64 = 10.0;

/// What a bundle says its model will cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Predictions {
    /// p95 in the engine, microseconds.
    pub latency_p95_us: Option<Prediction>,
    /// Memory of the worker, bytes.
    pub memory_bytes: Option<Prediction>,
    /// Energy per inference, millijoules.
    pub energy_mj: Option<Prediction>,
    /// Share of answers equal to the original model's, 0 to 1.
    pub agreement: Option<Prediction>,
}

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Prediction {
    /// The number.
    pub value: f64,
    /// Upper end of its interval.
    pub high: f64,
    /// Whether it was measured.
    pub quality: Quality,
}

/// Whether a reference can take a model back, or only keep it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Role {
    Accuses,
    Excuses,
}

/// Observations held against one reference.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Count {
    reference: Reference,
    role: Role,
    /// From where an observation is over.
    limit: f64,
    /// The share that may be.
    allowed: f64,
    /// Observations, as independent ones.
    seen: f64,
    /// Of these, over.
    over: f64,
}

/// What a probation knows. Its size is bounded, and it is journalled as it is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// `probation.false_rollback_rate` when it began.
    rate: f64,
    /// `probation.correlation_ms` when it began.
    correlation_ms: u64,
    /// Windows with enough requests and no outside cause.
    windows: u32,
    /// Requests answered.
    requests: u64,
    /// Of these, with an error.
    errors: u64,
    /// Deaths of the worker.
    deaths: u32,
    /// Times in the engine, where nothing from outside slowed them.
    times: Histogram,
    /// The highest memory reading.
    memory_bytes: Option<u64>,
    /// Sum of the energy readings, and their number.
    energy: (f64, u32),
    latency: Vec<Count>,
    memory: Vec<Count>,
    energies: Vec<Count>,
    failures: Vec<Count>,
}

/// What one window shows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Observation<'a> {
    /// Its length.
    pub window_ms: u64,
    /// Times in the engine, unless something from outside slowed them.
    pub times: Option<&'a Histogram>,
    /// Requests answered.
    pub requests: u64,
    /// Of these, with an error.
    pub errors: u64,
    /// Memory of the worker, unless it was loading.
    pub memory_bytes: Option<u64>,
    /// Energy per inference, where it was measured.
    pub energy_mj: Option<f64>,
}

/// Where a trial stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing to say against it.
    Clean,
    /// Too little to take it back and too much to be done.
    Suspect,
    /// Take it back.
    Back(String),
}

impl Trial {
    /// The trial of a model that was just switched to.
    pub(super) fn begin(
        before: &Baseline,
        predicted: &Predictions,
        budgets: &Budgets,
        rules: &ProbationRules,
        install: &InstallRules,
    ) -> Self {
        let ratio = install.regress_ratio;
        let rate = install.max_error_rate.max(ERROR_RATIO * before.error_rate);
        Self {
            rate: rules.false_rollback_rate,
            correlation_ms: rules.correlation_ms,
            latency: latency(before, predicted, budgets, rules, ratio),
            memory: scalars(
                &Known {
                    before: before.memory_bytes.map(as_float),
                    predicted: predicted.memory_bytes,
                    budget: budgets.memory_bytes.map(as_float),
                    floor: as_float(rules.memory_floor_bytes),
                    allowed: MEMORY_SHARE,
                },
                ratio,
            ),
            energies: scalars(
                &Known {
                    before: before.energy_mj,
                    predicted: predicted.energy_mj,
                    budget: budgets.energy_mj,
                    floor: rules.energy_floor_mj,
                    allowed: ENERGY_SHARE,
                },
                ratio,
            ),
            failures: vec![Count::new(Reference::Rule, Role::Accuses, 0.0, rate)],
            ..Self::default()
        }
    }

    /// Adds a window. One without requests says nothing.
    pub(super) fn observe(&mut self, window: &Observation) {
        self.requests = self.requests.saturating_add(window.requests);
        self.errors = self.errors.saturating_add(window.errors);
        let each = ProbationRules::error_weight();
        let (requests, errors) = (as_float(window.requests), as_float(window.errors));
        self.failures.iter_mut().for_each(|count| count.add(each * requests, each * errors));
        if let Some(times) = window.times.filter(|times| !times.is_empty()) {
            let each = self.rules().weight(times.count(), window.window_ms);
            for count in &mut self.latency {
                count.add(each * as_float(times.count()), each * above(times, count.limit));
            }
            self.times.merge(times);
        }
        if let Some(bytes) = window.memory_bytes {
            self.memory.iter_mut().for_each(|count| count.hold(as_float(bytes)));
            self.memory_bytes = self.memory_bytes.max(Some(bytes));
        }
        if let Some(energy) = window.energy_mj.filter(|energy| energy.is_finite()) {
            self.energies.iter_mut().for_each(|count| count.hold(energy));
            self.energy.0 += energy;
            self.energy.1 = self.energy.1.saturating_add(1);
        }
    }

    /// Counts a window, or as many as it took, that had enough requests.
    pub(super) fn count_window(&mut self) {
        self.windows = self.windows.saturating_add(1);
    }

    /// Counts a death of the worker.
    pub(super) fn count_death(&mut self) {
        self.deaths = self.deaths.saturating_add(1);
    }

    /// Windows with enough requests.
    pub fn windows(&self) -> u32 {
        self.windows
    }

    /// Deaths of the worker.
    pub(super) fn deaths(&self) -> u32 {
        self.deaths
    }

    /// Where it stands.
    pub(super) fn verdict(&self) -> Verdict {
        let tested = [Metric::Errors, Metric::LatencyP95, Metric::Memory, Metric::Energy];
        let worse = tested.into_iter().find(|metric| self.ln(*metric) >= self.needed(*metric).ln());
        if let Some(metric) = worse {
            return Verdict::Back(self.reason(metric));
        }
        match tested.into_iter().any(|metric| self.ln(metric) >= SUSPICION.ln()) {
            true => Verdict::Suspect,
            false => Verdict::Clean,
        }
    }

    /// Logarithm of the evidence against the reference that the model is least worse than.
    fn ln(&self, metric: Metric) -> f64 {
        self.least(metric).map_or(0.0, |(_, ln)| ln)
    }

    /// That reference, and the logarithm of the evidence against it; nothing where nothing accuses.
    fn least(&self, metric: Metric) -> Option<(&Count, f64)> {
        let counts = self.counts(metric);
        if !counts.iter().any(|count| count.role == Role::Accuses) {
            return None;
        }
        let evidence = counts.iter().map(|count| (count, count.ln_evidence()));
        evidence.min_by(|a, b| a.1.total_cmp(&b.1))
    }

    fn counts(&self, metric: Metric) -> &[Count] {
        match metric {
            Metric::LatencyP95 => &self.latency,
            Metric::Memory => &self.memory,
            Metric::Energy => &self.energies,
            Metric::Errors => &self.failures,
            Metric::Crashes | Metric::Agreement => &[],
        }
    }

    /// The evidence from which a metric takes the model back. Latency has spent half of its part on what
    /// the record may be wrong about, errors theirs on the shadow.
    fn needed(&self, metric: Metric) -> f64 {
        let level = self.rules().level();
        match metric {
            Metric::LatencyP95 | Metric::Errors => 2.0 / level,
            _ => 1.0 / level,
        }
    }

    fn rules(&self) -> ProbationRules {
        ProbationRules {
            false_rollback_rate: self.rate,
            correlation_ms: self.correlation_ms,
            ..ProbationRules::default()
        }
    }
}

impl Count {
    fn new(reference: Reference, role: Role, limit: f64, allowed: f64) -> Self {
        // JSON has no infinity, and a journal must be read again.
        let limit = limit.clamp(f64::MIN, f64::MAX);
        Self { reference, role, limit, allowed, seen: 0.0, over: 0.0 }
    }

    fn add(&mut self, seen: f64, over: f64) {
        self.seen += seen;
        self.over += over;
    }

    /// Holds one reading against the limit.
    fn hold(&mut self, reading: f64) {
        self.add(1.0, f64::from(u8::from(reading > self.limit)));
    }

    fn ln_evidence(&self) -> f64 {
        ln_evidence(self.over, self.seen, self.allowed)
    }
}

/// What a p95 may be.
fn latency(
    before: &Baseline,
    predicted: &Predictions,
    budgets: &Budgets,
    rules: &ProbationRules,
    ratio: f64,
) -> Vec<Count> {
    let budget = budgets.latency_p95_us.map(as_float);
    let floor = as_float(rules.latency_floor_us);
    let floor = budget.map_or(floor, |budget| floor.min(FLOOR_OF_BUDGET * budget));
    let mut counts = Vec::new();
    if let Some(edge) = before.p95_edge_us.map(as_float) {
        let allowed = upper(before.over, before.requests, rules.level() / 2.0).max(P95_SHARE);
        let limit = (edge * ratio).max(edge + floor);
        counts.push(Count::new(Reference::Previous, Role::Accuses, limit, allowed));
    }
    if let Some(predicted) = predicted.latency_p95_us {
        let limit = predicted.limit(ratio, floor);
        counts.push(Count::new(Reference::Predicted, predicted.role(), limit, P95_SHARE));
    }
    if let Some(budget) = budget {
        counts.push(Count::new(Reference::Budget, Role::Excuses, budget, P95_SHARE));
    }
    counts
}

/// What is known of a metric that is one number a window.
struct Known {
    before: Option<f64>,
    predicted: Option<Prediction>,
    budget: Option<f64>,
    floor: f64,
    allowed: f64,
}

fn scalars(known: &Known, ratio: f64) -> Vec<Count> {
    let mut counts = Vec::new();
    let mut hold = |reference, role, limit| {
        counts.push(Count::new(reference, role, limit, known.allowed));
    };
    if let Some(before) = known.before {
        let limit = (before * ratio).max(before + known.floor);
        hold(Reference::Previous, Role::Accuses, limit);
    }
    if let Some(predicted) = known.predicted {
        hold(Reference::Predicted, predicted.role(), predicted.limit(ratio, known.floor));
    }
    if let Some(budget) = known.budget {
        hold(Reference::Budget, Role::Excuses, budget);
    }
    counts
}

impl Predictions {
    /// What they are worth here: what was measured for no class in particular was not measured on such a
    /// device.
    pub(super) fn for_class(mut self, class: &str) -> Self {
        if class == ANY_CLASS {
            let all = [&mut self.latency_p95_us, &mut self.memory_bytes, &mut self.energy_mj];
            all.into_iter().flatten().for_each(|of| of.quality = Quality::Modelled);
        }
        self
    }
}

impl Prediction {
    fn limit(self, ratio: f64, floor: f64) -> f64 {
        self.high.max(self.value * ratio).max(self.value + floor)
    }

    fn role(self) -> Role {
        match self.quality {
            Quality::Measured => Role::Accuses,
            Quality::Modelled | Quality::None => Role::Excuses,
        }
    }
}

/// The upper edge of the bucket that holds the p95, and the share of times in the buckets above it.
pub(super) fn p95_edge(times: &Histogram) -> Option<(u64, f64)> {
    let p95 = times.quantile(1.0 - P95_SHARE)?;
    let (_, edge, _) = times.buckets().find(|(low, high, _)| (*low..=*high).contains(&p95))?;
    let over = above(times, as_float(edge)) / as_float(times.count());
    // The last bucket has no end but the longest time in it.
    Some((edge.min(times.max()?), over))
}

/// How many times are certainly above a limit: their buckets begin beyond it.
fn above(times: &Histogram, limit_us: f64) -> f64 {
    times.buckets().filter(|(low, ..)| as_float(*low) > limit_us).map(|(.., n)| as_float(n)).sum()
}

#[allow(clippy::cast_precision_loss)]
fn as_float(n: u64) -> f64 {
    n as f64
}
