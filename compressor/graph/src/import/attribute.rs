//! Attributes: the plain kinds become values, everything else stays as the file had it.

use std::sync::Arc;

use prost::Message;

use super::{ImportError, tensor};
use crate::{Attribute, AttributeValue, Graph, proto};
use proto::{AttributeProto, attribute_proto::AttributeType};

/// Imports the body of a control-flow node; its second argument is the attribute's name.
pub(super) type Body<'a> = dyn FnMut(proto::GraphProto, &str) -> Result<Graph, ImportError> + 'a;

/// Whether the attribute holds a graph, and so can capture names.
pub(super) fn holds_graph(attribute: &AttributeProto) -> bool {
    attribute.g.is_some() || !attribute.graphs.is_empty()
}

/// Splits an attribute into its value and, where there is any, its documentation.
pub(super) fn import(
    mut proto: AttributeProto,
    place: &str,
    body: &mut Body<'_>,
) -> Result<(Attribute, Option<AttributeProto>), ImportError> {
    let name = proto.name().to_owned();
    let Some(kind) = plain_kind(&proto) else {
        if holds_graph(&proto) {
            return Err(ImportError::Attribute { place: place.to_owned(), name });
        }
        let value = AttributeValue::Raw(proto.encode_to_vec().into());
        return Ok((Attribute { name, value }, None));
    };
    let mut rest = AttributeProto { name: Some(name.clone()), ..Default::default() };
    rest.doc_string = proto.doc_string.take().filter(|doc| !doc.is_empty());
    let value = match kind {
        AttributeType::Float => AttributeValue::Float(proto.f()),
        AttributeType::Int => AttributeValue::Int(proto.i()),
        AttributeType::String => AttributeValue::String(proto.s.take().unwrap_or_default()),
        AttributeType::Floats => AttributeValue::Floats(proto.floats),
        AttributeType::Ints => AttributeValue::Ints(proto.ints),
        AttributeType::Strings => AttributeValue::Strings(proto.strings),
        AttributeType::Graph => {
            AttributeValue::Graph(Box::new(body(proto.g.take().unwrap_or_default(), &name)?))
        }
        AttributeType::Graphs => {
            let graphs = proto.graphs.into_iter().map(|graph| body(graph, &name));
            AttributeValue::Graphs(graphs.collect::<Result<_, _>>()?)
        }
        _ => {
            let place = || format!("{place}, attribute `{name}`");
            let (tensor, about) = tensor::import(proto.t.take().unwrap_or_default(), &place)?;
            rest.t = (about != proto::TensorProto::default()).then_some(about);
            AttributeValue::Tensor(Arc::new(tensor))
        }
    };
    let said_more = rest.doc_string.is_some() || rest.t.is_some();
    Ok((Attribute { name, value }, said_more.then_some(rest)))
}

/// The kind of an attribute that holds one value of a plain kind and nothing else. Files older than the `type`
/// field say it by the field that is set.
fn plain_kind(proto: &AttributeProto) -> Option<AttributeType> {
    use AttributeType as Kind;
    if !proto.ref_attr_name().is_empty() {
        return None;
    }
    let set = [
        (Kind::Float, proto.f.is_some()),
        (Kind::Int, proto.i.is_some()),
        (Kind::String, proto.s.is_some()),
        (Kind::Tensor, proto.t.is_some()),
        (Kind::Graph, proto.g.is_some()),
        (Kind::Floats, !proto.floats.is_empty()),
        (Kind::Ints, !proto.ints.is_empty()),
        (Kind::Strings, !proto.strings.is_empty()),
        (Kind::Graphs, !proto.graphs.is_empty()),
        (Kind::Tensors, !proto.tensors.is_empty()),
        (Kind::TypeProto, proto.tp.is_some()),
        (Kind::TypeProtos, !proto.type_protos.is_empty()),
        (Kind::SparseTensor, proto.sparse_tensor.is_some()),
        (Kind::SparseTensors, !proto.sparse_tensors.is_empty()),
    ];
    let set: Vec<Kind> = set.into_iter().filter(|(_, set)| *set).map(|(kind, _)| kind).collect();
    let declared = Kind::try_from(proto.r#type.unwrap_or(0)).ok()?;
    let kind = match set.as_slice() {
        // A default value need not be written: 0, an empty string, an empty list.
        [] => declared,
        [kind] if declared == Kind::Undefined || declared == *kind => return plain(*kind),
        _ => return None,
    };
    plain(kind).filter(|kind| !matches!(kind, Kind::Tensor | Kind::Graph))
}

fn plain(kind: AttributeType) -> Option<AttributeType> {
    use AttributeType as Kind;
    let plain = [
        Kind::Float,
        Kind::Int,
        Kind::String,
        Kind::Tensor,
        Kind::Graph,
        Kind::Floats,
        Kind::Ints,
        Kind::Strings,
        Kind::Graphs,
    ];
    plain.contains(&kind).then_some(kind)
}
