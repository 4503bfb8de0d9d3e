//! A month without a network, at the default configuration and the default length of a window.

use std::collections::BTreeMap;

use wire::{Header, Histogram, InferWindow, ResourceWindow, Window};

use super::*;

const WINDOW_MS: u64 = 10_000;
const HOUR_MS: u64 = 3_600_000;
const MONTH_MS: u64 = 30 * 24 * HOUR_MS;
/// Some time in 2026, the beginning of an hour.
const BEGAN_MS: u64 = 1_795_000_000_000 / HOUR_MS * HOUR_MS;
const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

pub(super) fn infer(ts: u64, seq: u64, window_ms: u64, times: &[u64]) -> InferWindow {
    let mut compute = Histogram::default();
    times.iter().for_each(|us| compute.record(*us));
    InferWindow {
        header: Header::of::<InferWindow>(ts, seq, "b007"),
        model: "magika".into(),
        digest: DIGEST.into(),
        window_ms,
        windows: 1,
        requests: times.len() as u64,
        errors: 0,
        rejected: 0,
        p50_us: compute.quantile(0.5),
        p90_us: compute.quantile(0.9),
        p95_us: compute.quantile(0.95),
        p99_us: compute.quantile(0.99),
        max_us: compute.max(),
        mean_us: compute.mean(),
        queue_p95_us: Some(40),
        wait_us: Some(1200),
        major_faults: Some(0),
        pss_bytes: Some(26_000_000),
        group_memory_bytes: Some(31_000_000),
        group_memory_peak_bytes: Some(33_000_000),
        group_memory_high_events: None,
        group_memory_max_events: None,
        group_oom_kills: None,
        queue: compute.clone(),
        compute,
        drift: None,
    }
}

fn resources(ts: u64, seq: u64) -> ResourceWindow {
    ResourceWindow {
        header: Header::of::<ResourceWindow>(ts, seq, "b007"),
        window_ms: WINDOW_MS,
        windows: 1,
        agent_pss_bytes: Some(9_000_000 + seq % 7 * 4096),
        workers_pss_bytes: Some(26_000_000),
        memory_total_bytes: 4 << 30,
        memory_available_bytes: 3 << 30,
        swap_in_pages: Some(1),
        major_faults: Some(0),
        others_percent: Some(4.25),
        cpu_percent: Some(12.5),
        steal_percent: Some(0.0),
        load1: Some(0.37),
        temperature_mc: Some(54_500),
        freq_khz: Some(1_500_000),
        throttled: false,
        cpu_pressure_percent: Some(0.25),
        memory_pressure_percent: Some(0.25),
        memory_stall_percent: Some(0.25),
        io_pressure_percent: Some(0.25),
        io_stall_percent: Some(0.25),
        group_cpu_pressure_percent: Some(0.25),
        group_memory_pressure_percent: Some(0.25),
        group_io_pressure_percent: Some(0.25),
        group_memory_bytes: Some(41_000_000),
        group_memory_peak_bytes: Some(41_000_000),
        group_memory_high_events: Some(0),
        group_memory_max_events: Some(0),
        group_oom_kills: Some(0),
        disk_written_bytes: Some(0),
        disk_written_day_bytes: Some(1_000_000),
    }
}

/// What the spool holds, by hour: milliseconds of infer windows, requests in them, pages of resource windows.
#[derive(Debug, Default)]
struct Hours {
    infer_ms: BTreeMap<u64, u64>,
    requests: u64,
    pages: u64,
    events: Vec<String>,
    /// The latest window that was merged.
    merged_until: u64,
    bytes: u64,
    messages: u64,
}

impl Hours {
    fn take(&mut self, message: &Message) {
        self.messages += 1;
        self.bytes += record::size(&message.topic, &message.payload) as u64;
        match Window::read(&message.payload) {
            Some(Window::Infer(window)) => {
                let hour = (window.header.ts - 1) / HOUR_MS;
                *self.infer_ms.entry(hour).or_default() += window.window_ms;
                self.requests += window.requests;
                assert_eq!(window.requests, window.compute.count());
                assert_eq!(window.windows * WINDOW_MS, window.window_ms);
                if window.windows > 1 {
                    self.merged_until = self.merged_until.max(window.header.ts);
                }
            }
            Some(Window::Resources(window)) => self.pages += window.swap_in_pages.unwrap(),
            Some(Window::Power(_)) => panic!("none was put in"),
            None => self.events.push(message.topic.clone()),
        }
    }
}

