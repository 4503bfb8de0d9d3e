use graph::{Attribute, AttributeValue, Builder, DType, Dim, Node};

use super::*;
use crate::pipeline::testing::weight;

/// `x [N, 8]` through a 8 by `width` weight, then `more` by operator and attributes.
fn compared_by(width: usize, more: &[(&str, Vec<Attribute>)], answer: &Answer) -> Compared {
    let mut builder = Builder::new(15);
    let x = builder.input("x", DType::F32, vec![Dim::Symbol("N".into()), Dim::Fixed(8)]);
    let w = weight(&mut builder, "w", 8, width);
    let mut value = builder.node("MatMul", &[x, w], []).unwrap();
    let cause = graph::Cause::new("test", "");
    let mut model = builder.finish(&[value]).unwrap();
    for (at, (op, attributes)) in more.iter().enumerate() {
        let node = Node::new(*op, format!("n{at}"), vec![Some(value)], attributes.clone());
        let edit = graph::Edit::AddNode { node, outputs: vec![format!("v{at}")] };
        value = graph::apply(&mut model.graph, edit, &cause).unwrap().value().unwrap();
    }
    let edit = graph::Edit::SetOutputs { values: vec![value] };
    graph::apply(&mut model.graph, edit, &cause).unwrap();
    with(&model, answer, None)
}

fn with(model: &graph::Model, answer: &Answer, labels: Option<&[i64]>) -> Compared {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    model.save(&path).unwrap();
    let source = Source::load(&path).unwrap();
    let output = source.model.graph.outputs()[0];
    let name = source.model.graph.value(output).name.clone();
    compared(&source, &name, answer, labels)
}

fn answer(shape: &[usize], data: &[f32]) -> Answer {
    Answer { shape: shape.to_vec(), data: data.to_vec() }
}

fn int(name: &str, value: i64) -> Attribute {
    Attribute { name: name.into(), value: AttributeValue::Int(value) }
}

#[test]
fn how_the_graph_ends_says_what_an_answer_is() {
    let logits = answer(&[1, 3], &[2.0, -1.0, 0.5]);
    let by = |more: &[(&str, Vec<Attribute>)]| compared_by(3, more, &logits);
    assert_eq!((by(&[]).by, by(&[]).axis), (Comparison::Class, Some(1)));
    assert_eq!(by(&[("Softmax", vec![int("axis", -1)])]).by, Comparison::Class);
    assert_eq!(by(&[("Sigmoid", vec![])]).by, Comparison::Sides);
    assert_eq!(by(&[("Tanh", vec![])]).by, Comparison::Direction);
    // What only moves numbers is looked through.
    assert_eq!(by(&[("Sigmoid", vec![]), ("Identity", vec![])]).by, Comparison::Sides);
    assert_eq!(by(&[("Softmax", vec![int("axis", 1)]), ("Flatten", vec![])]).axis, Some(1));
}

#[test]
fn the_numbers_say_it_where_the_graph_does_not() {
    let hidden = [("Exp", vec![])];
    let distribution = answer(&[1, 3], &[0.2, 0.5, 0.3]);
    assert_eq!(compared_by(3, &hidden, &distribution).by, Comparison::Class);
    let unit = answer(&[1, 3], &[0.6, 0.0, -0.8]);
    assert_eq!(compared_by(3, &[], &unit).by, Comparison::Direction, "before the head's weight");
    // Classes on axis 1 of an image, written out by the exporter.
    let map = answer(&[1, 2, 1, 2], &[0.3, 0.9, 0.7, 0.1]);
    let by = compared_by(3, &hidden, &map);
    assert_eq!((by.by, by.axis), (Comparison::Class, Some(1)));
}

#[test]
fn one_number_is_a_value_and_labels_make_features_classes() {
    let one = compared_by(1, &[], &answer(&[1, 1], &[3.0]));
    assert_eq!((one.by, one.axis), (Comparison::Value, None));
    assert_eq!(compared_by(1, &[], &answer(&[1], &[3.0])).by, Comparison::Value);
    let bare = compared_by(3, &[], &answer(&[3], &[2.0, 1.0, 0.5]));
    assert_eq!((bare.by, bare.axis), (Comparison::Class, Some(0)), "a model without a batch axis");
    let mut builder = Builder::new(15);
    let x = builder.input("x", DType::F32, vec![Dim::Symbol("N".into()), Dim::Fixed(3)]);
    let y = builder.node("Relu", &[x], []).unwrap();
    let model = builder.finish(&[y]).unwrap();
    let features = answer(&[1, 3], &[2.0, 1.0, 0.5]);
    assert_eq!(with(&model, &features, None).by, Comparison::Direction);
    assert_eq!(with(&model, &features, Some(&[0, 2])).by, Comparison::Class);
    assert_eq!(with(&model, &features, Some(&[0, 3])).by, Comparison::Direction, "no such class");
}

#[test]
fn a_convolution_at_the_end_gives_classes_on_its_channels() {
    let mut builder = Builder::new(15);
    let dims = [Dim::Symbol("N".into()), Dim::Fixed(1), Dim::Fixed(4), Dim::Fixed(4)];
    let x = builder.input("x", DType::F32, dims.to_vec());
    let kernel = graph::Tensor::from_f32(vec![5, 1, 1, 1], &[0.1, 0.2, 0.3, 0.4, 0.5]).unwrap();
    let w = builder.constant("w", kernel).unwrap();
    let y = builder.node("Conv", &[x, w], []).unwrap();
    let model = builder.finish(&[y]).unwrap();
    let by = with(&model, &answer(&[1, 5, 4, 4], &[0.5; 80]), None);
    assert_eq!((by.by, by.axis), (Comparison::Class, Some(1)));
}
