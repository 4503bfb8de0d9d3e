//! Quantized networks on numbers whose sums are exact, so that rounding cannot differ between two orders.

use graph::{AttributeValue, Builder, DType, Dim, Model, Tensor, ValueId};
use proptest::prelude::*;

use super::{Block, Net, Numbers};

/// Short lists of blocks of a quantized network.
pub(crate) fn quantized_blocks() -> impl Strategy<Value = Vec<Block>> {
    let block = prop_oneof![
        (1usize..4).prop_map(|out| Block::Conv { out: out * 2, kernel: 1 }),
        (2usize..4).prop_map(|groups| Block::Grouped { groups }),
        (1usize..3).prop_map(|multiplier| Block::Depthwise { multiplier }),
        Just(Block::Cardinal),
        Just(Block::Activation(0)),
        Just(Block::Residual),
        Just(Block::Pool { max: true }),
        Just(Block::SplitSwap),
        Just(Block::SliceHalf),
        Just(Block::Flatten { dynamic: false }),
        Just(Block::ToSequence),
        (1usize..4, any::<bool>())
            .prop_map(|(out, transposed)| Block::Dense { out: out * 2, transposed }),
    ];
    let pair = (block, 0u8..HOWS).prop_map(|(block, how)| [block, Block::Quantized { how }]);
    prop::collection::vec(pair, 1..6).prop_map(|pairs| pairs.concat())
}

/// Ways to quantize.
pub(crate) const HOWS: u8 = 6;

/// As [`super::build`], with weights and inputs that are multiples of 1/8 and activations brought back to such
/// after every block.
pub(crate) fn build_quantized(blocks: &[Block], seed: u64) -> Model {
    let mut builder = Builder::new(19);
    let shape = [Dim::Symbol("N".into()), Dim::Fixed(4), Dim::Fixed(4), Dim::Fixed(4)];
    let at = builder.input("x", DType::F32, shape.to_vec());
    let mut net =
        Net { builder, numbers: Numbers::coarse(seed), at, opset: 19, dims: vec![4, 4, 4] };
    net.activations(0);
    net.quantized(1);
    for block in blocks {
        net.block(*block);
    }
    if net.dims.len() == 3 {
        net.flatten(false);
    }
    net.dense(3, false);
    let at = net.at;
    net.builder.finish(&[at]).unwrap()
}

impl Net {
    fn byte(&mut self, dtype: DType, value: f64) -> ValueId {
        let tensor = Tensor::from_f64_as(dtype, vec![], &[value]).unwrap();
        self.builder.constant("zero", tensor).unwrap()
    }

    /// Integers of a type, in `-3..=3` from `centre`.
    fn bytes(&mut self, dtype: DType, dims: &[usize], centre: f64) -> ValueId {
        let count = dims.iter().product();
        let values: Vec<f64> =
            (0..count).map(|_| f64::from((self.numbers.next() * 3.4).round()) + centre).collect();
        let tensor = Tensor::from_f64_as(dtype, dims.to_vec(), &values).unwrap();
        self.builder.constant("q", tensor).unwrap()
    }

    /// Through `QuantizeLinear` and `DequantizeLinear`; asymmetric, symmetric, or without a zero point.
    fn activations(&mut self, how: u8) {
        let scale = self.scalar(0.125);
        let mut operands = vec![scale];
        match how {
            0 => operands.push(self.byte(DType::U8, 120.0)),
            1 => operands.push(self.byte(DType::I8, 0.0)),
            _ => {}
        }
        let inputs = [vec![self.at], operands.clone()].concat();
        let q = self.op("QuantizeLinear", &inputs, []);
        let inputs = [vec![q], operands].concat();
        self.at = self.op("DequantizeLinear", &inputs, []);
    }

    /// A layer of the wanted kind, and its output on the grid again.
    pub(super) fn quantized(&mut self, how: u8) {
        match how {
            1 | 2 => self.dequantized_weights(how),
            3 => self.dynamic(),
            4 => self.integer_operators(),
            5 => self.linear_operators(),
            _ => {}
        }
        self.activations(how % 3);
    }

