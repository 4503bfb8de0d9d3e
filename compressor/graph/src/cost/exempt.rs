//! Weights that a share of prunable parameters leaves out.

use std::collections::BTreeMap;

use crate::{Graph, NodeId, Op, ValueId};

/// Why a weight is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Exempt {
    /// A table that a `Gather` picks rows of: its rows are a vocabulary.
    Embedding,
    /// Weight or bias of the last product before an output of the model: its units are the classes.
    Classifier,
}

/// Embeddings and final classifiers of the main graph, by the structure of the graph alone.
///
/// An embedding is a matrix of floats that a `Gather` indexes on axis 0. A final classifier is the first
/// convolution or matrix product with a constant weight that is met going back from an output of the model
/// as long as there is one way back: through nodes with one operand that is not constant. Left out are its
/// weight, all of it, and the constants between it and the output.
#[must_use]
pub fn exempt(graph: &Graph) -> BTreeMap<ValueId, Exempt> {
    let mut found = BTreeMap::new();
    for (_, node) in graph.nodes() {
        if let (Op::Gather { axis: 0 }, Some(table)) = (&node.op, node.input(0))
            && graph.constant(table).is_some_and(|t| t.dtype.is_float() && t.dims.len() == 2)
        {
            found.insert(table, Exempt::Embedding);
        }
    }
    for &output in graph.outputs() {
        let constants = classifier(graph, output);
        found.extend(constants.into_iter().map(|value| (value, Exempt::Classifier)));
    }
    found
}

/// The constants from the last product on; none where ways join before one is met.
fn classifier(graph: &Graph, output: ValueId) -> Vec<ValueId> {
    let mut constants = Vec::new();
    let mut next = graph.producer(output);
    while let Some(id) = next {
        let node = graph.node(id);
        let (own, computed): (Vec<ValueId>, Vec<ValueId>) =
            node.inputs.iter().flatten().partition(|&&input| graph.constant(input).is_some());
        constants.extend(&own);
        if is_product(&node.op) && !own.is_empty() {
            return constants;
        }
        next = producer_of_one(graph, &computed);
    }
    Vec::new()
}

fn producer_of_one(graph: &Graph, computed: &[ValueId]) -> Option<NodeId> {
    match computed {
        [one] => graph.producer(*one),
        _ => None,
    }
}

fn is_product(op: &Op) -> bool {
    matches!(op, Op::Conv(_) | Op::ConvTranspose(_) | Op::Gemm(_) | Op::MatMul)
}
