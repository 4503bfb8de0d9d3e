//! What each model did since it was loaded, as OpenMetrics text for a scraper.
//!
//! Counters and histograms are those of the telemetry windows, summed up; a scrape takes nothing away from a window.
//! The series of a bundle begin at zero and end when it is no longer served, and go on where they were after a rollback
//! to it: a scraper sees a new version, not a counter that jumps.

use std::fmt::Write;

use wire::Histogram;

use super::instance::Instance;
use super::registry::Registry;
use super::window::Totals;
use crate::sys::cgroup::Usage;
use crate::sys::pressure::{Pressure, Stalls};
use crate::sys::{Roots, disk, memory};

/// The media type of [`render`]'s text.
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Bounds of the histograms' buckets: powers of two from 64 µs to 67 s, which are bounds of the windows' buckets too, so
/// that nothing is guessed.
pub const BOUNDS: std::ops::RangeInclusive<u32> = 6..=26;

/// The text of a scrape.
pub(super) fn render(registry: &Registry) -> String {
    let roots = &registry.config().roots;
    let served = registry.all_active();
    let served: Vec<Served> = served.iter().map(|instance| Served::of(instance, roots)).collect();
    let mut text = String::with_capacity(2048 + 4096 * served.len());
    family(&mut text, "espalier_agent", "info", "", "The agent.");
    let _ = writeln!(text, "espalier_agent_info{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION"));
    machine(&mut text, roots);
    for (name, help, value) in [
        (
            "espalier_agent_disk_written_bytes",
            "Bytes that the agent gave to the disk, as the kernel counts them.",
            disk::written_bytes(roots),
        ),
        (
            "espalier_agent_state_written_bytes",
            "Bytes of journal, spool and small files that the agent wrote.",
            Some(disk::asked_bytes()),
        ),
    ] {
        if let Some(value) = value {
            family(&mut text, name, "counter", "bytes", help);
            let _ = writeln!(text, "{name}_total {value}");
        }
    }
    family(&mut text, "espalier_model", "info", "", "What is served.");
    for served in &served {
        let _ = writeln!(text, "espalier_model_info{{{}}} 1", served.info);
    }
    family(&mut text, "espalier_model_up", "gauge", "", "Whether the model's worker runs.");
    for served in &served {
        let _ = writeln!(text, "espalier_model_up{{{}}} {}", served.labels, u8::from(served.up));
    }
    for (name, help, of) in COUNTERS {
        family(&mut text, name, "counter", "", help);
        for served in &served {
            let _ = writeln!(text, "{name}_total{{{}}} {}", served.labels, of(&served.totals));
        }
    }
    for (name, help, of) in HISTOGRAMS {
        family(&mut text, name, "histogram", "seconds", help);
        for served in &served {
            histogram(&mut text, name, &served.labels, of(&served.totals));
        }
    }
    let pss = "espalier_worker_pss_bytes";
    family(&mut text, pss, "gauge", "bytes", "Proportional set size of the worker.");
    for served in &served {
        if let Some(bytes) = served.pss_bytes {
            let _ = writeln!(text, "{pss}{{{}}} {bytes}", served.labels);
        }
    }
    for (name, kind, unit, help, of) in USAGES {
        family(&mut text, name, kind, unit, help);
        let suffix = if kind == "counter" { "_total" } else { "" };
        for served in &served {
            if let Some(value) = served.usage.and_then(of) {
                let _ = writeln!(text, "{name}{suffix}{{{}}} {value}", served.labels);
            }
        }
    }
    text.push_str("# EOF\n");
    text
}

/// What `/metrics` tells of a served model, as numbers.
#[derive(Debug, Clone)]
pub struct ModelCounts {
    /// The model.
    pub model: String,
    /// The version that serves it.
    pub version: String,
    /// Its bundle.
    pub digest: String,
    /// The engine's name and version.
    pub engine: String,
    /// Whether its worker runs.
    pub up: bool,
    /// Requests that were accepted and have ended.
    pub requests: u64,
    /// Of these, without an answer and by no fault of the client.
    pub errors: u64,
    /// Turned away for want of room.
    pub rejected: u64,
    /// Time in the engine.
    pub compute: Histogram,
    /// Time in the queue.
    pub queue: Histogram,
    /// What the worker's control group holds of memory, where it has one.
    pub memory_bytes: Option<u64>,
    /// The most that it has held.
    pub memory_peak_bytes: Option<u64>,
}

