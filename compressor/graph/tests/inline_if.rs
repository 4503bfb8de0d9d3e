//! `If` nodes replaced by their branch, on made and on real models.

#![allow(clippy::unwrap_used)]

use std::{path::Path, process::Command};

use graph::{DeadCode, Driver, FoldMoves, InlineIf, LiftConstants, Model, Op, infer};

#[path = "support/assets.rs"]
mod assets;
#[path = "support/text.rs"]
mod text;

use text::model;

fn run(model: &mut Model) -> usize {
    let log = Driver::default().run(model, &[&InlineIf, &DeadCode]).unwrap();
    log.iter().filter(|step| step.cause.by == "inline-if").count()
}

fn ifs(model: &Model) -> usize {
    model.graph.nodes().filter(|(_, node)| node.op == Op::If).count()
}

fn ops(model: &Model) -> Vec<&str> {
    model.graph.nodes().map(|(_, node)| node.op_type.as_str()).collect()
}

/// An `If` on size `index` of `x` that negates or roots what `h` holds.
fn on_a_size(index: usize) -> Model {
    model(&format!(
        "
    input x f32 2 N
    const at i64 = {index}
    const two i64 = 2
    Abs h = x
    Shape s = x
    Gather size = s at
    Equal same = size two
    If y = same
      then:
        Neg t = h
        output t
      else:
        Sqrt e = h
        output e
    output y
"
    ))
}

#[test]
fn a_condition_on_a_known_size_is_decided_and_one_on_an_unknown_size_is_not() {
    for (index, wanted) in [(0, Some("Neg")), (1, None)] {
        let mut found = on_a_size(index);
        let before = found.to_bytes().unwrap();
        let edits = run(&mut found);
        match wanted {
            Some(op) => {
                assert_eq!((edits, ops(&found)), (1, vec!["Abs", op]));
                let y = found.graph.outputs()[0];
                assert_eq!(found.graph.value(y).name, "y");
            }
            None => {
                assert_eq!(edits, 0);
                assert_eq!(found.to_bytes().unwrap(), before, "an undecided If is left alone");
            }
        }
    }
}

#[test]
fn outputs_that_no_node_of_the_branch_writes_become_identities() {
    let mut found = model(
        "
    input x f32 2
    const yes bool = 1
    Abs h = x
    If a b c = yes
      then:
        const k f32 = 7
        Neg n = h
        output n
        output n
        output k
      else:
        output h
        output h
        output h
    output a
    output b
    output c
    output h
",
    );
    assert_eq!(run(&mut found), 1);
    assert_eq!(ops(&found), ["Abs", "Neg", "Identity", "Identity"]);
    let names: Vec<&str> =
        found.graph.outputs().iter().map(|&value| &*found.graph.value(value).name).collect();
    assert_eq!(names, ["a", "b", "c", "h"]);
    let constant = found.graph.constant(found.graph.outputs()[2]).unwrap();
    assert_eq!(constant.to_f32_vec().unwrap(), [7.0]);
}

#[test]
fn names_of_the_branch_make_room_and_deeper_captures_follow() {
    let mut found = model(
        "
    input x f32 2
    input flag bool
    const yes bool = 1
    Abs h = x
    Relu x_local = x
    If y = yes
      then:
        Neg x_local = h
        If inner = flag
          then:
            Exp deep = x_local
            output deep
          else:
            Sqrt deep2 = h
            output deep2
        Tanh last = inner
        output last
      else:
        Neg e = h
        output e
    Add z = y x_local
    output z
",
    );
    assert_eq!(run(&mut found), 1, "the inner one depends on an input");
    assert_eq!(ops(&found), ["Abs", "Relu", "Neg", "If", "Tanh", "Add"]);
    let (id, _) = found.graph.nodes().find(|(_, node)| node.op == Op::If).unwrap();
    let captured: Vec<&str> =
        found.graph.captures(id).iter().map(|&value| &*found.graph.value(value).name).collect();
    assert!(captured.contains(&"x_local_1") && captured.contains(&"h"), "{captured:?}");
    let again = Model::from_bytes(found.to_bytes().unwrap(), None).unwrap();
    again.verify().unwrap();
}

#[test]
fn a_decided_if_in_an_undecided_body_is_replaced_with_what_the_graphs_around_know() {
    let mut found = model(
        "
    input x f32 2 3
    input flag bool
    const zero i64 = 0
    const two i64 = 2
    Abs h = x
    If y = flag
      then:
        Shape s = h
        Gather n = s zero
        Equal same = n two
        If inner = same
          then:
            Exp deep = h
            output deep
          else:
            Sqrt deep2 = h
            output deep2
        output inner
      else:
        Neg e = h
        output e
    output y
",
    );
    assert_eq!(run(&mut found), 1);
    let (id, _) = found.graph.nodes().find(|(_, node)| node.op == Op::If).unwrap();
    let (_, body) = found.graph.subgraphs(id)[0];
    let inner: Vec<&str> = body.nodes().map(|(_, node)| node.op_type.as_str()).collect();
    assert_eq!(inner, ["Exp"]);
}

