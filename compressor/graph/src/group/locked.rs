//! What cannot go: the locks that keep a weight's units, with what they hold back.

use std::collections::{HashMap, HashSet};

use super::Locked;
use super::atoms::Atoms;
use super::find::{Owner, Search};
use crate::Role;

/// The locks that keep a weight's units from being pruned.
pub(super) fn locked(search: &Search<'_>, atoms: &mut Atoms) -> Vec<Locked> {
    let weights = Weights::new(search, atoms);
    let mut seen = HashSet::new();
    let mut found = Vec::new();
    for entry in &search.locks {
        let axis = &search.axes[entry.axis];
        let roots: HashSet<usize> = match atoms.first(entry.axis) {
            Some(first) => (first..first + axis.size).map(|atom| atoms.sets.root(atom)).collect(),
            None => HashSet::new(),
        };
        let touches = match atoms.first(entry.axis) {
            Some(_) => roots.iter().any(|root| weights.produced.contains(root)),
            None => search.role(axis) == Some(Role::Producer),
        };
        if touches && seen.insert((axis.value, axis.axis, entry.by, entry.why.clone())) {
            let holds = roots.iter().filter_map(|root| weights.elements.get(root)).sum();
            found.push(Locked {
                scope: search.scope.clone(),
                value: axis.value,
                axis: axis.axis,
                width: axis.size,
                by: entry.by,
                why: entry.why.clone(),
                holds,
            });
        }
    }
    found
}

/// Sets of atoms with their constants.
struct Weights {
    /// Sets with units that a weight computes.
    produced: HashSet<usize>,
    /// Elements of the constants that have an index in the set.
    elements: HashMap<usize, u64>,
}

impl Weights {
    fn new(search: &Search<'_>, atoms: &mut Atoms) -> Self {
        let mut weights = Self { produced: HashSet::new(), elements: HashMap::new() };
        for (index, axis) in search.axes.iter().enumerate() {
            let Some(first) = atoms.first(index) else { continue };
            if !matches!(axis.owner, Owner::Use(..)) || axis.size < 2 {
                continue;
            }
            let produces = search.role(axis) == Some(Role::Producer);
            let len = search.graph.constant(axis.value).map_or(0, |tensor| tensor.len());
            for atom in first..first + axis.size {
                let root = atoms.sets.root(atom);
                *weights.elements.entry(root).or_default() += (len / axis.size) as u64;
                if produces {
                    weights.produced.insert(root);
                }
            }
        }
        weights
    }
}
