//! The program as it is called.

use std::process::{Command, Output};

fn edge_sim(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_edge-sim")).args(args).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn profiles_are_printed_as_one_json_object_with_errors_and_quality() {
    let output = edge_sim(&["profiles", "--json"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["quality"], "modelled");
    let boards = json["boards"].as_array().unwrap();
    assert_eq!(boards.len(), 9);
    for board in boards {
        for factor in board["factors"].as_array().unwrap() {
            assert!(factor["slowdown"].as_f64().unwrap() > 1.0);
            assert!(factor["fit"]["held_out_worst"].is_number());
        }
    }
}

#[test]
fn a_demo_without_assets_fails_in_step_1_and_names_the_missing_file() {
    let dir = tempfile::tempdir().unwrap();
    let assets = dir.path().join("none");
    let program = env!("CARGO_BIN_EXE_edge-sim");
    let assets = assets.to_str().unwrap();
    let common = ["--espalier", program, "--agent", program, "--json"];
    let output = edge_sim(&[&["demo", "--assets", assets], common.as_slice()].concat());
    assert_eq!(output.status.code(), Some(1));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&json["ok"], &json["step"]), (&false.into(), &1.into()));
    assert!(json["why"].as_str().unwrap().contains("magika.onnx"), "{json}");
}

#[test]
fn wrong_usage_and_wrong_configuration_have_their_own_exit_codes() {
    assert_eq!(edge_sim(&["fly"]).status.code(), Some(2));
    let output = edge_sim(&["demo", "--assets", "a", "--device", "toaster"]);
    assert_eq!(output.status.code(), Some(64));
    assert!(stderr(&output).contains("raspberry-pi-zero-2-w"), "{}", stderr(&output));
    let output = edge_sim(&["run", "/nowhere/scenario.toml"]);
    assert_eq!(output.status.code(), Some(64));
    assert!(stderr(&output).contains("/nowhere/scenario.toml"));
}
