//! Which score rates which kind of group best, by measurement.
//!
//! The scores rate on the first calibration samples. Then, for one kind of group after the other, the units of
//! all groups of that kind are cut by each score to the share that is asked for, the consumers take over by their
//! channel Grams, batch normalizations are renewed, and the answers on samples that were not rated by are compared with the
//! original's. The score that loses least is taken for the
//! kind. There are five kinds at most ([`GroupKind`]) and eight scores, each of which costs the loading of a model and a
//! run over at most [`JUDGED`] samples; scores that keep the same units are measured once.

use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};

use serde::Serialize;

use super::apply::apply;
use super::hunt::{self, Rating};
use super::judge::{self, MAX_ANSWER_BYTES};
use super::norms;
use super::observe::{Grams, Looks, Original, RATING_SAMPLES, observe};
use super::repair::Fitting;
use super::select;
use super::shop::{Shop, save};
use crate::error::CompressError;
use crate::plan::{GroupChoice, Plan, Refusal, RepairKind, ScoreKind};
use crate::quality::{Answer, distributions, divergence};
use crate::score::GroupKind;
use crate::search::Family;

/// The most samples that a score is judged on.
const JUDGED: usize = 64;
/// The most samples by which normalizations are renewed in a trial.
const RENEWING: usize = 64;
/// Share of units that is kept to tell scores apart where none is asked for.
pub(crate) const KEPT: f64 = 0.5;
/// The scores that are tried; the first of equals is taken.
const CANDIDATES: [ScoreKind; 8] = [
    ScoreKind::Activation,
    ScoreKind::Obs,
    ScoreKind::Wanda,
    ScoreKind::Combined,
    ScoreKind::Magnitude,
    ScoreKind::MagnitudeL1,
    ScoreKind::MeanAbs,
    ScoreKind::Apoz,
];
/// What rates where nothing could be measured.
const OTHERWISE: ScoreKind = ScoreKind::Activation;

/// A score that was tried on a kind of group.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Tried {
    /// The score.
    pub score: ScoreKind,
    /// What half of the units cost: the mean over samples and outputs of the squared error as a share of the output's
    /// square, or of the divergence in nats where the output is a distribution. None where it could not be measured.
    pub loss: Option<f64>,
}

/// The score that was taken for a kind of group, with what was measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Pick {
    /// Which groups.
    pub kind: GroupKind,
    /// How many there are.
    pub groups: usize,
    /// Samples that judged.
    pub samples: usize,
    /// The score taken.
    pub score: ScoreKind,
    /// All that were tried.
    pub tried: Vec<Tried>,
}

/// What was picked.
pub(crate) struct Picks {
    /// For each group of the source.
    pub(crate) by_group: Vec<ScoreKind>,
    pub(crate) picks: Vec<Pick>,
    pub(crate) refused: Vec<Refusal>,
}

/// Tries the scores on every kind of group.
pub(crate) fn pick(shop: &Shop<'_>, kept: f64) -> Result<Picks, CompressError> {
    let source = &shop.source;
    let groups = &source.grouping.groups;
    let mut found =
        Picks { by_group: vec![OTHERWISE; groups.len()], picks: Vec::new(), refused: Vec::new() };
    let (fit, judged) = select::split(shop.calibration.len());
    let (fit, judged) = (fit.min(RATING_SAMPLES), judged.min(JUDGED));
    let outputs = match judge::outputs(shop) {
        Ok((outputs, _)) if judged > 0 => outputs,
        outcome => {
            let few = "there are too few samples to rate by some and judge by others";
            let why = outcome.err().map_or_else(|| few.to_owned(), |e| e.to_string());
            let why = format!("{why}; {OTHERWISE} rates all groups");
            found.refused.push(Refusal::new("score", "auto", why));
            return Ok(found);
        }
    };
    let looks = Looks { reach: None, grams: Grams::All, samples: fit };
    let (original, _) = observe(shop, &[], 0..0, looks)?;
    let trial = Trial::open(shop, &original, &outputs, fit..fit + judged, kept)?;
    for (kind, members) in by_kind(shop) {
        let pick = trial.pick(kind, &members, &mut found.refused)?;
        members.iter().for_each(|at| found.by_group[*at] = pick.score);
        found.picks.push(pick);
    }
    Ok(found)
}

/// The groups that can be rated by what was seen, by kind.
fn by_kind(shop: &Shop<'_>) -> BTreeMap<GroupKind, Vec<usize>> {
    let mut kinds: BTreeMap<GroupKind, Vec<usize>> = BTreeMap::new();
    let groups = shop.source.grouping.groups.iter().enumerate();
    for (at, group) in groups.filter(|(_, group)| group.scope.is_main()) {
        kinds.entry(GroupKind::of(&shop.source.model.graph, group)).or_default().push(at);
    }
    kinds
}

/// What candidates are compared by.
struct Trial<'a> {
    shop: &'a Shop<'a>,
    original: &'a Original,
    outputs: &'a [String],
    samples: Range<usize>,
    answers: Vec<Vec<Answer>>,
    /// Share of units kept.
    kept: f64,
    /// What each candidate keeps of every group at that share.
    choices: Vec<(ScoreKind, Vec<GroupChoice>)>,
}

