//! The data plane with real engines, real worker processes and a real model.
#![cfg(any(feature = "tract", feature = "ort"))]
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::{Path, PathBuf};
use std::time::Duration;

use bundle::{Draft, Source, TensorSpec};
use bytes::Bytes;
use espalier_agent::plane::batch::BatchRules;
use espalier_agent::plane::{Plane, PlaneConfig, PlaneError, PlaneEvent};
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use runtime::{EngineKind, EngineOptions};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// Far beyond what any step here takes: a wait that reaches it is a failure.
const PATIENCE: Duration = Duration::from_secs(120);
/// Those that are compiled in.
const ENGINES: &[EngineKind] = &[
    #[cfg(feature = "tract")]
    EngineKind::Tract,
    #[cfg(feature = "ort")]
    EngineKind::Ort,
];

struct Rig {
    plane: Plane,
    folder: tempfile::TempDir,
}

impl Rig {
    async fn start(engine: EngineKind) -> Self {
        Self::within(engine, None).await
    }

    /// With workers that may take so much memory.
    async fn within(engine: EngineKind, memory_bytes: Option<u64>) -> Self {
        Self::with(engine, |config| config.worker_memory_bytes = memory_bytes).await
    }

    async fn with(engine: EngineKind, change: impl FnOnce(&mut PlaneConfig)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut config = PlaneConfig {
            engine: EngineOptions {
                ort_library: Some(environment("ORT_DYLIB_PATH")),
                ..EngineOptions::new(engine)
            },
            worker_program: env!("CARGO_BIN_EXE_espalier-worker").into(),
            worker_args: vec!["worker".to_owned()],
            worker_memory_bytes: None,
            worker_groups: None,
            http: Some("127.0.0.1:0".parse().unwrap()),
            unix: None,
            queue_depth: 256,
            batch: BatchRules::OFF,
            run_limit: Duration::from_secs(120),
            max_request_bytes: 1 << 20,
            max_buffered_bytes: 64 << 20,
            request_deadline: PATIENCE,
            drift_sample_every: Duration::ZERO,
            run_dir: folder.path().join("run"),
            roots: espalier_agent::sys::Roots::default(),
        };
        change(&mut config);
        let plane = Plane::start(config).await.unwrap();
        Self { plane, folder }
    }

    fn bundle(&self, name: &str, model: Vec<u8>) -> bundle::Bundle {
        let mut draft = Draft::new("magika", name, Source::Bytes(model));
        draft.inputs = vec![spec("bytes", "INT32", 2048)];
        draft.outputs = vec![spec("target_label", "FP32", 214)];
        draft.selftest = golden();
        draft.write(&self.folder.path().join(name)).unwrap()
    }

    /// A model that gives back its two strings.
    async fn serve_words(&self) {
        let path = environment("ESPALIER_ASSETS")
            .join("onnx-testdata/node/test_strnormalizer_nostopwords_nochangecase/model.onnx");
        let mut draft = Draft::new("words", "1", Source::Bytes(std::fs::read(path).unwrap()));
        let strings = |name: &str| TensorSpec {
            name: name.to_owned(),
            dtype: "BYTES".to_owned(),
            dims: vec![2],
        };
        draft.inputs = vec![strings("x")];
        draft.outputs = vec![strings("y")];
        draft.selftest = golden();
        let bundle = draft.write(&self.folder.path().join("words")).unwrap();
        let digest = bundle.digest.to_string();
        let candidate = self.plane.load("words", &digest, &bundle).await.unwrap();
        self.plane.serve(candidate).await.unwrap();
    }

    async fn serve(&self, version: &str) {
        let bundle = self.bundle(version, magika());
        let digest = bundle.digest.to_string();
        let candidate = self.plane.load("magika", &digest, &bundle).await.unwrap();
        self.plane.serve(candidate).await.unwrap();
    }
}

fn spec(name: &str, dtype: &str, width: i64) -> TensorSpec {
    TensorSpec { name: name.to_owned(), dtype: dtype.to_owned(), dims: vec![-1, width] }
}

