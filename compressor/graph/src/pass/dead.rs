//! Removes what nothing reads.

use std::collections::HashSet;

use super::{Editor, Halt, Pass};
use crate::{Edit, Graph, NodeId, Op, Origin, ValueId};

/// Removes nodes, initializers and captures that no output depends on. Opaque nodes and control flow stay: they might do
/// something we do not know of. Initializers that are listed as inputs stay: a caller may feed them.
#[derive(Debug, Clone, Copy, Default)]
pub struct DeadCode;

impl Pass for DeadCode {
    fn name(&self) -> &'static str {
        "dead-code"
    }

    fn run(&self, editor: &mut Editor<'_>) -> Result<(), Halt> {
        // Readers go before what they read.
        for node in dead_nodes(editor.graph()) {
            editor.apply(Edit::RemoveNode { node }, "nothing reads its outputs")?;
        }
        for value in dead_constants(editor.graph()) {
            editor.apply(Edit::RemoveConstant { value }, "nothing reads it")?;
        }
        for value in dead_captures(editor.graph()) {
            editor.apply(Edit::RemoveCapture { value }, "nothing reads it")?;
        }
        Ok(())
    }
}

fn dead_nodes(graph: &Graph) -> Vec<NodeId> {
    let mut needed: HashSet<ValueId> = graph.outputs().iter().copied().collect();
    let mut dead = Vec::new();
    for (id, node) in graph.nodes().rev() {
        let stays = matches!(node.op, Op::Opaque | Op::If | Op::Loop | Op::Scan);
        if stays || node.outputs.iter().flatten().any(|output| needed.contains(output)) {
            needed.extend(node.inputs.iter().flatten());
            if node.has_subgraphs() {
                needed.extend(graph.captures(id));
            }
        } else {
            dead.push(id);
        }
    }
    dead
}

fn dead_constants(graph: &Graph) -> Vec<ValueId> {
    let read = read(graph);
    let constants = graph
        .values()
        .filter(|(_, value)| value.origin == Origin::Initializer && value.data.is_some());
    let unread =
        constants.filter(|(id, _)| !read.contains(id) && !graph.listed_inputs().contains(id));
    unread.map(|(id, _)| id).collect()
}

fn dead_captures(graph: &Graph) -> Vec<ValueId> {
    let read = read(graph);
    let captured = graph.values().filter(|(_, value)| value.origin == Origin::Outer);
    captured.filter(|(id, _)| !read.contains(id)).map(|(id, _)| id).collect()
}

fn read(graph: &Graph) -> HashSet<ValueId> {
    let mut read: HashSet<ValueId> = graph.outputs().iter().copied().collect();
    for (id, node) in graph.nodes() {
        read.extend(node.inputs.iter().flatten());
        if node.has_subgraphs() {
            read.extend(graph.captures(id));
        }
    }
    read
}
