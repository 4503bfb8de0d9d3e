//! Every payload round-trips, matches its checked-in schema, and hostile bytes are refused.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};
use wire::{
    Birth, BudgetBreach, BudgetKind, Budgets, Cause, Command, CommandEvent, CommandKind,
    CommandOutcome, CommandResult, Comparison, DeviceState, DriftFeature, DriftTest, DropReason,
    Feature, Header, Histogram, InferWindow, InstallEvent, InstallOutcome, MAX_PAYLOAD_BYTES,
    ModelPhase, ModelState, Offer, Payload, PayloadError, PowerWindow, Quality, RecompressRequest,
    ResourceWindow, RollbackEvent, Runtime, Side, SpoolDrop, StateReport, Statistic, ThrottleEvent,
    decode, encode, try_encode,
};

const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn header<P: Payload>() -> Header {
    Header::of::<P>(1_795_000_000_123, 7, "b007")
}

fn birth() -> Birth {
    Birth {
        header: header::<Birth>(),
        device: "pi-1".into(),
        device_class: "raspberry-pi-4".into(),
        agent_version: "0.1.0".into(),
        arch: "aarch64".into(),
        runtime: Runtime::Tract,
        engine_version: "0.23.9".into(),
        cpus: 4,
        memory_bytes: 4 << 30,
        power_source: "model".into(),
        power_quality: Quality::Modelled,
        emulated: true,
    }
}

fn state() -> StateReport {
    StateReport {
        header: header::<StateReport>(),
        state: DeviceState::Degraded,
        reason: Some("disk".into()),
        log_level: Some("debug".into()),
    }
}

fn model() -> ModelState {
    ModelState {
        header: header::<ModelState>(),
        model: "magika".into(),
        digest: Some(DIGEST.into()),
        version: Some("1".into()),
        sequence: Some(3),
        phase: ModelPhase::SelfTest,
        reason: None,
        size_bytes: Some(3_160_000),
    }
}

fn infer() -> InferWindow {
    let mut compute = Histogram::default();
    for us in [0, 63, 64, 17_000, 25_000, 200_000_000] {
        compute.record(us);
    }
    InferWindow {
        header: header::<InferWindow>(),
        model: "magika".into(),
        digest: DIGEST.into(),
        window_ms: 5000,
        windows: 1,
        requests: 6,
        errors: 0,
        rejected: 1,
        p50_us: compute.quantile(0.5),
        p90_us: compute.quantile(0.9),
        p95_us: compute.quantile(0.95),
        p99_us: compute.quantile(0.99),
        max_us: compute.max(),
        mean_us: compute.mean(),
        queue_p95_us: None,
        wait_us: Some(1234),
        major_faults: Some(0),
        pss_bytes: Some(40 << 20),
        group_memory_bytes: Some(41 << 20),
        group_memory_peak_bytes: Some(44 << 20),
        group_memory_high_events: None,
        group_memory_max_events: Some(0),
        group_oom_kills: Some(1),
        queue: compute.clone(),
        compute,
        drift: Some(drift()),
    }
}

fn drift() -> DriftTest {
    DriftTest {
        requests: 200,
        reference: 512,
        span_ms: 600_000,
        level: 2e-4,
        psi_limit: 0.2,
        psi: 1.4,
        drifted: true,
        watched: 8,
        features: vec![DriftFeature {
            side: Side::Output,
            tensor: "target_label".into(),
            feature: Feature::Class,
            statistic: Statistic::ChiSquare,
            value: 310.0,
            threshold: 41.2,
            psi: 1.4,
            requests: 200,
            effective: 133.5,
            drifted: true,
        }],
    }
}

