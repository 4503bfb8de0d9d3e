//! What decides whether a finished candidate answers well enough: agreement with the original, a metric of the task,
//! or a command of the user's; by its point estimate, or with confidence.

use std::path::Path;

use super::judge::{Answers, judge, judge_with};
use super::shop::Shop;
use crate::error::CompressError;
use crate::metric::external::{Evaluation, External, Failure};
use crate::metric::{
    self, Against, Comparison, Meter, Metric, Reference, compare, compare_agreement,
    compare_evaluations,
};
use crate::quality::{Answer, Compared, QualityReport};
use crate::stats::{Evidence, Paired, Plan, Resampling, Verdict, verdicts};

/// Draws of samples that the resamples of one test take together; with more samples there are fewer resamples.
const MAX_DRAWS: usize = 200_000_000;
/// The fewest resamples of a test.
const FEWEST_RESAMPLES: usize = 200;
/// What a loss may be over a margin by rounding alone.
const ROUNDING: f64 = 1e-9;
/// Chance to accept a candidate that loses the margin, for reports where no confidence is asked for.
const USUAL_ALPHA: f64 = 0.05;

/// How a finished candidate is judged.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Judging {
    /// One-sided confidence (above 0.5, below 1) with which a candidate must be shown to lose less than the margin.
    /// Without it the loss seen decides, and the report says what the test found.
    pub confidence: Option<f64>,
    /// What is measured besides agreement.
    pub measure: Measure,
}

/// What is measured of both models on the held-out samples.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Measure {
    /// Nothing besides agreement, whose margin is what the goal's floor leaves to 1.
    #[default]
    Agreement,
    /// A metric of the answers at one output.
    Metric {
        /// The metric.
        metric: Metric,
        /// The output; the only one without it.
        output: Option<String>,
        /// The loss that is accepted, in the metric's unit.
        margin: f64,
    },
    /// What a command prints of a model.
    External {
        /// The command. It is given the model and the held-out file.
        command: External,
        /// The loss that is accepted, in the command's unit.
        margin: f64,
    },
}

impl Judging {
    /// Error probabilities of the tests.
    pub fn plan(&self) -> Plan {
        let alpha = self.confidence.map_or(USUAL_ALPHA, |confidence| 1.0 - confidence);
        Plan { alpha, ..Plan::default() }
    }

    /// What is wrong with it, if anything.
    pub(crate) fn check(&self, agreement_min: f64) -> Result<(), CompressError> {
        let wrong = |what: String| Err(CompressError::Goal(what));
        if let Some(confidence) = self.confidence.filter(|c| !(*c > 0.5 && *c < 1.0)) {
            return wrong(format!(
                "the confidence is {confidence}, and must lie between 0.5 and 1"
            ));
        }
        let margin = match &self.measure {
            Measure::Agreement => None,
            Measure::Metric { margin, .. } | Measure::External { margin, .. } => Some(*margin),
        };
        if let Some(margin) = margin.filter(|m| !(m.is_finite() && *m > 0.0)) {
            return wrong(format!(
                "the metric may drop by {margin}, and must be allowed more than 0"
            ));
        }
        if self.confidence.is_some() && agreement_min >= 1.0 {
            return wrong(
                "no number of samples shows that nothing is lost; allow a drop, or ask for no confidence".into(),
            );
        }
        Ok(())
    }
}

/// The test of agreement at the goal's margin, where it asks for any.
pub(crate) fn agreement(shop: &Shop<'_>, shares: &[f64]) -> Option<Comparison> {
    let margin = 1.0 - shop.job.goal.agreement_min;
    let resampling = resampling(shop, shares.len());
    let plan = shop.job.judging.plan();
    // What has no answer (a margin of all or of nothing) is asked for by no goal.
    compare_agreement(shares, margin, plan, &resampling).ok()
}

