//! From closures of indices to groups: units that touch the same axes in the same way go together.

use std::collections::{BTreeMap, HashMap};

use super::atoms::Atoms;
use super::find::{Axis, Owner, Search};
use super::{Consumer, Group, GroupId, IndexMap, Slice};
use crate::coupling::{AxisRef, Link, Port};
use crate::{NodeId, Role, ValueId};

/// What a unit touches: classes of axes, and how many indices of each.
type Signature = Vec<(usize, usize)>;

/// Indices of a unit by class, ascending.
type Unit = BTreeMap<usize, Vec<u32>>;

/// The groups of everything that is not locked, in topological order of their first producer, not yet numbered.
pub(super) fn collect(search: &Search<'_>, atoms: &mut Atoms) -> Vec<Group> {
    let members = members(search, atoms);
    let mut by_signature: BTreeMap<Signature, Vec<Unit>> = BTreeMap::new();
    for unit in units(search, atoms) {
        let signature = unit.iter().map(|(&class, indices)| (class, indices.len())).collect();
        by_signature.entry(signature).or_default().push(unit);
    }
    let order: HashMap<NodeId, usize> =
        search.statements.iter().enumerate().map(|(at, statement)| (statement.node, at)).collect();
    let mut groups: Vec<Group> = by_signature
        .into_values()
        .filter(|units| units.len() >= 2)
        .filter_map(|units| group(search, atoms, &members, units))
        .collect();
    groups.sort_by_key(|group| {
        group.producers.iter().filter_map(|node| order.get(node)).min().copied()
    });
    groups
}

/// The axes of every class.
fn members(search: &Search<'_>, atoms: &Atoms) -> HashMap<usize, Vec<usize>> {
    let mut members: HashMap<usize, Vec<usize>> = HashMap::new();
    for axis in 0..search.axes.len() {
        members.entry(atoms.class(axis)).or_default().push(axis);
    }
    members
}

fn units(search: &Search<'_>, atoms: &mut Atoms) -> Vec<Unit> {
    let mut units: HashMap<usize, Unit> = HashMap::new();
    for (axis, info) in search.axes.iter().enumerate() {
        let Some(first) = atoms.first(axis).filter(|_| atoms.class(axis) == axis) else { continue };
        for index in 0..info.size {
            let root = atoms.sets.root(first + index);
            if !atoms.sets.is_locked(root) {
                let index = u32::try_from(index).expect("axes are bounded by MAX_AXIS");
                units.entry(root).or_default().entry(axis).or_default().push(index);
            }
        }
    }
    let mut units: Vec<(usize, Unit)> = units.into_iter().collect();
    units.sort_by_key(|(root, _)| *root);
    units.into_iter().map(|(_, unit)| unit).collect()
}

fn group(
    search: &Search<'_>,
    atoms: &Atoms,
    members: &HashMap<usize, Vec<usize>>,
    mut units: Vec<Unit>,
) -> Option<Group> {
    let classes: Vec<usize> = units.first()?.keys().copied().collect();
    let axes: Vec<usize> = classes.iter().flat_map(|class| &members[class]).copied().collect();
    let is_producer = |&axis: &usize| search.role(&search.axes[axis]) == Some(Role::Producer);
    let lead = atoms.class(axes.iter().copied().find(is_producer)?);
    units.sort_by(|a, b| a[&lead].cmp(&b[&lead]));
    let maps: HashMap<usize, IndexMap> = classes
        .iter()
        .map(|&class| {
            let indices: Vec<u32> =
                units.iter().flat_map(|unit| unit[&class].iter().copied()).collect();
            (class, IndexMap::new(units[0][&class].len(), indices))
        })
        .collect();
    let mut found = Group {
        id: GroupId(0),
        scope: search.scope.clone(),
        width: units.len(),
        slices: Vec::new(),
        producers: Vec::new(),
        consumers: consumers(search, atoms, &maps),
        values: Vec::new(),
    };
    for axis in axes {
        let map = maps[&atoms.class(axis)].clone();
        let info = &search.axes[axis];
        match info.owner {
            Owner::Value(value) => found.values.push((value, info.axis, map)),
            Owner::Use(node, slot) => {
                let role = search.role(info).unwrap_or(Role::Elementwise);
                if role == Role::Producer && !found.producers.contains(&node) {
                    found.producers.push(node);
                }
                found.slices.push(Slice {
                    value: info.value,
                    node,
                    slot,
                    axis: info.axis,
                    map,
                    role,
                });
            }
        }
    }
    // Parts of a constant that no reader takes are nobody's units.
    (!found.values.is_empty()).then_some(found)
}

