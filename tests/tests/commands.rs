//! What an administrator and an operator command: over a real broker, with real workers, and on the command line.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use e2e::files::{Damage, FileServer};
use e2e::offers::{deployed, variant};
use e2e::{agent_status, binary, quick_stack, until};
use edge_sim::live::Stack;
use edge_sim::watcher::Message;
use serde_json::{Value, json};
use wire::{CommandKind, CommandOutcome, InputSource, MeasureProfile, Priority};

const PATIENCE: Duration = Duration::from_secs(60);

fn agent(arguments: &[&str], state: &Path) -> Output {
    let mut command = Command::new(binary("espalier-agent"));
    command.args(arguments).arg("--state").arg(state).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What became of the last command.
fn audited(stack: &Stack) -> Vec<CommandOutcome> {
    let records = stack.watcher().records(0);
    let events = records.iter().filter_map(|record| match &record.message {
        Message::Audit(event) => Some(event.clone()),
        _ => None,
    });
    let events: Vec<_> = events.collect();
    let last = events.last().unwrap().id.clone();
    events.into_iter().filter(|event| event.id == last).map(|event| event.outcome).collect()
}

#[test]
fn a_candidate_is_measured_off_to_the_side_and_the_journal_is_read_meanwhile() {
    let folder = tempfile::tempdir().unwrap();
    let mut stack = Stack::start(quick_stack(&folder.path().join("run"))).unwrap();
    stack.deploy().unwrap();
    let committed = stack.wait_committed(PATIENCE).unwrap();
    let first = deployed(&stack, &committed.digest);
    let store = folder.path().join("bundles");
    std::fs::create_dir_all(&store).unwrap();
    let server = FileServer::start(&store);
    let candidate = variant(&first, &store, 1001, |_| {});
    let args = json!({
        "model": candidate.manifest.name, "digest": candidate.digest.to_string(),
        "url": server.url(&candidate.digest.hex()), "size_bytes": candidate.size_bytes(),
        "runs": 30, "warmup": 2,
    });
    let result = stack.command(CommandKind::Measure, args.clone(), PATIENCE).unwrap();
    assert_eq!(result.error, None);
    let profile: MeasureProfile = serde_json::from_value(result.data).unwrap();
    assert_eq!((profile.runs, profile.inputs, profile.fetched), (30, InputSource::Example, true));
    assert_eq!(profile.priority, Priority::Low);
    assert!(profile.p50_us > 0 && profile.p50_us <= profile.p99_us, "{profile:?}");
    assert!(profile.pss_peak_bytes >= profile.pss_loaded_bytes && profile.load_ms > 0);
    assert_eq!(audited(&stack), [CommandOutcome::Accepted, CommandOutcome::Done]);
    let scratch = stack.state_dir().join("measure").join(candidate.digest.hex());
    assert!(!scratch.exists(), "what was fetched stays");
    server.set_damage(Damage::FlippedBit);
    let result = stack.command(CommandKind::Measure, args, PATIENCE).unwrap();
    assert!(result.error.unwrap().contains("model.onnx"));
    assert_eq!(audited(&stack), [CommandOutcome::Accepted, CommandOutcome::Failed]);

    let level = json!({ "level": "debug", "for_ms": 60_000 });
    assert!(stack.command(CommandKind::LogLevel, level, PATIENCE).unwrap().ok);
    until("the status to say so", PATIENCE, || {
        let status = agent_status(&stack)?;
        (status["core"]["log_level"]["level"] == "debug").then_some(())
    });
    let log = std::fs::read_to_string(stack.agent_log()).unwrap();
    assert!(log.contains("DEBUG"), "nothing more is logged");

    let printed = agent(&["journal", "--json"], &stack.state_dir());
    assert!(printed.status.success(), "{}", text(&printed.stderr));
    let lines = text(&printed.stdout);
    let entries: Vec<Value> = lines.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let kinds: Vec<&str> = entries.iter().map(|e| e["record"]["kind"].as_str().unwrap()).collect();
    for kind in ["offered", "install", "measuring", "measured"] {
        assert!(kinds.contains(&kind), "{kinds:?}");
    }
    let last = agent(&["journal", "-n", "1"], &stack.state_dir());
    assert!(text(&last.stdout).contains("the measurement of command"), "{}", text(&last.stdout));
    let model = candidate.manifest.name.as_str();
    let own = agent(&["journal", "--model", model], &stack.state_dir());
    assert!(text(&own.stdout).contains(&format!("{model} #0: committed")), "{}", text(&own.stdout));
}

#[test]
fn a_damaged_journal_is_named_with_the_line_and_read_past_it() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("agent.toml");
    std::fs::write(&config, "[device]\nid = \"d\"\n").unwrap();
    let missing = agent(&["journal"], folder.path());
    assert_eq!(missing.status.code(), Some(1));
    assert!(
        text(&missing.stderr).contains("nothing was ever installed"),
        "{}",
        text(&missing.stderr)
    );
    // Two whole lines as an agent writes them, with a changed one in between.
    let line = |n: usize| {
        let sum = ["5bf67354", "b1d8b327", "14992159"][n - 1];
        let entry = format!("{{\"ts\":0,\"record\":{{\"kind\":\"told\",\"through\":{n}}}}}");
        format!("{{\"crc32c\":\"{sum}\",\"entry\":{entry}}}\n")
    };
    let journal = folder.path().join("journal");
    let damaged = line(2).replace("\"through\":2", "\"through\":7");
    std::fs::write(&journal, [line(1), damaged, line(3), "{\"crc".to_owned()].concat()).unwrap();
    let printed = agent(&["journal"], folder.path());
    assert_eq!(printed.status.code(), Some(1));
    let (out, errors) = (text(&printed.stdout), text(&printed.stderr));
    assert!(errors.contains(journal.to_str().unwrap()) && errors.contains("line 2"), "{errors}");
    assert!(errors.contains("checksum"), "{errors}");
    assert!(out.contains("up to 1 are told") && out.contains("up to 3 are told"), "{out}");
    assert!(out.contains("DAMAGED") && out.contains("(clock not set)"), "{out}");
    std::fs::write(&journal, [line(1), line(2)[..30].to_owned()].concat()).unwrap();
    let torn = agent(&["journal"], folder.path());
    assert!(torn.status.success(), "what is being written is not damaged");
}

