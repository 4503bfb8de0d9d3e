//! Candidates beside the active model.

#![allow(clippy::unwrap_used)]

use super::*;

#[tokio::test]
async fn a_shadow_sees_live_requests_and_its_report_compares_them() {
    let bench = Bench::start().await;
    bench.serve("2").await;
    let candidate = bench.load("-1").await;
    assert_eq!(bench.plane.shadow_report(candidate).requests, 0);
    bench.plane.shadow(candidate).await.unwrap();
    // The candidate's sign is the other, so its larger element is the other one, unless both are 1.
    for (count, first) in [(1, 4.0), (2, 1.0)] {
        assert!(send(&bench.plane, infer(first)).await.status.is_success());
        eventually(|| bench.plane.shadow_report(candidate).requests == count).await;
    }
    let report = bench.plane.shadow_report(candidate);
    assert_eq!((report.agreement, report.failures, report.dropped), (0.5, 0, 0));
    assert_eq!((report.before.count(), report.after.count()), (2, 2));
    let window = bench.plane.take_window();
    assert_eq!(window.len(), 1);
    assert_eq!(window[0].requests, 2, "mirrored requests are not live ones");
    bench.plane.discard(candidate).await;
    assert_eq!(send(&bench.plane, infer(4.0)).await.first(), 8.0);
}

#[tokio::test]
async fn a_candidate_that_fails_what_the_active_model_answers_is_counted() {
    let bench = Bench::start().await;
    bench.serve("2").await;
    let candidate = bench.load("fails").await;
    bench.plane.shadow(candidate).await.unwrap();
    assert_eq!(send(&bench.plane, infer(4.0)).await.first(), 8.0);
    eventually(|| bench.plane.shadow_report(candidate).failures == 1).await;
    assert_eq!(bench.plane.shadow_report(candidate).requests, 0);
}

#[tokio::test]
async fn a_shadow_that_is_behind_drops_requests_and_does_not_slow_the_live_ones() {
    let bench = Bench::start().await;
    bench.serve("2").await;
    let gate = bench.gate();
    let candidate = bench.load("2").await;
    // The active model passes the gate; the candidate stays inside.
    let plane = bench.plane.clone();
    let first = tokio::spawn(async move { send(&plane, infer(fake::GATE)).await });
    let (active_inside, _) = patiently(gate.accept()).await.unwrap();
    bench.plane.shadow(candidate).await.unwrap();
    drop(active_inside);
    assert_eq!(patiently(first).await.unwrap().status, StatusCode::OK);
    let (candidate_inside, _) = patiently(gate.accept()).await.unwrap();
    let extra = 3;
    for _ in 0..shadow::SHADOW_QUEUE + extra {
        assert_eq!(patiently(send(&bench.plane, infer(4.0))).await.first(), 8.0);
    }
    assert_eq!(bench.plane.shadow_report(candidate).dropped, extra as u64);
    assert_eq!(bench.plane.shadow_report(candidate).requests, 0);
    drop(candidate_inside);
    let all = shadow::SHADOW_QUEUE as u64 + 1;
    eventually(|| bench.plane.shadow_report(candidate).requests == all).await;
}

#[tokio::test]
async fn a_candidate_that_dies_is_reported_is_not_restarted_and_cannot_be_served() {
    let bench = Bench::start().await;
    bench.serve("2").await;
    let mut events = bench.plane.events();
    let candidate = bench.load("3").await;
    bench.plane.shadow(candidate).await.unwrap();
    assert_eq!(bench.plane.serving_pids(), bench.plane.worker_pids()[..1]);
    kill(bench.plane.worker_pids()[1].1);
    let event = patiently(events.recv()).await.unwrap();
    assert!(
        matches!(event, PlaneEvent::CandidateDied { candidate: died, .. } if died == candidate),
        "{event:?}"
    );
    assert_eq!(send(&bench.plane, infer(4.0)).await.first(), 8.0);
    eventually(|| bench.plane.shadow_report(candidate).dropped == 1).await;
    assert_eq!(bench.plane.shadow_report(candidate).failures, 0, "its end is told by itself");
    let error = bench.plane.serve(candidate).await.unwrap_err();
    assert!(
        matches!(&error, PlaneError::WorkerGone { reason, .. } if reason.contains("signal 9")),
        "{error}"
    );
    assert_eq!(send(&bench.plane, infer(4.0)).await.first(), 8.0);
}
