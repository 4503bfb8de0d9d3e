//! Requests that are joined.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::plane::batch::BatchRules;

/// A plane that joins up to four rows, and serves a model that may be joined.
async fn joining(rules: BatchRules) -> Bench {
    let bench = Bench::with(|cfg| (cfg.queue_depth, cfg.batch) = (16, rules)).await;
    bench.serve("2").await;
    proven(&bench, "on").await;
    bench
}

fn rows(max_rows: usize) -> BatchRules {
    BatchRules { max_rows, max_delay: Duration::ZERO }
}

async fn proven(bench: &Bench, what: &str) {
    let told = || {
        let status = bench.plane.status();
        status["models"]["double"]["active"]["batching"].as_str().unwrap().to_owned()
    };
    eventually(|| told().starts_with(what)).await;
}

fn request(values: &[f32]) -> Request<Full<Bytes>> {
    let shape = [values.len() / 2, 2];
    let input = json!({ "name": "x", "shape": shape, "datatype": "FP32", "data": values });
    post("/v2/models/double/infer", json!({ "inputs": [input] }).to_string())
}

/// Sends a request that stays in the engine, then one after the other, each of which waits behind those before it, and
/// gives the answers in the order of sending once the first is let go.
async fn answers(bench: &Bench, requests: &[&[f32]]) -> Vec<Answer> {
    let gate = bench.gate();
    let ask = |values: &[f32]| {
        let (plane, request) = (bench.plane.clone(), request(values));
        tokio::spawn(async move { send(&plane, request).await })
    };
    let first = ask(&[fake::GATE, 0.0]);
    let (inside, _) = patiently(gate.accept()).await.unwrap();
    let mut asked = Vec::new();
    for (behind, values) in requests.iter().enumerate() {
        asked.push(ask(values));
        eventually(|| waiting(&bench.plane) == behind as u64 + 1).await;
    }
    drop(inside);
    assert_eq!(patiently(first).await.unwrap().status, StatusCode::OK);
    let mut answers = Vec::new();
    for request in asked {
        answers.push(patiently(request).await.unwrap());
    }
    answers
}

fn data(answer: &Answer) -> Value {
    assert_eq!(answer.status, StatusCode::OK, "{:?}", answer.body);
    answer.json()["outputs"][0]["data"].clone()
}

/// Requests that were answered, and runs that it took.
async fn counts(bench: &Bench) -> (u64, u64) {
    let stats = send(&bench.plane, get("/v2/models/double/stats")).await.json();
    let of = |field: &str| stats["model_stats"][0][field].as_u64().unwrap();
    (of("inference_count"), of("execution_count"))
}

#[tokio::test]
async fn requests_that_wait_run_as_one_and_each_gets_its_own_answer() {
    let bench = joining(rows(4)).await;
    let got = answers(&bench, &[&[1.0, 2.0], &[3.0, 4.0, 5.0, 6.0], &[7.0, 8.0]]).await;
    assert_eq!(data(&got[0]), json!([2.0, 4.0]));
    assert_eq!(data(&got[1]), json!([6.0, 8.0, 10.0, 12.0]));
    assert_eq!(got[1].json()["outputs"][0]["shape"], json!([2, 2]));
    assert_eq!(data(&got[2]), json!([14.0, 16.0]));
    assert_eq!(counts(&bench).await, (4, 2), "the first alone, the others as one");
    let window = bench.plane.take_window().remove(0);
    assert_eq!((window.requests, window.compute.count(), window.queue.count()), (4, 4, 4));
}

#[tokio::test]
async fn no_run_has_more_rows_than_allowed_unless_one_request_has() {
    let bench = joining(rows(4)).await;
    let six: Vec<f32> = (0_u8..12).map(f32::from).collect();
    let got =
        answers(&bench, &[&[1.0, 2.0, 3.0, 4.0], &[5.0, 6.0, 7.0, 8.0], &[9.0, 9.0], &six]).await;
    assert_eq!(data(&got[2]), json!([18.0, 18.0]));
    assert_eq!(data(&got[3]).as_array().unwrap().len(), 12);
    assert_eq!(counts(&bench).await, (5, 4), "gate | 2 + 2 | 1 | 6");
}

