//! Random networks for properties: a list of blocks, built with weights from a seed.

#[path = "nets/attention.rs"]
mod attention;
#[path = "nets/norms.rs"]
mod norms;
#[path = "nets/quantized.rs"]
mod quantized;
#[path = "nets/recurrent.rs"]
mod recurrent;

use graph::{AttributeValue, Builder, DType, Dim, Model, Tensor, ValueId};
use proptest::prelude::*;
// Not every test uses all of them.
#[allow(unused_imports)]
pub(crate) use quantized::{HOWS, build_quantized, quantized_blocks};
#[allow(unused_imports)]
pub(crate) use recurrent::{Recurrent, Start, recurrent_blocks};

/// A stretch of a network. A block that does not fit where it stands is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Block {
    Conv {
        out: usize,
        kernel: usize,
    },
    Grouped {
        groups: usize,
    },
    Depthwise {
        multiplier: usize,
    },
    Activation(u8),
    BatchNorm,
    InstanceNorm,
    Scale,
    Residual,
    Branches {
        out: usize,
    },
    Pool {
        max: bool,
    },
    SplitSwap,
    SliceHalf,
    Shuffle {
        groups: usize,
    },
    SqueezeExcite,
    SumNorm,
    Gelu,
    Flatten {
        dynamic: bool,
    },
    GlobalPool {
        max: bool,
    },
    Dense {
        out: usize,
        transposed: bool,
    },
    Bias,
    Merge,
    ToSequence,
    Attention {
        heads: usize,
    },
    SharedWeight,
    Divide,
    /// Groups of two channels.
    Cardinal,
    Deconv {
        groups: usize,
    },
    Resize {
        how: u8,
    },
    /// Over the channels of an image, or the width of a sequence.
    Norm {
        how: u8,
    },
    GroupNorm {
        how: u8,
    },
    /// A mean or a sum over the units where they are not zero.
    Centred {
        sum: bool,
    },
    GroupedQuery {
        groups: usize,
    },
    FusedAttention {
        how: u8,
    },
    Gated {
        fused: bool,
    },
    Einsum {
        how: u8,
    },
    /// A shortcut that is padded to more channels.
    Widened,
    /// A quantized layer, with its activations brought to a grid.
    Quantized {
        how: u8,
    },
    Recurrent(Recurrent),
}

/// Ways to write a norm over the width.
pub(crate) const NORMS: u8 = 8;

/// Short lists of blocks.
pub(crate) fn blocks() -> impl Strategy<Value = Vec<Block>> {
    let block = prop_oneof![
        (2usize..7, prop_oneof![Just(1usize), Just(3)])
            .prop_map(|(out, kernel)| Block::Conv { out: out * 2, kernel }),
        (2usize..4).prop_map(|groups| Block::Grouped { groups }),
        (1usize..3).prop_map(|multiplier| Block::Depthwise { multiplier }),
        (0u8..6).prop_map(Block::Activation),
        Just(Block::BatchNorm),
        Just(Block::InstanceNorm),
        Just(Block::Scale),
        Just(Block::Residual),
        (1usize..4).prop_map(|out| Block::Branches { out: out * 2 }),
        any::<bool>().prop_map(|max| Block::Pool { max }),
        Just(Block::SplitSwap),
        Just(Block::SliceHalf),
        (2usize..4).prop_map(|groups| Block::Shuffle { groups }),
        Just(Block::SqueezeExcite),
        Just(Block::SumNorm),
        Just(Block::Gelu),
        any::<bool>().prop_map(|dynamic| Block::Flatten { dynamic }),
        any::<bool>().prop_map(|max| Block::GlobalPool { max }),
        (1usize..5, any::<bool>())
            .prop_map(|(out, transposed)| Block::Dense { out: out * 4, transposed }),
        Just(Block::Bias),
        Just(Block::Merge),
        Just(Block::ToSequence),
        prop_oneof![Just(2usize), Just(4)].prop_map(|heads| Block::Attention { heads }),
        Just(Block::SharedWeight),
        Just(Block::Divide),
        Just(Block::Cardinal),
        prop_oneof![Just(1usize), Just(2), Just(99)].prop_map(|groups| Block::Deconv { groups }),
        (0u8..4).prop_map(|how| Block::Resize { how }),
        (0u8..NORMS).prop_map(|how| Block::Norm { how }),
        (0u8..3).prop_map(|how| Block::GroupNorm { how }),
        any::<bool>().prop_map(|sum| Block::Centred { sum }),
        (2usize..4).prop_map(|groups| Block::GroupedQuery { groups }),
        (0u8..3).prop_map(|how| Block::FusedAttention { how }),
        any::<bool>().prop_map(|fused| Block::Gated { fused }),
        (0u8..2).prop_map(|how| Block::Einsum { how }),
        Just(Block::Widened),
        recurrent::recurrent(),
    ];
    prop::collection::vec(block, 1..9)
}

