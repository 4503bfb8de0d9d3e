//! Names of graphs within a model.

use serde::{Deserialize, Serialize};

use super::{AttributeValue, Graph, Model, NodeId};

/// Which graph of a model: the control-flow nodes on the way to it, each with the number of its body as
/// [`Graph::subgraphs`] lists them. Empty for the main graph. Ids of nodes and values are ids of that graph.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Scope(pub Vec<(NodeId, usize)>);

impl Scope {
    /// Whether it is the main graph.
    #[must_use]
    pub fn is_main(&self) -> bool {
        self.0.is_empty()
    }

    /// A body of a node of this graph.
    #[must_use]
    pub fn body(&self, node: NodeId, index: usize) -> Self {
        Self(self.0.iter().copied().chain([(node, index)]).collect())
    }
}

impl Model {
    /// The graph of that name, if there is one.
    #[must_use]
    pub fn graph_at(&self, scope: &Scope) -> Option<&Graph> {
        scope.0.iter().try_fold(&self.graph, |graph, &(node, index)| {
            graph.get_node(node)?;
            graph.subgraphs(node).get(index).map(|(_, body)| *body)
        })
    }

    pub(crate) fn graph_at_mut(&mut self, scope: &Scope) -> Option<&mut Graph> {
        scope.0.iter().try_fold(&mut self.graph, |graph, &(node, index)| {
            let attributes = graph.node_mut(node)?.attributes.iter_mut();
            let bodies = attributes.flat_map(|attribute| match &mut attribute.value {
                AttributeValue::Graph(body) => std::slice::from_mut(&mut **body),
                AttributeValue::Graphs(bodies) => bodies.as_mut_slice(),
                _ => &mut [],
            });
            bodies.into_iter().nth(index)
        })
    }
}
