//! The search for groups: join what the couplings state, lock what cannot go, collect the closures.
//!
//! In five steps: state every node's coupling; join axes that are index for index the same into *classes*;
//! give every index of a class an *atom* and join atoms by the remaining links; decide each reshape's
//! factor; lock axes whose masked units are not silent where they are summed. The sets of atoms that remain
//! unlocked are the units.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::alternatives;
use super::atoms::{Atoms, pairs};
use super::collect::collect;
use super::folds::{Correction, settle};
use super::locked::locked;
use super::sizes::{Read, Reader, reads};
use super::states::{self, Ends, StatePair};
use super::{Group, GroupId, Grouping, Locked, LockedBy};
use crate::coupling::masked::{Fact, ZERO, is_silent, transfer};
use crate::coupling::quantized::zero_point_of;
use crate::coupling::{AxisRef, Coupling, Link, Port, PortInfo, Ports, coupling, normal_axis};
use crate::op::resize::SIZES;
use crate::shape_operand::{self, Kind};
use crate::{DType, Dim, Graph, Model, NodeId, Op, Origin, Role, Scope, Shapes, Tensor, ValueId};

/// Axes wider than this stay as they are.
pub(super) const MAX_AXIS: usize = 1 << 18;

/// Largest constant searched for being uniform, in elements.
const MAX_UNIFORM: usize = 1 << 16;

/// Largest constant read as floats, in elements: scales of a few axes.
const MAX_FLOATS: usize = 1 << 6;

/// Largest constant read as integers, in elements.
const MAX_INTS: usize = 1 << 12;

/// Finds every group, and what stands in the way of the rest: of the main graph, and of each body on its own, whose
/// inputs, outputs and captured values keep their shapes.
///
/// Where a reshape merges axes of which more than one could shrink (heads and the width of a head), or a grouped
/// convolution could lose groups or parts of all groups, there are groups for the one and groups for the other; a
/// plan may use both.
pub fn find(model: &Model, shapes: &Shapes) -> Grouping {
    let mut found = Grouping::default();
    let ends = Ends::of_model(&model.graph);
    find_in(&model.graph, shapes, &ends, Scope::default(), &mut found);
    found.states = states::narrowed(found.states, &found.groups);
    found
}

fn find_in(graph: &Graph, shapes: &Shapes, ends: &Ends, scope: Scope, found: &mut Grouping) {
    let one = find_one(graph, shapes, ends, &scope);
    for mut group in one.groups {
        group.id = GroupId(u32::try_from(found.groups.len()).unwrap_or(u32::MAX));
        found.groups.push(group);
    }
    found.locked.extend(one.locked);
    found.states.extend(one.states);
    found.sizes_read.insert(scope.clone(), one.sizes_read);
    found.corrections.insert(scope.clone(), one.corrections);
    for (id, _) in graph.nodes().filter(|(_, node)| node.has_subgraphs()) {
        for (index, (_, body)) in graph.subgraphs(id).into_iter().enumerate() {
            if let Some(shapes) = shapes.body(id, index) {
                let ends = ends.within(graph, id, body);
                find_in(body, shapes, &ends, scope.body(id, index), found);
            }
        }
    }
}

/// What is found in one graph; its groups are numbered later.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) groups: Vec<Group>,
    pub(super) locked: Vec<Locked>,
    pub(super) states: Vec<StatePair>,
    pub(super) sizes_read: Vec<Read>,
    pub(super) corrections: Vec<Correction>,
}

fn find_one(graph: &Graph, shapes: &Shapes, ends: &Ends, scope: &Scope) -> Found {
    let (first, chose) = search(graph, shapes, ends, scope, Prefer::First);
    if !chose {
        return first;
    }
    alternatives::join(graph, first, search(graph, shapes, ends, scope, Prefer::Last).0)
}

/// Which of several choices is tried first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Prefer {
    First,
    Last,
}

/// The groups with one preference, and whether there was a choice.
fn search(
    graph: &Graph,
    shapes: &Shapes,
    ends: &Ends,
    scope: &Scope,
    prefer: Prefer,
) -> (Found, bool) {
    let Settled { search, mut atoms, corrections, chose } =
        settle_all(graph, shapes, ends, scope, prefer);
    let locked = locked(&search, &mut atoms);
    let groups = collect(&search, &mut atoms);
    let (states, sizes_read) = (search.states, search.sizes_read);
    (Found { groups, locked, states, sizes_read, corrections }, chose)
}