fn resampling(shop: &Shop<'_>, samples: usize) -> Resampling {
    let usual = Resampling { seed: shop.job.seed, ..Resampling::default() };
    let most = (MAX_DRAWS / samples.max(1)).max(FEWEST_RESAMPLES);
    Resampling { resamples: usual.resamples.min(most), ..usual }
}

/// Measures finished candidates.
pub(crate) enum Gauge<'a> {
    Agreement,
    Metric { metric: &'a Metric, at: usize, margin: f64 },
    External { command: &'a External, original: Evaluation, margin: f64 },
}

impl<'a> Gauge<'a> {
    /// Checks that what the metric needs is there, and lets an evaluator measure the original.
    pub(crate) fn open(shop: &'a Shop<'_>, compared: &[Compared]) -> Result<Self, CompressError> {
        match &shop.job.judging.measure {
            Measure::Agreement => Ok(Self::Agreement),
            Measure::Metric { metric, output, margin } => {
                let at = place(compared, output.as_deref())?;
                Ok(Self::Metric { metric, at, margin: *margin })
            }
            Measure::External { command, margin } => {
                let original = original(shop, command)?;
                Ok(Self::External { command, original, margin: *margin })
            }
        }
    }

    /// Judges the model at `path` on all held-out samples, with every test. Judging stops early where even the upper
    /// end of the agreement's interval is under the goal's floor.
    pub(crate) fn judge(
        &self,
        shop: &Shop<'_>,
        path: &Path,
        answers: &mut Answers<'_>,
        compared: &[Compared],
    ) -> Result<QualityReport, CompressError> {
        let (all, floor) = (0..shop.heldout.len(), Some(shop.job.goal.agreement_min));
        match self {
            Self::Agreement => judge(shop, path, answers, compared, all, floor),
            Self::External { command, original, margin } => {
                let mut report = judge(shop, path, answers, compared, all, floor)?;
                if !report.stopped_early {
                    report.tests.push(evaluated(shop, command, path, original, *margin)?);
                }
                Ok(report)
            }
            Self::Metric { metric, at, margin } => {
                let mut meters = Meters::new(shop, metric, *at);
                let each = &mut |sample: usize, original: &[Answer], candidate: &[Answer]| {
                    meters.push(sample, original, candidate)
                };
                let mut report = judge_with(shop, path, answers, compared, all, floor, each)?;
                if !report.stopped_early {
                    report.tests.push(meters.compare(*margin)?);
                }
                Ok(report)
            }
        }
    }
}

/// What the metric compares with must be there before anything is tried.
pub(crate) fn references(shop: &Shop<'_>) -> Result<(), CompressError> {
    let Measure::Metric { metric, .. } = &shop.job.judging.measure else { return Ok(()) };
    let (wanted, there) = match metric.against() {
        Against::Original => return Ok(()),
        Against::Classes => ("labels", shop.heldout.labels().is_some()),
        Against::Texts => ("texts", shop.heldout.texts().is_some()),
    };
    if there {
        return Ok(());
    }
    let (name, file) = (metric.name(), shop.heldout.file().display());
    Err(CompressError::Metric(format!("{name} needs {wanted}, and {file} has none (docs/data.md)")))
}

fn place(compared: &[Compared], output: Option<&str>) -> Result<usize, CompressError> {
    let names = || compared.iter().map(|c| c.output.as_str()).collect::<Vec<_>>().join(", ");
    let found = match (output, compared) {
        (Some(output), _) => compared.iter().position(|c| c.output == output),
        (None, [_]) => Some(0),
        (None, _) => None,
    };
    found.ok_or_else(|| {
        CompressError::Metric(match output {
            Some(output) => format!("there is no f32 output \"{output}\"; there are {}", names()),
            None => format!("name one of the outputs that it measures: {}", names()),
        })
    })
}

/// What the evaluator says of the original.
fn original(shop: &Shop<'_>, command: &External) -> Result<Evaluation, CompressError> {
    if shop.hold_out_every.is_some() {
        return Err(CompressError::Metric(
            "an evaluator is given the held-out file, and here samples of it are fitted too: give a held-out file of its own".into(),
        ));
    }
    shop.progress.stage("evaluating the original", 0);
    let evaluation = evaluate(shop, command, &shop.source.path)?.map_err(CompressError::Metric)?;
    if evaluation.per_sample.is_none() && shop.job.judging.confidence.is_some() {
        return Err(CompressError::Metric(format!(
            "a verdict with confidence needs the value of each sample: print per_sample in `{}`, or ask for no confidence",
            command.command.join(" ")
        )));
    }
    Ok(evaluation)
}

/// An evaluation, or why this model has none.
fn evaluate(
    shop: &Shop<'_>,
    command: &External,
    path: &Path,
) -> Result<Result<Evaluation, String>, CompressError> {
    let data = shop.heldout.file();
    match command.evaluate(path, Some(data), &|| shop.progress.cancelled()) {
        Ok(evaluation) => Ok(Ok(evaluation)),
        Err(error) if matches!(error.failure, Failure::Cancelled) => {
            Err(CompressError::Cancelled("an evaluation".into()))
        }
        Err(error) => Ok(Err(error.to_string())),
    }
}

fn evaluated(
    shop: &Shop<'_>,
    command: &External,
    path: &Path,
    original: &Evaluation,
    margin: f64,
) -> Result<Comparison, CompressError> {
    shop.progress.stage("evaluating a candidate", 0);
    let candidate = evaluate(shop, command, path)?.map_err(refused)?;
    let samples = candidate.per_sample.as_ref().map_or(0, Vec::len);
    let (plan, resampling) = (shop.job.judging.plan(), resampling(shop, samples));
    compare_evaluations(original, &candidate, margin, plan, &resampling)
        .map_err(|error| refused(error.to_string()))
}

/// The candidate cannot be measured, and is refused for it.
fn refused(what: String) -> CompressError {
    CompressError::Graph { stage: "judge", what }
}

/// The metric of both models over the same samples.
struct Meters<'a> {
    shop: &'a Shop<'a>,
    metric: &'a Metric,
    at: usize,
    original: Option<Meter>,
    candidate: Option<Meter>,
}