    /// A product whose weights are int8 per channel or uint8 with a zero point.
    fn dequantized_weights(&mut self, how: u8) {
        let image = self.dims.len() == 3;
        let axis = if image { 0 } else { self.dims.len() - 1 };
        let (width, out) = (self.dims[axis], 6);
        let dims = if image { vec![out, width, 1, 1] } else { vec![width, out] };
        let along = [("axis", AttributeValue::Int(if image { 0 } else { 1 }))];
        let w = if how == 1 {
            let q = self.bytes(DType::I8, &dims, 0.0);
            let scales: Vec<f32> = (0..out).map(|i| [0.125, 0.25][i % 2]).collect();
            let scales = Tensor::from_f32(vec![out], &scales).unwrap();
            let scales = self.builder.constant("scales", scales).unwrap();
            let zeros = Tensor::from_f64_as(DType::I8, vec![out], &vec![0.0; out]).unwrap();
            let zeros = self.builder.constant("zeros", zeros).unwrap();
            self.op("DequantizeLinear", &[q, scales, zeros], along)
        } else {
            let (q, scale) = (self.bytes(DType::U8, &dims, 128.0), self.scalar(0.125));
            let zero = self.byte(DType::U8, 128.0);
            self.op("DequantizeLinear", &[q, scale, zero], [])
        };
        let bias = self.bytes(DType::I32, &[out], 0.0);
        let scale = self.scalar(0.125);
        let bias = self.op("DequantizeLinear", &[bias, scale], []);
        self.at = if image {
            self.op("Conv", &[self.at, w, bias], [])
        } else {
            let product = self.op("MatMul", &[self.at, w], []);
            self.op("Add", &[product, bias], [])
        };
        self.dims[axis] = out;
    }

    /// Activations quantized by their own range, in front of a product of integers.
    fn dynamic(&mut self) {
        if self.dims.len() == 3 {
            return;
        }
        let width = *self.dims.last().unwrap();
        let parts = self.builder.nodes("DynamicQuantizeLinear", &[Some(self.at)], [], 3).unwrap();
        let w = self.bytes(DType::U8, &[width, 6], 100.0);
        let points: Vec<f64> = vec![100.0; 6];
        let points = Tensor::from_f64_as(DType::U8, vec![6], &points).unwrap();
        let points = self.builder.constant("points", points).unwrap();
        let sum = self.op("MatMulInteger", &[parts[0], w, parts[2], points], []);
        let sum = self.op("Cast", &[sum], [("to", AttributeValue::Int(1))]);
        let scale = self.scalar(0.125);
        let scale = self.op("Mul", &[parts[1], scale], []);
        self.at = self.op("Mul", &[sum, scale], []);
        *self.dims.last_mut().unwrap() = 6;
    }

    /// `ConvInteger` or `MatMulInteger` between `QuantizeLinear` and a scale.
    fn integer_operators(&mut self) {
        let (scale, zero) = (self.scalar(0.125), self.byte(DType::U8, 110.0));
        let q = self.op("QuantizeLinear", &[self.at, scale, zero], []);
        let image = self.dims.len() == 3;
        let axis = if image { 0 } else { self.dims.len() - 1 };
        let width = self.dims[axis];
        let dims = if image { vec![6, width, 1, 1] } else { vec![width, 6] };
        let (w, point) = (self.bytes(DType::U8, &dims, 90.0), self.byte(DType::U8, 90.0));
        let op = if image { "ConvInteger" } else { "MatMulInteger" };
        let sum = self.op(op, &[q, w, zero, point], []);
        let sum = self.op("Cast", &[sum], [("to", AttributeValue::Int(1))]);
        let scale = self.scalar(1.0 / 64.0);
        self.at = self.op("Mul", &[sum, scale], []);
        self.dims[axis] = 6;
    }

    /// `QLinearConv` or `QLinearMatMul`.
    fn linear_operators(&mut self) {
        let (scale, zero) = (self.scalar(0.125), self.byte(DType::U8, 110.0));
        let q = self.op("QuantizeLinear", &[self.at, scale, zero], []);
        let image = self.dims.len() == 3;
        let axis = if image { 0 } else { self.dims.len() - 1 };
        let width = self.dims[axis];
        let dims = if image { vec![6, width, 1, 1] } else { vec![width, 6] };
        let (w, point) = (self.bytes(DType::U8, &dims, 90.0), self.byte(DType::U8, 90.0));
        let (out_scale, out_zero) = (self.scalar(0.25), self.byte(DType::U8, 100.0));
        let mut inputs = vec![q, scale, zero, w, scale, point, out_scale, out_zero];
        if image {
            inputs.push(self.bytes(DType::I32, &[6], 0.0));
        }
        let y = self.op(if image { "QLinearConv" } else { "QLinearMatMul" }, &inputs, []);
        self.at = self.op("DequantizeLinear", &[y, out_scale, out_zero], []);
        self.dims[axis] = 6;
    }
}
