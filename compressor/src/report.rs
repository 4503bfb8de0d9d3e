//! The report: one HTML file that needs nothing else, readable on a phone.
//!
//! The template shows what this module gives it and computes nothing. Text from models (names of nodes)
//! is escaped by the template engine, because the name ends in `.html`.

use std::collections::HashSet;

use minijinja::value::Serde;
use minijinja::{Environment, Value};
use serde::Serialize;

use crate::error::CompressError;
use crate::pipeline::analysis::Lock;
use crate::pipeline::{CandidateReport, CompressJob, Verdict};
use crate::plan::{GroupChoice, RefitStep, Refusal, RescaleStep};
use crate::search::{goal_text, mebibytes, milliseconds};
use crate::{metric, stats};

mod drawing;
mod prune;

use drawing::{Drawn, Scatter, drawn, scatter};
pub use prune::{PruneStory, render_prune};

/// The most locked dimensions listed, by what they hold back.
const MAX_LOCKS: usize = 400;

const TEMPLATE: &str = include_str!("../templates/report.html");

/// Everything the report shows.
#[derive(Debug)]
pub struct Story<'a> {
    /// The job.
    pub job: &'a CompressJob,
    /// The engine and its version.
    pub engine: String,
    /// The unmodified source.
    pub original: &'a CandidateReport,
    /// What was taken.
    pub chosen: &'a CandidateReport,
    /// Everything tried.
    pub candidates: &'a [CandidateReport],
    /// Everything not done.
    pub refused: &'a [Refusal],
    /// Samples that rated and fitted.
    pub calibration_samples: usize,
    /// Digest of the source.
    pub source_digest: String,
    /// Remarks, such as how rows were sampled.
    pub notes: &'a [String],
    /// What keeps its width, and which node says so.
    pub locks: &'a [Lock],
    /// How much is lost at each width, where that was measured.
    pub curves: &'a [Curve],
    /// Scores that were tried against each other, where that was done.
    pub scores: &'a [ScoreTried],
}

/// What narrowing one group alone loses.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Curve {
    /// The group.
    pub label: String,
    /// Its units.
    pub width: usize,
    /// Units kept, and the loss seen with them.
    pub points: Vec<(usize, f64)>,
}

/// One score that was tried on one kind of group.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ScoreTried {
    /// Kind of group.
    pub kind: String,
    /// The score.
    pub score: String,
    /// The loss seen.
    pub loss: f64,
    /// Whether it was taken.
    pub taken: bool,
}

#[derive(Debug, Serialize)]
struct Row {
    what: &'static str,
    before: String,
    after: String,
    change: String,
    source: &'static str,
}

#[derive(Debug, Serialize)]
struct Bar {
    label: String,
    before: usize,
    after: usize,
    percent: f64,
}

#[derive(Debug, Serialize)]
struct Tried {
    label: String,
    latency: String,
    size: String,
    agreement: String,
    basis: &'static str,
    verdict: &'static str,
    reason: String,
}

/// What a test of a candidate's answers found.
#[derive(Debug, Serialize)]
struct Tested {
    candidate: String,
    metric: String,
    original: String,
    value: String,
    loss: String,
    interval: String,
    margin: String,
    p: String,
    samples: u64,
    verdict: String,
    mcnemar: Option<String>,
}

/// Renders the report of a compression.
///
/// # Errors
/// The template fails, which is a defect of this program.
pub fn render(story: &Story<'_>) -> Result<String, CompressError> {
    page(&Page::of(story))
}

fn page(page: &Page<'_>) -> Result<String, CompressError> {
    let wrong = |e: minijinja::Error| CompressError::Report(format!("{e:#}"));
    let mut environment = Environment::new();
    environment.add_template("report.html", TEMPLATE).map_err(wrong)?;
    let page = Value::from(Serde(page));
    environment
        .get_template("report.html")
        .and_then(|template| template.render(page))
        .map_err(wrong)
}

