//! One model under every tool, and Espalier again where the peers arrived: at their number of parameters and at their
//! latency.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::Value;

use super::kit::{Cost, ENGINES, Kit, Tool, Verdict, in_pairs};
use super::subject::Subject;

/// Shares of units that every tool is asked to remove; the first is the one whose cost is shown.
pub(super) const REMOVE: [f64; 2] = [0.5, 0.25];
/// What Espalier is judged by, and what is compared with peers that look at no samples.
pub(super) const OURS: Tool = Tool::Ours { score: "auto", repair: "ls" };
pub(super) const OURS_PLAIN: Tool = Tool::Ours { score: "magnitude", repair: "none" };
/// What looks at the samples and is cheap.
pub(super) const OURS_CHEAP: Tool = Tool::Ours { score: "activation", repair: "gram,bn" };
/// What answers peers with at most as many parameters.
pub(super) const ANSWERING: [Tool; 2] = [OURS_CHEAP, OURS];
/// Runs of which the fastest counts, where each takes less than so many seconds.
const RUNS: (usize, f64) = (3, 10.0);
/// Steps of the search for a peer's number of parameters.
const HALVINGS: usize = 9;
/// Rounds in which all models are timed, one after the other; the least median counts.
const ROUNDS: usize = 2;
/// Two latencies that differ by less count as equal.
pub(super) const EQUAL: f64 = 1.02;

/// One run of one tool.
pub(super) struct Made {
    pub(super) tool: Tool,
    pub(super) remove: f64,
    pub(super) cost: Cost,
    pub(super) outcome: Result<Good, String>,
    path: PathBuf,
}

/// A model that came out and runs.
pub(super) struct Good {
    pub(super) params: u64,
    pub(super) quality: f64,
    pub(super) error: f64,
    /// Latency in each of [`ENGINES`] as a share of the original's, or why it was not measured.
    pub(super) latency: [Result<f64, String>; 2],
}

/// Everything measured on one model.
pub(super) struct Measured {
    pub(super) subject: &'static Subject,
    pub(super) params: u64,
    pub(super) quality: f64,
    /// Median in each of [`ENGINES`], in microseconds.
    pub(super) original_us: [Result<f64, String>; 2],
    pub(super) analysis: Value,
    pub(super) analysis_cost: Cost,
    pub(super) made: Vec<Made>,
    /// For each of [`ANSWERING`] and some of `made`, Espalier's answer to it with at most as many parameters; both are
    /// indices into `made`.
    pub(super) answers: [BTreeMap<usize, usize>; 2],
}

impl Measured {
    /// The answer of one of [`ANSWERING`] to one of `made`.
    pub(super) fn answer(&self, by: usize, to: usize) -> Option<&Made> {
        self.answers[by].get(&to).and_then(|&at| self.made.get(at))
    }

    /// Espalier's best model that is no slower than `peer` in an engine.
    pub(super) fn as_fast_as(&self, peer: &Made, engine: usize) -> Option<&Made> {
        let limit = EQUAL * latency(peer, engine)?;
        let quality = |made: &&Made| made.outcome.as_ref().map_or(-1.0, |good| good.quality);
        self.made
            .iter()
            .filter(|made| made.tool == OURS && latency(made, engine).is_some_and(|l| l <= limit))
            .max_by(|a, b| quality(a).total_cmp(&quality(b)))
    }
}

fn latency(made: &Made, engine: usize) -> Option<f64> {
    made.outcome.as_ref().ok()?.latency[engine].as_ref().ok().copied()
}

pub(super) fn measure(kit: &Kit, subject: &'static Subject) -> Result<Measured> {
    let (analysis, analysis_cost) = kit.analyze(subject)?;
    let mut made = Vec::new();
    for tool in Tool::PEERS.into_iter().chain([OURS_PLAIN, OURS_CHEAP, OURS]) {
        made.push(fastest(kit, subject, tool, REMOVE[0])?);
    }
    let original = judge(kit, subject, &mut made)?;
    let Verdict::Judged { params, quality, .. } = original else {
        anyhow::bail!("the original {} cannot be judged: {original:?}", subject.title);
    };
    ask_for_other_shares(kit, subject, params, &mut made)?;
    let mut answers = [BTreeMap::new(), BTreeMap::new()];
    for (answers, tool) in answers.iter_mut().zip(ANSWERING) {
        *answers = answer(kit, subject, params, tool, &mut made)?;
    }
    let original_us = time(kit, subject, &mut made)?;
    Ok(Measured { subject, params, quality, original_us, analysis, analysis_cost, made, answers })
}

