//! Whether requests still look like the samples that the model was judged on.
//!
//! The plane counts one number per request and feature in the cells of the bundle's reference. Windows
//! are added up to a pool; a pool of enough requests and enough time is tested against the reference,
//! and says *drift* where a feature is both beyond chance and farther than the budget allows. N of M
//! pools are a breach, as with any other budget. `docs/drift.md` has the method, its sources, what
//! share of false alarms it keeps to, and what it cannot see.
//!
//! - A pool's level is divided over all features watched (Bonferroni), so that one pool without drift
//!   says so wrongly with chance [`DriftRules::level`] at most, whatever features have in common.
//! - Successive requests that resemble each other count for fewer ([`statistics::effective`]).

use wire::{BudgetKind, Cause, DriftFeature, DriftTest, Feature, Histogram, Side, Statistic};

use super::Core;
use super::event::{Millis, ModelFacts};
use super::gauge::Seen;
use super::settings::DriftRules;

mod statistics;

#[cfg(test)]
mod simulations;

/// The fewest observations that a cell of classes is expected to have; rarer classes share one.
const MIN_EXPECTED: f64 = 5.0;

/// What was counted of requests in one window, or in several, feature by feature.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DriftFacts {
    /// One entry per feature of the bundle's reference, in its order.
    pub features: Vec<FeatureFacts>,
}

/// What was counted of one feature.
#[derive(Clone, Debug, PartialEq)]
pub struct FeatureFacts {
    /// Whether the model takes or gives the tensor.
    pub side: Side,
    /// The tensor.
    pub tensor: String,
    /// What is taken of it.
    pub feature: Feature,
    /// Samples of the reference in each cell.
    pub reference: Vec<u64>,
    /// Requests in each cell.
    pub seen: Vec<u64>,
    /// Requests that came right after another one.
    pub pairs: u64,
    /// Over these pairs: of classes, how many were the same twice; of other features, the sum of the
    /// products of both cells' numbers.
    pub product: u64,
}

impl FeatureFacts {
    fn add(&mut self, other: &Self) {
        self.seen.iter_mut().zip(&other.seen).for_each(|(sum, more)| *sum += more);
        self.pairs += other.pairs;
        self.product += other.product;
    }

    fn fits(&self, other: &Self) -> bool {
        (self.side, self.feature, &self.tensor) == (other.side, other.feature, &other.tensor)
            && self.reference == other.reference
    }

    fn requests(&self) -> u64 {
        self.seen.iter().sum()
    }
}

/// Windows added up until they are worth a test.
#[derive(Clone, Debug, Default)]
pub(super) struct Pool {
    /// The bundle that answered them.
    digest: String,
    facts: DriftFacts,
    since: Option<Millis>,
}

impl Pool {
    /// Adds a window that ended `now`; gives the pool once it is large and long enough.
    fn add(
        &mut self,
        now: Millis,
        digest: &str,
        facts: &DriftFacts,
        rules: &DriftRules,
    ) -> Option<(DriftFacts, u64)> {
        let own = &mut self.facts.features;
        let same = self.digest == digest
            && own.len() == facts.features.len()
            && own.iter().zip(&facts.features).all(|(a, b)| a.fits(b));
        if same {
            own.iter_mut().zip(&facts.features).for_each(|(sum, more)| sum.add(more));
        } else {
            own.clone_from(&facts.features);
            digest.clone_into(&mut self.digest);
            self.since = None;
        }
        let requests = own.iter().map(FeatureFacts::requests).max().unwrap_or(0);
        if requests == 0 {
            return None;
        }
        let span = now.since(*self.since.get_or_insert(now));
        (requests >= rules.min_requests && span >= rules.pool_ms)
            .then(|| (std::mem::take(self).facts, span))
    }
}

/// Tests a pool: each feature at its share of `level`, and then against `psi_limit`.
#[must_use]
pub fn examine(facts: &DriftFacts, span_ms: u64, level: f64, psi_limit: f64) -> DriftTest {
    let watched = facts.features.len();
    #[allow(clippy::cast_precision_loss)]
    let share = level / watched.max(1) as f64;
    let mut tested: Vec<DriftFeature> =
        facts.features.iter().map(|feature| test(feature, share, psi_limit)).collect();
    let beyond = |feature: &DriftFeature| feature.value > feature.threshold;
    let psi = tested.iter().filter(|f| beyond(f)).map(|f| f.psi).fold(0.0, f64::max);
    let drifted = tested.iter().any(|feature| feature.drifted);
    let distance = |f: &DriftFeature| finite_ratio(f.value, f.threshold);
    tested.sort_by(|a, b| distance(b).total_cmp(&distance(a)));
    tested.truncate(wire::MAX_DRIFT_FEATURES);
    let most =
        |count: fn(&FeatureFacts) -> u64| facts.features.iter().map(count).max().unwrap_or(0);
    DriftTest {
        requests: most(FeatureFacts::requests),
        reference: most(|feature| feature.reference.iter().sum()),
        span_ms,
        level,
        psi_limit,
        psi,
        drifted,
        watched: u32::try_from(watched).unwrap_or(u32::MAX),
        features: tested,
    }
}

fn finite_ratio(value: f64, threshold: f64) -> f64 {
    if threshold.is_finite() { value / threshold } else { 0.0 }
}