/// A search with everything joined and locked.
pub(super) struct Settled<'a> {
    pub(super) search: Search<'a>,
    pub(super) atoms: Atoms,
    corrections: Vec<Correction>,
    chose: bool,
}

fn settle_all<'a>(
    graph: &'a Graph,
    shapes: &'a Shapes,
    ends: &Ends,
    scope: &Scope,
    prefer: Prefer,
) -> Settled<'a> {
    let mut search = Search::new(graph, shapes, scope.clone());
    let mut atoms = Atoms::new(&search);
    search.states = states::pair(&search, shapes, ends, &mut atoms);
    search.lock_ends();
    search.lock_operands();
    search.lock_sizes();
    search.locks.iter().for_each(|entry| atoms.lock(entry.axis));
    let chose = search.choose(&mut atoms, prefer);
    let corrections = search.lock_loud_sums(&mut atoms);
    Settled { search, atoms, corrections, chose }
}

/// The search in the graph of that name, with the first preference; `None` where there is no such graph or nothing
/// is known of its shapes.
pub(super) fn settled<'a>(
    model: &'a Model,
    shapes: &'a Shapes,
    scope: &Scope,
) -> Option<Settled<'a>> {
    let (mut ends, mut at) = (Ends::of_model(&model.graph), Scope::default());
    for &(node, index) in &scope.0 {
        let graph = model.graph_at(&at)?;
        graph.get_node(node)?;
        let body = graph.subgraphs(node).get(index)?.1;
        ends = ends.within(graph, node, body);
        at = at.body(node, index);
    }
    let (graph, shapes) = (model.graph_at(scope)?, shapes.at(scope)?);
    Some(settle_all(graph, shapes, &ends, scope, Prefer::First))
}

/// Who reads each value.
pub(crate) struct Readers {
    nodes: HashMap<ValueId, Vec<(NodeId, usize)>>,
    outputs: HashSet<ValueId>,
    captured: HashMap<ValueId, NodeId>,
}

impl Readers {
    pub(crate) fn new(graph: &Graph) -> Self {
        let mut nodes: HashMap<ValueId, Vec<(NodeId, usize)>> = HashMap::new();
        let mut captured = HashMap::new();
        for (id, node) in graph.nodes() {
            for (slot, value) in node.inputs.iter().enumerate() {
                if let Some(value) = value {
                    nodes.entry(*value).or_default().push((id, slot));
                }
            }
            if node.has_subgraphs() {
                captured.extend(graph.captures(id).into_iter().map(|value| (value, id)));
            }
        }
        Self { nodes, outputs: graph.outputs().iter().copied().collect(), captured }
    }

    /// Nodes and slots that read `value`.
    pub(crate) fn of(&self, value: ValueId) -> &[(NodeId, usize)] {
        self.nodes.get(&value).map_or(&[], Vec::as_slice)
    }

    /// Whether `value` is read from outside of this graph's own nodes.
    pub(crate) fn leaves(&self, value: ValueId) -> bool {
        self.outputs.contains(&value) || self.captured.contains_key(&value)
    }

    fn is_read(&self, value: ValueId) -> bool {
        self.leaves(value) || !self.of(value).is_empty()
    }
}

/// Whose axis it is. A constant has axes of its own at every place that reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Owner {
    Value(ValueId),
    Use(NodeId, usize),
}

pub(super) struct Axis {
    pub(super) owner: Owner,
    pub(super) value: ValueId,
    pub(super) axis: usize,
    pub(super) size: usize,
}

/// A node with what it states.
pub(super) struct Statement {
    pub(super) node: NodeId,
    pub(super) coupling: Coupling,
    /// Links of the coupling that are not choices, then the choices taken.
    pub(super) links: Vec<Link>,
}

pub(super) struct Search<'a> {
    pub(super) graph: &'a Graph,
    pub(super) scope: Scope,
    shapes: &'a Shapes,
    pub(super) readers: Readers,
    pub(super) ports: HashMap<NodeId, Ports>,
    pub(super) statements: Vec<Statement>,
    pub(super) axes: Vec<Axis>,
    ids: HashMap<(Owner, usize), usize>,
    pub(super) locks: Vec<Entry>,
    sizes_read: Vec<Read>,
    states: Vec<StatePair>,
    pub(super) statement_of: HashMap<NodeId, usize>,
    /// Constants, and what is computed from constants alone.
    pub(super) static_values: HashSet<ValueId>,
}