impl<'a> Trial<'a> {
    fn open(
        shop: &'a Shop<'a>,
        original: &'a Original,
        outputs: &'a [String],
        samples: Range<usize>,
        kept: f64,
    ) -> Result<Self, CompressError> {
        let mut choices = Vec::new();
        for score in CANDIDATES {
            let rating = Rating { kind: score, by_group: &[], evidence: &original.evidence };
            let chosen = rating.choices(&shop.source, Family::All, kept, shop.job.seed)?;
            choices.push((score, chosen.0));
        }
        let (mut answers, mut bytes) = (Vec::new(), 0);
        shop.progress.stage("answers of the original", samples.len() as u64);
        let path = &shop.source.path;
        shop.runner.run(path, &shop.calibration, samples.clone(), shop.progress, &mut |batch| {
            for answer in judge::split(&batch, outputs)? {
                bytes += answer.iter().map(|a| a.data.len() * 4).sum::<usize>();
                answers.push(answer);
            }
            Ok(if bytes >= MAX_ANSWER_BYTES {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            })
        })?;
        let samples = samples.start..samples.start + answers.len();
        Ok(Self { shop, original, outputs, samples, answers, kept, choices })
    }

    /// The best score for the groups `members`.
    fn pick(
        &self,
        kind: GroupKind,
        members: &[usize],
        refused: &mut Vec<Refusal>,
    ) -> Result<Pick, CompressError> {
        let mut tried: Vec<Tried> = Vec::new();
        let mut known: Vec<(Vec<GroupChoice>, Option<f64>)> = Vec::new();
        for (score, choices) in &self.choices {
            let mut own = choices.clone();
            own.retain(|choice| members.contains(&(choice.group as usize)));
            if own.is_empty() {
                continue;
            }
            let again = known.iter().find(|(choices, _)| *choices == own).map(|(_, loss)| *loss);
            let loss = match again {
                Some(loss) => loss,
                None => match self.loss(&own) {
                    Ok(loss) => Some(loss).filter(|loss| loss.is_finite()),
                    Err(error) => {
                        let why = error.of_candidate()?;
                        refused.push(Refusal::new("score", format!("{score} on {kind}"), why));
                        None
                    }
                },
            };
            known.push((own, loss));
            tried.push(Tried { score: *score, loss });
        }
        let measured = tried.iter().filter_map(|t| Some((t.loss?, t.score)));
        let best = measured.reduce(|best, next| if next.0 < best.0 { next } else { best });
        Ok(Pick {
            kind,
            groups: members.len(),
            samples: self.answers.len(),
            score: best.map_or(OTHERWISE, |(_, score)| score),
            tried,
        })
    }

    /// What a cut costs on the samples that judge.
    fn loss(&self, groups: &[GroupChoice]) -> Result<f64, CompressError> {
        let shop = self.shop;
        shop.check("trying scores")?;
        shop.progress.stage("trying scores", self.answers.len() as u64);
        let norms = norms::any(&shop.source).then_some(RepairKind::Bn);
        let kinds: Vec<RepairKind> = [RepairKind::Gram].into_iter().chain(norms).collect();
        let renewing = self.samples.start.min(RENEWING);
        let (repair, _) = self.original.repair(shop, renewing, &kinds, groups);
        let plan = hunt::plan(shop, self.kept, groups.to_vec(), None);
        let plan = Plan { repair: Some(repair), ..plan };
        let fitting = Fitting { shop, original: self.original };
        let made = apply(&shop.source, &plan, Some(fitting))?;
        let path = shop.work.join("scored.onnx");
        save(&made.model, &path)?;
        let (mut sum, mut count) = (0.0, 0usize);
        let samples = self.samples.clone();
        shop.runner.run(&path, &shop.calibration, samples, shop.progress, &mut |batch| {
            for answer in judge::split(&batch, self.outputs)? {
                let known = self.answers.get(count).map(Vec::as_slice).unwrap_or_default();
                sum += known.iter().zip(&answer).map(|(a, b)| distance(a, b)).sum::<f64>();
                count += 1;
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(sum / (count * self.outputs.len()).max(1) as f64)
    }
}

/// Mean divergence of the rows where `a` has distributions, else the squared error as a share of the square of `a`.
fn distance(a: &Answer, b: &Answer) -> f64 {
    if a.data.len() != b.data.len() {
        return f64::INFINITY;
    }
    let mut axes = (1..a.shape.len()).rev();
    if let Some(axis) = axes.find(|axis| distributions(a, *axis)) {
        let (mut rows, mut sum, mut count) = (Vec::new(), 0.0, 0usize);
        a.rows(Some(axis), &mut |_, row| rows.push(row.to_vec()));
        b.rows(Some(axis), &mut |at, row| {
            sum += rows.get(at).map_or(f64::INFINITY, |a| divergence(a, row));
            count += 1;
        });
        return sum / count.max(1) as f64;
    }
    let square = |v: f64| v * v;
    let pairs = a.data.iter().zip(&b.data);
    let off: f64 = pairs.map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    let all: f64 = a.data.iter().map(|a| square(f64::from(*a))).sum();
    off / all.max(f64::from(f32::MIN_POSITIVE))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "auto_tests.rs"]
mod tests;