/// Asks for the other shares where a tool removed something.
fn ask_for_other_shares(
    kit: &Kit,
    subject: &Subject,
    params: u64,
    made: &mut Vec<Made>,
) -> Result<()> {
    let left = |made: &Made| made.outcome.as_ref().map_or(params, |good| good.params);
    let tools: Vec<_> =
        made.iter().filter(|made| left(made) < params).map(|made| made.tool).collect();
    let first_new = made.len();
    for tool in tools {
        for &remove in &REMOVE[1..] {
            made.push(run(kit, subject, tool, remove)?);
        }
    }
    judge(kit, subject, &mut made[first_new..])?;
    made.sort_by_key(|made| made.tool.order());
    Ok(())
}

/// As [`run`], by what the fastest of some runs cost.
fn fastest(kit: &Kit, subject: &Subject, tool: Tool, remove: f64) -> Result<Made> {
    let (count, most) = RUNS;
    let mut best = run(kit, subject, tool, remove)?;
    for _ in 1..count {
        if best.cost.why.is_some() || best.cost.seconds > most {
            break;
        }
        let other = run(kit, subject, tool, remove)?;
        if other.cost.why.is_none() && other.cost.seconds < best.cost.seconds {
            best = other;
        }
    }
    Ok(best)
}

fn run(kit: &Kit, subject: &Subject, tool: Tool, remove: f64) -> Result<Made> {
    eprintln!("  {}: {:.1} % of the units", tool.title(), remove * 100.0);
    let (path, cost) = kit.prune(subject, tool, remove)?;
    let unjudged = Good {
        params: 0,
        quality: 0.0,
        error: 0.0,
        latency: [Err("not timed".into()), Err("not timed".into())],
    };
    let outcome = match &cost.why {
        Some(why) => Err(why.clone()),
        None => Ok(unjudged),
    };
    Ok(Made { tool, remove, cost, outcome, path })
}

/// Judges all models that came out; returns the original's verdict.
fn judge(kit: &Kit, subject: &Subject, made: &mut [Made]) -> Result<Verdict> {
    let mut made: Vec<_> = made.iter_mut().filter(|made| made.outcome.is_ok()).collect();
    let paths: Vec<_> = made.iter().map(|made| made.path.clone()).collect();
    let mut verdicts = kit.judge(subject, &paths)?.into_iter();
    let original = verdicts.next().context("the judge gave no verdict")?;
    for (made, verdict) in made.iter_mut().zip(verdicts) {
        match (verdict, &mut made.outcome) {
            (Verdict::Judged { params, quality, error }, Ok(good)) => {
                (good.params, good.quality, good.error) = (params, quality, error);
            }
            (Verdict::Failed { why }, outcome) => *outcome = Err(why),
            (_, Err(_)) => {}
        }
    }
    Ok(original)
}

/// Prunes once more by `tool` for every peer's number of parameters, to at most as many.
fn answer(
    kit: &Kit,
    subject: &Subject,
    params: u64,
    tool: Tool,
    made: &mut Vec<Made>,
) -> Result<BTreeMap<usize, usize>> {
    let is_peer = |tool| !matches!(tool, Tool::Ours { .. });
    let wanted: Vec<(usize, u64)> = made
        .iter()
        .enumerate()
        .filter(|(_, made)| is_peer(made.tool))
        .filter_map(|(index, made)| Some((index, made.outcome.as_ref().ok()?.params)))
        .filter(|(_, left)| *left < params)
        .collect();
    let extra = added_by_repair(kit, subject, tool, made)?;
    let searched =
        in_pairs(&wanted, |&(_, left)| least_removed(kit, subject, left.saturating_sub(extra)));
    let mut answers = BTreeMap::new();
    let (first_new, mut new) = (made.len(), Vec::<f64>::new());
    for ((peer, _), remove) in wanted.into_iter().zip(searched) {
        let Some(remove) = remove? else { continue };
        let known = made.iter().position(|m| m.tool == tool && same(m.remove, remove));
        let asked = new.iter().position(|&other| same(other, remove)).map(|at| first_new + at);
        let at = known.or(asked).unwrap_or_else(|| {
            new.push(remove);
            first_new + new.len() - 1
        });
        answers.insert(peer, at);
    }
    for run in in_pairs(&new, |&remove| run(kit, subject, tool, remove)) {
        made.push(run?);
    }
    judge(kit, subject, &mut made[first_new..])?;
    Ok(answers)
}

