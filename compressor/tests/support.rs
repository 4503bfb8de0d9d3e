//! What the tests of this folder share: where real models and samples lie, and small files of samples.
#![allow(dead_code, clippy::unwrap_used)]

use std::io::Write;
use std::path::{Path, PathBuf};

use ndarray_npy::{WritableElement, WriteNpyExt};
use runtime::{EngineKind, EngineOptions, IoSpec, LoadOptions};

/// A file of the assets.
pub(crate) fn asset(name: &str) -> PathBuf {
    let folder = std::env::var_os("ESPALIER_ASSETS")
        .unwrap_or_else(|| panic!("ESPALIER_ASSETS is not set: run through `cargo xtask test`"));
    let path = PathBuf::from(folder).join(name);
    assert!(path.exists(), "{} is missing: run through `cargo xtask test`", path.display());
    path
}

/// Options of an engine on one thread.
pub(crate) fn engine(kind: EngineKind) -> EngineOptions {
    EngineOptions::new(kind)
}

/// Inputs of a model, as the engine sees them.
pub(crate) fn inputs(model: &Path) -> Vec<IoSpec> {
    let engine = runtime::open(&engine(EngineKind::Tract)).unwrap();
    let session = engine.load(model, &LoadOptions::default()).unwrap();
    session.inputs().to_vec()
}

/// The bytes of an `.npy`.
pub(crate) fn npy<T: WritableElement, D: ndarray::Dimension>(
    array: &ndarray::Array<T, D>,
) -> Vec<u8> {
    let mut bytes = Vec::new();
    array.write_npy(&mut bytes).unwrap();
    bytes
}

/// Writes an `.npz`.
pub(crate) fn npz(path: &Path, arrays: &[(&str, Vec<u8>)]) {
    let mut zip = zip::ZipWriter::new(std::fs::File::create(path).unwrap());
    for (name, bytes) in arrays {
        let options = zip::write::SimpleFileOptions::default();
        zip.start_file(format!("{name}.npy"), options).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap();
}

/// The first `count` magika samples of an asset, in a file of their own.
pub(crate) fn first_samples(name: &str, count: usize, to: &Path) {
    let model = asset("magika.onnx");
    let data = espalier::data::Dataset::load(&asset(name), &inputs(&model)).unwrap();
    let at: Vec<usize> = (0..count.min(data.len())).collect();
    let batch = data.batch(&at).unwrap();
    let values = batch[0].1.to_i32().unwrap();
    let array = ndarray::Array2::from_shape_vec((at.len(), 2048), values).unwrap();
    npz(to, &[("bytes", npy(&array))]);
}
