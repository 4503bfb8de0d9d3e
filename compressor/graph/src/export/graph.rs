//! Graphs, nodes and values back into protobuf.

use crate::{
    Attribute, AttributeValue, DType, Dim, Graph, Node, Origin, Tensor, TensorType, Value, ValueId,
    import, proto,
};
use prost::Message;
use proto::{attribute_proto::AttributeType, tensor_shape_proto, type_proto};

pub(super) fn export(graph: &Graph) -> proto::GraphProto {
    let mut out = (*graph.rest).clone();
    out.name = Some(graph.name.clone());
    out.node = graph.nodes().map(|(_, node)| self::node(graph, node)).collect();
    out.initializer = graph.values().filter_map(|(_, value)| initializer(value)).collect();
    out.input = graph.listed.iter().map(|&id| input(graph.value(id))).collect();
    out.output = graph.outputs.iter().map(|&id| output(graph.value(id))).collect();
    out.value_info.retain(|info| still_true(graph, info));
    let inner = graph.values().filter_map(|(id, _)| inner(graph, id));
    out.value_info.splice(0..0, inner);
    out
}

/// What is written about a value: as an input, as an output, and in `value_info`.
pub(crate) fn described(graph: &Graph, id: ValueId) -> [Option<proto::ValueInfoProto>; 3] {
    let value = graph.value(id);
    let as_input = graph.listed.contains(&id).then(|| input(value));
    let as_output = graph.outputs.contains(&id).then(|| output(value));
    [as_input, as_output, inner(graph, id)]
}

fn node(graph: &Graph, node: &Node) -> proto::NodeProto {
    let mut out = node.rest.as_deref().cloned().unwrap_or_default();
    let said = std::mem::take(&mut out.attribute);
    let name =
        |id: &Option<ValueId>| id.map_or_else(String::new, |id| graph.value(id).name.clone());
    out.input = node.inputs.iter().map(name).collect();
    out.output = node.outputs.iter().map(name).collect();
    out.name = (!node.name.is_empty()).then(|| node.name.clone());
    out.op_type = Some(node.op_type.clone());
    out.domain = (!node.domain.is_empty()).then(|| node.domain.clone());
    out.attribute = node.attributes.iter().map(|held| attribute(held, &said)).collect();
    out
}

/// `said` holds the documentation of some attributes, by name.
fn attribute(attribute: &Attribute, said: &[proto::AttributeProto]) -> proto::AttributeProto {
    use AttributeType as Kind;
    if let AttributeValue::Raw(raw) = &attribute.value {
        let decoded = proto::AttributeProto::decode(raw.clone());
        return decoded.expect("raw attributes are encoded by import");
    }
    let said = said.iter().find(|said| said.name() == attribute.name);
    let mut out = proto::AttributeProto {
        name: Some(attribute.name.clone()),
        doc_string: said.and_then(|said| said.doc_string.clone()),
        ..Default::default()
    };
    let kind = match &attribute.value {
        AttributeValue::Float(v) => (out.f = Some(*v), Kind::Float).1,
        AttributeValue::Int(v) => (out.i = Some(*v), Kind::Int).1,
        AttributeValue::String(v) => (out.s = Some(v.clone()), Kind::String).1,
        AttributeValue::Floats(v) => (out.floats.clone_from(v), Kind::Floats).1,
        AttributeValue::Ints(v) => (out.ints.clone_from(v), Kind::Ints).1,
        AttributeValue::Strings(v) => (out.strings.clone_from(v), Kind::Strings).1,
        AttributeValue::Tensor(v) => {
            let about = said.and_then(|said| said.t.clone()).unwrap_or_default();
            (out.t = Some(tensor(v, about)), Kind::Tensor).1
        }
        AttributeValue::Graph(v) => (out.g = Some(export(v)), Kind::Graph).1,
        AttributeValue::Graphs(v) => (out.graphs = v.iter().map(export).collect(), Kind::Graphs).1,
        AttributeValue::Raw(_) => Kind::Undefined,
    };
    out.r#type = Some(kind as i32);
    out
}

