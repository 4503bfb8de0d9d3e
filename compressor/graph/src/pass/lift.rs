//! Gives every weight a home of its own.

use std::collections::HashMap;

use super::{Editor, Halt, Pass};
use crate::{Edit, Graph, NodeId, Op, Tensor, UnaryOp, ValueId};

/// Turns `Constant` nodes, and `Identity` nodes of constants, into initializers. Exporters share equal weights
/// through `Identity`; one that is pruned or trained must not change the other. Constants that bodies capture,
/// and those that are graph outputs, stay nodes, because their names must.
///
/// Nodes that are no longer read are left to [`DeadCode`](super::DeadCode).
#[derive(Debug, Clone, Copy, Default)]
pub struct LiftConstants;

impl Pass for LiftConstants {
    fn name(&self) -> &'static str {
        "lift-constants"
    }

    fn run(&self, editor: &mut Editor<'_>) -> Result<(), Halt> {
        for Reads { value, readers } in computed_constants(editor.graph()) {
            let graph = editor.graph();
            let Some(tensor) = graph.constant(value) else { continue };
            let (name, tensor) = (graph.value(value).name.clone(), Tensor::clone(&tensor));
            let added = editor.apply(Edit::AddConstant { name, tensor }, "a weight of its own")?;
            for (node, slot) in readers {
                let edit = Edit::ReplaceInput { node, slot, value: added.value() };
                editor.apply(edit, "reads the weight itself")?;
            }
        }
        Ok(())
    }
}

/// A constant that a node provides, with the inputs that read it.
struct Reads {
    value: ValueId,
    readers: Vec<(NodeId, usize)>,
}

fn computed_constants(graph: &Graph) -> Vec<Reads> {
    let mut readers: HashMap<ValueId, Vec<(NodeId, usize)>> = HashMap::new();
    let mut captured: Vec<ValueId> = graph.outputs().to_vec();
    for (id, node) in graph.nodes() {
        for (slot, input) in node.inputs.iter().enumerate() {
            if let Some(input) = input {
                readers.entry(*input).or_default().push((id, slot));
            }
        }
        if node.has_subgraphs() {
            captured.extend(graph.captures(id));
        }
    }
    let provides = |op: &Op| matches!(op, Op::Constant | Op::Unary(UnaryOp::Identity));
    let nodes = graph.nodes().filter(|(_, node)| provides(&node.op));
    let values =
        nodes.filter_map(|(_, node)| node.output(0)).filter(|value| !captured.contains(value));
    let mut found: Vec<Reads> = values
        .filter_map(|value| Some(Reads { value, readers: readers.remove(&value)? }))
        .collect();
    // An alias read only by aliases needs no weight of its own.
    found.retain_mut(|reads| {
        reads
            .readers
            .retain(|(node, _)| !matches!(graph.node(*node).op, Op::Unary(UnaryOp::Identity)));
        !reads.readers.is_empty()
    });
    found
}
