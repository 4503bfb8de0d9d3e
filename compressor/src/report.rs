//! The report: one HTML file that needs nothing else, readable on a phone.
//!
//! The template shows what this module gives it and computes nothing. Text from models (names of nodes)
//! is escaped by the template engine, because the name ends in `.html`.

use minijinja::value::Serde;
use minijinja::{Environment, Value};
use serde::Serialize;

use crate::error::CompressError;
use crate::pipeline::{CandidateReport, CompressJob, Goal, Verdict};
use crate::plan::{RefitStep, Refusal, RescaleStep};
use crate::search::{goal_text, mebibytes, milliseconds};

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

#[derive(Debug, Serialize)]
struct Point {
    x: f64,
    y: f64,
    label: String,
    class: &'static str,
}

#[derive(Debug, Serialize)]
struct Scatter {
    points: Vec<Point>,
    budget_x: Option<f64>,
    floor_y: f64,
    x_max: String,
    y_min: String,
}

/// Renders the report.
///
/// # Errors
/// The template fails, which is a defect of this program.
pub fn render(story: &Story<'_>) -> Result<String, CompressError> {
    let wrong = |e: minijinja::Error| CompressError::Report(format!("{e:#}"));
    let mut environment = Environment::new();
    environment.add_template("report.html", TEMPLATE).map_err(wrong)?;
    let page = Value::from(Serde(Page::of(story)));
    environment
        .get_template("report.html")
        .and_then(|template| template.render(page))
        .map_err(wrong)
}

/// What the template sees.
#[derive(Debug, Serialize)]
struct Page<'a> {
    name: &'a str,
    version: &'a str,
    sequence: u64,
    device_class: &'a str,
    engine: &'a str,
    threads: usize,
    goal: String,
    source: String,
    source_digest: &'a str,
    seed: u64,
    calibration_samples: usize,
    rows: Vec<Row>,
    bars: Vec<Bar>,
    tried: Vec<Tried>,
    scatter: Scatter,
    refused: &'a [Refusal],
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
            name: &job.name,
            version: &job.version,
            sequence: job.sequence,
            device_class: &job.device_class,
            engine: &story.engine,
            threads: job.engine.threads,
            goal: goal_text(&job.goal),
            source: source.map_or_else(String::new, |n| n.to_string_lossy().into_owned()),
            source_digest: &story.source_digest,
            seed: job.seed,
            calibration_samples: story.calibration_samples,
            rows: rows(story),
            bars: bars(chosen),
            tried: story.candidates.iter().map(tried).collect(),
            scatter: scatter(story.original, story.candidates, &job.goal),
            refused: story.refused,
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
                    "{:+.1} points",
                    (accuracy.candidate.value - accuracy.original.value) * 100.0
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

fn bars(chosen: &CandidateReport) -> Vec<Bar> {
    chosen
        .plan
        .groups
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

/// Points in a 100 by 60 plane: latency to the right, agreement upwards. The original agrees with itself.
fn scatter(original: &CandidateReport, candidates: &[CandidateReport], goal: &Goal) -> Scatter {
    let agreement = |c: &CandidateReport| c.quality.as_ref().map(|q| q.agreement.value);
    let judged = candidates.iter().filter(|c| c.label != original.label);
    let judged = judged.filter_map(|c| Some((c, agreement(c)?)));
    let points: Vec<(&CandidateReport, f64)> = judged.chain([(original, 1.0)]).collect();
    let budget = goal.latency_p95_us.map(|us| us as f64);
    let latencies = points.iter().map(|(c, _)| c.latency_p95_us.value).chain(budget);
    let x_max = latencies.fold(1.0, f64::max) * 1.08;
    let lowest = points.iter().map(|(_, a)| *a).fold(goal.agreement_min, f64::min);
    let y_min = (lowest - 0.03).max(0.0);
    let place_y = |a: f64| 60.0 * (1.0 - (a - y_min) / (1.0 - y_min).max(1e-6));
    let point = |(c, agreement): &(&CandidateReport, f64)| Point {
        x: 100.0 * c.latency_p95_us.value / x_max,
        y: place_y(*agreement),
        label: format!(
            "{}: {}, {}",
            c.label,
            milliseconds(c.latency_p95_us.value),
            percent(*agreement)
        ),
        class: match c.verdict {
            Verdict::Chosen => "chosen",
            Verdict::Feasible | Verdict::NotJudged(_) => "feasible",
            Verdict::Refused(_) => "refused",
        },
    };
    Scatter {
        points: points.iter().map(point).collect(),
        budget_x: budget.map(|us| 100.0 * us / x_max),
        floor_y: place_y(goal.agreement_min),
        x_max: milliseconds(x_max),
        y_min: percent(y_min),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "report_tests.rs"]
mod tests;
