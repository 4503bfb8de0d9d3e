//! Recurrent layers.

use graph::{AttributeValue, Tensor, ValueId};
use proptest::prelude::*;

use super::{Block, Net};

/// A recurrent layer over a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Recurrent {
    /// `LSTM`, `GRU` or `RNN`.
    pub(crate) kind: u8,
    pub(crate) hidden: usize,
    /// Forward, backward, or both.
    pub(crate) direction: u8,
    pub(crate) batch_first: bool,
    pub(crate) start: Start,
    /// Continue with the last state rather than with all of them.
    pub(crate) last: bool,
    /// Bias, sequence lengths, peepholes (LSTM) or a reset behind the product (GRU).
    pub(crate) bias: bool,
    pub(crate) lengths: bool,
    pub(crate) extra: bool,
    /// Index into [`ACTIVATIONS`], for all but the gates, which must not grow without bound.
    pub(crate) activation: Option<u8>,
}

/// Where a recurrent layer begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    /// Nothing is given.
    Absent,
    /// Zeros of a batch that is read off the input.
    Zeros,
    /// A constant, repeated over such a batch.
    Learned,
}

/// Functions that keep zero, do not, or are not even bounded.
pub(crate) const ACTIVATIONS: [&str; 5] =
    ["Relu", "Softsign", "HardSigmoid", "Sigmoid", "Softplus"];

impl Recurrent {
    /// A forward layer with all defaults.
    pub(crate) fn plain(kind: u8, hidden: usize) -> Self {
        Self {
            kind,
            hidden,
            direction: 0,
            batch_first: false,
            start: Start::Absent,
            last: false,
            bias: true,
            lengths: false,
            extra: false,
            activation: None,
        }
    }
}

pub(super) fn recurrent() -> impl Strategy<Value = Block> {
    let start = prop_oneof![Just(Start::Absent), Just(Start::Zeros), Just(Start::Learned)];
    let activation = prop::option::weighted(0.3, 0..ACTIVATIONS.len() as u8);
    let flags = any::<[bool; 5]>();
    (0u8..3, 1usize..4, 0u8..3, start, activation, flags).prop_map(
        |(
            kind,
            hidden,
            direction,
            start,
            activation,
            [batch_first, last, bias, lengths, extra],
        )| {
            Block::Recurrent(Recurrent {
                kind,
                hidden: hidden * 2,
                direction,
                batch_first,
                start,
                last,
                bias,
                lengths,
                extra,
                activation,
            })
        },
    )
}

/// A sequence and some recurrent layers, with whatever else between them.
pub(crate) fn recurrent_blocks() -> impl Strategy<Value = Vec<Block>> {
    let between = prop_oneof![
        (0u8..6).prop_map(Block::Activation),
        Just(Block::Scale),
        Just(Block::Residual),
        Just(Block::Merge),
        Just(Block::SumNorm),
        (1usize..4).prop_map(|out| Block::Dense { out: out * 4, transposed: false }),
        recurrent(),
    ];
    (recurrent(), prop::collection::vec(between, 0..4))
        .prop_map(|(first, rest)| [Block::ToSequence, first].into_iter().chain(rest).collect())
}

