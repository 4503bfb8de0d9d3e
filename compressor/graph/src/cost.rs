//! What a model costs: parameters, and multiply-accumulate operations of its products.

mod exempt;
mod left;

pub use exempt::{Exempt, exempt};
pub use left::{Left, left};

use crate::coupling::Port;
use crate::{Dim, Graph, Model, Node, Op, Origin, Shapes};

/// Elements of every constant, wherever it is: initializers, `Constant` nodes, bodies of control flow.
#[must_use]
pub fn params(model: &Model) -> u64 {
    graph_params(&model.graph)
}

fn graph_params(graph: &Graph) -> u64 {
    let own: u64 = graph
        .values()
        .filter(|(_, value)| match value.origin {
            Origin::Initializer => true,
            Origin::Node(node, _) => graph.node(node).op == Op::Constant,
            Origin::Input | Origin::Outer => false,
        })
        .filter_map(|(id, _)| graph.constant(id))
        .map(|tensor| tensor.dims.iter().map(|&size| size as u64).product::<u64>())
        .sum();
    let bodies =
        graph.nodes().flat_map(|(id, _)| graph.subgraphs(id)).map(|(_, body)| graph_params(body));
    own + bodies.sum::<u64>()
}

/// As [`params`], without the embeddings and final classifiers that [`exempt`] names.
#[must_use]
pub fn inner_params(model: &Model) -> u64 {
    let exempt = exempt(&model.graph);
    let tensors = exempt.keys().filter_map(|&value| model.graph.constant(value));
    let left_out: u64 = tensors.map(|tensor| tensor.len() as u64).sum();
    params(model).saturating_sub(left_out)
}

/// Multiply-accumulate operations of one run, where every free dimension is `free`.
///
/// Counted are convolutions, matrix products and recurrent layers, by their dimensions, constant or not (a product with a one-hot
/// matrix counts in full). A node whose shapes are not known counts nothing. Of an `If` the costlier branch counts,
/// of a loop one round.
#[must_use]
pub fn macs(model: &Model, shapes: &Shapes, free: u64) -> u64 {
    graph_macs(&model.graph, shapes, free)
}

fn graph_macs(graph: &Graph, shapes: &Shapes, free: u64) -> u64 {
    let own: u64 = graph.nodes().filter_map(|(_, node)| node_macs(graph, shapes, node, free)).sum();
    let holders = graph.nodes().filter(|(_, node)| node.has_subgraphs());
    let bodies = holders.map(|(id, node)| {
        let bodies = graph.subgraphs(id).into_iter().enumerate();
        let each = bodies.map(|(index, (_, body))| {
            shapes.body(id, index).map_or(0, |shapes| graph_macs(body, shapes, free))
        });
        if node.op == Op::If { each.max().unwrap_or(0) } else { each.sum() }
    });
    own + bodies.sum::<u64>()
}

/// As [`macs`], of one node; `None` where it has none or its shapes are not known.
#[must_use]
pub fn node_macs(graph: &Graph, shapes: &Shapes, node: &Node, free: u64) -> Option<u64> {
    products(node, &|port| port_dims(graph, shapes, node, port, free))
}

/// Sizes at a port, where every free dimension is `free`.
fn port_dims(
    graph: &Graph,
    shapes: &Shapes,
    node: &Node,
    port: Port,
    free: u64,
) -> Option<Vec<u64>> {
    let value = match port {
        Port::In(slot) => node.input(slot)?,
        Port::Out(slot) => node.output(slot)?,
    };
    match graph.constant(value) {
        Some(tensor) => Some(tensor.dims.iter().map(|&size| size as u64).collect()),
        None => Some(shapes.dims(value)?.iter().map(|dim| size(dim, free)).collect()),
    }
}

/// Multiply-accumulate operations of a node whose sizes `dims` gives.
fn products(node: &Node, dims: &dyn Fn(Port) -> Option<Vec<u64>>) -> Option<u64> {
    let input = |slot: usize| dims(Port::In(slot));
    let out = || dims(Port::Out(0));
    let volume =
        |dims: &[u64]| dims.iter().fold(1_u64, |product, &size| product.saturating_mul(size));
    match &node.op {
        // Every output element sums one filter.
        Op::Conv(_) | Op::ConvInteger(_) | Op::QLinearConv(_) => {
            let weights = if matches!(node.op, Op::QLinearConv(_)) { 3 } else { 1 };
            Some(volume(&out()?).saturating_mul(volume(input(weights)?.get(1..)?)))
        }
        // Every input element is multiplied by one filter.
        Op::ConvTranspose(_) => {
            Some(volume(&input(0)?).saturating_mul(volume(input(1)?.get(1..)?)))
        }
        Op::Gemm(attrs) => {
            let a = input(0)?;
            Some(volume(&out()?).saturating_mul(*a.get(usize::from(!attrs.trans_a))?))
        }
        // A product of all letters, as if nothing were shared between more than two factors.
        Op::Einsum(equation) => {
            let size = |letter: &char| {
                let axes = equation.axes(*letter);
                axes.filter_map(|(slot, axis)| input(slot)?.get(axis).copied()).max()
            };
            let sizes: Vec<u64> = equation.letters().iter().map(size).collect::<Option<_>>()?;
            Some(volume(&sizes))
        }
        Op::MatMul | Op::MatMulInteger | Op::QLinearMatMul => {
            Some(volume(&out()?).saturating_mul(*input(0)?.last()?))
        }
        // Every step multiplies the input and the state by all of their weights.
        Op::Recurrent(_) => {
            let weights = volume(&input(1)?).saturating_add(volume(&input(2)?));
            Some(volume(input(0)?.get(..2)?).saturating_mul(weights))
        }
        _ => None,
    }
}

fn size(dim: &Dim, free: u64) -> u64 {
    match dim {
        Dim::Fixed(size) => *size as u64,
        Dim::Symbol(_) | Dim::Unknown => free,
    }
}
