//! Masked equals pruned, group for group, on the real models.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    missing_docs,
    dead_code
)]

mod common;
#[path = "common/compare.rs"]
mod compare;

use std::collections::HashMap;

use common::{assets, named};
use compare::{difference, outputs};
use graph::{Choice, Grouping, Model, PrunePlan, Tensor, find, infer, mask, prune};

type Inputs = HashMap<String, Tensor>;

fn numbers(count: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 7919 + i * i * 31) % 2003) as f32 / 1001.5 - 1.0).collect()
}

fn image(height: usize, width: usize) -> Inputs {
    let dims = vec![1, 3, height, width];
    named("x", Tensor::from_f32(dims, &numbers(3 * height * width)).unwrap())
}

/// Every other unit of one group, or of all.
fn plan(grouping: &Grouping, only: Option<usize>) -> PrunePlan {
    let keep = |width: usize| (0..width as u32).step_by(2).collect();
    let groups = grouping.groups.iter().enumerate();
    let chosen = groups.filter(|(index, _)| only.is_none_or(|only| only == *index));
    PrunePlan {
        choices: chosen.map(|(_, g)| Choice { group: g.id, keep: keep(g.width) }).collect(),
    }
}

/// The difference that the plan makes between masked and pruned, relative to the largest output.
fn check(model: &Model, grouping: &Grouping, only: Option<usize>, inputs: &Inputs) -> f64 {
    let plan = plan(grouping, only);
    let masked = mask(model, grouping, &plan).unwrap();
    let mut pruned = model.clone();
    prune(&mut pruned, grouping, &plan).unwrap();
    pruned.verify().unwrap();
    assert!(infer(&pruned).conflicts().is_empty());
    difference(&outputs(&masked, inputs), &outputs(&pruned, inputs))
}

fn check_model(name: &str, inputs: &Inputs) {
    let model = Model::load(assets().join(name)).unwrap();
    let grouping = find(&model, &infer(&model));
    let mut wrong = Vec::new();
    let every = (0..grouping.groups.len()).map(Some).chain([None]);
    for only in every {
        let off = check(&model, &grouping, only, inputs);
        if off > 1e-4 {
            wrong.push(format!("group {only:?}: off by {off}"));
        }
    }
    eprintln!("{name}: {} groups", grouping.groups.len());
    assert!(wrong.is_empty(), "{name}: {wrong:#?}");
}

#[test]
fn each_group_of_the_recogniser() {
    check_model("models/ppocr_rec.onnx", &image(48, 64));
}

#[test]
fn each_group_of_the_detector() {
    check_model("models/ppocr_det.onnx", &image(32, 64));
}

#[test]
fn each_group_of_the_classifier_of_directions() {
    check_model("models/ppocr_cls.onnx", &image(48, 64));
}

#[test]
fn each_group_of_magika() {
    let bytes: Vec<i32> = (0..2048).map(|i| (i * 37 + i / 5) % 257).collect();
    check_model("magika.onnx", &named("bytes", Tensor::from_i32(vec![1, 2048], &bytes).unwrap()));
}

#[test]
fn each_group_of_the_sentence_encoder() {
    let model = Model::load(assets().join("models/minilm.onnx")).unwrap();
    let graph = &model.graph;
    let ids: Vec<i64> = (0..2 * 9).map(|i| (i * 977) % 30_000 + 5).collect();
    let inputs = graph.inputs().iter().map(|&value| {
        let name = graph.value(value).name.clone();
        let values = match name.as_str() {
            "input_ids" => ids.clone(),
            "attention_mask" => (0..18).map(|i| i64::from(i != 17)).collect(),
            _ => vec![0; 18],
        };
        (name, Tensor::from_i64(vec![2, 9], &values).unwrap())
    });
    check_model("models/minilm.onnx", &inputs.collect());
}