/// The counts of everything that is served.
pub(super) fn counts(registry: &Registry) -> Vec<ModelCounts> {
    let of = |instance: &std::sync::Arc<Instance>| {
        let (identity, totals) = (&instance.identity, instance.stats.totals());
        let usage = instance.usage();
        ModelCounts {
            model: identity.model.clone(),
            version: identity.version.clone(),
            digest: identity.digest.clone(),
            engine: instance.interface.engine_version.clone(),
            up: instance.down().is_none(),
            requests: totals.requests,
            errors: totals.errors,
            rejected: totals.rejected,
            compute: totals.compute,
            queue: totals.queue,
            memory_bytes: usage.and_then(|usage| usage.current_bytes),
            memory_peak_bytes: usage.and_then(|usage| usage.peak_bytes),
        }
    };
    registry.all_active().iter().map(of).collect()
}

fn family(text: &mut String, name: &str, kind: &str, unit: &str, help: &str) {
    let _ = writeln!(text, "# TYPE {name} {kind}");
    if !unit.is_empty() {
        let _ = writeln!(text, "# UNIT {name} {unit}");
    }
    let _ = writeln!(text, "# HELP {name} {help}");
}

/// The agent's own memory, and for how long there was pressure on the machine's resources.
fn machine(text: &mut String, roots: &Roots) {
    let name = "espalier_agent_pss_bytes";
    family(text, name, "gauge", "bytes", "Proportional set size of the agent.");
    if let Some(bytes) = memory::pss_bytes(roots, std::process::id()) {
        let _ = writeln!(text, "{name} {bytes}");
    }
    let pressure = Pressure::of_machine(roots);
    let of = [("cpu", pressure.cpu), ("memory", pressure.memory), ("io", pressure.io)];
    let families: [(&str, &str, TimeOf); 2] = [
        (
            "espalier_pressure_waiting_seconds",
            "Time in which something on the machine waited for the resource.",
            |stalls| Some(stalls.some_us),
        ),
        (
            "espalier_pressure_stalled_seconds",
            "Time in which everything on the machine waited for the resource.",
            |stalls| stalls.full_us,
        ),
    ];
    for (name, help, us) in families {
        family(text, name, "counter", "seconds", help);
        for (resource, stalls) in of {
            if let Some(us) = stalls.and_then(us) {
                let time = seconds(us);
                let _ = writeln!(text, "{name}_total{{resource=\"{resource}\"}} {time}");
            }
        }
    }
}

type TimeOf = fn(Stalls) -> Option<u64>;
type UsageOf = fn(Usage) -> Option<u64>;

/// Of workers that have a control group of their own.
const USAGES: [(&str, &str, &str, &str, UsageOf); 5] = [
    (
        "espalier_worker_memory_bytes",
        "gauge",
        "bytes",
        "What the worker's control group holds of memory, cached files included.",
        |usage| usage.current_bytes,
    ),
    (
        "espalier_worker_memory_peak_bytes",
        "gauge",
        "bytes",
        "The most that it has held since the worker was started.",
        |usage| usage.peak_bytes,
    ),
    (
        "espalier_worker_memory_high_events",
        "counter",
        "",
        "How often the group was slowed down at its soft bound, since the worker was started.",
        |usage| usage.high_events,
    ),
    (
        "espalier_worker_memory_max_events",
        "counter",
        "",
        "How often the group reached its hard bound, since the worker was started.",
        |usage| usage.max_events,
    ),
    (
        "espalier_worker_oom_kills",
        "counter",
        "",
        "Workers that the kernel killed for want of memory.",
        |usage| usage.oom_kills,
    ),
];

type CounterOf = fn(&Totals) -> u64;
type HistogramOf = fn(&Totals) -> &Histogram;

const COUNTERS: [(&str, &str, CounterOf); 4] = [
    ("espalier_requests", "Requests that were accepted and have ended.", |t| t.requests),
    (
        "espalier_request_errors",
        "Requests that ended without an answer, by no fault of the client.",
        |t| t.errors,
    ),
    (
        "espalier_requests_rejected",
        "Requests that were turned away because there was no room.",
        |t| t.rejected,
    ),
    (
        "espalier_inference_runs",
        "Runs of the engine for live requests: fewer than requests where they are joined.",
        |t| t.runs,
    ),
];
const HISTOGRAMS: [(&str, &str, HistogramOf); 2] = [
    ("espalier_compute_seconds", "Time in the engine.", |t| &t.compute),
    ("espalier_queue_seconds", "Time in the queue.", |t| &t.queue),
];

