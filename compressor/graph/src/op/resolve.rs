//! Decodes every node of a model, bodies included.

use std::{collections::HashSet, sync::Arc};

use super::decode::decode;
use crate::{
    AttributeValue, Graph, Model, Node, Op, Warning, import::limits, import::node_label,
    ir::canonical_domain,
};

/// What decoding depends on besides the node and its graph.
#[derive(Debug, Default)]
pub(crate) struct Context {
    opset: Option<i64>,
    functions: HashSet<(String, String)>,
}

impl Context {
    pub(crate) fn of(model: &Model) -> Self {
        let functions = &model.rest.functions;
        let key = |domain: &str, name: &str| (canonical_domain(domain).to_owned(), name.to_owned());
        Self {
            // The first two versions of the format had no operator sets.
            opset: model.opset("").or((model.ir_version < 3).then_some(1)),
            functions: functions
                .iter()
                .map(|function| key(function.domain(), function.name()))
                .collect(),
        }
    }

    /// The decoded operator, or why the node is opaque.
    pub(crate) fn decode(&self, graph: &Graph, node: &Node) -> Result<Op, String> {
        let key = (canonical_domain(&node.domain).to_owned(), node.op_type.clone());
        if self.functions.contains(&key) {
            return Err("it calls a function of the model".to_owned());
        }
        let opset = self.opset.ok_or("the model imports no operator set of the default domain")?;
        decode(graph, node, opset)
    }
}

impl Model {
    /// Derives every node's `op` from its type and attributes, and lists what was not understood.
    pub(crate) fn decode_ops(&mut self) {
        let context = Arc::new(Context::of(self));
        let mut warnings = Vec::new();
        decode_graph(&context, &mut self.graph, "", &mut warnings);
        let kept = warnings.len().min(limits::WARNINGS);
        let more = warnings.split_off(kept).len();
        if more > 0 {
            let reason = format!("{more} further nodes were not understood");
            warnings.push(Warning { place: "graph".to_owned(), reason });
        }
        self.warnings = warnings;
    }
}

/// In topological order, because a node may look at its constant inputs.
fn decode_graph(
    context: &Arc<Context>,
    graph: &mut Graph,
    place: &str,
    warnings: &mut Vec<Warning>,
) {
    graph.context = Arc::clone(context);
    for id in graph.order.clone() {
        let node = graph.node(id);
        let label = format!("{place}{}", node_label(node));
        let decoded = context.decode(graph, node);
        let op = decoded.unwrap_or_else(|reason| {
            warnings.push(Warning { place: label.clone(), reason });
            Op::Opaque
        });
        let Some(node) = graph.node_mut(id) else { continue };
        node.op = op;
        for attribute in &mut node.attributes {
            let place = format!("{label}, {}: ", attribute.name);
            match &mut attribute.value {
                AttributeValue::Graph(body) => decode_graph(context, body, &place, warnings),
                AttributeValue::Graphs(bodies) => {
                    for body in bodies {
                        decode_graph(context, body, &place, warnings);
                    }
                }
                _ => {}
            }
        }
    }
}
