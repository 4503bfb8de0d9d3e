//! The program as people and scripts call it.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::process::{Command, Output};

use support::{asset, first_samples, npy, npz};

fn espalier(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_espalier")).args(args).output().unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn json(output: &Output) -> serde_json::Value {
    let out = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&out)
        .unwrap_or_else(|e| panic!("{e}: {out}\n{}", String::from_utf8_lossy(&output.stderr)))
}

#[test]
fn wrong_usage_exits_with_two_and_says_what_is_wrong() {
    for (args, part) in [
        (vec!["prune", "m.onnx", "-o", "x.onnx"], "--ratio"),
        (vec!["prune", "m.onnx", "-o", "x.onnx", "--ratio", "2"], "no share"),
        (vec!["bench", "m.onnx", "--runtime", "rten"], "no engine"),
        (
            vec![
                "compress",
                "m.onnx",
                "-o",
                "d",
                "--data",
                "a",
                "--heldout",
                "b",
                "--latency-p95",
                "20",
            ],
            "20ms",
        ),
        (vec!["distil"], "unrecognized subcommand"),
        (vec!["distill", "--teacher", "t.onnx"], "espalier distill is not done yet"),
        (vec!["job"], "espalier job is not done yet"),
        (
            vec!["quantize", "m", "-o", "x", "--data", "d", "--format", "static-int8"],
            "static-int8 is not done yet; there are auto, dynamic-int8, int8",
        ),
        (vec!["quantize", "m", "-o", "x", "--data", "d", "--format", "int9"], "there are auto"),
        (vec!["prune", "m", "-o", "x", "--ratio", "0.5", "--score", "obs"], "obs is not done yet"),
        (vec!["prune", "m", "-o", "x", "--ratio", "0.5", "--repair", "bn"], "bn is not done yet"),
    ] {
        let output = espalier(&args);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
        assert!(stderr.contains(part), "{args:?}: {stderr}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn help_has_examples_and_exits_with_zero() {
    for command in ["analyze", "prune", "quantize", "compress", "apply", "bench"] {
        let output = espalier(&[command, "--help"]);
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(0), "{command}");
        assert!(
            stdout.contains("Example") && stdout.contains(&format!("espalier {command}")),
            "{stdout}"
        );
        for flag in ["--json", "--seed", "--threads"] {
            assert!(stdout.contains(flag), "{command} {flag}");
        }
    }
}

#[test]
fn a_model_that_is_missing_or_cut_in_half_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let half = folder.path().join("half.onnx");
    let whole = std::fs::read(asset("magika.onnx")).unwrap();
    std::fs::write(&half, &whole[..whole.len() / 2]).unwrap();
    let gone = folder.path().join("gone.onnx");
    for path in [&half, &gone] {
        for command in ["analyze", "bench"] {
            let output = espalier(&[command, text(path)]);
            let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(1), "{stderr}");
            assert!(stderr.contains(text(path)), "{stderr}");
        }
    }
}

#[test]
fn analyze_explains_magika() {
    let report = json(&espalier(&["analyze", text(&asset("magika.onnx")), "--json"]));
    assert!(report["params"].as_u64().unwrap() > 700_000);
    assert!(report["macs"].as_u64().unwrap() > 300_000_000);
    assert!(report["prunable_macs"].as_f64().unwrap() > 0.5);
    let widths: Vec<u64> =
        report["groups"].as_array().unwrap().iter().map(|g| g["width"].as_u64().unwrap()).collect();
    assert!(widths.contains(&512) && widths.contains(&64), "{widths:?}");
    let blocked = report["blocked"].as_array().unwrap();
    assert!(!blocked.is_empty());
    assert!(blocked.iter().all(|b| !b["why"].as_str().unwrap().is_empty()));
}

/// Half the units, with and without the repair; twice the same bytes.
#[test]
fn pruning_with_samples_repairs_and_is_deterministic() {
    let folder = tempfile::tempdir().unwrap();
    let model = asset("magika.onnx");
    let data = folder.path().join("calib.npz");
    first_samples("calib.npz", 256, &data);
    let run = |name: &str, repair: &str| {
        let out = folder.path().join(name);
        let output = espalier(&[
            "prune",
            text(&model),
            "-o",
            text(&out),
            "--ratio",
            "0.75",
            "--data",
            text(&data),
            "--score",
            "activation",
            "--repair",
            repair,
            "--runtime",
            "ort",
            "--seed",
            "3",
            "--json",
        ]);
        (json(&output), std::fs::read(&out).unwrap())
    };
    let (report, first) = run("a.onnx", "ls");
    assert!(report["params_after"].as_u64() < report["params_before"].as_u64());
    assert!(report["macs_after"].as_u64() < report["macs_before"].as_u64());
    let refit = &report["refits"][0];
    assert!(refit["residual_after"].as_f64() < refit["residual_before"].as_f64(), "{refit}");
    assert!(
        report["refused"]
            .as_array()
            .unwrap()
            .iter()
            .all(|r| r["why"].as_str().is_some_and(|w| !w.is_empty()))
    );
    let (_, second) = run("b.onnx", "ls");
    assert!(first == second, "the same seed gave other bytes");
    let (_, bare) = run("c.onnx", "none");
    assert!(first != bare);
}

