//! Groups of real models: what is found, what is locked, and by whom.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::time::{Duration, Instant};

use graph::{Choice, Grouping, Model, PrunePlan, Role, cost, find, infer, mask, prune};

#[path = "support/assets.rs"]
mod assets;

use assets::assets;

fn magika() -> (Model, Grouping) {
    let model = Model::load(assets().join("magika.onnx")).unwrap();
    let grouping = find(&model, &infer(&model));
    (model, grouping)
}

/// `op_type.slot.axis:role*indices`, sorted.
fn slices(model: &Model, grouping: &Grouping, group: usize) -> Vec<String> {
    let mut shown: Vec<String> = grouping.groups[group]
        .slices
        .iter()
        .map(|slice| {
            let op = &model.graph.node(slice.node).op_type;
            format!("{op}.{}.{}:{:?}*{}", slice.slot, slice.axis, slice.role, slice.map.per_unit())
        })
        .collect();
    shown.sort();
    shown
}

#[test]
fn magika_has_the_embedding_width_and_the_convolution_channels() {
    let (model, grouping) = magika();
    let widths: Vec<usize> = grouping.groups.iter().map(|group| group.width).collect();
    assert_eq!(widths, [64, 512], "{:#?}", grouping.locked);
    assert_eq!(
        slices(&model, &grouping, 0),
        ["Add.1.2:Elementwise*1", "Conv.1.1:Consumer*4", "MatMul.1.1:Producer*1"]
    );
    assert_eq!(
        slices(&model, &grouping, 1),
        [
            "Add.1.1:Elementwise*1",
            "Add.1.1:Elementwise*1",
            "Conv.1.0:Producer*1",
            "MatMul.1.0:Consumer*1",
            "Mul.1.1:Elementwise*1",
        ]
    );
    let rows = grouping.groups[0].slices.iter().find(|slice| slice.role == Role::Consumer).unwrap();
    assert_eq!(rows.map.unit(3), [3, 67, 131, 195]);
    assert!(grouping.locked.iter().any(|lock| lock.width == 214 && lock.why.contains("output")));
}

#[test]
fn magika_costs_what_was_measured() {
    let (model, grouping) = magika();
    let macs = cost::macs(&model, &infer(&model), 1);
    // 508 places × 655,360 weights, 2048 × 257 × 64 one-hot products, 512 × 214.
    assert_eq!(macs, 508 * 655_360 + 2048 * 257 * 64 + 512 * 214);
    let conv = grouping.groups[1].slices.iter().find(|slice| slice.role == Role::Producer).unwrap();
    assert_eq!(model.graph.constant(conv.value).unwrap().len(), 655_360);
}

#[test]
fn pruning_magika_shrinks_both_groups_and_leaves_the_interface() {
    let (mut model, grouping) = magika();
    let before = cost::params(&model);
    let keep = |width: u32, step: usize| (0..width).step_by(step).collect();
    let plan = PrunePlan {
        choices: vec![
            Choice { group: grouping.groups[0].id, keep: keep(64, 2) },
            Choice { group: grouping.groups[1].id, keep: keep(512, 4) },
        ],
    };
    mask(&model, &grouping, &plan).unwrap().verify().unwrap();
    let report = prune(&mut model, &grouping, &plan).unwrap();
    assert_eq!((report.params_before, report.params_after), (before, cost::params(&model)));
    assert!(report.edits.iter().any(|edit| edit.contains("group 0")));
    let shapes = infer(&model);
    assert!(shapes.conflicts().is_empty(), "{:?}", shapes.conflicts());
    assert_eq!(cost::macs(&model, &shapes, 1), 508 * 128 * 128 * 5 + 2048 * 257 * 32 + 128 * 214);
    let again = Model::from_bytes(model.to_bytes().unwrap(), None).unwrap();
    let widths: Vec<usize> =
        find(&again, &infer(&again)).groups.iter().map(|group| group.width).collect();
    assert_eq!(widths, [32, 128]);
}

#[test]
fn real_models_are_searched_in_well_under_a_second_each() {
    let mut searched = 0;
    for folder in ["models", "light"] {
        for entry in std::fs::read_dir(assets().join(folder)).unwrap() {
            let path = entry.unwrap().path();
            let model = Model::load(&path).unwrap();
            let shapes = infer(&model);
            let start = Instant::now();
            let grouping = find(&model, &shapes);
            let elapsed = start.elapsed();
            println!(
                "{} {} groups {} locked {elapsed:?}",
                path.display(),
                grouping.groups.len(),
                grouping.locked.len()
            );
            // Debug builds on a loaded machine; a release build takes a few milliseconds.
            assert!(elapsed < Duration::from_secs(20), "{} took {elapsed:?}", path.display());
            searched += 1;
        }
    }
    assert!(searched > 0);
}

#[test]
fn transformer_blocks_give_up_heads_and_inner_widths_but_not_a_stream_that_is_an_output() {
    let model = Model::load(assets().join("models/minilm.onnx")).unwrap();
    let grouping = find(&model, &infer(&model));
    let mut widths: Vec<usize> = grouping.groups.iter().map(|group| group.width).collect();
    widths.sort_unstable();
    let heads = [12; 3].iter().chain(&[32; 6]).chain(&[1536; 3]);
    assert!(widths.iter().eq(heads), "{widths:?} {:#?}", grouping.locked);
    let heads = grouping.groups.iter().find(|group| group.width == 12).unwrap();
    assert!(heads.slices.iter().all(|slice| slice.map.per_unit() == 32));
    assert_eq!(heads.producers.len(), 3, "query, key and value");
    assert!(
        grouping
            .locked
            .iter()
            .any(|lock| lock.width == 384 && lock.why.contains("output of the model"))
    );
}
