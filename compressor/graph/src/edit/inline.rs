//! A branch of an `If` in the place of the node.

use std::collections::HashMap;

use super::values::rename_within;
use crate::{
    AttributeValue, Graph, Node, NodeId, Op, Origin, Value, ValueId, edit::Applied,
    import::node_label,
};

/// Replaces an `If` by the branch in `attribute`. Outputs of the node keep their ids and names; what the branch
/// defines gets free names, and what it captured is read directly.
pub(super) fn inline(graph: &mut Graph, id: NodeId, attribute: &str) -> Result<Applied, String> {
    check(graph, id, attribute)?;
    let position = graph.order.iter().position(|&other| other == id);
    let (Some(node), Some(position)) = (graph.nodes[id.0 as usize].take(), position) else {
        return Err(format!("there is no node {}", id.0));
    };
    graph.order.remove(position);
    let outputs = node.outputs.clone();
    let branch = node.attributes.into_iter().find(|held| held.name == attribute);
    let Some(AttributeValue::Graph(body)) = branch.map(|held| held.value) else {
        return Err(format!("there is no branch `{attribute}`"));
    };
    let mut body = *body;
    let merged = merge_outputs(graph, &mut body, &outputs);
    free_names(graph, &mut body, &merged);
    let mut moved = Moved { ids: merged, nodes: Vec::new() };
    moved.values(graph, &mut body);
    moved.nodes(graph, &mut body);
    moved.identities(graph, &body, &outputs)?;
    graph.rest.quantization_annotation.append(&mut body.rest.quantization_annotation);
    graph.order.splice(position..position, moved.nodes.iter().copied());
    for &new in &moved.nodes {
        graph.decode_again(new);
    }
    for output in outputs.into_iter().flatten() {
        graph.decode_readers(output);
    }
    Ok(Applied::default())
}

fn check(graph: &Graph, id: NodeId, attribute: &str) -> Result<(), String> {
    let node = graph.check_node(id)?;
    let label = node_label(node);
    if node.op != Op::If {
        return Err(format!("{label} is no `If`"));
    }
    let Some(AttributeValue::Graph(body)) = node.attr(attribute) else {
        return Err(format!("{label} has no branch `{attribute}`"));
    };
    if body.outputs.len() != node.outputs.len() || !body.listed.is_empty() {
        return Err(format!("branch `{attribute}` of {label} does not fit the node"));
    }
    let sparse = |value: &Value| value.origin == Origin::Initializer && value.data.is_none();
    if body.values().any(|(_, value)| sparse(value)) {
        return Err(format!("branch `{attribute}` of {label} holds a sparse initializer"));
    }
    let lost = |value: &Value| graph.value_by_name(&value.name).is_none();
    match body.values().find(|(_, value)| value.origin == Origin::Outer && lost(value)) {
        Some((_, value)) => Err(format!("`{}`, which {label} captures, is gone", value.name)),
        None => Ok(()),
    }
}

/// Lets nodes of the branch write the node's outputs themselves, where the names allow it.
fn merge_outputs(
    graph: &mut Graph,
    body: &mut Graph,
    outputs: &[Option<ValueId>],
) -> HashMap<ValueId, ValueId> {
    let mut merged = HashMap::new();
    for (&inner, output) in body.outputs.clone().iter().zip(outputs) {
        let Some(output) = *output else { continue };
        let (old, new) = (body.value(inner).name.clone(), graph.value(output).name.clone());
        let computed = matches!(body.value(inner).origin, Origin::Node(..));
        if !computed || merged.contains_key(&inner) || (old != new && body.knows(&new)) {
            continue;
        }
        if old != new {
            rename_within(body, inner, &old, &new);
        }
        let ty = body.value(inner).ty.clone();
        let is_output = graph.outputs.contains(&output);
        if let Some(value) = graph.value_mut(output)
            && (!is_output || value.ty.is_none())
        {
            value.ty = ty;
        }
        merged.insert(inner, output);
    }
    merged
}

/// Renames what the branch defines where the graph around uses the name.
fn free_names(graph: &Graph, body: &mut Graph, merged: &HashMap<ValueId, ValueId>) {
    let own: Vec<ValueId> = body
        .values()
        .filter(|(id, value)| value.origin != Origin::Outer && !merged.contains_key(id))
        .map(|(id, _)| id)
        .collect();
    for id in own {
        let old = body.value(id).name.clone();
        if !graph.knows(&old) {
            continue;
        }
        let numbered = (1u32..).map(|number| format!("{old}_{number}"));
        let free = |name: &String| !graph.knows(name) && !body.knows(name);
        if let Some(new) = numbered.into_iter().find(free) {
            rename_within(body, id, &old, &new);
        }
    }
}

/// The content of a branch on its way into the graph around.
struct Moved {
    ids: HashMap<ValueId, ValueId>,
    nodes: Vec<NodeId>,
}

impl Moved {
    fn values(&mut self, graph: &mut Graph, body: &mut Graph) {
        for (index, value) in (0u32..).zip(&mut body.values) {
            let Some(value) = value.take_if(|_| !self.ids.contains_key(&ValueId(index))) else {
                continue;
            };
            let new = match (value.origin, graph.value_by_name(&value.name)) {
                (Origin::Outer, Some(captured)) => captured,
                _ => graph.push_value(value),
            };
            self.ids.insert(ValueId(index), new);
        }
    }

    fn nodes(&mut self, graph: &mut Graph, body: &mut Graph) {
        for old in std::mem::take(&mut body.order) {
            let Some(mut node) = body.nodes[old.0 as usize].take() else { continue };
            let new = NodeId(u32::try_from(graph.nodes.len()).unwrap_or(u32::MAX));
            let renamed = |value: &Option<ValueId>| value.and_then(|id| self.ids.get(&id).copied());
            node.inputs = node.inputs.iter().map(renamed).collect();
            node.outputs = node.outputs.iter().map(renamed).collect();
            for (slot, output) in node.outputs.iter().enumerate() {
                if let Some(value) = output.and_then(|output| graph.value_mut(output)) {
                    value.origin = Origin::Node(new, slot);
                }
            }
            graph.nodes.push(Some(node));
            self.nodes.push(new);
        }
    }

    /// Outputs that no node of the branch writes as such: captured values, constants, and repetitions.
    fn identities(
        &mut self,
        graph: &mut Graph,
        body: &Graph,
        outputs: &[Option<ValueId>],
    ) -> Result<(), String> {
        for (inner, output) in body.outputs.iter().zip(outputs) {
            let (Some(output), Some(&source)) = (*output, self.ids.get(inner)) else { continue };
            if source == output {
                continue;
            }
            let new = NodeId(u32::try_from(graph.nodes.len()).map_err(|_| "too many nodes")?);
            let name = graph.value(output).name.clone();
            let mut node = Node::new("Identity", name, vec![Some(source)], Vec::new());
            node.outputs = vec![Some(output)];
            if let Some(value) = graph.value_mut(output) {
                value.origin = Origin::Node(new, 0);
            }
            graph.nodes.push(Some(node));
            self.nodes.push(new);
        }
        Ok(())
    }
}
