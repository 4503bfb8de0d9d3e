//! Edits of values.

use std::sync::Arc;

use crate::{
    Attribute, AttributeValue, Graph, Op, Origin, Tensor, TensorType, Value, ValueId, edit::Applied,
};

type Outcome = Result<Applied, String>;

pub(super) fn set_constant(graph: &mut Graph, id: ValueId, tensor: Tensor) -> Outcome {
    tensor.check().map_err(|error| error.to_string())?;
    let value = graph.check_value(id)?;
    let ty = TensorType::of(&tensor);
    let tensor = Arc::new(tensor);
    match value.origin {
        Origin::Initializer if value.data.is_some() => {
            if let Some(value) = graph.value_mut(id) {
                value.data = Some(tensor);
                value.ty = Some(ty);
            }
        }
        Origin::Node(node, 0) if graph.node(node).op == Op::Constant => {
            if let Some(node) = graph.node_mut(node) {
                let value = AttributeValue::Tensor(tensor);
                node.attributes = vec![Attribute { name: "value".to_owned(), value }];
            }
            if let Some(declared) = graph.value_mut(id).and_then(|value| value.ty.as_mut()) {
                *declared = ty;
            }
        }
        _ => return Err(format!("`{}` is no dense constant", value.name)),
    }
    graph.decode_readers(id);
    Ok(Applied::default())
}

pub(super) fn add_constant(graph: &mut Graph, name: &str, tensor: Tensor) -> Outcome {
    tensor.check().map_err(|error| error.to_string())?;
    let name = graph.free_name(name);
    let mut value = Value::new(name, Origin::Initializer, Some(TensorType::of(&tensor)));
    value.data = Some(Arc::new(tensor));
    Ok(Applied { node: None, values: vec![graph.push_value(value)] })
}

pub(super) fn remove_constant(graph: &mut Graph, id: ValueId) -> Outcome {
    let value = graph.check_value(id)?;
    if value.origin != Origin::Initializer || value.data.is_none() {
        return Err(format!("`{}` is no dense initializer", value.name));
    }
    if !graph.is_unused(id) {
        return Err(format!("`{}` is still read", value.name));
    }
    graph.listed.retain(|&listed| listed != id);
    graph.drop_value(id);
    Ok(Applied::default())
}

pub(super) fn remove_capture(graph: &mut Graph, id: ValueId) -> Outcome {
    let value = graph.check_value(id)?;
    if value.origin != Origin::Outer {
        return Err(format!("`{}` is not captured", value.name));
    }
    if !graph.is_unused(id) {
        return Err(format!("`{}` is still read", value.name));
    }
    graph.drop_value(id);
    Ok(Applied::default())
}

pub(super) fn add_output(graph: &mut Graph, id: ValueId) -> Outcome {
    let name = &graph.check_value(id)?.name;
    if graph.outputs.contains(&id) {
        return Err(format!("`{name}` is an output already"));
    }
    graph.outputs.push(id);
    Ok(Applied::default())
}

pub(super) fn set_outputs(graph: &mut Graph, values: Vec<ValueId>) -> Outcome {
    if values.is_empty() {
        return Err("a graph needs an output".to_owned());
    }
    for (index, &id) in values.iter().enumerate() {
        let name = &graph.check_value(id)?.name;
        if values[..index].contains(&id) {
            return Err(format!("`{name}` cannot be an output twice"));
        }
    }
    graph.outputs = values;
    Ok(Applied::default())
}

pub(super) fn rename(graph: &mut Graph, id: ValueId, name: String) -> Outcome {
    let value = graph.check_value(id)?;
    if value.origin == Origin::Outer {
        return Err(format!("`{}` is named by the graph around", value.name));
    }
    if name.is_empty() || graph.free_name(&name) != name {
        return Err(format!("the name `{name}` is taken"));
    }
    if value.data.is_none() && value.origin == Origin::Initializer {
        return Err(format!("`{}` is a sparse initializer", value.name));
    }
    let old = value.name.clone();
    rename_within(graph, id, &old, &name);
    Ok(Applied::default())
}

/// Renames a value in its graph and in the bodies that capture it; the new name must be free in all of them.
pub(super) fn rename_within(graph: &mut Graph, id: ValueId, old: &str, new: &str) {
    graph.names.remove(old);
    graph.names.insert(new.to_owned(), id);
    for annotation in &mut graph.rest.quantization_annotation {
        if annotation.tensor_name() == old {
            annotation.tensor_name = Some(new.to_owned());
        }
    }
    if let Some(value) = graph.value_mut(id) {
        new.clone_into(&mut value.name);
    }
    for node in graph.nodes.iter_mut().flatten() {
        for attribute in &mut node.attributes {
            let bodies = match &mut attribute.value {
                AttributeValue::Graph(body) => std::slice::from_mut(&mut **body),
                AttributeValue::Graphs(bodies) => bodies.as_mut_slice(),
                _ => continue,
            };
            for body in bodies {
                let captured =
                    body.value_by_name(old).filter(|&id| body.value(id).origin == Origin::Outer);
                if let Some(captured) = captured {
                    rename_within(body, captured, old, new);
                }
            }
        }
    }
}

pub(super) fn set_type(graph: &mut Graph, id: ValueId, ty: Option<TensorType>) -> Outcome {
    let value = graph.check_value(id)?;
    if value.origin == Origin::Initializer {
        return Err(format!("the type of `{}` is that of its data", value.name));
    }
    if let Some(value) = graph.value_mut(id) {
        value.ty = ty;
    }
    Ok(Applied::default())
}

pub(super) fn forget_types(graph: &mut Graph) -> Applied {
    let outputs = graph.outputs.clone();
    let ids = (0u32..).map(ValueId).zip(&mut graph.values);
    for (id, value) in ids.filter_map(|(id, value)| Some((id, value.as_mut()?))) {
        if matches!(value.origin, Origin::Node(..)) && !outputs.contains(&id) {
            value.ty = None;
        }
    }
    Applied::default()
}

impl Graph {
    /// Removes a value that nothing refers to, and what the file said of it.
    pub(crate) fn drop_value(&mut self, id: ValueId) {
        if let Some(value) = self.values[id.0 as usize].take() {
            self.names.remove(&value.name);
            self.rest.value_info.retain(|info| info.name() != value.name);
            self.rest
                .quantization_annotation
                .retain(|annotation| annotation.tensor_name() != value.name);
        }
    }
}
