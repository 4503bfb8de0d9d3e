//! The plane with real worker processes and real connections; the engine is a fake.

#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::body::Body;
use axum::http::{Request, Response, StatusCode};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinSet;

use super::fake::{self, Bench};
use super::*;

mod batching;
mod shadowing;

/// Far beyond what any step here takes: a wait that reaches it is a failure.
const PATIENCE: Duration = Duration::from_secs(60);

struct Answer {
    status: StatusCode,
    retry_after: bool,
    header_length: Option<usize>,
    body: Bytes,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    fn error(&self) -> String {
        self.json()["error"].as_str().unwrap().to_owned()
    }

    fn first(&self) -> f64 {
        assert_eq!(self.status, StatusCode::OK, "{:?}", self.body);
        self.json()["outputs"][0]["data"][0].as_f64().unwrap()
    }
}

async fn collect(response: Response<Incoming>) -> Answer {
    Answer {
        status: response.status(),
        retry_after: response.headers().contains_key("retry-after"),
        header_length: response
            .headers()
            .get(oip::HEADER_LENGTH)
            .map(|v| v.to_str().unwrap().parse().unwrap()),
        body: response.into_body().collect().await.unwrap().to_bytes(),
    }
}

async fn send(plane: &Plane, request: Request<Full<Bytes>>) -> Answer {
    let stream = TcpStream::connect(plane.endpoints().http.unwrap()).await.unwrap();
    send_over(TokioIo::new(stream), request).await
}

async fn send_over(
    io: impl hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
) -> Answer {
    let (mut sender, connection) = http1::handshake(io).await.unwrap();
    tokio::spawn(connection);
    collect(sender.send_request(request).await.unwrap()).await
}

fn get(path: &str) -> Request<Full<Bytes>> {
    Request::get(path).header("host", "board").body(Full::default()).unwrap()
}

fn post(path: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    Request::post(path).header("host", "board").body(Full::new(body.into())).unwrap()
}

fn infer(first: f32) -> Request<Full<Bytes>> {
    infer_with(first, &json!({}))
}

fn infer_with(first: f32, parameters: &Value) -> Request<Full<Bytes>> {
    let body = json!({
        "id": "r1",
        "parameters": parameters,
        "inputs": [{ "name": "x", "shape": [1, 2], "datatype": "FP32", "data": [first, 1.0] }],
    });
    post("/v2/models/double/infer", body.to_string())
}

async fn patiently<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.expect("in time")
}

