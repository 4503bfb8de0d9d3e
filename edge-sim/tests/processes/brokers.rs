//! The brokers as real processes, seen through the watcher.

use std::path::Path;
use std::time::{Duration, Instant};

use edge_sim::broker::{Broker, BrokerKind};
use edge_sim::watcher::{Message, Watcher};
use wire::{DeviceState, Header, StateReport, Topics};

const ROOT: &str = "espalier/v1";
const PATIENCE: Duration = Duration::from_secs(30);

fn edge_sim() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_edge-sim"))
}

fn start(kind: BrokerKind, dir: &Path) -> Broker {
    Broker::start(kind, dir, edge_sim())
        .unwrap_or_else(|error| panic!("{error}; run through `cargo xtask test`"))
}

fn watch(broker: &Broker) -> Watcher {
    Watcher::start((broker.host(), broker.port()), ROOT, PATIENCE).unwrap()
}

fn publish(watcher: &Watcher, reason: &str) {
    let payload = wire::encode(&StateReport {
        header: Header::of::<StateReport>(1, 1, "boot"),
        state: DeviceState::Degraded,
        reason: Some(reason.to_owned()),
        log_level: None,
    });
    let topic = Topics::new(ROOT, "board-1").unwrap().state();
    watcher.publish(&topic, true, payload, PATIENCE).unwrap();
}

/// Waits for the report with this reason; true if the broker had retained it.
fn await_report(watcher: &Watcher, reason: &str) -> bool {
    let mut mark = 0;
    watcher
        .wait(&mut mark, Instant::now() + PATIENCE, |record| match &record.message {
            Message::State(report) if report.reason.as_deref() == Some(reason) => {
                Some(record.retained)
            }
            _ => None,
        })
        .unwrap_or_else(|| panic!("no report {reason:.20}"))
}

fn a_restart_is_survived(kind: BrokerKind) {
    let dir = tempfile::tempdir().unwrap();
    let mut broker = start(kind, dir.path());
    let watcher = watch(&broker);
    publish(&watcher, "before");
    assert!(!await_report(&watcher, "before"));
    let port = broker.port();
    broker.stop().unwrap();
    broker.resume().unwrap();
    assert_eq!(broker.port(), port);
    publish(&watcher, "after");
    await_report(&watcher, "after");
}

#[test]
fn the_watcher_survives_a_restart_of_the_embedded_broker() {
    a_restart_is_survived(BrokerKind::Embedded);
}

#[test]
fn the_watcher_survives_a_restart_of_mosquitto() {
    a_restart_is_survived(BrokerKind::Mosquitto);
}

#[test]
fn mosquitto_keeps_retained_messages_over_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut broker = start(BrokerKind::Mosquitto, dir.path());
    let watcher = watch(&broker);
    publish(&watcher, "kept");
    await_report(&watcher, "kept");
    drop(watcher);
    broker.stop().unwrap();
    broker.resume().unwrap();
    assert!(await_report(&watch(&broker), "kept"));
}

#[test]
fn the_embedded_broker_carries_the_largest_payload() {
    let dir = tempfile::tempdir().unwrap();
    let broker = start(BrokerKind::Embedded, dir.path());
    let watcher = watch(&broker);
    let long = "x".repeat(wire::MAX_PAYLOAD_BYTES - 200);
    publish(&watcher, &long);
    await_report(&watcher, &long);
}

#[test]
fn the_embedded_broker_refuses_a_port_that_is_taken() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = std::process::Command::new(edge_sim())
        .args(["broker", "--listen", &address])
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains(&address), "{text}");
}
