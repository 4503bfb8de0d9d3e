//! What a file holds, and why the dimensions of one of its nodes stay or can go.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use graph::{
    DType, Dim, Graph, Group, LockedBy, Model, NodeId, Reach, Role, Scope, Shapes, ValueId,
};
use serde::Serialize;

use super::analysis::{Lock, lock, locks};
use super::shop::Source;
use crate::error::CompressError;
use crate::refit::label;

mod near;

use near::unknown;

/// The most constants listed, by size.
const LARGEST: usize = 10;
/// The most nodes of a group listed by name.
const NAMED: usize = 16;

/// What a file holds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// `ir_version` of the file.
    pub ir_version: i64,
    /// Operator sets by domain; the default one is `ai.onnx`.
    pub opsets: BTreeMap<String, i64>,
    /// What the caller feeds.
    pub inputs: Vec<Tensor>,
    /// What the model gives.
    pub outputs: Vec<Tensor>,
    /// Nodes, those of control-flow bodies included.
    pub nodes: usize,
    /// Nodes by operator, most first.
    pub ops: Vec<OpCount>,
    /// Elements of all constants.
    pub params: u64,
    /// Constants of the main graph.
    pub constants: usize,
    /// The largest of them.
    pub largest: Vec<Tensor>,
    /// What was carried along without being understood.
    pub warnings: Vec<String>,
    /// Declared types that cannot be.
    pub conflicts: Vec<String>,
}

/// How often an operator occurs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OpCount {
    /// Its type, with its domain where that is not the default one.
    pub op: String,
    /// Nodes.
    pub count: usize,
}

/// A value: what is known of its type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// Element type, `?` where nothing is known.
    pub dtype: String,
    /// Dimensions as text, such as `[N, 64, ?]`; `?` where not even the rank is known.
    pub dims: String,
    /// Whether it is a constant.
    pub constant: bool,
}

/// Every place of the model that has a name.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Why {
    /// The name.
    pub name: String,
    /// Nodes of that name, and values that no such node computes.
    pub places: Vec<Place>,
}

/// A node, or a value.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Place {
    /// The graph: `graph`, or the way to a control-flow body.
    pub graph: String,
    /// Name of the node, or of the value that no node computes.
    pub name: String,
    /// Type of the node, or what else the value is.
    pub what: String,
    /// Why the operator was carried along without being understood, and so locks all that it touches.
    pub opaque: bool,
    /// What it reads.
    pub inputs: Vec<Tensor>,
    /// What it computes.
    pub outputs: Vec<Tensor>,
    /// Every axis of these.
    pub axes: Vec<Axis>,
    /// What it locks itself, most held back first.
    pub locks: Vec<Lock>,
}

/// One axis of a value.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Axis {
    /// The value.
    pub value: String,
    /// The axis.
    pub axis: usize,
    /// Its size as text.
    pub size: String,
    /// Groups that have units here.
    pub groups: Vec<Membership>,
    /// What keeps indices of it.
    pub kept: Vec<Kept>,
}

/// A group, seen from an axis.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Membership {
    /// Its id.
    pub group: u32,
    /// Its first producer.
    pub label: String,
    /// Units.
    pub width: usize,
    /// Indices of each unit on this axis.
    pub per_unit: usize,
    /// `carries` for an activation; for a constant what it does for the group.
    pub role: &'static str,
    /// Nodes that compute the units.
    pub producers: Vec<String>,
    /// Nodes that sum over them.
    pub consumers: Vec<String>,
}

/// A lock, seen from an axis.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Kept {
    /// The dimension that is locked.
    pub dim: String,
    /// The node that locks it, or what else does.
    pub by: String,
    /// Why.
    pub why: String,
    /// Nodes and values over which the lock reaches this axis; empty where it is set here.
    pub chain: Vec<String>,
}