#[test]
fn quantize_reports_what_it_measured_and_auto_refuses_what_does_not_pay() {
    let folder = tempfile::tempdir().unwrap();
    let model = asset("magika.onnx");
    let data = folder.path().join("heldout.npz");
    first_samples("heldout.npz", 32, &data);
    let out = folder.path().join("int8.onnx");
    let output = espalier(&[
        "quantize",
        text(&model),
        "-o",
        text(&out),
        "--data",
        text(&data),
        "--format",
        "int8",
        "--runtime",
        "ort",
        "--json",
    ]);
    let report = json(&output);
    assert_eq!(report["audit"]["integer"], 2, "{report}");
    assert!(report["size_after"].as_u64() < report["size_before"].as_u64());
    assert!(report["latency"]["ratio"].as_f64().unwrap() > 0.0);
    assert!(report["quality"]["agreement"]["value"].as_f64().unwrap() > 0.95, "{report}");
    // Two small layers of magika are no MatMuls worth a format of their own: whichever way it ends, it says why.
    let auto = folder.path().join("auto.onnx");
    let output = espalier(&[
        "quantize",
        text(&model),
        "-o",
        text(&auto),
        "--data",
        text(&data),
        "--runtime",
        "ort",
        "--json",
    ]);
    if output.status.success() {
        assert!(json(&output)["latency"]["ratio_high"].as_f64().unwrap() < 0.98);
    } else {
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(stderr.contains("not measurably faster"), "{stderr}");
        assert!(!auto.exists());
    }
}

#[test]
fn bad_samples_are_named_by_file_and_array_and_nothing_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let (model, heldout) = (asset("magika.onnx"), asset("heldout.npz"));
    let data = folder.path().join("bad.npz");
    let out = folder.path().join("out");
    let zeros = ndarray::Array2::<f32>::zeros((4, 2048));
    npz(&data, &[("bytes", npy(&zeros))]);
    let output = espalier(&[
        "compress",
        text(&model),
        "-o",
        text(&out),
        "--data",
        text(&data),
        "--heldout",
        text(&heldout),
        "--latency-p95",
        "20ms",
    ]);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.contains("bad.npz") && stderr.contains("FP32") && stderr.contains("INT32"),
        "{stderr}"
    );
    assert!(!out.exists());
}

/// A latency of this host is no latency of a device, and the bundle does not say that it is.
#[test]
fn a_budget_for_a_device_without_its_measurement_is_said_to_be_of_this_host() {
    let folder = tempfile::tempdir().unwrap();
    let (data, heldout) = (folder.path().join("fit.npz"), folder.path().join("judge.npz"));
    first_samples("calib.npz", 16, &data);
    first_samples("heldout.npz", 16, &heldout);
    let predicted = |out: &Path, device: &str| {
        let model = asset("magika.onnx");
        let mut args = vec!["compress", text(&model), "-o", text(out), "--data", text(&data)];
        args.extend(["--heldout", text(&heldout), "--latency-p95", "60s", "--device", device]);
        args.extend(["--runtime", "ort", "--json"]);
        let output = espalier(&args);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(json(&output)["latency_of"], "this host", "{stderr}");
        let manifest = std::fs::read(out.join("manifest.json")).unwrap();
        let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
        let report = std::fs::read_to_string(out.join("report.html")).unwrap();
        (stderr, manifest["predicted"]["latency_p95_us"].clone(), report)
    };
    let (stderr, latency, report) = predicted(&folder.path().join("pi"), "raspberry-pi-4");
    assert!(stderr.contains("warning") && stderr.contains("--device-p95"), "{stderr}");
    assert!(latency.is_null(), "{latency}");
    assert!(report.contains("says nothing of raspberry-pi-4"));
    let (stderr, latency, _) = predicted(&folder.path().join("any"), "any");
    assert!(!stderr.contains("warning"), "{stderr}");
    assert_eq!(latency["quality"], "measured");
}

#[test]
fn a_plan_that_was_written_by_prune_is_applied_again_to_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let (model, plan) = (asset("magika.onnx"), path("plan.json"));
    let (first, second) = (path("first.onnx"), path("second.onnx"));
    let output = espalier(&["prune", text(&model), "-o", text(&first), "--ratio", "0.5", "--json"]);
    std::fs::write(&plan, json(&output)["plan"].to_string()).unwrap();
    let args = ["apply", text(&model), "-o", text(&second), "--plan", text(&plan)];
    assert!(espalier(&args).status.success());
    assert!(std::fs::read(&first).unwrap() == std::fs::read(&second).unwrap());
    std::fs::write(&plan, "{}").unwrap();
    let output = espalier(&args);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("plan.json"));
}

#[test]
fn bench_measures_in_both_engines() {
    for engine in ["tract", "ort"] {
        let report = json(&espalier(&[
            "bench",
            text(&asset("magika.onnx")),
            "--runtime",
            engine,
            "--runs",
            "5",
            "--json",
        ]));
        assert_eq!(report["engine"], engine);
        assert!(report["p50_us"].as_f64().unwrap() > 0.0);
        assert!(report["p50_us"].as_f64() <= report["p99_us"].as_f64());
        assert!(report["pss_bytes"].as_u64().unwrap() > 1_000_000);
    }
}

#[test]
fn a_model_whose_groups_all_lie_in_bodies_of_control_flow_is_pruned_with_samples_too() {
    let model = asset("models/silero_vad.onnx");
    let folder = tempfile::tempdir().unwrap();
    let (data, out) = (folder.path().join("calib.npz"), folder.path().join("half.onnx"));
    npz(
        &data,
        &[
            ("input", npy(&ndarray::Array3::<f32>::zeros((2, 1, 576)))),
            ("state", npy(&ndarray::Array4::<f32>::zeros((2, 2, 1, 128)))),
            ("sr", npy(&ndarray::Array1::<i64>::from_elem(2, 16000))),
        ],
    );
    let output = espalier(&[
        "prune",
        text(&model),
        "-o",
        text(&out),
        "--ratio",
        "0.5",
        "--data",
        text(&data),
        "--runtime",
        "ort",
        "--json",
    ]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = json(&output);
    assert!(said["params_after"].as_u64() < said["params_before"].as_u64(), "{said}");
    assert!(out.exists());
}