pub(super) struct Entry {
    pub(super) axis: usize,
    pub(super) by: LockedBy,
    pub(super) why: String,
}

impl<'a> Search<'a> {
    fn new(graph: &'a Graph, shapes: &'a Shapes, scope: Scope) -> Self {
        let readers = Readers::new(graph);
        let mut search = Self {
            graph,
            scope,
            shapes,
            ports: ports(graph, shapes, &readers),
            readers,
            statements: Vec::new(),
            axes: Vec::new(),
            ids: HashMap::new(),
            locks: Vec::new(),
            sizes_read: Vec::new(),
            states: Vec::new(),
            statement_of: HashMap::new(),
            static_values: static_values(graph),
        };
        for (node_id, node) in graph.nodes() {
            let Some(ports) = search.ports.get(&node_id) else { continue };
            let coupling = coupling(node, ports);
            let links = coupling.links.clone();
            search.statement_of.insert(node_id, search.statements.len());
            search.statements.push(Statement { node: node_id, coupling, links });
            search.add_axes(node_id);
        }
        for value in graph.inputs().iter().chain(graph.outputs()) {
            search.add_value_axes(*value, shapes.dims(*value));
        }
        search.add_locks();
        search
    }

    fn add_axes(&mut self, id: NodeId) {
        let node = self.graph.node(id);
        let ends = node.inputs.iter().enumerate().map(|(slot, value)| (Port::In(slot), value));
        let ends = ends
            .chain(node.outputs.iter().enumerate().map(|(slot, value)| (Port::Out(slot), value)));
        let mut new = Vec::new();
        for (port, value) in ends {
            let (Some(value), Some(owner)) = (value, self.owner(id, port)) else { continue };
            let dims = self.ports.get(&id).and_then(|ports| ports.dims(port)).unwrap_or_default();
            for (axis, dim) in dims.iter().enumerate() {
                if let Dim::Fixed(size) = dim {
                    new.push(Axis { owner, value: *value, axis, size: *size });
                }
            }
        }
        new.into_iter().for_each(|axis| self.add_axis(axis));
    }

    fn add_value_axes(&mut self, value: ValueId, dims: Option<&[Dim]>) {
        for (axis, dim) in dims.unwrap_or_default().iter().enumerate() {
            if let Dim::Fixed(size) = dim {
                self.add_axis(Axis { owner: Owner::Value(value), value, axis, size: *size });
            }
        }
    }

    fn add_axis(&mut self, axis: Axis) {
        let next = self.axes.len();
        if let std::collections::hash_map::Entry::Vacant(slot) =
            self.ids.entry((axis.owner, axis.axis))
        {
            slot.insert(next);
            self.axes.push(axis);
        }
    }

    fn owner(&self, node: NodeId, port: Port) -> Option<Owner> {
        let info = self.ports.get(&node)?.get(port)?;
        match port {
            Port::In(slot) if info.constant => Some(Owner::Use(node, slot)),
            Port::In(slot) => self.graph.node(node).input(slot).map(Owner::Value),
            Port::Out(slot) => self.graph.node(node).output(slot).map(Owner::Value),
        }
    }

    /// The axis of an owner, where its size is known.
    pub(super) fn axis_of(&self, owner: Owner, axis: usize) -> Option<usize> {
        self.ids.get(&(owner, axis)).copied()
    }

    /// The axis at a port, where its size is known.
    pub(super) fn id(&self, node: NodeId, at: AxisRef) -> Option<usize> {
        self.ids.get(&(self.owner(node, at.port)?, at.axis)).copied()
    }

    fn lock(&mut self, axis: usize, by: LockedBy, why: impl Into<String>) {
        self.locks.push(Entry { axis, by, why: why.into() });
    }