/// What the template sees. Sections without content are left out.
#[derive(Debug, Default, Serialize)]
struct Page<'a> {
    title: &'a str,
    version: &'a str,
    goal: String,
    context: String,
    source: String,
    source_digest: &'a str,
    rows: Vec<Row>,
    bars: Vec<Bar>,
    tried: Vec<Tried>,
    scatter: Option<Scatter>,
    tests: Vec<Tested>,
    /// Said of the verdict on what was taken.
    verdict: Option<String>,
    curves: Vec<Drawn>,
    scores: &'a [ScoreTried],
    locks: Vec<&'a Lock>,
    more_locks: usize,
    refused: Vec<&'a Refusal>,
    refits: &'a [RefitStep],
    rescales: &'a [RescaleStep],
    quantized: Option<String>,
    chosen: &'a str,
    modelled: bool,
    notes: &'a [String],
    plan: String,
}

impl<'a> Page<'a> {
    fn of(story: &'a Story<'a>) -> Self {
        let (job, chosen) = (story.job, story.chosen);
        let source = job.source.file_name();
        Self {
            title: &job.name,
            version: &job.version,
            goal: format!("Goal: {}.", goal_text(&job.goal)),
            context: context(story),
            source: source.map_or_else(String::new, |n| n.to_string_lossy().into_owned()),
            source_digest: &story.source_digest,
            rows: rows(story),
            bars: bars(&chosen.plan.groups),
            tried: story.candidates.iter().map(tried).collect(),
            scatter: Some(scatter(story.original, story.candidates, &job.goal)),
            tests: story.candidates.iter().flat_map(tests).collect(),
            verdict: verdict(story),
            curves: drawn(story.curves),
            scores: story.scores,
            locks: story.locks.iter().take(MAX_LOCKS).collect(),
            more_locks: story.locks.len().saturating_sub(MAX_LOCKS),
            refused: not_locks(story.refused, story.locks),
            refits: &chosen.refits,
            rescales: &chosen.rescales,
            quantized: chosen.plan.quantize.map(|q| q.to_string()),
            chosen: &chosen.label,
            modelled: job.baseline.is_some(),
            notes: story.notes,
            plan: serde_json::to_string_pretty(&chosen.plan).unwrap_or_default(),
        }
    }
}

fn context(story: &Story<'_>) -> String {
    let job = story.job;
    format!(
        "For {} on {} with {} thread{}. Fitted on {} calibration samples, seed {}, bundle sequence {}.",
        job.device_class,
        story.engine,
        job.engine.threads,
        if job.engine.threads == 1 { "" } else { "s" },
        story.calibration_samples,
        job.seed,
        job.sequence
    )
}

/// What was refused besides the dimensions that the model's structure locks, which have a table of their own.
fn not_locks<'a>(refused: &'a [Refusal], locks: &[Lock]) -> Vec<&'a Refusal> {
    let locks: Vec<Refusal> = locks.iter().map(Lock::refusal).collect();
    let locks: HashSet<(&str, &str)> = locks.iter().map(|l| (&*l.what, &*l.why)).collect();
    refused.iter().filter(|r| !locks.contains(&(r.what.as_str(), r.why.as_str()))).collect()
}

/// The tests of a candidate that was judged on held-out samples.
fn tests(candidate: &CandidateReport) -> Vec<Tested> {
    let quality = candidate.quality.iter().filter(|quality| !quality.screening);
    let tests = quality.flat_map(|quality| &quality.tests);
    tests.map(|test| tested(&candidate.label, test)).collect()
}

fn tested(candidate: &str, test: &metric::Comparison) -> Tested {
    let interval = &test.evidence.difference;
    let point = test.test == metric::Test::Point;
    Tested {
        candidate: candidate.to_owned(),
        metric: test.metric.clone(),
        original: test.amount(test.original),
        value: test.amount(test.candidate),
        loss: test.amount(test.loss()),
        interval: if point {
            "unknown".into()
        } else {
            format!("{} to {}", test.amount(-interval.high), test.amount(-interval.low))
        },
        margin: test.amount(test.margin),
        p: if point { String::new() } else { format!("{:.4}", test.evidence.p_noninferior) },
        samples: test.samples,
        verdict: if point { "untested".into() } else { test.verdict.to_string() },
        mcnemar: match test.test {
            metric::Test::Score { lost, gained, mcnemar } if gained > 0 => Some(format!(
                "{lost} lost, {gained} gained; exact McNemar p = {:.4}",
                mcnemar.two_sided
            )),
            _ => None,
        },
    }
}

