//! Hidden units of recurrent layers: what goes with them, and what keeps them.

#![allow(clippy::unwrap_used)]

use graph::{
    AttributeValue, Builder, Choice, DType, Dim, Group, Grouping, LockedBy, Model, PrunePlan, Role,
    Tensor, ValueId, find, infer, prune,
};

const HIDDEN: usize = 6;
const FEATURES: usize = 3;

/// `[T, N, 3]` and whatever `rest` makes of it.
fn net(rest: impl FnOnce(&mut Builder, ValueId) -> ValueId) -> (Model, Grouping) {
    let mut builder = Builder::new(17);
    let dims = vec![Dim::Symbol("T".into()), Dim::Symbol("N".into()), Dim::Fixed(FEATURES)];
    let x = builder.input("x", DType::F32, dims);
    let out = rest(&mut builder, x);
    let model = builder.finish(&[out]).unwrap();
    let grouping = find(&model, &infer(&model));
    (model, grouping)
}

fn weight(builder: &mut Builder, dims: &[usize]) -> ValueId {
    let values: Vec<f32> =
        (0..dims.iter().product::<usize>()).map(|i| (i % 7) as f32 / 7.0 - 0.4).collect();
    builder.constant("w", Tensor::from_f32(dims.to_vec(), &values).unwrap()).unwrap()
}

fn ints(builder: &mut Builder, values: &[i64]) -> ValueId {
    builder.constant("i", Tensor::from_i64(vec![values.len()], values).unwrap()).unwrap()
}