/// Parameters that a repair adds, biases above all, with room for the wider models of smaller cuts.
fn added_by_repair(kit: &Kit, subject: &Subject, tool: Tool, made: &[Made]) -> Result<u64> {
    let mut most = 0;
    for made in made.iter().filter(|made| made.tool == tool) {
        if let Ok(good) = &made.outcome {
            let cut = kit.params_left(subject, made.remove)?;
            most = most.max(good.params.saturating_sub(cut));
        }
    }
    Ok(most * 3 / 2)
}

fn same(a: f64, b: f64) -> bool {
    (a - b).abs() < 1e-6
}

/// The least share to remove that leaves at most `params`, or none where even all does not.
fn least_removed(kit: &Kit, subject: &Subject, params: u64) -> Result<Option<f64>> {
    let (mut too_little, mut enough) = (0.0, 1.0);
    if kit.params_left(subject, enough)? > params {
        return Ok(None);
    }
    for _ in 0..HALVINGS {
        let middle = f64::midpoint(too_little, enough);
        if kit.params_left(subject, middle)? > params {
            too_little = middle;
        } else {
            enough = middle;
        }
    }
    Ok(Some(enough))
}

/// Times the original and all models in turn; returns the original's medians.
fn time(kit: &Kit, subject: &Subject, made: &mut [Made]) -> Result<[Result<f64, String>; 2]> {
    let mut medians = ENGINES.map(|_| Err("not timed".to_owned()));
    for (at, engine) in ENGINES.iter().enumerate() {
        eprintln!("  timing in {engine}");
        let mut paths = vec![kit.original(subject)];
        let good: Vec<_> = made.iter_mut().filter(|made| made.outcome.is_ok()).collect();
        paths.extend(good.iter().map(|made| made.path.clone()));
        let mut least = rounds(kit, subject, engine, &paths).into_iter();
        let original = least.next().context("the original was not timed")?;
        for (made, us) in good.into_iter().zip(least) {
            if let Ok(good) = &mut made.outcome {
                good.latency[at] = match (&original, us) {
                    (Ok(whole), Ok(us)) => Ok(us / whole),
                    (Err(why), _) => Err(why.clone()),
                    (_, Err(why)) => Err(why),
                };
            }
        }
        medians[at] = original;
    }
    Ok(medians)
}

/// The least median of each model over some rounds, in each of which all take their turn.
fn rounds(
    kit: &Kit,
    subject: &Subject,
    engine: &str,
    paths: &[PathBuf],
) -> Vec<Result<f64, String>> {
    let mut least: Vec<Result<f64, String>> = Vec::new();
    for path in paths {
        let first = kit.latency(subject, path, engine, None).map_err(|error| last_line(&error));
        let hopeless = least.is_empty() && first.is_err();
        least.push(first);
        if hopeless {
            // What cannot run the original is not asked for the others.
            let why = least[0].clone();
            return vec![why; paths.len()];
        }
    }
    for _ in 0..ROUNDS {
        for (path, best) in paths.iter().zip(&mut least) {
            let Ok(known) = best.clone() else { continue };
            match kit.latency(subject, path, engine, Some(known)) {
                Ok(us) => *best = Ok(us.min(known)),
                Err(error) => *best = Err(last_line(&error)),
            }
        }
    }
    least
}

fn last_line(error: &anyhow::Error) -> String {
    let text = format!("{error:#}");
    let last = text.lines().last().unwrap_or_default().trim();
    last.chars().take(200).collect()
}
