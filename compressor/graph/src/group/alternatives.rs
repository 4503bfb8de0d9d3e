//! Groups of two searches that preferred different factors.
//!
//! A search settles on one factor of a merged axis: the heads of an attention, say, or the width of each head.
//! Removing a unit is removing whole indices of axes either way, so what two removals leave of any tensor is what
//! both leave, and that is a tensor again: units of both kinds can go together. They only must not be two ways to
//! remove the same, for then both together could leave nothing; every unit of the one has to meet every unit of the
//! other.

use std::collections::{HashMap, HashSet};

use super::find::Found;
use super::folds::Correction;
use super::states;
use super::{Group, GroupId, IndexMap};
use crate::{Graph, NodeId, ValueId};

/// `first` with what `second` found beyond it.
pub(super) fn join(graph: &Graph, mut first: Found, second: Found) -> Found {
    let disputed = disputed(graph, &first, &second);
    let known = Axes::new(&first.groups);
    for group in second.groups {
        let beyond = !is_known(&first.groups, &group) && !touches(&group, &disputed);
        if beyond && known.crosses(&group) {
            let id = GroupId(u32::try_from(first.groups.len()).unwrap_or(u32::MAX));
            first.groups.push(Group { id, ..group });
        }
    }
    for correction in second.corrections {
        let place = (correction.node, correction.axis);
        if !first.corrections.iter().any(|other| (other.node, other.axis) == place) {
            first.corrections.push(correction);
        }
    }
    let mut states = std::mem::take(&mut first.states);
    for pair in second.states {
        if !states.iter().any(|other| (other.input, other.axis) == (pair.input, pair.axis)) {
            states.push(pair);
        }
    }
    first.states = states::narrowed(states, &first.groups);
    first
}

/// Axes whose corrections do not go together: different ones of one axis, or of two axes of one node, where what
/// removed units held has to be added.
fn disputed(graph: &Graph, first: &Found, second: &Found) -> HashSet<(ValueId, usize)> {
    let disagree = |a: &Correction, b: &Correction| {
        let held = a.echo.is_some() || b.echo.is_some();
        if a.axis == b.axis { a != b } else { held }
    };
    let mut by_node: HashMap<NodeId, Vec<&Correction>> = HashMap::new();
    for correction in &first.corrections {
        by_node.entry(correction.node).or_default().push(correction);
    }
    let disputed = second.corrections.iter().filter(|correction| {
        let mut earlier = by_node.get(&correction.node).into_iter().flatten();
        earlier.any(|other| disagree(other, correction))
    });
    disputed.filter_map(|c| Some((graph.node(c.node).input(0)?, c.axis))).collect()
}

fn touches(group: &Group, axes: &HashSet<(ValueId, usize)>) -> bool {
    group.values.iter().any(|(value, axis, _)| axes.contains(&(*value, *axis)))
}

fn is_known(groups: &[Group], group: &Group) -> bool {
    groups.iter().any(|other| {
        (other.width, &other.slices, &other.values) == (group.width, &group.slices, &group.values)
    })
}

/// The axes that groups remove indices of: of activations, and of constants where they are read.
struct Axes {
    maps: HashMap<AxisKey, Vec<IndexMap>>,
}

/// A value, the place that reads it if it is a constant, and the axis.
type AxisKey = (ValueId, Option<(NodeId, usize)>, usize);

fn axes(group: &Group) -> impl Iterator<Item = (AxisKey, &IndexMap)> {
    let values = group.values.iter().map(|(value, axis, map)| ((*value, None, *axis), map));
    let slices = group.slices.iter();
    values.chain(slices.map(|s| ((s.value, Some((s.node, s.slot)), s.axis), &s.map)))
}

impl Axes {
    fn new(groups: &[Group]) -> Self {
        let mut maps: HashMap<AxisKey, Vec<IndexMap>> = HashMap::new();
        for (key, map) in groups.iter().flat_map(axes) {
            maps.entry(key).or_default().push(map.clone());
        }
        Self { maps }
    }

    /// Whether every unit of `group` meets every unit of every group on the axes that they share.
    fn crosses(&self, group: &Group) -> bool {
        axes(group).all(|(key, map)| {
            let mut others = self.maps.get(&key).into_iter().flatten();
            others.all(|other| meets(map, other))
        })
    }
}

/// Whether every unit of one map has an index in every unit of the other.
fn meets(a: &IndexMap, b: &IndexMap) -> bool {
    let mut unit_of: HashMap<u32, usize> = HashMap::new();
    for unit in 0..b.units() {
        unit_of.extend(b.unit(unit).iter().map(|&index| (index, unit)));
    }
    (0..a.units()).all(|unit| {
        let met: HashSet<usize> =
            a.unit(unit).iter().filter_map(|index| unit_of.get(index).copied()).collect();
        met.len() == b.units()
    })
}
