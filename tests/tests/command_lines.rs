//! The command lines: exit codes, and errors that say what is wrong.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output};

use e2e::{asset, binary};

fn espalier(arguments: &[&str]) -> Output {
    Command::new(binary("espalier")).args(arguments).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_model_file_cut_in_half_is_named_and_nothing_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let half = folder.path().join("half.onnx");
    let bytes = std::fs::read(asset("magika.onnx")).unwrap();
    std::fs::write(&half, &bytes[..bytes.len() / 2]).unwrap();
    let out = folder.path().join("out");
    let output = espalier(&[
        "compress",
        path(&half),
        "-o",
        path(&out),
        "--data",
        path(&asset("calib.npz")),
        "--latency-p95",
        "5ms",
    ]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stderr(&output).contains("half.onnx"), "{}", stderr(&output));
    assert!(!out.exists());
}

#[test]
fn wrong_usage_ends_with_two() {
    assert_eq!(espalier(&["compress"]).status.code(), Some(2));
    assert_eq!(espalier(&["no-such-command"]).status.code(), Some(2));
}

#[test]
fn analyze_prints_one_json_object() {
    let output = espalier(&["analyze", path(&asset("magika.onnx")), "--json"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let params = value["params"].as_u64().unwrap();
    assert!((700_000..900_000).contains(&params), "{value}");
    assert!(value["prunable_params"].as_f64().unwrap() > 0.5, "{value}");
}

#[test]
fn a_configuration_with_several_mistakes_names_them_all_and_ends_with_sixty_four() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("agent.toml");
    std::fs::write(&config, "[runtime]\nengine = \"abacus\"\n[telemetry]\nwindow_ms = 0\n")
        .unwrap();
    let output = Command::new(binary("espalier-agent"))
        .args(["check", "--config"])
        .arg(&config)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(64), "{}", stderr(&output));
    let text = format!("{}{}", stderr(&output), String::from_utf8_lossy(&output.stdout));
    assert!(text.contains("engine") && text.contains("window_ms"), "{text}");
}
