//! Edits leave a valid graph or none; passes keep what a model computes.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use graph::{
    AttributeValue, Cause, DType, DeadCode, Dim, Driver, Edit, Editor, Halt, LiftConstants, Model,
    Node, NodeId, Op, Origin, Pass, PassError, Tensor, TensorType, ValueId, apply, same,
};
use proptest::prelude::*;

#[path = "support/assets.rs"]
mod assets;
#[path = "support/edited.rs"]
mod edited;

use edited::{edit_one, sample};

fn cause() -> Cause {
    Cause::new("test", "because")
}

fn find(model: &Model, op_type: &str) -> NodeId {
    model.graph.nodes().find(|(_, node)| node.op_type == op_type).unwrap().0
}

fn refused(edit: Edit) -> String {
    let mut model = sample();
    let error = apply(&mut model.graph, edit, &cause()).unwrap_err();
    same(&sample(), &model).unwrap();
    model.verify().unwrap();
    assert!(error.to_string().starts_with("test: because: "), "{error}");
    error.what
}

#[test]
fn what_would_break_a_graph_is_refused_and_changes_nothing() {
    let model = sample();
    let id = |name: &str| model.graph.value_by_name(name).unwrap();
    let matmul = find(&model, "MatMul");
    let relu = model.graph.node(find(&model, "Relu")).output(0);
    assert!(
        refused(Edit::ReplaceInput { node: matmul, slot: 0, value: relu })
            .contains("depend on itself")
    );
    assert!(
        refused(Edit::ReplaceInput { node: matmul, slot: 7, value: relu }).contains("2 inputs")
    );
    assert!(refused(Edit::RemoveNode { node: matmul }).contains("still read"));
    assert!(refused(Edit::RemoveNode { node: NodeId(99) }).contains("no node 99"));
    assert!(refused(Edit::RemoveConstant { value: id("w") }).contains("still read"));
    let tensor = Tensor::from_f32(vec![1], &[1.0]).unwrap();
    let alias = model.graph.node(find(&model, "Identity")).output(0).unwrap();
    assert!(
        refused(Edit::SetConstant { value: alias, tensor: tensor.clone() })
            .contains("no dense constant")
    );
    let broken = Tensor { dims: vec![5], ..tensor };
    assert!(
        refused(Edit::SetConstant { value: id("w"), tensor: broken }).contains("needs 20 bytes")
    );
    assert!(refused(Edit::SetOutputs { values: vec![] }).contains("needs an output"));
    assert!(refused(Edit::SetOutputs { values: vec![id("x"), id("x")] }).contains("twice"));
    assert!(refused(Edit::Rename { value: id("w"), name: "x".into() }).contains("taken"));
    assert!(refused(Edit::SetType { value: id("w"), ty: None }).contains("that of its data"));
    let node = Node::new("Neg", "", vec![Some(ValueId(77))], vec![]);
    assert!(refused(Edit::AddNode { node, outputs: vec!["n".into()] }).contains("no value 77"));
}

