//! Merged windows say of the whole what the windows said of its parts.
#![allow(clippy::unwrap_used, missing_docs)]

use proptest::collection::vec;
use proptest::prelude::*;
use wire::{
    Header, Histogram, InferWindow, Payload, PowerWindow, Quality, ResourceWindow, Window, encode,
};

const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
const SPAN_MS: u64 = 60_000;

fn header<P: Payload>(ts: u64) -> Header {
    Header::of::<P>(ts, 1, "b")
}

fn infer(ts: u64, times: &[u64], queue_p95_us: Option<u64>) -> InferWindow {
    let mut compute = Histogram::default();
    times.iter().for_each(|us| compute.record(*us));
    InferWindow {
        header: header::<InferWindow>(ts),
        model: "m".into(),
        digest: DIGEST.into(),
        window_ms: 10_000,
        windows: 1,
        requests: times.len() as u64,
        errors: 1,
        rejected: 2,
        p50_us: compute.quantile(0.5),
        p90_us: compute.quantile(0.9),
        p95_us: compute.quantile(0.95),
        p99_us: compute.quantile(0.99),
        max_us: compute.max(),
        mean_us: compute.mean(),
        queue_p95_us,
        wait_us: Some(5),
        major_faults: None,
        pss_bytes: None,
        group_memory_bytes: None,
        group_memory_peak_bytes: None,
        group_memory_high_events: None,
        group_memory_max_events: None,
        group_oom_kills: None,
        queue: compute.clone(),
        compute,
        drift: None,
    }
}

fn resources(ts: u64, cpu_percent: Option<f64>, temperature_mc: i64) -> ResourceWindow {
    ResourceWindow {
        header: header::<ResourceWindow>(ts),
        window_ms: 10_000,
        windows: 1,
        agent_pss_bytes: Some(1),
        workers_pss_bytes: None,
        memory_total_bytes: 10,
        memory_available_bytes: u64::try_from(temperature_mc).unwrap(),
        swap_in_pages: Some(3),
        major_faults: Some(2),
        others_percent: cpu_percent,
        cpu_percent,
        steal_percent: None,
        load1: None,
        temperature_mc: Some(temperature_mc),
        freq_khz: Some(u64::try_from(temperature_mc).unwrap()),
        throttled: temperature_mc > 70,
        cpu_pressure_percent: cpu_percent,
        memory_pressure_percent: cpu_percent,
        memory_stall_percent: cpu_percent,
        io_pressure_percent: cpu_percent,
        io_stall_percent: cpu_percent,
        group_cpu_pressure_percent: cpu_percent,
        group_memory_pressure_percent: cpu_percent,
        group_io_pressure_percent: cpu_percent,
        group_memory_bytes: u64::try_from(temperature_mc).ok(),
        group_memory_peak_bytes: u64::try_from(temperature_mc).ok(),
        group_memory_high_events: Some(0),
        group_memory_max_events: Some(0),
        group_oom_kills: Some(0),
        disk_written_bytes: Some(4096),
        disk_written_day_bytes: Some(u64::try_from(temperature_mc).unwrap()),
    }
}

/// As it came over the wire.
fn window<P: Payload>(payload: &P) -> Window {
    Window::read(&encode(payload)).unwrap()
}

proptest! {
    #[test]
    fn a_merged_window_is_that_of_all_requests(parts in vec((vec(0u64..1_000_000, 0..20), proptest::option::of(0u64..99)), 1..6)) {
        let mut merged = window(&infer(1, &parts[0].0, parts[0].1));
        for (n, (times, queue)) in parts.iter().enumerate().skip(1) {
            let next = window(&infer(1 + n as u64 * 10_000, times, *queue));
            prop_assert!(merged.absorb(&next, SPAN_MS));
        }
        let all: Vec<u64> = parts.iter().flat_map(|(times, _)| times.clone()).collect();
        let count = parts.len() as u64;
        let wanted = InferWindow {
            window_ms: 10_000 * count,
            windows: count,
            errors: count,
            rejected: 2 * count,
            wait_us: Some(5 * count),
            ..infer(1 + (count - 1) * 10_000, &all, parts.iter().filter_map(|(_, queue)| *queue).max())
        };
        prop_assert_eq!(&merged, &Window::Infer(Box::new(wanted)));
        // What is merged can be said, and merged again.
        prop_assert_eq!(Window::read(&merged.write().unwrap()), Some(merged));
    }
}