fn test(facts: &FeatureFacts, level: f64, psi_limit: f64) -> DriftFeature {
    let (seen, reference) = (floats(&facts.seen), floats(&facts.reference));
    let (n, m): (f64, f64) = (seen.iter().sum(), reference.iter().sum());
    let effective = if n > 0.0 { statistics::effective(n, resemblance(facts, n)) } else { 0.0 };
    let outcome = if n == 0.0 || m == 0.0 {
        Outcome { value: 0.0, threshold: f64::INFINITY, psi: 0.0 }
    } else if facts.feature == Feature::Class {
        classes(&seen, &reference, effective, level)
    } else {
        Outcome {
            value: statistics::ks(&seen, &reference),
            threshold: statistics::ks_threshold(effective, m, level),
            psi: statistics::psi(&seen, &reference),
        }
    };
    let Outcome { value, threshold, psi } = outcome;
    DriftFeature {
        side: facts.side,
        tensor: facts.tensor.clone(),
        feature: facts.feature,
        statistic: statistic(facts.feature),
        value,
        threshold,
        psi,
        requests: facts.requests(),
        effective,
        drifted: value > threshold && psi > psi_limit,
    }
}

struct Outcome {
    value: f64,
    threshold: f64,
    psi: f64,
}

fn statistic(feature: Feature) -> Statistic {
    if feature == Feature::Class { Statistic::ChiSquare } else { Statistic::Ks }
}

/// Classes too rare for the approximation share a cell, as the reference alone decides; what the
/// reference never saw is among them.
fn classes(seen: &[f64], reference: &[f64], effective: f64, level: f64) -> Outcome {
    let (n, m): (f64, f64) = (seen.iter().sum(), reference.iter().sum());
    let least = MIN_EXPECTED * m / effective.min(m);
    let mut cells: Vec<(f64, f64)> =
        reference.iter().zip(seen).map(|(r, s)| (*r, *s * effective / n)).collect();
    // The last cell is that of all other classes.
    let other = cells.pop().unwrap_or_default();
    let (mut kept, rare): (Vec<_>, Vec<_>) = cells.into_iter().partition(|(r, _)| *r >= least);
    let mut shared = rare.into_iter().fold(other, |sum, (r, s)| (sum.0 + r, sum.1 + s));
    kept.sort_by(|a, b| b.0.total_cmp(&a.0));
    while shared.0 < least && shared != (0.0, 0.0) {
        let Some((r, s)) = kept.pop() else { break };
        shared = (shared.0 + r, shared.1 + s);
    }
    if shared != (0.0, 0.0) {
        kept.push(shared);
    }
    let (reference, seen): (Vec<f64>, Vec<f64>) = kept.into_iter().unzip();
    if seen.len() < 2 {
        return Outcome { value: 0.0, threshold: f64::INFINITY, psi: 0.0 };
    }
    #[allow(clippy::cast_precision_loss)]
    let freedom = (seen.len() - 1) as f64;
    Outcome {
        value: statistics::chi_square(&seen, &reference),
        threshold: statistics::chi_square_threshold(freedom, level),
        psi: statistics::psi(&seen, &reference),
    }
}

/// How much each request resembles the one before it, -1 to 1: of cells in order, the correlation of
/// their numbers; of classes, how often two are the same beyond what their frequencies give.
#[allow(clippy::cast_precision_loss)]
fn resemblance(facts: &FeatureFacts, n: f64) -> f64 {
    if facts.pairs == 0 {
        return 0.0;
    }
    let together = facts.product as f64 / facts.pairs as f64;
    let shares = facts.seen.iter().map(|count| *count as f64 / n);
    let (excess, most) = if facts.feature == Feature::Class {
        let by_chance: f64 = shares.map(|p| p * p).sum();
        (together - by_chance, 1.0 - by_chance)
    } else {
        let moment = |power: i32| {
            let term = |(cell, p): (usize, f64)| p * (cell as f64).powi(power);
            shares.clone().enumerate().map(term).sum::<f64>()
        };
        let mean = moment(1);
        (together - mean * mean, moment(2) - mean * mean)
    };
    // A constant tells nothing of its neighbours.
    if most <= 1e-9 { 0.0 } else { (excess / most).clamp(-1.0, 1.0) }
}

#[allow(clippy::cast_precision_loss)]
fn floats(counts: &[u64]) -> Vec<f64> {
    counts.iter().map(|count| *count as f64).collect()
}

impl Core {
    /// Adds a window to the model's pool, and tests a pool that is full.
    pub(super) fn test_drift(&mut self, now: Millis, facts: &ModelFacts) -> Option<DriftTest> {
        let limit = self.budgets(&facts.model).limit(BudgetKind::Drift)?;
        let rules = self.settings.drift.clone();
        let level = rules.level(&self.settings.breach);
        let live = self.live(&facts.model);
        let (pool, span) = live.drift.add(now, &facts.digest, facts.drift.as_ref()?, &rules)?;
        let test = examine(&pool, span, level, limit);
        live.drift_test = Some(test.clone());
        Some(test)
    }

    /// Holds a tested pool against the budget.
    pub(super) fn on_drift(&mut self, now: Millis, model: &str, test: &DriftTest) {
        let seen = Seen {
            observed: test.psi,
            over: test.drifted,
            cause: Cause::Data,
            times: Histogram::default(),
        };
        self.gauge(now, model, BudgetKind::Drift, test.psi_limit, seen);
    }
}