#[test]
fn a_node_that_looks_at_a_constant_follows_its_change() {
    let mut model = sample();
    let axes = model.graph.value_by_name("axes").unwrap();
    let reduce = find(&model, "ReduceMean");
    let axes_of = |model: &Model| match &model.graph.node(reduce).op {
        Op::Reduce { axes, .. } => axes.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(axes_of(&model), Some(vec![1]));
    let tensor = Tensor::from_i64(vec![1], &[-2]).unwrap();
    apply(&mut model.graph, Edit::SetConstant { value: axes, tensor }, &cause()).unwrap();
    assert_eq!(axes_of(&model), Some(vec![-2]));
    let x = model.graph.value_by_name("x");
    apply(&mut model.graph, Edit::ReplaceInput { node: reduce, slot: 1, value: x }, &cause())
        .unwrap();
    assert_eq!(model.graph.node(reduce).op, Op::Opaque);
    model.verify().unwrap();
}

#[test]
fn a_replaced_node_writes_the_same_values() {
    let mut model = sample();
    let relu = find(&model, "Relu");
    let before = model.graph.node(relu).clone();
    let with = Node::new("LeakyRelu", "", before.inputs.clone(), vec![]);
    apply(&mut model.graph, Edit::ReplaceNode { node: relu, with }, &cause()).unwrap();
    let after = model.graph.node(relu);
    assert_eq!(
        (&after.op_type[..], &after.outputs, &after.name),
        ("LeakyRelu", &before.outputs, &before.name)
    );
    model.verify().unwrap();
}

#[test]
fn names_stay_unique_and_types_that_an_edit_declares_are_written() {
    let mut model = sample();
    let tensor = Tensor::from_f32(vec![1], &[2.0]).unwrap();
    let added =
        apply(&mut model.graph, Edit::AddConstant { name: "w".into(), tensor }, &cause()).unwrap();
    assert_eq!(model.graph.value(added.value().unwrap()).name, "w_1");
    let relu = model.graph.node(find(&model, "Relu")).output(0).unwrap();
    let ty = TensorType { dtype: DType::F32, dims: Some(vec![Dim::Unknown, Dim::Fixed(6)]) };
    apply(&mut model.graph, Edit::SetType { value: relu, ty: Some(ty.clone()) }, &cause()).unwrap();
    apply(&mut model.graph, Edit::Rename { value: relu, name: "hidden".into() }, &cause()).unwrap();
    let mut back = Model::from_bytes(model.to_bytes().unwrap(), None).unwrap();
    let hidden = back.graph.value_by_name("hidden").unwrap();
    assert_eq!(back.graph.value(hidden).ty, Some(ty));
    apply(&mut back.graph, Edit::ForgetTypes, &cause()).unwrap();
    let forgotten = Model::from_bytes(back.to_bytes().unwrap(), None).unwrap();
    let hidden = forgotten.graph.value_by_name("hidden").unwrap();
    assert_eq!(forgotten.graph.value(hidden).ty, None);
}

#[test]
fn a_renamed_value_is_followed_into_bodies() {
    let mut model = Model::load(assets::assets().join("models/silero_vad.onnx")).unwrap();
    let captured: Vec<ValueId> = model
        .graph
        .values()
        .filter(|(id, value)| {
            value.origin == Origin::Input && !model.graph.captured_by(*id).is_empty()
        })
        .map(|(id, _)| id)
        .collect();
    assert!(!captured.is_empty());
    for (number, value) in captured.into_iter().enumerate() {
        let name = format!("renamed_{number}");
        apply(&mut model.graph, Edit::Rename { value, name }, &cause()).unwrap();
        assert!(!model.graph.captured_by(value).is_empty());
    }
    model.verify().unwrap();
    let back = Model::from_bytes(model.to_bytes().unwrap(), None).unwrap();
    same(&model, &back).unwrap();
}

#[test]
fn lifting_gives_each_reader_its_own_weight_and_removes_the_aliases() {
    let mut model = sample();
    let log = Driver::default().run(&mut model, &[&LiftConstants, &DeadCode]).unwrap();
    let types: Vec<&str> = model.graph.nodes().map(|(_, node)| node.op_type.as_str()).collect();
    assert_eq!(types, ["MatMul", "Relu", "ReduceMean", "Add"]);
    let weight = model.graph.node(find(&model, "MatMul")).input(1).unwrap();
    assert_eq!(model.graph.value(weight).origin, Origin::Initializer);
    assert!(log.iter().any(|step| step.cause.by == "lift-constants"));
    assert!(log.iter().any(|step| step.cause.by == "dead-code"));
    // Nothing more to do.
    assert!(Driver::default().run(&mut model, &[&LiftConstants, &DeadCode]).unwrap().is_empty());
}

#[test]
fn the_driver_stops_after_any_number_of_edits_with_a_valid_model() {
    let all = Driver::default().run(&mut sample(), &[&LiftConstants, &DeadCode]).unwrap();
    for stop in 0..=all.len() {
        let mut model = sample();
        let driver = Driver { stop_after: Some(stop), ..Driver::default() };
        let log = driver.run(&mut model, &[&LiftConstants, &DeadCode]).unwrap();
        assert_eq!(log, all[..stop]);
        model.verify().unwrap();
    }
}

/// Removes a node that is read.
struct Careless;

impl Pass for Careless {
    fn name(&self) -> &'static str {
        "careless"
    }

    fn run(&self, editor: &mut Editor<'_>) -> Result<(), Halt> {
        let (node, _) = editor.graph().nodes().next().unwrap();
        editor.apply(Edit::RemoveNode { node }, "on a whim").map(drop)
    }
}

