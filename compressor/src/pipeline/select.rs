//! Repairs and judges the shortlist, and takes the best that holds the floor.
//!
//! Candidates are ranked on calibration samples that were not fitted (*screening*); only the first
//! of the ranking are then fitted on all calibration samples and judged on the held-out ones, so that the
//! held-out samples choose as little as can be.

use std::collections::VecDeque;

use super::Verdict;
use super::hunt::{self, Hunt, PAYS, Trial, not_faster};
use super::judge::{Reference, judge};
use super::observe::Original;
use super::repair::{repair, rescale};
use super::shop::{Bench, Shop, save};
use crate::calibrate::BATCH;
use crate::error::CompressError;
use crate::plan::{Refusal, ScoreKind};
use crate::score;
use crate::search::{self, CONFIRM_MARGIN, Measured, SEARCH_MARGIN, cost_misses, quality_miss};

/// Calibration samples that are fitted to in a screening.
const SCREEN_FIT: usize = 512;
/// Calibration samples that a screening judges on.
const SCREEN_JUDGE: usize = 256;
/// Candidates that are fitted and judged in full.
const MAX_FINALS: usize = 3;

/// What is needed to build a candidate with its real weights.
pub(crate) struct Craft<'a> {
    pub(crate) shop: &'a Shop<'a>,
    pub(crate) original: &'a Original,
    pub(crate) score: ScoreKind,
    pub(crate) output: &'a str,
    pub(crate) row: usize,
}

