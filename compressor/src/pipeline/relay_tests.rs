use graph::Builder;

use super::*;
use crate::pipeline::Silent;
use crate::pipeline::shop::Shop;
use crate::pipeline::testing::{job_of, weight};

const SAMPLES: usize = 11;

/// Three layers in a row, and a way around the middle one; `x` is read again at the end.
fn net() -> Model {
    let mut builder = Builder::new(15);
    let x = builder.input("x", DType::F32, vec![Dim::Symbol("N".into()), Dim::Fixed(6)]);
    let mut h = x;
    let mut first = x;
    for name in ["a", "b", "c"] {
        let w = weight(&mut builder, name, 6, 6);
        h = builder.node("MatMul", &[h, w], []).unwrap();
        h = builder.node("Relu", &[h], []).unwrap();
        if name == "a" {
            first = h;
        }
    }
    h = builder.node("Add", &[h, first], []).unwrap();
    h = builder.node("Mul", &[h, x], []).unwrap();
    builder.finish(&[h]).unwrap()
}

/// The three products.
fn products(model: &Model) -> Vec<(NodeId, ValueId)> {
    let nodes = model.graph.nodes().filter(|(_, node)| node.op_type == "MatMul");
    nodes.map(|(id, node)| (id, node.outputs[0].unwrap())).collect()
}

fn seen(relay: &mut Relay<'_>, model: &Model, node: NodeId, values: &[ValueId]) -> Vec<Vec<f32>> {
    let mut all = vec![Vec::new(); values.len()];
    let mut numbers = Vec::new();
    relay
        .run(model, &[node], values, &mut |number, tensors| {
            numbers.push(number);
            for (all, tensor) in all.iter_mut().zip(tensors) {
                all.extend(tensor.to_f32().unwrap());
            }
            Ok(())
        })
        .unwrap();
    assert!(numbers.is_sorted() && numbers.len() == SAMPLES.div_ceil(relay.size()), "{numbers:?}");
    all
}

/// What a fresh run from the inputs gives.
fn afresh(shop: &Shop<'_>, model: &Model, value: ValueId) -> Vec<f32> {
    let mut relay = Relay::new(shop, SAMPLES, 4);
    let last = model.graph.nodes().last().unwrap().0;
    seen(&mut relay, model, last, &[value]).remove(0)
}

fn doubled(model: &mut Model, node: NodeId) {
    let w = model.graph.node(node).inputs[1].unwrap();
    let old = model.graph.constant(w).unwrap();
    let values: Vec<f32> = old.to_f32_vec().unwrap().iter().map(|v| 2.0 * v).collect();
    let tensor = graph::Tensor::from_f32(old.dims.clone(), &values).unwrap();
    let edit = Edit::SetConstant { value: w, tensor };
    graph::apply(&mut model.graph, edit, &Cause::new("test", "")).unwrap();
}

/// Changes one product after the other, and compares what a relay sees with what a run from the inputs does.
fn relayed(limit: usize) -> Vec<usize> {
    let folder = tempfile::tempdir().unwrap();
    let mut model = net();
    let job = job_of(folder.path(), &model, &[6], SAMPLES);
    let shop = Shop::open_whole(&job, &Silent).unwrap();
    let mut relay = Relay { limit, ..Relay::new(&shop, SAMPLES, 4) };
    let mut held = Vec::new();
    for (node, output) in products(&model.clone()) {
        let input = model.graph.node(node).inputs[0].unwrap();
        let found = seen(&mut relay, &model, node, &[input, output]);
        assert_eq!(found[1], afresh(&shop, &model, output));
        if input != model.graph.inputs()[0] {
            assert_eq!(found[0], afresh(&shop, &model, input));
        }
        held.push(relay.held[0].len());
        doubled(&mut model, node);
    }
    let end = model.graph.outputs()[0];
    let last = model.graph.nodes().last().unwrap().0;
    assert_eq!(seen(&mut relay, &model, last, &[end]), [afresh(&shop, &model, end)]);
    held
}

#[test]
fn a_relay_sees_what_a_run_from_the_inputs_does_and_holds_only_what_crosses() {
    // In front of the first product nothing was computed; then its activation; then the way around as well.
    assert_eq!(relayed(MAX_HELD_BYTES), [0, 1, 2]);
}

#[test]
fn where_too_much_crosses_the_run_starts_further_back_and_gives_the_same() {
    assert_eq!(relayed(0), [0, 0, 0]);
    // One activation of eleven samples, and no second one.
    assert_eq!(relayed(SAMPLES * 6 * 4), [0, 1, 1]);
}

#[test]
fn a_place_in_front_of_the_last_one_starts_from_the_inputs() {
    let folder = tempfile::tempdir().unwrap();
    let mut model = net();
    let job = job_of(folder.path(), &model, &[6], SAMPLES);
    let shop = Shop::open_whole(&job, &Silent).unwrap();
    let places = products(&model);
    let mut relay = Relay::new(&shop, SAMPLES, 4);
    seen(&mut relay, &model, places[2].0, &[places[2].1]);
    doubled(&mut model, places[0].0);
    let found = seen(&mut relay, &model, places[0].0, &[places[2].1]);
    assert_eq!(found, [afresh(&shop, &model, places[2].1)]);
}

/// Some engines plan by sizes: a free axis of the model's own input would leave them none.
#[test]
fn a_part_declares_its_inputs_as_the_samples_are_where_all_batches_are_alike() {
    let folder = tempfile::tempdir().unwrap();
    let model = net();
    let job = job_of(folder.path(), &model, &[6], SAMPLES);
    let shop = Shop::open_whole(&job, &Silent).unwrap();
    let declared = |size: usize| {
        let mut part = model.clone();
        Relay::new(&shop, SAMPLES, size).fix_inputs(&mut part).unwrap();
        let ty = part.graph.value(part.graph.inputs()[0]).ty.clone();
        ty.unwrap().dims.unwrap()
    };
    assert_eq!(declared(1), [Dim::Fixed(1), Dim::Fixed(6)]);
    assert_eq!(declared(SAMPLES), [Dim::Fixed(SAMPLES), Dim::Fixed(6)]);
    // Eleven samples in batches of four: the last one is shorter.
    assert_eq!(declared(4), [Dim::Symbol("N".into()), Dim::Fixed(6)]);
}