#[test]
fn a_failing_pass_is_undone_and_leaves_a_reproducer() {
    let folder = tempfile::tempdir().unwrap();
    let driver = Driver { reproducer: Some(folder.path().join("repro")), ..Driver::default() };
    let mut model = sample();
    let error = driver.run(&mut model, &[&Careless]).unwrap_err();
    assert!(matches!(error, PassError::Refused { pass: "careless", .. }), "{error}");
    same(&sample(), &model).unwrap();
    let left = Model::load(folder.path().join("repro/before.onnx")).unwrap();
    same(&sample(), &left).unwrap();
    let text = std::fs::read_to_string(folder.path().join("repro/edits.txt")).unwrap();
    assert!(text.contains("still read"), "{text}");
}

#[test]
fn every_real_model_stays_valid_through_the_passes() {
    for path in assets::models() {
        if path.components().any(|part| part.as_os_str() == "onnx-testdata") {
            continue;
        }
        let mut model = Model::load(&path).unwrap();
        Driver::default().run(&mut model, &[&LiftConstants, &DeadCode]).unwrap();
        let computed = model.graph.nodes().filter(|(_, node)| node.op == Op::Constant);
        let kept = computed.filter(|(id, node)| {
            let output = node.output(0).unwrap();
            !model.graph.outputs().contains(&output)
                && model.graph.captured_by(output).is_empty()
                && *id != NodeId(u32::MAX)
        });
        assert_eq!(kept.count(), 0, "{}", path.display());
        let back = Model::from_bytes(model.to_bytes().unwrap(), None).unwrap();
        same(&model, &back).unwrap();
    }
}

fn any_edit() -> impl Strategy<Value = Edit> {
    let value = || (0u32..16).prop_map(ValueId);
    let node = || (0u32..10).prop_map(NodeId);
    let tensor = || (0usize..4).prop_map(|n| Tensor::from_i64(vec![n], &vec![1; n]).unwrap());
    let op = prop::sample::select(vec!["Neg", "Identity", "Add", "Constant", "Nonsense"]);
    let new = (op, prop::collection::vec(prop::option::of(value()), 0..3))
        .prop_map(|(op, inputs)| Node::new(op, "", inputs, vec![]));
    let name = || prop::sample::select(vec!["x", "w", "new", ""]).prop_map(str::to_owned);
    prop_oneof![
        (value(), tensor()).prop_map(|(value, tensor)| Edit::SetConstant { value, tensor }),
        (name(), tensor()).prop_map(|(name, tensor)| Edit::AddConstant { name, tensor }),
        value().prop_map(|value| Edit::RemoveConstant { value }),
        (new.clone(), prop::collection::vec(name(), 0..3))
            .prop_map(|(node, outputs)| Edit::AddNode { node, outputs }),
        (node(), new).prop_map(|(node, with)| Edit::ReplaceNode { node, with }),
        node().prop_map(|node| Edit::RemoveNode { node }),
        (node(), 0usize..4, prop::option::of(value()))
            .prop_map(|(node, slot, value)| Edit::ReplaceInput { node, slot, value }),
        (node(), prop::option::of(0i64..3)).prop_map(|(node, axis)| Edit::SetAttribute {
            node,
            name: "axis".into(),
            value: axis.map(AttributeValue::Int),
        }),
        value().prop_map(|value| Edit::AddOutput { value }),
        prop::collection::vec(value(), 0..3).prop_map(|values| Edit::SetOutputs { values }),
        (value(), name()).prop_map(|(value, name)| Edit::Rename { value, name }),
        value().prop_map(|value| Edit::SetType { value, ty: None }),
        Just(Edit::ForgetTypes),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_edits_leaves_a_valid_model_that_survives_export(
        edits in prop::collection::vec(any_edit(), 1..25),
    ) {
        let mut model = sample();
        for edit in edits {
            edit_one(&mut model, edit);
        }
        let _ = graph::infer(&model);
        let back = Model::from_bytes(model.to_bytes().unwrap(), None).unwrap();
        prop_assert_eq!(same(&model, &back), Ok(()));
    }
}
