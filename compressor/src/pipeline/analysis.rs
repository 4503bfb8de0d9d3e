//! What a model is made of, what of it can be pruned, and what keeps the rest.
//!
//! Everything is counted, nothing is cut: a model of several gigabytes is analysed without reading its weights.

use std::path::Path;

use graph::cost::{self, Exempt, Left};
use graph::{Locked, LockedBy};
use serde::Serialize;

use super::shop::{Source, macs};
use crate::error::CompressError;
use crate::plan::{Refusal, aligned_keep};
use crate::refit::label;

/// An analysis. Shares are of 0 to 1.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Analysis {
    /// Elements of the model's constants, with decided branches put in place and without what nothing reads.
    pub params: u64,
    /// The same of the file as it is.
    pub file_params: u64,
    /// Elements of constants that are neither an embedding nor of a final classifier.
    pub inner_params: u64,
    /// Multiply-accumulates of one sample, where shapes are known.
    pub macs: Option<u64>,
    /// Share of the parameters that goes when every group keeps the narrowest width that engines like.
    pub prunable_params: f64,
    /// The same of the multiply-accumulates.
    pub prunable_macs: Option<f64>,
    /// What belongs to any group at all.
    pub in_groups: Shares,
    /// What goes with every other unit of every group.
    pub half: Shares,
    /// The same with widths rounded up to what engines like, as `prune --ratio 0.5` does.
    pub half_aligned: Shares,
    /// Embeddings and final classifiers.
    pub excluded: Vec<Excluded>,
    /// What can be pruned.
    pub groups: Vec<GroupSummary>,
    /// What cannot, by what it holds back, most first.
    pub blocked: Vec<Lock>,
    /// What the file says that is carried along without being understood, and so locks what it touches.
    pub not_understood: Vec<String>,
}

/// Shares of a model.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Shares {
    /// Of all parameters.
    pub params: f64,
    /// Of the parameters without embeddings and final classifiers.
    pub inner_params: f64,
    /// Of the multiply-accumulates.
    pub macs: Option<f64>,
}

/// A constant that shares of inner parameters leave out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Excluded {
    /// Its name.
    pub constant: String,
    /// `embedding` or `classifier`.
    pub kind: &'static str,
    /// Its elements.
    pub params: u64,
}

/// A group of units that can go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GroupSummary {
    /// Its id, as plans name it.
    pub group: u32,
    /// Its first producer.
    pub label: String,
    /// Units.
    pub width: usize,
    /// Places where constants are sliced.
    pub constants: usize,
    /// Nodes that sum over the units.
    pub consumers: usize,
}

/// A dimension that keeps its width.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Lock {
    /// The dimension as text: value, axis and width.
    pub dim: String,
    /// The value.
    pub value: String,
    /// Its axis.
    pub axis: usize,
    /// The width.
    pub width: usize,
    /// The node that locks it, or what else does.
    pub by: String,
    /// Type of that node.
    pub op: Option<String>,
    /// Why.
    pub why: String,
    /// Parameters whose units cannot go because of it. Several locks may hold the same ones.
    pub holds: u64,
}

/// Analyses the model at `path`.
///
/// # Errors
/// The model cannot be read.
pub fn analyze(path: &Path) -> Result<Analysis, CompressError> {
    Ok(of(&Source::load(path)?))
}

pub(crate) fn of(source: &Source) -> Analysis {
    let whole = left(source, &|width| width);
    let shares = |keep: &dyn Fn(usize) -> usize| shares(source, whole, keep);
    let narrowest = shares(&|width| aligned_keep(width, 0.0));
    Analysis {
        params: cost::params(&source.model),
        file_params: source.file_params,
        inner_params: whole.inner_params,
        macs: macs(&source.model, &source.shapes),
        prunable_params: narrowest.params,
        prunable_macs: narrowest.macs,
        in_groups: shares(&|_| 0),
        half: shares(&|width| width.div_ceil(2)),
        half_aligned: shares(&|width| aligned_keep(width, 0.5)),
        excluded: excluded(source),
        groups: groups(source),
        blocked: locks(source),
        not_understood: not_understood(source),
    }
}

