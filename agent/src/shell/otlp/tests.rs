//! Against a receiver that reads messages as the specification has them and nothing else.

#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::mpsc::{Receiver, channel};

use serde::{Deserialize, Deserializer};
use wire::Histogram;

use super::*;

/// A 64-bit integer, which JSON has as a string.
fn long<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
}

fn longs<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u64>, D::Error> {
    let texts = Vec::<String>::deserialize(from)?;
    texts.iter().map(|text| text.parse().map_err(serde::de::Error::custom)).collect()
}

macro_rules! strict {
    ($($name:ident { $($(#[$meta:meta])* $field:ident: $type:ty,)+ })+) => { $(
        #[derive(Debug, Deserialize)]
        #[serde(deny_unknown_fields, rename_all = "camelCase")]
        #[allow(dead_code)]
        struct $name { $($(#[$meta])* $field: $type,)+ }
    )+ };
}

strict! {
    Request { resource_metrics: Vec<ResourceMetrics>, }
    ResourceMetrics { resource: Resource, scope_metrics: Vec<ScopeMetrics>, }
    Resource { attributes: Vec<Attribute>, }
    Attribute { key: String, value: AnyValue, }
    AnyValue { string_value: String, }
    ScopeMetrics { scope: Scope, metrics: Vec<Metric>, }
    Scope { name: String, version: String, }
    Metric {
        name: String, unit: String, description: String,
        sum: Option<Sum>, gauge: Option<Gauge>, histogram: Option<Histograms>,
    }
    Sum { aggregation_temporality: u8, is_monotonic: bool, data_points: Vec<NumberPoint>, }
    Gauge { data_points: Vec<NumberPoint>, }
    Histograms { aggregation_temporality: u8, data_points: Vec<HistogramPoint>, }
    NumberPoint {
        attributes: Vec<Attribute>,
        #[serde(deserialize_with = "long")] start_time_unix_nano: u64,
        #[serde(deserialize_with = "long")] time_unix_nano: u64,
        #[serde(deserialize_with = "long")] as_int: u64,
    }
    HistogramPoint {
        attributes: Vec<Attribute>,
        #[serde(deserialize_with = "long")] start_time_unix_nano: u64,
        #[serde(deserialize_with = "long")] time_unix_nano: u64,
        #[serde(deserialize_with = "long")] count: u64,
        sum: f64,
        #[serde(deserialize_with = "longs")] bucket_counts: Vec<u64>,
        explicit_bounds: Vec<f64>,
    }
}

/// A receiver that gives each request the next answer; the last one again and again.
fn receiver(answers: &'static [&'static str]) -> (String, Receiver<(String, String)>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v1/metrics", listener.local_addr().unwrap());
    let (heard, hearing) = channel();
    std::thread::spawn(move || {
        for (n, stream) in listener.incoming().enumerate() {
            let Ok(mut stream) = stream else { return };
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let lines = (&mut reader).lines().map_while(Result::ok);
            let head: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
            let length = head.iter().find_map(|line| {
                line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse::<usize>().ok()
            });
            let mut body = vec![0; length.unwrap_or(0)];
            reader.read_exact(&mut body).unwrap();
            let _ = heard.send((head.join("\n"), String::from_utf8(body).unwrap()));
            let _ = stream.write_all(answers[n.min(answers.len() - 1)].as_bytes());
        }
    });
    (url, hearing)
}

const TAKEN: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}";
const BUSY: &str = "HTTP/1.1 503 Busy\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

fn exporter(endpoint: String) -> Exporter {
    let device = DeviceConfig { id: "dev".into(), class: "pi4".into(), emulated: false };
    Exporter::new(OtlpConfig { endpoint, interval: Duration::from_secs(60) }, device)
}

fn counts() -> ModelCounts {
    let mut compute = Histogram::default();
    [1, 100, 1_000_000, 200_000_000].iter().for_each(|us| compute.record(*us));
    ModelCounts {
        model: "m".into(),
        version: "1".into(),
        digest: "sha256:00".into(),
        engine: "fake 1".into(),
        up: true,
        requests: 5,
        errors: 1,
        rejected: 2,
        compute,
        queue: Histogram::default(),
        memory_bytes: Some(4096),
        memory_peak_bytes: None,
    }
}

#[tokio::test]
async fn a_receiver_that_knows_only_the_specification_understands_every_number() {
    let (url, heard) = receiver(&[TAKEN]);
    let mut exporter = exporter(url);
    exporter.export(Some(2_000_000_000_000), vec![counts()]).await;
    exporter.export(Some(2_000_000_060_000), vec![counts()]).await;
    assert_eq!((exporter.failures, exporter.told.clone()), (0, None));
    heard.recv().unwrap();
    let (head, body) = heard.recv().unwrap();
    assert!(head.starts_with("POST /v1/metrics HTTP/1.1"), "{head}");
    assert!(head.to_ascii_lowercase().contains("content-type: application/json"), "{head}");
    let request: Request = serde_json::from_str(&body).unwrap();
    let resource = &request.resource_metrics[0];
    let id = resource.resource.attributes.iter().find(|a| a.key == "service.instance.id");
    assert_eq!(id.unwrap().value.string_value, "dev");
    let metrics = &resource.scope_metrics[0].metrics;
    let of = |name: &str| metrics.iter().find(|metric| metric.name == name).unwrap();
    let requests = of("espalier.requests").sum.as_ref().unwrap();
    assert_eq!((requests.aggregation_temporality, requests.is_monotonic), (2, true));
    let point = &requests.data_points[0];
    assert_eq!(point.as_int, 5);
    assert_eq!(point.start_time_unix_nano, 2_000_000_000_000_000_000, "since the first");
    assert_eq!(point.time_unix_nano, 2_000_000_060_000_000_000);
    let compute = &of("espalier.compute").histogram.as_ref().unwrap().data_points[0];
    assert_eq!(compute.bucket_counts.len(), compute.explicit_bounds.len() + 1);
    assert_eq!((compute.count, compute.bucket_counts.iter().sum::<u64>()), (4, 4));
    assert!(compute.explicit_bounds.windows(2).all(|pair| pair[0] < pair[1]));
    assert_eq!((compute.bucket_counts[0], compute.bucket_counts.last()), (1, Some(&1)));
    assert!((compute.sum - 201.000_101).abs() < 1e-9);
    let memory = &of("espalier.worker.memory").gauge.as_ref().unwrap().data_points[0];
    assert_eq!(memory.as_int, 4096);
    assert!(metrics.iter().all(|metric| metric.name != "espalier.worker.memory.peak"));
}

#[tokio::test]
async fn a_receiver_that_fails_is_asked_less_and_less_often_and_again_when_it_is_back() {
    let (url, _heard) = receiver(&[BUSY, BUSY, TAKEN]);
    let mut exporter = exporter(url);
    for minutes in [2, 4] {
        exporter.export(Some(2_000_000_000_000), vec![counts()]).await;
        assert_eq!(exporter.wait(), Duration::from_secs(60 * minutes));
        assert!(exporter.told.as_ref().unwrap().contains("503"), "{:?}", exporter.told);
    }
    exporter.export(Some(2_000_000_000_000), vec![counts()]).await;
    assert_eq!((exporter.wait(), exporter.told.clone()), (Duration::from_secs(60), None));
    exporter.failures = 40;
    assert_eq!(exporter.wait(), MOST_PATIENCE);
}

#[tokio::test]
async fn without_a_clock_or_a_receiver_the_reason_is_told_and_nothing_is_kept() {
    let mut exporter = exporter("http://127.0.0.1:1/v1/metrics".into());
    exporter.export(None, vec![counts()]).await;
    assert!(exporter.told.as_ref().unwrap().contains("clock is not set"));
    exporter.export(Some(2_000_000_000_000), vec![counts()]).await;
    assert!(exporter.told.as_ref().unwrap().contains("refused"), "{:?}", exporter.told);
    exporter.export(Some(2_000_000_000_000), Vec::new()).await;
    assert!(exporter.since.is_empty(), "what is not served any more is forgotten");
}

#[test]
fn what_a_receiver_rejected_is_told() {
    assert_eq!(message::rejected(""), Ok(()));
    assert_eq!(message::rejected("{\"partialSuccess\":{}}"), Ok(()));
    let some = r#"{"partialSuccess":{"rejectedDataPoints":"3","errorMessage":"too old"}}"#;
    assert_eq!(message::rejected(some).unwrap_err(), "the receiver rejected 3 numbers: too old");
}
