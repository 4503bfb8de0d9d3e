//! Applies a pruning plan: removes units ([`prune`]) or zeroes them in place ([`mask`]).
//!
//! *Masked equals pruned*: for every plan both give a model that computes the same outputs. A mask zeroes
//! exactly the slices that a pruning removes, but for [`crate::Role::Divisor`].

mod constants;
mod corrections;
mod operands;
mod states;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::{Deserialize, Serialize};

use crate::group::sizes::Reader;
use crate::{
    Attribute, Cause, DeadCode, Dim, Driver, Edit, EditError, Graph, Group, GroupId, Grouping,
    Model, Node, NodeId, PassError, Role, Scope, Shapes, StatePair, TensorType, ValueId, apply,
    cost, infer,
};
use constants::Slicing;

/// What to keep of one group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    /// The group.
    pub group: GroupId,
    /// Units that stay, ascending; at least one.
    pub keep: Vec<u32>,
}

/// What to keep of every group; a group that is not named stays whole.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrunePlan {
    /// At most one choice for each group.
    pub choices: Vec<Choice>,
}

/// What a pruning did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PruneReport {
    /// Elements of all constants before.
    pub params_before: u64,
    /// Elements of all constants after.
    pub params_after: u64,
    /// Edits that were made, with their causes, in order.
    pub edits: Vec<String>,
}

