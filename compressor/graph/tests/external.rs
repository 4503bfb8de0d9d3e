//! External data: written aligned and atomically, read only from where it may lie.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::{fs, path::Path};

use graph::{Builder, DType, Dim, ImportError, Model, SaveOptions, Tensor, same};

const EVERYTHING: SaveOptions = SaveOptions { external_above_bytes: 0 };

fn model(fill: f32) -> Model {
    let mut builder = Builder::new(17);
    let x = builder.input("x", DType::F32, vec![Dim::Symbol("N".into()), Dim::Fixed(50)]);
    let w = builder.constant("w", Tensor::from_f32(vec![50, 30], &[fill; 1500]).unwrap()).unwrap();
    let v = builder
        .constant("v", Tensor::from_f32(vec![30, 40], &[fill + 1.0; 1200]).unwrap())
        .unwrap();
    let b = builder.constant("b", Tensor::from_f32(vec![40], &[0.5; 40]).unwrap()).unwrap();
    let h = builder.node("MatMul", &[x, w], []).unwrap();
    let h = builder.node("MatMul", &[h, v], []).unwrap();
    let y = builder.node("Add", &[h, b], []).unwrap();
    builder.finish(&[y]).unwrap()
}

/// The model file with the location of its first external tensor replaced by one of the same length.
fn relocate(path: &Path, from: &str, to: &str) {
    assert_eq!(from.len(), to.len(), "the length prefix stays");
    let bytes = fs::read(path).unwrap();
    let mut changed = bytes.clone();
    let positions: Vec<usize> = (0..=bytes.len() - from.len())
        .filter(|&at| &bytes[at..at + from.len()] == from.as_bytes())
        .collect();
    assert!(!positions.is_empty());
    for at in positions {
        changed[at..at + to.len()].copy_from_slice(to.as_bytes());
    }
    fs::write(path, changed).unwrap();
}

fn reason(path: &Path) -> String {
    match Model::load(path) {
        Err(ImportError::External { reason, .. }) => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn large_tensors_go_to_an_aligned_second_file_and_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    let first = model(1.0);
    let saved = first.save_with(&path, &EVERYTHING).unwrap();
    let external = saved.external.unwrap();
    assert_eq!(external, folder.path().join("m.onnx.data"));
    // 6000 bytes, padded to 8192, then 4800: the bias stays in the model file.
    assert_eq!(fs::metadata(&external).unwrap().len(), 8192 + 4800);
    assert!(fs::metadata(&path).unwrap().len() < 2000);
    same(&first, &Model::load(&path).unwrap()).unwrap();
    assert!(first.save(folder.path().join("one.onnx")).unwrap().external.is_none());
}

#[test]
fn saving_again_leaves_the_old_data_whole_and_no_temporary_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    model(1.0).save_with(&path, &EVERYTHING).unwrap();
    let old = Model::load(&path).unwrap();
    let second = model(9.0);
    second.save_with(&path, &EVERYTHING).unwrap();
    same(&second, &Model::load(&path).unwrap()).unwrap();
    same(&model(1.0), &old).unwrap();
    let mut names: Vec<_> =
        fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["m.onnx", "m.onnx.1.data", "m.onnx.data"]);
}

#[test]
fn locations_outside_the_folder_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let inside = folder.path().join("inside");
    fs::create_dir(&inside).unwrap();
    let path = inside.join("m.onnx");
    let save = || model(1.0).save_with(&path, &EVERYTHING).unwrap().external.unwrap();
    let data = save();
    fs::rename(&data, folder.path().join("out.data")).unwrap();
    relocate(&path, "m.onnx.data", "../out.data");
    assert!(reason(&path).contains("`..`"));
    relocate(&path, "../out.data", "/x/out.data");
    assert!(reason(&path).contains("relative"));
    relocate(&path, "/x/out.data", "link.linked");
    assert!(reason(&path).contains("No such file"));
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(folder.path().join("out.data"), inside.join("link.linked"))
            .unwrap();
        assert!(reason(&path).contains("link out"));
    }
    fs::remove_file(inside.join("link.linked")).unwrap();
    fs::create_dir(inside.join("link.linked")).unwrap();
    assert!(reason(&path).contains("not a regular file"));
}

#[test]
fn data_that_is_cut_short_or_of_the_wrong_length_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    let data = model(1.0).save_with(&path, &EVERYTHING).unwrap().external.unwrap();
    fs::File::options().write(true).open(&data).unwrap().set_len(8192 + 4799).unwrap();
    assert!(reason(&path).contains("beyond its end"));
    relocate(&path, "6000", "6004");
    assert!(reason(&path).contains("need 6000 bytes"));
    relocate(&path, "6004", "6e03");
    assert!(reason(&path).contains("not a number"));
}

#[test]
fn bytes_without_a_folder_cannot_refer_to_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    model(1.0).save_with(&path, &EVERYTHING).unwrap();
    let bytes = fs::read(&path).unwrap();
    assert!(matches!(Model::from_bytes(bytes, None), Err(ImportError::External { .. })));
}

#[test]
fn a_large_file_is_mapped_and_reads_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    let first = model(1.0);
    let data = first.save_with(&path, &EVERYTHING).unwrap().external.unwrap();
    // Sparse: takes no space on disk.
    fs::File::options()
        .write(true)
        .open(&data)
        .unwrap()
        .set_len(graph::MAP_ABOVE_BYTES + 1)
        .unwrap();
    let mapped = Model::load(&path).unwrap();
    same(&first, &mapped).unwrap();
    // The mapping outlives the name.
    fs::remove_file(&data).unwrap();
    same(&first, &mapped).unwrap();
}

#[test]
fn a_model_that_cannot_be_written_leaves_the_old_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    model(1.0).save(&path).unwrap();
    let missing = folder.path().join("no").join("such.onnx");
    let error = model(2.0).save(&missing).unwrap_err();
    assert!(error.to_string().contains("such.onnx"), "{error}");
    same(&model(1.0), &Model::load(&path).unwrap()).unwrap();
}
