//! Commands that take their time or change the log, and what is told of every one.

use super::*;
use serde_json::{Value, json};
use wire::{
    CommandEvent, CommandOutcome, CommandResult, InputSource, MeasureEnd, MeasureProfile, Priority,
};

fn command(id: &str, kind: CommandKind, args: Value) -> Command {
    Command { header: header::<Command>(), id: id.into(), kind, expires_ms: 0, args }
}

fn measure(id: &str, n: u64) -> Command {
    let args = json!({
        "model": "m", "digest": digest(n), "url": "http://host/bundles/x", "size_bytes": 1000, "runs": 7,
    });
    command(id, CommandKind::Measure, args)
}

fn send(world: &mut World, command: Command) {
    world.feed(Event::Command { command, unix_ms: Some(1_000_000) });
}

fn results(world: &World) -> Vec<CommandResult> {
    let of = |report: &Report| match report {
        Report::Result(result) => Some(result.clone()),
        _ => None,
    };
    world.reports.iter().filter_map(of).collect()
}

fn audits(world: &World) -> Vec<CommandEvent> {
    let of = |report: &Report| match report {
        Report::Command(event) => Some(event.clone()),
        _ => None,
    };
    world.reports.iter().filter_map(of).collect()
}

fn outcomes(world: &World) -> Vec<CommandOutcome> {
    audits(world).into_iter().map(|event| event.outcome).collect()
}

/// The error of the last result.
fn error(world: &World) -> String {
    results(world).pop().unwrap().error.unwrap()
}

fn profile() -> Box<MeasureProfile> {
    Box::new(MeasureProfile {
        model: "m".into(),
        digest: digest(9),
        version: "1".into(),
        fetched: true,
        engine: "tract 0".into(),
        threads: 1,
        inputs: InputSource::Example,
        warmup: 1,
        runs: 7,
        end: MeasureEnd::Runs,
        p50_us: 1,
        p95_us: 2,
        p99_us: 3,
        max_us: 3,
        mean_us: 1.5,
        compute: Histogram::default(),
        load_ms: 5,
        pss_loaded_bytes: None,
        pss_steady_bytes: None,
        pss_peak_bytes: None,
        rss_peak_bytes: None,
        memory_limit_bytes: None,
        power_source: "none".into(),
        power_quality: Quality::None,
        power_mw: None,
        energy_per_inference_mj: None,
        priority: Priority::Low,
        cpu_share: None,
        arch: "x".into(),
        cpu: None,
        cpus: 1,
        governor: None,
        freq_khz: None,
        temperature_mc: None,
        throttled: false,
        steal_percent: None,
        load1: None,
    })
}

#[test]
fn a_measurement_is_begun_answered_and_told_as_begun_and_done() {
    let mut world = World::new();
    install(&mut world, 1);
    send(&mut world, measure("a", 9));
    assert_eq!(world.measuring.as_deref(), Some("a"));
    assert_eq!(world.core.status(world.now).measuring.unwrap().digest, digest(9));
    assert!(results(&world).is_empty());
    world.tick(500);
    world.feed(Event::Measured { id: "a".into(), outcome: Ok(profile()) });
    let result = results(&world).pop().unwrap();
    assert_eq!((result.ok, &result.data["p95_us"]), (true, &json!(2)));
    assert_eq!(outcomes(&world), [CommandOutcome::Accepted, CommandOutcome::Done]);
    let last = audits(&world).pop().unwrap();
    assert_eq!((last.topic.as_str(), last.elapsed_ms), ("dn/cmd/measure/a", 500));
    assert!(last.args_text.contains(&digest(9)) && world.told().measuring.is_none());
    world.feed(Event::Measured { id: "a".into(), outcome: Ok(profile()) });
    assert_eq!(results(&world).len(), 1, "answered twice");
    assert_eq!(active(&world), digest(1), "it never serves");
}

#[test]
fn a_measurement_that_may_not_begin_says_why() {
    let mut world = World::new();
    install(&mut world, 1);
    let mut refused = |id: &str, args: Value, why: &str| {
        send(&mut world, command(id, CommandKind::Measure, args));
        assert!(error(&world).contains(why), "{} does not say {why}", error(&world));
        assert!(world.measuring.is_none());
    };
    let good = json!({ "model": "m", "digest": digest(9), "url": "http://h/b", "size_bytes": 9 });
    let with = |key: &str, value: Value| {
        let mut args = good.clone();
        args[key] = value;
        args
    };
    refused("1", Value::Null, "args: ");
    refused("2", with("digest", json!("sha256:x")), "64 lower-case");
    refused("3", with("model", json!("a/b")), "cannot be part of a topic");
    refused("4", with("runs", json!(1_000_000)), "args.runs");
    refused("5", with("size_bytes", json!(1_u64 << 50)), "install.max_bundle_bytes");
    refused("6", json!({ "model": "m", "digest": digest(9) }), "args.url must say where");
    assert_eq!(outcomes(&world), [CommandOutcome::Refused; 6]);
    send(&mut world, measure("7", 9));
    send(&mut world, measure("8", 10));
    assert!(error(&world).contains("the measurement of command 7 is under way"));
    assert_eq!(world.measuring.as_deref(), Some("7"));
    world.measuring = None;
    world.feed(Event::Measured { id: "7".into(), outcome: Err("no".into()) });
    world.feed(Event::Offer(offer("m", 2, 2)));
    send(&mut world, measure("9", 9));
    assert!(error(&world).contains("an install of m is under way"));
}

#[test]
fn the_installed_bundle_is_measured_without_an_address() {
    let mut world = World::new();
    install(&mut world, 1);
    let args = json!({ "model": "m", "digest": digest(1) });
    send(&mut world, command("a", CommandKind::Measure, args));
    assert_eq!(world.measuring.as_deref(), Some("a"));
}