/// Numbers from a seed.
pub(crate) struct Numbers {
    state: u64,
    /// Whether tensors hold multiples of 1/8 only.
    coarse: bool,
}

impl Numbers {
    pub(crate) fn new(seed: u64) -> Self {
        Self { state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1, coarse: false }
    }

    /// Tensors of multiples of 1/8.
    pub(crate) fn coarse(seed: u64) -> Self {
        Self { coarse: true, ..Self::new(seed) }
    }

    /// Uniform in −1..1.
    pub(crate) fn next(&mut self) -> f32 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        ((self.state >> 40) as f32 / (1u64 << 23) as f32) - 1.0
    }

    pub(crate) fn tensor(&mut self, dims: &[usize], scale: f32, shift: f32) -> Tensor {
        let number = |numbers: &mut Self| {
            let number = numbers.next() * scale + shift;
            if numbers.coarse { (number * 8.0).round() / 8.0 } else { number }
        };
        let values: Vec<f32> = (0..dims.iter().product::<usize>()).map(|_| number(self)).collect();
        Tensor::from_f32(dims.to_vec(), &values).unwrap()
    }
}

struct Net {
    builder: Builder,
    numbers: Numbers,
    at: ValueId,
    opset: i64,
    /// Without the batch: `[C, H, W]`, `[L, D]` or `[F]`.
    dims: Vec<usize>,
}

