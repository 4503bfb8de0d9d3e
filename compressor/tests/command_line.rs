//! The program as people and scripts call it.
#![allow(clippy::unwrap_used)]

#[path = "support/nets.rs"]
mod nets;
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
        (vec!["prune", "m", "-o", "x", "--ratio", "0.5", "--params", "60%"], "cannot be used with"),
        (vec!["prune", "m", "-o", "x", "--params", "0%"], "leaves nothing"),
        (vec!["prune", "m", "-o", "x", "--macs", "many"], "is no count"),
        (vec!["prune", "m", "-o", "x", "--size", "3XB"], "is no size"),
        (vec!["prune", "m", "-o", "x", "--latency", "70%"], "--data"),
        (vec!["prune", "m", "-o", "x", "--params", "60%", "--global"], "cannot be used with"),
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
        (vec!["compress", "m", "-o", "d", "--data", "a", "--confidence", "95"], "above one half"),
        (vec!["compress", "m", "-o", "d", "--data", "a", "--metric", "cer"], "needs a dictionary"),
        (vec!["distil"], "unrecognized subcommand"),
        (vec!["distill", "--teacher", "t.onnx"], "espalier distill is not done yet"),
        (vec!["job"], "espalier job is not done yet"),
        (vec!["trust", "add", "r"], "BUNDLE"),
        (vec!["trust", "init", "r", "--root-days", "0"], "0 is not in"),
        (vec!["trust", "root", "threshold", "r", "owner", "2"], "is no role"),
        (vec!["trust", "remove", "r", "abc"], "is no digest"),
        (
            vec!["quantize", "m", "-o", "x", "--data", "d", "--format", "static-int8"],
            "static-int8 is not done yet; there are auto, dynamic-int8, int8",
        ),
        (vec!["quantize", "m", "-o", "x", "--data", "d", "--format", "int9"], "there are auto"),
        (
            vec!["prune", "m", "-o", "x", "--ratio", "0.5", "--score", "gradient"],
            "gradient is not done yet",
        ),
        (
            vec!["prune", "m", "-o", "x", "--ratio", "0.5", "--repair", "ls,none"],
            "none goes with no other repair",
        ),
        (vec!["prune", "m", "-o", "x", "--ratio", "0.5", "--repair", "ls,ls"], "ls is there twice"),
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
    for command in ["analyze", "inspect", "prune", "quantize", "compress", "apply", "bench"] {
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
        for command in ["analyze", "inspect", "bench"] {
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
    let held = |lock: &serde_json::Value| lock["holds"].as_u64().unwrap();
    assert!(blocked.windows(2).all(|pair| held(&pair[0]) >= held(&pair[1])), "{blocked:?}");
    assert!(held(&blocked[0]) > 100_000 && blocked[0]["op"].is_string(), "{blocked:?}");
    assert!(report["in_groups"]["params"].as_f64().unwrap() > 0.9);
}

/// What the coverage that is published says: at least 60 % of five models and 40 % of magika, embeddings and final
/// classifiers left out.
#[test]
fn half_of_every_group_takes_what_is_published() {
    for (name, least) in [
        ("models/ppocr_rec.onnx", 0.6),
        ("models/ppocr_det.onnx", 0.6),
        ("models/ppocr_cls.onnx", 0.6),
        ("models/silero_vad.onnx", 0.6),
        ("models/silero_vad_16k_op15.onnx", 0.6),
        ("magika.onnx", 0.4),
    ] {
        let report = json(&espalier(&["analyze", text(&asset(name)), "--json"]));
        let half = &report["half"];
        assert!(half["inner_params"].as_f64().unwrap() >= least, "{name}: {half}");
        assert!(report["params"].as_u64() <= report["file_params"].as_u64(), "{name}");
    }
    let rec = text(&asset("models/ppocr_rec.onnx")).to_owned();
    let output = espalier(&["analyze", &rec]);
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    for part in
        ["without embeddings and final classifiers", "left out as classifier: linear_85.w_0"]
    {
        assert!(stdout.contains(part), "{part}: {stdout}");
    }
}

#[test]
fn inspect_follows_a_lock_to_the_layer_that_it_keeps() {
    let rec = text(&asset("models/ppocr_rec.onnx")).to_owned();
    let summary = json(&espalier(&["inspect", &rec, "--json"]));
    assert_eq!((&summary["nodes"], &summary["opsets"]["ai.onnx"]), (&860.into(), &12.into()));
    assert!(summary["constants"].as_u64().unwrap() > 100, "{summary}");
    let why = json(&espalier(&["inspect", &rec, "--why", "linear_85.w_0", "--json"]));
    let axes = why["places"][0]["axes"].as_array().unwrap();
    let axis = |value: &str, axis: u64| {
        let found = axes.iter().find(|a| a["value"] == value && a["axis"] == axis);
        found.unwrap_or_else(|| panic!("{value}[{axis}] in {why}"))
    };
    let kept = axis("linear_85.w_0", 1)["kept"].as_array().unwrap();
    let softmax = kept.iter().find(|k| k["by"].as_str().unwrap().contains("(Softmax)")).unwrap();
    assert!(softmax["why"].as_str().unwrap().contains("normalises"), "{softmax}");
    assert!(!softmax["chain"].as_array().unwrap().is_empty(), "{softmax}");
    let groups = axis("linear_85.w_0", 0)["groups"].as_array().unwrap();
    assert!(!groups.is_empty() && !groups[0]["producers"].as_array().unwrap().is_empty());
    let output = espalier(&["inspect", &rec, "--why", "Conv_16"]);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("did you mean \"p2o.Conv.16\""), "{stderr}");
}

