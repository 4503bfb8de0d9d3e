//! What a pruning would leave, counted without making it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{exempt, port_dims, products};
use crate::coupling::Port;
use crate::{Graph, Grouping, Model, NodeId, Op, Origin, Scope, Shapes, UnaryOp, ValueId};

/// Aliases followed to a constant before giving up.
const MAX_ALIASES: usize = 64;

/// Costs of a model some of whose units are gone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Left {
    /// Elements of every constant, as [`super::params`] counts them.
    pub params: u64,
    /// The same without embeddings and final classifiers, as [`super::inner_params`] counts them.
    pub inner_params: u64,
    /// Multiply-accumulate operations, as [`super::macs`] counts them.
    pub macs: u64,
}

/// What is left of `model` where every group keeps the first `keep(width)` of its units, which may be none of them.
///
/// Constants that two readers want cut differently count once for each, as a pruning copies them. The few constants
/// that a pruning adds (shape operands, factors for narrowed norms, indices of states) are not counted.
#[must_use]
pub fn left(
    model: &Model,
    shapes: &Shapes,
    grouping: &Grouping,
    free: u64,
    keep: &dyn Fn(usize) -> usize,
) -> Left {
    let count = Count { grouping, free, keep };
    let (mut left, sizes) = count.graph(&model.graph, shapes, &Scope::default());
    let outside = exempt(&model.graph).into_keys();
    let outside = outside.filter_map(|value| sizes.get(&root(&model.graph, value)?)).sum::<u64>();
    left.inner_params = left.params.saturating_sub(outside);
    left
}

/// Indices that are gone, by axis, ascending and each once.
type Cuts = BTreeMap<usize, Vec<u32>>;

/// What is gone of one graph.
#[derive(Default)]
struct Gone {
    uses: HashMap<(NodeId, usize), Cuts>,
    values: HashMap<ValueId, Cuts>,
}

struct Count<'a> {
    grouping: &'a Grouping,
    free: u64,
    keep: &'a dyn Fn(usize) -> usize,
}

impl Count<'_> {
    fn gone(&self, scope: &Scope) -> Gone {
        let mut gone = Gone::default();
        for group in self.grouping.groups.iter().filter(|group| group.scope == *scope) {
            let kept = (self.keep)(group.width);
            for slice in &group.slices {
                let cuts = gone.uses.entry((slice.node, slice.slot)).or_default();
                let lost = (kept..group.width).flat_map(|unit| slice.map.unit(unit));
                cuts.entry(slice.axis).or_default().extend(lost);
            }
            for (value, axis, map) in &group.values {
                let cuts = gone.values.entry(*value).or_default();
                let lost = (kept..group.width).flat_map(|unit| map.unit(unit));
                cuts.entry(*axis).or_default().extend(lost);
            }
        }
        for indices in gone
            .uses
            .values_mut()
            .chain(gone.values.values_mut())
            .flat_map(|cuts| cuts.values_mut())
        {
            indices.sort_unstable();
            indices.dedup();
        }
        gone
    }

    /// The costs of one graph with its bodies, and what is left of each of its own constants.
    fn graph(
        &self,
        graph: &Graph,
        shapes: &Shapes,
        scope: &Scope,
    ) -> (Left, HashMap<ValueId, u64>) {
        let gone = self.gone(scope);
        let sizes = constants(graph, &gone);
        let nodes = graph.nodes();
        let macs = nodes.filter_map(|(id, _)| self.node(graph, shapes, id, &gone)).sum();
        let mut all = Left { params: sizes.values().sum(), inner_params: 0, macs };
        for (id, node) in graph.nodes().filter(|(_, node)| node.has_subgraphs()) {
            let bodies = graph.subgraphs(id).into_iter().enumerate();
            let bodies = bodies.map(|(index, (_, body))| {
                // Without shapes the search found no groups in it either.
                let unknown = Shapes::default();
                let shapes = shapes.body(id, index).unwrap_or(&unknown);
                self.graph(body, shapes, &scope.body(id, index)).0
            });
            let bodies: Vec<Left> = bodies.collect();
            all.params += bodies.iter().map(|body| body.params).sum::<u64>();
            let macs = bodies.iter().map(|body| body.macs);
            all.macs += if node.op == Op::If { macs.max().unwrap_or(0) } else { macs.sum() };
        }
        (all, sizes)
    }

    fn node(&self, graph: &Graph, shapes: &Shapes, id: NodeId, gone: &Gone) -> Option<u64> {
        let node = graph.get_node(id)?;
        products(node, &|port| {
            let mut dims = port_dims(graph, shapes, node, port, self.free)?;
            let cuts = match port {
                Port::In(slot) => {
                    let value = || gone.values.get(&node.input(slot)?);
                    gone.uses.get(&(id, slot)).or_else(value)
                }
                Port::Out(slot) => gone.values.get(&node.output(slot)?),
            };
            for (axis, lost) in cuts.into_iter().flatten() {
                if let Some(size) = dims.get_mut(*axis) {
                    *size = size.saturating_sub(lost.len() as u64);
                }
            }
            Some(dims)
        })
    }
}

/// Elements that are left of each constant that this graph holds, copies for readers with other wishes included.
fn constants(graph: &Graph, gone: &Gone) -> HashMap<ValueId, u64> {
    let nothing = Cuts::new();
    let mut variants: HashMap<ValueId, BTreeSet<&Cuts>> = HashMap::new();
    for (id, node) in graph.nodes() {
        let alias = node.op == Op::Unary(UnaryOp::Identity);
        for (slot, value) in node.inputs.iter().enumerate().filter(|_| !alias) {
            if let Some(constant) = value.and_then(|value| root(graph, value)) {
                let cuts = gone.uses.get(&(id, slot)).unwrap_or(&nothing);
                variants.entry(constant).or_default().insert(cuts);
            }
        }
        let captured = if node.has_subgraphs() { graph.captures(id) } else { Vec::new() };
        for constant in captured.into_iter().filter_map(|value| root(graph, value)) {
            variants.entry(constant).or_default().insert(&nothing);
        }
    }
    for constant in graph.outputs().iter().filter_map(|value| root(graph, *value)) {
        variants.entry(constant).or_default().insert(&nothing);
    }
    let held = graph.values().filter(|(id, _)| root(graph, *id) == Some(*id));
    held.filter_map(|(id, _)| {
        let dims = graph.constant(id)?.dims.clone();
        let size = |cuts: &Cuts| size(&dims, cuts);
        let all = variants.get(&id).map(|cuts| cuts.iter().map(|cuts| size(cuts)).sum());
        Some((id, all.unwrap_or_else(|| size(&nothing))))
    })
    .collect()
}

fn size(dims: &[usize], cuts: &Cuts) -> u64 {
    let sizes = dims.iter().enumerate().map(|(axis, size)| {
        let lost = cuts.get(&axis).map_or(0, Vec::len);
        size.saturating_sub(lost) as u64
    });
    sizes.fold(1, u64::saturating_mul)
}

/// The initializer, or the output of a `Constant` node, that `value` is or stands for.
fn root(graph: &Graph, value: ValueId) -> Option<ValueId> {
    let mut value = value;
    for _ in 0..MAX_ALIASES {
        let found = graph.get_value(value)?;
        let Origin::Node(node, 0) = found.origin else {
            let held = found.origin == Origin::Initializer && found.data.is_some();
            return held.then_some(value);
        };
        let node = graph.get_node(node)?;
        match node.op {
            Op::Constant => return graph.constant(value).map(|_| value),
            Op::Unary(UnaryOp::Identity) => value = node.input(0)?,
            _ => return None,
        }
    }
    None
}