impl<'a> Meters<'a> {
    fn new(shop: &'a Shop<'_>, metric: &'a Metric, at: usize) -> Self {
        Self { shop, metric, at, original: None, candidate: None }
    }

    fn push(
        &mut self,
        sample: usize,
        original: &[Answer],
        candidate: &[Answer],
    ) -> Result<(), CompressError> {
        let nothing = Answer::default();
        let answer = |answers: &'_ [Answer]| answers.get(self.at).unwrap_or(&nothing).clone();
        let (before, after) = (answer(original), answer(candidate));
        let row = before.shape.last().copied().unwrap_or(1);
        let data = &self.shop.heldout;
        let reference = match self.metric.against() {
            Against::Original => Some(Reference::Answer(&before.data)),
            Against::Classes => {
                data.labels().and_then(|l| l.get(sample)).map(|l| Reference::Class(*l))
            }
            Against::Texts => data.texts().and_then(|t| t.get(sample)).map(|t| Reference::Text(t)),
        };
        let Some(reference) = reference else {
            return Err(refused(format!("sample {sample} has nothing to compare with")));
        };
        let wrong = |error: metric::MetricError| refused(error.to_string());
        let meter = || Meter::new(self.metric.clone(), row);
        self.candidate.get_or_insert_with(meter).push(&after.data, reference).map_err(wrong)?;
        if self.metric.against() != Against::Original {
            self.original.get_or_insert_with(meter).push(&before.data, reference).map_err(wrong)?;
        }
        Ok(())
    }

    fn compare(&self, margin: f64) -> Result<Comparison, CompressError> {
        let candidate = self.candidate.as_ref();
        let candidate = candidate.ok_or_else(|| refused("there was nothing to measure".into()))?;
        let (plan, resampling) =
            (self.shop.job.judging.plan(), resampling(self.shop, candidate.len()));
        compare(self.original.as_ref(), candidate, margin, plan, &resampling)
            .map_err(|error| refused(error.to_string()))
    }
}

