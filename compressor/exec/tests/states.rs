//! Masked equals pruned where a caller carries states from run to run, whatever states it feeds.

#![allow(
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    missing_docs,
    dead_code
)]

mod common;
#[path = "common/nets.rs"]
mod nets;

use std::collections::HashMap;

use common::assets;
use exec::Executor;
use graph::{
    AttributeValue, Builder, Choice, DType, DeadCode, Dim, Driver, Edit, FoldMoves, Grouping,
    InlineIf, Model, Op, PrunePlan, Tensor, ValueId, find, infer, mask, prune,
};
use nets::Numbers;
use proptest::prelude::*;

const FEATURES: usize = 3;

/// How the layer is written down, and its states with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// One node, states `h` and `c`.
    Node { kind: u8 },
    /// One node that takes both states out of one input, and puts them into one output.
    Stacked,
    /// Two nodes, one behind the other, that share one input and one output.
    Deep,
    /// A cell of products, gates and a sum, with states `h` and `c`.
    LstmCell,
    /// A cell that mixes its state with a candidate.
    GruCell,
}

struct Net {
    builder: Builder,
    numbers: Numbers,
    hidden: usize,
}

impl Net {
    fn weight(&mut self, dims: &[usize]) -> ValueId {
        let tensor = self.numbers.tensor(dims, 0.8, 0.0);
        self.builder.constant("w", tensor).unwrap()
    }

    fn ints(&mut self, values: &[i64]) -> ValueId {
        let tensor = Tensor::from_i64(vec![values.len()], values).unwrap();
        self.builder.constant("i", tensor).unwrap()
    }

    fn scalar(&mut self, value: i64) -> ValueId {
        self.builder.constant("s", Tensor::from_i64(vec![], &[value]).unwrap()).unwrap()
    }

    fn op(&mut self, op: &str, inputs: &[ValueId]) -> ValueId {
        self.builder.node(op, inputs, []).unwrap()
    }

    fn on_axis(&mut self, op: &str, inputs: &[ValueId], axis: i64) -> ValueId {
        self.builder.node(op, inputs, [("axis", AttributeValue::Int(axis))]).unwrap()
    }

    fn state(&mut self, name: &str, dims: &[usize]) -> ValueId {
        let batch = dims.iter().map(|&size| match size {
            0 => Dim::Symbol("N".into()),
            size => Dim::Fixed(size),
        });
        self.builder.input(name, DType::F32, batch.collect())
    }

    /// Outputs of a recurrent node.
    fn layer(&mut self, kind: u8, x: ValueId, features: usize, states: &[ValueId]) -> Vec<ValueId> {
        let (op, gates) = [("LSTM", 4), ("GRU", 3), ("RNN", 1)][usize::from(kind)];
        let w = self.weight(&[1, gates * self.hidden, features]);
        let r = self.weight(&[1, gates * self.hidden, self.hidden]);
        let bias = self.weight(&[1, 2 * gates * self.hidden]);
        let mut inputs = vec![Some(x), Some(w), Some(r), Some(bias), None];
        inputs.extend(states.iter().copied().map(Some));
        let hidden = [("hidden_size", AttributeValue::Int(self.hidden as i64))];
        self.builder.nodes(op, &inputs, hidden, 1 + states.len()).unwrap()
    }

    /// `x · W + h · R`, split into `gates`.
    fn gates(&mut self, x: ValueId, h: ValueId, gates: usize) -> Vec<ValueId> {
        let w = self.weight(&[gates * self.hidden, FEATURES]);
        let r = self.weight(&[gates * self.hidden, self.hidden]);
        let (b, c) = (self.weight(&[gates * self.hidden]), self.weight(&[gates * self.hidden]));
        let turned = || [("transB", AttributeValue::Int(1))];
        let from_input = self.builder.node("Gemm", &[x, w, b], turned()).unwrap();
        let back = self.builder.node("Gemm", &[h, r, c], turned()).unwrap();
        let all = self.op("Add", &[from_input, back]);
        let axis = [("axis", AttributeValue::Int(1))];
        self.builder.nodes("Split", &[Some(all)], axis, gates).unwrap()
    }
}

