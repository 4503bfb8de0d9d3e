//! Everything that a device and its compressor say, over a real broker, is what the published interface says it is.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::time::Duration;

use e2e::files::FileServer;
use e2e::offers::{deployed, end_of, falsify, offer, variant};
use e2e::subscriber::{Interface, Subscriber};
use e2e::{configure, quick_stack, root, until};
use edge_sim::live::Stack;
use edge_sim::watcher::Message;
use serde_json::json;
use wire::{CommandKind, DropReason, InstallOutcome};

const PATIENCE: Duration = Duration::from_secs(60);

/// A model is deployed, replaced, a bad one is turned away, the new one is taken back, and a budget breaks. The board
/// throttles and the disk gives something else back than what was written.
fn live(stack: &mut Stack, folder: &std::path::Path) {
    stack.deploy().unwrap();
    let committed = stack.wait_committed(PATIENCE).unwrap();
    let first = deployed(stack, &committed.digest);
    let _client = stack.client("all").unwrap();
    let store = folder.join("bundles");
    std::fs::create_dir_all(&store).unwrap();
    let server = FileServer::start(&store);
    let bad = variant(&first, &store, 1001, |draft| falsify(&mut draft.selftest));
    offer(stack, &server, &bad, |_| {});
    let end = end_of(stack, &bad.digest.to_string(), PATIENCE);
    assert_eq!(end.outcome, InstallOutcome::Rejected);
    let good = variant(&first, &store, 1002, |_| {});
    offer(stack, &server, &good, |_| {});
    let end = end_of(stack, &good.digest.to_string(), PATIENCE);
    assert_eq!(end.outcome, InstallOutcome::Committed, "{end:?}");
    let model = stack.options().model.clone();
    for (kind, args) in [
        (CommandKind::Ping, json!({})),
        (CommandKind::Rollback, json!({ "model": model })),
        // What is not understood is answered as well.
        (CommandKind::SetBudget, json!({ "model": 7 })),
    ] {
        stack.command(kind, args, PATIENCE).unwrap();
    }
    let budget = format!("[budgets.{model}]\nlatency_p95_us = 1");
    let mut mark = stack.mark();
    configure(stack.options_mut(), &budget);
    stack.agent_reload().unwrap();
    let asked = |record: &edge_sim::watcher::Record| {
        matches!(record.message, Message::Request(_)).then_some(())
    };
    stack.wait_from(&mut mark, "a request", PATIENCE, asked).unwrap();
    throttle(stack);
    damage(stack);
}

/// A cooling device of the board slows the processor down, and ceases to.
fn throttle(stack: &mut Stack) {
    let device = stack.board().files().root().join("sys/class/thermal/cooling_device9");
    std::fs::create_dir_all(&device).unwrap();
    std::fs::write(device.join("type"), "cpufreq-cpu0\n").unwrap();
    let mut mark = stack.mark();
    for (state, throttled) in [("1\n", true), ("0\n", false)] {
        std::fs::write(device.join("cur_state"), state).unwrap();
        let told = |record: &edge_sim::watcher::Record| match &record.message {
            Message::Throttle(event) if event.throttled == throttled => Some(event.lasted_ms),
            _ => None,
        };
        let lasted_ms = stack.wait_from(&mut mark, "throttling", PATIENCE, told).unwrap();
        assert_eq!(lasted_ms.is_some(), !throttled);
    }
}

/// The agent is killed, and comes back to a spool that holds what nobody wrote.
fn damage(stack: &mut Stack) {
    stack.agent_kill9();
    let file = stack.state_dir().join("spool/events").join(format!("{:020}.seg", 0));
    std::fs::write(file, "no record").unwrap();
    let mut mark = stack.mark();
    stack.agent_start().unwrap();
    let told = |record: &edge_sim::watcher::Record| match &record.message {
        Message::SpoolDrop(event) => Some(event.clone()),
        _ => None,
    };
    let event = stack.wait_from(&mut mark, "a loss", PATIENCE, told).unwrap();
    assert_eq!((event.dropped_bytes, event.reason), (9, DropReason::Damaged));
}

#[test]
fn everything_said_is_what_the_published_interface_says() {
    let folder = tempfile::tempdir().unwrap();
    let mut stack = Stack::start(quick_stack(&folder.path().join("run"))).unwrap();
    let address = stack.broker_address();
    let (host, port) = address.rsplit_once(':').unwrap();
    let topics = stack.options().root.clone();
    let subscriber = Subscriber::start((host, port.parse().unwrap()), &topics, PATIENCE);
    live(&mut stack, folder.path());

    let interface = Interface::read(&root().join("crates/wire"));
    let wanted: BTreeSet<&str> = interface.names().collect();
    until("every kind of message", PATIENCE, || {
        let mut seen = BTreeSet::new();
        // An empty message deletes one that was kept, on any channel.
        for heard in subscriber.heard().iter().filter(|heard| !heard.payload.is_empty()) {
            let channel = interface.channel_of(&topics, heard);
            seen.insert(channel.unwrap_or_else(|error| panic!("{error}")));
        }
        let missing: Vec<_> = wanted.difference(&seen).collect();
        if missing.is_empty() { Some(()) } else { None }
    });
    // The last will, which the broker sends.
    stack.agent_kill9();
    let offline = format!("{topics}/d/{}/up/state", stack.options().device);
    until("the last will", PATIENCE, || {
        let heard = subscriber.heard();
        let last = heard.iter().rev().find(|heard| heard.topic == offline)?;
        interface.channel_of(&topics, last).unwrap_or_else(|error| panic!("{error}"));
        String::from_utf8_lossy(&last.payload).contains("offline").then_some(())
    });
}