/// Summarizes the file at `path`.
///
/// # Errors
/// It is no model that can be read.
pub fn summarize(path: &Path) -> Result<Summary, CompressError> {
    let model = load(path)?;
    let shapes = graph::infer(&model);
    let graph = &model.graph;
    let tensors = |ids: &[ValueId]| ids.iter().map(|id| tensor(graph, &shapes, *id)).collect();
    let mut ops = BTreeMap::new();
    count_ops(graph, &mut ops);
    let held = graph.values().filter(|(id, _)| match graph.producer(*id) {
        Some(node) => graph.node(node).op == graph::Op::Constant,
        None => true,
    });
    let mut constants: Vec<(usize, ValueId)> =
        held.filter_map(|(id, _)| Some((graph.constant(id)?.byte_size(), id))).collect();
    constants.sort_by_key(|(size, id)| (std::cmp::Reverse(*size), *id));
    let largest = constants.iter().take(LARGEST).map(|(_, id)| tensor(graph, &shapes, *id));
    let mut ops: Vec<OpCount> = ops.into_iter().map(|(op, count)| OpCount { op, count }).collect();
    ops.sort_by_key(|op| std::cmp::Reverse(op.count));
    Ok(Summary {
        ir_version: model.ir_version,
        opsets: opsets(&model),
        inputs: tensors(graph.inputs()),
        outputs: tensors(graph.outputs()),
        nodes: ops.iter().map(|op| op.count).sum(),
        ops,
        params: graph::cost::params(&model),
        constants: constants.len(),
        largest: largest.collect(),
        warnings: model.warnings.iter().map(|w| format!("{}: {}", w.place, w.reason)).collect(),
        conflicts: conflicts(graph, &shapes),
    })
}

fn load(path: &Path) -> Result<Model, CompressError> {
    let wrong = |what: String| CompressError::Model { path: path.to_path_buf(), what };
    Model::load(path).map_err(|error| wrong(error.to_string()))
}

fn opsets(model: &Model) -> BTreeMap<String, i64> {
    let name = |domain: &str| if domain.is_empty() { "ai.onnx".into() } else { domain.to_owned() };
    model.opsets.iter().map(|set| (name(&set.domain), set.version)).collect()
}

fn conflicts(graph: &Graph, shapes: &Shapes) -> Vec<String> {
    let conflict = |c: &graph::Conflict| {
        format!(
            "{}: the file declares {} {}, and the nodes give {} {}",
            graph.value(c.value).name,
            dtype(c.declared.dtype),
            dims(c.declared.dims.as_deref()),
            dtype(c.inferred.dtype),
            dims(c.inferred.dims.as_deref()),
        )
    };
    shapes.conflicts().iter().map(conflict).collect()
}

fn count_ops(graph: &Graph, ops: &mut BTreeMap<String, usize>) {
    for (id, node) in graph.nodes() {
        *ops.entry(op_name(node)).or_default() += 1;
        for (_, body) in graph.subgraphs(id) {
            count_ops(body, ops);
        }
    }
}

fn op_name(node: &graph::Node) -> String {
    match node.domain.as_str() {
        "" | "ai.onnx" => node.op_type.clone(),
        domain => format!("{domain}::{}", node.op_type),
    }
}

fn tensor(graph: &Graph, shapes: &Shapes, id: ValueId) -> Tensor {
    let ty = shapes.ty(id);
    let constant = graph.constant(id);
    Tensor {
        name: graph.get_value(id).map_or_else(String::new, |value| value.name.clone()),
        dtype: match (&constant, ty) {
            (Some(tensor), _) => dtype(tensor.dtype),
            (None, Some(ty)) => dtype(ty.dtype),
            (None, None) => "?".into(),
        },
        dims: match &constant {
            Some(tensor) => format!("{:?}", tensor.dims),
            None => dims(ty.and_then(|ty| ty.dims.as_deref())),
        },
        constant: constant.is_some(),
    }
}

fn dtype(dtype: DType) -> String {
    format!("{dtype:?}").to_lowercase()
}

fn dims(dims: Option<&[Dim]>) -> String {
    let Some(dims) = dims else { return "?".into() };
    let dims: Vec<String> = dims.iter().map(size).collect();
    format!("[{}]", dims.join(", "))
}

fn size(dim: &Dim) -> String {
    match dim {
        Dim::Fixed(size) => size.to_string(),
        Dim::Symbol(name) => name.clone(),
        Dim::Unknown => "?".into(),
    }
}