#[test]
fn a_branch_that_cannot_run_leaves_the_other_and_two_that_can_both_stay() {
    // Squeezed or not, by a size that is not known: only rank 2 can be multiplied.
    let source = |tail: &str| {
        format!(
            "
    input x f32 4 3 T
    const last i64[1] = -1
    const one i64[1] = 1
    const w f32[3,5] = 0.5
    Shape s = x
    Gather n = s last
    Equal single = n one
    If y = single
      then:
        Squeeze t = x last
        output t
      else:
        Identity e = x
        output e
    {tail}
    output z
"
        )
    };
    let mut found = model(&source("Gemm z = y w"));
    assert_eq!(run(&mut found), 1);
    assert_eq!(ops(&found), ["Squeeze", "Gemm"]);
    let mut open = model(&source("Relu z = y"));
    assert_eq!(run(&mut open), 0);
    // What nothing reads may be left out by a runtime, so it proves nothing.
    let mut unread = model(&source("Gemm dead = y w\n    Relu z = y"));
    let log = Driver::default().run(&mut unread, &[&InlineIf]).unwrap();
    assert!(log.is_empty(), "{log:?}");
}

#[test]
fn silero_becomes_a_plain_graph_with_one_recurrent_layer() {
    let folder = tempfile::tempdir().unwrap();
    let mut list = String::new();
    for name in ["silero_vad_16k_op15.onnx", "silero_vad_half.onnx"] {
        let original = assets::assets().join("models").join(name);
        let mut plain = Model::load(&original).unwrap();
        Driver::default().run(&mut plain, &[&InlineIf, &LiftConstants, &DeadCode]).unwrap();
        assert_eq!(ifs(&plain), 0, "{name}");
        let layers = plain.graph.nodes().filter(|(_, node)| node.op_type == "LSTM").count();
        assert_eq!(layers, 1, "{name}");
        assert!(infer(&plain).conflicts().is_empty(), "{name}: {:?}", infer(&plain).conflicts());
        let exported = folder.path().join(name);
        plain.save(&exported).unwrap();
        list += &format!("{}\t{}\n", original.display(), exported.display());
    }
    let pairs = folder.path().join("pairs.txt");
    std::fs::write(&pairs, list).unwrap();
    let script =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/python/compare_exports.py");
    let output = Command::new(assets::python())
        .arg(script)
        .arg(&pairs)
        .arg("--outputs-only")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("2 same outputs"), "{said}");
}

#[test]
fn conditions_on_inputs_stay_and_bodies_lose_what_is_decided() {
    // The sampling rate chooses between two networks, which hold the same checks of shapes.
    let mut full = Model::load(assets::assets().join("models/silero_vad.onnx")).unwrap();
    Driver::default().run(&mut full, &[&InlineIf, &DeadCode]).unwrap();
    assert_eq!(ifs(&full), 1);
    let (id, _) = full.graph.nodes().find(|(_, node)| node.op == Op::If).unwrap();
    for (name, body) in full.graph.subgraphs(id) {
        let left = body.nodes().filter(|(_, node)| node.op == Op::If).count();
        assert_eq!(left, 0, "{name}");
        assert_eq!(body.nodes().filter(|(_, node)| node.op_type == "LSTM").count(), 1, "{name}");
    }
    let mut ifless =
        Model::load(assets::assets().join("models/silero_vad_op18_ifless.onnx")).unwrap();
    assert_eq!(run(&mut ifless), 0);
}

#[test]
fn moves_of_constants_are_carried_out_and_nothing_grows() {
    let mut found = model(
        "
    input x f32 N 6
    const w f32[8,3] = +0
    const begin i64[1] = 2
    const end i64[1] = 8
    const first i64[1] = 0
    const axis i64[1] = 1
    Slice part = w begin end first
    Transpose turned = part
    Unsqueeze long = turned axis
    Squeeze short = long axis
    Transpose kept = part
    MatMul y = x part
    MatMul z = y short
    output z
    output kept
",
    );
    let before = graph::cost::params(&found);
    let log = Driver::default().run(&mut found, &[&FoldMoves, &DeadCode]).unwrap();
    assert!(log.iter().any(|step| step.cause.by == "fold-moves"));
    assert_eq!(ops(&found), ["Transpose", "MatMul", "MatMul"], "an output stays computed");
    let (_, last) = found.graph.nodes().last().unwrap();
    let turned = found.graph.constant(last.input(1).unwrap()).unwrap();
    assert_eq!(turned.dims, [3, 6]);
    // Row 2 of `w`, which counts up to 10 and begins again, is 6, 7, 8.
    let wanted: Vec<f64> =
        (0..3).flat_map(|c| (2..8).map(move |r| f64::from((r * 3 + c) % 11))).collect();
    assert_eq!(turned.to_f64_vec().unwrap(), wanted);
    assert!(graph::cost::params(&found) <= before + 18, "one part, and its transposition");
}