/// Why a plan cannot be applied. The model is as it was.
#[derive(Debug, thiserror::Error)]
pub enum PruneError {
    /// The grouping has no such group.
    #[error("the plan names group {0:?}, which the model does not have")]
    UnknownGroup(GroupId),
    /// Two choices for one group.
    #[error("the plan names group {0:?} twice")]
    Twice(GroupId),
    /// Nothing would be left.
    #[error("the plan keeps no unit of group {0:?}")]
    Nothing(GroupId),
    /// Two groups that share an axis would leave nothing of it.
    #[error("the plan leaves nothing of axis {axis} of `{value}`")]
    Empty {
        /// The constant.
        value: String,
        /// Its axis.
        axis: usize,
    },
    /// Units that are not ascending or do not exist.
    #[error("the plan keeps units of group {group:?} that are not ascending numbers below {width}")]
    Units {
        /// The group.
        group: GroupId,
        /// Its width.
        width: usize,
    },
    /// The grouping is not of this model.
    #[error("the groups are not those of this model: {0}")]
    Stale(String),
    /// An edit was refused.
    #[error(transparent)]
    Edit(#[from] EditError),
    /// Cleaning up failed.
    #[error(transparent)]
    Pass(#[from] PassError),
    /// The result does not verify.
    #[error("the pruned model does not verify: {0}")]
    Verify(String),
}

/// Removes the units that `plan` does not keep, from every slice at once, and what is dead afterwards.
///
/// # Errors
/// The plan does not fit the groups, or these are not of this model; then `model` is unchanged.
pub fn prune(
    model: &mut Model,
    grouping: &Grouping,
    plan: &PrunePlan,
) -> Result<PruneReport, PruneError> {
    let removals = removals(model, grouping, plan)?;
    let mut work = Work::new(model, grouping);
    let params_before = cost::params(model);
    let shapes = infer(model);
    for (scope, removal) in &removals {
        let (Some(graph), Some(shapes)) = (model.graph_at(scope), shapes.at(scope)) else {
            return Err(no_graph(scope));
        };
        work.enter(scope)?;
        constants::apply_all(&mut work, removal, Slicing::Remove)?;
        operands::fix_all(&mut work, graph, removal, shapes)?;
        corrections::apply_all(&mut work, graph, grouping, removal, shapes)?;
        correct_types(&mut work, grouping, removal)?;
        states::narrow_all(&mut work, grouping, removal)?;
    }
    if !work.edits.is_empty() {
        Driver::default().run(&mut work.model, &[&DeadCode])?;
    }
    work.model.verify().map_err(|violations| {
        PruneError::Verify(
            violations.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "),
        )
    })?;
    *model = work.model;
    Ok(PruneReport { params_before, params_after: cost::params(model), edits: work.edits })
}

/// Zeroes the units that `plan` does not keep; shapes stay.
///
/// # Errors
/// As for [`prune`].
pub fn mask(model: &Model, grouping: &Grouping, plan: &PrunePlan) -> Result<Model, PruneError> {
    let mut work = Work::new(model, grouping);
    for (scope, removal) in &removals(model, grouping, plan)? {
        work.enter(scope)?;
        constants::apply_all(&mut work, removal, Slicing::Zero)?;
        states::silence_all(&mut work, grouping, removal)?;
    }
    Ok(work.model)
}

fn no_graph(scope: &Scope) -> PruneError {
    PruneError::Stale(format!("there is no graph at {scope:?}"))
}

/// A model under change, one graph after the other.
struct Work {
    model: Model,
    /// The graph that is edited.
    scope: Scope,
    edits: Vec<String>,
    /// Shape operands made so far in this graph, by content.
    sizes: HashMap<Vec<i64>, ValueId>,
    /// Declared types of the states that go out, which stay.
    interface: HashMap<(Scope, ValueId), TensorType>,
}

impl Work {
    fn new(model: &Model, grouping: &Grouping) -> Self {
        let ty = |pair: &StatePair| {
            let value = model.graph_at(&pair.scope)?.get_value(pair.output)?;
            Some(((pair.scope.clone(), pair.output), value.ty.clone()?))
        };
        let interface = grouping.states.iter().filter_map(ty).collect();
        Self {
            model: model.clone(),
            scope: Scope::default(),
            edits: Vec::new(),
            sizes: HashMap::new(),
            interface,
        }
    }

    /// Goes on with another graph.
    fn enter(&mut self, scope: &Scope) -> Result<(), PruneError> {
        self.model.graph_at(scope).ok_or_else(|| no_graph(scope))?;
        self.scope = scope.clone();
        self.sizes.clear();
        Ok(())
    }

    /// The graph that is edited.
    fn graph(&self) -> &Graph {
        self.model.graph_at(&self.scope).unwrap_or(&self.model.graph)
    }

    fn edit(&mut self, edit: Edit, cause: &Cause) -> Result<Option<ValueId>, PruneError> {
        self.edits.push(format!("{edit} ({cause})"));
        let graph = self.model.graph_at_mut(&self.scope).ok_or_else(|| no_graph(&self.scope))?;
        Ok(apply(graph, edit, cause)?.value())
    }

    /// Adds a node of one output, named after it.
    fn add_node(&mut self, mut node: Node, cause: &Cause) -> Result<ValueId, PruneError> {
        let outputs = vec![node.name.clone()];
        // ONNX Runtime refuses a model with two nodes of one name.
        node.name = self.free_node_name(&node.name);
        let value = self.edit(Edit::AddNode { node, outputs }, cause)?;
        value.ok_or_else(|| PruneError::Stale("no node was added".to_owned()))
    }

    fn free_node_name(&self, wish: &str) -> String {
        let taken = |name: &str| self.model.graph.nodes().any(|(_, node)| node.name == name);
        let numbered = (1u32..).map(|number| format!("{wish}_{number}"));
        let mut names = std::iter::once(wish.to_owned()).chain(numbered);
        names.find(|name| !taken(name)).unwrap_or_default()
    }

    /// A new node with one output, which is returned.
    fn node(
        &mut self,
        op_type: &str,
        inputs: Vec<Option<ValueId>>,
        attributes: Vec<Attribute>,
        cause: &Cause,
    ) -> Result<ValueId, PruneError> {
        let name = format!("pruned_{}", op_type.to_lowercase());
        self.named_node(op_type, inputs, attributes, name, cause)
    }

    /// As [`Self::node`], with a wish for the name of the output.
    fn named_node(
        &mut self,
        op_type: &str,
        inputs: Vec<Option<ValueId>>,
        attributes: Vec<Attribute>,
        name: String,
        cause: &Cause,
    ) -> Result<ValueId, PruneError> {
        self.add_node(Node::new(op_type, name, inputs, attributes), cause)
    }

    /// A constant of these integers.
    fn ints(&mut self, ints: &[i64], cause: &Cause) -> Result<ValueId, PruneError> {
        if let Some(&known) = self.sizes.get(ints) {
            return Ok(known);
        }
        let tensor = crate::Tensor::from_i64(vec![ints.len()], ints);
        let tensor = tensor.map_err(|error| PruneError::Stale(error.to_string()))?;
        let value = self.constant("pruned_sizes", tensor, cause)?;
        self.sizes.insert(ints.to_vec(), value);
        Ok(value)
    }

    fn constant(
        &mut self,
        name: &str,
        tensor: crate::Tensor,
        cause: &Cause,
    ) -> Result<ValueId, PruneError> {
        let added = self.edit(Edit::AddConstant { name: name.to_owned(), tensor }, cause)?;
        added.ok_or_else(|| PruneError::Stale("no constant was added".to_owned()))
    }
}

/// The removed indices of one axis, and the groups that remove them.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Gone {
    indices: BTreeSet<u32>,
    groups: BTreeSet<GroupId>,
}

/// What a plan removes, graph by graph.
fn removals(
    model: &Model,
    grouping: &Grouping,
    plan: &PrunePlan,
) -> Result<BTreeMap<Scope, Removal>, PruneError> {
    let mut found: BTreeMap<Scope, Removal> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for choice in &plan.choices {
        let group = grouping.group(choice.group).ok_or(PruneError::UnknownGroup(choice.group))?;
        if !seen.insert(choice.group) {
            return Err(PruneError::Twice(choice.group));
        }
        let units = removed(group, &choice.keep)?;
        if !units.is_empty() {
            let graph = model.graph_at(&group.scope).ok_or_else(|| no_graph(&group.scope))?;
            found.entry(group.scope.clone()).or_default().add(graph, group, &units)?;
        }
    }
    for (scope, removal) in &mut found {
        if let Some(graph) = model.graph_at(scope) {
            removal.leaves_something(graph)?;
        }
        for read in grouping.sizes_read.get(scope).into_iter().flatten() {
            if let (Some(gone), Reader::Operand(node)) =
                (removal.values.get(&(read.value, read.axis)), &read.by)
            {
                removal.size_readers.entry(*node).or_default().extend(&gone.groups);
            }
        }
    }
    Ok(found)
}

/// Everything a plan removes from one graph.
#[derive(Debug, Default)]
struct Removal {
    /// By use of a constant, then by axis.
    uses: BTreeMap<(ValueId, NodeId, usize), BTreeMap<usize, Gone>>,
    /// Uses whose axis divides, which a mask leaves alone.
    divisors: BTreeSet<(NodeId, usize, usize)>,
    /// By activation and axis.
    values: BTreeMap<(ValueId, usize), Gone>,
    /// Nodes with a shape operand that depends on a shrinking axis.
    size_readers: BTreeMap<NodeId, BTreeSet<GroupId>>,
}

impl Removal {
    fn add(&mut self, graph: &Graph, group: &Group, units: &[usize]) -> Result<(), PruneError> {
        for slice in &group.slices {
            let read = graph.get_node(slice.node).and_then(|node| node.input(slice.slot));
            if read != Some(slice.value) {
                return Err(PruneError::Stale(format!(
                    "{:?} no longer reads {:?}",
                    slice.node, slice.value
                )));
            }
            let axes = self.uses.entry((slice.value, slice.node, slice.slot)).or_default();
            let gone = axes.entry(slice.axis).or_default();
            gone.extend(group.id, units.iter().flat_map(|&unit| slice.map.unit(unit)));
            if slice.role == Role::Divisor {
                self.divisors.insert((slice.node, slice.slot, slice.axis));
            }
        }
        for (value, axis, map) in &group.values {
            let gone = self.values.entry((*value, *axis)).or_default();
            gone.extend(group.id, units.iter().flat_map(|&unit| map.unit(unit)));
        }
        Ok(())
    }