/// Looks until `done`; only for what nothing announces.
async fn eventually(mut done: impl FnMut() -> bool) {
    patiently(async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

fn alive(pid: u32) -> bool {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::test_kill_process(pid).is_ok()
}

fn waiting(plane: &Plane) -> u64 {
    plane.status()["models"]["double"]["active"]["waiting"].as_u64().unwrap()
}

#[tokio::test]
async fn a_served_model_answers_over_tcp_and_over_the_unix_socket() {
    let bench = Bench::start().await;
    bench.serve("2").await;
    let answer = send(&bench.plane, infer_with(4.0, &json!({ "trace": 7 }))).await;
    let body = answer.json();
    assert_eq!(answer.first(), 8.0);
    assert_eq!(body["id"], "r1");
    assert_eq!((&body["model_name"], &body["model_version"]), (&json!("double"), &json!("2")));
    assert_eq!(body["outputs"][0]["shape"], json!([1, 2]));
    assert_eq!(body["parameters"]["trace"], 7);
    assert!(body["parameters"]["compute_us"].is_u64());
    let stream = UnixStream::connect(bench.plane.endpoints().unix.unwrap()).await.unwrap();
    assert_eq!(send_over(TokioIo::new(stream), infer(5.0)).await.first(), 10.0);
}

#[tokio::test]
async fn binary_tensors_are_taken_and_given() {
    let bench = Bench::start().await;
    bench.serve("2").await;
    let head = json!({
        "inputs": [{ "name": "x", "shape": [1, 2], "datatype": "FP32",
                     "parameters": { "binary_data_size": 8 } }],
        "outputs": [{ "name": "y", "parameters": { "binary_data": true } }],
    })
    .to_string();
    let mut body = head.clone().into_bytes();
    body.extend(1.5_f32.to_le_bytes());
    body.extend(2.5_f32.to_le_bytes());
    let mut request = post("/v2/models/double/versions/2/infer", body);
    request.headers_mut().insert(oip::HEADER_LENGTH, head.len().into());
    let answer = send(&bench.plane, request).await;
    assert_eq!(answer.status, StatusCode::OK);
    let (head, tail) = answer.body.split_at(answer.header_length.unwrap());
    let head: Value = serde_json::from_slice(head).unwrap();
    assert_eq!(head["outputs"][0]["parameters"]["binary_data_size"], 8);
    assert_eq!(head["outputs"][0].get("data"), None);
    assert_eq!(tail, [3.0_f32.to_le_bytes(), 5.0_f32.to_le_bytes()].concat());
}

#[tokio::test]
async fn metadata_and_health_say_what_is_served() {
    let bench = Bench::start().await;
    let plane = &bench.plane;
    assert_eq!(send(plane, get("/v2/health/live")).await.status, StatusCode::OK);
    assert_eq!(send(plane, get("/v2/health/ready")).await.status, StatusCode::SERVICE_UNAVAILABLE);
    bench.serve("2").await;
    assert_eq!(send(plane, get("/v2/health/ready")).await.status, StatusCode::OK);
    assert_eq!(send(plane, get("/v2/models/double/ready")).await.status, StatusCode::OK);
    assert_eq!(
        send(plane, get("/v2/models/double")).await.json(),
        json!({
            "name": "double",
            "versions": ["2"],
            "platform": "onnx_fake",
            "inputs": [{ "name": "x", "datatype": "FP32", "shape": [-1, 2] }],
            "outputs": [{ "name": "y", "datatype": "FP32", "shape": [-1, 2] }],
        })
    );
    let extensions =
        json!(["binary_tensor_data", "model_configuration", "model_repository", "statistics"]);
    assert_eq!(send(plane, get("/v2")).await.json()["extensions"], extensions);
}

/// A few kilobytes that unpack to ten megabytes.
fn bomb() -> Vec<u8> {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    packed.write_all(&vec![b' '; 10 << 20]).unwrap();
    packed.finish().unwrap()
}

#[tokio::test]
async fn every_bad_request_has_its_status_and_its_reason() {
    let bench = Bench::start().await;
    let plane = &bench.plane;
    let early = send(plane, infer(1.0)).await;
    assert_eq!((early.status, early.retry_after), (StatusCode::SERVICE_UNAVAILABLE, true));
    assert!(early.error().contains("no model is being served yet"));
    bench.serve("2").await;
    let expect = async |request, status, reason: &str| {
        let answer = send(plane, request).await;
        assert_eq!(answer.status, status, "{reason}: {:?}", answer.body);
        assert!(answer.error().contains(reason), "{}", answer.error());
    };
    let model = "/v2/models/double/infer";
    let bad = StatusCode::BAD_REQUEST;
    let x = |rest: &str| format!(r#"{{"inputs":[{{"name":"x",{rest}}}]}}"#);
    expect(post(model, "{"), bad, "not a valid JSON request").await;
    expect(post(model, r#"{"inputs":[]}"#), bad, "input \"x\" is missing").await;
    let wrong = x(r#""shape":[1,3],"datatype":"FP32","data":[1,2,3]"#);
    expect(post(model, wrong), bad, "\"x\" wants shape [?, 2], got [1, 3]").await;
    let wrong = x(r#""shape":[1,2],"datatype":"INT64","data":[1,2]"#);
    expect(post(model, wrong), bad, "\"x\" wants FP32, got INT64").await;
    expect(
        post("/v2/models/triple/infer", "{}"),
        StatusCode::NOT_FOUND,
        "no model `triple`; `double` is served",
    )
    .await;
    expect(get("/v2/models/double/versions/9"), StatusCode::NOT_FOUND, "no version `9`").await;
    expect(get("/v3"), StatusCode::NOT_FOUND, "no such endpoint").await;
    expect(get(model), StatusCode::METHOD_NOT_ALLOWED, "does not take this method").await;
    let huge = vec![b' '; (64 << 10) + 1];
    expect(post(model, huge), StatusCode::PAYLOAD_TOO_LARGE, "max_request_bytes (65536)").await;
    let mut packed = post(model, "x");
    packed.headers_mut().insert("content-encoding", "br".parse().unwrap());
    expect(packed, StatusCode::UNSUPPORTED_MEDIA_TYPE, "gzip and deflate are").await;
    let mut packed = post(model, "x");
    packed.headers_mut().insert("content-encoding", "gzip".parse().unwrap());
    expect(packed, bad, "not valid gzip").await;
    let mut packed = post(model, bomb());
    packed.headers_mut().insert("content-encoding", "gzip".parse().unwrap());
    expect(packed, StatusCode::PAYLOAD_TOO_LARGE, "max_request_bytes (65536)").await;
    let load = "/v2/repository/models/double/load";
    expect(post(load, "{}"), StatusCode::FORBIDDEN, "the agent installs bundles").await;
    expect(post("/v2/repository/index", "["), bad, "not a valid JSON request").await;
    let mut skewed = post(model, "{}");
    skewed.headers_mut().insert(oip::HEADER_LENGTH, "two".parse().unwrap());
    expect(skewed, bad, "is not a length").await;
    expect(infer(fake::FAIL), StatusCode::INTERNAL_SERVER_ERROR, "asked to fail").await;
    let window = plane.take_window().remove(0);
    assert_eq!((window.requests, window.errors), (1, 1), "client errors are not the model's");
}

#[tokio::test]
async fn a_body_without_a_length_is_cut_off_at_the_limit() {
    let bench = Bench::start().await;
    bench.serve("2").await;
    let stream = TcpStream::connect(bench.plane.endpoints().http.unwrap()).await.unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let chunk = Bytes::from(vec![b' '; 1 << 10]);
    let frames = futures_of(std::iter::repeat_n(chunk, 65));
    let request =
        Request::post("/v2/models/double/infer").header("host", "board").body(frames).unwrap();
    let answer = collect(sender.send_request(request).await.unwrap()).await;
    assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test]
async fn bodies_that_never_arrive_cannot_take_more_memory_than_is_allowed() {
    let bench = Bench::start().await;
    bench.serve("2").await;
    let address = bench.plane.endpoints().http.unwrap();
    let head = "POST /v2/models/double/infer HTTP/1.1\r\nhost: board\r\n\
                content-length: 65536\r\nexpect: 100-continue\r\n\r\n";
    let mut held = Vec::new();
    for _ in 0..4 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        // The server asks for the body once it has made room for it.
        let mut go_on = [0; 12];
        patiently(stream.read_exact(&mut go_on)).await.unwrap();
        assert_eq!(&go_on, b"HTTP/1.1 100");
        held.push(stream);
    }
    let answer = send(&bench.plane, infer(4.0)).await;
    assert_eq!((answer.status, answer.retry_after), (StatusCode::TOO_MANY_REQUESTS, true));
    assert!(answer.error().contains("256 KiB"), "{}", answer.error());
    drop(held);
    patiently(async { while !send(&bench.plane, infer(4.0)).await.status.is_success() {} }).await;
}

#[tokio::test]
async fn the_tensors_of_a_request_are_counted_as_well_as_its_body() {
    let bench = Bench::start().await;
    bench.serve("2").await;
    // Every two bytes of text become eight: 60 KiB become 240, which fit, but not beside the body.
    let body = |kib: usize| {
        let count = kib << 9;
        let data = vec!["1"; count].join(",");
        format!(
            r#"{{"inputs":[{{"name":"x","shape":[1,{count}],"datatype":"FP64","data":[{data}]}}]}}"#
        )
    };
    let large = send(&bench.plane, post("/v2/models/double/infer", body(60))).await;
    assert_eq!(large.status, StatusCode::PAYLOAD_TOO_LARGE, "{:?}", large.body);
    assert!(large.error().contains("256 KiB of max_buffered_bytes"), "{}", large.error());
    let small = send(&bench.plane, post("/v2/models/double/infer", body(30))).await;
    assert_eq!(small.status, StatusCode::BAD_REQUEST, "decoded, and found to be of another type");
    assert!(small.error().contains("wants FP32, got FP64"), "{}", small.error());
}

/// A body in chunks, whose length is not announced.
fn futures_of(chunks: impl Iterator<Item = Bytes> + Send + 'static) -> Body {
    struct Chunks<I>(I);
    impl<I: Iterator<Item = Bytes> + Unpin> hyper::body::Body for Chunks<I> {
        type Data = Bytes;
        type Error = std::convert::Infallible;
        fn poll_frame(
            mut self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<hyper::body::Frame<Bytes>, Self::Error>>> {
            std::task::Poll::Ready(self.0.next().map(|chunk| Ok(hyper::body::Frame::data(chunk))))
        }
    }
    Body::new(Chunks(Box::new(chunks) as Box<dyn Iterator<Item = Bytes> + Send>))
}

#[tokio::test]
async fn a_killed_worker_costs_its_request_a_clear_error_and_is_started_again() {
    let bench = Bench::start().await;
    bench.serve("2").await;
    let mut events = bench.plane.events();
    let gate = bench.gate();
    let plane = bench.plane.clone();
    let request = tokio::spawn(async move { send(&plane, infer(fake::GATE)).await });
    let _inside = patiently(gate.accept()).await.unwrap();
    let (model, pid) = bench.plane.worker_pids().remove(0);
    assert_eq!(model, "double");
    kill(pid);
    let answer = patiently(request).await.unwrap();
    assert_eq!((answer.status, answer.retry_after), (StatusCode::SERVICE_UNAVAILABLE, true));
    assert!(answer.error().contains("SIGKILL"), "{}", answer.error());
    let died = patiently(events.recv()).await.unwrap();
    assert!(
        matches!(&died, PlaneEvent::WorkerDied { model, reason } if model == "double" && reason.contains("signal 9")),
        "{died:?}"
    );
    let back = patiently(events.recv()).await.unwrap();
    assert_eq!(back, PlaneEvent::WorkerRestarted { model: "double".to_owned() });
    assert_eq!(send(&bench.plane, infer(4.0)).await.first(), 8.0);
    let (_, new_pid) = bench.plane.worker_pids().remove(0);
    assert_ne!(pid, new_pid);
    let window = bench.plane.take_window().remove(0);
    assert_eq!((window.requests, window.errors, window.cold), (2, 1, true));
}

#[tokio::test]
async fn a_model_that_changes_on_disk_while_it_is_served_is_not_loaded_by_the_next_worker() {
    let bench = Bench::start().await;
    bench.serve("2").await;
    let mut events = bench.plane.events();
    let model = bench.bundle("2").model_path();
    std::fs::write(&model, "3").unwrap();
    kill(bench.plane.worker_pids().remove(0).1);
    let died = patiently(events.recv()).await.unwrap();
    assert!(matches!(died, PlaneEvent::WorkerDied { .. }), "{died:?}");
    let refused = patiently(events.recv()).await.unwrap();
    assert!(
        matches!(&refused, PlaneEvent::RestartFailed { reason, .. } if reason.contains("not what it was")),
        "{refused:?}"
    );
    std::fs::write(&model, "2").unwrap();
    while !matches!(patiently(events.recv()).await.unwrap(), PlaneEvent::WorkerRestarted { .. }) {}
    assert_eq!(send(&bench.plane, infer(4.0)).await.first(), 8.0);
}

#[tokio::test]
async fn a_model_whose_driver_ends_by_itself_is_told_of() {
    let bench = Bench::start().await;
    bench.serve("2").await;
    assert_eq!(bench.plane.wedged(), Vec::<String>::new());
    bench.plane.registry.active("double").unwrap().abort();
    eventually(|| bench.plane.wedged() == ["double"]).await;
}

#[tokio::test]
async fn the_kernel_would_rather_kill_a_worker_and_the_terminal_would_not() {
    let bench = Bench::start().await;
    bench.serve("2").await;
    let pid = bench.plane.worker_pids().remove(0).1;
    let score = std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
    assert_eq!(score.trim(), "500");
    let raw = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap());
    let group = rustix::process::getpgid(raw).unwrap();
    assert_ne!(group, rustix::process::getpgrp());
}

#[tokio::test]
async fn however_a_worker_ends_the_reason_is_told() {
    let bench = Bench::start().await;
    bench.serve("2").await;
    let mut events = bench.plane.events();
    for (input, reason) in [
        (fake::ABORT, "signal 6"),
        (fake::EXIT, "exited with status 3"),
        (fake::PANIC, "the engine panicked: asked to panic"),
    ] {
        let answer = send(&bench.plane, infer(input)).await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(answer.error().contains(reason), "{}", answer.error());
        let died = patiently(events.recv()).await.unwrap();
        assert!(matches!(died, PlaneEvent::WorkerDied { .. }));
        patiently(events.recv()).await.unwrap();
    }
    assert_eq!(send(&bench.plane, infer(4.0)).await.first(), 8.0);
}

#[tokio::test]
async fn a_model_named_stats_has_its_metadata_and_its_statistics() {
    let bench = Bench::start().await;
    bench.serve("2").await;
    let all = send(&bench.plane, get("/v2/models/stats")).await.json();
    assert_eq!(all["model_stats"][0]["name"], "double");
    let candidate = bench.plane.load("stats", "3", &bench.bundle("3")).await.unwrap();
    bench.plane.serve(candidate).await.unwrap();
    for path in ["/v2/models/stats", "/v2/models/stats/versions/3"] {
        let answer = send(&bench.plane, get(path)).await.json();
        assert_eq!((&answer["name"], &answer["inputs"][0]["name"]), (&json!("stats"), &json!("x")));
    }
    let own = send(&bench.plane, get("/v2/models/stats/stats")).await.json();
    assert_eq!(own["model_stats"][0]["name"], "stats");
}

#[tokio::test]
async fn a_worker_that_asks_for_more_memory_than_it_may_ends_alone_and_comes_back() {
    let bench =
        Bench::with(|config| config.worker_memory_bytes = Some(fake::HOGGED as u64 / 2)).await;
    bench.serve("2").await;
    let mut events = bench.plane.events();
    let answer = send(&bench.plane, infer(fake::HOG)).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(answer.error().contains("worker.memory_bytes = 536870912"), "{}", answer.error());
    assert!(matches!(patiently(events.recv()).await.unwrap(), PlaneEvent::WorkerDied { .. }));
    patiently(events.recv()).await.unwrap();
    assert_eq!(send(&bench.plane, infer(4.0)).await.first(), 8.0);
}

#[tokio::test]
async fn a_thread_that_gets_no_stack_is_a_lack_of_memory_and_a_bad_model_is_one_under_any_name() {
    let limit = fake::HOGGED as u64 / 2;
    let tight = Bench::with(|config| config.worker_memory_bytes = Some(limit)).await;
    let load = async |bench: &Bench, model: &str| {
        bench.plane.load("double", model, &bench.bundle(model)).await
    };
    let error = load(&tight, "thread").await.unwrap_err();
    assert!(matches!(error, PlaneError::Unloaded { .. }), "{error:?}");
    let told = error.to_string();
    assert!(told.contains("os error 11") && !told.contains("alloc"), "{told}");
    assert!(told.contains("worker.memory_bytes = 536870912"), "{told}");
    let error = load(&tight, "bad_alloc").await.unwrap_err();
    assert!(matches!(error, PlaneError::Load { .. }), "{error:?}");
    assert!(tight.plane.worker_pids().is_empty());
    load(&Bench::start().await, "thread").await.unwrap();
}

#[tokio::test]
async fn an_idle_worker_that_dies_is_noticed_and_requests_meanwhile_are_told() {
    let bench = Bench::start().await;
    bench.serve("2").await;
    let mut events = bench.plane.events();
    // The model is gone from the disk, so that the worker cannot come back.
    let model = bench.bundle("2").model_path();
    let kept = std::fs::read(&model).unwrap();
    std::fs::remove_file(&model).unwrap();
    kill(bench.plane.worker_pids().remove(0).1);
    let died = patiently(events.recv()).await.unwrap();
    assert!(matches!(died, PlaneEvent::WorkerDied { .. }));
    let answer = send(&bench.plane, infer(4.0)).await;
    assert_eq!((answer.status, answer.retry_after), (StatusCode::SERVICE_UNAVAILABLE, true));
    assert!(answer.error().contains("is not running"), "{}", answer.error());
    assert_eq!(
        send(&bench.plane, get("/v2/health/ready")).await.status,
        StatusCode::SERVICE_UNAVAILABLE
    );
    let failed = patiently(events.recv()).await.unwrap();
    assert!(matches!(failed, PlaneEvent::RestartFailed { .. }), "{failed:?}");
    assert!(!bench.plane.is_up("double"));
    std::fs::write(&model, kept).unwrap();
    let back = patiently(async {
        loop {
            match events.recv().await.unwrap() {
                PlaneEvent::RestartFailed { .. } => {}
                other => return other,
            }
        }
    })
    .await;
    assert_eq!(back, PlaneEvent::WorkerRestarted { model: "double".to_owned() });
    assert!(bench.plane.is_up("double"));
    assert_eq!(send(&bench.plane, infer(4.0)).await.first(), 8.0);
}

#[tokio::test]
async fn a_full_queue_turns_requests_away_and_loses_none_that_it_took() {
    let bench = Bench::start().await;
    bench.serve("2").await;
    let gate = bench.gate();
    let mut taken = JoinSet::new();
    let request = |first: f32| {
        let plane = bench.plane.clone();
        async move { send(&plane, infer(first)).await }
    };
    taken.spawn(request(fake::GATE));
    let (inside, _) = patiently(gate.accept()).await.unwrap();
    for _ in 0..2 {
        taken.spawn(request(4.0));
    }
    eventually(|| waiting(&bench.plane) == 2).await;
    let answer = send(&bench.plane, infer(4.0)).await;
    assert_eq!((answer.status, answer.retry_after), (StatusCode::TOO_MANY_REQUESTS, true));
    assert!(answer.error().contains("2 requests wait"), "{}", answer.error());
    drop(inside);
    while let Some(answer) = patiently(taken.join_next()).await {
        assert_eq!(answer.unwrap().status, StatusCode::OK);
    }
    let window = bench.plane.take_window().remove(0);
    assert_eq!((window.requests, window.errors, window.rejected), (3, 0, 1));
    assert_eq!((window.compute.count(), window.queue.count()), (3, 3));
    assert_eq!(bench.plane.take_window()[0].requests, 0, "a window is taken once");
}

#[tokio::test]
async fn requests_that_wait_for_a_quick_model_together_are_answered_each_by_its_own() {
    let bench = Bench::with(|cfg| cfg.queue_depth = 64).await;
    bench.serve("2").await;
    send(&bench.plane, infer(1.0)).await.first();
    let mut asking = JoinSet::new();
    for number in 1..=40_u8 {
        let plane = bench.plane.clone();
        // One in ten fails, and none of its neighbours does.
        let first = if number % 10 == 0 { fake::FAIL } else { f32::from(number) };
        asking.spawn(async move { (number, send(&plane, infer(first)).await) });
    }
    while let Some(asked) = patiently(asking.join_next()).await {
        let (number, answer) = asked.unwrap();
        if number % 10 == 0 {
            assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR, "{:?}", answer.body);
        } else {
            assert!((answer.first() - 2.0 * f64::from(number)).abs() < 1e-6, "{number}");
        }
    }
    let window = &bench.plane.take_window()[0];
    assert_eq!((window.requests, window.errors), (41, 4));
    assert_eq!((window.compute.count(), window.queue.count()), (37, 37));
}

#[tokio::test]
async fn a_request_that_takes_too_long_is_told_so_and_the_model_goes_on() {
    let bench = Bench::start().await;
    bench.serve("2").await;
    let gate = bench.gate();
    let late = send(&bench.plane, infer_with(fake::GATE, &json!({ "timeout": 20_000 }))).await;
    assert_eq!(late.status, StatusCode::GATEWAY_TIMEOUT);
    assert!(late.error().contains("deadline of 20 ms"), "{}", late.error());
    let (inside, _) = patiently(gate.accept()).await.unwrap();
    let queued = send(&bench.plane, infer_with(4.0, &json!({ "timeout": 20_000 }))).await;
    assert_eq!(queued.status, StatusCode::GATEWAY_TIMEOUT);
    drop(inside);
    assert_eq!(send(&bench.plane, infer(4.0)).await.first(), 8.0);
    let window = bench.plane.take_window().remove(0);
    assert_eq!((window.requests, window.errors, window.late), (3, 2, 2));
    assert_eq!(window.compute.count(), 2, "the queued one never ran");
}

#[tokio::test]
async fn a_request_that_passes_the_server_s_own_deadline_is_an_error_and_not_late() {
    let bench = Bench::with(|cfg| cfg.request_deadline = Duration::from_millis(20)).await;
    bench.serve("2").await;
    let gate = bench.gate();
    let stuck = send(&bench.plane, infer(fake::GATE)).await;
    assert_eq!(stuck.status, StatusCode::GATEWAY_TIMEOUT);
    drop(patiently(gate.accept()).await.unwrap());
    let window = bench.plane.take_window().remove(0);
    assert_eq!((window.errors, window.late), (1, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_request_fails_while_models_are_switched_rolled_back_and_retired() {
    let bench = Bench::with(|cfg| cfg.queue_depth = 64).await;
    bench.serve("2").await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut clients = JoinSet::new();
    for _ in 0..8 {
        let (plane, stop) = (bench.plane.clone(), stop.clone());
        clients.spawn(async move {
            let mut answers = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                answers.push(send(&plane, infer(1.0)).await.first());
            }
            answers
        });
    }
    for factor in ["3", "5"] {
        bench.serve(factor).await;
        bench.plane.rollback("double").await.unwrap();
        bench.serve(factor).await;
        bench.plane.retire_standby("double").await;
    }
    stop.store(true, Ordering::Relaxed);
    let mut all = Vec::new();
    while let Some(answers) = patiently(clients.join_next()).await {
        all.extend(answers.unwrap());
    }
    assert!(all.len() >= 8);
    assert!(all.iter().all(|a| [2.0, 3.0, 5.0].contains(a)));
    assert_eq!(send(&bench.plane, infer(1.0)).await.first(), 5.0);
    assert_eq!(bench.plane.worker_pids().len(), 1);
    let windows = bench.plane.take_window();
    let errors: u64 = windows.iter().map(|w| w.errors + w.rejected).sum();
    let requests: u64 = windows.iter().map(|w| w.requests).sum();
    assert_eq!((errors, requests), (0, all.len() as u64 + 1));
}

#[tokio::test]
async fn requests_in_the_queue_of_a_model_that_is_retired_are_answered_by_it() {
    let bench = Bench::start().await;
    bench.serve("2").await;
    let gate = bench.gate();
    let mut taken = JoinSet::new();
    for first in [fake::GATE, 4.0] {
        let plane = bench.plane.clone();
        taken.spawn(async move { send(&plane, infer(first)).await });
        if first == 4.0 {
            eventually(|| waiting(&bench.plane) == 1).await;
        } else {
            eventually(|| waiting(&bench.plane) == 0).await;
        }
    }
    let (inside, _) = patiently(gate.accept()).await.unwrap();
    eventually(|| waiting(&bench.plane) == 1).await;
    bench.serve("3").await;
    assert_eq!(send(&bench.plane, infer(4.0)).await.first(), 12.0, "the new one answers at once");
    let plane = bench.plane.clone();
    let retiring = tokio::spawn(async move { plane.retire_standby("double").await });
    drop(inside);
    let mut answers = Vec::new();
    while let Some(answer) = patiently(taken.join_next()).await {
        answers.push(answer.unwrap().first());
    }
    answers.sort_by(f64::total_cmp);
    assert_eq!(answers, [8.0, f64::from(fake::GATE) * 2.0]);
    patiently(retiring).await.unwrap();
}

#[tokio::test]
async fn rolling_back_needs_a_predecessor_and_ends_the_model_it_replaces() {
    let bench = Bench::start().await;
    let error = bench.plane.rollback("double").await.unwrap_err();
    assert!(matches!(error, PlaneError::NotServing(_)), "{error}");
    bench.serve("2").await;
    let error = bench.plane.rollback("double").await.unwrap_err();
    assert!(matches!(error, PlaneError::NoStandby(_)), "{error}");
    let old = bench.plane.worker_pids().remove(0).1;
    bench.serve("3").await;
    let new = bench.plane.worker_pids().remove(0).1;
    assert!(alive(old), "the old model stands by");
    bench.plane.rollback("double").await.unwrap();
    assert_eq!(bench.plane.worker_pids(), [("double".to_owned(), old)]);
    assert_eq!(send(&bench.plane, infer(4.0)).await.first(), 8.0);
    eventually(|| !alive(new)).await;
}

#[tokio::test]
async fn golden_outputs_decide_the_self_test() {
    let bench = Bench::start().await;
    let candidate = bench.load("2").await;
    let plane = &bench.plane;
    let golden = bench.bundle("2").selftest().unwrap();
    plane.self_test(candidate, &golden).await.unwrap();
    let error = plane.self_test(candidate, &fake::golden(3.0)).await.unwrap_err().to_string();
    assert_eq!(
        error,
        "self-test: case 0: output `y`, element 0: 6 where 9 is wanted (rtol 0.0010000000474974513, atol 0.0000009999999974752427)"
    );
    let mut odd = fake::golden(2.0);
    odd.cases[0].outputs[0].name = "z".to_owned();
    let error = plane.self_test(candidate, &odd).await.unwrap_err().to_string();
    assert!(error.contains("output `z` is missing"), "{error}");
    let mut cut = fake::golden(2.0);
    cut.cases[0].inputs[0].data.pop();
    let error = plane.self_test(candidate, &cut).await.unwrap_err().to_string();
    assert!(error.contains("wants 8 bytes, got 7"), "{error}");
    let mut deadly = fake::golden(2.0);
    deadly.cases[0].inputs[0].data[..4].copy_from_slice(&fake::ABORT.to_le_bytes());
    for _ in 0..2 {
        let error = plane.self_test(candidate, &deadly).await.unwrap_err();
        assert!(matches!(error, PlaneError::Untested(_)), "{error}");
    }
    plane.discard(candidate).await;
    let error = plane.self_test(candidate, &golden).await.unwrap_err();
    assert!(matches!(error, PlaneError::UnknownCandidate(id) if id == candidate));
    assert!(plane.worker_pids().is_empty());
}

#[tokio::test]
async fn a_model_that_cannot_be_loaded_leaves_the_active_one_alone() {
    let bench = Bench::start().await;
    bench.serve("2").await;
    let bundle = bench.bundle("rubbish");
    let refused = bench.plane.load("double", "rubbish", &bundle).await.unwrap_err();
    assert!(matches!(refused, PlaneError::Load { .. }), "{refused}");
    assert!(refused.to_string().contains("`rubbish` is no model"), "{refused}");
    for (model, reason) in [("abort", "signal 6"), ("panic", "panicked")] {
        let bundle = bench.bundle(model);
        let error = bench.plane.load("double", model, &bundle).await.unwrap_err();
        assert!(matches!(error, PlaneError::Unloaded { .. }), "{error}");
        assert!(error.to_string().contains(reason), "{error}");
    }
    let mut lying = bench.bundle("3");
    lying.manifest.inputs[0].dtype = "INT64".to_owned();
    let error = bench.plane.load("double", "3", &lying).await.unwrap_err();
    assert!(matches!(error, PlaneError::Interface { .. }));
    assert!(error.to_string().contains("the manifest says INT64"), "{error}");
    assert_eq!(send(&bench.plane, infer(4.0)).await.first(), 8.0);
    assert_eq!(bench.plane.worker_pids().len(), 1);
}

#[tokio::test]
async fn a_worker_program_that_is_not_there_is_named() {
    let bench = Bench::with(|cfg| cfg.worker_program = "/nowhere/worker".into()).await;
    let bundle = bench.bundle("2");
    let error = bench.plane.load("double", "2", &bundle).await.unwrap_err().to_string();
    assert!(error.contains("cannot start the worker /nowhere/worker"), "{error}");
    let bench = Bench::with(|cfg| {
        cfg.worker_program = "/bin/true".into();
        cfg.worker_args.clear();
    })
    .await;
    let error = bench.plane.load("double", "2", &bundle).await.unwrap_err().to_string();
    assert!(error.contains("exited with status 0 while loading"), "{error}");
}

#[tokio::test]
async fn draining_answers_what_was_accepted_and_ends_the_workers() {
    let bench = Bench::start().await;
    bench.serve("2").await;
    let gate = bench.gate();
    let plane = bench.plane.clone();
    let request = tokio::spawn(async move { send(&plane, infer(fake::GATE)).await });
    let (inside, _) = patiently(gate.accept()).await.unwrap();
    let pid = bench.plane.worker_pids().remove(0).1;
    let endpoints = bench.plane.endpoints();
    let plane = bench.plane.clone();
    let draining = tokio::spawn(async move { plane.drain(PATIENCE).await });
    eventually(|| bench.plane.status()["draining"] == true).await;
    drop(inside);
    assert_eq!(patiently(request).await.unwrap().status, StatusCode::OK);
    patiently(draining).await.unwrap();
    assert!(!alive(pid));
    assert!(TcpStream::connect(endpoints.http.unwrap()).await.is_err());
    assert!(!endpoints.unix.unwrap().exists());
    let bundle = bench.bundle("3");
    let error = bench.plane.load("double", "3", &bundle).await.unwrap_err();
    assert!(matches!(error, PlaneError::Draining));
}

#[tokio::test]
async fn a_drain_that_takes_too_long_kills_the_workers() {
    let bench = Bench::start().await;
    bench.serve("2").await;
    let gate = bench.gate();
    let plane = bench.plane.clone();
    let request = tokio::spawn(async move {
        let stream = TcpStream::connect(plane.endpoints().http.unwrap()).await.unwrap();
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        sender.send_request(infer(fake::GATE)).await.is_err()
    });
    let (mut inside, _) = patiently(gate.accept()).await.unwrap();
    patiently(bench.plane.drain(Duration::from_millis(10))).await;
    assert!(patiently(request).await.unwrap(), "the connection was cut");
    let end = patiently(inside.read(&mut [0; 1])).await.unwrap();
    assert_eq!(end, 0, "the worker is gone");
}

#[tokio::test]
async fn only_a_dead_socket_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run/oip.sock");
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let plane = Plane::start(fake::config(folder.path())).await.unwrap();
    let error = Plane::start(fake::config(folder.path())).await.unwrap_err().to_string();
    assert!(error.contains("another process listens"), "{error}");
    plane.drain(PATIENCE).await;
    std::fs::write(&path, "precious").unwrap();
    let error = Plane::start(fake::config(folder.path())).await.unwrap_err().to_string();
    assert!(error.contains("not a socket"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
}

/// The value of a series on the metrics page.
fn series(text: &str, name: &str) -> Option<String> {
    text.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(' ')?.to_owned()))
}

#[tokio::test]
async fn a_scrape_counts_from_the_beginning_whatever_windows_were_taken() {
    let bench = Bench::start().await;
    let page = || async {
        let answer = send(&bench.plane, get("/metrics")).await;
        assert_eq!(answer.status, StatusCode::OK);
        String::from_utf8(answer.body.to_vec()).unwrap()
    };
    let empty = page().await;
    assert!(empty.ends_with("# EOF\n") && series(&empty, "espalier_requests_total").is_none());
    bench.serve("2").await;
    let labels = "{model=\"double\",version=\"2\"}";
    for asked in 1..=3 {
        assert_eq!(send(&bench.plane, infer(1.0)).await.status, StatusCode::OK);
        let text = page().await;
        let found = series(&text, &format!("espalier_requests_total{labels}"));
        assert_eq!(found, Some(asked.to_string()), "{text}");
        let count = series(&text, &format!("espalier_compute_seconds_count{labels}"));
        assert_eq!(count, found);
        assert_eq!(bench.plane.take_window().len(), 1);
    }
    let text = page().await;
    assert_eq!(
        series(&text, &format!("espalier_model_up{labels}")).as_deref(),
        Some("1"),
        "{text}"
    );
    for memory in [format!("espalier_worker_pss_bytes{labels}"), "espalier_agent_pss_bytes".into()]
    {
        let bytes = series(&text, &memory).and_then(|bytes| bytes.parse::<u64>().ok());
        assert!(bytes.is_some_and(|bytes| bytes > 4096), "{memory}: {text}");
    }
}