    /// Locks stated by the nodes, and both ends of links that do not fit.
    fn add_locks(&mut self) {
        let mut entries = Vec::new();
        for statement in &self.statements {
            let by = LockedBy::Node(statement.node);
            for lock in &statement.coupling.locks {
                entries.extend(
                    self.id(statement.node, lock.at).map(|axis| (axis, by, lock.why.clone())),
                );
            }
            for link in statement.coupling.links.iter().chain(&statement.coupling.choices) {
                let ends = (self.id(statement.node, link.a), self.id(statement.node, link.b));
                let why = match ends {
                    (Some(a), Some(b)) => {
                        pairs(link.relation, (self.axes[a].size, self.axes[b].size), |_, _| {})
                            .err()
                    }
                    (None, None) => None,
                    _ => Some(
                        "the size of an axis that goes with it is only known at run time"
                            .to_owned(),
                    ),
                };
                if let Some(why) = why {
                    entries.extend(
                        [ends.0, ends.1].into_iter().flatten().map(|axis| (axis, by, why.clone())),
                    );
                }
            }
        }
        for (axis, by, why) in entries {
            self.lock(axis, by, why);
        }
        for axis in 0..self.axes.len() {
            if let Some(why) = self.unsliceable(axis) {
                self.lock(axis, LockedBy::Limit, why);
            }
            match self.axes[axis].size {
                1 => self.lock(axis, LockedBy::Limit, "an axis of size 1 cannot shrink"),
                size if size > MAX_AXIS => {
                    self.lock(axis, LockedBy::Limit, format!("wider than {MAX_AXIS}"));
                }
                _ => {}
            }
        }
    }

    /// Why a constant cannot be sliced.
    fn unsliceable(&self, axis: usize) -> Option<String> {
        let Owner::Use(..) = self.axes[axis].owner else { return None };
        let dtype = self.shapes.dtype(self.axes[axis].value)?;
        dtype.size().is_none().then(|| format!("elements of {dtype:?} are not whole bytes"))
    }

    /// Inputs, outputs and what control-flow bodies capture keep their shapes.
    fn lock_ends(&mut self) {
        let mut entries = Vec::new();
        for (index, axis) in self.axes.iter().enumerate() {
            let Owner::Value(value) = axis.owner else { continue };
            if self.states.iter().any(|pair| pair.holds(value, axis.axis)) {
                continue;
            }
            let main = self.scope.is_main();
            match self.graph.value(value).origin {
                Origin::Input if main => {
                    entries.push((index, LockedBy::GraphInput, "an input of the model"));
                }
                Origin::Input => {
                    entries.push((index, LockedBy::GraphInput, "an input of a control-flow body"));
                }
                Origin::Outer => {
                    let why = "a control-flow body captures it from the graph around";
                    entries.push((index, LockedBy::GraphInput, why));
                }
                Origin::Initializer | Origin::Node(..) => {}
            }
            if self.readers.outputs.contains(&value) {
                let why = if main {
                    "an output of the model"
                } else {
                    "an output of a control-flow body"
                };
                entries.push((index, LockedBy::GraphOutput, why));
            }
            if let Some(node) = self.readers.captured.get(&value) {
                entries.push((index, LockedBy::Node(*node), "a control-flow body reads it"));
            }
        }
        for (axis, by, why) in entries {
            self.lock(axis, by, why);
        }
    }

    /// Locks the outputs of nodes whose shape operand could not be rewritten.
    fn lock_operands(&mut self) {
        let mut entries = Vec::new();
        for statement in &self.statements {
            let Err(why) = rewritable(self.graph, &self.ports, statement.node) else { continue };
            let axes = self.axes_of_output(statement.node);
            entries.extend(axes.map(|axis| (axis, LockedBy::Node(statement.node), why.clone())));
        }
        for (axis, by, why) in entries {
            self.lock(axis, by, why);
        }
    }

    fn axes_of_output(&self, node: NodeId) -> impl Iterator<Item = usize> {
        let port = Port::Out(0);
        let rank = self.ports.get(&node).and_then(|ports| ports.dims(port)).map_or(0, <[Dim]>::len);
        (0..rank).filter_map(move |axis| self.id(node, AxisRef { port, axis }))
    }

    /// Locks axes whose size the model computes with.
    fn lock_sizes(&mut self) {
        self.sizes_read = reads(self.graph, &self.readers, &self.ports);
        for read in self.sizes_read.clone() {
            let Some(&axis) = self.ids.get(&(Owner::Value(read.value), read.axis)) else {
                continue;
            };
            match read.by {
                Reader::Operand(node) => {
                    if let Err(why) = rewritable(self.graph, &self.ports, node) {
                        self.lock(
                            axis,
                            LockedBy::Node(node),
                            format!("its size is read, and {why}"),
                        );
                    }
                }
                Reader::Other(by, why) => self.lock(axis, by, why),
            }
        }
    }

