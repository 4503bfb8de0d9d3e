//! The service with a real broker, real HTTP and a stand-in for the pipeline.
#![allow(clippy::unwrap_used, missing_docs)]

mod serve {
    pub(crate) mod support;
}

use std::fs;
use std::sync::Arc;

use bundle::{Bundle, Limits, MODEL_FILE};
use serde_json::json;
use serve::support::{Act, Broker, Fake, Host, Http, Listener, request};
use wire::{Budgets, InstallOutcome, Offer, RecompressRequest};

#[tokio::test(flavor = "multi_thread")]
async fn a_device_gets_the_original_then_a_smaller_one_and_downloads_both() {
    let broker = Broker::start();
    let host = Host::start(&broker, Fake::default()).await;
    let mut device = Listener::start(&broker, "pi-1").await;

    let answer = host.deploy("pi-1").await;
    let first = device.offer().await;
    assert_eq!(
        (answer["digest"].as_str(), answer["sequence"].as_u64()),
        (Some(first.digest.as_str()), Some(1))
    );
    assert_eq!((first.sequence, first.request_id.as_deref()), (1, None));
    host.download(&first).await;

    device.ask(&request("pi-1", "r-1", &first)).await;
    let second = device.offer().await;
    assert_eq!((second.sequence, second.request_id.as_deref()), (2, Some("r-1")));
    let bundle = host.download(&second).await;
    assert_eq!(bundle.digest.to_string(), second.digest);
    assert_eq!((bundle.manifest.sequence, bundle.size_bytes()), (2, second.size_bytes));

    let job = &host.fake.jobs()[0];
    assert_eq!((job.goal.latency_p95_us, job.goal.agreement_min), (Some(20_000), 0.9));
    let current = fs::read(job.current_model.as_ref().unwrap()).unwrap();
    assert_eq!(
        current,
        Fake::model(1),
        "the model that the device runs is not the one compared with"
    );

    let mut late = Listener::start(&broker, "pi-1").await;
    assert_eq!(late.offer().await, second, "the offer is not retained");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_devices_that_ask_for_the_same_share_one_job_and_get_two_offers() {
    let broker = Broker::start();
    let host = Host::start(&broker, Fake::with([Act::Wait])).await;
    let (mut one, mut two) =
        (Listener::start(&broker, "a").await, Listener::start(&broker, "b").await);
    host.deploy("a").await;
    host.deploy("b").await;
    let (current, other) = (one.offer().await, two.offer().await);
    assert_eq!(current.digest, other.digest, "the original was bundled twice");

    one.ask(&request("a", "r", &current)).await;
    host.fake.started().await;
    one.ask(&request("a", "r", &current)).await;
    let mut nearly = request("b", "r", &current);
    nearly.budgets.latency_p95_us = Some(20_400);
    two.ask(&nearly).await;
    host.until_health("requests_accepted", 2).await;
    host.until_health("requests_duplicate", 1).await;
    host.fake.go_on();

    let (one, two) = (one.offer().await, two.offer().await);
    assert_eq!((&one.digest, one.sequence), (&two.digest, two.sequence));
    assert_eq!(host.fake.jobs().len(), 1);

    let mut third = Listener::start(&broker, "c").await;
    third.ask(&request("c", "r", &current)).await;
    assert_eq!(third.offer().await.digest, one.digest);
    assert_eq!(host.fake.jobs().len(), 1, "a bundle that was there was made again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_interrupted_by_a_restart_runs_again_and_the_offer_comes() {
    let broker = Broker::start();
    let host = Host::start(&broker, Fake::with([Act::Wait])).await;
    let mut device = Listener::start(&broker, "d").await;
    host.deploy("d").await;
    let current = device.offer().await;
    device.ask(&request("d", "r", &current)).await;
    host.fake.started().await;

    let host = host.restart(&broker, Fake::default()).await;
    let offer = device.newer(&current).await;
    assert_eq!(offer.request_id.as_deref(), Some("r"));
    assert_eq!(host.fake.jobs().len(), 1);
    host.download(&offer).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_sent_while_the_service_was_down_is_served_when_it_is_back() {
    let broker = Broker::start();
    let host = Host::start(&broker, Fake::default()).await;
    let mut device = Listener::start(&broker, "d").await;
    host.deploy("d").await;
    let current = device.offer().await;
    let stopped = host.stop().await;
    device.ask(&request("d", "while away", &current)).await;
    let host = stopped.start(&broker, Fake::default()).await;
    assert_eq!(device.newer(&current).await.request_id.as_deref(), Some("while away"));
    assert_eq!(host.fake.jobs().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn offers_wait_for_the_broker_and_requests_are_heard_after_it_lost_the_session() {
    let mut broker = Broker::stopped();
    let host = Host::start(&broker, Fake::default()).await;
    host.deploy("d").await;
    broker.run();
    let mut device = Listener::start(&broker, "d").await;
    let current = device.offer().await;
    assert_eq!(current.sequence, 1);

    broker.kill();
    host.until_health("broker_connected", false).await;
    broker.run();
    host.until_health("broker_connected", true).await;
    let mut device = Listener::start(&broker, "d").await;
    device.ask(&request("d", "r", &current)).await;
    assert_eq!(device.newer(&current).await.request_id.as_deref(), Some("r"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_job_has_its_reason_and_is_tried_again_for_a_new_request() {
    let broker = Broker::start();
    let host = Host::start(&broker, Fake::with([Act::Fail, Act::Panic, Act::Make])).await;
    let mut device = Listener::start(&broker, "d").await;
    host.deploy("d").await;
    let current = device.offer().await;
    for (id, why) in [("r-1", "out of luck"), ("r-2", "panicked: out of nerve")] {
        device.ask(&request("d", id, &current)).await;
        let row = host.until_request("d", id, "failed").await;
        assert!(row["reason"].as_str().unwrap().contains(why), "{row}");
    }
    device.ask(&request("d", "r-3", &current)).await;
    assert_eq!(device.offer().await.request_id.as_deref(), Some("r-3"));
    assert_eq!(host.fake.jobs().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_that_the_compressor_damaged_is_never_offered() {
    let broker = Broker::start();
    let host = Host::start(&broker, Fake::with([Act::Damage])).await;
    let mut device = Listener::start(&broker, "d").await;
    host.deploy("d").await;
    let current = device.offer().await;
    device.ask(&request("d", "r", &current)).await;
    let row = host.until_request("d", "r", "failed").await;
    assert!(row["reason"].as_str().unwrap().contains("bad bundle"), "{row}");
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_requests_are_counted_and_refused_and_the_next_good_one_is_served() {
    let broker = Broker::start();
    let host = Host::start(&broker, Fake::default()).await;
    let mut device = Listener::start(&broker, "d").await;
    host.deploy("d").await;
    let current = device.offer().await;
    let good = request("d", "good", &current);
    let with = |field: &str, value: serde_json::Value| {
        let mut json = serde_json::to_value(&good).unwrap();
        json[field] = value;
        serde_json::to_vec(&json).unwrap()
    };
    let malformed = [
        b"".to_vec(),
        b"\xff\xfe\0".to_vec(),
        b"{\"schema\":".to_vec(),
        vec![b'['; 100_000],
        with("schema", json!("espalier.recompress.v2")),
        with("schema", json!("espalier.birth.v1")),
        with("device", json!("somebody else")),
        with("model", json!("../../etc/passwd")),
        with("digest", json!("latest")),
        with("p95_us", json!(-1)),
    ];
    let count = malformed.len() as u64;
    for payload in malformed {
        device.publish(payload).await;
    }
    host.until_health("requests_malformed", count).await;
    // The broker itself drops what is over the packet limit that the service announced.
    device.publish(vec![b' '; 1 << 20]).await;

    for (id, edit) in [
        ("model", (|r| r.model = "unheard of".into()) as fn(&mut RecompressRequest)),
        ("cause", |r| r.cause = wire::Cause::Thermal),
        ("budget", |r| r.budgets = Budgets::default()),
        ("current", |r| r.digest = bundle::Digest::of(b"from elsewhere").to_string()),
    ] {
        let mut bad = request("d", id, &current);
        edit(&mut bad);
        device.ask(&bad).await;
        let row = host.until_request("d", id, "failed").await;
        assert!(!row["reason"].as_str().unwrap().is_empty(), "{row}");
    }
    assert_eq!(host.fake.jobs().len(), 0);
    device.ask(&good).await;
    assert_eq!(device.offer().await.request_id.as_deref(), Some("good"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_that_a_device_took_back_is_replaced_by_another_for_all_of_its_class() {
    let broker = Broker::start();
    let host = Host::start(&broker, Fake::default()).await;
    let mut device = Listener::start(&broker, "a").await;
    host.deploy("a").await;
    let current = device.offer().await;
    device.ask(&request("a", "1", &current)).await;
    let first = device.offer().await;
    device.tell(&first, InstallOutcome::RolledBack).await;
    host.until_health("bundles_taken_back", 1).await;

    let mut other = Listener::start(&broker, "b").await;
    other.ask(&request("b", "1", &current)).await;
    let second = other.offer().await;
    assert_ne!(second.digest, first.digest, "what was taken back is offered again");
    device.ask(&request("a", "2", &current)).await;
    assert_eq!(device.offer().await.digest, second.digest);
    let goals: Vec<_> = host.fake.jobs().iter().map(|job| job.goal.latency_p95_us).collect();
    assert_eq!(goals, [Some(20_000), Some(17_000)], "the second has no larger margin");

    device.tell(&second, InstallOutcome::RolledBack).await;
    host.until_health("bundles_taken_back", 2).await;
    device.ask(&request("a", "3", &current)).await;
    let third = device.offer().await;
    device.tell(&third, InstallOutcome::Rejected).await;
    host.until_health("bundles_taken_back", 3).await;
    device.ask(&request("a", "4", &current)).await;
    let row = host.until_request("a", "4", "failed").await;
    assert!(row["reason"].as_str().unwrap().contains("MAX_TAKEN_BACK"), "{row}");
    assert_eq!(host.fake.jobs().len(), 3);

    let answer = host.post("/jobs/1/retry", &json!({})).await;
    assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
    let offer = device.newer(&third).await;
    assert_eq!(offer.request_id.as_deref(), Some("4"));
    assert_eq!(host.post("/jobs/1/retry", &json!({})).await.status, 409);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_was_taken_back_is_not_offered_in_another_bundle() {
    let broker = Broker::start();
    let host = Host::start(&broker, Fake::with([Act::Make, Act::Repeat(2), Act::Make])).await;
    let mut device = Listener::start(&broker, "a").await;
    host.deploy("a").await;
    let current = device.offer().await;
    device.ask(&request("a", "1", &current)).await;
    let first = device.offer().await;
    device.tell(&first, InstallOutcome::RolledBack).await;
    host.until_health("bundles_taken_back", 1).await;
    device.ask(&request("a", "2", &current)).await;
    let second = host.download(&device.offer().await).await;
    assert_eq!(fs::read(second.model_path()).unwrap(), Fake::model(3));
    let goals: Vec<_> = host.fake.jobs().iter().map(|job| job.goal.latency_p95_us).collect();
    assert_eq!(goals, [Some(20_000), Some(17_000), Some(14_450)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_model_that_the_device_runs_is_no_answer_to_its_request() {
    let broker = Broker::start();
    let host = Host::start(&broker, Fake::with([Act::Repeat(1); 2])).await;
    let mut device = Listener::start(&broker, "d").await;
    host.deploy("d").await;
    let current = device.offer().await;
    let mut memory = request("d", "memory", &current);
    memory.budgets.memory_bytes = Some(30 << 20);
    memory.budget = wire::BudgetKind::Memory;
    memory.workers_pss_bytes = Some(31 << 20);
    for asked in [request("d", "latency", &current), memory] {
        device.ask(&asked).await;
        let row = host.until_request("d", &asked.request_id, "failed").await;
        assert!(row["reason"].as_str().unwrap().contains("runs already"), "{row}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offer_that_the_broker_refuses_keeps_no_other_waiting() {
    let broker = Broker::denying("espalier/v1/d/denied/dn/#");
    let host = Host::start(&broker, Fake::default()).await;
    host.deploy("denied").await;
    host.until_health("offers_refused", 1).await;
    let mut device = Listener::start(&broker, "d").await;
    host.deploy("d").await;
    device.offer().await;
    let row = host.until_jobs(|jobs| jobs["outbox"].as_array().unwrap().first().cloned()).await;
    assert!(row["topic"].as_str().unwrap().contains("/denied/"), "{row}");
    assert!(row["reason"].as_str().unwrap().contains("NotAuthorized"), "{row}");
    assert!(row["attempts"].as_u64() >= Some(1), "{row}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_the_store_did_not_take_comes_again_on_a_new_connection() {
    let broker = Broker::start();
    let host = Host::start(&broker, Fake::default()).await;
    let mut device = Listener::start(&broker, "d").await;
    host.deploy("d").await;
    let current = device.offer().await;
    let database = host.database();
    let full = "BEFORE INSERT ON requests BEGIN SELECT RAISE(ABORT, 'the disk is full'); END";
    database.execute_batch(&format!("CREATE TRIGGER full {full}")).unwrap();
    device.ask(&request("d", "r", &current)).await;
    host.until_at_least("store_errors", 1).await;
    database.execute_batch("DROP TRIGGER full").unwrap();
    assert_eq!(device.newer(&current).await.request_id.as_deref(), Some("r"));
    assert_eq!(host.fake.jobs().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_end_the_store_did_not_take_ends_once_it_does() {
    let broker = Broker::start();
    let host = Host::start(&broker, Fake::default()).await;
    let mut device = Listener::start(&broker, "d").await;
    host.deploy("d").await;
    let current = device.offer().await;
    let database = host.database();
    let full =
        "BEFORE UPDATE ON jobs WHEN NEW.state = 'done' BEGIN SELECT RAISE(ABORT, 'full'); END";
    database.execute_batch(&format!("CREATE TRIGGER full {full}")).unwrap();
    device.ask(&request("d", "r", &current)).await;
    host.until_at_least("store_errors", 1).await;
    database.execute_batch("DROP TRIGGER full").unwrap();
    assert_eq!(device.newer(&current).await.request_id.as_deref(), Some("r"));
    assert_eq!(host.fake.jobs().len(), 1, "the job ran again");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_served_whole_in_parts_and_conditionally() {
    let broker = Broker::stopped();
    let host = Host::start(&broker, Fake::default()).await;
    let answer = host.deploy("d").await;
    let url = format!("{}/{MODEL_FILE}", answer["url"].as_str().unwrap());
    let model = Fake::model(1);

    let whole = Http::get(&url, &[]).await;
    assert_eq!((whole.status, &whole.body), (200, &model));
    assert_eq!(whole.header("accept-ranges"), "bytes");
    let etag = whole.header("etag").to_owned();
    assert_eq!(etag, format!("\"{}\"", bundle::Digest::of(&model).hex()));

    let size = model.len();
    for (range, expected, part) in [
        ("bytes=0-99", 0..100, format!("bytes 0-99/{size}")),
        ("bytes=70000-", 70_000..size, format!("bytes 70000-{}/{size}", size - 1)),
        ("bytes=-10", size - 10..size, format!("bytes {}-{}/{size}", size - 10, size - 1)),
        ("bytes=65535-65536", 65_535..65_537, format!("bytes 65535-65536/{size}")),
    ] {
        let got = Http::get(&url, &[("Range", range)]).await;
        assert_eq!((got.status, got.header("content-range")), (206, part.as_str()));
        assert!(got.body == model[expected.clone()], "{range}");
        assert_eq!(got.header("content-length"), expected.len().to_string());
    }
    let beyond = Http::get(&url, &[("Range", &format!("bytes={size}-"))]).await;
    assert_eq!(
        (beyond.status, beyond.header("content-range")),
        (416, format!("bytes */{size}").as_str())
    );

    let head = Http::send("HEAD", &url, &[], b"").await;
    assert_eq!(
        (head.status, head.header("content-length"), head.body.len()),
        (200, size.to_string().as_str(), 0)
    );
    let head = Http::send("HEAD", &url, &[("Range", "bytes=0-9")], b"").await;
    assert_eq!((head.status, head.header("content-length")), (206, "10"));
    assert_eq!(Http::get(&url, &[("If-None-Match", &etag)]).await.status, 304);
    let range = ("Range", "bytes=0-9");
    assert_eq!(Http::get(&url, &[range, ("If-Range", &etag)]).await.status, 206);
    assert_eq!(Http::get(&url, &[range, ("If-Range", "\"old\"")]).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_files_of_bundles_are_served() {
    let broker = Broker::stopped();
    let host = Host::start(&broker, Fake::default()).await;
    let answer = host.deploy("d").await;
    let hex = answer["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap().to_owned();
    let dir = host.store().join("bundles").join(&hex);
    fs::write(dir.join("secret.txt"), b"not in the manifest").unwrap();
    let none = bundle::Digest::of(b"none").hex();
    for path in [
        format!("/bundles/{hex}/secret.txt"),
        format!("/bundles/{hex}/..%2f..%2fjobs.sqlite"),
        format!("/bundles/{hex}/%2e%2e"),
        format!("/bundles/{hex}/../../jobs.sqlite"),
        format!("/bundles/{hex}/"),
        format!("/bundles/{hex}"),
        "/bundles/..%2f/jobs.sqlite".to_owned(),
        format!("/bundles/{}/manifest.json", hex.to_uppercase()),
        format!("/bundles/{none}/manifest.json"),
        format!("/bundles/{hex}/report.html"),
        format!("/reports/{none}"),
        "/jobs.sqlite".to_owned(),
    ] {
        let got = Http::get(&format!("{}{path}", host.url()), &[]).await;
        assert_eq!(got.status, 404, "{path}");
    }
    assert_eq!(
        Http::send("POST", &format!("{}/bundles/{hex}/{MODEL_FILE}", host.url()), &[], b"")
            .await
            .status,
        405
    );

    fs::write(dir.join(MODEL_FILE), b"short").unwrap();
    let url = format!("{}/bundles/{hex}/{MODEL_FILE}", host.url());
    assert_eq!(Http::get(&url, &[]).await.status, 500, "a damaged file was served");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_report_of_a_compression_is_a_page() {
    let broker = Broker::start();
    let host = Host::start(&broker, Fake::default()).await;
    let mut device = Listener::start(&broker, "d").await;
    host.deploy("d").await;
    let current = device.offer().await;
    device.ask(&request("d", "r", &current)).await;
    let offer = device.offer().await;
    let page =
        Http::get(&format!("{}/reports/{}", host.url(), &offer.digest["sha256:".len()..]), &[])
            .await;
    assert_eq!((page.status, page.header("content-type")), (200, "text/html; charset=utf-8"));
    assert!(page.header("content-security-policy").contains("default-src 'none'"));
    assert_eq!(page.body, b"<h1>2</h1>");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_deployment_is_refused_with_the_reason() {
    let broker = Broker::stopped();
    let host = Host::start(&broker, Fake::default()).await;
    for (body, status, why) in [
        (json!({ "device": "d", "model": "other" }), 404, "unknown"),
        (json!({ "device": "a/b", "model": "m" }), 400, "device"),
        (json!({ "device": "", "model": "m" }), 400, "device"),
        (json!({ "device": "d", "model": "m", "device_class": "#" }), 400, "device class"),
        (json!({ "device": "d" }), 422, "model"),
        (json!({ "device": "d", "model": "m", "runtime": "tensorrt" }), 422, "tensorrt"),
        (json!({ "device": "d", "model": "m", "modle": "m" }), 422, "modle"),
    ] {
        let got = host.post("/deploy", &body).await;
        assert_eq!(got.status, status, "{body}");
        let text = String::from_utf8_lossy(&got.body).into_owned();
        assert!(text.contains(why), "{body}: {text}");
    }
    let huge = vec![b' '; 100_000];
    let json = [("Content-Type", "application/json")];
    assert_eq!(
        Http::send("POST", &format!("{}/deploy", host.url()), &json, &huge).await.status,
        413
    );
    let plain = Http::send("POST", &format!("{}/deploy", host.url()), &[], b"{}").await;
    assert_eq!(plain.status, 415, "a page of another site could deploy");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_has_one_service() {
    let broker = Broker::stopped();
    let host = Host::start(&broker, Fake::default()).await;
    let error = host.start_another(&broker).await.err().unwrap().to_string();
    assert!(error.contains("another espalier serve"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_model_and_missing_data_are_named_at_the_start() {
    let broker = Broker::stopped();
    for missing in ["model.onnx", "calib.npz", "heldout.npz"] {
        let stopped = Host::prepare();
        fs::remove_file(stopped.dir().join(missing)).unwrap();
        let config = stopped.config(&broker);
        let started = espalier::serve::Service::start(config, Arc::new(Fake::default())).await;
        let error = started.err().unwrap().to_string();
        assert!(error.contains(missing), "{error}");
    }
}

/// What a device would install that was given the repository's root.
fn allowed(owner: &::trust::Host) -> Vec<String> {
    let fetch = Arc::new(::trust::Folder(owner.metadata()));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let (limits, expiry) = (::trust::Limits::default(), ::trust::Expiry::Strict);
    let trusted = ::trust::look(&owner.root_json().unwrap(), fetch, limits, expiry, now).unwrap();
    trusted.targets.into_values().map(|target| target.digest.to_string()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_is_signed_before_it_is_offered_and_not_offered_unsigned() {
    let mut broker = Broker::stopped();
    broker.run();
    let mut stopped = Host::prepare();
    let repository = stopped.dir().join("owner");
    let owner = ::trust::Host::init(&repository, None, &::trust::Init::default()).unwrap();
    stopped.trust = Some(repository.clone());
    let host = stopped.start(&broker, Fake::default()).await;
    let mut device = Listener::start(&broker, "d").await;
    host.deploy("d").await;
    let first = device.offer().await;
    assert_eq!(allowed(&owner), std::slice::from_ref(&first.digest));
    device.ask(&request("d", "r", &first)).await;
    let second = device.offer().await;
    assert!(allowed(&owner).contains(&second.digest));
    for file in ["timestamp.json", "1.root.json", "2.targets.json"] {
        let got = Http::get(&format!("{}/trust/{file}", host.url()), &[]).await;
        let wanted = fs::read(owner.metadata().join(file)).unwrap();
        assert_eq!((got.status, got.body), (200, wanted), "{file}");
    }
    for file in ["9.root.json", "..%2ftrust.json", "..%2fkeys%2ftargets.pem", "TIMESTAMP.JSON"] {
        let got = Http::get(&format!("{}/trust/{file}", host.url()), &[]).await;
        assert_eq!(got.status, 404, "{file}");
    }
    // A key that goes while the service runs costs the job, and nothing unsigned is offered.
    fs::rename(repository.join("keys/targets.pem"), repository.join("targets.away")).unwrap();
    let mut other = request("d", "r-2", &second);
    other.budgets.latency_p95_us = Some(5000);
    device.ask(&other).await;
    let row = host.until_request("d", "r-2", "failed").await;
    assert!(row["reason"].as_str().unwrap().contains("cannot be signed"), "{row}");
    assert_eq!(allowed(&owner).len(), 2);
    // And a service that could sign nothing does not start.
    let stopped = host.stop().await;
    let config = stopped.config(&broker);
    let started = espalier::serve::Service::start(config, Arc::new(Fake::default())).await;
    let error = started.err().unwrap().to_string();
    assert!(error.contains("the role targets needs 1 signatures"), "{error}");
}

/// A host that serves bundles without an owner, and the repository of one who comes later.
async fn owned_later(broker: &Broker) -> (Host, Listener, Offer, ::trust::Host) {
    let host = Host::prepare().start(broker, Fake::default()).await;
    let mut device = Listener::start(broker, "d").await;
    host.deploy("d").await;
    let offer = device.offer().await;
    let mut stopped = host.stop().await;
    let repository = stopped.dir().join("owner");
    let owner = ::trust::Host::init(&repository, None, &::trust::Init::default()).unwrap();
    stopped.trust = Some(repository);
    (stopped.start(broker, Fake::default()).await, device, offer, owner)
}

#[tokio::test(flavor = "multi_thread")]
async fn bundles_made_before_there_was_an_owner_are_signed_at_the_start_but_for_what_was_taken_back()
 {
    let broker = Broker::start();
    let (host, mut device, offer, owner) = owned_later(&broker).await;
    let signed = std::slice::from_ref(&offer.digest);
    assert_eq!(allowed(&owner), signed);
    let before = owner.current().unwrap().roles[&::trust::Role::Targets].version;
    let digest: bundle::Digest = offer.digest.parse().unwrap();
    let bundle = host.store().join("bundles").join(digest.hex());
    // What the owner says of a bundle stays as it is.
    owner.add(&bundle, &["raspberry-pi-5".into()]).unwrap();
    host.deploy("d").await;
    assert_eq!(device.offer().await.digest, offer.digest);
    assert_eq!(owner.current().unwrap().roles[&::trust::Role::Targets].version, before + 1);
    // What the owner takes back is neither offered nor signed again, now or by another service on the store.
    owner.remove(&[digest]).unwrap();
    let host = host.restart(&broker, Fake::default()).await;
    let answer = host.post("/deploy", &json!({ "device": "e", "model": "m" })).await;
    let told = String::from_utf8(answer.body).unwrap();
    assert_eq!(answer.status, 409, "{told}");
    assert!(told.contains(&offer.digest) && told.contains("espalier trust remove"), "{told}");
    assert_eq!(allowed(&owner), [""; 0]);
    owner.add(&bundle, &[]).unwrap();
    host.deploy("e").await;
    assert_eq!(allowed(&owner), signed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_deleted_as_the_service_was_killed_is_allowed_no_more_after_the_start() {
    let broker = Broker::start();
    let (host, _device, offer, owner) = owned_later(&broker).await;
    let by_hand = Fake::write(&owner.metadata().join("../by-hand"), "m", 9).unwrap();
    owner.add(&by_hand, &[]).unwrap();
    assert_eq!(allowed(&owner).len(), 2);
    let stopped = host.stop().await;
    // As `collect` leaves it before the trash is emptied.
    let (hex, store) = (offer.digest.trim_start_matches("sha256:"), stopped.dir().join("store"));
    fs::rename(store.join("bundles").join(hex), store.join("work").join(format!("trash-{hex}")))
        .unwrap();
    let host = stopped.start(&broker, Fake::default()).await;
    let stand = allowed(&owner);
    assert_eq!(stand.len(), 1, "{stand:?}");
    assert_ne!(stand[0], offer.digest, "what was allowed by hand stays");
    assert_eq!(fs::read_dir(host.store().join("work")).unwrap().count(), 0);
    assert_eq!(owner.removed().unwrap().len(), 0, "it may be made again");
}

#[test]
fn the_stand_in_writes_real_bundles() {
    let temp = tempfile::tempdir().unwrap();
    let dir = Fake::write(&temp.path().join("b"), "m", 3).unwrap();
    assert_eq!(Bundle::open(&dir, &Limits::default()).unwrap().manifest.sequence, 3);
}
