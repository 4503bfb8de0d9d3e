//! The verifier: run after import, after every pass and before export.
//!
//! Checked, for the main graph and every body:
//! 1. the node order holds every live node once, producers before readers (bodies' captures included);
//! 2. every id that a node, an input list or an output list holds is live;
//! 3. a value's origin and the node's output slot name each other; inputs have [`Origin::Input`];
//! 4. every value has a name, unique in its graph, and the name index agrees;
//! 5. an initializer's bytes, type and dimensions agree, and its declared type is that of its tensor;
//! 6. what a body captures exists in the graph around it; the main graph captures nothing;
//! 7. a node's `op` is what its type and attributes decode to.
//!
//! Not checked: that shapes fit each other (see [`crate::infer`]), and what only a runtime knows.

use std::collections::{HashMap, HashSet};

use crate::{
    AttributeValue, Graph, Model, Node, NodeId, Op, Origin, TensorType, ValueId,
    import::node_label, op::resolve::Context,
};

/// A broken invariant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {what}")]
pub struct Violation {
    /// Graph, and node or value.
    pub place: String,
    /// What is wrong.
    pub what: String,
}

impl Model {
    /// Checks every invariant and collects all that is broken.
    ///
    /// # Errors
    /// The violations, at least one.
    pub fn verify(&self) -> Result<(), Vec<Violation>> {
        let context = Context::of(self);
        let mut check = Check { context: &context, found: Vec::new() };
        check.graph(&self.graph, None, "graph");
        if check.found.is_empty() { Ok(()) } else { Err(check.found) }
    }
}

/// The first few violations, for one line.
pub(crate) fn summary(violations: &[Violation]) -> String {
    const SHOWN: usize = 3;
    let mut parts: Vec<String> = violations.iter().take(SHOWN).map(ToString::to_string).collect();
    if violations.len() > SHOWN {
        parts.push(format!("and {} more", violations.len() - SHOWN));
    }
    parts.join("; ")
}

struct Check<'a> {
    context: &'a Context,
    found: Vec<Violation>,
}

