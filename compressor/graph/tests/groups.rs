//! Groups of real models: what is found, what is locked, and by whom.

#![allow(clippy::unwrap_used, missing_docs)]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use graph::{Choice, Grouping, Model, PrunePlan, Role, cost, find, infer, mask, prune};

fn assets() -> PathBuf {
    PathBuf::from(std::env::var_os("ESPALIER_ASSETS").expect("ESPALIER_ASSETS is not set: run through `cargo xtask test`"))
}

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
    let widths: Vec<usize> = find(&again, &infer(&again)).groups.iter().map(|group| group.width).collect();
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
            println!("{} {} groups {} locked {elapsed:?}", path.display(), grouping.groups.len(), grouping.locked.len());
            // Debug builds on a loaded machine; a release build takes a few milliseconds.
            assert!(elapsed < Duration::from_secs(20), "{} took {elapsed:?}", path.display());
            searched += 1;
        }
    }
    assert!(searched > 0);
}

#[test]
#[ignore]
fn dump() {
    let model = Model::load(std::env::var("M").unwrap()).unwrap();
    let shapes = infer(&model);
    let g = find(&model, &shapes);
    for group in &g.groups {
        println!("group {} width {} producers {:?}", group.id.0, group.width, group.producers.iter().map(|&n| model.graph.node(n).op_type.clone()).collect::<Vec<_>>());
    }
    for l in &g.locked {
        let by = match l.by { graph::LockedBy::Node(n) => format!("{} {}", model.graph.node(n).op_type, model.graph.node(n).name), ref o => format!("{o:?}") };
        println!("{}[{}] width {} by {}: {}", model.graph.value(l.value).name, l.axis, l.width, by, l.why);
    }
}
