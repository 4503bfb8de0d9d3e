//! Edits of nodes.

use crate::{
    Attribute, AttributeValue, Graph, Node, NodeId, Origin, Value, ValueId, edit::Applied,
    import::node_label, order,
};

type Outcome = Result<Applied, String>;

pub(super) fn add(graph: &mut Graph, mut node: Node, outputs: &[String]) -> Outcome {
    check_new(graph, &node)?;
    if outputs.is_empty() {
        return Err("a node without outputs computes nothing".to_owned());
    }
    let id = NodeId(u32::try_from(graph.nodes.len()).map_err(|_| "too many nodes")?);
    let mut values = Vec::with_capacity(outputs.len());
    for (slot, wish) in outputs.iter().enumerate() {
        let name = graph.free_name(wish);
        values.push(graph.push_value(Value::new(name, Origin::Node(id, slot), None)));
    }
    node.outputs = values.iter().copied().map(Some).collect();
    graph.nodes.push(Some(node));
    // It reads what exists already, so it can stand last until something reads it.
    graph.order.push(id);
    graph.decode_again(id);
    Ok(Applied { node: Some(id), values })
}

pub(super) fn replace(graph: &mut Graph, id: NodeId, mut with: Node) -> Outcome {
    let old = graph.check_node(id)?;
    check_new(graph, &with)?;
    if with.name.is_empty() {
        with.name.clone_from(&old.name);
    }
    with.outputs.clone_from(&old.outputs);
    let old = graph.nodes[id.0 as usize].replace(with);
    sort_or(graph, id, |graph| graph.nodes[id.0 as usize] = old)?;
    graph.decode_again(id);
    decode_outputs(graph, id);
    Ok(Applied::default())
}

fn check_new(graph: &Graph, node: &Node) -> Result<(), String> {
    for value in node.inputs.iter().flatten() {
        graph.check_value(*value)?;
    }
    if node.has_subgraphs() {
        return Err("nodes with bodies cannot be added".to_owned());
    }
    Ok(())
}

pub(super) fn remove(graph: &mut Graph, id: NodeId) -> Outcome {
    let node = graph.check_node(id)?;
    let outputs: Vec<ValueId> = node.outputs.iter().flatten().copied().collect();
    for &output in &outputs {
        if !graph.is_unused(output) {
            let name = &graph.value(output).name;
            return Err(format!("`{name}`, which {} writes, is still read", node_label(node)));
        }
    }
    for output in outputs {
        graph.drop_value(output);
    }
    graph.nodes[id.0 as usize] = None;
    graph.order.retain(|&other| other != id);
    Ok(Applied::default())
}

pub(super) fn replace_input(
    graph: &mut Graph,
    id: NodeId,
    slot: usize,
    value: Option<ValueId>,
) -> Outcome {
    let inputs = &graph.check_node(id)?.inputs;
    if slot > inputs.len() {
        return Err(format!("the node has {} inputs, none at {slot}", inputs.len()));
    }
    if let Some(value) = value {
        graph.check_value(value)?;
    }
    let old = inputs.clone();
    let mut new = old.clone();
    new.truncate(slot);
    new.push(value);
    new.extend(old.iter().skip(slot + 1));
    set_inputs(graph, id, new);
    sort_or(graph, id, |graph| set_inputs(graph, id, old))?;
    graph.decode_again(id);
    decode_outputs(graph, id);
    Ok(Applied::default())
}

fn set_inputs(graph: &mut Graph, id: NodeId, inputs: Vec<Option<ValueId>>) {
    if let Some(node) = graph.node_mut(id) {
        node.inputs = inputs;
    }
}

/// Restores topological order, or undoes the change that made it impossible.
fn sort_or(graph: &mut Graph, id: NodeId, undo: impl FnOnce(&mut Graph)) -> Result<(), String> {
    if order::sort(graph).is_ok() {
        return Ok(());
    }
    undo(graph);
    Err(format!("{} would depend on itself", node_label(graph.node(id))))
}

pub(super) fn set_attribute(
    graph: &mut Graph,
    id: NodeId,
    name: &str,
    value: Option<AttributeValue>,
) -> Outcome {
    let node = graph.check_node(id)?;
    let holds_graph = |value: &AttributeValue| {
        matches!(value, AttributeValue::Graph(_) | AttributeValue::Graphs(_))
    };
    if node.attr(name).into_iter().chain(&value).any(holds_graph) {
        return Err(format!("attribute `{name}` holds a graph"));
    }
    if matches!(value, Some(AttributeValue::Raw(_))) {
        return Err("raw attributes come from files only".to_owned());
    }
    let Some(node) = graph.node_mut(id) else { return Ok(Applied::default()) };
    let present = node.attributes.iter().position(|attribute| attribute.name == name);
    match (present, value) {
        (Some(index), Some(value)) => node.attributes[index].value = value,
        (Some(index), None) => drop(node.attributes.remove(index)),
        (None, Some(value)) => node.attributes.push(Attribute { name: name.to_owned(), value }),
        (None, None) => return Err(format!("there is no attribute `{name}`")),
    }
    graph.decode_again(id);
    decode_outputs(graph, id);
    Ok(Applied::default())
}

/// A changed node may have been, or may have become, a constant that others look at.
fn decode_outputs(graph: &mut Graph, id: NodeId) {
    if let Some(output) = graph.node(id).output(0) {
        graph.decode_readers(output);
    }
}