    /// Settles on whole groups or parts of them for grouped convolutions, then on a factor for every axis that a
    /// reshape merges or splits.
    /// Whether any of them had more than one choice.
    fn choose(&mut self, atoms: &mut Atoms, prefer: Prefer) -> bool {
        let mut chose = false;
        let (grouped, rest): (Vec<usize>, Vec<usize>) = (0..self.statements.len())
            .partition(|&index| is_convolution(self.graph, self.statements[index].node));
        for index in grouped.into_iter().chain(rest) {
            let statement = &self.statements[index];
            let (node, mut choices) = (statement.node, statement.coupling.choices.clone());
            chose |= choices.len() > 1;
            if prefer == Prefer::Last {
                choices.reverse();
            }
            let mut taken: Vec<AxisRef> = Vec::new();
            for link in &choices {
                let ends = self.id(node, link.a).zip(self.id(node, link.b));
                let Some((a, b)) = ends else { continue };
                if taken.contains(&link.a) || taken.contains(&link.b) {
                    continue;
                }
                if atoms.units_after(link.relation, (a, b), &self.axes) >= 2 {
                    atoms.join(link.relation, (a, b), &self.axes);
                    taken.extend([link.a, link.b]);
                    self.statements[index].links.push(*link);
                    if is_convolution(self.graph, node) && takes_whole_groups(link) {
                        // No sum reaches across groups.
                        self.statements[index].coupling.contractions.clear();
                    }
                }
            }
            let left: BTreeSet<AxisRef> = choices
                .iter()
                .flat_map(|link| [link.a, link.b])
                .filter(|at| !taken.contains(at))
                .collect();
            let why = match is_convolution(self.graph, node) {
                true => "Conv has groups, and neither these nor their channels are free".to_owned(),
                false => format!(
                    "{} merges or splits it, and no factor is free",
                    self.graph.node(node).op_type
                ),
            };
            for axis in left.into_iter().filter_map(|at| self.id(node, at)).collect::<Vec<_>>() {
                self.lock(axis, LockedBy::Node(node), why.clone());
                atoms.lock(axis);
            }
        }
        chose
    }

    /// Locks axes that are summed over where masked units would be heard.
    fn lock_loud_sums(&mut self, atoms: &mut Atoms) -> Vec<Correction> {
        let facts = self.facts();
        let (corrections, mut entries) = settle(self, atoms, &facts);
        for statement in &self.statements {
            let op = &self.graph.node(statement.node).op_type;
            let at = |at: AxisRef| self.id(statement.node, at).map(|axis| (axis, facts[axis]));
            for (axis, fact) in statement.coupling.sums.iter().filter_map(|&sum| at(sum)) {
                if fact != ZERO {
                    let why = format!("{op} folds it, where a masked unit is not exactly zero");
                    entries.push((axis, statement.node, why));
                }
            }
            for pair in &statement.coupling.contractions {
                let Some(((data, x), (weight, w))) = at(pair.data).zip(at(pair.weight)) else {
                    continue;
                };
                let node = self.graph.node(statement.node);
                let ports = &self.ports[&statement.node];
                let silent = |at: AxisRef, fact: Fact| match at.port {
                    Port::In(slot) => is_silent(node, ports, slot, fact),
                    Port::Out(_) => false,
                };
                let why = match (x, w) {
                    (Fact::Wild, _) | (_, Fact::Wild) => "a masked unit might not be finite",
                    _ if !silent(pair.data, x) && !silent(pair.weight, w) => {
                        "neither factor of a masked unit is exactly zero"
                    }
                    _ => continue,
                };
                let why = format!("{op} sums over it, where {why}");
                entries
                    .extend([(data, statement.node, why.clone()), (weight, statement.node, why)]);
            }
        }
        let mut entries: Vec<_> = entries
            .into_iter()
            .map(|(axis, node, why)| (axis, LockedBy::Node(node), why))
            .collect();
        for pair in &self.states {
            let axis = self.axis_of(Owner::Value(pair.output), pair.axis);
            if let Some(axis) = axis.filter(|&axis| facts[axis] == Fact::Wild) {
                let why = "a masked unit of the state might not be finite".to_owned();
                entries.push((axis, LockedBy::GraphOutput, why));
            }
        }
        for (axis, by, why) in entries {
            self.lock(axis, by, why);
            atoms.lock(axis);
        }
        corrections
    }