/// Never run here; a bundle must have one.
fn golden() -> bundle::SelfTest {
    let output = bundle::NamedTensor {
        name: "target_label".to_owned(),
        dtype: "FP32".to_owned(),
        dims: vec![1],
        data: vec![0; 4],
    };
    let case = bundle::Case { inputs: Vec::new(), outputs: vec![output] };
    bundle::SelfTest { cases: vec![case], ..bundle::SelfTest::default() }
}

fn environment(name: &str) -> PathBuf {
    std::env::var_os(name)
        .unwrap_or_else(|| panic!("{name} is not set: run through `cargo xtask test`"))
        .into()
}

fn magika() -> Vec<u8> {
    let path = environment("ESPALIER_ASSETS").join("magika.onnx");
    std::fs::read(&path)
        .unwrap_or_else(|e| panic!("{}: {e}: run through `cargo xtask test`", path.display()))
}

/// The classifier's input for a text: its first and last bytes, padded with 256.
fn preprocess(text: &[u8]) -> Vec<i32> {
    let mut bytes = vec![256; 2048];
    let head = &text[..text.len().min(1024)];
    let tail = &text[text.len() - head.len()..];
    for (slot, byte) in bytes.iter_mut().zip(head) {
        *slot = i32::from(*byte);
    }
    for (slot, byte) in bytes.iter_mut().rev().zip(tail.iter().rev()) {
        *slot = i32::from(*byte);
    }
    bytes
}

fn request(data: &[i32], shape: &[usize]) -> Value {
    json!({ "inputs": [{ "name": "bytes", "datatype": "INT32", "shape": shape, "data": data }] })
}

async fn infer(plane: &Plane, body: &Value) -> (u16, Value) {
    let stream = TcpStream::connect(plane.endpoints().http.unwrap()).await.unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::post("/v2/models/magika/infer")
        .header("host", "board")
        .body(Full::new(Bytes::from(body.to_string())))
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&body).unwrap())
}

fn scores(answer: &Value) -> Vec<f64> {
    let data = answer["outputs"][0]["data"].as_array().unwrap();
    data.iter().map(|v| v.as_f64().unwrap()).collect()
}

async fn patiently<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.expect("in time")
}

fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