fn resources() -> ResourceWindow {
    ResourceWindow {
        header: header::<ResourceWindow>(),
        window_ms: 5000,
        windows: 1,
        agent_pss_bytes: Some(9 << 20),
        workers_pss_bytes: None,
        memory_total_bytes: 4 << 30,
        memory_available_bytes: 3 << 30,
        swap_in_pages: Some(0),
        major_faults: Some(3),
        cpu_percent: Some(12.5),
        others_percent: Some(2.5),
        steal_percent: Some(0.0),
        load1: Some(0.1),
        temperature_mc: Some(-4500),
        freq_khz: Some(1_500_000),
        throttled: false,
        cpu_pressure_percent: Some(1.5),
        memory_pressure_percent: Some(0.0),
        memory_stall_percent: Some(0.0),
        io_pressure_percent: None,
        io_stall_percent: None,
        group_cpu_pressure_percent: Some(0.5),
        group_memory_pressure_percent: None,
        group_io_pressure_percent: None,
        group_memory_bytes: Some(8 << 20),
        group_memory_peak_bytes: Some(9 << 20),
        group_memory_high_events: Some(0),
        group_memory_max_events: Some(0),
        group_oom_kills: Some(0),
        disk_written_bytes: Some(0),
        disk_written_day_bytes: Some(40_960),
    }
}

fn power() -> PowerWindow {
    PowerWindow {
        header: header::<PowerWindow>(),
        window_ms: 5000,
        windows: 1,
        source: "model".into(),
        quality: Quality::Modelled,
        power_mw: Some(2900.5),
        power_error_mw: Some(40.0),
        energy_per_inference_mj: Some(54.25),
        energy_error_mj: Some(1.5),
        model: Some("magika".into()),
    }
}

fn breach() -> BudgetBreach {
    BudgetBreach {
        header: header::<BudgetBreach>(),
        model: "magika".into(),
        digest: DIGEST.into(),
        budget: BudgetKind::LatencyP95,
        cause: Cause::Model,
        limit: 20_000.0,
        observed: 31_234.5,
        windows_over: 4,
        windows_seen: 5,
        recompress: true,
        drift: Some(drift()),
    }
}

fn install() -> InstallEvent {
    InstallEvent {
        header: header::<InstallEvent>(),
        model: "magika".into(),
        digest: DIGEST.into(),
        phase: ModelPhase::Shadow,
        outcome: InstallOutcome::Progress,
        reason: None,
        from_digest: Some(DIGEST.into()),
        elapsed_ms: 1234,
        comparison: Some(Comparison {
            shadow_requests: 50,
            agreement: 0.98,
            before_p95_us: Some(31_000),
            after_p95_us: Some(15_000),
        }),
        blocked: false,
        trial: Some(trial()),
    }
}

fn trial() -> wire::Trial {
    let metric = |metric: &wire::Metric| wire::TrialMetric {
        metric: *metric,
        predicted: Some(12_000.0),
        measured: Some(15_000.0),
        before: Some(31_000.0),
        prediction_error: Some(0.25),
        reference: Some(wire::Reference::Previous),
        limit: Some(38_750.0),
        allowed: Some(0.05),
        observations: 30.0,
        over: 0.5,
        e_value: 0.25,
        e_needed: 1200.0,
    };
    wire::Trial {
        false_rollback_rate: 0.01,
        windows: 3,
        requests: 600,
        metrics: wire::Metric::ALL.iter().map(metric).collect(),
    }
}

fn rollback() -> RollbackEvent {
    RollbackEvent {
        header: header::<RollbackEvent>(),
        model: "magika".into(),
        from_digest: DIGEST.into(),
        to_digest: Some(DIGEST.into()),
        reason: "its worker died again".into(),
        blocked: true,
    }
}

fn throttle() -> ThrottleEvent {
    ThrottleEvent {
        header: header::<ThrottleEvent>(),
        throttled: false,
        lasted_ms: Some(30_000),
        temperature_mc: Some(81_500),
        freq_khz: Some(600_000),
    }
}

fn drop_report() -> SpoolDrop {
    SpoolDrop {
        header: header::<SpoolDrop>(),
        dropped_records: 2,
        dropped_bytes: 4096,
        dropped_events: 1,
        reason: DropReason::Age,
    }
}

