//! Whether two models say the same: the test of losslessness.
//!
//! Compared are the names, types, constants, attributes, order of nodes and everything carried. Not compared
//! are ids, how elements were stored (raw or typed), and the order in which initializers and `value_info`
//! stand.

use std::sync::Arc;

use prost::Message;

use crate::{
    Attribute, AttributeValue, Graph, Model, Node, Tensor, Value, ValueId, export::described,
    import::node_label,
};

/// The first difference found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {what}")]
pub struct Difference {
    /// Graph, and node or value.
    pub place: String,
    /// What differs.
    pub what: String,
}

type Outcome = Result<(), Difference>;

/// Compares two models for meaning and for everything the files say.
///
/// # Errors
/// The first difference.
pub fn same(a: &Model, b: &Model) -> Outcome {
    let place = "model";
    equal(place, "IR version", a.ir_version, b.ir_version)?;
    equal(place, "operator sets", &a.opsets, &b.opsets)?;
    encoded(place, "metadata, functions or training info", &*a.rest, &*b.rest)?;
    graphs("graph", &a.graph, &b.graph)
}

fn graphs(place: &str, a: &Graph, b: &Graph) -> Outcome {
    equal(place, "name", &a.name, &b.name)?;
    equal(place, "inputs", names(a, &a.inputs), names(b, &b.inputs))?;
    equal(place, "listed inputs", names(a, &a.listed), names(b, &b.listed))?;
    equal(place, "outputs", names(a, &a.outputs), names(b, &b.outputs))?;
    encoded(place, "what the graph carries", &*a.rest, &*b.rest)?;
    equal(place, "number of nodes", a.order.len(), b.order.len())?;
    equal(place, "number of values", a.values().count(), b.values().count())?;
    for (id, value) in a.values() {
        let place = format!("{place}, value `{}`", value.name);
        let Some(other) = b.value_by_name(&value.name) else {
            return differs(&place, "it is missing on the right");
        };
        equal(&place, "kind", origin(a, id), origin(b, other))?;
        values(&place, (a, id), (b, other))?;
    }
    for ((_, left), (_, right)) in a.nodes().zip(b.nodes()) {
        nodes(&format!("{place}, {}", node_label(left)), (a, left), (b, right))?;
    }
    Ok(())
}

/// The kind of a value, with the output slot but without the node, whose names are compared with the node.
fn origin(graph: &Graph, id: ValueId) -> String {
    match graph.value(id).origin {
        crate::Origin::Node(_, slot) => format!("output {slot}"),
        other => format!("{other:?}"),
    }
}

fn values(
    place: &str,
    (a_graph, a): (&Graph, ValueId),
    (b_graph, b): (&Graph, ValueId),
) -> Outcome {
    let (left, right) = (a_graph.value(a), b_graph.value(b));
    equal(place, "type", &left.ty, &right.ty)?;
    if left.data != right.data {
        let what = |data: &Option<Arc<Tensor>>| {
            data.as_ref().map_or_else(
                || "none".to_owned(),
                |t| format!("{:?} {:?} of {} bytes", t.dtype, t.dims, t.data.len()),
            )
        };
        let (left, right) = (what(&left.data), what(&right.data));
        return differs(place, &format!("the constants differ: {left} and {right}"));
    }
    let words = described(a_graph, a).into_iter().zip(described(b_graph, b));
    for (what, (a, b)) in
        ["declaration as input", "declaration as output", "value_info"].iter().zip(words)
    {
        equal(place, what, bytes(a.as_ref()), bytes(b.as_ref()))?;
    }
    let about = |value: &Value| {
        bytes(value.declared.as_ref().and_then(|declared| declared.tensor.as_ref()))
    };
    equal(place, "documentation of the tensor", about(left), about(right))
}

fn nodes(place: &str, (a_graph, a): (&Graph, &Node), (b_graph, b): (&Graph, &Node)) -> Outcome {
    equal(place, "name", &a.name, &b.name)?;
    equal(place, "domain", &a.domain, &b.domain)?;
    equal(place, "type", &a.op_type, &b.op_type)?;
    let names_of = |graph: &Graph, ids: &[Option<ValueId>]| -> Vec<String> {
        ids.iter()
            .map(|id| id.map_or_else(String::new, |id| graph.value(id).name.clone()))
            .collect()
    };
    equal(place, "inputs", names_of(a_graph, &a.inputs), names_of(b_graph, &b.inputs))?;
    equal(place, "outputs", names_of(a_graph, &a.outputs), names_of(b_graph, &b.outputs))?;
    equal(place, "number of attributes", a.attributes.len(), b.attributes.len())?;
    if format!("{:?}", a.op) != format!("{:?}", b.op) {
        return differs(place, "the decoded operators differ");
    }
    let rest = |node: &Node| node.rest.as_ref().map(|rest| rest.encode_to_vec());
    equal(place, "what the node carries", rest(a), rest(b))?;
    for (left, right) in a.attributes.iter().zip(&b.attributes) {
        attributes(&format!("{place}, `{}`", left.name), left, right)?;
    }
    Ok(())
}

fn attributes(place: &str, a: &Attribute, b: &Attribute) -> Outcome {
    use AttributeValue as V;
    equal(place, "name", &a.name, &b.name)?;
    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    let alike = match (&a.value, &b.value) {
        (V::Float(a), V::Float(b)) => a.to_bits() == b.to_bits(),
        (V::Int(a), V::Int(b)) => a == b,
        (V::String(a), V::String(b)) | (V::Raw(a), V::Raw(b)) => a == b,
        (V::Floats(a), V::Floats(b)) => bits(a) == bits(b),
        (V::Ints(a), V::Ints(b)) => a == b,
        (V::Strings(a), V::Strings(b)) => a == b,
        (V::Tensor(a), V::Tensor(b)) => a == b,
        (V::Graph(a), V::Graph(b)) => return graphs(place, a, b),
        (V::Graphs(a), V::Graphs(b)) => {
            equal(place, "number of graphs", a.len(), b.len())?;
            return a.iter().zip(b).try_for_each(|(a, b)| graphs(place, a, b));
        }
        _ => false,
    };
    if alike { Ok(()) } else { differs(place, "the values differ") }
}

fn names(graph: &Graph, ids: &[ValueId]) -> Vec<String> {
    ids.iter().map(|&id| graph.value(id).name.clone()).collect()
}

fn bytes<M: Message>(message: Option<&M>) -> Option<Vec<u8>> {
    message.map(Message::encode_to_vec)
}

/// Compared as encoded, because a NaN differs from itself.
fn encoded<M: Message>(place: &str, what: &str, a: &M, b: &M) -> Outcome {
    if a.encode_to_vec() == b.encode_to_vec() { Ok(()) } else { differs(place, what) }
}

fn equal<T: PartialEq + std::fmt::Debug>(place: &str, what: &str, a: T, b: T) -> Outcome {
    if a == b { Ok(()) } else { differs(place, &format!("{what}: {a:?} and {b:?}")) }
}

fn differs(place: &str, what: &str) -> Outcome {
    Err(Difference { place: place.to_owned(), what: what.to_owned() })
}
