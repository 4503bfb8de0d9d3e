//! The chain from an axis to what locks it, and costs that are counted without cutting.

#![allow(clippy::unwrap_used)]

use graph::{
    AttributeValue, Builder, Choice, DType, Dim, LockedBy, Model, PrunePlan, Scope, Tensor, cost,
    find, infer, prune, why,
};

fn weight(builder: &mut Builder, name: &str, rows: usize, columns: usize) -> graph::ValueId {
    let values: Vec<f32> = (0..rows * columns).map(|i| (i % 7) as f32 / 7.0 + 0.1).collect();
    builder.constant(name, Tensor::from_f32(vec![rows, columns], &values).unwrap()).unwrap()
}

/// `x` times 3 by 6, behind an activation times 6 by 4, behind another the classes of a softmax.
fn classifier() -> Model {
    let mut builder = Builder::new(17);
    let x = builder.input("x", DType::F32, vec![Dim::Symbol("N".into()), Dim::Fixed(3)]);
    let first = weight(&mut builder, "first", 3, 6);
    let units = builder.node("MatMul", &[x, first], []).unwrap();
    let active = builder.node("Relu", &[units], []).unwrap();
    let second = weight(&mut builder, "second", 6, 4);
    let classes = builder.node("MatMul", &[active, second], []).unwrap();
    builder.rename(classes, "classes").unwrap();
    let scaled = builder.node("Relu", &[classes], []).unwrap();
    let shares = builder.node("Softmax", &[scaled], [("axis", AttributeValue::Int(1))]).unwrap();
    builder.finish(&[shares]).unwrap()
}

#[test]
fn the_chain_leads_over_every_node_to_the_one_that_locks() {
    let model = classifier();
    let shapes = infer(&model);
    let graph = &model.graph;
    let (classes, second) =
        (graph.value_by_name("classes").unwrap(), graph.value_by_name("second").unwrap());
    let found = why(&model, &shapes, &Scope::default(), &[classes, second]);
    let by_softmax = |reaches: &[graph::Reach]| {
        let softmax = |by: LockedBy| match by {
            LockedBy::Node(node) => graph.node(node).op_type == "Softmax",
            _ => false,
        };
        reaches.iter().find(|reach| softmax(reach.lock.by)).cloned().unwrap()
    };
    let ops = |reach: &graph::Reach| -> Vec<String> {
        reach.path.iter().map(|hop| graph.node(hop.node).op_type.clone()).collect()
    };
    let reach = by_softmax(&found[&(classes, 1)]);
    assert_eq!(ops(&reach), ["Relu"], "{reach:?}");
    assert!(reach.lock.why.contains("normalises"), "{reach:?}");
    let reach = by_softmax(&found[&(second, 1)]);
    assert_eq!(ops(&reach), ["MatMul", "Relu"], "{reach:?}");
    // The units between the two products can go, and nothing keeps them.
    assert!(!found.contains_key(&(second, 0)), "{found:?}");
    assert!(why(&model, &shapes, &Scope(vec![(graph::NodeId(99), 0)]), &[classes]).is_empty());
}

#[test]
fn what_a_pruning_leaves_is_counted_as_it_is_then_found() {
    let model = classifier();
    let shapes = infer(&model);
    let grouping = find(&model, &shapes);
    for kept in 1..=6usize {
        let left = cost::left(&model, &shapes, &grouping, 5, &|width| width.min(kept));
        let mut pruned = model.clone();
        let choices = grouping.groups.iter().map(|group| Choice {
            group: group.id,
            keep: (0..u32::try_from(kept).unwrap()).collect(),
        });
        prune(&mut pruned, &grouping, &PrunePlan { choices: choices.collect() }).unwrap();
        assert_eq!(left.params, cost::params(&pruned), "{kept}");
        assert_eq!(left.inner_params, cost::inner_params(&pruned), "{kept}");
        assert_eq!(left.macs, cost::macs(&pruned, &infer(&pruned), 5), "{kept}");
    }
    let none = cost::left(&model, &shapes, &grouping, 1, &|_| 0);
    assert_eq!((none.params, none.inner_params, none.macs), (0, 0, 0));
}

/// A weight that two layers read, one of which loses units: a pruning copies it, and so does the count.
#[test]
fn a_constant_that_readers_want_cut_differently_counts_for_each() {
    let mut builder = Builder::new(17);
    let x = builder.input("x", DType::F32, vec![Dim::Fixed(1), Dim::Fixed(4)]);
    let shared = weight(&mut builder, "shared", 4, 4);
    let a = builder.node("MatMul", &[x, shared], []).unwrap();
    let b = builder.node("Relu", &[a], []).unwrap();
    let y = builder.node("MatMul", &[b, shared], []).unwrap();
    let model = builder.finish(&[y]).unwrap();
    let shapes = infer(&model);
    let grouping = find(&model, &shapes);
    assert_eq!(grouping.groups.len(), 1);
    let left = cost::left(&model, &shapes, &grouping, 1, &|_| 1);
    let mut pruned = model.clone();
    let choice = Choice { group: grouping.groups[0].id, keep: vec![0] };
    prune(&mut pruned, &grouping, &PrunePlan { choices: vec![choice] }).unwrap();
    assert_eq!((left.params, cost::params(&pruned)), (8, 8));
}
