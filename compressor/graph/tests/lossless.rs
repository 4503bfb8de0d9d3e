//! Every model goes through unharmed.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

use graph::{
    Cause, DeadCode, Driver, Edit, LiftConstants, Model, SaveOptions, Tensor, apply, same,
};

#[path = "support/assets.rs"]
mod assets;

/// How many of the models ONNX Runtime 1.26 computes twice alike. It has no kernels for operators of
/// before opset 7, for gradients, and for strings where the machine lacks a locale.
const COMPUTED: usize = 1023;
/// How many are of real topologies.
const REAL: usize = 21;

#[test]
fn every_model_survives_import_export_import() {
    let paths = assets::models();
    let mut failures = Vec::new();
    for path in &paths {
        if let Err(error) = round_trip(path) {
            failures.push(format!("{}: {error}", path.display()));
        }
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

fn round_trip(path: &Path) -> Result<(), String> {
    let first = Model::load(path).map_err(|e| e.to_string())?;
    let bytes = first.to_bytes().map_err(|e| e.to_string())?;
    let second = Model::from_bytes(bytes, None).map_err(|e| e.to_string())?;
    if let Some(warning) = first.warnings.iter().find(|warning| warning.place == "file") {
        return Err(warning.reason.clone());
    }
    same(&first, &second).map_err(|e| e.to_string())
}

#[test]
fn exports_say_and_compute_the_same_in_onnx_runtime() {
    let folder = tempfile::tempdir().unwrap();
    let mut list = String::new();
    for (number, path) in assets::models().iter().enumerate() {
        let exported = folder.path().join(format!("{number}.onnx"));
        Model::load(path).unwrap().save(&exported).unwrap();
        list += &format!("{}\t{}\n", path.display(), exported.display());
    }
    let pairs = folder.path().join("pairs.txt");
    std::fs::write(&pairs, list).unwrap();
    let output = compare(&pairs, &[]);
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    println!("{text}");
    assert!(output.status.success(), "{}:\n{text}", output.status);
    let same = text.lines().find_map(|line| {
        let (_, counts) = line.split_once(" models: ")?;
        counts.split_once(" same outputs")?.0.parse::<usize>().ok()
    });
    assert!(same.unwrap() >= COMPUTED, "fewer than {COMPUTED} were computed:\n{text}");
}

#[test]
fn exports_with_external_data_say_and_compute_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let mut list = String::new();
    for name in ["magika.onnx", "models/minilm.onnx", "models/silero_vad_op18_ifless.onnx"] {
        let original = assets::assets().join(name);
        let exported = folder.path().join(name.replace('/', "_"));
        let everything = SaveOptions { external_above_bytes: 0 };
        let saved = Model::load(&original).unwrap().save_with(&exported, &everything).unwrap();
        assert!(saved.external.is_some());
        list += &format!("{}\t{}\n", original.display(), exported.display());
    }
    let pairs = folder.path().join("pairs.txt");
    std::fs::write(&pairs, list).unwrap();
    let output = compare(&pairs, &[]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("3 same outputs"), "{text}");
}

#[test]
fn models_whose_constants_were_lifted_compute_the_same_in_onnx_runtime() {
    let folder = tempfile::tempdir().unwrap();
    let mut list = String::new();
    let real = |path: &&PathBuf| !path.starts_with(assets::assets().join(assets::NODE_TESTS));
    for (number, path) in assets::models().iter().filter(real).enumerate() {
        let exported = folder.path().join(format!("{number}.onnx"));
        let mut model = Model::load(path).unwrap();
        Driver::default().run(&mut model, &[&LiftConstants, &DeadCode]).unwrap();
        model.save(&exported).unwrap();
        list += &format!("{}\t{}\n", path.display(), exported.display());
    }
    let pairs = folder.path().join("pairs.txt");
    std::fs::write(&pairs, list).unwrap();
    let output = compare(&pairs, &["--outputs-only"]);
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{text}");
    assert!(output.status.success() && text.contains(" 0 refused"), "{text}");
    assert!(text.contains(&format!("{REAL} models: ")), "{text}");
}

#[test]
fn the_comparison_sees_a_changed_weight_and_a_lost_word() {
    let folder = tempfile::tempdir().unwrap();
    let original = assets::assets().join("magika.onnx");
    let model = Model::load(&original).unwrap();
    let (id, value) = model
        .graph
        .values()
        .find(|(_, v)| v.data.as_ref().is_some_and(|d| d.len() > 1000))
        .unwrap();
    let tensor = value.data.as_ref().unwrap();
    let mut values = tensor.to_f32_vec().unwrap();
    values[7] += 1.0;
    let tensor = Tensor::from_f32(tensor.dims.clone(), &values).unwrap();
    let mut changed = model.clone();
    apply(&mut changed.graph, Edit::SetConstant { value: id, tensor }, &Cause::new("test", ""))
        .unwrap();
    let mut renamed = model.clone();
    renamed.graph.name.push('!');
    for (broken, word) in [(changed, "elements"), (renamed, "graph.name")] {
        assert!(same(&model, &broken).is_err());
        let exported = folder.path().join("broken.onnx");
        broken.save(&exported).unwrap();
        let pairs = folder.path().join("pairs.txt");
        std::fs::write(&pairs, format!("{}\t{}\n", original.display(), exported.display()))
            .unwrap();
        let output = compare(&pairs, &[]);
        assert!(!output.status.success());
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains("1 differ") && text.contains(word), "{text}");
    }
}

fn compare(pairs: &Path, flags: &[&str]) -> Output {
    let script =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/python/compare_exports.py");
    Command::new(assets::python()).arg(script).arg(pairs).args(flags).output().unwrap()
}