/// Input `x` of `[4, N, 3]`, or `[N, 3]` for a cell; output `y` and the new states.
fn build(form: Form, hidden: usize, seed: u64) -> Model {
    let mut net = Net { builder: Builder::new(17), numbers: Numbers::new(seed), hidden };
    let cell = matches!(form, Form::LstmCell | Form::GruCell);
    let x = net.state("x", if cell { &[0, FEATURES] } else { &[4, 0, FEATURES] });
    let (seen, states) = match form {
        Form::Node { kind } => {
            let names = if kind == 0 { &["h", "c"][..] } else { &["h"] };
            let states: Vec<_> =
                names.iter().map(|name| net.state(name, &[1, 0, hidden])).collect();
            let outputs = net.layer(kind, x, FEATURES, &states);
            (outputs[0], outputs[1..].iter().copied().zip(["hn", "cn"]).collect::<Vec<_>>())
        }
        Form::Stacked => stacked(&mut net, x),
        Form::Deep => deep(&mut net, x),
        Form::LstmCell => lstm_cell(&mut net, x),
        Form::GruCell => gru_cell(&mut net, x),
    };
    let w = net.weight(&[hidden, 2]);
    let y = net.op("MatMul", &[seen, w]);
    for (state, name) in &states {
        net.builder.rename(*state, name).unwrap();
    }
    let outputs: Vec<_> = [y].into_iter().chain(states.iter().map(|state| state.0)).collect();
    net.builder.finish(&outputs).unwrap()
}

type Made = (ValueId, Vec<(ValueId, &'static str)>);

fn stacked(net: &mut Net, x: ValueId) -> Made {
    let state = net.state("carried", &[2, 0, net.hidden]);
    let mut parts = Vec::new();
    for index in 0..2 {
        let (index, axes) = (net.scalar(index), net.ints(&[0]));
        let part = net.on_axis("Gather", &[state, index], 0);
        parts.push(net.op("Unsqueeze", &[part, axes]));
    }
    let outputs = net.layer(0, x, FEATURES, &parts);
    // No name relates the two: the layer does.
    (outputs[0], vec![(net.on_axis("Concat", &outputs[1..], 0), "remembered")])
}

fn deep(net: &mut Net, x: ValueId) -> Made {
    let state = net.state("state_in", &[2, 0, net.hidden]);
    let halves = net.ints(&[1, 1]);
    let axis = [("axis", AttributeValue::Int(0))];
    let parts = net.builder.nodes("Split", &[Some(state), Some(halves)], axis, 2).unwrap();
    let first = net.layer(1, x, FEATURES, &parts[..1]);
    let axes = net.ints(&[1]);
    let between = net.op("Squeeze", &[first[0], axes]);
    let second = net.layer(1, between, net.hidden, &parts[1..]);
    (second[0], vec![(net.on_axis("Concat", &[first[1], second[1]], 0), "state_out")])
}

fn lstm_cell(net: &mut Net, x: ValueId) -> Made {
    let (h, c) = (net.state("h", &[0, net.hidden]), net.state("c", &[0, net.hidden]));
    let gates = net.gates(x, h, 4);
    let (i, f, o) = (
        net.op("Sigmoid", &[gates[0]]),
        net.op("Sigmoid", &[gates[1]]),
        net.op("Sigmoid", &[gates[3]]),
    );
    let g = net.op("Tanh", &[gates[2]]);
    let (kept, added) = (net.op("Mul", &[f, c]), net.op("Mul", &[i, g]));
    let cell = net.op("Add", &[kept, added]);
    let shown = net.op("Tanh", &[cell]);
    let hidden = net.op("Mul", &[o, shown]);
    (hidden, vec![(hidden, "hn"), (cell, "cn")])
}

fn gru_cell(net: &mut Net, x: ValueId) -> Made {
    let h = net.state("prev_state", &[0, net.hidden]);
    let gates = net.gates(x, h, 2);
    let (update, candidate) = (net.op("Sigmoid", &[gates[0]]), net.op("Tanh", &[gates[1]]));
    let change = net.op("Sub", &[h, candidate]);
    let scaled = net.op("Mul", &[update, change]);
    let next = net.op("Add", &[candidate, scaled]);
    (next, vec![(next, "next_state")])
}

fn half(grouping: &Grouping) -> PrunePlan {
    let choices = grouping.groups.iter().map(|group| Choice {
        group: group.id,
        keep: (0..group.width as u32).filter(|unit| unit % 2 == 0).collect(),
    });
    PrunePlan { choices: choices.collect() }
}

fn run(model: &Model, inputs: &HashMap<String, Tensor>) -> Vec<Tensor> {
    let found = Executor::new(model).unwrap().run(inputs.clone(), model.graph.outputs());
    let found = found.unwrap_or_else(|error| panic!("{error}"));
    model.graph.outputs().iter().map(|output| found[output].clone()).collect()
}

/// `(name, element type, dimensions)` of what the caller sees.
fn interface(model: &Model) -> Vec<(String, String)> {
    let graph = &model.graph;
    let all = graph.inputs().iter().chain(graph.outputs());
    all.map(|&value| (graph.value(value).name.clone(), format!("{:?}", graph.value(value).ty)))
        .collect()
}

/// Runs both thrice, from states that nobody made, each time with what they gave back.
fn same_for_every_state(
    masked: &Model,
    pruned: &Model,
    mut inputs: HashMap<String, Tensor>,
    carried: &[(usize, &str)],
) -> Result<(), String> {
    for round in 0..3 {
        let (a, b) = (run(masked, &inputs), run(pruned, &inputs));
        for (index, (a, b)) in a.iter().zip(&b).enumerate() {
            common::compare(a, b, 1e-4, 1e-5)
                .map_err(|why| format!("round {round}, output {index}: {why}"))?;
        }
        for (output, input) in carried {
            inputs.insert((*input).to_owned(), b[*output].clone());
        }
    }
    Ok(())
}

fn forms() -> impl Strategy<Value = Form> {
    prop_oneof![
        (0u8..3).prop_map(|kind| Form::Node { kind }),
        Just(Form::Stacked),
        Just(Form::Deep),
        Just(Form::LstmCell),
        Just(Form::GruCell),
    ]
}

fn carried(form: Form) -> &'static [(usize, &'static str)] {
    match form {
        Form::Node { kind: 0 } | Form::LstmCell => &[(1, "h"), (2, "c")],
        Form::Node { .. } => &[(1, "h")],
        Form::Stacked => &[(1, "carried")],
        Form::Deep => &[(1, "state_in")],
        Form::GruCell => &[(1, "prev_state")],
    }
}

