//! Visits every tensor of a decoded model, wherever it stands.

use crate::proto::{
    AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, SparseTensorProto,
    TensorProto,
};

/// Calls `visit` on every tensor: initializers, attributes, bodies, functions, sparse ones, training graphs.
/// The depth of recursion is bounded by that of decoding.
pub(crate) fn tensors<E>(
    model: &mut ModelProto,
    visit: &mut dyn FnMut(&mut TensorProto) -> Result<(), E>,
) -> Result<(), E> {
    if let Some(main) = &mut model.graph {
        graph(main, visit)?;
    }
    for info in &mut model.training_info {
        for part in info.initialization.iter_mut().chain(&mut info.algorithm) {
            graph(part, visit)?;
        }
    }
    for function in &mut model.functions {
        self::function(function, visit)?;
    }
    Ok(())
}

fn function<E>(
    function: &mut FunctionProto,
    visit: &mut dyn FnMut(&mut TensorProto) -> Result<(), E>,
) -> Result<(), E> {
    for default in &mut function.attribute_proto {
        attribute(default, visit)?;
    }
    nodes(&mut function.node, visit)
}

fn graph<E>(
    graph: &mut GraphProto,
    visit: &mut dyn FnMut(&mut TensorProto) -> Result<(), E>,
) -> Result<(), E> {
    for initializer in &mut graph.initializer {
        visit(initializer)?;
    }
    for initializer in &mut graph.sparse_initializer {
        sparse(initializer, visit)?;
    }
    nodes(&mut graph.node, visit)
}

fn nodes<E>(
    nodes: &mut [NodeProto],
    visit: &mut dyn FnMut(&mut TensorProto) -> Result<(), E>,
) -> Result<(), E> {
    for node in nodes {
        for held in &mut node.attribute {
            attribute(held, visit)?;
        }
    }
    Ok(())
}

fn attribute<E>(
    attribute: &mut AttributeProto,
    visit: &mut dyn FnMut(&mut TensorProto) -> Result<(), E>,
) -> Result<(), E> {
    for tensor in attribute.t.iter_mut().chain(&mut attribute.tensors) {
        visit(tensor)?;
    }
    for tensor in attribute.sparse_tensor.iter_mut().chain(&mut attribute.sparse_tensors) {
        sparse(tensor, visit)?;
    }
    for body in attribute.g.iter_mut().chain(&mut attribute.graphs) {
        graph(body, visit)?;
    }
    Ok(())
}

fn sparse<E>(
    tensor: &mut SparseTensorProto,
    visit: &mut dyn FnMut(&mut TensorProto) -> Result<(), E>,
) -> Result<(), E> {
    for part in tensor.values.iter_mut().chain(&mut tensor.indices) {
        visit(part)?;
    }
    Ok(())
}
