//! As much of ONNX's protobuf as the tests need: writing small models, reading test tensors.
#![allow(dead_code)]

use runtime::{ElementType, Tensor};

/// The number ONNX gives to an element type.
pub(crate) fn type_number(dtype: ElementType) -> u64 {
    match dtype {
        ElementType::F32 => 1,
        ElementType::U8 => 2,
        ElementType::I8 => 3,
        ElementType::U16 => 4,
        ElementType::I16 => 5,
        ElementType::I32 => 6,
        ElementType::I64 => 7,
        ElementType::String => 8,
        ElementType::Bool => 9,
        ElementType::F16 => 10,
        ElementType::F64 => 11,
        ElementType::U32 => 12,
        ElementType::U64 => 13,
        ElementType::Bf16 => 16,
    }
}

/// An axis of a declared tensor.
#[derive(Clone, Copy)]
pub(crate) enum Dim {
    Fixed(u64),
    Named(&'static str),
}

/// A message being written.
#[derive(Default, Clone)]
pub(crate) struct Message(pub(crate) Vec<u8>);

impl Message {
    pub(crate) fn number(mut self, field: u64, value: u64) -> Self {
        self.varint(field << 3);
        self.varint(value);
        self
    }

    pub(crate) fn bytes(mut self, field: u64, value: &[u8]) -> Self {
        self.varint(field << 3 | 2);
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value);
        self
    }

    pub(crate) fn text(self, field: u64, value: &str) -> Self {
        self.bytes(field, value.as_bytes())
    }

    pub(crate) fn message(self, field: u64, value: &Message) -> Self {
        self.bytes(field, &value.0)
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

/// A declared input or output.
pub(crate) fn value_info(name: &str, dtype: u64, dims: &[Dim]) -> Message {
    let shape = dims.iter().fold(Message::default(), |shape, dim| {
        let dim = match dim {
            Dim::Fixed(n) => Message::default().number(1, *n),
            Dim::Named(name) => Message::default().text(2, name),
        };
        shape.message(1, &dim)
    });
    let tensor = Message::default().number(1, dtype).message(2, &shape);
    let kind = Message::default().message(1, &tensor);
    Message::default().text(1, name).message(2, &kind)
}

/// A declared sequence of tensors.
pub(crate) fn sequence_info(name: &str, dtype: u64) -> Message {
    let tensor = Message::default().number(1, dtype);
    let element = Message::default().message(1, &tensor);
    let sequence = Message::default().message(1, &element);
    let kind = Message::default().message(4, &sequence);
    Message::default().text(1, name).message(2, &kind)
}

/// A node of the default domain without attributes.
pub(crate) fn node(op: &str, inputs: &[&str], outputs: &[&str]) -> Message {
    let node = inputs.iter().fold(Message::default(), |n, i| n.text(1, i));
    let node = outputs.iter().fold(node, |n, o| n.text(2, o));
    node.text(3, op).text(4, op)
}

/// A model of opset 15.
pub(crate) fn model(
    nodes: &[Message],
    initializers: &[Message],
    inputs: &[Message],
    outputs: &[Message],
) -> Vec<u8> {
    let graph = nodes.iter().fold(Message::default(), |g, n| g.message(1, n));
    let graph = graph.text(2, "test");
    let graph = initializers.iter().fold(graph, |g, t| g.message(5, t));
    let graph = inputs.iter().fold(graph, |g, i| g.message(11, i));
    let graph = outputs.iter().fold(graph, |g, o| g.message(12, o));
    let opset = Message::default().text(1, "").number(2, 15);
    Message::default().number(1, 8).message(7, &graph).message(8, &opset).0
}

/// `y = op(x)` on one type and shape.
pub(crate) fn unary(op: &str, dtype: u64, dims: &[Dim]) -> Vec<u8> {
    model(
        &[node(op, &["x"], &["y"])],
        &[],
        &[value_info("x", dtype, dims)],
        &[value_info("y", dtype, dims)],
    )
}

/// `y = x + w`, where `w` has `count` floats in the file `location`.
pub(crate) fn with_external_weight(location: &str, count: u64) -> Vec<u8> {
    let entry = Message::default().text(1, "location").text(2, location);
    let weight = Message::default()
        .number(1, count)
        .number(2, 1)
        .text(8, "w")
        .message(13, &entry)
        .number(14, 1);
    let dims = [Dim::Fixed(count)];
    model(
        &[node("Add", &["x", "w"], &["y"])],
        &[weight],
        &[value_info("x", 1, &dims)],
        &[value_info("y", 1, &dims)],
    )
}

/// The fields of a message: number, and the varint or the bytes.
fn fields(mut bytes: &[u8]) -> Vec<(u64, Field<'_>)> {
    let mut out = Vec::new();
    while !bytes.is_empty() {
        let key = read_varint(&mut bytes);
        let field = match key & 7 {
            0 => Field::Number(read_varint(&mut bytes)),
            1 => Field::Bytes(take(&mut bytes, 8)),
            2 => {
                let length = read_varint(&mut bytes) as usize;
                Field::Bytes(take(&mut bytes, length))
            }
            5 => Field::Bytes(take(&mut bytes, 4)),
            other => panic!("wire type {other}"),
        };
        out.push((key >> 3, field));
    }
    out
}

#[derive(Clone, Copy)]
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

fn take<'a>(bytes: &mut &'a [u8], count: usize) -> &'a [u8] {
    let (head, tail) = bytes.split_at(count);
    *bytes = tail;
    head
}

