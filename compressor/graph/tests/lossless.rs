//! Every model goes through unharmed.

use std::path::Path;

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