/// Explains every node and value called `name` of the model at `path`.
///
/// # Errors
/// The model cannot be read, or nothing has that name; the error suggests some that are like it.
pub fn explain(path: &Path, name: &str) -> Result<Why, CompressError> {
    let source = Source::load(path)?;
    let mut places = Vec::new();
    each_graph(&source.model.graph, &Scope::default(), &mut |graph, scope| {
        let found = named(graph, name);
        if !found.is_empty() {
            places.extend(explain_in(&source, graph, scope, &found));
        }
    });
    if places.is_empty() {
        return Err(unknown(&source, name)?);
    }
    Ok(Why { name: name.to_owned(), places })
}

/// A node, or a value that no node computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Node(NodeId),
    Value(ValueId),
}

fn named(graph: &Graph, name: &str) -> Vec<Found> {
    let nodes = graph.nodes().filter(|(id, node)| node.name == name || label(graph, *id) == name);
    let mut found: Vec<Found> = nodes.map(|(id, _)| place(graph, id)).collect();
    if let Some(value) = graph.value_by_name(name) {
        let place = graph.producer(value).map_or(Found::Value(value), |node| place(graph, node));
        if !found.contains(&place) {
            found.push(place);
        }
    }
    found
}

/// A node, but for one that is a constant, which is told of by its readers.
fn place(graph: &Graph, id: NodeId) -> Found {
    let node = graph.node(id);
    let value = node.output(0).filter(|_| node.op == graph::Op::Constant);
    value.map_or(Found::Node(id), Found::Value)
}

/// Visits the main graph and every body.
fn each_graph(graph: &Graph, scope: &Scope, visit: &mut dyn FnMut(&Graph, &Scope)) {
    visit(graph, scope);
    for (id, _) in graph.nodes().filter(|(_, node)| node.has_subgraphs()) {
        for (index, (_, body)) in graph.subgraphs(id).into_iter().enumerate() {
            each_graph(body, &scope.body(id, index), visit);
        }
    }
}

/// The values of a place, each once.
fn values_of(graph: &Graph, found: Found) -> Vec<ValueId> {
    let Found::Node(id) = found else {
        let Found::Value(value) = found else { return Vec::new() };
        return vec![value];
    };
    let node = graph.node(id);
    let mut seen = BTreeSet::new();
    let all = node.outputs.iter().chain(&node.inputs).flatten().copied();
    all.filter(|value| seen.insert(*value)).collect()
}

fn explain_in(source: &Source, graph: &Graph, scope: &Scope, found: &[Found]) -> Vec<Place> {
    let unknown = Shapes::default();
    let shapes = source.shapes.at(scope).unwrap_or(&unknown);
    let values: Vec<ValueId> = found.iter().flat_map(|f| values_of(graph, *f)).collect();
    let why = graph::why(&source.model, &source.shapes, scope, &values);
    let set: Vec<Lock> = locks(source);
    let place = |found: &Found| {
        let axes = values_of(graph, *found);
        let axes = axes
            .into_iter()
            .flat_map(|value| axes_of(source, (graph, scope, shapes), *found, value, &why));
        let axes = axes.collect();
        let tensors = |values: &[Option<ValueId>]| {
            values.iter().flatten().map(|id| tensor(graph, shapes, *id)).collect()
        };
        match *found {
            Found::Node(id) => {
                let node = graph.node(id);
                let own = |lock: &&Lock| {
                    lock.op.as_deref() == Some(node.op_type.as_str()) && lock.by == label(graph, id)
                };
                Place {
                    graph: scope_name(source, scope),
                    name: label(graph, id),
                    what: op_name(node),
                    opaque: node.op == graph::Op::Opaque,
                    inputs: tensors(&node.inputs),
                    outputs: tensors(&node.outputs),
                    axes,
                    locks: set.iter().filter(own).cloned().collect(),
                }
            }
            Found::Value(id) => Place {
                graph: scope_name(source, scope),
                name: graph.value(id).name.clone(),
                what: origin(graph, id).into(),
                opaque: false,
                inputs: Vec::new(),
                outputs: vec![tensor(graph, shapes, id)],
                axes,
                locks: Vec::new(),
            },
        }
    };
    found.iter().map(place).collect()
}