    fn leaves_something(&self, graph: &Graph) -> Result<(), PruneError> {
        for ((value, ..), axes) in &self.uses {
            let Some(tensor) = graph.constant(*value) else { continue };
            for (&axis, gone) in axes {
                if tensor.dims.get(axis).is_some_and(|&size| gone.indices.len() >= size) {
                    let value = graph.value(*value).name.clone();
                    return Err(PruneError::Empty { value, axis });
                }
            }
        }
        Ok(())
    }

    fn gone(&self, value: Option<ValueId>, axis: usize) -> Option<&Gone> {
        self.values.get(&(value?, axis))
    }

    /// Dimensions after the removal.
    fn dims(&self, shapes: &Shapes, value: ValueId) -> Option<Vec<Dim>> {
        let dims = shapes.dims(value)?.iter().enumerate();
        Some(dims.map(|(axis, dim)| self.shrunk(value, axis, dim)).collect())
    }

    fn shrunk(&self, value: ValueId, axis: usize, dim: &Dim) -> Dim {
        match (dim, self.values.get(&(value, axis))) {
            (Dim::Fixed(size), Some(gone)) => Dim::Fixed(size.saturating_sub(gone.indices.len())),
            (dim, _) => dim.clone(),
        }
    }
}

impl Gone {
    fn extend<'a>(&mut self, group: GroupId, indices: impl Iterator<Item = &'a u32>) {
        self.indices.extend(indices);
        self.groups.insert(group);
    }

