//! Repairs and judges the shortlist, and takes the best that holds the floor.
//!
//! Candidates are ranked on calibration samples that were not fitted (*screening*); only the first
//! of the ranking are then fitted on all calibration samples and judged on the held-out ones, so that the
//! held-out samples choose as little as can be.

use std::collections::VecDeque;

use super::Verdict;
use super::apply::apply;
use super::gauge::{self, Gauge};
use super::hunt::{self, Hunt, PAYS, Rating, Trial, not_faster};
use super::judge::{Answers, judge};
use super::observe::Original;
use super::repair::Fitting;
use super::shop::{Bench, Shop, save};
use crate::calibrate::BATCH;
use crate::error::CompressError;
use crate::plan::{Plan, Refusal, RepairKind, ScoreKind};
use crate::quality::Compared;
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
    pub(crate) outputs: &'a [String],
    pub(crate) compared: &'a [Compared],
    /// What decides on finished candidates.
    pub(crate) gauge: &'a Gauge<'a>,
    /// How many candidates may be judged for the one place.
    pub(crate) finals: usize,
}

/// How many of a shortlist may be judged in full: a candidate whose latency does not repeat gives its turn to the next
/// narrower one.
pub(crate) fn finals(shortlist: usize) -> usize {
    shortlist.min(MAX_FINALS)
}

