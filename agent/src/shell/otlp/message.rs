//! Counts as a message of OTLP 1 in JSON: 64-bit integers are strings, enums are numbers.

use serde_json::{Value, json};
use wire::Histogram;

use crate::config::DeviceConfig;
use crate::plane::{BOUNDS, ModelCounts};

/// `AGGREGATION_TEMPORALITY_CUMULATIVE`.
const CUMULATIVE: u8 = 2;

/// What is counted of a model, and from when to when, Unix time in milliseconds.
pub(super) struct Point<'a> {
    pub(super) counts: &'a ModelCounts,
    pub(super) since: u64,
    pub(super) now: u64,
}

type Count = fn(&ModelCounts) -> u64;
type Times = fn(&ModelCounts) -> &Histogram;
type Gauge = fn(&ModelCounts) -> Option<u64>;

const SUMS: [(&str, &str, Count); 3] = [
    ("espalier.requests", "Requests that were accepted and have ended.", |c| c.requests),
    (
        "espalier.request.errors",
        "Requests that ended without an answer, by no fault of the client.",
        |c| c.errors,
    ),
    (
        "espalier.requests.rejected",
        "Requests that were turned away because there was no room.",
        |c| c.rejected,
    ),
];
const HISTOGRAMS: [(&str, &str, Times); 2] = [
    ("espalier.compute", "Time in the engine.", |c| &c.compute),
    ("espalier.queue", "Time in the queue.", |c| &c.queue),
];
const GAUGES: [(&str, &str, &str, Gauge); 3] = [
    ("espalier.model.up", "1", "Whether the model's worker runs.", |c| Some(u64::from(c.up))),
    (
        "espalier.worker.memory",
        "By",
        "What the worker's control group holds of memory, cached files included.",
        |c| c.memory_bytes,
    ),
    (
        "espalier.worker.memory.peak",
        "By",
        "The most that it has held since the worker was started.",
        |c| c.memory_peak_bytes,
    ),
];

/// One `ExportMetricsServiceRequest`.
pub(super) fn encode(device: &DeviceConfig, points: &[Point<'_>]) -> Value {
    let mut metrics = Vec::new();
    for (name, description, of) in SUMS {
        let data: Vec<Value> = points.iter().map(|point| number(point, of(point.counts))).collect();
        metrics.push(json!({
            "name": name, "unit": "1", "description": description,
            "sum": { "aggregationTemporality": CUMULATIVE, "isMonotonic": true, "dataPoints": data },
        }));
    }
    for (name, description, of) in HISTOGRAMS {
        let data: Vec<Value> = points.iter().map(|point| times(point, of(point.counts))).collect();
        metrics.push(json!({
            "name": name, "unit": "s", "description": description,
            "histogram": { "aggregationTemporality": CUMULATIVE, "dataPoints": data },
        }));
    }
    for (name, unit, description, of) in GAUGES {
        let one = |point: &Point<'_>| of(point.counts).map(|value| number(point, value));
        let data: Vec<Value> = points.iter().filter_map(one).collect();
        if !data.is_empty() {
            metrics.push(json!({
                "name": name, "unit": unit, "description": description,
                "gauge": { "dataPoints": data },
            }));
        }
    }
    let version = env!("CARGO_PKG_VERSION");
    json!({ "resourceMetrics": [{
        "resource": { "attributes": [
            text("service.name", "espalier-agent"),
            text("service.version", version),
            text("service.instance.id", &device.id),
            text("espalier.device.class", &device.class),
        ] },
        "scopeMetrics": [{
            "scope": { "name": "espalier-agent", "version": version },
            "metrics": metrics,
        }],
    }] })
}

/// What a receiver says that took only a part.
///
/// # Errors
/// It did, and says why.
pub(super) fn rejected(answer: &str) -> Result<(), String> {
    let answer: Value = serde_json::from_str(answer).unwrap_or_default();
    let partial = &answer["partialSuccess"];
    let count = match &partial["rejectedDataPoints"] {
        Value::String(text) => text.parse().unwrap_or(0),
        number => number.as_u64().unwrap_or(0),
    };
    if count == 0 {
        return Ok(());
    }
    let why: String =
        partial["errorMessage"].as_str().unwrap_or("no reason given").chars().take(200).collect();
    Err(format!("the receiver rejected {count} numbers: {why}"))
}

fn text(key: &str, value: &str) -> Value {
    json!({ "key": key, "value": { "stringValue": value } })
}

fn attributes(counts: &ModelCounts) -> Value {
    json!([
        text("espalier.model", &counts.model),
        text("espalier.model.version", &counts.version),
        text("espalier.model.digest", &counts.digest),
        text("espalier.engine", &counts.engine),
    ])
}

fn nanos(ms: u64) -> String {
    (u128::from(ms) * 1_000_000).to_string()
}

fn number(point: &Point<'_>, value: u64) -> Value {
    json!({
        "attributes": attributes(point.counts),
        "startTimeUnixNano": nanos(point.since),
        "timeUnixNano": nanos(point.now),
        "asInt": value.to_string(),
    })
}

/// A bound belongs to the bucket that it ends in OTLP, and to the next one here: a time of exactly 2^n µs is off by one.
#[allow(clippy::cast_precision_loss)]
fn times(point: &Point<'_>, durations: &Histogram) -> Value {
    let mut buckets = durations.buckets().peekable();
    let mut counts = Vec::new();
    let mut bounds = Vec::new();
    for bound in BOUNDS.map(|power| 1u64 << power) {
        let mut here = 0u64;
        while let Some((_, _, count)) = buckets.next_if(|(low, _, _)| *low < bound) {
            here = here.saturating_add(count);
        }
        counts.push(here.to_string());
        bounds.push(bound as f64 / 1e6);
    }
    let above = buckets.fold(0u64, |all, (_, _, count)| all.saturating_add(count));
    counts.push(above.to_string());
    json!({
        "attributes": attributes(point.counts),
        "startTimeUnixNano": nanos(point.since),
        "timeUnixNano": nanos(point.now),
        "count": durations.count().to_string(),
        "sum": durations.sum() as f64 / 1e6,
        "bucketCounts": counts,
        "explicitBounds": bounds,
    })
}