fn left(source: &Source, keep: &dyn Fn(usize) -> usize) -> Left {
    cost::left(&source.model, &source.shapes, &source.grouping, 1, keep)
}

fn shares(source: &Source, whole: Left, keep: &dyn Fn(usize) -> usize) -> Shares {
    let kept = left(source, keep);
    let share = |before: u64, after: u64| match before {
        0 => 0.0,
        _ => (1.0 - after as f64 / before as f64).max(0.0),
    };
    Shares {
        params: share(whole.params, kept.params),
        inner_params: share(whole.inner_params, kept.inner_params),
        macs: (whole.macs > 0).then(|| share(whole.macs, kept.macs)),
    }
}

fn excluded(source: &Source) -> Vec<Excluded> {
    let graph = &source.model.graph;
    let all = cost::exempt(graph).into_iter().filter_map(|(value, kind)| {
        Some(Excluded {
            constant: graph.value(value).name.clone(),
            kind: match kind {
                Exempt::Embedding => "embedding",
                Exempt::Classifier => "classifier",
            },
            params: graph.constant(value)?.len() as u64,
        })
    });
    all.collect()
}

fn groups(source: &Source) -> Vec<GroupSummary> {
    let groups = source.grouping.groups.iter().enumerate();
    groups
        .map(|(index, group)| GroupSummary {
            group: group.id.0,
            label: source.group_label(index),
            width: group.width,
            constants: group.slices.len(),
            consumers: group.consumers.len(),
        })
        .collect()
}

/// What import carried along, as sentences.
pub(crate) fn not_understood(source: &Source) -> Vec<String> {
    let warnings = source.model.warnings.iter();
    warnings.map(|warning| format!("{}: {}", warning.place, warning.reason)).collect()
}

/// Everything that is locked, by what it holds back, most first.
pub(crate) fn locks(source: &Source) -> Vec<Lock> {
    let mut locks: Vec<Lock> = source.grouping.locked.iter().map(|l| lock(source, l)).collect();
    locks.sort_by(|a, b| b.holds.cmp(&a.holds).then_with(|| a.dim.cmp(&b.dim)));
    locks
}

pub(crate) fn lock(source: &Source, locked: &Locked) -> Lock {
    let graph = source.graph_of(&locked.scope);
    let value = graph.get_value(locked.value).map_or_else(String::new, |v| v.name.clone());
    Lock {
        dim: format!("{value}[{}] = {}", locked.axis, locked.width),
        value,
        axis: locked.axis,
        width: locked.width,
        by: match locked.by {
            LockedBy::Node(node) => label(graph, node),
            LockedBy::Limit => "a limit of espalier".into(),
            LockedBy::GraphInput => "model input".into(),
            LockedBy::GraphOutput => "model output".into(),
        },
        op: match locked.by {
            LockedBy::Node(node) => graph.get_node(node).map(|node| node.op_type.clone()),
            LockedBy::Limit | LockedBy::GraphInput | LockedBy::GraphOutput => None,
        },
        why: locked.why.clone(),
        holds: locked.holds,
    }
}

impl Lock {
    /// The dimension as one of the things that were not done.
    pub fn refusal(&self) -> Refusal {
        let (value, axis, width) = (&self.value, self.axis, self.width);
        let what = format!("{value} (axis {axis}, width {width}), locked by {}", self.locker());
        Refusal::new("prune", what, self.why.clone())
    }

    /// Who locks it, in words.
    pub fn locker(&self) -> String {
        match &self.op {
            Some(op) => format!("node {} ({op})", self.by),
            None => self.by.clone(),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "analysis_tests.rs"]
mod tests;
