//! Reading a graph.

use std::collections::BTreeSet;

use super::{AttributeValue, Graph, Node, NodeId, Origin, Value, ValueId};

impl Graph {
    /// Live nodes in topological order.
    pub fn nodes(&self) -> impl DoubleEndedIterator<Item = (NodeId, &Node)> {
        self.order.iter().map(|&id| (id, self.node(id)))
    }

    /// Live values, in no meaningful order.
    pub fn values(&self) -> impl DoubleEndedIterator<Item = (ValueId, &Value)> {
        let ids = (0u32..).map(ValueId);
        let live = ids.zip(&self.values).filter_map(|(id, value)| Some((id, value.as_ref()?)));
        live.collect::<Vec<_>>().into_iter()
    }

    /// A live node.
    ///
    /// # Panics
    /// If `id` is of another graph or was removed; [`Graph::get_node`] does not.
    #[must_use]
    pub fn node(&self, id: NodeId) -> &Node {
        self.get_node(id).expect("the id names a live node of this graph")
    }

    /// A live value.
    ///
    /// # Panics
    /// If `id` is of another graph or was removed; [`Graph::get_value`] does not.
    #[must_use]
    pub fn value(&self, id: ValueId) -> &Value {
        self.get_value(id).expect("the id names a live value of this graph")
    }

    /// The node, if it is live.
    #[must_use]
    pub fn get_node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(id.0 as usize)?.as_ref()
    }

    /// The value, if it is live.
    #[must_use]
    pub fn get_value(&self, id: ValueId) -> Option<&Value> {
        self.values.get(id.0 as usize)?.as_ref()
    }

    /// Inputs that the caller feeds, in order; initializers that old files list as inputs are not among them.
    #[must_use]
    pub fn inputs(&self) -> &[ValueId] {
        &self.inputs
    }

    /// Every value that the file lists as an input, in order, initializers included.
    #[must_use]
    pub fn listed_inputs(&self) -> &[ValueId] {
        &self.listed
    }

    /// Outputs, in order.
    #[must_use]
    pub fn outputs(&self) -> &[ValueId] {
        &self.outputs
    }

    /// The value of that name in this graph (not in enclosing ones).
    #[must_use]
    pub fn value_by_name(&self, name: &str) -> Option<ValueId> {
        self.names.get(name).copied()
    }

    /// The node that computes `value`.
    #[must_use]
    pub fn producer(&self, value: ValueId) -> Option<NodeId> {
        match self.get_value(value)?.origin {
            Origin::Node(node, _) => Some(node),
            Origin::Input | Origin::Initializer | Origin::Outer => None,
        }
    }

    /// Every (node, input slot) of this graph that reads `value`, in topological order. Bodies that capture it
    /// are found by [`Graph::captured_by`].
    #[must_use]
    pub fn consumers(&self, value: ValueId) -> Vec<(NodeId, usize)> {
        let mut found = Vec::new();
        for (id, node) in self.nodes() {
            let slots = node.inputs.iter().enumerate().filter(|(_, input)| **input == Some(value));
            found.extend(slots.map(|(slot, _)| (id, slot)));
        }
        found
    }

    /// Control-flow nodes whose bodies read `value` by name.
    #[must_use]
    pub fn captured_by(&self, value: ValueId) -> Vec<NodeId> {
        let holders = self.nodes().filter(|(_, node)| node.has_subgraphs());
        holders.filter(|&(id, _)| self.captures(id).contains(&value)).map(|(id, _)| id).collect()
    }

    /// Values of this graph that the bodies of `node` read by name, at whatever depth.
    #[must_use]
    pub fn captures(&self, node: NodeId) -> Vec<ValueId> {
        let mut found = BTreeSet::new();
        for (_, body) in self.subgraphs(node) {
            let outer = body.values().filter(|(_, value)| value.origin == Origin::Outer);
            found.extend(outer.filter_map(|(_, value)| self.value_by_name(&value.name)));
        }
        found.into_iter().collect()
    }

    /// The bodies of a control-flow node, with the names of their attributes.
    #[must_use]
    pub fn subgraphs(&self, node: NodeId) -> Vec<(&str, &Graph)> {
        let mut found = Vec::new();
        for attribute in &self.node(node).attributes {
            match &attribute.value {
                AttributeValue::Graph(graph) => found.push((attribute.name.as_str(), &**graph)),
                AttributeValue::Graphs(graphs) => {
                    found.extend(graphs.iter().map(|graph| (attribute.name.as_str(), graph)));
                }
                _ => {}
            }
        }
        found
    }

    /// Whether nothing reads the value: no node, no body and no graph output.
    #[must_use]
    pub fn is_unused(&self, value: ValueId) -> bool {
        !self.outputs.contains(&value)
            && self.consumers(value).is_empty()
            && self.captured_by(value).is_empty()
    }
}