impl Check<'_> {
    fn report(&mut self, place: &str, what: impl Into<String>) {
        self.found.push(Violation { place: place.to_owned(), what: what.into() });
    }

    fn graph(&mut self, graph: &Graph, outer: Option<&Graph>, place: &str) {
        self.values(graph, outer, place);
        self.lists(graph, place);
        self.order(graph, place);
        let nodes = (0u32..).map(NodeId).zip(&graph.nodes);
        for (id, node) in nodes.filter_map(|(id, node)| Some((id, node.as_ref()?))) {
            self.node(graph, id, node, &format!("{place}, {}", node_label(node)));
        }
    }

    fn values(&mut self, graph: &Graph, outer: Option<&Graph>, place: &str) {
        let sparse: HashSet<&str> = graph
            .rest
            .sparse_initializer
            .iter()
            .filter_map(|s| Some(s.values.as_ref()?.name()))
            .collect();
        let inputs: HashSet<ValueId> = graph.inputs.iter().copied().collect();
        let mut names: HashMap<&str, ValueId> = HashMap::new();
        for (id, value) in graph.values() {
            let at = format!("{place}, value `{}`", value.name);
            if value.name.is_empty() {
                self.report(&at, "it has no name");
            }
            if names.insert(&value.name, id).is_some() {
                self.report(&at, "two values have this name");
            } else if graph.value_by_name(&value.name) != Some(id) {
                self.report(&at, "the index of names does not lead to it");
            }
            match value.origin {
                Origin::Input if !inputs.contains(&id) => {
                    self.report(&at, "no input list holds it")
                }
                Origin::Node(node, slot)
                    if graph.get_node(node).is_none_or(|node| node.output(slot) != Some(id)) =>
                {
                    self.report(&at, "the node it comes from does not write it");
                }
                Origin::Outer
                    if outer.is_none_or(|outer| outer.value_by_name(&value.name).is_none()) =>
                {
                    self.report(&at, "it is captured, and no graph around has it");
                }
                Origin::Initializer => self.initializer(value, &sparse, &at),
                Origin::Input | Origin::Node(..) | Origin::Outer => {}
            }
        }
        if names.len() != graph.names.len() {
            self.report(place, "the index of names holds removed values");
        }
    }

    fn initializer(&mut self, value: &crate::Value, sparse: &HashSet<&str>, at: &str) {
        match &value.data {
            None if sparse.contains(value.name.as_str()) => {}
            None => self.report(at, "it is an initializer without data"),
            Some(tensor) => {
                if let Err(error) = tensor.check() {
                    self.report(at, error.to_string());
                }
                if value.ty.as_ref() != Some(&TensorType::of(tensor)) {
                    self.report(at, "its type is not that of its data");
                }
            }
        }
    }

    fn lists(&mut self, graph: &Graph, place: &str) {
        let listed: HashSet<ValueId> = graph.listed.iter().copied().collect();
        for &id in &graph.inputs {
            if graph.get_value(id).is_none_or(|value| value.origin != Origin::Input) {
                self.report(place, format!("the input list holds {id:?}, which is no input"));
            }
            if !listed.contains(&id) {
                self.report(place, format!("input {id:?} is not among the listed inputs"));
            }
        }
        for &id in &graph.listed {
            let origin = graph.get_value(id).map(|value| value.origin);
            if !matches!(origin, Some(Origin::Input | Origin::Initializer)) {
                self.report(place, format!("the listed inputs hold {id:?}, which is none"));
            }
        }
        for &id in &graph.outputs {
            if graph.get_value(id).is_none() {
                self.report(place, format!("the output list holds {id:?}, which is gone"));
            }
        }
    }

    fn order(&mut self, graph: &Graph, place: &str) {
        let mut done = HashSet::new();
        for &id in &graph.order {
            let Some(node) = graph.get_node(id) else {
                self.report(place, format!("the order holds {id:?}, which is gone"));
                continue;
            };
            let captures = if node.has_subgraphs() { graph.captures(id) } else { Vec::new() };
            for value in node.inputs.iter().flatten().copied().chain(captures) {
                if graph.producer(value).is_some_and(|producer| !done.contains(&producer)) {
                    let name = graph.get_value(value).map_or("", |value| &value.name);
                    let at = format!("{place}, {}", node_label(node));
                    self.report(&at, format!("it stands before the node that writes `{name}`"));
                }
            }
            if !done.insert(id) {
                self.report(place, format!("the order holds {id:?} twice"));
            }
        }
        let live = graph.nodes.iter().flatten().count();
        if done.len() != live {
            self.report(place, format!("the order holds {} of {live} nodes", done.len()));
        }
    }

    fn node(&mut self, graph: &Graph, id: NodeId, node: &Node, place: &str) {
        for value in node.inputs.iter().flatten() {
            if graph.get_value(*value).is_none() {
                self.report(place, format!("it reads {value:?}, which is gone"));
            }
        }
        for (slot, value) in node.outputs.iter().enumerate() {
            let Some(value) = value else { continue };
            if graph.get_value(*value).is_none_or(|value| value.origin != Origin::Node(id, slot)) {
                self.report(place, format!("its output {slot} says that it comes from elsewhere"));
            }
        }
        if self.context.decode(graph, node).unwrap_or(Op::Opaque) != node.op {
            self.report(place, "its operator is not what its type and attributes say");
        }
        for attribute in &node.attributes {
            let place = format!("{place}, `{}`", attribute.name);
            match &attribute.value {
                AttributeValue::Graph(body) => self.graph(body, Some(graph), &place),
                AttributeValue::Graphs(bodies) => {
                    for body in bodies {
                        self.graph(body, Some(graph), &place);
                    }
                }
                _ => {}
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