#[test]
fn a_pruning_writes_its_report() {
    let folder = tempfile::tempdir().unwrap();
    let (out, report) = (folder.path().join("half.onnx"), folder.path().join("report.html"));
    let model = asset("magika.onnx");
    let args = ["prune", text(&model), "-o", text(&out), "--ratio", "0.5"];
    let args = [&args[..], &["--report", text(&report)]].concat();
    assert!(espalier(&args).status.success());
    let html = std::fs::read_to_string(&report).unwrap();
    for part in
        ["magika.onnx", "50 % of the units", "512 → 256", "an output of the model", "Parameters"]
    {
        assert!(html.contains(part), "{part}");
    }
    for part in ["http://", "https://", "<script", "Candidates"] {
        assert!(!html.contains(part), "{part} is in the report");
    }
}

/// A small model is asked for in less than its file's size, which no busy machine can miss.
fn compress_small(folder: &Path, more: &[&str]) -> Output {
    let (model, out) = (folder.join("model.onnx"), folder.join("out"));
    let (data, heldout) = (folder.join("fit.npz"), folder.join("judge.npz"));
    nets::mlp(&[28, 64, 4]).save(&model).unwrap();
    nets::samples(&data, 96, &[28], 1);
    nets::samples(&heldout, 64, &[28], 2);
    let args = ["compress", text(&model), "-o", text(&out), "--data", text(&data), "--heldout"];
    let args = [&args[..], &[text(&heldout), "--runtime", "ort", "--size", "7000", "--json"], more];
    espalier(&args.concat())
}

/// On so few samples nothing is shown: with confidence that is an error that says how many are needed, without it
/// the candidate is taken and the report says what it rests on.
#[test]
fn a_candidate_is_taken_with_confidence_or_is_said_not_to_be() {
    let folder = tempfile::tempdir().unwrap();
    let strict = compress_small(folder.path(), &["--accuracy-drop", "2%"]);
    let stderr = String::from_utf8_lossy(&strict.stderr).into_owned();
    assert_eq!(strict.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("64 held-out samples are too few"), "{stderr}");
    let more = ["--accuracy-drop", "60%", "--confidence", "none", "--metric", "cosine"];
    let seen = compress_small(folder.path(), &[&more[..], &["--metric-min", "0.05"]].concat());
    let report = json(&seen);
    let cosine = &report["chosen"]["quality"]["tests"][1];
    assert_eq!((&cosine["metric"], &cosine["test"]), (&"cosine".into(), &"bootstrap".into()));
    assert_eq!(cosine["verdict"]["verdict"], "non_inferior", "{cosine}");
    let test = &report["chosen"]["quality"]["tests"][0];
    assert_eq!((&test["metric"], &test["samples"]), (&"agreement".into(), &64.into()), "{test}");
    assert!((test["margin"].as_f64().unwrap() - 0.6).abs() < 1e-9);
    assert!(
        test["verdict"]["verdict"].is_string() && test["evidence"]["p_noninferior"].is_number()
    );
    let html = std::fs::read_to_string(report["report"].as_str().unwrap()).unwrap();
    assert!(html.contains("What the held-out samples show") && html.contains("No confidence"));
}

/// An evaluator's own metric decides, in the place of agreement.
#[test]
fn an_evaluator_decides_instead_of_agreement() {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("score.sh");
    // Every sample is right, of whatever model that is there.
    let body = "test -f \"$1\" && test -f \"$2\" || exit 3\n\
                printf '{\"metric\": 1, \"per_sample\": [1'\n\
                i=1; while [ $i -lt 64 ]; do printf ', 1'; i=$((i+1)); done\n\
                printf '], \"higher_is_better\": true}'\n";
    std::fs::write(&script, body).unwrap();
    let command = format!("sh {}", text(&script));
    let more = ["--evaluator", &command, "--metric-drop", "0.1"];
    let report = json(&compress_small(folder.path(), &more));
    let tests = report["chosen"]["quality"]["tests"].as_array().unwrap();
    let own = tests.iter().find(|t| t["metric"] == "the evaluator's metric").unwrap();
    assert_eq!((&own["samples"], &own["verdict"]["verdict"]), (&64.into(), &"non_inferior".into()));
}