#[test]
fn what_downloads_wait_for_a_measurement_does_not_wait_for_but_says() {
    let mut world = World::new();
    install(&mut world, 1);
    let window = Some("22:00-06:00".parse().unwrap());
    world.core.settings.download = DownloadRules { window, pause_on_battery: true };
    let look =
        |minute, on_battery| Event::Conditions(Conditions { minute: Some(minute), on_battery });
    world.feed(look(720, false));
    send(&mut world, measure("1", 9));
    assert!(error(&world).contains("download.window"));
    send(
        &mut world,
        command("2", CommandKind::Measure, json!({ "model": "m", "digest": digest(1) })),
    );
    assert_eq!(world.measuring.as_deref(), Some("2"), "it needs no download");
    world.feed(look(720, true));
    assert!(world.measuring.is_none() && error(&world).contains("pause_on_battery"));
    send(
        &mut world,
        command("3", CommandKind::Measure, json!({ "model": "m", "digest": digest(1) })),
    );
    assert!(error(&world).contains("pause_on_battery"));
}

#[test]
fn a_measurement_ends_with_its_command_with_an_install_and_with_the_agent() {
    let mut world = World::new();
    install(&mut world, 1);
    let expiring = Command { expires_ms: 1_003_000, ..measure("1", 9) };
    send(&mut world, expiring);
    world.tick(2999);
    assert!(world.measuring.is_some());
    world.tick(1);
    assert!(world.measuring.is_none() && error(&world).contains("the command expired"));
    send(&mut world, measure("2", 9));
    world.feed(Event::Offer(offer("m", 2, 2)));
    assert!(world.measuring.is_none() && error(&world).contains("an offer was accepted"));
    assert_eq!(state(&world), Some(InstallState::Downloading));
    reach_probation(&mut world);
    (0..4).for_each(|_| world.window("m", FAST));
    send(&mut world, measure("3", 9));
    world.tick(3_600_000);
    assert!(error(&world).contains("MAX_MEASURE_MS"));
    send(&mut world, measure("4", 9));
    world.feed(Event::Shutdown);
    assert!(world.measuring.is_none() && error(&world).contains("the agent is ending"));
    let failed = outcomes(&world).iter().filter(|o| **o == CommandOutcome::Failed).count();
    assert_eq!(failed, 4);
    assert!(world.told().measuring.is_none());
}

#[test]
fn an_agent_that_was_stopped_while_it_measured_says_so_once_and_does_not_begin_again() {
    let mut world = World::new();
    install(&mut world, 1);
    send(&mut world, measure("1", 9));
    world.crash();
    assert!(world.measuring.is_none() && error(&world).contains("interrupted"));
    // The broker says again what was not acknowledged.
    send(&mut world, measure("1", 9));
    assert!(world.measuring.is_none());
    assert_eq!(results(&world).len(), 1);
    world.crash();
    assert_eq!(results(&world).len(), 1);
    send(&mut world, measure("2", 9));
    assert_eq!(world.measuring.as_deref(), Some("2"));
}

#[test]
fn a_log_level_holds_for_its_time_is_told_in_the_state_and_goes_back() {
    let mut world = World::new();
    world.feed(Event::Connected);
    let level = |world: &World| {
        let of = |report: &Report| match report {
            Report::State(state) => Some(state.log_level.clone()),
            _ => None,
        };
        world.reports.iter().rev().find_map(of).unwrap()
    };
    let set = |id: &str, args| command(id, CommandKind::LogLevel, args);
    send(
        &mut world,
        set("1", json!({ "level": "debug,espalier_agent::shell=trace", "for_ms": 5000 })),
    );
    assert_eq!(world.log_level.as_deref(), Some("debug,espalier_agent::shell=trace"));
    assert_eq!(level(&world), world.log_level);
    world.tick(4000);
    assert_eq!(world.core.status(world.now).log_level.unwrap().left_ms, 1000);
    send(&mut world, set("2", json!({ "level": "loud" })));
    assert!(error(&world).contains("neither a level"));
    assert_eq!(level(&world).as_deref(), Some("debug,espalier_agent::shell=trace"));
    world.tick(1000);
    assert_eq!((world.log_level.as_deref(), level(&world)), (None, None));
    send(&mut world, set("3", json!({ "level": "warn" })));
    send(&mut world, set("4", json!({ "reset": true })));
    assert_eq!((world.log_level.as_deref(), level(&world)), (None, None));
}

#[test]
fn every_command_is_told_with_its_sender_and_a_bad_one_is_answered_too() {
    let mut world = World::new();
    let mut ping = command("1", CommandKind::Ping, json!({ "text": "é".repeat(2000) }));
    ping.header = Header { ts: 7, boot_id: "console".into(), ..ping.header };
    send(&mut world, ping);
    let told = audits(&world).pop().unwrap();
    assert_eq!(
        (told.outcome, told.sender.as_str(), told.sent_ts),
        (CommandOutcome::Done, "console", 7)
    );
    assert!(told.args_text.len() <= 1024 && told.args_text.starts_with("{\"text\""));
    let bad =
        Event::BadCommand { kind: CommandKind::Rollback, id: "2".into(), reason: "no JSON".into() };
    world.feed(bad.clone());
    world.feed(bad);
    assert_eq!((error(&world), results(&world).len()), ("no JSON".to_owned(), 2));
    let told = audits(&world).pop().unwrap();
    assert_eq!((told.outcome, told.kind), (CommandOutcome::Refused, CommandKind::Rollback));
}