/// A served model, as a scraper sees it.
struct Served {
    labels: String,
    info: String,
    up: bool,
    totals: Totals,
    pss_bytes: Option<u64>,
    usage: Option<Usage>,
}

impl Served {
    fn of(instance: &Instance, roots: &Roots) -> Self {
        let identity = &instance.identity;
        let labels = format!(
            "model=\"{}\",version=\"{}\"",
            escaped(&identity.model),
            escaped(&identity.version)
        );
        let info = format!(
            "{labels},digest=\"{}\",engine=\"{}\"",
            escaped(&identity.digest),
            escaped(&instance.interface.engine_version)
        );
        let up = instance.down().is_none();
        let totals = instance.stats.totals();
        let pss_bytes = instance.pid().and_then(|pid| memory::pss_bytes(roots, pid));
        Self { labels, info, up, totals, pss_bytes, usage: instance.usage() }
    }
}

fn histogram(text: &mut String, name: &str, labels: &str, durations: &Histogram) {
    let mut buckets = durations.buckets().peekable();
    let mut below = 0u64;
    for bound in BOUNDS.map(|power| 1u64 << power) {
        while let Some((_, _, count)) = buckets.next_if(|(low, _, _)| *low < bound) {
            below = below.saturating_add(count);
        }
        let _ = writeln!(text, "{name}_bucket{{{labels},le=\"{}\"}} {below}", seconds(bound));
    }
    let count = durations.count();
    let _ = writeln!(text, "{name}_bucket{{{labels},le=\"+Inf\"}} {count}");
    let _ = writeln!(text, "{name}_sum{{{labels}}} {}", seconds(durations.sum()));
    let _ = writeln!(text, "{name}_count{{{labels}}} {count}");
}

/// Exactly, with as many decimals as microseconds take.
fn seconds(us: u64) -> String {
    format!("{}.{:06}", us / 1_000_000, us % 1_000_000)
}

/// A label's value between its quotes.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::fixture::Machine;

    #[test]
    fn buckets_count_all_that_is_below_their_bound() {
        let mut durations = Histogram::default();
        for us in [0, 63, 64, 127, 128, 1_000_000, 200_000_000] {
            durations.record(us);
        }
        let mut text = String::new();
        histogram(&mut text, "t", "model=\"m\"", &durations);
        let count = |le: &str| {
            let line = format!("t_bucket{{model=\"m\",le=\"{le}\"}} ");
            text.lines().find_map(|l| l.strip_prefix(&line)).map(str::to_owned)
        };
        let found =
            ["0.000064", "0.000128", "0.000256", "1.048576", "67.108864", "+Inf"].map(count);
        assert_eq!(found.map(Option::unwrap_or_default), ["2", "4", "5", "6", "6", "7"]);
        assert!(text.contains("t_sum{model=\"m\"} 201.000382\n"), "{text}");
        assert!(text.ends_with("t_count{model=\"m\"} 7\n"));
    }

    #[test]
    fn pressure_is_told_in_seconds_and_left_out_where_the_kernel_has_none() {
        let machine = Machine::with(&[
            ("proc/pressure/memory", "some avg10=0.00 total=2500000\nfull avg10=0.00 total=1\n"),
            ("proc/pressure/cpu", "some avg10=0.00 total=7\n"),
        ]);
        let mut text = String::new();
        super::machine(&mut text, &machine.roots());
        for line in [
            "espalier_pressure_waiting_seconds_total{resource=\"memory\"} 2.500000\n",
            "espalier_pressure_stalled_seconds_total{resource=\"memory\"} 0.000001\n",
            "espalier_pressure_waiting_seconds_total{resource=\"cpu\"} 0.000007\n",
        ] {
            assert!(text.contains(line), "{text}");
        }
        assert!(!text.contains("resource=\"io\"") && !text.contains("pss_bytes 0"), "{text}");
    }

    #[test]
    fn labels_cannot_break_out_of_their_quotes() {
        assert_eq!(escaped("a\"b\\c\nd"), "a\\\"b\\\\c\\nd");
    }
}