fn tensor(tensor: &Tensor, about: proto::TensorProto) -> proto::TensorProto {
    let size = |&dim: &usize| i64::try_from(dim).expect("dimensions come from i64 or from memory");
    let strings = tensor.dtype == DType::String;
    proto::TensorProto {
        dims: tensor.dims.iter().map(size).collect(),
        data_type: Some(tensor.dtype.to_onnx()),
        raw_data: (!strings && tensor.dtype.to_onnx() != 0).then(|| tensor.data.clone()),
        string_data: tensor.strings.clone(),
        ..about
    }
}

fn initializer(value: &Value) -> Option<proto::TensorProto> {
    let data = value.data.as_ref().filter(|_| value.origin == Origin::Initializer)?;
    let about = value.declared.as_ref().and_then(|declared| declared.tensor.clone());
    Some(proto::TensorProto {
        name: Some(value.name.clone()),
        ..tensor(data, about.unwrap_or_default())
    })
}

fn input(value: &Value) -> proto::ValueInfoProto {
    let stored = value.declared.as_ref().and_then(|declared| declared.input.as_ref());
    info(value, stored)
}

fn output(value: &Value) -> proto::ValueInfoProto {
    let stored = value.declared.as_ref().and_then(|declared| declared.output.as_ref());
    info(value, stored)
}

/// `value_info` is written where the file had it, unless an edit made the type unknown, and where an edit
/// declared the type of what a node computes.
fn inner(graph: &Graph, id: ValueId) -> Option<proto::ValueInfoProto> {
    let value = graph.value(id);
    let declared = value.declared.as_ref();
    match declared.and_then(|declared| declared.inner.as_ref()) {
        Some(stored) => {
            let forgotten =
                value.ty.is_none() && declared.is_some_and(|declared| declared.ty.is_some());
            (!forgotten).then(|| info(value, Some(stored)))
        }
        None => {
            let computed = matches!(value.origin, Origin::Node(..)) && !graph.outputs.contains(&id);
            (computed && value.ty.is_some()).then(|| info(value, None))
        }
    }
}

/// The file's words where the type is still the imported one; otherwise the type of today.
fn info(value: &Value, stored: Option<&proto::ValueInfoProto>) -> proto::ValueInfoProto {
    let mut info = stored.cloned().unwrap_or_default();
    info.name = Some(value.name.clone());
    let edited = value.declared.as_ref().is_none_or(|declared| declared.ty != value.ty);
    if edited || stored.is_none() {
        info.r#type = value.ty.as_ref().map(type_proto);
    }
    info
}

fn type_proto(ty: &TensorType) -> proto::TypeProto {
    let shape = ty
        .dims
        .as_ref()
        .map(|dims| proto::TensorShapeProto { dim: dims.iter().map(dim).collect() });
    let tensor = type_proto::Tensor { elem_type: Some(ty.dtype.to_onnx()), shape };
    proto::TypeProto { denotation: None, value: Some(type_proto::Value::TensorType(tensor)) }
}

fn dim(dim: &Dim) -> tensor_shape_proto::Dimension {
    use tensor_shape_proto::dimension::Value;
    let value = match dim {
        Dim::Fixed(size) => Some(Value::DimValue(i64::try_from(*size).unwrap_or(i64::MAX))),
        Dim::Symbol(name) => Some(Value::DimParam(name.clone())),
        Dim::Unknown => None,
    };
    tensor_shape_proto::Dimension { denotation: None, value }
}

/// A second description of a value goes once an edit has changed the value's type; descriptions of names that
/// this graph never had stay.
fn still_true(graph: &Graph, info: &proto::ValueInfoProto) -> bool {
    let Some(id) = graph.value_by_name(info.name()) else { return true };
    let value = graph.value(id);
    let unchanged = value.declared.as_ref().is_some_and(|declared| declared.ty == value.ty);
    unchanged || import::tensor_type(info) == value.ty
}