fn request() -> RecompressRequest {
    RecompressRequest {
        header: header::<RecompressRequest>(),
        request_id: "r-1".into(),
        device: "pi-1".into(),
        model: "magika".into(),
        digest: DIGEST.into(),
        sequence: 3,
        device_class: "raspberry-pi-4".into(),
        runtime: Runtime::Ort,
        arch: "aarch64".into(),
        threads: 1,
        budgets: Budgets {
            latency_p95_us: Some(20_000),
            energy_mj: Some(0.5),
            agreement_min: Some(0.9),
            ..Budgets::default()
        },
        budget: BudgetKind::LatencyP95,
        cause: Cause::Model,
        p50_us: 28_000,
        p95_us: 31_000,
        windows_over: 4,
        windows_seen: 5,
        workers_pss_bytes: Some(40 << 20),
        emulated: true,
        drift: Some(drift()),
    }
}

fn offer() -> Offer {
    Offer {
        header: header::<Offer>(),
        model: "magika".into(),
        version: "0.1.4".into(),
        sequence: 4,
        digest: DIGEST.into(),
        url: "http://127.0.0.1:8080/bundles/e3b0".into(),
        size_bytes: 1_200_000,
        runtime: Runtime::Tract,
        device_class: "any".into(),
        request_id: None,
    }
}

fn command() -> Command {
    Command {
        header: header::<Command>(),
        id: "c-1".into(),
        kind: CommandKind::SetBudget,
        expires_ms: 0,
        args: json!({ "latency_p95_us": 20_000 }),
    }
}

fn audit() -> CommandEvent {
    CommandEvent {
        header: header::<CommandEvent>(),
        id: "c-1".into(),
        kind: CommandKind::LogLevel,
        outcome: CommandOutcome::Refused,
        reason: Some("expired".into()),
        topic: "dn/cmd/log_level/c-1".into(),
        sender: "b00".into(),
        sent_ts: 1_795_000_000_000,
        expires_ms: 1_795_000_000_100,
        args_text: "{}".into(),
        elapsed_ms: 0,
    }
}

fn result() -> CommandResult {
    CommandResult {
        header: header::<CommandResult>(),
        id: "c-1".into(),
        ok: false,
        error: Some("expired".into()),
        data: Value::Null,
    }
}

fn survives<P: Payload + PartialEq + std::fmt::Debug>(payload: &P) -> (&'static str, Value) {
    let bytes = try_encode(payload).unwrap();
    assert_eq!(decode::<P>(&bytes).unwrap(), *payload);
    (P::SCHEMA, serde_json::from_slice(&bytes).unwrap())
}

fn all() -> Vec<(&'static str, Value)> {
    vec![
        survives(&birth()),
        survives(&state()),
        survives(&model()),
        survives(&infer()),
        survives(&resources()),
        survives(&power()),
        survives(&breach()),
        survives(&install()),
        survives(&rollback()),
        survives(&throttle()),
        survives(&drop_report()),
        survives(&audit()),
        survives(&request()),
        survives(&result()),
        survives(&offer()),
        survives(&command()),
    ]
}

#[test]
fn every_payload_reads_back_as_it_was_written_and_its_fields_are_those_of_its_schema() {
    let schemas: BTreeMap<_, _> = wire::schema::all().into_iter().collect();
    let payloads = all();
    assert_eq!(payloads.len(), schemas.len());
    for (name, value) in payloads {
        let fields =
            |value: &Value| value.as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
        assert_eq!(fields(&value), fields(&schemas[name]["properties"]), "{name}");
        let nested = ["compute", "queue", "budgets", "comparison", "args", "drift", "trial"];
        for (field, value) in value.as_object().unwrap() {
            assert!(
                !value.is_object() || nested.contains(&field.as_str()),
                "{name}: {field} is not flat"
            );
        }
    }
}