fn origin(graph: &Graph, value: ValueId) -> &'static str {
    match graph.value(value).origin {
        graph::Origin::Input => "input",
        graph::Origin::Outer => "value of the graph around",
        // Of the values that nodes compute, only constants stand for themselves.
        graph::Origin::Initializer | graph::Origin::Node(..) => "constant",
    }
}

fn scope_name(source: &Source, scope: &Scope) -> String {
    let (mut name, mut at) = ("graph".to_owned(), Scope::default());
    for &(node, index) in &scope.0 {
        let graph = source.graph_of(&at);
        let bodies = graph.subgraphs(node);
        let attribute = bodies.get(index).map_or("", |(attribute, _)| *attribute);
        name = format!("{name}, {} of {}", attribute, label(graph, node));
        at = at.body(node, index);
    }
    name
}

type Reaches = BTreeMap<(ValueId, usize), Vec<Reach>>;

fn axes_of(
    source: &Source,
    (graph, scope, shapes): (&Graph, &Scope, &Shapes),
    found: Found,
    value: ValueId,
    why: &Reaches,
) -> Vec<Axis> {
    let sizes: Vec<String> = match graph.constant(value) {
        Some(tensor) => tensor.dims.iter().map(ToString::to_string).collect(),
        None => shapes.dims(value).unwrap_or_default().iter().map(size).collect(),
    };
    let name = &graph.value(value).name;
    let axis = |(axis, size): (usize, String)| Axis {
        value: name.clone(),
        axis,
        size,
        groups: memberships(source, scope, found, value, axis),
        kept: why.get(&(value, axis)).map_or_else(Vec::new, |reaches| {
            reaches.iter().map(|reach| kept(source, graph, reach)).collect()
        }),
    };
    sizes.into_iter().enumerate().map(axis).collect()
}

fn memberships(
    source: &Source,
    scope: &Scope,
    found: Found,
    value: ValueId,
    axis: usize,
) -> Vec<Membership> {
    let groups = source.grouping.groups.iter().enumerate();
    let here = groups.filter(|(_, group)| group.scope == *scope);
    here.filter_map(|(index, group)| {
        let (role, per_unit) = role(group, found, value, axis)?;
        let graph = source.graph_of(scope);
        let names = |nodes: &mut dyn Iterator<Item = NodeId>| -> Vec<String> {
            nodes.take(NAMED).map(|node| label(graph, node)).collect()
        };
        Some(Membership {
            group: group.id.0,
            label: source.group_label(index),
            width: group.width,
            per_unit,
            role,
            producers: names(&mut group.producers.iter().copied()),
            consumers: names(&mut group.consumers.iter().map(|consumer| consumer.node)),
        })
    })
    .collect()
}

/// What an axis is for a group, and how many of its indices each unit owns.
fn role(group: &Group, found: Found, value: ValueId, axis: usize) -> Option<(&'static str, usize)> {
    let carried = group.values.iter().find(|(v, a, _)| (*v, *a) == (value, axis));
    if let Some((_, _, map)) = carried {
        return Some(("carries", map.per_unit()));
    }
    let read = |node: NodeId| match found {
        Found::Node(id) => id == node,
        Found::Value(_) => true,
    };
    let slices = group.slices.iter();
    let slice = slices.filter(|s| read(s.node)).find(|s| (s.value, s.axis) == (value, axis))?;
    let role = match slice.role {
        Role::Producer => "computes",
        Role::Consumer => "is summed over",
        Role::Elementwise => "acts on each",
        Role::Divisor => "divides each",
    };
    Some((role, slice.map.per_unit()))
}

fn kept(source: &Source, graph: &Graph, reach: &Reach) -> Kept {
    let found = lock(source, &reach.lock);
    let chain = reach.path.iter().map(|hop| {
        let value = graph.get_value(hop.value).map_or("", |value| value.name.as_str());
        format!("{} → {value}[{}]", label(graph, hop.node), hop.axis)
    });
    Kept {
        by: match reach.lock.by {
            LockedBy::Node(_) => found.locker(),
            _ => found.by.clone(),
        },
        dim: found.dim,
        why: found.why,
        chain: chain.collect(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "inspect_tests.rs"]
mod tests;