#[test]
fn a_metric_that_needs_labels_says_so_before_anything_is_tried() {
    let folder = tempfile::tempdir().unwrap();
    let more = ["--metric", "accuracy", "--metric-drop", "5%"];
    let output = compress_small(folder.path(), &more);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("accuracy needs labels") && stderr.contains("judge.npz"), "{stderr}");
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

/// A budget on the command line: what was reached is reported, the plan is written, edited and replayed.
#[test]
fn pruning_under_a_budget_writes_a_plan_that_can_be_edited_and_replayed() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/fashion.onnx");
    let (out, plan, again) = (path("out.onnx"), path("plan.json"), path("again.onnx"));
    let prune =
        ["prune", text(&model), "-o", text(&out), "--params", "50%", "--plan-out", text(&plan)];
    let report = json(&espalier(&[&prune[..], &["--json"]].concat()));
    let (found, after) = (&report["allocation"], report["params_after"].as_f64().unwrap());
    assert_eq!(found["of"], "params");
    assert!(after <= 0.5 * report["params_before"].as_f64().unwrap(), "{found}");
    assert_eq!(found["real"].as_f64(), Some(after));
    assert!(!report["curves"].as_array().unwrap().is_empty());
    let apply = ["apply", text(&model), "-o", text(&again), "--plan", text(&plan)];
    assert!(espalier(&apply).status.success());
    assert!(std::fs::read(&out).unwrap() == std::fs::read(&again).unwrap());

    let whole: serde_json::Value = serde_json::from_slice(&std::fs::read(&plan).unwrap()).unwrap();
    for (pointer, value, part) in [
        ("/groups/0/keep", serde_json::json!([1, 0]), "ascending"),
        ("/groups/0/keep", serde_json::json!([]), "keeps no unit"),
        ("/groups/0/keep", serde_json::json!([0, 4096]), "keeps unit 4096"),
        ("/groups/0/group", serde_json::json!(4096), "no such group"),
        ("/groups/0/keep", serde_json::json!([-1]), "plan.json"),
        ("/source_sha256", serde_json::json!("sha256:00"), "is for the model"),
    ] {
        let mut edited = whole.clone();
        *edited.pointer_mut(pointer).unwrap() = value;
        std::fs::write(&plan, edited.to_string()).unwrap();
        std::fs::remove_file(&again).ok();
        let output = espalier(&apply);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{pointer}: {stderr}");
        assert!(stderr.contains(part) && !again.exists(), "{pointer}: {stderr}");
    }
    let mut edited = whole;
    *edited.pointer_mut("/groups/0/keep").unwrap() = serde_json::json!([0]);
    std::fs::write(&plan, edited.to_string()).unwrap();
    assert!(espalier(&apply).status.success());

    let output = espalier(&["prune", text(&model), "-o", text(&path("no.onnx")), "--params", "10"]);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("out of reach: the nearest is") && !path("no.onnx").exists());
}

/// Ctrl-C in the middle of the curves: what was measured is kept, no output is there, and the message says how to go on.
#[test]
fn an_interrupted_prune_keeps_what_it_measured() {
    use std::io::{BufRead as _, Read as _};
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/fashion.onnx");
    let (data, out, curves) = (path("d.npz"), path("out.onnx"), path("out.onnx.curves.jsonl"));
    let images = ndarray::Array4::<f32>::from_shape_fn((1000, 1, 28, 28), |(n, _, y, x)| {
        (n as f32 * 0.37 + y as f32 * 0.11 + x as f32 * 0.23).sin()
    });
    npz(&data, &[("image", npy(&images))]);
    let mut child = Command::new(env!("CARGO_BIN_EXE_espalier"))
        .args(["prune", text(&model), "-o", text(&out), "--params", "60%", "--data", text(&data)])
        .args(["--curve-samples", "1000", "--repair", "none"])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut stderr = std::io::BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.starts_with("measuring curves") {
        line.clear();
        assert!(stderr.read_line(&mut line).unwrap() > 0, "it ended before the curves");
    }
    let child_id = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(child_id, rustix::process::Signal::INT).unwrap();
    let mut rest = String::new();
    stderr.read_to_string(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1), "{rest}");
    assert!(
        rest.contains("cancelled during") && rest.contains("the same command goes on"),
        "{rest}"
    );
    assert!(rest.contains(text(&curves)) && !out.exists(), "{rest}");
    assert!(std::fs::read_to_string(&curves).unwrap().starts_with("{\"espalier_curves\":1,"));
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