fn consumers(search: &Search<'_>, atoms: &Atoms, maps: &HashMap<usize, IndexMap>) -> Vec<Consumer> {
    let mut found = Vec::new();
    for statement in &search.statements {
        for pair in &statement.coupling.contractions {
            let constant = |at: AxisRef| {
                let axis = search.id(statement.node, at)?;
                Some(matches!(search.axes[axis].owner, Owner::Use(..)))
            };
            let (Some(data_constant), Some(weight_constant)) =
                (constant(pair.data), constant(pair.weight))
            else {
                continue;
            };
            let (data, weight) =
                if data_constant { (pair.weight, pair.data) } else { (pair.data, pair.weight) };
            let touched =
                search.id(statement.node, data).is_some_and(|a| maps.contains_key(&atoms.class(a)));
            if let (true, Port::In(input_slot), Port::In(slot)) = (touched, data.port, weight.port)
            {
                let weight = (data_constant || weight_constant).then_some((slot, weight.axis));
                found.push(Consumer {
                    node: statement.node,
                    input_slot,
                    input_axis: data.axis,
                    weight,
                });
            }
        }
    }
    found
}

impl Search<'_> {
    /// What a constant does on one of its axes: as the reading node states, or, where that node only moves
    /// or rescales constants, as the readers of its output do.
    pub(super) fn role(&self, axis: &Axis) -> Option<Role> {
        let Owner::Use(node, slot) = axis.owner else { return None };
        self.role_at(node, AxisRef { port: Port::In(slot), axis: axis.axis }, 0)
    }

    fn role_at(&self, node: NodeId, at: AxisRef, depth: usize) -> Option<Role> {
        /// Moves of a constant that are followed before it counts as a mere factor.
        const MAX_MOVES: usize = 8;
        let statement = &self.statements[*self.statement_of.get(&node)?];
        let stated = statement.coupling.roles.iter();
        let stated = stated
            .filter(|role| at.port == Port::In(role.0) && role.1 == at.axis)
            .map(|r| r.2)
            .next();
        if !matches!(stated, None | Some(Role::Elementwise))
            || !self.is_static(node)
            || depth == MAX_MOVES
        {
            return stated;
        }
        let out = self.graph.node(node).output(0)?;
        let onward = statement.links.iter().filter_map(|link| other_end(link, at));
        let mut found = onward.filter(|end| end.port == Port::Out(0)).flat_map(|end| {
            let readers = self.readers.of(out).iter();
            readers.filter_map(move |&(next, slot)| {
                self.role_at(next, AxisRef { port: Port::In(slot), axis: end.axis }, depth + 1)
            })
        });
        // A mask may leave alone only what is itself the divisor.
        found.next().filter(|role| *role != Role::Divisor).or(stated)
    }

    fn is_static(&self, node: NodeId) -> bool {
        self.graph
            .node(node)
            .inputs
            .iter()
            .flatten()
            .all(|value: &ValueId| self.static_values.contains(value))
    }
}

fn other_end(link: &Link, at: AxisRef) -> Option<AxisRef> {
    if link.a == at {
        Some(link.b)
    } else if link.b == at {
        Some(link.a)
    } else {
        None
    }
}
