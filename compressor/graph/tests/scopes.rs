//! Groups inside of control-flow bodies.

#![allow(clippy::unwrap_used)]

use std::{path::Path, process::Command};

use graph::{
    Choice, DeadCode, Driver, Edit, Grouping, LockedBy, Model, Op, OwnConstants, PrunePlan, Scope,
    cost, find, infer, mask, prune,
};

#[path = "support/assets.rs"]
mod assets;
#[path = "support/text.rs"]
mod text;

use text::model;

fn half(grouping: &Grouping) -> PrunePlan {
    let choices = grouping.groups.iter().map(|group| Choice {
        group: group.id,
        keep: (0..u32::try_from(group.width).unwrap()).step_by(2).collect(),
    });
    PrunePlan { choices: choices.collect() }
}

/// A product of width 6 between two others in each branch; `v` belongs to the graph around, and is read by one.
const BRANCHES: &str = "
    input x f32 N 4
    input flag bool
    const v f32[6,4] = +-0.5
    const shared f32[4,4] = +0.25
    MatMul first = x shared
    If y = flag
      then:
        const w f32[4,6] = +0.1
        MatMul a = first w
        Relu b = a
        MatMul c = b v
        MatMul d = c shared
        output d
      else:
        const w2 f32[4,8] = +0.1
        const u2 f32[8,4] = +0.2
        MatMul e = first w2
        Tanh f = e
        MatMul g = f u2
        output g
    output y
";

fn branches() -> Model {
    let mut model = model(BRANCHES);
    Driver::default().run(&mut model, &[&OwnConstants, &DeadCode]).unwrap();
    model
}

#[test]
fn a_weight_that_one_body_reads_becomes_its_own_and_a_shared_one_stays() {
    let model = branches();
    let (id, _) = model.graph.nodes().find(|(_, node)| node.op == Op::If).unwrap();
    let names = |index: usize| -> Vec<String> {
        let graph = model.graph_at(&Scope::default().body(id, index)).unwrap();
        let constants = graph.values().filter(|(id, _)| graph.constant(*id).is_some());
        constants.map(|(_, value)| value.name.clone()).collect()
    };
    assert!(names(0).iter().any(|name| name.starts_with('v')), "{:?}", names(0));
    assert!(model.graph.value_by_name("v").is_none(), "nothing else reads it");
    assert!(model.graph.value_by_name("shared").is_some(), "the main graph reads it too");
}

#[test]
fn each_body_has_groups_of_its_own_between_its_locked_ends() {
    let model = branches();
    let grouping = find(&model, &infer(&model));
    let (id, _) = model.graph.nodes().find(|(_, node)| node.op == Op::If).unwrap();
    let found: Vec<(Scope, usize)> =
        grouping.groups.iter().map(|group| (group.scope.clone(), group.width)).collect();
    let body = |index| Scope::default().body(id, index);
    // `c`, of width 4, lies between a weight of the body and the copy of the shared one.
    assert_eq!(found, [(body(0), 6), (body(0), 4), (body(1), 8)]);
    for (number, group) in (0..).zip(&grouping.groups) {
        assert_eq!(group.id.0, number);
        let graph = model.graph_at(&group.scope).unwrap();
        assert!(group.producers.iter().all(|node| graph.node(*node).op == Op::MatMul));
    }
    let why = |by: LockedBy, text: &str, scope: &Scope| {
        grouping
            .locked
            .iter()
            .any(|lock| lock.by == by && lock.why.contains(text) && lock.scope == *scope)
    };
    assert!(why(LockedBy::GraphOutput, "output of a control-flow body", &body(0)));
    assert!(why(LockedBy::GraphOutput, "output of a control-flow body", &body(1)));
    assert!(why(LockedBy::Node(id), "a control-flow body reads it", &Scope::default()));
}

#[test]
fn pruning_and_masking_follow_the_scope() {
    let model = branches();
    let grouping = find(&model, &infer(&model));
    let plan = half(&grouping);
    let mut pruned = model.clone();
    let report = prune(&mut pruned, &grouping, &plan).unwrap();
    let masked = mask(&model, &grouping, &plan).unwrap();
    masked.verify().unwrap();
    assert!(infer(&pruned).conflicts().is_empty());
    assert_eq!(report.params_before, 16 + 24 + 24 + 16 + 32 + 32);
    assert_eq!(report.params_after, 16 + 12 + 6 + 8 + 16 + 16);
    assert!(cost::macs(&pruned, &infer(&pruned), 1) < cost::macs(&model, &infer(&model), 1));
    let again = find(&pruned, &infer(&pruned));
    let widths: Vec<usize> = again.groups.iter().map(|group| group.width).collect();
    assert_eq!(widths, [3, 2, 4]);
    assert_eq!(cost::params(&masked), report.params_before);
}