/// An LSTM with every optional input but `start`, and its three outputs.
fn lstm(
    builder: &mut Builder,
    x: ValueId,
    start: [Option<ValueId>; 2],
    activations: Option<[&'static str; 3]>,
) -> Vec<ValueId> {
    let w = weight(builder, &[1, 4 * HIDDEN, FEATURES]);
    let r = weight(builder, &[1, 4 * HIDDEN, HIDDEN]);
    let bias = weight(builder, &[1, 8 * HIDDEN]);
    let peepholes = weight(builder, &[1, 3 * HIDDEN]);
    let inputs = [Some(x), Some(w), Some(r), Some(bias), None, start[0], start[1], Some(peepholes)];
    let mut attributes = vec![("hidden_size", AttributeValue::Int(HIDDEN as i64))];
    if let Some(names) = activations {
        let names = names.iter().map(|name| name.as_bytes().into()).collect();
        attributes.push(("activations", AttributeValue::Strings(names)));
    }
    builder.nodes("LSTM", &inputs, attributes, 3).unwrap()
}

/// `[T, 1, N, 6]` to a product that reads the units.
fn read(builder: &mut Builder, y: ValueId) -> ValueId {
    let w = weight(builder, &[HIDDEN, 2]);
    builder.node("MatMul", &[y, w], []).unwrap()
}

fn sum(builder: &mut Builder, y: ValueId) -> ValueId {
    let axes = ints(builder, &[-1]);
    builder.node("ReduceSum", &[y, axes], []).unwrap()
}

fn hidden(grouping: &Grouping) -> Option<&Group> {
    grouping.groups.iter().find(|group| group.width == HIDDEN)
}

fn assert_locked((model, grouping): &(Model, Grouping), op: &str, why: &str) {
    assert!(hidden(grouping).is_none(), "found {:?}", grouping.groups);
    let by = |lock: &graph::Locked| match lock.by {
        LockedBy::Node(node) => model.graph.node(node).op_type.clone(),
        other => format!("{other:?}"),
    };
    let hit = grouping.locked.iter().any(|lock| by(lock) == op && lock.why.contains(why));
    assert!(hit, "wanted {op}: {why}; found {:#?}", grouping.locked);
}

#[test]
fn a_hidden_unit_is_its_rows_in_every_gate_and_its_column() {
    let (mut model, grouping) = net(|b, x| {
        let y = lstm(b, x, [None, None], None);
        let last = b.node("Add", &[y[1], y[2]], []).unwrap();
        let all = b.node("Add", &[y[0], last], []).unwrap();
        read(b, all)
    });
    let group = hidden(&grouping).unwrap();
    let mut shown: Vec<(usize, usize, Role, Vec<u32>)> = group
        .slices
        .iter()
        .filter(|slice| model.graph.node(slice.node).op_type == "LSTM")
        .map(|slice| (slice.slot, slice.axis, slice.role, slice.map.unit(1).to_vec()))
        .collect();
    shown.sort();
    let gates: Vec<u32> = (0..8).map(|gate| gate * 6 + 1).collect();
    assert_eq!(
        shown,
        [
            (1, 1, Role::Producer, gates[..4].to_vec()),
            (2, 1, Role::Producer, gates[..4].to_vec()),
            (2, 2, Role::Consumer, vec![1]),
            (3, 1, Role::Producer, gates.clone()),
            (7, 1, Role::Elementwise, gates[..3].to_vec()),
        ]
    );
    let plan = PrunePlan { choices: vec![Choice { group: group.id, keep: vec![0, 2, 5] }] };
    prune(&mut model, &grouping, &plan).unwrap();
    let (_, node) = model.graph.nodes().find(|(_, node)| node.op_type == "LSTM").unwrap();
    assert_eq!(node.attr_int("hidden_size"), Some(3));
    assert_eq!(model.graph.constant(node.input(1).unwrap()).unwrap().dims, [1, 12, 3]);
    assert_eq!(model.graph.constant(node.input(2).unwrap()).unwrap().dims, [1, 12, 3]);
    assert_eq!(model.graph.constant(node.input(3).unwrap()).unwrap().dims, [1, 24]);
    assert!(infer(&model).conflicts().is_empty());
}

#[test]
fn units_that_feed_a_layer_go_with_its_input_columns() {
    let (model, grouping) = net(|b, x| {
        let w = weight(b, &[FEATURES, FEATURES]);
        let x = b.node("MatMul", &[x, w], []).unwrap();
        let y = lstm(b, x, [None, None], None);
        read(b, y[0])
    });
    let group = grouping.groups.iter().find(|group| group.width == FEATURES).unwrap();
    assert!(group.consumers.iter().any(|consumer| {
        model.graph.node(consumer.node).op_type == "LSTM" && consumer.weight == Some((1, 2))
    }));
}

#[test]
fn a_unit_that_begins_at_zero_is_silent_and_one_that_does_not_is_heard_by_a_sum() {
    let silent = net(|b, x| {
        let y = lstm(b, x, [None, None], None);
        sum(b, y[0])
    });
    assert!(hidden(&silent.1).is_some(), "{:#?}", silent.1.locked);
    let loud = net(|b, x| {
        // Begins at sigmoid(first step · W): a half for a masked unit.
        let (zero, w) = (ints(b, &[0]), weight(b, &[FEATURES, HIDDEN]));
        let first = b.node("Gather", &[x, zero], [("axis", AttributeValue::Int(0))]).unwrap();
        let product = b.node("MatMul", &[first, w], []).unwrap();
        let start = b.node("Sigmoid", &[product], []).unwrap();
        let y = lstm(b, x, [Some(start), Some(start)], None);
        sum(b, y[0])
    });
    assert_locked(&loud, "ReduceSum", "not exactly zero");
}

#[test]
fn zeros_of_a_batch_that_is_read_off_the_input_are_zeros() {
    let (_, grouping) = net(|b, x| {
        let shape = b.node("Shape", &[x], []).unwrap();
        let (one, units) = (ints(b, &[1]), ints(b, &[HIDDEN as i64]));
        let batch = b.node("Gather", &[shape, one], []).unwrap();
        let shape =
            b.node("Concat", &[one, batch, units], [("axis", AttributeValue::Int(0))]).unwrap();
        let zeros = b.node("ConstantOfShape", &[shape], []).unwrap();
        let y = lstm(b, x, [Some(zeros), Some(zeros)], None);
        sum(b, y[0])
    });
    assert!(hidden(&grouping).is_some(), "{:#?}", grouping.locked);
}

#[test]
fn activations_that_do_not_keep_zero_are_heard_and_unbounded_ones_lock() {
    let with = |names: [&'static str; 3], sums: bool| {
        net(move |b, x| {
            let y = lstm(b, x, [None, None], Some(names));
            if sums { sum(b, y[0]) } else { read(b, y[0]) }
        })
    };
    assert!(hidden(&with(["Sigmoid", "Relu", "Softsign"], true).1).is_some());
    assert!(hidden(&with(["Sigmoid", "Sigmoid", "Tanh"], false).1).is_some());
    assert_locked(&with(["Sigmoid", "Sigmoid", "Tanh"], true), "ReduceSum", "not exactly zero");
    assert_locked(&with(["Softplus", "Tanh", "Tanh"], false), "LSTM", "might not be finite");
}

#[test]
fn time_states_from_outside_and_outputs_keep_their_axes() {
    let given = net(|b, x| {
        let y = lstm(b, x, [None, None], None);
        let axes = ints(b, &[1]);
        let y = b.node("Squeeze", &[y[0], axes], []).unwrap();
        b.node("Transpose", &[y], [("perm", AttributeValue::Ints(vec![2, 1, 0]))]).unwrap()
    });
    assert_locked(&given, "GraphOutput", "output of the model");
    let start = net(|b, x| {
        let dims = vec![Dim::Fixed(1), Dim::Symbol("N".into()), Dim::Fixed(HIDDEN)];
        let start = b.input("start", DType::F32, dims);
        let y = lstm(b, x, [Some(start), None], None);
        read(b, y[0])
    });
    assert_locked(&start, "GraphInput", "input of the model");
    let steps = {
        let mut builder = Builder::new(17);
        let w = weight(&mut builder, &[4, HIDDEN]);
        let seed = builder.input("x", DType::F32, vec![Dim::Fixed(FEATURES), Dim::Fixed(4)]);
        let x = builder.node("MatMul", &[seed, w], []).unwrap();
        // [3, 6] to [6 steps, 1, 3 features]
        let x = builder.node("Transpose", &[x], []).unwrap();
        let axes = ints(&mut builder, &[1]);
        let x = builder.node("Unsqueeze", &[x, axes], []).unwrap();
        let y = lstm(&mut builder, x, [None, None], None);
        let axes = ints(&mut builder, &[0, 3]);
        let out = builder.node("ReduceSum", &[y[0], axes], []).unwrap();
        let model = builder.finish(&[out]).unwrap();
        let grouping = find(&model, &infer(&model));
        (model, grouping)
    };
    let locked = &steps.1.locked;
    assert!(
        locked.iter().any(|lock| lock.why.contains("LSTM recurs over this axis")),
        "{locked:?}"
    );
}