fn feeds(model: &Model, numbers: &mut Numbers) -> HashMap<String, Tensor> {
    let graph = &model.graph;
    let feed = graph.inputs().iter().map(|&input| {
        let value = graph.value(input);
        let dims = value.ty.as_ref().unwrap().dims.as_ref().unwrap();
        let dims: Vec<usize> = dims.iter().map(|dim| dim.fixed().unwrap_or(2)).collect();
        (value.name.clone(), numbers.tensor(&dims, 1.0, 0.3))
    });
    feed.collect()
}

/// More by `PROPTEST_CASES`.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(200)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases()) })]
    #[test]
    fn masked_equals_pruned_for_every_state(
        form in forms(), hidden in 2usize..7, seed in 1u64..1_000_000, bits in 1u32..127,
    ) {
        let model = build(form, hidden, seed);
        let grouping = find(&model, &infer(&model));
        prop_assert_eq!(grouping.groups.len(), 1, "{:?}", grouping.locked);
        prop_assert_eq!(grouping.groups[0].width, hidden);
        prop_assert_eq!(grouping.states.len(), carried(form).len());
        let mut keep: Vec<u32> = (0..hidden as u32).filter(|unit| bits >> unit & 1 == 1).collect();
        if keep.is_empty() {
            keep.push(0);
        }
        let plan = PrunePlan { choices: vec![Choice { group: grouping.groups[0].id, keep }] };
        let masked = mask(&model, &grouping, &plan).unwrap();
        masked.verify().unwrap();
        let mut pruned = model.clone();
        prune(&mut pruned, &grouping, &plan).unwrap();
        prop_assert_eq!(interface(&pruned), interface(&model));
        prop_assert_eq!(interface(&masked), interface(&model));
        prop_assert!(infer(&pruned).conflicts().is_empty());
        let inputs = feeds(&model, &mut Numbers::new(seed + 1));
        let same = same_for_every_state(&masked, &pruned, inputs, carried(form));
        prop_assert!(same.is_ok(), "{:?}", same);
    }
}