/// Of a loop and a scan, what is carried and what is collected keeps its width, and what lies within does not.
#[test]
fn loops_keep_what_they_carry() {
    let mut model = model(
        "
    const x f32[3,4] = +1
    const rounds i64 = 2
    const go bool = 1
    const w f32[4,6] = +-2
    const v f32[6,4] = 1
    Loop last = rounds go x
      body:
        input i i64
        input on bool
        input carried f32 3 4
        Identity still = on
        MatMul a = carried w
        Relu b = a
        MatMul next = b v
        output still
        output next
    output last
",
    );
    let last = model.graph.outputs()[0];
    let dims = Some(vec![graph::Dim::Fixed(3), graph::Dim::Fixed(4)]);
    let ty = Some(graph::TensorType { dtype: graph::DType::F32, dims });
    let edit = Edit::SetType { value: last, ty };
    graph::apply(&mut model.graph, edit, &graph::Cause::new("test", "")).unwrap();
    Driver::default().run(&mut model, &[&OwnConstants, &DeadCode]).unwrap();
    let grouping = find(&model, &infer(&model));
    assert_eq!(grouping.groups.iter().map(|group| group.width).collect::<Vec<_>>(), [6]);
    assert!(!grouping.groups[0].scope.is_main());
    let outs = grouping.locked.iter().filter(|lock| lock.by == LockedBy::GraphOutput);
    assert!(outs.clone().count() > 0 && outs.clone().all(|lock| lock.width == 4));
    let mut pruned = model.clone();
    prune(&mut pruned, &grouping, &half(&grouping)).unwrap();
    assert_eq!(cost::params(&model) - cost::params(&pruned), 24);
    // Small whole numbers: whatever the order of the sums, the results are exact.
    let masked = mask(&model, &grouping, &half(&grouping)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (folder.path().join("masked.onnx"), folder.path().join("pruned.onnx"));
    masked.save(&a).unwrap();
    pruned.save(&b).unwrap();
    let pairs = folder.path().join("pairs.txt");
    std::fs::write(&pairs, format!("{}\t{}\n", a.display(), b.display())).unwrap();
    let script =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/python/compare_exports.py");
    let output = Command::new(assets::python())
        .arg(script)
        .arg(&pairs)
        .arg("--outputs-only")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 same outputs"), "{said}");
}

#[test]
fn what_a_body_captures_locks_the_units_that_go_with_it() {
    let model = model(
        "
    input x f32 N 6
    input flag bool
    Relu around = x
    If y = flag
      then:
        const w f32[6,6] = +0.1
        const v f32[6,2] = +0.1
        MatMul a = around w
        Add b = a around
        MatMul c = b v
        output c
      else:
        const u f32[6,2] = +0.2
        MatMul d = around u
        output d
    output y
",
    );
    let grouping = find(&model, &infer(&model));
    assert_eq!(grouping.groups, []);
    let why = "a control-flow body captures it from the graph around";
    let captured = grouping.locked.iter().find(|lock| lock.why == why).unwrap();
    let graph = model.graph_at(&captured.scope).unwrap();
    assert_eq!(graph.value(captured.value).name, "around");
    assert_eq!((captured.by, captured.width), (LockedBy::GraphInput, 6));
}

#[test]
fn a_capture_that_is_still_read_is_not_forgotten() {
    let mut model = branches();
    let (id, _) = model.graph.nodes().find(|(_, node)| node.op == Op::If).unwrap();
    let (_, body) = model.graph.subgraphs(id)[0];
    let first = body.value_by_name("first").unwrap();
    let mut body = body.clone();
    let cause = graph::Cause::new("test", "");
    let refused = graph::apply(&mut body, Edit::RemoveCapture { value: first }, &cause);
    assert!(refused.unwrap_err().to_string().contains("still read"));
    let own = model.graph.value_by_name("x").unwrap();
    let refused = graph::apply(&mut model.graph, Edit::RemoveCapture { value: own }, &cause);
    assert!(refused.unwrap_err().to_string().contains("not captured"));
}