impl Net {
    /// From `[N, L, D]` to `[N, L, directions * hidden]`, or without the axis of length.
    pub(super) fn recurrent(&mut self, layer: Recurrent) {
        let [length, width] = self.dims[..] else { return };
        let (hidden, directions) = (layer.hidden, if layer.direction == 2 { 2 } else { 1 });
        let (op, gates, functions) =
            [("LSTM", 4, 3), ("GRU", 3, 2), ("RNN", 1, 1)][usize::from(layer.kind)];
        let x = if layer.batch_first { self.at } else { self.turn(self.at, &[1, 0, 2]) };
        let inputs = self.recurrent_inputs(layer, x, (width, gates));
        let direction = ["forward", "reverse", "bidirectional"][usize::from(layer.direction)];
        let mut attributes = vec![
            ("hidden_size", AttributeValue::Int(hidden as i64)),
            ("layout", AttributeValue::Int(i64::from(layer.batch_first))),
            ("direction", AttributeValue::String(direction.as_bytes().into())),
        ];
        if layer.kind == 1 {
            let flag = AttributeValue::Int(i64::from(layer.extra));
            attributes.push(("linear_before_reset", flag));
        }
        if let Some(which) = layer.activation {
            let gate = if layer.extra { "HardSigmoid" } else { "Sigmoid" };
            let name =
                |at| if at == 0 && functions > 1 { gate } else { ACTIVATIONS[usize::from(which)] };
            let names =
                (0..directions * functions).map(|at| name(at % functions).as_bytes().into());
            let names = names.collect();
            attributes.push(("activations", AttributeValue::Strings(names)));
        }
        let count = if layer.last { 2 } else { 1 };
        let outputs = self.builder.nodes(op, &inputs, attributes, count).unwrap();
        if layer.last {
            // [D, N, H] or [N, D, H]
            self.at = outputs[1];
            if !layer.batch_first {
                self.at = self.turn(self.at, &[1, 0, 2]);
            }
            self.reshape(vec![directions * hidden]);
        } else {
            // [L, D, N, H] or [N, L, D, H]
            self.at = outputs[0];
            if !layer.batch_first {
                self.at = self.turn(self.at, &[2, 0, 1, 3]);
            }
            self.reshape(vec![length, directions * hidden]);
        }
    }

    /// Weights and what may be given besides, up to the last one that is.
    fn recurrent_inputs(
        &mut self,
        layer: Recurrent,
        x: ValueId,
        (width, gates): (usize, usize),
    ) -> Vec<Option<ValueId>> {
        let (hidden, directions) = (layer.hidden, if layer.direction == 2 { 2 } else { 1 });
        let w = self.weight(&[directions, gates * hidden, width], width);
        let r = self.weight(&[directions, gates * hidden, hidden], hidden);
        let mut inputs = vec![Some(x), Some(w), Some(r)];
        inputs.push(layer.bias.then(|| self.param(&[directions, 2 * gates * hidden], 0.5, 0.0)));
        inputs.push(layer.lengths.then(|| {
            let batch = self.batch();
            let tensor = Tensor::from_i32(vec![1], &[self.dims[0] as i32 - 1]).unwrap();
            let length = self.builder.constant("l", tensor).unwrap();
            self.op("Expand", &[length, batch], [])
        }));
        let states = if layer.kind == 0 { 2 } else { 1 };
        inputs.extend((0..states).map(|_| self.start(layer)));
        if layer.kind == 0 && layer.extra {
            inputs.push(Some(self.param(&[directions, 3 * hidden], 0.5, 0.0)));
        }
        while inputs.last() == Some(&None) {
            inputs.pop();
        }
        inputs
    }

    fn start(&mut self, layer: Recurrent) -> Option<ValueId> {
        let (hidden, directions) = (layer.hidden, if layer.direction == 2 { 2 } else { 1 });
        if layer.start == Start::Absent {
            return None;
        }
        let (batch, many, units) =
            (self.batch(), self.ints(&[directions as i64]), self.ints(&[hidden as i64]));
        let parts = if layer.batch_first { [batch, many, units] } else { [many, batch, units] };
        let shape = self.op("Concat", &parts, [("axis", AttributeValue::Int(0))]);
        Some(match (layer.start, layer.batch_first) {
            (Start::Zeros, _) => self.op("ConstantOfShape", &[shape], []),
            (_, false) => {
                let state = self.param(&[directions, 1, hidden], 0.5, 0.0);
                self.op("Expand", &[state, shape], [])
            }
            (_, true) => {
                let state = self.param(&[1, directions, hidden], 0.5, 0.0);
                self.op("Expand", &[state, shape], [])
            }
        })
    }

    /// The batch, as the model reads it.
    fn batch(&mut self) -> ValueId {
        let shape = self.op("Shape", &[self.at], []);
        let zero = self.ints(&[0]);
        self.op("Gather", &[shape, zero], [])
    }

    fn turn(&mut self, x: ValueId, perm: &[i64]) -> ValueId {
        self.op("Transpose", &[x], [("perm", AttributeValue::Ints(perm.to_vec()))])
    }
}