#[test]
fn the_checked_in_schemas_are_those_of_the_types() {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("schemas");
    let bless = std::env::var_os("ESPALIER_BLESS").is_some();
    let mut expected = BTreeSet::new();
    for (name, schema) in wire::schema::all().into_iter().chain(wire::schema::parts()) {
        let path = dir.join(format!("{name}.json"));
        let text = format!("{}\n", serde_json::to_string_pretty(&schema).unwrap());
        if bless {
            fs::create_dir_all(&dir).unwrap();
            fs::write(&path, &text).unwrap();
        }
        // Compared as values: the order of keys depends on features of other crates.
        let found =
            fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
        assert!(
            found.as_ref() == Some(&schema),
            "{} differs from its type: ESPALIER_BLESS=1 rewrites it",
            path.display()
        );
        assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
        expected.insert(path);
    }
    let found: BTreeSet<_> =
        fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(found, expected, "a schema without a type");
}

#[test]
fn the_checked_in_document_is_that_of_the_types_and_leads_nowhere_that_is_not_there() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let path = folder.join("asyncapi.json");
    let document = wire::asyncapi::document();
    if std::env::var_os("ESPALIER_BLESS").is_some() {
        fs::write(&path, format!("{}\n", serde_json::to_string_pretty(&document).unwrap()))
            .unwrap();
    }
    let found = fs::read(&path).ok().and_then(|b| serde_json::from_slice::<Value>(&b).ok());
    assert!(found.as_ref() == Some(&document), "asyncapi.json: ESPALIER_BLESS=1 rewrites it");
    let mut open = vec![&document];
    let mut references = 0;
    while let Some(value) = open.pop() {
        if let Some(to) = value.get("$ref").and_then(Value::as_str) {
            let there = match to.strip_prefix('#') {
                Some(pointer) => document.pointer(pointer).is_some(),
                None => folder.join(to).is_file(),
            };
            assert!(there, "{to}");
            references += 1;
        }
        match value {
            Value::Object(map) => open.extend(map.values()),
            Value::Array(list) => open.extend(list),
            _ => {}
        }
    }
    assert_eq!(references, 4 * wire::schema::all().len());
    let channels = document["channels"].as_object().unwrap();
    assert_eq!(channels.len(), wire::schema::all().len(), "two payloads on one channel");
    for channel in channels.values() {
        let address = channel["address"].as_str().unwrap();
        let filled = channel["parameters"].as_object().unwrap().keys().fold(
            address.to_owned(),
            |address, name| {
                let value = if name == "kind" { "ping" } else { "a" };
                address.replace(&format!("{{{name}}}"), value)
            },
        );
        wire::parse("a", &filled).unwrap();
    }
}

#[test]
fn a_field_that_this_version_does_not_know_is_accepted() {
    let mut value = serde_json::to_value(offer()).unwrap();
    value["signature"] = json!({ "alg": "ed25519" });
    value["schema"] = json!("espalier.offer.v1.7");
    let read: Offer = decode(&serde_json::to_vec(&value).unwrap()).unwrap();
    assert_eq!(read.digest, DIGEST);
}

#[test]
fn another_schema_and_another_version_are_different_errors() {
    let mut value = serde_json::to_value(offer()).unwrap();
    for (schema, version) in [
        ("espalier.offer.v2", true),
        ("espalier.offer.v10", true),
        ("espalier.offer.v1x", true),
        ("espalier.birth.v1", false),
        ("espalier.offer", false),
        ("", false),
    ] {
        value["schema"] = json!(schema);
        let error = decode::<Offer>(&serde_json::to_vec(&value).unwrap()).unwrap_err();
        let wanted = if version { "version" } else { "has schema" };
        assert!(error.to_string().contains(wanted), "{schema}: {error}");
        assert_eq!(matches!(error, PayloadError::Version { .. }), version, "{schema}: {error}");
    }
}