    /// Indices that stay, of an axis of `size`.
    fn kept(&self, size: usize) -> Vec<usize> {
        (0..size).filter(|&i| u32::try_from(i).is_ok_and(|i| !self.indices.contains(&i))).collect()
    }

    /// How many indices of `start..start + len` stay.
    fn kept_in(&self, start: usize, len: usize) -> usize {
        (start..start + len)
            .filter(|&i| u32::try_from(i).is_ok_and(|i| !self.indices.contains(&i)))
            .count()
    }

    fn cause(&self, note: &str) -> Cause {
        cause(&self.groups, note)
    }
}

fn cause(groups: &BTreeSet<GroupId>, note: &str) -> Cause {
    let ids: Vec<String> = groups.iter().map(|id| id.0.to_string()).collect();
    Cause::new(format!("group {}", ids.join(", ")), note)
}

/// Units of `group` that are not among `keep`.
fn removed(group: &Group, keep: &[u32]) -> Result<Vec<usize>, PruneError> {
    if keep.is_empty() {
        return Err(PruneError::Nothing(group.id));
    }
    let fits = keep.last().is_some_and(|&last| (last as usize) < group.width);
    if !fits || keep.windows(2).any(|pair| pair[0] >= pair[1]) {
        return Err(PruneError::Units { group: group.id, width: group.width });
    }
    let keep: BTreeSet<usize> = keep.iter().map(|&unit| unit as usize).collect();
    Ok((0..group.width).filter(|unit| !keep.contains(unit)).collect())
}

/// Declared shapes of what shrank.
fn correct_types(
    work: &mut Work,
    grouping: &Grouping,
    removal: &Removal,
) -> Result<(), PruneError> {
    let mut by_value: BTreeMap<ValueId, BTreeSet<GroupId>> = BTreeMap::new();
    let states = grouping.states.iter().filter(|pair| pair.scope == work.scope);
    let fed: BTreeSet<ValueId> = states.map(|pair| pair.input).collect();
    for ((value, _), gone) in removal.values.iter().filter(|((value, _), _)| !fed.contains(value)) {
        by_value.entry(*value).or_default().extend(&gone.groups);
    }
    for (value, groups) in by_value {
        let Some(mut ty) = work.graph().get_value(value).and_then(|found| found.ty.clone()) else {
            continue;
        };
        if let Some(dims) = &mut ty.dims {
            for (axis, dim) in dims.iter_mut().enumerate() {
                *dim = removal.shrunk(value, axis, dim);
            }
        }
        work.edit(Edit::SetType { value, ty: Some(ty) }, &cause(&groups, "narrower"))?;
    }
    Ok(())
}
