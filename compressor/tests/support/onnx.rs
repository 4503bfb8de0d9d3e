//! ONNX files written field by field, so that they can be as wrong as a test needs.
#![allow(dead_code)]

/// A protobuf message in the making.
#[derive(Debug, Clone, Default)]
pub(crate) struct Message(pub(crate) Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    pub(crate) fn int(mut self, field: u64, value: u64) -> Self {
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
}

pub(crate) fn node(op: &str, name: &str, inputs: &[&str], output: &str) -> Message {
    let inputs = inputs.iter().fold(Message::default(), |node, input| node.text(1, input));
    inputs.text(2, output).text(3, name).text(4, op)
}

/// An f32 tensor of ones; `held` of them, however many its dimensions ask for.
pub(crate) fn ones(name: &str, dims: &[u64], held: usize) -> Message {
    let tensor = dims.iter().fold(Message::default(), |tensor, dim| tensor.int(1, *dim)).int(2, 1);
    tensor.text(8, name).bytes(9, &1f32.to_le_bytes().repeat(held))
}

/// An f32 tensor whose elements lie in a file beside the model.
pub(crate) fn external(name: &str, dims: &[u64], file: &str) -> Message {
    let tensor = dims.iter().fold(Message::default(), |tensor, dim| tensor.int(1, *dim)).int(2, 1);
    let length = (dims.iter().product::<u64>() * 4).to_string();
    let entry = |key: &str, value: &str| Message::default().text(1, key).text(2, value);
    let tensor = tensor.text(8, name).message(13, &entry("location", file));
    tensor.message(13, &entry("length", &length)).int(14, 1)
}

/// An f32 input or output of shape `[N, width]`.
pub(crate) fn info(name: &str, width: u64) -> Message {
    let dim = |dim: Message| Message::default().message(1, &dim);
    let shape = dim(Message::default().text(2, "N")).0;
    let shape = Message([shape, dim(Message::default().int(1, width)).0].concat());
    let tensor = Message::default().int(1, 1).message(2, &shape);
    Message::default().text(1, name).message(2, &Message::default().message(1, &tensor))
}

/// A model from `x` of `[N, width]` to `y` of `[N, 2]`.
pub(crate) fn model(opset: u64, width: u64, nodes: &[Message], constants: &[Message]) -> Vec<u8> {
    let graph = nodes.iter().fold(Message::default(), |graph, node| graph.message(1, node));
    let graph = graph.text(2, "g");
    let graph = constants.iter().fold(graph, |graph, constant| graph.message(5, constant));
    let graph = graph.message(11, &info("x", width)).message(12, &info("y", 2));
    let opset = Message::default().int(2, opset);
    Message::default().int(1, 8).message(7, &graph).message(8, &opset).0
}

/// `x` times `w`, an activation, times `v`.
pub(crate) fn layers() -> [Message; 3] {
    [
        node("MatMul", "first", &["x", "w"], "a"),
        node("Relu", "act", &["a"], "b"),
        node("MatMul", "second", &["b", "v"], "y"),
    ]
}