#[test]
fn a_new_user_is_told_what_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("agent.toml");
    std::fs::write(&config, "[device]\nid = \"d\"\n").unwrap();
    let status = agent(&["status", "--config", config.to_str().unwrap()], folder.path());
    assert_eq!(status.status.code(), Some(1));
    assert!(text(&status.stderr).contains("is the agent running"), "{}", text(&status.stderr));
    let bench = agent(&["bench", "--config", config.to_str().unwrap()], folder.path());
    assert_eq!(bench.status.code(), Some(1));
    assert!(text(&bench.stderr).contains("active.json"), "{}", text(&bench.stderr));
}

#[test]
fn check_tells_of_configuration_engine_files_and_worker_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("agent.toml");
    let wrong = "[runtime]\nengine = \"ort\"\nort_library = \"/nowhere/libonnxruntime.so\"\n\
        [worker]\nprogram = \"/bin/true\"\n[mqtt]\nhost = \"h\"\n[mqtt.tls]\nca_file = \"/nowhere/ca.crt\"\n\
        [telemetry]\nwindow_ms = 0\n";
    std::fs::write(&config, wrong).unwrap();
    let mut check = Command::new(binary("espalier-agent"));
    let output = check.args(["check", "--json", "--config"]).arg(&config).output().unwrap();
    assert_eq!(output.status.code(), Some(64));
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    let problems = answer["problems"].as_array().unwrap();
    let keys: Vec<&str> = problems.iter().map(|p| p["key"].as_str().unwrap()).collect();
    for key in [
        "device.id",
        "runtime.ort_library",
        "worker.program",
        "mqtt.tls.ca_file",
        "telemetry.window_ms",
    ] {
        assert!(keys.contains(&key), "{keys:?}");
    }
}