#[tokio::test]
async fn a_request_that_fails_fails_alone() {
    let bench = joining(rows(8)).await;
    let got = answers(&bench, &[&[1.0, 2.0], &[fake::FAIL, 0.0], &[3.0, 4.0]]).await;
    assert_eq!(data(&got[0]), json!([2.0, 4.0]));
    assert_eq!(got[1].status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(got[1].error().contains("asked to fail"), "{}", got[1].error());
    assert_eq!(data(&got[2]), json!([6.0, 8.0]));
}

#[tokio::test]
async fn all_requests_of_a_run_that_kills_the_worker_are_told_and_the_next_is_answered() {
    let bench = joining(rows(8)).await;
    let mut events = bench.plane.events();
    let got = answers(&bench, &[&[1.0, 2.0], &[fake::EXIT, 0.0]]).await;
    for answer in &got {
        assert_eq!((answer.status, answer.retry_after), (StatusCode::SERVICE_UNAVAILABLE, true));
        assert!(answer.error().contains("status 3"), "{}", answer.error());
    }
    let back = PlaneEvent::WorkerRestarted { model: "double".to_owned() };
    while patiently(events.recv()).await.unwrap() != back {}
    assert_eq!(send(&bench.plane, infer(4.0)).await.first(), 8.0);
}

#[tokio::test]
async fn a_model_whose_worker_ends_in_joined_runs_again_and_again_has_its_requests_run_alone() {
    let bench = joining(rows(8)).await;
    let mut events = bench.plane.events();
    let back = PlaneEvent::WorkerRestarted { model: "double".to_owned() };
    for _ in 0..3 {
        proven(&bench, "on").await;
        answers(&bench, &[&[1.0, 2.0], &[fake::EXIT, 0.0]]).await;
        while patiently(events.recv()).await.unwrap() != back {}
    }
    proven(&bench, "refused: 3 joined runs ended the worker").await;
    let got = answers(&bench, &[&[1.0, 2.0], &[fake::EXIT, 0.0]]).await;
    assert_eq!(data(&got[0]), json!([2.0, 4.0]), "it does not go down with the other");
    assert_eq!(got[1].status, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn the_first_request_waits_for_others_where_that_is_asked_for() {
    let patient = BatchRules { max_rows: 2, max_delay: PATIENCE };
    let bench = joining(patient).await;
    let plane = bench.plane.clone();
    let first = tokio::spawn(async move { send(&plane, request(&[1.0, 2.0])).await });
    let second = send(&bench.plane, request(&[3.0, 4.0])).await;
    assert_eq!(data(&second), json!([6.0, 8.0]));
    assert_eq!(data(&patiently(first).await.unwrap()), json!([2.0, 4.0]));
    assert_eq!(counts(&bench).await, (2, 1));
}

#[tokio::test]
async fn a_model_that_mixes_its_rows_is_found_out_and_its_requests_run_alone() {
    let bench = Bench::with(|cfg| (cfg.queue_depth, cfg.batch) = (16, rows(4))).await;
    bench.serve(fake::MIXED).await;
    proven(&bench, "refused: golden cases run as one give something else").await;
    let got = answers(&bench, &[&[1.0, 2.0], &[3.0, 4.0]]).await;
    assert_eq!((data(&got[0]), data(&got[1])), (json!([2.0, 4.0]), json!([6.0, 8.0])));
    assert_eq!(counts(&bench).await, (3, 3));
}

#[tokio::test]
async fn while_a_candidate_is_compared_requests_run_alone() {
    let bench = joining(rows(4)).await;
    let candidate = bench.load("2").await;
    bench.plane.shadow(candidate).await.unwrap();
    let got = answers(&bench, &[&[1.0, 2.0], &[3.0, 4.0]]).await;
    assert_eq!((data(&got[0]), data(&got[1])), (json!([2.0, 4.0]), json!([6.0, 8.0])));
    assert_eq!(counts(&bench).await, (3, 3));
}

#[tokio::test]
async fn a_retired_model_answers_what_it_has_joined_and_held_back() {
    let bench = joining(rows(2)).await;
    let gate = bench.gate();
    let ask = |first: f32| {
        let plane = bench.plane.clone();
        tokio::spawn(async move { send(&plane, infer(first)).await })
    };
    let inside_asked = ask(fake::GATE);
    let (inside, _) = patiently(gate.accept()).await.unwrap();
    let mut asked = Vec::new();
    for behind in 1..=3_u64 {
        asked.push(ask(4.0));
        eventually(|| waiting(&bench.plane) == behind).await;
    }
    bench.serve("-1").await;
    let retired = tokio::spawn({
        let plane = bench.plane.clone();
        async move { plane.retire_standby("double").await }
    });
    drop(inside);
    patiently(retired).await.unwrap();
    assert_eq!(patiently(inside_asked).await.unwrap().status, StatusCode::OK);
    for request in asked {
        assert_eq!(patiently(request).await.unwrap().first(), 8.0, "by the model that accepted it");
    }
}
