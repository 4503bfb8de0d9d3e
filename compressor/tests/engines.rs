//! Real models with half of every group gone run in both engines, and give what the masked originals give.
#![allow(clippy::unwrap_used, clippy::cast_precision_loss)]

use std::path::{Path, PathBuf};

use graph::{
    Choice, DeadCode, Driver, FoldMoves, InlineIf, Model, OwnConstants, PrunePlan, find, infer,
    mask, prune,
};
use runtime::{EngineKind, EngineOptions, LoadOptions, Tensor};

type Inputs = Vec<(&'static str, Tensor)>;

fn assets() -> PathBuf {
    std::env::var_os("ESPALIER_ASSETS").expect("run through `cargo xtask test`").into()
}

fn numbers(count: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 7919 + i * i * 31) % 2003) as f32 / 1001.5 - 1.0).collect()
}

fn floats(name: &'static str, shape: &[usize]) -> (&'static str, Tensor) {
    (name, Tensor::from_f32(shape.to_vec(), &numbers(shape.iter().product())).unwrap())
}

fn longs(name: &'static str, shape: &[usize], values: &[i64]) -> (&'static str, Tensor) {
    (name, Tensor::from_i64(shape.to_vec(), values).unwrap())
}

/// The masked original and the pruned model, as files.
fn halves(name: &str, folder: &Path) -> (PathBuf, PathBuf) {
    let mut model = Model::load(assets().join(name)).unwrap();
    Driver::default().run(&mut model, &[&InlineIf, &OwnConstants, &FoldMoves, &DeadCode]).unwrap();
    let grouping = find(&model, &infer(&model));
    let choices = grouping.groups.iter().map(|group| Choice {
        group: group.id,
        keep: (0..u32::try_from(group.width).unwrap()).step_by(2).collect(),
    });
    let plan = PrunePlan { choices: choices.collect() };
    let (masked, pruned) = (folder.join("masked.onnx"), folder.join("pruned.onnx"));
    mask(&model, &grouping, &plan).unwrap().save(&masked).unwrap();
    prune(&mut model, &grouping, &plan).unwrap();
    model.save(&pruned).unwrap();
    (masked, pruned)
}

/// What the model at `path` answers, or why the engine does not take it.
fn answers(path: &Path, engine: EngineKind, inputs: &Inputs) -> Result<Vec<Vec<f64>>, String> {
    let engine = runtime::open(&EngineOptions::new(engine)).unwrap();
    let options = LoadOptions { batch: Some(1), ..LoadOptions::default() };
    let mut session = engine.load(path, &options).map_err(|error| error.to_string())?;
    let inputs: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, t)| (*name, t)).collect();
    let outputs = session.run(&inputs).map_err(|error| error.to_string())?;
    Ok(outputs.iter().map(|(_, tensor)| tensor.to_f64_lossy().unwrap()).collect())
}

/// The largest difference, as a share of the largest number of its output; sigmoids near zero are rounded coarsely.
fn difference(a: &[Vec<f64>], b: &[Vec<f64>]) -> f64 {
    assert_eq!(a.len(), b.len());
    let off = |(a, b): (&Vec<f64>, &Vec<f64>)| {
        assert_eq!(a.len(), b.len());
        let largest = a.iter().fold(1e-3f64, |most, v| most.max(v.abs()));
        a.iter().zip(b).fold(0f64, |most, (a, b)| most.max((a - b).abs() / largest))
    };
    a.iter().zip(b).map(off).fold(0.0, f64::max)
}

/// Checks one model in ONNX Runtime, and in tract if that takes the original.
fn check(name: &str, inputs: &Inputs, in_tract: bool) {
    let folder = tempfile::tempdir().unwrap();
    let (masked, pruned) = halves(name, folder.path());
    let wanted = answers(&masked, EngineKind::Ort, inputs).unwrap();
    let got = answers(&pruned, EngineKind::Ort, inputs).unwrap_or_else(|e| panic!("{name}: {e}"));
    let off = difference(&wanted, &got);
    assert!(off < 1e-3, "{name}: off by {off} in ONNX Runtime");
    // What tract refuses is refused whole: exports that choose a branch whose rank is not known before.
    if answers(&assets().join(name), EngineKind::Tract, inputs).is_err() {
        assert!(!in_tract, "{name}: tract does not take the original any more");
        return;
    }
    let got = answers(&pruned, EngineKind::Tract, inputs).unwrap_or_else(|e| panic!("{name}: {e}"));
    let off = difference(&wanted, &got);
    assert!(off < 1e-3, "{name}: off by {off} in tract");
}

#[test]
fn the_file_type_classifier() {
    let bytes: Vec<i32> = (0..2048).map(|i| (i * 37 + i / 5) % 257).collect();
    check("magika.onnx", &vec![("bytes", Tensor::from_i32(vec![1, 2048], &bytes).unwrap())], true);
}

#[test]
fn the_readers_of_text() {
    for (name, height, width) in [("rec", 48, 96), ("det", 64, 96), ("cls", 48, 192)] {
        check(
            &format!("models/ppocr_{name}.onnx"),
            &vec![floats("x", &[1, 3, height, width])],
            true,
        );
    }
}

#[test]
fn the_sentence_encoder() {
    let ids: Vec<i64> = (0..9).map(|i| (i * 977) % 30_000 + 5).collect();
    let inputs = vec![longs("input_ids", &[1, 9], &ids), longs("attention_mask", &[1, 9], &[1; 9])];
    check("models/minilm.onnx", &inputs, true);
}

#[test]
fn the_voice_detectors() {
    let audio = || floats("input", &[1, 576]);
    let state = || floats("state", &[2, 1, 128]);
    let rate = || longs("sr", &[], &[16_000]);
    let (h, c) = (floats("h", &[1, 1, 128]), floats("c", &[1, 1, 128]));
    for (name, in_tract, inputs) in [
        ("", false, vec![audio(), state(), rate()]),
        ("_op18_ifless", true, vec![audio(), state(), rate()]),
        ("_16k_op15", false, vec![audio(), state(), rate()]),
        ("_half", false, vec![audio(), state()]),
        ("_openvino_16k", true, vec![audio(), state()]),
        ("_16k_sequence", true, vec![audio(), h, c]),
    ] {
        check(&format!("models/silero_vad{name}.onnx"), &inputs, in_tract);
    }
}
