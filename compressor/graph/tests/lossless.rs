//! Every model goes through unharmed.

use std::{path::Path, process::Command};

use graph::{Model, same};

#[path = "support/assets.rs"]
mod assets;

#[test]
fn every_model_survives_import_export_import() {
    let paths = assets::models();
    let mut failures = Vec::new();
    for path in &paths {
        if let Err(error) = round_trip(path) {
            failures.push(format!("{}: {error}", path.display()));
        }
    }
    println!("{} models", paths.len());
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

fn round_trip(path: &Path) -> Result<(), String> {
    let first = Model::load(path).map_err(|e| e.to_string())?;
    let bytes = first.to_bytes().map_err(|e| e.to_string())?;
    let second = Model::from_bytes(bytes, None).map_err(|e| e.to_string())?;
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
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/python/compare_exports.py");
    let output = Command::new(assets::python()).arg(script).arg(&pairs).output().unwrap();
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    println!("{text}");
    assert!(output.status.success(), "{}:\n{text}", output.status);
}
