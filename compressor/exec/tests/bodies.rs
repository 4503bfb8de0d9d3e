//! Masked equals pruned inside of the branches of an `If`: each branch in the place of the node, in both models.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, missing_docs, dead_code)]

mod common;
#[path = "common/nets.rs"]
mod nets;
#[path = "../../graph/tests/support/text.rs"]
mod text;

use std::collections::HashMap;

use common::assets;
use exec::Executor;
use graph::{
    Cause, Choice, DeadCode, Driver, Edit, Grouping, InlineIf, Model, Op, OwnConstants, PrunePlan,
    Tensor, find, infer, mask, prune,
};
use nets::Numbers;

/// Removes every third unit of every group.
fn plan(grouping: &Grouping) -> PrunePlan {
    let choices = grouping.groups.iter().map(|group| Choice {
        group: group.id,
        keep: (0..group.width as u32).filter(|unit| unit % 3 != 1).collect(),
    });
    PrunePlan { choices: choices.collect() }
}

fn run(model: &Model, branch: &str, inputs: &HashMap<String, Tensor>) -> Vec<Tensor> {
    let mut model = model.clone();
    let node = model.graph.nodes().find(|(_, node)| node.op == Op::If).unwrap().0;
    let edit = Edit::Inline { node, branch: branch.to_owned() };
    graph::apply(&mut model.graph, edit, &Cause::new("test", branch)).unwrap();
    let found = Executor::new(&model).unwrap().run(inputs.clone(), model.graph.outputs()).unwrap();
    model.graph.outputs().iter().map(|output| found[output].clone()).collect()
}

fn check(model: &Model, branch: &str, inputs: &HashMap<String, Tensor>) -> Result<(), String> {
    let grouping = find(model, &infer(model));
    let scoped = grouping.groups.iter().filter(|group| !group.scope.is_main()).count();
    assert!(scoped >= 2, "{:#?}", grouping.locked);
    let plan = plan(&grouping);
    let masked = mask(model, &grouping, &plan).unwrap();
    let mut pruned = model.clone();
    prune(&mut pruned, &grouping, &plan).unwrap();
    let (a, b) = (run(&masked, branch, inputs), run(&pruned, branch, inputs));
    a.iter().zip(&b).try_for_each(|(a, b)| common::compare(a, b, 1e-4, 1e-5))
}

#[test]
fn masked_equals_pruned_in_both_branches() {
    let mut model = text::model(
        "
    input x f32 N 4
    input flag bool
    const v f32[6,4] = +-0.5
    const w0 f32[4,4] = +0.25
    MatMul first = x w0
    If y = flag
      then:
        const w f32[4,6] = +-0.1
        MatMul a = first w
        Relu b = a
        MatMul c = b v
        output c
      else:
        const w2 f32[4,8] = +-0.3
        const u2 f32[8,4] = +-0.2
        MatMul e = first w2
        Tanh f = e
        MatMul g = f u2
        output g
    output y
",
    );
    Driver::default().run(&mut model, &[&OwnConstants, &DeadCode]).unwrap();
    let inputs = common::named("x", Numbers::new(4).tensor(&[3, 4], 1.0, 0.0));
    for branch in ["then_branch", "else_branch"] {
        let mut inputs = inputs.clone();
        inputs.insert("flag".to_owned(), Tensor::new(graph::DType::Bool, vec![], vec![1]).unwrap());
        check(&model, branch, &inputs).unwrap_or_else(|why| panic!("{branch}: {why}"));
    }
}

#[test]
fn masked_equals_pruned_in_the_networks_of_two_sampling_rates() {
    for name in ["silero_vad.onnx", "silero_vad_op18_ifless.onnx"] {
        let mut model = Model::load(assets().join("models").join(name)).unwrap();
        Driver::default().run(&mut model, &[&InlineIf, &OwnConstants, &DeadCode]).unwrap();
        let found = find(&model, &infer(&model));
        assert_eq!(found.states.len(), 2, "{name}: both branches carry the state on");
        for (branch, rate, samples) in [("then_branch", 16_000, 576), ("else_branch", 8_000, 288)] {
            let mut numbers = Numbers::new(3);
            let inputs = HashMap::from([
                ("input".to_owned(), numbers.tensor(&[1, samples], 0.4, 0.0)),
                ("state".to_owned(), numbers.tensor(&[2, 1, 128], 0.5, 0.1)),
                ("sr".to_owned(), Tensor::from_i64(vec![], &[rate]).unwrap()),
            ]);
            check(&model, branch, &inputs).unwrap_or_else(|why| panic!("{name}, {branch}: {why}"));
        }
    }
}
