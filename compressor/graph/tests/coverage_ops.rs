//! How much of the real models can go, and what holds the rest.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation
)]

use graph::{Choice, Grouping, LockedBy, Model, PrunePlan, cost, find, infer, prune};

#[path = "support/assets.rs"]
mod assets;

use assets::assets;

/// Locks shown of each model.
const SHOWN: usize = 12;

/// Shares that go when half of every group is removed, in percent of the parameters that are neither embeddings
/// nor final classifiers. What was reached must stay.
const GOALS: &[(&str, f64)] = &[
    ("magika.onnx", 70.0),
    ("models/ppocr_rec.onnx", 74.0),
    ("models/ppocr_det.onnx", 73.0),
    ("models/ppocr_cls.onnx", 69.0),
    ("models/minilm.onnx", 58.0),
];

/// Every other unit of every group.
fn half(grouping: &Grouping) -> PrunePlan {
    let keep = |width: usize| (0..width as u32).step_by(2).collect();
    let choices = grouping.groups.iter();
    PrunePlan { choices: choices.map(|g| Choice { group: g.id, keep: keep(g.width) }).collect() }
}

/// What is counted without cutting is what a cut leaves, but for the few constants that it adds and the unread ones
/// that it drops.
fn counted(name: &str, model: &Model, grouping: &Grouping, pruned: &Model) {
    let left = cost::left(model, &infer(model), grouping, 1, &|width| width.div_ceil(2));
    let found = (cost::params(pruned), cost::macs(pruned, &infer(pruned), 1));
    for (counted, found) in [(left.params, found.0), (left.macs, found.1)] {
        assert!(counted.abs_diff(found) * 500 <= found, "{name}: {counted} counted, {found} found");
    }
}

fn show_locks(model: &Model, grouping: &Grouping) {
    let mut locked: Vec<_> = grouping.locked.iter().collect();
    locked.sort_by_key(|lock| std::cmp::Reverse(lock.holds));
    for lock in locked.iter().take(SHOWN) {
        let by = match lock.by {
            LockedBy::Node(node) => format!("node `{}`", model.graph.node(node).name),
            other => format!("{other:?}"),
        };
        let name = &model.graph.value(lock.value).name;
        println!("  {:8} {name}[{}] = {}, {by}: {}", lock.holds, lock.axis, lock.width, lock.why);
    }
}

#[test]
fn half_of_every_group_takes_most_of_the_real_models() {
    let mut missed = Vec::new();
    for &(name, goal) in GOALS {
        let model = Model::load(assets().join(name)).unwrap();
        let grouping = find(&model, &infer(&model));
        let mut pruned = model.clone();
        prune(&mut pruned, &grouping, &half(&grouping)).unwrap();
        let conflicts = infer(&pruned).conflicts().to_vec();
        assert!(conflicts.is_empty(), "{name}: {conflicts:?}");
        counted(name, &model, &grouping, &pruned);
        let share =
            100.0 * (1.0 - cost::inner_params(&pruned) as f64 / cost::inner_params(&model) as f64);
        println!(
            "{name}: {} groups, {share:.1} % of {} inner parameters ({} with embeddings and classifiers)",
            grouping.groups.len(),
            cost::inner_params(&model),
            cost::params(&model),
        );
        let widths: Vec<usize> = grouping.groups.iter().map(|group| group.width).collect();
        println!("  widths {widths:?}");
        show_locks(&model, &grouping);
        if share < goal {
            missed.push(format!("{name}: {share:.1} % of {goal} %"));
        }
    }
    assert!(missed.is_empty(), "{missed:?}");
}