#[tokio::test]
async fn every_engine_serves_a_real_classifier_and_they_give_the_same_scores() {
    let source = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    let input = preprocess(&source);
    let mut answers = Vec::new();
    for &engine in ENGINES {
        let rig = Rig::start(engine).await;
        rig.serve("one").await;
        let (status, answer) = infer(&rig.plane, &request(&input, &[1, 2048])).await;
        assert_eq!(status, 200, "{engine}: {answer}");
        assert_eq!(answer["outputs"][0]["shape"], json!([1, 214]));
        answers.push(scores(&answer));
        let (status, answer) =
            infer(&rig.plane, &request(&[input.clone(), input.clone()].concat(), &[2, 2048])).await;
        assert_eq!((status, scores(&answer).len()), (200, 428), "{engine}: a batch of two");
        rig.plane.drain(PATIENCE).await;
    }
    for other in &answers[1..] {
        for (a, b) in answers[0].iter().zip(other) {
            assert!((a - b).abs() < 1e-3, "{a} and {b}");
        }
    }
    assert!((answers[0].iter().sum::<f64>() - 1.0).abs() < 1e-3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_requests_at_once_all_succeed_across_a_switch() {
    for &engine in ENGINES {
        let rig = Rig::start(engine).await;
        rig.serve("one").await;
        let input = preprocess(b"fn main() {}");
        let mut clients = JoinSet::new();
        for _ in 0..200 {
            let (plane, body) = (rig.plane.clone(), request(&input, &[1, 2048]));
            clients.spawn(async move { infer(&plane, &body).await });
        }
        rig.serve("two").await;
        rig.plane.retire_standby("magika").await;
        let mut versions = Vec::new();
        while let Some(answer) = patiently(clients.join_next()).await {
            let (status, answer) = answer.unwrap();
            assert_eq!(status, 200, "{engine}: {answer}");
            versions.push(answer["model_version"].clone());
        }
        assert_eq!(versions.len(), 200);
        let (_, answer) = infer(&rig.plane, &request(&input, &[1, 2048])).await;
        assert_eq!(answer["model_version"], "two");
        let failed: u64 = rig.plane.take_window().iter().map(|w| w.errors + w.rejected).sum();
        assert_eq!(failed, 0);
        rig.plane.drain(PATIENCE).await;
    }
}

/// A golden case of a text: what the model says of it when it is alone.
fn case(text: &[u8], scores: &[f64]) -> bundle::Case {
    let tensor = |name: &str, dtype: &str, dims: [usize; 2], data: Vec<u8>| bundle::NamedTensor {
        name: name.to_owned(),
        dtype: dtype.to_owned(),
        dims: dims.to_vec(),
        data,
    };
    let input = preprocess(text).iter().flat_map(|v| v.to_le_bytes()).collect();
    #[allow(clippy::cast_possible_truncation)]
    let output = scores.iter().flat_map(|v| (*v as f32).to_le_bytes()).collect();
    bundle::Case {
        inputs: vec![tensor("bytes", "INT32", [1, 2048], input)],
        outputs: vec![tensor("target_label", "FP32", [1, 214], output)],
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_are_joined_are_answered_as_they_are_alone() {
    let texts: [&[u8]; 4] = [b"#!/bin/sh\n", b"fn main() {}", b"<html></html>", b"{\"a\": 1}"];
    for &engine in ENGINES {
        let alone = Rig::start(engine).await;
        alone.serve("one").await;
        let mut wanted = Vec::new();
        for text in texts {
            let (_, answer) = infer(&alone.plane, &request(&preprocess(text), &[1, 2048])).await;
            wanted.push(scores(&answer));
        }
        let rules = BatchRules { max_rows: texts.len(), max_delay: PATIENCE };
        let rig = Rig::with(engine, |config| config.batch = rules).await;
        let mut draft = Draft::new("magika", "one", Source::Bytes(magika()));
        draft.inputs = vec![spec("bytes", "INT32", 2048)];
        draft.outputs = vec![spec("target_label", "FP32", 214)];
        let cases = texts.iter().zip(&wanted).map(|(text, scores)| case(text, scores)).collect();
        // In ONNX Runtime a row of a batch is up to a hundredth from what it is alone.
        draft.selftest = bundle::SelfTest { cases, rtol: 0.05, atol: 1e-3 };
        let bundle = draft.write(&rig.folder.path().join("one")).unwrap();
        let candidate = rig.plane.load("magika", "one", &bundle).await.unwrap();
        rig.plane.serve(candidate).await.unwrap();
        let batching = patiently(async {
            loop {
                let status = rig.plane.status();
                let batching = status["models"]["magika"]["active"]["batching"].as_str().unwrap();
                if batching != "not proven yet" {
                    break batching.to_owned();
                }
                tokio::task::yield_now().await;
            }
        })
        .await;
        assert_eq!(batching, "on", "{engine}");
        let asked = texts.map(|text| {
            let (plane, body) = (rig.plane.clone(), request(&preprocess(text), &[1, 2048]));
            tokio::spawn(async move { infer(&plane, &body).await })
        });
        for (asked, wanted) in asked.into_iter().zip(&wanted) {
            let (status, answer) = patiently(asked).await.unwrap();
            assert_eq!(status, 200, "{engine}: {answer}");
            for (a, b) in scores(&answer).iter().zip(wanted) {
                assert!((a - b).abs() < 1e-3 + 0.05 * b, "{engine}: {a} and {b}");
            }
        }
        let window = rig.plane.take_window().remove(0);
        let times = window.compute.buckets().filter(|(_, _, count)| *count > 0).count();
        assert_eq!((window.requests, times), (4, 1), "{engine}: all took as long as one run");
    }
}

#[tokio::test]
async fn a_killed_worker_comes_back_with_its_model() {
    for &engine in ENGINES {
        let rig = Rig::start(engine).await;
        rig.serve("one").await;
        let mut events = rig.plane.events();
        kill(rig.plane.worker_pids().remove(0).1);
        let died = patiently(events.recv()).await.unwrap();
        assert!(
            matches!(&died, PlaneEvent::WorkerDied { reason, .. } if reason.contains("SIGKILL")),
            "{died:?}"
        );
        let back = patiently(events.recv()).await.unwrap();
        assert_eq!(back, PlaneEvent::WorkerRestarted { model: "magika".to_owned() });
        let body = request(&preprocess(b"#!/bin/sh\n"), &[1, 2048]);
        let (status, answer) = infer(&rig.plane, &body).await;
        assert_eq!(status, 200, "{answer}");
    }
}

#[tokio::test]
async fn half_a_model_is_refused_and_the_whole_one_goes_on() {
    for &engine in ENGINES {
        let rig = Rig::start(engine).await;
        rig.serve("one").await;
        let whole = magika();
        let half = rig.bundle("half", whole[..whole.len() / 2].to_vec());
        let error = rig.plane.load("magika", "half", &half).await.unwrap_err();
        assert!(matches!(error, PlaneError::Load { .. }), "{engine}: {error}");
        let body = request(&preprocess(b"#!/bin/sh\n"), &[1, 2048]);
        assert_eq!(infer(&rig.plane, &body).await.0, 200);
        assert_eq!(rig.plane.worker_pids().len(), 1);
    }
}

#[tokio::test]
async fn a_request_that_does_not_fit_is_refused_before_the_engine_sees_it() {
    let rig = Rig::start(ENGINES[0]).await;
    rig.serve("one").await;
    let (status, answer) = infer(&rig.plane, &request(&[0; 2047], &[1, 2047])).await;
    assert_eq!(status, 400);
    assert_eq!(answer["error"], "input \"bytes\" wants shape [?, 2048], got [1, 2047]");
}

#[tokio::test]
async fn a_model_that_needs_more_memory_than_workers_may_have_is_not_taken_for_a_bad_one() {
    for engine in ENGINES {
        let tight = Rig::within(*engine, Some(8 << 20)).await;
        let bundle = tight.bundle("one", magika());
        let error = tight.plane.load("magika", "one", &bundle).await.unwrap_err();
        assert!(matches!(error, PlaneError::Unloaded { .. }), "{engine}: {error:?}");
        assert!(error.to_string().contains("worker.memory_bytes = 8388608"), "{engine}: {error}");
        let roomy = Rig::within(*engine, Some(512 << 20)).await;
        roomy.plane.load("magika", "one", &roomy.bundle("one", magika())).await.unwrap();
    }
}

#[tokio::test]
async fn an_engine_library_that_is_not_there_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let rig = Rig::start(ENGINES[0]).await;
    let bundle = rig.bundle("one", magika());
    let plane = Plane::start(PlaneConfig {
        engine: EngineOptions {
            ort_library: Some("/nowhere/libonnxruntime.so".into()),
            ..EngineOptions::new(EngineKind::Ort)
        },
        worker_program: env!("CARGO_BIN_EXE_espalier-worker").into(),
        worker_args: vec!["worker".to_owned()],
        worker_memory_bytes: None,
        worker_groups: None,
        http: None,
        unix: None,
        queue_depth: 1,
        batch: BatchRules::OFF,
        run_limit: Duration::from_secs(120),
        max_request_bytes: 1,
        max_buffered_bytes: 1,
        request_deadline: PATIENCE,
        drift_sample_every: Duration::ZERO,
        run_dir: folder.path().to_owned(),
        roots: espalier_agent::sys::Roots::default(),
    })
    .await
    .unwrap();
    let error = plane.load("magika", "one", &bundle).await.unwrap_err().to_string();
    assert!(error.contains("/nowhere/libonnxruntime.so"), "{error}");
}

/// Every call that Triton's own client has for what is served here, and its answers.
#[tokio::test]
async fn the_client_of_triton_works_unchanged() {
    for &engine in ENGINES {
        let rig = Rig::start(engine).await;
        rig.serve("1").await;
        let address = rig.plane.endpoints().http.unwrap().to_string();
        let mut arguments = vec![address, "1".to_owned()];
        if engine == EngineKind::Ort {
            rig.serve_words().await;
            arguments.push("strings".to_owned());
        }
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/python/triton_client.py");
        let mut client = tokio::process::Command::new(environment("ESPALIER_PYTHON"));
        let asked = patiently(client.arg(script).args(arguments).output()).await.unwrap();
        let told = String::from_utf8_lossy(&asked.stdout);
        let errors = String::from_utf8_lossy(&asked.stderr);
        assert_eq!(told.trim(), "as documented", "{engine}: {errors}");
    }
}

#[tokio::test]
async fn prometheus_reads_the_metrics_by_its_own_parser() {
    for &engine in ENGINES {
        let rig = Rig::start(engine).await;
        rig.serve("a \"quoted\" 1").await;
        let body = request(&preprocess(b"fn main() {}"), &[1, 2048]);
        for _ in 0..3 {
            assert_eq!(infer(&rig.plane, &body).await.0, 200);
        }
        let url = format!("http://{}/metrics", rig.plane.endpoints().http.unwrap());
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/python/scrape.py");
        let mut scraper = tokio::process::Command::new(environment("ESPALIER_PYTHON"));
        let scraped = patiently(scraper.arg(script).arg(url).output()).await.unwrap();
        let errors = String::from_utf8_lossy(&scraped.stderr);
        assert!(scraped.status.success(), "{engine}: {errors}");
        let found: Value = serde_json::from_slice(&scraped.stdout).unwrap();
        let series =
            |name: &str| found[format!("{name}{{model=magika,version=a \"quoted\" 1}}")].as_f64();
        assert_eq!(series("espalier_model_up"), Some(1.0), "{found}");
        assert_eq!(series("espalier_requests_total"), Some(3.0), "{found}");
        assert_eq!(series("espalier_request_errors_total"), Some(0.0), "{found}");
        assert_eq!(series("espalier_compute_seconds_count"), Some(3.0), "{found}");
        assert!(series("espalier_compute_seconds_sum").is_some_and(|s| s > 0.0), "{found}");
    }
}

/// Swaps after which the allocator holds what it will hold: it grows by ever less for about as long.
const SETTLING: usize = 80;
const SWAPS: usize = 100;
/// The most KiB that a swap may leave behind, by the median of all slopes between two of them.
const MOST_KEPT_KIB: f64 = 2.0;

/// Proportional set size of this process's anonymous memory, in KiB: pages of the program's file count by how many other
/// tests map them at the time.
fn pss_kib() -> f64 {
    let rollup = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    let line = rollup.lines().find(|line| line.starts_with("Pss_Anon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Theil's estimate: no outlier moves it.
fn slope(values: &[f64]) -> f64 {
    let pairs = (0..values.len()).flat_map(|a| (a + 1..values.len()).map(move |b| (a, b)));
    let mut slopes: Vec<f64> =
        pairs.map(|(a, b)| (values[b] - values[a]) / (b - a) as f64).collect();
    slopes.sort_by(f64::total_cmp);
    slopes[slopes.len() / 2]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_swaps_leave_neither_memory_nor_workers_behind() {
    for &engine in ENGINES {
        let rig = Rig::start(engine).await;
        let bundle = rig.bundle("one", magika());
        let digest = bundle.digest.to_string();
        let body = request(&preprocess(b"fn main() {}"), &[1, 2048]);
        let mut memory = Vec::new();
        for swap in 0..SETTLING + SWAPS {
            let candidate = rig.plane.load("magika", &digest, &bundle).await.unwrap();
            rig.plane.serve(candidate).await.unwrap();
            rig.plane.retire_standby("magika").await;
            assert_eq!(infer(&rig.plane, &body).await.0, 200, "{engine}: swap {swap}");
            let windows = rig.plane.take_window();
            assert!(windows.iter().all(|w| w.errors == 0), "{engine}: {windows:?}");
            assert_eq!(rig.plane.worker_pids().len(), 1, "{engine}: swap {swap}");
            memory.push(pss_kib());
        }
        let kept = slope(&memory[SETTLING..]);
        assert!(kept < MOST_KEPT_KIB, "{engine}: {kept} KiB a swap: {memory:?}");
        rig.plane.drain(PATIENCE).await;
    }
}