/// Exports of one voice activity detector whose graph is plain, at once or when decided branches are put in
/// place; the last by choosing its network for 16 kHz, whose recurrent layer is a cell of products and gates.
fn voice_detectors() -> Vec<(&'static str, Model)> {
    let names = [
        "silero_vad_16k_sequence.onnx",
        "silero_vad_openvino_16k.onnx",
        "silero_vad_16k_op15.onnx",
        "silero_vad_half.onnx",
        "silero_vad_op18_ifless.onnx",
    ];
    let load = |name: &'static str| {
        let mut model = Model::load(assets().join("models").join(name)).unwrap();
        if name.contains("ifless") {
            let chosen = model.graph.nodes().find(|(_, node)| node.op == Op::If).unwrap().0;
            let edit = Edit::Inline { node: chosen, branch: "then_branch".to_owned() };
            graph::apply(&mut model.graph, edit, &graph::Cause::new("test", "16 kHz")).unwrap();
        }
        Driver::default().run(&mut model, &[&InlineIf, &FoldMoves, &DeadCode]).unwrap();
        (name, model)
    };
    names.into_iter().map(load).collect()
}

#[test]
fn masked_equals_pruned_on_voice_detectors_for_every_state() {
    for (name, model) in voice_detectors() {
        let grouping = find(&model, &infer(&model));
        assert!(!grouping.states.is_empty(), "{name}: {:#?}", grouping.locked);
        let plan = half(&grouping);
        let masked = mask(&model, &grouping, &plan).unwrap();
        let mut pruned = model.clone();
        prune(&mut pruned, &grouping, &plan).unwrap();
        assert_eq!(interface(&pruned), interface(&model), "{name}");
        assert!(infer(&pruned).conflicts().is_empty(), "{name}: {:?}", infer(&pruned).conflicts());
        let mut numbers = Numbers::new(3);
        let mut inputs = HashMap::from([("input".to_owned(), numbers.tensor(&[1, 576], 0.4, 0.0))]);
        let carried: &[(usize, &str)] = match name.contains("sequence") {
            true => &[(1, "h"), (2, "c")],
            false => &[(1, "state")],
        };
        for (_, state) in carried {
            let dims = if carried.len() == 2 { [1, 1, 128] } else { [2, 1, 128] };
            inputs.insert((*state).to_owned(), numbers.tensor(&dims, 0.5, 0.1));
        }
        if model.graph.inputs().iter().any(|&input| model.graph.value(input).name == "sr") {
            inputs.insert("sr".to_owned(), Tensor::from_i64(vec![], &[16_000]).unwrap());
        }
        same_for_every_state(&masked, &pruned, inputs, carried)
            .unwrap_or_else(|why| panic!("{name}: {why}"));
    }
}

#[test]
fn an_input_that_is_no_state_keeps_its_width() {
    // The output is the input plus what a layer of the same width makes of it: the same units, but data.
    let mut net = Net { builder: Builder::new(17), numbers: Numbers::new(1), hidden: 4 };
    let x = net.state("x", &[0, 4]);
    let (w, v) = (net.weight(&[4, 4]), net.weight(&[4, 4]));
    let inner = net.op("MatMul", &[x, w]);
    let inner = net.op("MatMul", &[inner, v]);
    let y = net.op("Add", &[x, inner]);
    let model = net.builder.finish(&[y]).unwrap();
    let grouping = find(&model, &infer(&model));
    assert_eq!(grouping.states, []);
    assert_eq!(grouping.groups.len(), 1, "only what lies between the products");
    assert!(grouping.locked.iter().any(|lock| lock.by == graph::LockedBy::GraphOutput));
}
