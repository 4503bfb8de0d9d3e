//! Windows made coarser: several in a row as one, so that a device which was away for long tells less of each hour rather
//! than nothing of some.
//!
//! Sums stay sums and the histogram of compute times is the exact union. What a window holds one value of becomes the mean
//! weighted by length, the highest or the lowest, as each field says. The header is that of the last one.

use crate::budget::finite;
use crate::histogram::Histogram;
use crate::payload::{Header, InferWindow, PowerWindow, ResourceWindow, decode, try_encode};

/// A window of telemetry, whichever it is.
#[derive(Clone, Debug, PartialEq)]
pub enum Window {
    /// Of a model's requests.
    Infer(Box<InferWindow>),
    /// Of the device's resources.
    Resources(Box<ResourceWindow>),
    /// Of power.
    Power(Box<PowerWindow>),
}

impl Window {
    /// Reads a payload; none if it is no window.
    #[must_use]
    pub fn read(payload: &[u8]) -> Option<Self> {
        let infer = || decode(payload).ok().map(|w| Self::Infer(Box::new(w)));
        let resources = || decode(payload).ok().map(|w| Self::Resources(Box::new(w)));
        let power = || decode(payload).ok().map(|w| Self::Power(Box::new(w)));
        infer().or_else(resources).or_else(power)
    }

    /// The payload; none if it is no message, which no window that was read is.
    #[must_use]
    pub fn write(&self) -> Option<Vec<u8>> {
        match self {
            Self::Infer(window) => try_encode(window.as_ref()),
            Self::Resources(window) => try_encode(window.as_ref()),
            Self::Power(window) => try_encode(window.as_ref()),
        }
        .ok()
    }

    /// Takes the next window in, if both are of one subject and one run and fall into the same `span_ms` of Unix time (or,
    /// where there is no clock, if both together are no longer than that). Says whether it did.
    pub fn absorb(&mut self, next: &Self, span_ms: u64) -> bool {
        match (self, next) {
            (Self::Infer(a), Self::Infer(b)) => {
                let one = a.model == b.model && a.digest == b.digest;
                let near = adjacent(&a.header, &b.header, a.window_ms, b.window_ms, span_ms);
                one && near && absorb_infer(a, b)
            }
            (Self::Resources(a), Self::Resources(b)) => {
                let near = adjacent(&a.header, &b.header, a.window_ms, b.window_ms, span_ms);
                near && absorb_resources(a, b)
            }
            (Self::Power(a), Self::Power(b)) => {
                let one = a.source == b.source && a.quality == b.quality && a.model == b.model;
                let near = adjacent(&a.header, &b.header, a.window_ms, b.window_ms, span_ms);
                one && near && absorb_power(a, b)
            }
            _ => false,
        }
    }
}

fn adjacent(a: &Header, b: &Header, a_ms: u64, b_ms: u64, span_ms: u64) -> bool {
    let span_ms = span_ms.max(1);
    let together = match (a.ts, b.ts) {
        // Lengths are not exact: half a window more still counts as within.
        (0, 0) => a_ms.saturating_add(b_ms / 2) <= span_ms,
        (0, _) | (_, 0) => false,
        // A time stamp is the window's end, which belongs to the span before it.
        (a, b) => (a - 1) / span_ms == (b - 1) / span_ms,
    };
    together && a.boot_id == b.boot_id
}

fn absorb_infer(a: &mut InferWindow, b: &InferWindow) -> bool {
    a.header.clone_from(&b.header);
    a.windows = a.windows.saturating_add(b.windows);
    a.window_ms = a.window_ms.saturating_add(b.window_ms);
    a.requests = a.requests.saturating_add(b.requests);
    a.errors = a.errors.saturating_add(b.errors);
    a.rejected = a.rejected.saturating_add(b.rejected);
    a.compute.merge(&b.compute);
    let times: &Histogram = &a.compute;
    a.p50_us = times.quantile(0.5);
    a.p90_us = times.quantile(0.9);
    a.p95_us = times.quantile(0.95);
    a.p99_us = times.quantile(0.99);
    a.max_us = times.max();
    a.mean_us = times.mean();
    a.queue_p95_us = a.queue_p95_us.max(b.queue_p95_us);
    a.queue.merge(&b.queue);
    a.wait_us = sum(a.wait_us, b.wait_us);
    a.major_faults = sum(a.major_faults, b.major_faults);
    a.pss_bytes = a.pss_bytes.max(b.pss_bytes);
    a.group_memory_bytes = a.group_memory_bytes.max(b.group_memory_bytes);
    a.group_memory_peak_bytes = a.group_memory_peak_bytes.max(b.group_memory_peak_bytes);
    // Counts since a beginning: the later one holds the earlier one, unless there was a new beginning.
    a.group_memory_high_events = b.group_memory_high_events.or(a.group_memory_high_events);
    a.group_memory_max_events = b.group_memory_max_events.or(a.group_memory_max_events);
    a.group_oom_kills = b.group_oom_kills.or(a.group_oom_kills);
    if b.drift.is_some() {
        a.drift.clone_from(&b.drift);
    }
    true
}