fn read_varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = take(bytes, 1)[0];
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            break;
        }
    }
    value
}

fn varints(field: Field<'_>) -> Vec<u64> {
    match field {
        Field::Number(n) => vec![n],
        Field::Bytes(mut bytes) => {
            let mut out = Vec::new();
            while !bytes.is_empty() {
                out.push(read_varint(&mut bytes));
            }
            out
        }
    }
}

/// A `TensorProto`; `None` for one of a type that this crate has not, or of a sequence or optional.
pub(crate) fn read_tensor(bytes: &[u8]) -> Option<Tensor> {
    let mut shape = Vec::new();
    let mut number = 0;
    let mut data = Vec::new();
    let mut integers = Vec::new();
    let mut strings = Vec::new();
    for (field, value) in fields(bytes) {
        match (field, value) {
            (1, value) => shape.extend(varints(value).iter().map(|n| *n as usize)),
            (2, Field::Number(n)) => number = n,
            (4 | 9 | 10, Field::Bytes(bytes)) => data.extend_from_slice(bytes),
            (5 | 7 | 11, value) => integers.extend(varints(value)),
            (6, Field::Bytes(bytes)) => strings.push(String::from_utf8(bytes.to_vec()).ok()?),
            _ => {}
        }
    }
    let dtype = ElementType::ALL.into_iter().find(|t| type_number(*t) == number)?;
    let Some(size) = dtype.size() else {
        return Tensor::from_strings(shape, strings).ok();
    };
    for integer in integers {
        data.extend_from_slice(&integer.to_le_bytes()[..size]);
    }
    Tensor::new(dtype, shape, data).ok()
}

/// Whether the graph of `model` has an input or output that is no tensor.
pub(crate) fn has_only_tensors(model: &[u8]) -> bool {
    let part = |bytes: &[u8], wanted: &[u64]| -> Vec<Vec<u8>> {
        fields(bytes)
            .into_iter()
            .filter(|(n, _)| wanted.contains(n))
            .filter_map(|(_, f)| match f {
                Field::Bytes(b) => Some(b.to_vec()),
                Field::Number(_) => None,
            })
            .collect()
    };
    part(model, &[7])
        .iter()
        .flat_map(|graph| part(graph, &[11, 12]))
        .flat_map(|info| part(&info, &[2]))
        .all(|kind| part(&kind, &[1]).len() == 1)
}

/// The names of the graph's inputs, in order.
pub(crate) fn input_names(model: &[u8]) -> Vec<String> {
    let mut names = Vec::new();
    for (number, graph) in fields(model) {
        let (7, Field::Bytes(graph)) = (number, graph) else {
            continue;
        };
        for (number, info) in fields(graph) {
            let (11, Field::Bytes(info)) = (number, info) else {
                continue;
            };
            if let Some((_, Field::Bytes(name))) = fields(info).first() {
                names.push(String::from_utf8_lossy(name).into_owned());
            }
        }
    }
    names
}