impl Craft<'_> {
    /// Cuts the best rated units, repairs on the first `samples` calibration samples, and quantizes.
    /// The float model is kept beside the quantized one.
    fn make(
        &self,
        trial: &mut Trial,
        at: usize,
        samples: usize,
    ) -> Result<Vec<Refusal>, CompressError> {
        let shop = self.shop;
        if let Some(family) = trial.family {
            let pick = &mut |index: usize, count| {
                let group = &shop.source.grouping.groups[index];
                let graph = shop.source.graph_of(&group.scope);
                score::rate(self.score, graph, group, &self.original.deviations, shop.job.seed)
                    .map(|rating| score::best(&rating, count))
            };
            trial.choices = hunt::choices(&shop.source, family, trial.ratio, pick)
                .map_err(|what| CompressError::Graph { stage: "score", what })?;
        }
        let mut model = shop.source.pruned(&trial.choices)?;
        let (rescales, mut refused) = rescale(shop, self.original, &mut model)?;
        let (refits, more) = repair(shop, self.original, &mut model, samples)?;
        refused.extend(more);
        trial.rescales = rescales;
        trial.refits = refits;
        trial.path = shop.work.join(&format!("candidate-{at}.onnx"));
        trial.size_bytes = save(&model, &trial.path)?;
        if let Some(format) = trial.format {
            let float = shop.work.join(&format!("candidate-{at}-float.onnx"));
            save(&model, &float)?;
            trial.size_bytes = save(&hunt::quantized(&model, format)?, &trial.path)?;
        }
        Ok(refused)
    }

    /// Orders the shortlist by agreement on calibration samples that were not fitted.
    pub(crate) fn screen(&self, hunt: &mut Hunt) -> Result<(), CompressError> {
        if hunt.shortlist.len() < 2 {
            return Ok(());
        }
        let (fit, judged) = split(self.shop.calibration.len());
        if judged == 0 {
            return Ok(());
        }
        let reference = Reference {
            data: &self.shop.calibration,
            output: self.output,
            answers: &self.original.outputs,
            row: self.row,
        };
        for at in hunt.shortlist.clone() {
            self.shop.check("screening")?;
            let trial = &mut hunt.trials[at];
            self.make(trial, at, fit)?;
            let stage = format!("screening {}", trial.label);
            self.shop.progress.stage(&stage, judged as u64);
            let mut quality = judge(self.shop, &trial.path, &reference, fit..fit + judged, None)?;
            quality.screening = true;
            self.shop.progress.note(&format!(
                "{}: agreement {:.1} % on {judged} samples that were not fitted",
                trial.label,
                quality.agreement.value * 100.0
            ));
            trial.quality = Some(quality);
        }
        let rank = |at: &usize| {
            let quality = hunt.trials[*at].quality.as_ref();
            quality.map_or((0.0, 0.0), |q| (-q.agreement.value, q.kl_mean))
        };
        let mut order = hunt.shortlist.clone();
        order.sort_by(|a, b| {
            let (a, b) = (rank(a), rank(b));
            a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1))
        });
        hunt.shortlist = order;
        Ok(())
    }

    /// Fits and judges in full, best first, until one holds the floor and the budgets; its index.
    pub(crate) fn finals(
        &self,
        hunt: &mut Hunt,
        bench: &mut Bench,
        reference: &Reference<'_>,
    ) -> Result<Option<usize>, CompressError> {
        let mut queue: VecDeque<usize> = hunt.shortlist.iter().copied().collect();
        let mut tried = 0;
        while let Some(at) = queue.pop_front() {
            if tried == MAX_FINALS {
                let why =
                    format!("{MAX_FINALS} better ranked candidates were judged in full before it");
                hunt.trials[at].verdict = Verdict::Refused(why);
                continue;
            }
            tried += 1;
            self.shop.check("judging")?;
            let refused = self.make(&mut hunt.trials[at], at, self.shop.calibration.len())?;
            let misses = self.measure(hunt, bench, reference, at)?;
            if misses.is_empty() {
                hunt.refused.extend(refused);
                for rest in queue {
                    hunt.trials[rest].verdict = Verdict::Feasible;
                }
                let chosen = self.choose(hunt);
                if let Some(chosen) = chosen {
                    hunt.trials[chosen].verdict = Verdict::Chosen;
                }
                return Ok(chosen);
            }
            hunt.trials[at].verdict = Verdict::Refused(misses.join("; "));
            self.narrower(hunt, bench, at, &mut queue)?;
        }
        Ok(None)
    }

    /// The best of what was judged on the held-out samples.
    fn choose(&self, hunt: &Hunt) -> Option<usize> {
        let engine = self.shop.job.engine.kind;
        let judged = |t: &Trial| t.quality.as_ref().is_some_and(|q| !q.screening);
        let table: Vec<Measured> = hunt
            .trials
            .iter()
            .map(|t| Measured {
                agreement: t.quality.as_ref().filter(|_| judged(t)).map(|q| q.agreement),
                ..t.measured(engine)
            })
            .collect();
        search::choose(&table, &self.shop.job.goal)
    }

    /// Times the candidate with its real weights and judges it on the held-out samples.
    fn measure(
        &self,
        hunt: &mut Hunt,
        bench: &mut Bench,
        reference: &Reference<'_>,
        at: usize,
    ) -> Result<Vec<String>, CompressError> {
        let (shop, goal) = (self.shop, &self.shop.job.goal);
        let trial = &mut hunt.trials[at];
        let stage = format!("judging {}", trial.label);
        shop.progress.stage(&stage, shop.heldout.len() as u64);
        let limit = hunt::limit(shop, bench, CONFIRM_MARGIN);
        trial.host = bench.against_reference(&trial.path, limit)?;
        trial.latency = trial.host.predict(&bench.stats, shop.job.baseline);
        let mut misses = cost_misses(&trial.measured(shop.job.engine.kind), goal, CONFIRM_MARGIN);
        if trial.format.is_some() {
            let float = shop.work.join(&format!("candidate-{at}-float.onnx"));
            let beside = bench.against(&trial.path, &float)?;
            if beside.ratio_high >= PAYS {
                misses.push(not_faster(&beside));
            }
        }
        if !misses.is_empty() {
            return Ok(misses);
        }
        let quality =
            judge(shop, &trial.path, reference, 0..shop.heldout.len(), Some(goal.agreement_min))?;
        shop.progress.note(&format!(
            "{}: agreement {:.1} % on {} held-out samples, p95 {}",
            trial.label,
            quality.agreement.value * 100.0,
            quality.samples,
            search::milliseconds(trial.latency.value)
        ));
        trial.quality = Some(quality);
        misses.extend(quality_miss(&trial.measured(shop.job.engine.kind), goal));
        Ok(misses)
    }

    /// Where a candidate held the floor's side but its latency did not repeat, the next narrower step of its
    /// family is worth a try.
    fn narrower(
        &self,
        hunt: &mut Hunt,
        bench: &mut Bench,
        at: usize,
        queue: &mut VecDeque<usize>,
    ) -> Result<(), CompressError> {
        let trial = hunt.trials[at].clone();
        let goal = &self.shop.job.goal;
        let misses = cost_misses(&trial.measured(self.shop.job.engine.kind), goal, CONFIRM_MARGIN);
        let Some(family) = trial.family.filter(|_| !misses.is_empty()) else {
            return Ok(());
        };
        let rungs = search::ladder(family, &self.shop.source.widths());
        let next = rungs.iter().copied().find(|ratio| *ratio < trial.ratio);
        if let Some(ratio) = next {
            let next = hunt.time(self.shop, bench, Some(family), ratio, trial.format)?;
            let measured = hunt.trials[next].measured(self.shop.job.engine.kind);
            if cost_misses(&measured, goal, SEARCH_MARGIN).is_empty() {
                queue.push_front(next);
            }
        }
        Ok(())
    }
}

/// How many calibration samples a screening fits to, in whole batches, and how many it judges on.
fn split(samples: usize) -> (usize, usize) {
    let fit = SCREEN_FIT.min(samples * 2 / 3) / BATCH * BATCH;
    if fit == 0 {
        return (0, 0);
    }
    (fit, SCREEN_JUDGE.min(samples - fit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_screening_never_judges_what_it_fitted_and_needs_both_parts() {
        for samples in [1, 3, 6, 12, 512, 768, 5000] {
            let (fit, judged) = split(samples);
            assert!(fit + judged <= samples && fit % BATCH == 0, "{samples}");
            assert!(samples < 6 || (fit > 0 && judged > 0), "{samples}");
        }
        assert_eq!(split(1500), (SCREEN_FIT, SCREEN_JUDGE));
    }
}
