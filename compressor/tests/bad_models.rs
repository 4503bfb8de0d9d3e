//! Files that are no models, or are wrong, through the commands that read models: a clear error or a correct result.
#![allow(clippy::unwrap_used)]

#[path = "support/onnx.rs"]
mod onnx;

use std::path::Path;
use std::process::{Command, Output};

use onnx::{Message, external, layers, model, node, ones};

fn espalier(folder: &Path, args: &[&str]) -> Output {
    let program = env!("CARGO_BIN_EXE_espalier");
    Command::new(program).args(args).current_dir(folder).output().unwrap()
}

/// The three commands on `m.onnx`.
fn commands() -> [Vec<&'static str>; 4] {
    [
        vec!["analyze", "m.onnx"],
        vec!["inspect", "m.onnx"],
        vec!["inspect", "m.onnx", "--why", "first"],
        vec!["prune", "m.onnx", "-o", "out.onnx", "--ratio", "0.5"],
    ]
}

/// Every command refuses the file with exactly this message, and writes nothing.
fn refused(bytes: &[u8], message: &str) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("m.onnx"), bytes).unwrap();
    for args in commands() {
        let output = espalier(folder.path(), &args);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{args:?}: {stderr}");
        let last = stderr.lines().last().unwrap();
        assert_eq!(last, format!("error: model m.onnx: {message}"), "{args:?}");
        assert!(output.stdout.is_empty() && !folder.path().join("out.onnx").exists());
    }
}

fn weights() -> [Message; 2] {
    [ones("w", &[3, 8], 24), ones("v", &[8, 2], 16)]
}

#[test]
fn a_circle_of_nodes_is_named() {
    let nodes = [
        node("Add", "one", &["x", "b"], "a"),
        node("Relu", "two", &["a"], "b"),
        node("Identity", "three", &["b"], "y"),
    ];
    refused(
        &model(17, 3, &nodes, &[]),
        "graph: the nodes depend on each other in a circle: Add `one`, Relu `two`, Identity `three`",
    );
}

#[test]
fn a_tensor_whose_bytes_do_not_fill_its_dimensions_is_named() {
    refused(
        &model(17, 3, &layers(), &[ones("w", &[3, 9], 24), ones("v", &[8, 2], 16)]),
        "graph, initializer `w`: tensor of dims [3, 9] and type F32 needs 108 bytes, has 96",
    );
}

#[test]
fn an_operator_set_that_cannot_be_is_named() {
    refused(
        &model(0, 3, &layers(), &weights()),
        "operator set 0 of domain `ai.onnx` is not valid: versions start at 1",
    );
}

#[test]
fn names_given_twice_are_named() {
    let [w, v] = weights();
    refused(
        &model(17, 3, &layers(), &[w.clone(), w, v]),
        "graph: the name `w` is given to two values, the second an initializer",
    );
    let mut nodes = layers().to_vec();
    nodes.push(node("Relu", "again", &["x"], "a"));
    refused(
        &model(17, 3, &nodes, &weights()),
        "graph: the name `a` is given to two values, the second the output of a node",
    );
}

#[test]
fn data_that_is_not_there_is_named() {
    let v = ones("v", &[8, 2], 16);
    refused(
        &model(17, 3, &layers(), &[external("w", &[3, 8], "gone.bin"), v.clone()]),
        "tensor `w`: external data at `gone.bin`: No such file or directory (os error 2)",
    );
    refused(
        &model(17, 3, &layers(), &[external("w", &[3, 8], "../w.bin"), v.clone()]),
        "tensor `w`: external data at `../w.bin`: only relative paths without `..` are read",
    );
    refused(
        &model(17, 3, &layers(), &[v]),
        "graph, MatMul node `first`: `w` is read, and nothing provides it",
    );
}

/// Nothing of a newer operator set is understood: said wherever it matters, and no reason to fail an analysis.
#[test]
fn an_operator_set_newer_than_we_know_keeps_everything_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("m.onnx"), model(999, 3, &layers(), &weights())).unwrap();
    let newer = format!("operator set 999 is newer than {}", graph::NEWEST_OPSET);
    for args in &commands()[..2] {
        let output = espalier(folder.path(), args);
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && stdout.contains(&newer), "{args:?}: {stdout}");
    }
    let output = espalier(folder.path(), &commands()[2]);
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(stdout.contains("MatMul is not understood"), "{stdout}");
    let output = espalier(folder.path(), &commands()[3]);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("model m.onnx has nothing to prune:") && stderr.contains(&newer));
    assert!(!folder.path().join("out.onnx").exists());
}

/// Sizes that do not fit lock what they meet, and the node is named.
#[test]
fn layers_that_do_not_fit_each_other_are_said_to() {
    let folder = tempfile::tempdir().unwrap();
    let constants = [ones("w", &[3, 8], 24), ones("v", &[7, 2], 14)];
    std::fs::write(folder.path().join("m.onnx"), model(17, 3, &layers(), &constants)).unwrap();
    let wanted = "b[1] = 8, locked by node second (MatMul): sizes 8 and 7 differ";
    let output = espalier(folder.path(), &commands()[0]);
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && stdout.contains(wanted), "{stdout}");
    let output = espalier(folder.path(), &commands()[3]);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && stderr.contains(wanted), "{stderr}");
}

/// Three gibibytes of weights, none of which is read: the file is a hole.
#[test]
fn a_model_of_three_gibibytes_is_analysed_without_reading_its_weights() {
    const WIDE: [u64; 2] = [24_576, 32_768];
    let folder = tempfile::tempdir().unwrap();
    let hole = std::fs::File::create(folder.path().join("w.bin")).unwrap();
    hole.set_len(WIDE[0] * WIDE[1] * 4).unwrap();
    let constants = [external("w", &WIDE, "w.bin"), ones("v", &[WIDE[1], 2], 2 * 32_768)];
    let bytes = model(17, WIDE[0], &layers(), &constants);
    std::fs::write(folder.path().join("m.onnx"), bytes).unwrap();
    let output = espalier(folder.path(), &["analyze", "m.onnx", "--json"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["params"], 24_576u64 * 32_768 + 65_536);
    assert_eq!(report["half"]["params"], 0.5, "{report}");
    assert_eq!(report["groups"][0]["width"], 32_768);
    let output = espalier(folder.path(), &["inspect", "m.onnx", "--json"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["largest"][0]["dims"], "[24576, 32768]", "{report}");
}
