//! Which locks keep the axes of one value, and over which nodes they reach it.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use super::Locked;
use super::atoms::Atoms;
use super::find::{Search, Settled, settled};
use crate::{Model, NodeId, Scope, Shapes, ValueId};

/// The most locks named for one axis; the nearest come first.
pub const MAX_REACHES: usize = 32;

/// One step of a chain: the node that ties the axis before to this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hop {
    /// The node.
    pub node: NodeId,
    /// The value that it leads to.
    pub value: ValueId,
    /// The axis of that value.
    pub axis: usize,
}

/// A lock that keeps an axis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reach {
    /// The lock, where it was set. What it holds is left at 0.
    pub lock: Locked,
    /// From the axis asked for to the locked one; empty if they are the same, or if what ties them are states that
    /// the caller feeds back.
    pub path: Vec<Hop>,
}

/// For each axis of each of `values` with at least one index that cannot go, every lock that keeps it, the nearest
/// first.
#[must_use]
pub fn why(
    model: &Model,
    shapes: &Shapes,
    scope: &Scope,
    values: &[ValueId],
) -> BTreeMap<(ValueId, usize), Vec<Reach>> {
    let mut found: BTreeMap<(ValueId, usize), Vec<Reach>> = BTreeMap::new();
    let Some(Settled { search, mut atoms, .. }) = settled(model, shapes, scope) else {
        return found;
    };
    let edges = edges(&search);
    for (index, axis) in search.axes.iter().enumerate() {
        if values.contains(&axis.value) {
            let known = found.entry((axis.value, axis.axis)).or_default();
            for reach in reaches(&search, &mut atoms, &edges, index) {
                if known.iter().all(|known| known.lock != reach.lock) {
                    known.push(reach);
                }
            }
        }
    }
    found.retain(|_, reaches| !reaches.is_empty());
    for reaches in found.values_mut() {
        reaches.sort_by_key(|reach| reach.path.len());
        reaches.truncate(MAX_REACHES);
    }
    found
}

/// For each axis, the axes that a node ties to it.
type Edges = Vec<Vec<(usize, NodeId)>>;

fn edges(search: &Search<'_>) -> Edges {
    let mut edges = vec![Vec::new(); search.axes.len()];
    for statement in &search.statements {
        for link in &statement.links {
            let ends = search.id(statement.node, link.a).zip(search.id(statement.node, link.b));
            if let Some((a, b)) = ends.filter(|(a, b)| a != b) {
                edges[a].push((b, statement.node));
                edges[b].push((a, statement.node));
            }
        }
    }
    edges
}

/// The sets of the indices of an axis; `None` where they are too many to be followed.
fn roots(search: &Search<'_>, atoms: &mut Atoms, axis: usize) -> Option<HashSet<usize>> {
    let first = atoms.first(axis)?;
    let size = search.axes[axis].size;
    Some((first..first + size).map(|atom| atoms.sets.root(atom)).collect())
}

fn reaches(search: &Search<'_>, atoms: &mut Atoms, edges: &Edges, from: usize) -> Vec<Reach> {
    let own = roots(search, atoms, from).unwrap_or_default();
    let mut tied: HashMap<usize, bool> = HashMap::new();
    let mut is_tied = |axis: usize| {
        *tied.entry(axis).or_insert_with(|| {
            axis == from || roots(search, atoms, axis).is_some_and(|r| !r.is_disjoint(&own))
        })
    };
    let mut kept: Vec<usize> = Vec::new();
    for (index, entry) in search.locks.iter().enumerate() {
        let same = |&k: &usize| {
            let known = &search.locks[k];
            (known.axis, known.by, &known.why) == (entry.axis, entry.by, &entry.why)
        };
        if is_tied(entry.axis) && !kept.iter().any(same) {
            kept.push(index);
        }
    }
    if kept.is_empty() {
        return Vec::new();
    }
    let parents = walk(edges, from, &mut is_tied);
    let reach = |index: usize| {
        let entry = &search.locks[index];
        let axis = &search.axes[entry.axis];
        Reach {
            lock: Locked {
                scope: search.scope.clone(),
                value: axis.value,
                axis: axis.axis,
                width: axis.size,
                by: entry.by,
                why: entry.why.clone(),
                holds: 0,
            },
            path: path(search, &parents, from, entry.axis),
        }
    };
    kept.into_iter().map(reach).collect()
}

/// How each axis was come to first.
type Parents = HashMap<usize, (usize, NodeId)>;

fn walk(edges: &Edges, from: usize, is_tied: &mut dyn FnMut(usize) -> bool) -> Parents {
    let (mut parents, mut queue) = (Parents::new(), VecDeque::from([from]));
    while let Some(at) = queue.pop_front() {
        for &(next, node) in &edges[at] {
            if next != from && !parents.contains_key(&next) && is_tied(next) {
                parents.insert(next, (at, node));
                queue.push_back(next);
            }
        }
    }
    parents
}

fn path(search: &Search<'_>, parents: &Parents, from: usize, to: usize) -> Vec<Hop> {
    let (mut path, mut at) = (Vec::new(), to);
    while at != from {
        let Some(&(before, node)) = parents.get(&at) else { return Vec::new() };
        let axis = &search.axes[at];
        path.push(Hop { node, value: axis.value, axis: axis.axis });
        at = before;
    }
    path.reverse();
    path
}
