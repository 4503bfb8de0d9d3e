//! The report of one pruning.

use std::path::Path;

use super::{Curve, MAX_LOCKS, Page, Row, ScoreTried, bars, not_locks, page, row};
use crate::error::CompressError;
use crate::pipeline::single::PruneOutcome;
use crate::search::mebibytes;

/// Everything that the report of a pruning shows.
#[derive(Debug)]
pub struct PruneStory<'a> {
    /// The model that was pruned.
    pub source: &'a Path,
    /// Sizes of the model's file before and after, in bytes.
    pub size_bytes: (u64, u64),
    /// What was asked for, as a sentence.
    pub goal: String,
    /// What was done.
    pub outcome: &'a PruneOutcome,
    /// How much is lost at each width, where that was measured.
    pub curves: &'a [Curve],
    /// Scores that were tried against each other, where that was done.
    pub scores: &'a [ScoreTried],
}

/// Renders the report of a pruning.
///
/// # Errors
/// The template fails, which is a defect of this program.
pub fn render_prune(story: &PruneStory<'_>) -> Result<String, CompressError> {
    let outcome = story.outcome;
    let name = |path: &Path| path.file_name().map(|n| n.to_string_lossy().into_owned());
    let source = name(story.source).unwrap_or_default();
    page(&Page {
        title: &source,
        version: "pruned",
        goal: story.goal.clone(),
        context: format!("Seed {}.", outcome.plan.seed),
        source: source.clone(),
        source_digest: &outcome.plan.source_sha256,
        rows: rows(story),
        bars: bars(&outcome.groups),
        curves: super::drawn(story.curves),
        scores: story.scores,
        locks: outcome.locked.iter().take(MAX_LOCKS).collect(),
        more_locks: outcome.locked.len().saturating_sub(MAX_LOCKS),
        refused: not_locks(&outcome.refused, &outcome.locked),
        refits: &outcome.refits,
        rescales: &outcome.rescales,
        plan: serde_json::to_string_pretty(&outcome.plan).unwrap_or_default(),
        ..Page::default()
    })
}

fn rows(story: &PruneStory<'_>) -> Vec<Row> {
    let (outcome, (before, after)) = (story.outcome, story.size_bytes);
    let count = |what, before: u64, after: u64| {
        row(what, before as f64, after as f64, |v| format!("{v:.0}"), "counted")
    };
    let mut rows = vec![count("Parameters", outcome.params_before, outcome.params_after)];
    if let (Some(before), Some(after)) = (outcome.macs_before, outcome.macs_after) {
        rows.push(count("Multiply-accumulates", before, after));
    }
    rows.push(row("Size", before as f64, after as f64, mebibytes, "measured"));
    rows
}