#[test]
fn a_month_without_a_network_fits_and_comes_out_whole_behind_what_is_new() {
    let dir = scratch();
    let mut spool = Spool::open(dir.path(), SpoolConfig::default()).unwrap();
    let start = Instant::now();
    let moment =
        |ms: u64| Moment { at: start + Duration::from_millis(ms), unix_ms: Some(BEGAN_MS + ms) };
    let (mut seq, mut requests, mut events) = (0, 0, Vec::new());
    for ms in (WINDOW_MS..=MONTH_MS).step_by(usize::try_from(WINDOW_MS).unwrap()) {
        seq += 1;
        let ts = BEGAN_MS + ms;
        let times: Vec<u64> = (0..seq % 5).map(|n| 3000 + seq % 1000 + n * 17).collect();
        requests += times.len() as u64;
        let window = wire::encode(&infer(ts, seq, WINDOW_MS, &times));
        spool.push(Class::Telemetry, moment(ms), "m/infer/magika", &window).unwrap();
        let window = wire::encode(&resources(ts, seq));
        spool.push(Class::Telemetry, moment(ms), "m/res", &window).unwrap();
        if seq % 6000 == 0 {
            for class in [Class::Urgent, Class::Event] {
                let topic = format!("e/{class:?}/{seq}");
                spool.push(class, moment(ms), &topic, b"{}").unwrap();
                events.push(topic);
            }
        }
        spool.tick(moment(ms)).unwrap();
        assert!(spool.fill().bytes <= spool.fill().max_bytes);
    }
    let fill = spool.fill();
    assert_eq!((fill.dropped_records, lost(&mut spool).len()), (0, 0), "{fill:?}");
    assert!(fill.merged_records > 0, "it was full on the way");
    eprintln!("{fill:?}");
    drop(spool);

    // What was in memory by then is gone with the power; that is less than an interval.
    let mut spool = Spool::open(dir.path(), SpoolConfig::default()).unwrap();
    spool.connected();
    let live = wire::encode(&infer(BEGAN_MS + MONTH_MS + WINDOW_MS, 1, WINDOW_MS, &[]));
    spool.push(Class::Telemetry, moment(MONTH_MS), "m/infer/magika", &live).unwrap();
    let first = spool.take_unsent(moment(MONTH_MS).at).unwrap().unwrap();
    assert_eq!(first.payload, live, "what is new goes first");
    spool.acknowledge(first.id).unwrap();

    let mut hours = Hours::default();
    let drain = |spool: &mut Spool, ms: u64, hours: &mut Hours| {
        while let Some(message) = spool.take_unsent(moment(ms).at).unwrap() {
            hours.take(&message);
            spool.acknowledge(message.id).unwrap();
        }
    };
    let rate = SpoolConfig::default().backlog_bytes_per_s;
    for second in 0..60 {
        drain(&mut spool, MONTH_MS + second * 1000, &mut hours);
    }
    assert_eq!(hours.events.len(), events.len(), "events go before telemetry");
    let most = 59 * rate + (64 << 10) + 4096;
    assert!((59 * rate..=most).contains(&hours.bytes), "{} bytes in a minute", hours.bytes);
    let mut second = 60;
    while spool.fill().records > 0 {
        drain(&mut spool, MONTH_MS + second * 1000, &mut hours);
        second += 1;
    }
    eprintln!("{} messages, {} bytes in {second} s", hours.messages, hours.bytes);

    let interval_ms = u64::try_from(SpoolConfig::default().interval.as_millis()).unwrap();
    let lost_windows = interval_ms / WINDOW_MS + 1;
    hours.events.sort();
    events.sort();
    assert_eq!(hours.events, events);
    assert!((requests - lost_windows * 5..=requests).contains(&hours.requests));
    let windows = MONTH_MS / WINDOW_MS;
    assert!((windows - lost_windows..=windows).contains(&hours.pages), "{}", hours.pages);
    assert_eq!(hours.infer_ms.len(), 30 * 24);
    let whole = hours.infer_ms.iter().filter(|(_, ms)| **ms == HOUR_MS).count();
    assert!(whole >= 30 * 24 - 1, "{whole} hours are whole");
    let fine = (BEGAN_MS + MONTH_MS).saturating_sub(hours.merged_until);
    assert!(fine > 6 * HOUR_MS, "the last {fine} ms are as fine as they were");
}