/// Builds the network: input `x` of `[N, 4, 4, 4]`, output of `[N, …, 3]`.
pub(crate) fn build(blocks: &[Block], seed: u64, opset: i64) -> Model {
    let mut builder = Builder::new(opset);
    let shape = [Dim::Symbol("N".into()), Dim::Fixed(4), Dim::Fixed(4), Dim::Fixed(4)];
    let at = builder.input("x", DType::F32, shape.to_vec());
    let mut net = Net { builder, numbers: Numbers::new(seed), at, opset, dims: vec![4, 4, 4] };
    net.conv(6, 3, 1);
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
    fn weight(&mut self, dims: &[usize], fan_in: usize) -> ValueId {
        let scale = 1.5 / (fan_in as f32).sqrt();
        let tensor = self.numbers.tensor(dims, scale, 0.0);
        self.builder.constant("w", tensor).unwrap()
    }

    fn param(&mut self, dims: &[usize], scale: f32, shift: f32) -> ValueId {
        let tensor = self.numbers.tensor(dims, scale, shift);
        self.builder.constant("p", tensor).unwrap()
    }

    fn ints(&mut self, values: &[i64]) -> ValueId {
        self.builder.constant("i", Tensor::from_i64(vec![values.len()], values).unwrap()).unwrap()
    }

    fn scalar(&mut self, value: f32) -> ValueId {
        self.builder.constant("s", Tensor::from_f32(vec![], &[value]).unwrap()).unwrap()
    }

    fn op<const N: usize>(
        &mut self,
        op: &str,
        inputs: &[ValueId],
        attributes: [(&str, AttributeValue); N],
    ) -> ValueId {
        self.builder.node(op, inputs, attributes).unwrap()
    }

    fn block(&mut self, block: Block) {
        match (block, self.dims.len()) {
            (Block::Conv { out, kernel }, 3) => self.conv(out, kernel, 1),
            (Block::Grouped { groups }, 3)
                if self.dims[0].is_multiple_of(groups) && self.dims[0] > groups =>
            {
                self.conv(groups * 4, 1, groups);
            }
            (Block::Depthwise { multiplier }, 3) => {
                self.conv(self.dims[0] * multiplier, 3, self.dims[0])
            }
            (Block::Cardinal, 3) if self.dims[0].is_multiple_of(2) && self.dims[0] > 4 => {
                self.conv(self.dims[0], 1, self.dims[0] / 2)
            }
            (Block::Deconv { groups }, 3) => self.deconv(groups),
            (Block::Resize { how }, 3) if self.dims[1] < 9 => self.resize(how),
            (Block::Norm { how }, _) => self.norm(how),
            (Block::GroupNorm { how }, 3) => self.group_norm(how),
            (Block::Centred { sum }, _) => self.centred(sum),
            (Block::Activation(which), _) => self.activation(which),
            (Block::BatchNorm, 3) => self.batch_norm(),
            (Block::InstanceNorm, 3) => {
                let c = self.dims[0];
                let (scale, bias) = (self.param(&[c], 0.5, 1.0), self.param(&[c], 0.5, 0.0));
                self.at = self.op("InstanceNormalization", &[self.at, scale, bias], []);
            }
            (Block::Scale, _) => self.broadcast("Mul", 0.5, 1.0),
            (Block::Bias, _) => self.broadcast("Add", 0.5, 0.0),
            (Block::Divide, _) => self.broadcast("Div", 0.5, 2.0),
            (Block::Residual, 3) => self.residual(|net| net.conv(net.dims[0], 3, 1)),
            (Block::Residual, _) => {
                self.residual(|net| net.dense(*net.dims.last().unwrap(), false))
            }
            (Block::Branches { out }, 3) => self.branches(out),
            (Block::Pool { max }, 3) => {
                let attributes = [
                    ("kernel_shape", AttributeValue::Ints(vec![2, 2])),
                    ("pads", AttributeValue::Ints(vec![0, 0, 1, 1])),
                ];
                self.at =
                    self.op(if max { "MaxPool" } else { "AveragePool" }, &[self.at], attributes);
            }
            (Block::SplitSwap, 3) => self.split_swap(),
            (Block::SliceHalf, 3) => self.slice_half(),
            (Block::Shuffle { groups }, 3) if self.dims[0].is_multiple_of(groups) => {
                self.shuffle(groups)
            }
            (Block::SqueezeExcite, 3) => self.squeeze_excite(),
            (Block::SumNorm, _) => self.sum_norm(),
            (Block::Gelu, _) => self.gelu(),
            (Block::Flatten { dynamic }, 3) => self.flatten(dynamic),
            (Block::GlobalPool { max }, 3) => {
                self.at = self.op(
                    if max { "GlobalMaxPool" } else { "GlobalAveragePool" },
                    &[self.at],
                    [],
                );
                self.dims = vec![self.dims[0], 1, 1];
                self.flatten(false);
            }
            (Block::Dense { out, transposed }, 1..=2) => self.dense(out, transposed),
            (Block::Merge, 2) if self.dims[0].is_multiple_of(2) => {
                let dims = vec![self.dims[0] / 2, self.dims[1] * 2];
                self.reshape(dims);
            }
            (Block::ToSequence, 1) if self.dims[0].is_multiple_of(4) => {
                self.reshape(vec![4, self.dims[0] / 4])
            }
            (Block::ToSequence, 3) => {
                // [N, C, H, W] → [N, H·W, C], as vision transformers do.
                let dims = vec![self.dims[0], self.dims[1] * self.dims[2]];
                self.reshape(dims);
                self.at = self.op(
                    "Transpose",
                    &[self.at],
                    [("perm", AttributeValue::Ints(vec![0, 2, 1]))],
                );
                self.dims.reverse();
            }
            (Block::Attention { heads }, 2) => self.attention(heads),
            (Block::GroupedQuery { groups }, 2) => self.grouped_query(groups),
            (Block::FusedAttention { how }, 2) => self.fused_attention(how),
            (Block::Gated { fused }, 1..=2) => self.gated(fused),
            (Block::Einsum { how }, _) => self.einsum(how),
            (Block::Widened, 3) => self.widened(),
            (Block::Quantized { how }, _) => self.quantized(how),
            (Block::SharedWeight, 1..=2) => self.shared_weight(),
            (Block::Recurrent(layer), 2) => self.recurrent(layer),
            _ => {}
        }
    }

    fn conv(&mut self, out: usize, kernel: usize, groups: usize) {
        let per_group = self.dims[0] / groups;
        let w = self.weight(&[out, per_group, kernel, kernel], per_group * kernel * kernel);
        let b = self.param(&[out], 0.5, 0.0);
        let pad = (kernel / 2) as i64;
        let attributes = [
            ("group", AttributeValue::Int(groups as i64)),
            ("pads", AttributeValue::Ints(vec![pad; 4])),
            ("kernel_shape", AttributeValue::Ints(vec![kernel as i64; 2])),
        ];
        self.at = self.op("Conv", &[self.at, w, b], attributes);
        self.dims[0] = out;
    }

    /// Doubles no axis; as many groups as channels where there are fewer channels, one where they do not divide.
    fn deconv(&mut self, groups: usize) {
        let channels = self.dims[0];
        let groups = match groups.min(channels) {
            groups if channels.is_multiple_of(groups) => groups,
            _ => 1,
        };
        let (per_out, per_in) = (if groups == channels { 2 } else { 3 }, channels / groups);
        let w = self.weight(&[channels, per_out, 3, 3], per_in * 9);
        let b = self.param(&[per_out * groups], 0.5, 0.0);
        let attributes = [
            ("group", AttributeValue::Int(groups as i64)),
            ("pads", AttributeValue::Ints(vec![1; 4])),
        ];
        self.at = self.op("ConvTranspose", &[self.at, w, b], attributes);
        self.dims[0] = per_out * groups;
    }

    /// By scales, by sizes of some axes, or by sizes computed from the shape in two ways.
    fn resize(&mut self, how: u8) {
        let x = self.at;
        let [c, h, w] = self.dims[..] else { return };
        let [h, w] = [h + 1, w + 2];
        let mode = ["nearest", "linear", "cubic", "linear"][usize::from(how)];
        let operands = match how {
            0 => {
                let scales = Tensor::from_f32(vec![4], &[1.0, 1.0, 2.0, 1.5]).unwrap();
                (self.dims[1], self.dims[2]) = (self.dims[1] * 2, self.dims[2] * 3 / 2);
                [None, Some(self.builder.constant("scales", scales).unwrap()), None]
            }
            1 => {
                let shape = self.op("Shape", &[x], []);
                let (zero, two) = (self.ints(&[0]), self.ints(&[2]));
                let kept = self.op("Slice", &[shape, zero, two], []);
                let rest = self.ints(&[h as i64, w as i64]);
                let axis = [("axis", AttributeValue::Int(0))];
                (self.dims[1], self.dims[2]) = (h, w);
                [None, None, Some(self.op("Concat", &[kept, rest], axis))]
            }
            _ => {
                let shape = self.op("Shape", &[x], []);
                let zero = self.ints(&[0]);
                let batch = self.op("Gather", &[shape, zero], []);
                let rest = self.ints(&[c as i64, h as i64, w as i64]);
                let axis = [("axis", AttributeValue::Int(0))];
                (self.dims[1], self.dims[2]) = (h, w);
                [None, None, Some(self.op("Concat", &[batch, rest], axis))]
            }
        };
        let inputs = [vec![Some(x)], operands.to_vec()].concat();
        let attributes = [("mode", AttributeValue::String(mode.into()))];
        self.at = self.builder.nodes("Resize", &inputs, attributes, 1).unwrap()[0];
    }

    fn dense(&mut self, out: usize, transposed: bool) {
        let width = *self.dims.last().unwrap();
        if self.dims.len() == 1 {
            let dims = if transposed { [out, width] } else { [width, out] };
            let (w, b) = (self.weight(&dims, width), self.param(&[out], 0.5, 0.0));
            let attributes = [("transB", AttributeValue::Int(i64::from(transposed)))];
            self.at = self.op("Gemm", &[self.at, w, b], attributes);
        } else {
            let w = self.dense_weight(width, out, transposed);
            self.at = self.op("MatMul", &[self.at, w], []);
        }
        *self.dims.last_mut().unwrap() = out;
    }

    /// Behind a Transpose, as exporters leave linear layers.
    fn dense_weight(&mut self, width: usize, out: usize, transposed: bool) -> ValueId {
        if !transposed {
            return self.weight(&[width, out], width);
        }
        let w = self.weight(&[out, width], width);
        self.op("Transpose", &[w], [])
    }

    fn activation(&mut self, which: u8) {
        let op =
            ["Relu", "Tanh", "Sigmoid", "LeakyRelu", "Softplus", "HardSwish"][usize::from(which)];
        self.at = self.op(op, &[self.at], []);
    }

    /// With a constant that varies along the channels only.
    fn broadcast(&mut self, op: &str, scale: f32, shift: f32) {
        let dims = match self.dims.as_slice() {
            [c, _, _] => vec![1, *c, 1, 1],
            [_, d] => vec![1, 1, *d],
            rest => rest.to_vec(),
        };
        let constant = self.param(&dims, scale, shift);
        self.at = self.op(op, &[self.at, constant], []);
    }

    fn residual(&mut self, branch: impl Fn(&mut Self)) {
        let before = self.at;
        branch(self);
        self.at = self.op("Add", &[before, self.at], []);
    }

    fn widened(&mut self) {
        let before = self.at;
        self.conv(self.dims[0] + 3, 3, 1);
        let pads = self.ints(&[0, 1, 0, 0, 0, 2, 0, 0]);
        let padded = self.op("Pad", &[before, pads], []);
        self.at = self.op("Add", &[padded, self.at], []);
    }

    fn branches(&mut self, out: usize) {
        let (before, dims) = (self.at, self.dims.clone());
        self.conv(out, 1, 1);
        let left = self.at;
        (self.at, self.dims) = (before, dims);
        let channels = self.dims[0];
        self.conv(out + 1, 3, 1);
        self.at = self.op("Concat", &[left, before, self.at], [("axis", AttributeValue::Int(1))]);
        self.dims[0] = 2 * out + 1 + channels;
    }

    fn split_swap(&mut self) {
        let c = self.dims[0];
        if c < 3 {
            return;
        }
        let sizes = self.ints(&[1, (c - 1) as i64]);
        let inputs = [Some(self.at), Some(sizes)];
        let parts =
            self.builder.nodes("Split", &inputs, [("axis", AttributeValue::Int(1))], 2).unwrap();
        let relu = self.op("Relu", &[parts[0]], []);
        self.at = self.op("Concat", &[parts[1], relu], [("axis", AttributeValue::Int(1))]);
    }

    fn slice_half(&mut self) {
        let half = (self.dims[0] / 2) as i64;
        let (zero, middle, end, axis) =
            (self.ints(&[0]), self.ints(&[half]), self.ints(&[i64::MAX]), self.ints(&[1]));
        let first = self.op("Slice", &[self.at, zero, middle, axis], []);
        let second = self.op("Slice", &[self.at, middle, end, axis], []);
        let gate = self.op("Sigmoid", &[second], []);
        self.at = self.op("Concat", &[gate, first], [("axis", AttributeValue::Int(1))]);
    }

    fn shuffle(&mut self, groups: usize) {
        let [c, h, w] = self.dims[..] else { return };
        let split = self.ints(&[-1, groups as i64, (c / groups) as i64, h as i64, w as i64]);
        let merged = self.ints(&[0, c as i64, h as i64, w as i64]);
        let x = self.op("Reshape", &[self.at, split], []);
        let x = self.op("Transpose", &[x], [("perm", AttributeValue::Ints(vec![0, 2, 1, 3, 4]))]);
        self.at = self.op("Reshape", &[x, merged], []);
    }

    fn squeeze_excite(&mut self) {
        let (before, dims) = (self.at, self.dims.clone());
        self.at = self.op("GlobalAveragePool", &[self.at], []);
        self.dims = vec![dims[0], 1, 1];
        self.conv(4, 1, 1);
        self.activation(0);
        self.conv(dims[0], 1, 1);
        self.activation(2);
        self.at = self.op("Mul", &[before, self.at], []);
        self.dims = dims;
    }

    fn gelu(&mut self) {
        let x = self.at;
        let (root, one, half) = (self.scalar(0.7), self.scalar(1.0), self.scalar(0.5));
        let erf = self.op("Mul", &[x, root], []);
        let erf = self.op("Erf", &[erf], []);
        let shifted = self.op("Add", &[erf, one], []);
        let gate = self.op("Mul", &[shifted, half], []);
        self.at = self.op("Mul", &[x, gate], []);
    }

    fn flatten(&mut self, dynamic: bool) {
        if dynamic {
            // view(x.size(0), -1)
            let shape = self.op("Shape", &[self.at], []);
            let (zero, rest) = (self.ints(&[0]), self.ints(&[-1]));
            let batch = self.op("Gather", &[shape, zero], []);
            let target = self.op("Concat", &[batch, rest], [("axis", AttributeValue::Int(0))]);
            self.at = self.op("Reshape", &[self.at, target], []);
        } else {
            self.at = self.op("Flatten", &[self.at], []);
        }
        self.dims = vec![self.dims.iter().product()];
    }

    fn reshape(&mut self, dims: Vec<usize>) {
        let mut target = vec![-1];
        target.extend(dims.iter().map(|&size| size as i64));
        let target = self.ints(&target);
        self.at = self.op("Reshape", &[self.at, target], []);
        self.dims = dims;
    }

    /// One initializer, read by two products whose units may go separate ways.
    fn shared_weight(&mut self) {
        let width = *self.dims.last().unwrap();
        let w = self.weight(&[width, width], width);
        self.at = self.op("MatMul", &[self.at, w], []);
        self.activation(1);
        self.at = self.op("MatMul", &[self.at, w], []);
    }
}