#[test]
fn what_a_window_holds_one_value_of_is_a_mean_a_bound_or_a_sum() {
    let mut merged = window(&resources(10_000, Some(10.0), 60));
    assert!(merged.absorb(&window(&resources(20_000, None, 80)), SPAN_MS));
    assert!(merged.absorb(&window(&resources(30_000, Some(40.0), 50)), SPAN_MS));
    let Window::Resources(merged) = merged else { panic!() };
    assert_eq!((merged.window_ms, merged.windows, merged.header.ts), (30_000, 3, 30_000));
    assert_eq!(merged.cpu_percent, Some(20.0), "10 over 20 s, 40 over 10 s");
    assert_eq!((merged.io_stall_percent, merged.others_percent), (Some(20.0), Some(20.0)));
    assert_eq!((merged.major_faults, merged.group_memory_peak_bytes), (Some(6), Some(80)));
    assert_eq!((merged.temperature_mc, merged.throttled), (Some(80), true));
    assert_eq!((merged.memory_available_bytes, merged.freq_khz), (50, Some(50)));
    assert_eq!((merged.swap_in_pages, merged.disk_written_bytes), (Some(9), Some(12_288)));
    assert_eq!(merged.disk_written_day_bytes, Some(50), "as it stood at the end");
}

#[test]
fn power_is_merged_only_where_it_comes_from_the_same_place() {
    let power = |ts: u64, power_mw: f64, quality: Quality| PowerWindow {
        header: header::<PowerWindow>(ts),
        window_ms: 10_000,
        windows: 1,
        source: "s".into(),
        quality,
        power_mw: Some(power_mw),
        power_error_mw: Some(power_mw / 10.0),
        energy_per_inference_mj: None,
        energy_error_mj: None,
        model: None,
    };
    let mut merged = window(&power(10_000, 1000.0, Quality::Measured));
    assert!(merged.absorb(&window(&power(20_000, 2000.0, Quality::Measured)), SPAN_MS));
    assert!(!merged.absorb(&window(&power(30_000, 9000.0, Quality::Modelled)), SPAN_MS));
    let Window::Power(merged) = merged else { panic!() };
    assert_eq!((merged.power_mw, merged.windows), (Some(1500.0), 2));
    assert_eq!((merged.power_error_mw, merged.energy_error_mj), (Some(200.0), None));
}

#[test]
fn only_windows_of_one_span_one_run_and_one_bundle_are_merged() {
    let first = window(&infer(60_000, &[1], None));
    let absorbs = |next: InferWindow| first.clone().absorb(&window(&next), SPAN_MS);
    assert!(absorbs(infer(10_000, &[1], None)));
    assert!(
        !absorbs(infer(60_001, &[1], None)),
        "a window that ends at the full minute is of the one before"
    );
    assert!(!absorbs(infer(0, &[1], None)), "without a clock");
    let mut other = infer(50_000, &[1], None);
    other.header.boot_id = "c".into();
    assert!(!absorbs(other.clone()));
    other.header.boot_id = "b".into();
    assert!(absorbs(other.clone()));
    other.digest = DIGEST.replace('e', "f");
    assert!(!absorbs(other));
    assert!(!first.clone().absorb(&window(&resources(60_000, None, 1)), SPAN_MS));
    // Without a clock, by length alone.
    let mut unset = window(&infer(0, &[1], None));
    let absorbed =
        (0..20).filter(|_| unset.absorb(&window(&infer(0, &[1], None)), SPAN_MS)).count();
    assert_eq!(absorbed, 5);
}

#[test]
fn what_is_no_window_is_none() {
    assert_eq!(Window::read(b"{}"), None);
    assert_eq!(Window::read(b""), None);
    let drop = wire::SpoolDrop {
        header: header::<wire::SpoolDrop>(1),
        dropped_records: 1,
        dropped_bytes: 1,
        dropped_events: 0,
        reason: wire::DropReason::Age,
    };
    assert_eq!(Window::read(&encode(&drop)), None);
}