    /// Whether the elements of `value` are floats.
    pub(super) fn is_float(&self, value: ValueId) -> bool {
        self.shapes.dtype(value).is_some_and(DType::is_float)
    }

    /// Size of an axis of a node, where it is known.
    pub(super) fn size(&self, node: NodeId, at: AxisRef) -> Option<usize> {
        self.ports.get(&node)?.size(at)
    }

    /// Whether a mask can write what the node reads as zero: a zero point must be a constant.
    fn can_be_silenced(&self, node: NodeId, slot: usize) -> bool {
        let point = zero_point_of(&self.graph.node(node).op, slot);
        let info = point.and_then(|point| self.ports.get(&node)?.get(Port::In(point)));
        info.is_none_or(|info| info.constant)
    }

    /// What a masked unit leaves on every axis.
    fn facts(&self) -> Vec<Fact> {
        let mut facts = vec![Fact::Finite; self.axes.len()];
        for (axis, fact) in self.axes.iter().zip(&mut facts) {
            if let Owner::Use(node, slot) = axis.owner
                && self.can_be_silenced(node, slot)
            {
                *fact = ZERO;
            }
        }
        // A mask silences the units of a state where it comes in.
        for pair in &self.states {
            if let Some(axis) = self.axis_of(Owner::Value(pair.input), pair.axis) {
                facts[axis] = ZERO;
            }
        }
        for statement in &self.statements {
            for &(slot, axis, role) in &statement.coupling.roles {
                let at = AxisRef { port: Port::In(slot), axis };
                if let (Role::Divisor, Some(axis)) = (role, self.id(statement.node, at))
                    && matches!(self.axes[axis].owner, Owner::Use(..))
                {
                    facts[axis] = Fact::Finite;
                }
            }
        }
        for statement in &self.statements {
            let (node, ports) = (self.graph.node(statement.node), &self.ports[&statement.node]);
            for slot in 0..node.outputs.len() {
                for axis in 0..ports.dims(Port::Out(slot)).map_or(0, <[Dim]>::len) {
                    let out = AxisRef { port: Port::Out(slot), axis };
                    let Some(id) = self.id(statement.node, out) else { continue };
                    let known = |slot: usize, axis: usize| {
                        let at = AxisRef { port: Port::In(slot), axis };
                        self.id(statement.node, at).map_or(Fact::Finite, |axis| facts[axis])
                    };
                    facts[id] = transfer(node, ports, &statement.links, out, &known);
                }
            }
        }
        facts
    }
}

fn is_convolution(graph: &Graph, node: NodeId) -> bool {
    matches!(
        graph.node(node).op,
        Op::Conv(_) | Op::ConvTranspose(_) | Op::ConvInteger(_) | Op::QLinearConv(_)
    )
}

fn takes_whole_groups(link: &Link) -> bool {
    matches!((link.a.port, link.b.port), (Port::In(_), Port::Out(_)))
}

/// The constant that would replace the shape operand of `node`; an error says why there is none.
fn rewritable(
    graph: &Graph,
    all_ports: &HashMap<NodeId, Ports>,
    node: NodeId,
) -> Result<(), String> {
    let Some(ports) = all_ports.get(&node) else { return Ok(()) };
    let op = &graph.node(node).op;
    let kind = match op {
        Op::Reshape { allow_zero } => Kind::Reshape { allow_zero: *allow_zero },
        Op::Expand => Kind::Expand,
        Op::ConstantOfShape => Kind::Filled,
        Op::Resize => return open_sizes(graph, all_ports, node, ports),
        Op::Slice { .. } | Op::Split { .. } => {
            let known =
                |info: &Option<PortInfo>| info.as_ref().is_none_or(|info| info.ints.is_some());
            let all = ports.inputs.iter().skip(1).all(known);
            return if all {
                Ok(())
            } else {
                Err(format!("{} has bounds that are computed", graph.node(node).op_type))
            };
        }
        _ => return Ok(()),
    };
    let Some(to) = ports.dims(Port::Out(0)) else { return Err("its rank is not known".to_owned()) };
    let slot = if kind == Kind::Filled { 0 } else { 1 };
    if ports.get(Port::In(slot)).is_some_and(|info| info.ints.is_some()) {
        return Ok(());
    }
    let from = ports.dims(Port::In(0)).unwrap_or_default();
    shape_operand::operand(kind, from, to, &shape_operand::sources(graph, all_ports, node))
        .map(drop)
        .map_err(|why| {
            format!("the shape operand of {} cannot be rewritten: {why}", graph.node(node).op_type)
        })
}

