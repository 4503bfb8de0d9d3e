//! What a file can hold, right and wrong.

use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::{AttributeValue, Op, Origin, UnaryOp, proto as p, same};

fn tensor(name: &str, dims: &[i64], values: &[f32]) -> p::TensorProto {
    p::TensorProto {
        name: Some(name.to_owned()),
        data_type: Some(1),
        dims: dims.to_vec(),
        float_data: values.to_vec(),
        ..Default::default()
    }
}

fn info(name: &str) -> p::ValueInfoProto {
    let tensor = p::type_proto::Tensor { elem_type: Some(1), shape: None };
    let value = Some(p::type_proto::Value::TensorType(tensor));
    let r#type = Some(p::TypeProto { denotation: None, value });
    p::ValueInfoProto { name: Some(name.to_owned()), r#type, ..Default::default() }
}

fn node(op_type: &str, inputs: &[&str], outputs: &[&str]) -> p::NodeProto {
    p::NodeProto {
        op_type: Some(op_type.to_owned()),
        input: inputs.iter().map(ToString::to_string).collect(),
        output: outputs.iter().map(ToString::to_string).collect(),
        ..Default::default()
    }
}

fn body(name: &str, graph: p::GraphProto) -> p::AttributeProto {
    p::AttributeProto {
        name: Some(name.to_owned()),
        r#type: Some(5),
        g: Some(graph),
        ..Default::default()
    }
}

fn graph(inputs: &[&str], nodes: Vec<p::NodeProto>, outputs: &[&str]) -> p::GraphProto {
    p::GraphProto {
        name: Some("g".to_owned()),
        input: inputs.iter().map(|name| info(name)).collect(),
        output: outputs.iter().map(|name| info(name)).collect(),
        node: nodes,
        ..Default::default()
    }
}

fn model(graph: p::GraphProto) -> p::ModelProto {
    p::ModelProto {
        ir_version: Some(8),
        opset_import: vec![p::OperatorSetIdProto { domain: None, version: Some(17) }],
        graph: Some(graph),
        ..Default::default()
    }
}

fn read(model: &p::ModelProto) -> Result<Model, ImportError> {
    Model::from_bytes(model.encode_to_vec(), None)
}

fn round_trip(model: &p::ModelProto) -> Model {
    let first = read(model).unwrap();
    let second = Model::from_bytes(first.to_bytes().unwrap(), None).unwrap();
    same(&first, &second).unwrap();
    first
}

/// An `If` whose branches capture `x` and the weight `w`, one of them from two levels deep.
fn nested() -> p::ModelProto {
    let deep = graph(&[], vec![node("Mul", &["x", "w"], &["deep"])], &["deep"]);
    let mut inner = node("If", &["c"], &["inner"]);
    inner.attribute = vec![body("then_branch", deep.clone()), body("else_branch", deep)];
    let then = graph(&[], vec![inner], &["inner"]);
    let mut other = graph(&[], vec![node("Add", &["x", "b"], &["sum"])], &["sum"]);
    other.initializer = vec![tensor("b", &[2], &[1.0, 2.0])];
    let mut choose = node("If", &["c"], &["y"]);
    choose.attribute = vec![body("then_branch", then), body("else_branch", other)];
    let mut main = graph(&["x", "c"], vec![choose], &["y"]);
    main.initializer = vec![tensor("w", &[2], &[3.0, 4.0])];
    model(main)
}

/// Everything that is carried without being understood.
fn rich() -> p::ModelProto {
    let doc = |text: &str| Some(text.to_owned());
    let entry = |key: &str| p::StringStringEntryProto { key: doc(key), value: doc("value") };
    let mut relu = node("Relu", &["x"], &["r"]);
    relu.doc_string = doc("why");
    relu.metadata_props = vec![entry("node")];
    let sparse = p::SparseTensorProto {
        values: Some(tensor("s", &[1], &[5.0])),
        indices: Some(p::TensorProto {
            data_type: Some(7),
            dims: vec![1],
            int64_data: vec![2],
            ..Default::default()
        }),
        dims: vec![4],
    };
    let mut odd = node("Odd", &["r", "s", ""], &["y", "", "z"]);
    odd.domain = doc("com.example");
    odd.overload = doc("v2");
    let named = |name: &str| p::AttributeProto { name: doc(name), ..Default::default() };
    odd.attribute = vec![
        p::AttributeProto {
            sparse_tensor: Some(sparse.clone()),
            r#type: Some(11),
            ..named("sparse")
        },
        p::AttributeProto {
            tensors: vec![tensor("t", &[1], &[1.0])],
            r#type: Some(9),
            ..named("tensors")
        },
        p::AttributeProto { f: Some(f32::NAN), doc_string: doc("not a number"), ..named("nan") },
        p::AttributeProto {
            t: Some(tensor("inner name", &[1], &[1.0])),
            r#type: Some(4),
            ..named("t")
        },
        p::AttributeProto { r#type: Some(7), ..named("no integers") },
        p::AttributeProto { i: Some(1), f: Some(2.0), r#type: Some(1), ..named("two at once") },
        p::AttributeProto { tp: info("x").r#type, r#type: Some(13), ..named("type") },
    ];
    let mut main = graph(&["x"], vec![relu, odd, node("Mine", &["r"], &["m"])], &["y", "m"]);
    main.sparse_initializer = vec![sparse];
    main.value_info = vec![info("r"), info("r"), info("nobody"), info("y")];
    main.metadata_props = vec![entry("graph")];
    main.quantization_annotation =
        vec![p::TensorAnnotation { tensor_name: doc("r"), ..Default::default() }];
    main.initializer =
        vec![p::TensorProto { doc_string: doc("about w"), ..tensor("w", &[1], &[1.0]) }];
    let function = p::FunctionProto {
        name: doc("Mine"),
        input: vec!["a".to_owned()],
        output: vec!["b".to_owned()],
        node: vec![node("Neg", &["a"], &["b"])],
        ..Default::default()
    };
    p::ModelProto {
        producer_name: doc("me"),
        doc_string: doc("a model"),
        metadata_props: vec![entry("model")],
        functions: vec![function],
        training_info: vec![p::TrainingInfoProto {
            initialization: Some(graph(&[], vec![], &[])),
            ..Default::default()
        }],
        ..model(main)
    }
}

#[test]
fn what_is_not_understood_is_carried() {
    let model = round_trip(&rich());
    let written = p::ModelProto::decode(&*model.to_bytes().unwrap()).unwrap();
    let original = rich();
    assert_eq!(written.functions, original.functions);
    assert_eq!(written.metadata_props, original.metadata_props);
    assert_eq!(written.training_info, original.training_info);
    let (new, old) = (written.graph.unwrap(), original.graph.unwrap());
    assert_eq!(new.sparse_initializer, old.sparse_initializer);
    assert_eq!(new.quantization_annotation, old.quantization_annotation);
    assert_eq!(new.metadata_props, old.metadata_props);
    assert_eq!(new.initializer[0].doc_string, old.initializer[0].doc_string);
    assert_eq!(new.value_info.len(), old.value_info.len());
    assert_eq!(new.node[0], old.node[0]);
    assert_eq!(
        (&new.node[1].input, &new.node[1].output),
        (&old.node[1].input, &old.node[1].output)
    );
    assert_eq!(new.node[1].overload, old.node[1].overload);
    for (new, old) in new.node[1].attribute.iter().zip(&old.node[1].attribute) {
        assert_eq!((&new.name, &new.doc_string), (&old.name, &old.doc_string));
        assert_eq!(
            new.t.as_ref().map(p::TensorProto::name),
            old.t.as_ref().map(p::TensorProto::name)
        );
    }
    let reasons: Vec<&str> = model.warnings.iter().map(|warning| warning.reason.as_str()).collect();
    assert_eq!(
        reasons,
        ["domain `com.example` is not understood", "it calls a function of the model"]
    );
}

#[test]
fn bodies_see_the_names_around_them_at_any_depth() {
    let model = round_trip(&nested());
    let graph = &model.graph;
    let (choose, _) = graph.nodes().next().unwrap();
    let name = |id| graph.value(id).name.as_str();
    let captured: Vec<&str> = graph.captures(choose).into_iter().map(name).collect();
    assert_eq!(captured, ["x", "c", "w"]);
    assert_eq!(graph.captured_by(graph.value_by_name("w").unwrap()), [choose]);
    let bodies = graph.subgraphs(choose);
    let bias = bodies[1].1.value_by_name("b").unwrap();
    assert_eq!(bodies[1].1.constant(bias).unwrap().to_f32_vec().unwrap(), [1.0, 2.0]);
    let through = bodies[0].1.value_by_name("w").unwrap();
    assert_eq!(bodies[0].1.value(through).origin, Origin::Outer);
}

#[test]
fn a_name_in_a_body_shadows_the_one_outside() {
    let then = graph(&[], vec![node("Abs", &["x"], &["w"]), node("Neg", &["w"], &["t"])], &["t"]);
    let mut choose = node("If", &["c"], &["y"]);
    choose.attribute = vec![body("then_branch", then.clone()), body("else_branch", then)];
    let mut main = graph(&["x", "c"], vec![choose], &["y"]);
    main.initializer = vec![tensor("w", &[1], &[1.0])];
    let model = round_trip(&model(main));
    let (choose, _) = model.graph.nodes().next().unwrap();
    let weight = model.graph.value_by_name("w").unwrap();
    assert!(!model.graph.captures(choose).contains(&weight));
}

#[test]
fn constants_are_found_in_initializers_nodes_and_aliases() {
    let mut constant = node("Constant", &[], &["c"]);
    constant.attribute = vec![p::AttributeProto {
        name: Some("value_ints".to_owned()),
        ints: vec![1, 2],
        r#type: Some(7),
        ..Default::default()
    }];
    let alias = node("Identity", &["c"], &["d"]);
    let again = node("Identity", &["d"], &["e"]);
    let mut main =
        graph(&["w", "x"], vec![constant, alias, again, node("Relu", &["x"], &["y"])], &["y"]);
    main.initializer = vec![tensor("w", &[1], &[7.0])];
    let model = round_trip(&model(main));
    let graph = &model.graph;
    let id = |name: &str| graph.value_by_name(name).unwrap();
    assert_eq!(graph.constant_ints(id("e")), Some(vec![1, 2]));
    assert_eq!(graph.constant(id("w")).unwrap().to_f32_vec().unwrap(), [7.0]);
    assert!(graph.constant(id("x")).is_none() && graph.constant(id("y")).is_none());
    // Listed as an input, but not one that a caller must feed.
    assert_eq!(graph.inputs(), [id("x")]);
    assert_eq!(graph.listed_inputs(), [id("w"), id("x")]);
}

#[test]
fn nodes_out_of_order_are_put_in_order() {
    let nodes = vec![node("Neg", &["a"], &["y"]), node("Abs", &["x"], &["a"])];
    let model = round_trip(&model(graph(&["x"], nodes, &["y"])));
    let types: Vec<&str> = model.graph.nodes().map(|(_, node)| node.op_type.as_str()).collect();
    assert_eq!(types, ["Abs", "Neg"]);
}

#[test]
fn each_fault_is_named() {
    let fault = |graph: p::GraphProto| read(&model(graph)).unwrap_err();
    let relu = |inputs: &[&str], outputs: &[&str]| vec![node("Relu", inputs, outputs)];

    let error = fault(graph(&["x"], relu(&["gone"], &["y"]), &["y"]));
    assert!(matches!(&error, ImportError::MissingValue { name, .. } if name == "gone"), "{error}");
    let error = fault(graph(&["x"], relu(&["x"], &["y"]), &["z"]));
    assert!(matches!(&error, ImportError::MissingValue { name, .. } if name == "z"), "{error}");
    let error = fault(graph(&["x", "x"], vec![], &[]));
    assert!(matches!(&error, ImportError::DuplicateName { name, .. } if name == "x"), "{error}");
    let error = fault(graph(&["x"], relu(&["x"], &["x"]), &["x"]));
    assert!(matches!(&error, ImportError::DuplicateName { .. }), "{error}");
    let error = fault(graph(&[""], vec![], &[]));
    assert!(matches!(&error, ImportError::NoName { .. }), "{error}");

    let circle = vec![node("Neg", &["b"], &["a"]), node("Abs", &["a"], &["b"])];
    let error = fault(graph(&[], circle, &["b"]));
    assert!(matches!(&error, ImportError::Cycle { nodes, .. } if nodes.len() == 2), "{error}");

    let mut wrong = graph(&["x"], vec![], &["x"]);
    wrong.initializer = vec![tensor("w", &[-2], &[1.0])];
    assert!(fault(wrong.clone()).to_string().contains("initializer `w`"));
    wrong.initializer = vec![tensor("w", &[i64::MAX, 4], &[1.0])];
    assert!(matches!(fault(wrong.clone()), ImportError::Tensor { .. }));
    wrong.initializer = vec![tensor("w", &[3], &[1.0])];
    assert!(matches!(fault(wrong.clone()), ImportError::Tensor { .. }));
    wrong.initializer = vec![tensor("w", &[1; 65], &[1.0])];
    assert!(matches!(fault(wrong), ImportError::Limit { limit: limits::RANK, .. }));
}

#[test]
fn operator_sets_must_be_positive_and_agree() {
    let opset = |domain: &str, version| p::OperatorSetIdProto {
        domain: Some(domain.into()),
        version: Some(version),
    };
    let with = |opsets: Vec<p::OperatorSetIdProto>| {
        let graph = graph(&["x"], vec![node("Relu", &["x"], &["y"])], &["y"]);
        p::ModelProto { opset_import: opsets, ..model(graph) }
    };
    assert!(matches!(read(&with(vec![opset("", 0)])), Err(ImportError::Opset { version: 0, .. })));
    assert!(matches!(read(&with(vec![opset("", -3)])), Err(ImportError::Opset { .. })));
    assert!(matches!(
        read(&with(vec![opset("", 9), opset("ai.onnx", 10)])),
        Err(ImportError::Opset { .. })
    ));
    // What is newer than we know is carried, and nothing in it is touched.
    let newer = round_trip(&with(vec![opset("", 999)]));
    assert!(newer.graph.nodes().all(|(_, node)| node.op == Op::Opaque));
    assert!(newer.warnings[0].reason.contains("999"), "{:?}", newer.warnings);
    assert!(round_trip(&with(vec![])).warnings[0].reason.contains("no operator set"));
    let known = round_trip(&with(vec![opset("ai.onnx", 17)]));
    assert!(known.graph.nodes().all(|(_, node)| node.op == Op::Unary(UnaryOp::Relu)));
}

#[test]
fn bodies_nest_up_to_the_limit_and_not_beyond() {
    let nest = |levels: usize| {
        let mut inner = graph(&[], vec![node("Abs", &["x"], &["y"])], &["y"]);
        for _ in 0..levels {
            let mut choose = node("If", &["c"], &["y"]);
            choose.attribute = vec![body("then_branch", inner)];
            inner = graph(&[], vec![choose], &["y"]);
        }
        inner.input = vec![info("x"), info("c")];
        model(inner)
    };
    round_trip(&nest(limits::SUBGRAPH_DEPTH));
    let error = read(&nest(limits::SUBGRAPH_DEPTH + 1)).unwrap_err();
    assert!(matches!(error, ImportError::Limit { limit: limits::SUBGRAPH_DEPTH, .. }), "{error}");
    assert!(matches!(read(&nest(60)), Err(ImportError::Decode(_))));
}

#[test]
fn garbage_and_emptiness_are_no_models() {
    assert!(matches!(Model::from_bytes(Vec::new(), None), Err(ImportError::NoGraph)));
    assert!(matches!(Model::from_bytes(vec![0xff; 64], None), Err(ImportError::Decode(_))));
    let error = Model::load("/no/such/model.onnx").unwrap_err();
    assert!(error.to_string().contains("/no/such/model.onnx"), "{error}");
    assert!(matches!(Model::load(std::env::temp_dir()), Err(ImportError::Io { .. })));
}

#[test]
fn a_model_cut_anywhere_is_an_error_or_a_smaller_model_and_never_a_panic() {
    for model in [rich(), nested()] {
        let bytes = model.encode_to_vec();
        for len in 0..bytes.len() {
            if let Ok(model) = Model::from_bytes(bytes[..len].to_vec(), None) {
                model.to_bytes().unwrap();
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_model_with_damaged_bytes_never_panics_and_survives_if_read(
        which in any::<bool>(),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = if which { rich() } else { nested() }.encode_to_vec();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(first) = Model::from_bytes(bytes, None) {
            let _ = crate::infer(&first);
            let second = Model::from_bytes(first.to_bytes().unwrap(), None).unwrap();
            prop_assert_eq!(same(&first, &second), Ok(()));
        }
    }
}

#[test]
fn a_small_file_of_very_many_nodes_is_refused_before_it_fills_memory() {
    let mut nodes = Vec::new();
    for _ in 0..=limits::MESSAGES {
        nodes.extend([0x0a, 0]);
    }
    let mut bytes = vec![0x3a];
    prost::encode_length_delimiter(nodes.len(), &mut bytes).unwrap();
    bytes.extend(nodes);
    let error = Model::from_bytes(bytes, None).unwrap_err();
    assert!(matches!(error, ImportError::Limit { limit: limits::MESSAGES, .. }), "{error}");
}

#[test]
fn fields_that_are_newer_than_we_know_are_reported() {
    let mut bytes = nested().encode_to_vec();
    assert!(Model::from_bytes(bytes.clone(), None).unwrap().warnings.is_empty());
    // Field 500 of the model, a string of three bytes.
    bytes.extend([0xa2, 0x1f, 3, b'n', b'e', b'w']);
    let model = Model::from_bytes(bytes, None).unwrap();
    assert!(model.warnings[0].reason.starts_with("6 bytes"), "{:?}", model.warnings);
}

#[test]
fn attributes_of_files_without_types_are_read_by_the_field_that_is_set() {
    let mut leaky = node("LeakyRelu", &["x"], &["y"]);
    leaky.attribute = vec![p::AttributeProto {
        name: Some("alpha".to_owned()),
        f: Some(0.5),
        ..Default::default()
    }];
    let model = round_trip(&model(graph(&["x"], vec![leaky], &["y"])));
    let (_, leaky) = model.graph.nodes().next().unwrap();
    assert_eq!(leaky.op, Op::Unary(UnaryOp::LeakyRelu));
    assert!(
        matches!(leaky.attributes[0].value, AttributeValue::Float(v) if v.to_bits() == 0.5f32.to_bits())
    );
}