#[test]
fn a_payload_over_the_limit_is_refused_before_it_is_parsed() {
    let bytes = vec![b'{'; MAX_PAYLOAD_BYTES + 1];
    let error = decode::<Offer>(&bytes).unwrap_err();
    assert!(matches!(error, PayloadError::TooLarge { .. }), "{error}");
    assert!(error.to_string().contains("MAX_PAYLOAD_BYTES"), "{error}");
    let mut huge = result();
    huge.data = json!("x".repeat(MAX_PAYLOAD_BYTES));
    assert!(matches!(try_encode(&huge), Err(PayloadError::TooLarge { .. })));
}

#[test]
fn half_a_payload_an_empty_one_and_a_deep_one_are_errors_that_name_the_schema() {
    let whole = encode(&infer());
    let deep = "[".repeat(MAX_PAYLOAD_BYTES).into_bytes();
    for bytes in
        [&whole[..whole.len() / 2], &[], b"null", b"[]", b"{}", b"\xff\xfe", deep.as_slice()]
    {
        let error = decode::<InferWindow>(bytes).unwrap_err();
        assert!(matches!(error, PayloadError::Json { .. }), "{error}");
        assert!(error.to_string().contains("espalier.infer.v1"), "{error}");
    }
}

#[test]
fn a_missing_field_and_one_of_the_wrong_type_are_named() {
    let mut value = serde_json::to_value(request()).unwrap();
    value.as_object_mut().unwrap().remove("p95_us");
    let error = decode::<RecompressRequest>(&serde_json::to_vec(&value).unwrap()).unwrap_err();
    assert!(error.to_string().contains("p95_us"), "{error}");
    for bad in [json!(-1), json!("31000"), json!(1.5), json!(null), json!(1e30)] {
        value["p95_us"] = bad;
        assert!(decode::<RecompressRequest>(&serde_json::to_vec(&value).unwrap()).is_err());
    }
}

#[test]
fn names_and_digests_that_would_be_paths_or_wildcards_are_refused_in_a_request() {
    for (field, bad) in [
        ("device", json!("../../etc")),
        ("device", json!("a/b")),
        ("model", json!("+")),
        ("model", json!("")),
        ("model", json!("..")),
        ("device_class", json!("a\nb")),
        ("request_id", json!("x".repeat(129))),
        ("digest", json!("sha256:abc")),
        ("digest", json!(DIGEST.to_uppercase())),
    ] {
        let mut value = serde_json::to_value(request()).unwrap();
        value[field] = bad;
        let error = decode::<RecompressRequest>(&serde_json::to_vec(&value).unwrap()).unwrap_err();
        assert!(matches!(error, PayloadError::Field { .. }), "{field}: {error}");
        assert!(error.to_string().contains(field), "{error}");
    }
    let mut value = serde_json::to_value(request()).unwrap();
    value["budgets"]["agreement_min"] = json!(1.5);
    let error = decode::<RecompressRequest>(&serde_json::to_vec(&value).unwrap()).unwrap_err();
    assert!(error.to_string().contains("agreement_min"), "{error}");
}

#[test]
fn a_drift_test_of_too_many_features_or_too_long_a_name_is_refused() {
    let mut window = infer();
    let test = window.drift.as_mut().unwrap();
    test.features = vec![test.features[0].clone(); wire::MAX_DRIFT_FEATURES + 1];
    let error = try_encode(&window).unwrap_err().to_string();
    assert!(error.contains("MAX_DRIFT_FEATURES"), "{error}");
    let mut window = infer();
    window.drift.as_mut().unwrap().features[0].tensor = "t".repeat(1000);
    let error = try_encode(&window).unwrap_err().to_string();
    assert!(error.contains("MAX_TENSOR_BYTES"), "{error}");
}