/// Sizes of a `Resize` that are not written anew must not follow from what a pruning changes.
fn open_sizes(
    graph: &Graph,
    all_ports: &HashMap<NodeId, Ports>,
    node: NodeId,
    ports: &Ports,
) -> Result<(), String> {
    let (false, Some(operand)) = (ports.ints(SIZES).is_some(), graph.node(node).input(SIZES))
    else {
        return Ok(());
    };
    let axes = match graph.node(node).attr_ints("axes") {
        Some(axes) => axes.to_vec(),
        None => (0..).take(ports.dims(Port::In(0)).map_or(0, <[Dim]>::len)).collect(),
    };
    let dims = ports.dims(Port::Out(0)).unwrap_or_default();
    let size = |value: ValueId, axis: usize| {
        let reads = all_ports.iter().find_map(|(&id, ports)| {
            let slot = graph.node(id).inputs.iter().position(|&input| input == Some(value))?;
            ports.dims(Port::In(slot))
        });
        reads.and_then(|dims| dims.get(axis).cloned())
    };
    for (index, &axis) in axes.iter().enumerate() {
        let axis = normal_axis(axis, dims.len())?;
        let still = || {
            let at = (operand, index);
            shape_operand::stands_still(graph, all_ports, &size, at, shape_operand::MAX_STEPS)
        };
        if dims[axis].fixed().is_none() && still() != Some(true) {
            return Err(format!(
                "its size on axis {axis} is computed in a way that is not followed"
            ));
        }
    }
    Ok(())
}

fn static_values(graph: &Graph) -> HashSet<ValueId> {
    let mut found: HashSet<ValueId> =
        graph.values().map(|(id, _)| id).filter(|&value| graph.constant(value).is_some()).collect();
    for (_, node) in graph.nodes() {
        if !node.inputs.is_empty()
            && node.inputs.iter().flatten().all(|value| found.contains(value))
        {
            found.extend(node.outputs.iter().flatten());
        }
    }
    found
}

/// What is known at the ports of every node that is not itself constant.
pub(crate) fn ports(graph: &Graph, shapes: &Shapes, readers: &Readers) -> HashMap<NodeId, Ports> {
    let mut constants: HashMap<ValueId, Option<PortInfo>> = HashMap::new();
    let mut constant = |value: ValueId| {
        let entry = constants.entry(value);
        entry.or_insert_with(|| graph.constant(value).map(|tensor| constant_info(&tensor))).clone()
    };
    let activation = |value: ValueId| PortInfo {
        dims: shapes.dims(value).map(<[Dim]>::to_vec),
        constant: false,
        ints: shapes.const_ints(value),
        floats: None,
        uniform: None,
    };
    let mut found = HashMap::new();
    for (id, node) in graph.nodes() {
        if node.outputs.iter().flatten().all(|&value| constant(value).is_some()) {
            continue;
        }
        let inputs = node
            .inputs
            .iter()
            .map(|value| value.map(|v| constant(v).unwrap_or_else(|| activation(v))));
        let inputs = inputs.collect();
        let outputs = node.outputs.iter().enumerate().map(|(slot, value)| {
            value.filter(|&value| slot == 0 || readers.is_read(value)).map(activation)
        });
        found.insert(id, Ports { inputs, outputs: outputs.collect() });
    }
    found
}

fn constant_info(tensor: &Tensor) -> PortInfo {
    let len: usize = tensor.dims.iter().product();
    let ints = (len <= MAX_INTS).then(|| tensor.to_i64_vec().ok()).flatten();
    let small = tensor.dtype.is_float() && len <= MAX_FLOATS;
    let floats = small.then(|| tensor.to_f64_vec().ok()).flatten();
    let uniform =
        (len <= MAX_UNIFORM).then(|| tensor.to_f32_vec().ok()).flatten().and_then(|values| {
            let first = *values.first()?;
            values.iter().all(|&value| value == first).then_some(f64::from(first))
        });
    let dims = tensor.dims.iter().map(|&size| Dim::Fixed(size)).collect();
    PortInfo { dims: Some(dims), constant: true, ints, floats, uniform }
}