/// What is said of the verdict on what was taken.
fn verdict(story: &Story<'_>) -> Option<String> {
    let quality = story.chosen.quality.as_ref()?;
    let open = quality.tests.iter().any(|test| test.verdict != stats::Verdict::NonInferior);
    let confidence = story.job.judging.confidence;
    Some(match (confidence, open) {
        _ if quality.tests.is_empty() => return None,
        (Some(confidence), _) => {
            format!("Accepted because it was shown with {} % confidence.", confidence * 100.0)
        }
        (None, false) => "No confidence was asked for; it was shown all the same.".into(),
        (None, true) => {
            "Accepted by what was seen, since no confidence was asked for: the samples do not show it.".into()
        }
    })
}

fn rows(story: &Story<'_>) -> Vec<Row> {
    let (before, after) = (story.original, story.chosen);
    let mut rows = vec![
        row(
            "Latency p95",
            before.latency_p95_us.value,
            after.latency_p95_us.value,
            milliseconds,
            quality(&after.latency_p95_us),
        ),
        row(
            "Latency p50 on this host",
            before.host.p50_us,
            after.host.p50_us,
            milliseconds,
            "measured",
        ),
        row(
            "Memory when serving",
            before.memory_bytes.value,
            after.memory_bytes.value,
            mebibytes,
            quality(&after.memory_bytes),
        ),
        row("Size", before.size_bytes as f64, after.size_bytes as f64, mebibytes, "measured"),
        row(
            "Parameters",
            before.params as f64,
            after.params as f64,
            |v| format!("{v:.0}"),
            "counted",
        ),
    ];
    if let (Some(b), Some(a)) = (before.macs, after.macs) {
        rows.push(row(
            "Multiply-accumulates",
            b as f64,
            a as f64,
            |v| format!("{:.1} M", v / 1e6),
            "counted",
        ));
    }
    if let Some(q) = &after.quality {
        rows.push(Row {
            what: "Agreement with the original",
            before: "100 %".into(),
            after: percent(q.agreement.value),
            change: format!("{} to {}", percent(q.agreement.low), percent(q.agreement.high)),
            source: "measured",
        });
        if let Some(accuracy) = q.accuracy {
            rows.push(Row {
                what: "Accuracy on labels",
                before: percent(accuracy.original.value),
                after: percent(accuracy.candidate.value),
                change: format!(
                    "{:+.1} points ({} lost, {} gained, McNemar p = {:.3})",
                    (accuracy.candidate.value - accuracy.original.value) * 100.0,
                    accuracy.lost,
                    accuracy.gained,
                    accuracy.mcnemar.two_sided
                ),
                source: "measured",
            });
        }
    }
    rows
}

fn row(
    what: &'static str,
    before: f64,
    after: f64,
    text: fn(f64) -> String,
    source: &'static str,
) -> Row {
    Row {
        what,
        before: text(before),
        after: text(after),
        change: if before > 0.0 {
            format!("{:+.0} %", (after / before - 1.0) * 100.0)
        } else {
            String::new()
        },
        source,
    }
}

fn quality(estimate: &bundle::Estimate) -> &'static str {
    match estimate.quality {
        bundle::Quality::Measured => "measured",
        bundle::Quality::Modelled => "modelled",
    }
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

fn bars(groups: &[GroupChoice]) -> Vec<Bar> {
    groups
        .iter()
        .map(|g| Bar {
            label: g.label.clone(),
            before: g.width,
            after: g.keep.len(),
            percent: 100.0 * g.keep.len() as f64 / g.width.max(1) as f64,
        })
        .collect()
}

fn tried(candidate: &CandidateReport) -> Tried {
    let (verdict, reason) = match &candidate.verdict {
        Verdict::Chosen => ("chosen", String::new()),
        Verdict::Feasible => ("feasible", "another that was judged agrees better".into()),
        Verdict::NotJudged(why) => ("not judged", why.clone()),
        Verdict::Refused(why) => ("refused", why.clone()),
    };
    Tried {
        label: candidate.label.clone(),
        latency: milliseconds(candidate.latency_p95_us.value),
        size: mebibytes(candidate.size_bytes as f64),
        agreement: candidate
            .quality
            .as_ref()
            .map_or_else(|| "not judged".into(), |q| percent(q.agreement.value)),
        basis: match &candidate.quality {
            Some(q) if q.screening => "screening",
            Some(_) => "held-out",
            None => "",
        },
        verdict,
        reason,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "report_tests.rs"]
mod tests;