#[test]
fn a_message_from_before_drift_was_watched_reads_as_one_without() {
    let mut old = serde_json::to_value(request()).unwrap();
    old.as_object_mut().unwrap().remove("drift");
    old["budgets"].as_object_mut().unwrap().remove("drift_psi");
    let read: RecompressRequest = decode(old.to_string().as_bytes()).unwrap();
    assert_eq!(read, RecompressRequest { drift: None, ..request() });
}

#[test]
fn a_trial_of_too_many_metrics_is_refused_and_an_install_from_before_trials_reads_as_one_without() {
    let mut event = install();
    let metrics = &mut event.trial.as_mut().unwrap().metrics;
    *metrics = vec![metrics[0].clone(); wire::MAX_TRIAL_METRICS + 1];
    let error = try_encode(&event).unwrap_err().to_string();
    assert!(error.contains("MAX_TRIAL_METRICS"), "{error}");
    let mut old = serde_json::to_value(install()).unwrap();
    old.as_object_mut().unwrap().remove("trial");
    let read: InstallEvent = decode(old.to_string().as_bytes()).unwrap();
    assert_eq!(read, InstallEvent { trial: None, ..install() });
}

#[test]
fn no_nan_gets_into_json() {
    let mut report = breach();
    report.observed = f64::NAN;
    report.limit = f64::INFINITY;
    let value: Value = serde_json::from_slice(&encode(&report)).unwrap();
    assert_eq!((&value["observed"], &value["limit"]), (&Value::Null, &Value::Null));
    assert!(decode::<BudgetBreach>(&encode(&report)).unwrap().observed.is_nan());

    let mut window = power();
    window.power_mw = Some(f64::NAN);
    let value: Value = serde_json::from_slice(&encode(&window)).unwrap();
    assert_eq!(value["power_mw"], Value::Null);
    assert_eq!((wire::finite(f64::NAN), wire::finite(1.0)), (None, Some(1.0)));
}

#[test]
fn the_wire_form_of_a_histogram_is_sparse() {
    let mut histogram = Histogram::default();
    histogram.record(5);
    histogram.record(5);
    histogram.record(1000);
    let value = serde_json::to_value(&histogram).unwrap();
    assert_eq!(value["unit"], "us");
    assert_eq!(value["buckets"][0], json!([5, 2]));
    assert_eq!(value["buckets"].as_array().unwrap().len(), 2);
    assert_eq!((&value["sum_us"], &value["max_us"]), (&json!(1010), &json!(1000)));
}

#[test]
fn hostile_histograms_each_get_their_reason() {
    let refused = |buckets: Value, sum: Value, max: Value, why: &str| {
        let value = json!({ "unit": "us", "buckets": buckets, "sum_us": sum, "max_us": max });
        let error = serde_json::from_value::<Histogram>(value.clone()).unwrap_err();
        assert!(error.to_string().contains(why), "{value}: {error}");
    };
    refused(json!([[720, 1]]), json!(1), json!(1), "does not exist");
    refused(json!([[u64::MAX, 1]]), json!(1), json!(1), "does not exist");
    refused(json!([[5, 1], [5, 1]]), json!(10), json!(5), "twice");
    refused(json!([[5, 1], [4, 1]]), json!(9), json!(5), "order");
    refused(json!([[5, 0]]), json!(0), json!(5), "zero");
    refused(json!([[5, u64::MAX], [6, 1]]), json!(1), json!(6), "overflow");
    refused(json!([[5, 1]]), json!(5), json!(6), "max_us");
    refused(json!([]), json!(0), json!(6), "max_us");
    refused(json!([]), json!(6), json!(0), "sum_us");
    refused(json!([[5, 2]]), json!(11), json!(5), "sum_us");
    refused(json!([[5, -1]]), json!(5), json!(5), "invalid");
    refused(json!([[5]]), json!(5), json!(5), "invalid length");
    let unit = json!({ "unit": "ms", "buckets": [], "sum_us": 0, "max_us": 0 });
    assert!(serde_json::from_value::<Histogram>(unit).unwrap_err().to_string().contains("unit"));
}
