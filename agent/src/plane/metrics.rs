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
use crate::sys::{Roots, disk};

/// The media type of [`render`]'s text.
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Bounds of the histograms' buckets: powers of two from 64 µs to 67 s, which are bounds of the windows' buckets too, so
/// that nothing is guessed.
const BOUNDS: std::ops::RangeInclusive<u32> = 6..=26;

/// The text of a scrape.
pub(super) fn render(registry: &Registry) -> String {
    let served = registry.all_active();
    let served: Vec<Served> = served.iter().map(|instance| Served::of(instance)).collect();
    let mut text = String::with_capacity(1024 + 4096 * served.len());
    let family = |text: &mut String, name: &str, kind: &str, unit: &str, help: &str| {
        let _ = writeln!(text, "# TYPE {name} {kind}");
        if !unit.is_empty() {
            let _ = writeln!(text, "# UNIT {name} {unit}");
        }
        let _ = writeln!(text, "# HELP {name} {help}");
    };
    family(&mut text, "espalier_agent", "info", "", "The agent.");
    let _ = writeln!(text, "espalier_agent_info{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION"));
    for (name, help, value) in [
        (
            "espalier_agent_disk_written_bytes",
            "Bytes that the agent gave to the disk, as the kernel counts them.",
            disk::written_bytes(&Roots::default()),
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

type UsageOf = fn(Usage) -> Option<u64>;

/// Of workers that have a control group of their own.
const USAGES: [(&str, &str, &str, &str, UsageOf); 3] = [
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
        "espalier_worker_oom_kills",
        "counter",
        "",
        "Workers that the kernel killed for want of memory.",
        |usage| usage.oom_kills,
    ),
];

type CounterOf = fn(&Totals) -> u64;
type HistogramOf = fn(&Totals) -> &Histogram;

const COUNTERS: [(&str, &str, CounterOf); 3] = [
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
    usage: Option<Usage>,
}

impl Served {
    fn of(instance: &Instance) -> Self {
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
        Self { labels, info, up, totals, usage: instance.usage() }
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
    fn labels_cannot_break_out_of_their_quotes() {
        assert_eq!(escaped("a\"b\\c\nd"), "a\\\"b\\\\c\\nd");
    }
}
