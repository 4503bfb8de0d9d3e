//! Each invariant, broken on purpose.

use std::sync::Arc;

use crate::{
    AttributeValue, Builder, DType, Dim, Model, NodeId, Op, Origin, Tensor, UnaryOp, Value, ValueId,
};

/// `y = abs(neg(x)) + w`.
fn sample() -> Model {
    let mut builder = Builder::new(17);
    let x = builder.input("x", DType::F32, vec![Dim::Fixed(2)]);
    let w = builder.constant("w", Tensor::from_f32(vec![2], &[1.0, 2.0]).unwrap()).unwrap();
    let n = builder.node("Neg", &[x], []).unwrap();
    let a = builder.node("Abs", &[n], []).unwrap();
    let y = builder.node("Add", &[a, w], []).unwrap();
    builder.finish(&[y]).unwrap()
}

fn violations(damage: impl FnOnce(&mut Model)) -> String {
    let mut model = sample();
    model.verify().unwrap();
    damage(&mut model);
    let found: Vec<String> = model.verify().unwrap_err().iter().map(ToString::to_string).collect();
    assert!(model.to_bytes().is_err(), "a broken model is not written");
    found.join("\n")
}

fn value(model: &mut Model, name: &str) -> (ValueId, usize) {
    let id = model.graph.value_by_name(name).unwrap();
    (id, id.0 as usize)
}

#[test]
fn an_order_that_is_wrong_short_or_double_is_found() {
    assert!(
        violations(|m| m.graph.order.swap(0, 1)).contains("stands before the node that writes")
    );
    assert!(violations(|m| m.graph.order.truncate(2)).contains("holds 2 of 3 nodes"));
    assert!(violations(|m| m.graph.order.push(NodeId(0))).contains("twice"));
    assert!(violations(|m| m.graph.order.push(NodeId(9))).contains("NodeId(9), which is gone"));
}

#[test]
fn ids_of_removed_things_are_found_wherever_they_stand() {
    let gone = ValueId(99);
    let text = violations(|m| m.graph.nodes[0].as_mut().unwrap().inputs[0] = Some(gone));
    assert!(text.contains("it reads ValueId(99), which is gone"), "{text}");
    assert!(violations(|m| m.graph.outputs.push(gone)).contains("the output list holds"));
    assert!(violations(|m| m.graph.inputs.push(gone)).contains("the input list holds"));
    assert!(violations(|m| m.graph.listed.push(gone)).contains("the listed inputs hold"));
    let text = violations(|m| {
        let (_, at) = value(m, "w");
        m.graph.values[at] = None;
    });
    assert!(text.contains("which is gone") && text.contains("holds removed values"), "{text}");
}

#[test]
fn origins_that_disagree_with_the_nodes_are_found() {
    let text = violations(|m| {
        let (_, at) = value(m, "Neg_0");
        m.graph.values[at].as_mut().unwrap().origin = Origin::Node(NodeId(1), 0);
    });
    assert!(text.contains("does not write it") && text.contains("comes from elsewhere"), "{text}");
    assert!(violations(|m| m.graph.inputs.clear()).contains("no input list holds it"));
    assert!(violations(|m| m.graph.listed.clear()).contains("is not among the listed inputs"));
    let text = violations(|m| {
        m.graph.push_value(Value::new("far", Origin::Outer, None));
    });
    assert!(text.contains("no graph around has it"), "{text}");
}

#[test]
fn names_that_are_empty_double_or_not_indexed_are_found() {
    let rename = |name: &'static str| {
        violations(move |m| {
            let (_, at) = value(m, "w");
            m.graph.values[at].as_mut().unwrap().name = name.to_owned();
        })
    };
    assert!(rename("").contains("it has no name"));
    assert!(rename("x").contains("two values have this name"));
    assert!(rename("other").contains("the index of names does not lead to it"));
}

#[test]
fn constants_without_data_or_with_the_wrong_type_are_found() {
    let damage = |data: Option<Tensor>| {
        violations(move |m| {
            let (_, at) = value(m, "w");
            m.graph.values[at].as_mut().unwrap().data = data.map(Arc::new);
        })
    };
    assert!(damage(None).contains("initializer without data"));
    let longer = Tensor::from_f32(vec![3], &[1.0; 3]).unwrap();
    assert!(damage(Some(longer.clone())).contains("its type is not that of its data"));
    assert!(damage(Some(Tensor { dims: vec![2], ..longer })).contains("needs 8 bytes, has 12"));
}

#[test]
fn an_operator_that_its_attributes_do_not_say_is_found() {
    let text = violations(|m| m.graph.nodes[0].as_mut().unwrap().op = Op::Unary(UnaryOp::Relu));
    assert!(text.contains("not what its type and attributes say"), "{text}");
}

#[test]
fn bodies_are_checked_too_and_every_violation_is_reported() {
    let mut model = sample();
    let mut body = sample().graph;
    body.order.clear();
    body.outputs.push(ValueId(99));
    let node = model.graph.nodes[0].as_mut().unwrap();
    node.attributes.push(crate::Attribute {
        name: "body".to_owned(),
        value: AttributeValue::Graph(Box::new(body)),
    });
    let found = model.verify().unwrap_err();
    let in_body = found.iter().filter(|violation| violation.place.contains("`body`")).count();
    assert_eq!(in_body, 2, "{found:?}");
}