fn absorb_resources(a: &mut ResourceWindow, b: &ResourceWindow) -> bool {
    let mean = |x, y| weighted(x, a.window_ms, y, b.window_ms);
    a.cpu_percent = mean(a.cpu_percent, b.cpu_percent);
    a.others_percent = mean(a.others_percent, b.others_percent);
    a.steal_percent = mean(a.steal_percent, b.steal_percent);
    a.cpu_pressure_percent = mean(a.cpu_pressure_percent, b.cpu_pressure_percent);
    a.memory_pressure_percent = mean(a.memory_pressure_percent, b.memory_pressure_percent);
    a.memory_stall_percent = mean(a.memory_stall_percent, b.memory_stall_percent);
    a.io_pressure_percent = mean(a.io_pressure_percent, b.io_pressure_percent);
    a.io_stall_percent = mean(a.io_stall_percent, b.io_stall_percent);
    a.group_cpu_pressure_percent = mean(a.group_cpu_pressure_percent, b.group_cpu_pressure_percent);
    a.group_memory_pressure_percent =
        mean(a.group_memory_pressure_percent, b.group_memory_pressure_percent);
    a.group_io_pressure_percent = mean(a.group_io_pressure_percent, b.group_io_pressure_percent);
    a.load1 = mean(a.load1, b.load1);
    a.header.clone_from(&b.header);
    a.windows = a.windows.saturating_add(b.windows);
    a.window_ms = a.window_ms.saturating_add(b.window_ms);
    a.agent_pss_bytes = a.agent_pss_bytes.max(b.agent_pss_bytes);
    a.workers_pss_bytes = a.workers_pss_bytes.max(b.workers_pss_bytes);
    a.memory_total_bytes = b.memory_total_bytes;
    a.memory_available_bytes = a.memory_available_bytes.min(b.memory_available_bytes);
    a.swap_in_pages = sum(a.swap_in_pages, b.swap_in_pages);
    a.major_faults = sum(a.major_faults, b.major_faults);
    a.group_memory_bytes = a.group_memory_bytes.max(b.group_memory_bytes);
    a.group_memory_peak_bytes = a.group_memory_peak_bytes.max(b.group_memory_peak_bytes);
    a.group_memory_high_events = b.group_memory_high_events.or(a.group_memory_high_events);
    a.group_memory_max_events = b.group_memory_max_events.or(a.group_memory_max_events);
    a.group_oom_kills = b.group_oom_kills.or(a.group_oom_kills);
    a.temperature_mc = a.temperature_mc.max(b.temperature_mc);
    a.freq_khz = lowest(a.freq_khz, b.freq_khz);
    a.throttled |= b.throttled;
    a.disk_written_bytes = sum(a.disk_written_bytes, b.disk_written_bytes);
    a.disk_written_day_bytes = b.disk_written_day_bytes.or(a.disk_written_day_bytes);
    true
}

fn absorb_power(a: &mut PowerWindow, b: &PowerWindow) -> bool {
    let mean = |x, y| weighted(x, a.window_ms, y, b.window_ms);
    // A mean is no further off than the worse of its parts; what is not there is not off.
    let worse = |x: Option<f64>, own: Option<f64>, y: Option<f64>, other: Option<f64>| match (x, y)
    {
        (Some(_), Some(_)) => Some(own?.max(other?)),
        (Some(_), None) => own,
        (None, _) => other,
    };
    a.power_error_mw = worse(a.power_mw, a.power_error_mw, b.power_mw, b.power_error_mw);
    let (own, other) = (a.energy_per_inference_mj, b.energy_per_inference_mj);
    a.energy_error_mj = worse(own, a.energy_error_mj, other, b.energy_error_mj);
    a.power_mw = mean(a.power_mw, b.power_mw);
    a.energy_per_inference_mj = mean(a.energy_per_inference_mj, b.energy_per_inference_mj);
    a.header.clone_from(&b.header);
    a.windows = a.windows.saturating_add(b.windows);
    a.window_ms = a.window_ms.saturating_add(b.window_ms);
    true
}

/// The mean of two values by their lengths; the one that is known where only one is.
#[allow(clippy::cast_precision_loss)]
fn weighted(x: Option<f64>, x_ms: u64, y: Option<f64>, y_ms: u64) -> Option<f64> {
    let (Some(a), Some(b)) = (x, y) else {
        return x.or(y);
    };
    let (m, n) = (x_ms.max(1) as f64, y_ms.max(1) as f64);
    finite(a * (m / (m + n)) + b * (n / (m + n)))
}

fn sum(x: Option<u64>, y: Option<u64>) -> Option<u64> {
    match (x, y) {
        (Some(a), Some(b)) => Some(a.saturating_add(b)),
        _ => x.or(y),
    }
}

fn lowest(x: Option<u64>, y: Option<u64>) -> Option<u64> {
    match (x, y) {
        (Some(a), Some(b)) => Some(a.min(b)),
        _ => x.or(y),
    }
}