/// The fewest held-out samples on which a candidate that loses none can be shown to lose less than the goal's
/// margin, among `finals` candidates.
fn fewest(shop: &Shop<'_>, finals: usize) -> Option<u64> {
    let margin = 1.0 - shop.job.goal.agreement_min;
    let alpha = shop.job.judging.plan().alpha / finals.max(1) as f64;
    let shows = |samples: u64| {
        let p = Paired::new(samples, 0, 0).and_then(|pair| pair.p_noninferior(margin));
        p.is_ok_and(|p| p <= alpha)
    };
    let mut most = 1u64;
    while !shows(most) {
        most = most.checked_mul(2).filter(|most| *most <= crate::data::MAX_SAMPLES as u64)?;
    }
    let mut least = most / 2;
    while least + 1 < most {
        let middle = u64::midpoint(least, most);
        if shows(middle) { most = middle } else { least = middle }
    }
    Some(most)
}

/// An error where confidence is asked for and no candidate, however good, could be shown to be good enough.
pub(crate) fn enough(shop: &Shop<'_>, finals: usize) -> Result<(), CompressError> {
    let goal = &shop.job.goal;
    let Some(confidence) = shop.job.judging.confidence.filter(|_| goal.agreement_min > 0.0) else {
        return Ok(());
    };
    let held = shop.heldout.len();
    match fewest(shop, finals) {
        Some(fewest) if held as u64 >= fewest => Ok(()),
        fewest => Err(CompressError::Goal(format!(
            "{held} held-out samples are too few: even if a candidate agreed on all of them, {} are needed to show with \
             {:.1} % confidence that it loses less than {:.1} %{}; give more, allow a wider drop, or ask for no confidence",
            fewest.map_or_else(|| "more than MAX_SAMPLES".into(), |fewest| fewest.to_string()),
            confidence * 100.0,
            (1.0 - goal.agreement_min) * 100.0,
            if finals > 1 { format!(" (the best of {finals} candidates)") } else { String::new() },
        ))),
    }
}

/// Gives the tests of every finished candidate their verdicts among all that may be judged: Holm's correction, in which a
/// candidate that was not judged yet counts as one that shows nothing. `finals` is how many there may be.
pub(crate) fn settle(judged: &mut [&mut QualityReport], finals: usize, plan: Plan) {
    let most = judged.iter().map(|quality| quality.tests.len()).max().unwrap_or(0);
    for number in 0..most {
        let tests = judged.iter_mut().filter_map(|quality| quality.tests.get_mut(number));
        let mut tests: Vec<&mut Comparison> = tests.collect();
        let mut evidence: Vec<Evidence> = tests.iter().map(|test| test.evidence).collect();
        if let Some(pattern) = evidence.first().copied() {
            let nothing = Evidence { p_noninferior: 1.0, p_inferior: 1.0, ..pattern };
            evidence.resize(evidence.len().max(finals), nothing);
        }
        for (test, verdict) in tests.iter_mut().zip(verdicts(&evidence, plan.alpha)) {
            test.verdict = verdict;
        }
    }
}

/// Why a candidate's tests keep it from being accepted.
pub(crate) fn misses(judging: &Judging, tests: &[Comparison], finals: usize) -> Vec<String> {
    let corrected = if finals > 1 {
        format!(" (corrected for the choice among {finals} by Holm's method)")
    } else {
        String::new()
    };
    let miss = |test: &Comparison| match judging.confidence {
        Some(_) if test.verdict == Verdict::NonInferior => None,
        Some(_) => Some(format!("not shown to be good enough: {}{corrected}", test.sentence())),
        None if test.loss() <= test.margin + ROUNDING => None,
        None => Some(format!("over its margin: {}", test.sentence())),
    };
    tests.iter().filter_map(miss).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "gauge_tests.rs"]
mod tests;
