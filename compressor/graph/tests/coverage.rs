//! How much of real models goes when half of every group does.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use graph::{
    Choice, DeadCode, Driver, Edit, FoldMoves, Grouping, InlineIf, Model, Op, OwnConstants,
    PairedBy, PrunePlan, cost, find, infer, prune,
};

#[path = "support/assets.rs"]
mod assets;

/// The model with decided branches in place and moved weights where they are read, and its groups.
fn plain(name: &str) -> (Model, Grouping) {
    let mut model = Model::load(assets::assets().join("models").join(name)).unwrap();
    Driver::default().run(&mut model, &[&InlineIf, &OwnConstants, &FoldMoves, &DeadCode]).unwrap();
    let grouping = find(&model, &infer(&model));
    (model, grouping)
}

/// Share of the parameters, and of the multiply-accumulates, that half of every group takes.
fn halved(model: &Model, grouping: &Grouping) -> (f64, f64) {
    let choices = grouping.groups.iter().map(|group| Choice {
        group: group.id,
        keep: (0..u32::try_from(group.width).unwrap()).step_by(2).collect(),
    });
    let mut pruned = model.clone();
    prune(&mut pruned, grouping, &PrunePlan { choices: choices.collect() }).unwrap();
    let shapes = infer(&pruned);
    assert!(shapes.conflicts().is_empty(), "{:?}", shapes.conflicts());
    pruned.verify().unwrap();
    #[allow(clippy::cast_precision_loss)]
    let share = |before: u64, after: u64| 1.0 - after as f64 / before as f64;
    (
        share(cost::params(model), cost::params(&pruned)),
        share(cost::macs(model, &infer(model), 1), cost::macs(&pruned, &shapes, 1)),
    )
}

/// These are whole networks for one sampling rate. That masked equals pruned on every one of them, for the same
/// halves and whatever state is fed, is checked where models are run (`exec/tests/states.rs`).
#[test]
fn half_of_every_group_takes_most_of_the_voice_detectors_with_a_plain_graph() {
    for (name, states) in [
        ("silero_vad_16k_sequence.onnx", 2),
        ("silero_vad_openvino_16k.onnx", 1),
        ("silero_vad_16k_op15.onnx", 1),
        ("silero_vad_half.onnx", 1),
    ] {
        let (model, grouping) = plain(name);
        let (params, macs) = halved(&model, &grouping);
        let widths: Vec<usize> = grouping.groups.iter().map(|group| group.width).collect();
        println!(
            "{name}: {:.1} % of params, {:.1} % of macs, {widths:?}",
            params * 100.0,
            macs * 100.0
        );
        assert!(params >= 0.6, "{name}: {params}, {:#?}", grouping.locked);
        assert_eq!(grouping.states.len(), states, "{name}");
        assert!(grouping.states.iter().all(|pair| {
            matches!(pair.by, PairedBy::Layer(_)) && (pair.width, pair.groups.len()) == (128, 1)
        }));
    }
}

/// The remaining exports choose between two networks by the sampling rate, which both carry one state on. Each
/// branch is pruned on its own; of the work, that of the larger branch counts.
#[test]
fn branches_that_a_sampling_rate_chooses_are_pruned_on_their_own() {
    for name in ["silero_vad.onnx", "silero_vad_op18_ifless.onnx"] {
        let (model, grouping) = plain(name);
        let (params, macs) = halved(&model, &grouping);
        println!("{name}: {:.1} % of params, {:.1} % of macs", params * 100.0, macs * 100.0);
        for branch in 0..2 {
            let of = |group: &&graph::Group| group.scope.0.iter().any(|step| step.1 == branch);
            let found = grouping.groups.iter().filter(of).count();
            assert!(found >= 6, "{name}: {found} groups in branch {branch}");
        }
        assert_eq!(grouping.states.len(), 2, "{name}");
        assert!(grouping.groups.iter().all(|group| group.scope.0.len() == 1), "{name}");
        assert!(params >= 0.6, "{name}: {params}, {:#?}", grouping.locked);
        assert!(macs >= 0.6, "{name}: {macs}");
    }
}

/// A caller that knows the sampling rate may put the network for it in the place of the choice.
#[test]
fn a_chosen_branch_is_pruned_like_any_plain_graph() {
    let name = "silero_vad_op18_ifless.onnx";
    let mut model = Model::load(assets::assets().join("models").join(name)).unwrap();
    let choice = model.graph.nodes().find(|(_, node)| node.op == Op::If).unwrap().0;
    let edit = Edit::Inline { node: choice, branch: "then_branch".to_owned() };
    graph::apply(&mut model.graph, edit, &graph::Cause::new("test", "16 kHz")).unwrap();
    Driver::default().run(&mut model, &[&DeadCode]).unwrap();
    let grouping = find(&model, &infer(&model));
    let (params, _) = halved(&model, &grouping);
    assert!(params >= 0.6, "{params}, {:#?}", grouping.locked);
    assert!(matches!(grouping.states.as_slice(), [pair] if pair.by == PairedBy::Names));
}