impl Craft<'_> {
    /// The plan of a trial: its widths with the best rated units, and every repair on the first `samples`
    /// calibration samples.
    fn plan(&self, trial: &Trial, samples: usize) -> Result<(Plan, Vec<Refusal>), CompressError> {
        let shop = self.shop;
        let Some(family) = trial.family else {
            return Ok((trial.plan.clone(), Vec::new()));
        };
        let ratio = trial.plan.keep_ratio;
        let rating = Rating { kind: self.score, by_group: &[], evidence: &self.original.evidence };
        let (groups, mut refused) = rating.choices(&shop.source, family, ratio, shop.job.seed)?;
        let (repair, more) = self.original.repair(shop, samples, &[RepairKind::Ls], &groups);
        refused.extend(more);
        let plan = Plan { score: self.score, groups, repair: Some(repair), ..trial.plan.clone() };
        Ok((plan, refused))
    }

    /// Makes a trial with its real weights, repaired on the first `samples` calibration samples. The float model is
    /// kept beside the quantized one.
    fn make(
        &self,
        trial: &mut Trial,
        at: usize,
        samples: usize,
    ) -> Result<Vec<Refusal>, CompressError> {
        let shop = self.shop;
        let (plan, mut refused) = self.plan(trial, samples)?;
        let fitting = Fitting { shop, original: self.original };
        let made = apply(&shop.source, &plan, Some(fitting))?;
        trial.path = shop.work.join(&format!("candidate-{at}.onnx"));
        trial.size_bytes = save(&made.model, &trial.path)?;
        trial.memory = hunt::memory(shop, trial.size_bytes);
        if let Some(float) = &made.float {
            save(float, &shop.work.join(&format!("candidate-{at}-float.onnx")))?;
        }
        refused.extend(made.refused);
        (trial.plan, trial.rescales, trial.refits) = (plan, made.rescales, made.refits);
        Ok(refused)
    }

    /// Orders the shortlist by agreement on calibration samples that were not fitted. What cannot be made or run is
    /// refused and leaves it.
    pub(crate) fn screen(&self, hunt: &mut Hunt) -> Result<(), CompressError> {
        if hunt.shortlist.len() < 2 {
            return Ok(());
        }
        let (fit, judged) = split(self.shop.calibration.len());
        if judged == 0 {
            return Ok(());
        }
        let mut answers = Answers::new(&self.shop.calibration, self.outputs)
            .with(fit, self.original.answers.clone());
        for at in hunt.shortlist.clone() {
            self.shop.check("screening")?;
            let trial = &mut hunt.trials[at];
            if let Err(error) = self.screen_one(trial, at, &mut answers, fit, judged) {
                trial.verdict = Verdict::Refused(error.of_candidate()?);
                hunt.shortlist.retain(|other| *other != at);
            }
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

    fn screen_one(
        &self,
        trial: &mut Trial,
        at: usize,
        answers: &mut Answers<'_>,
        fit: usize,
        judged: usize,
    ) -> Result<(), CompressError> {
        self.make(trial, at, fit)?;
        let stage = format!("screening {}", trial.label);
        self.shop.progress.stage(&stage, judged as u64);
        let range = fit..fit + judged;
        let mut quality = judge(self.shop, &trial.path, answers, self.compared, range, None)?;
        quality.screening = true;
        quality.tests.clear();
        self.shop.progress.note(&format!(
            "{}: agreement {:.1} % on {judged} samples that were not fitted",
            trial.label,
            quality.agreement.value * 100.0
        ));
        trial.quality = Some(quality);
        Ok(())
    }

    /// Fits and judges in full, best first, until one holds the floor and the budgets; its index.
    pub(crate) fn finals(
        &self,
        hunt: &mut Hunt,
        bench: &mut Bench,
        answers: &mut Answers<'_>,
    ) -> Result<Option<usize>, CompressError> {
        let mut queue: VecDeque<usize> = hunt.shortlist.iter().copied().collect();
        let mut tried = 0;
        while let Some(at) = queue.pop_front() {
            if tried == MAX_FINALS {
                let why =
                    format!("{MAX_FINALS} better ranked candidates were judged in full before it");
                hunt.trials[at].verdict = Verdict::NotJudged(why);
                continue;
            }
            tried += 1;
            self.shop.check("judging")?;
            let misses = match self.finish(hunt, bench, answers, at) {
                Ok(misses) => misses,
                Err(error) => vec![error.of_candidate()?],
            };
            if misses.is_empty() {
                hunt.trials[at].verdict = Verdict::Feasible;
                for rest in queue {
                    let why = "a better ranked candidate met the goal before it was judged";
                    hunt.trials[rest].verdict = Verdict::NotJudged(why.into());
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

    /// The best of what was judged on the held-out samples and found good enough.
    fn choose(&self, hunt: &Hunt) -> Option<usize> {
        let judged = |t: &Trial| t.verdict == Verdict::Feasible;
        let table: Vec<Measured> = hunt
            .trials
            .iter()
            .map(|t| Measured {
                agreement: t.quality.as_ref().filter(|_| judged(t)).map(|q| q.agreement),
                ..t.measured()
            })
            .collect();
        search::choose(&table, &self.shop.job.goal)
    }

    /// Makes a trial on all samples, and what it misses.
    fn finish(
        &self,
        hunt: &mut Hunt,
        bench: &mut Bench,
        answers: &mut Answers<'_>,
        at: usize,
    ) -> Result<Vec<String>, CompressError> {
        let refused = self.make(&mut hunt.trials[at], at, self.shop.calibration.len())?;
        let mut misses = self.measure(&mut hunt.trials[at], bench, answers, at)?;
        if misses.is_empty() {
            misses = self.prove(hunt, at);
        }
        if misses.is_empty() {
            hunt.refuse_all(refused);
        }
        Ok(misses)
    }

    /// What the tests of a candidate that was judged have against it.
    fn prove(&self, hunt: &mut Hunt, at: usize) -> Vec<String> {
        let judging = &self.shop.job.judging;
        let judged = hunt.trials.iter_mut().filter_map(|trial| trial.quality.as_mut());
        let mut judged: Vec<_> = judged.filter(|quality| !quality.screening).collect();
        gauge::settle(&mut judged, self.finals, judging.plan());
        let trial = &hunt.trials[at];
        let tests = trial.quality.as_ref().map_or(&[][..], |quality| &quality.tests);
        for test in tests {
            self.shop.progress.note(&test.sentence());
        }
        let misses = gauge::misses(judging, tests, self.finals);
        let label = trial.label.clone();
        for miss in &misses {
            hunt.refuse("judge", &label, miss.clone());
        }
        misses
    }

    /// Times the candidate with its real weights and judges it on the held-out samples.
    fn measure(
        &self,
        trial: &mut Trial,
        bench: &mut Bench,
        answers: &mut Answers<'_>,
        at: usize,
    ) -> Result<Vec<String>, CompressError> {
        let (shop, goal) = (self.shop, &self.shop.job.goal);
        let stage = format!("judging {}", trial.label);
        shop.progress.stage(&stage, shop.heldout.len() as u64);
        let limit = hunt::limit(shop, bench, CONFIRM_MARGIN);
        trial.host = bench.against_reference(&trial.path, limit)?;
        trial.latency = trial.host.predict(&bench.stats, shop.baseline);
        let mut misses = cost_misses(&trial.measured(), goal, CONFIRM_MARGIN);
        if trial.plan.quantize.is_some() {
            let float = shop.work.join(&format!("candidate-{at}-float.onnx"));
            let beside = bench.against(&trial.path, &float)?;
            if beside.ratio_high >= PAYS {
                misses.push(not_faster(&beside));
            }
        }
        if !misses.is_empty() {
            return Ok(misses);
        }
        let quality = self.gauge.judge(shop, &trial.path, answers, self.compared)?;
        shop.progress.note(&format!(
            "{}: agreement {:.1} % on {} held-out samples, p95 {}",
            trial.label,
            quality.agreement.value * 100.0,
            quality.samples,
            search::milliseconds(trial.latency.value)
        ));
        trial.quality = Some(quality);
        misses.extend(quality_miss(&trial.measured(), goal));
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
        let misses = cost_misses(&trial.measured(), goal, CONFIRM_MARGIN);
        let Some(family) = trial.family.filter(|_| !misses.is_empty()) else {
            return Ok(());
        };
        let (ratio, format) = (trial.plan.keep_ratio, trial.plan.quantize);
        let rungs = search::ladder(family, &self.shop.source.widths());
        let Some(next) = rungs.iter().copied().find(|rung| *rung < ratio) else {
            return Ok(());
        };
        if let Some(next) = hunt.time(self.shop, bench, Some(family), next, format)?
            && cost_misses(&hunt.trials[next].measured(), goal, SEARCH_MARGIN).is_empty()
        {
            queue.push_front(next);
        }
        Ok(())
    }
}

/// How many calibration samples a screening fits to, in whole batches, and how many it judges on.
pub(crate) fn split(samples: usize) -> (usize, usize) {
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
