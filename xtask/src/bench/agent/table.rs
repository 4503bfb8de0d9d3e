//! The text of `docs/benchmarks/agent.md`.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use super::serving::{CONNECTIONS, Throughput};
use super::{Found, Idle};
use crate::bench::loop_bench::host;

/// Idle, without a model.
const GOAL_PSS_BYTES: f64 = 8e6;
/// Over the UNIX socket, at the median, with the tiny model.
const GOAL_OVERHEAD_US: f64 = 60.0;
/// Times MLServer's requests a second, with the tiny model.
const GOAL_TIMES: f64 = 10.0;
/// From start to ready, without a model.
const GOAL_READY: Duration = Duration::from_millis(200);

const HEAD: &str = "# The agent

Written by `cargo xtask bench agent`: one run on one machine, which other work may have shared. Programs are stripped
copies of the `release` profile, which tests and demo use (opt-level 2 in our crates, overflow checks, debug
assertions, no link-time optimisation). Configuration is the default, but for what names the device, its folders, the
engine, the two doors and the broker. One thread computes an inference. No other process of the same programs ran, so
that PSS shares with others only the system's libraries.
";

const MODELS: &str = "Models: `tiny`, two dense layers (16, 32, 4) of a few kB; PP-OCRv4's classifier of text direction \
(585 kB, one line of 48 x 192 pixels).";

pub(super) fn document(found: &Found) -> Result<String> {
    let mut text = format!("{HEAD}\nHost: {}\n\n{MODELS}\n\n", host());
    goals(&mut text, found)?;
    idle(&mut text, found)?;
    serving(&mut text, found)?;
    overhead(&mut text, found)?;
    throughput(&mut text, found)?;
    starts(&mut text, found)?;
    sizes(&mut text, found)?;
    Ok(text)
}

fn goals(text: &mut String, found: &Found) -> Result<()> {
    writeln!(text, "## Goals\n\n| goal | measured | |\n|---|---|---|")?;
    let pss = found.idle.first().context("nothing idle was measured")?.cost.pss_bytes as f64;
    goal(
        text,
        &format!("idle PSS, no model: at most {}", mb(GOAL_PSS_BYTES)),
        Some((mb(pss), pss <= GOAL_PSS_BYTES)),
    )?;
    for (engine, overhead) in found
        .overhead
        .iter()
        .filter(|o| o.what.starts_with("tiny"))
        .map(|o| (o.what.trim_start_matches("tiny, "), o.found["unix"]["over_p50_us"].as_f64()))
    {
        goal(
            text,
            &format!("overhead at p50, UNIX socket, {engine}: at most {GOAL_OVERHEAD_US:.0} µs"),
            overhead.map(|us| (format!("{us:.0} µs"), us <= GOAL_OVERHEAD_US)),
        )?;
    }
    let times = times_the_peer(found);
    goal(
        text,
        &format!(
            "tiny model, JSON, ONNX Runtime: {GOAL_TIMES:.0} times the faster MLServer's throughput"
        ),
        times.map(|times| (format!("{times:.1} times"), times >= GOAL_TIMES)),
    )?;
    let ready = found.starts.first().and_then(|(_, times)| middle(times));
    goal(
        text,
        &format!("ready without a model: within {} ms", GOAL_READY.as_millis()),
        ready.map(|ready| (ms(ready), ready <= GOAL_READY)),
    )?;
    writeln!(text)?;
    Ok(())
}

fn goal(text: &mut String, goal: &str, measured: Option<(String, bool)>) -> Result<()> {
    let (shown, verdict) = match measured {
        Some((shown, true)) => (shown, "met"),
        Some((shown, false)) => (shown, "**missed**"),
        None => ("not measured".to_owned(), "**not measured**"),
    };
    writeln!(text, "| {goal} | {shown} | {verdict} |")?;
    Ok(())
}

/// With the same engine, encoding and model: our throughput, of MLServer's best.
fn times_the_peer(found: &Found) -> Option<f64> {
    let is_tiny = |t: &&Throughput| t.model == "tiny" && t.encoding == "json";
    let peers = found.peer.iter().filter(is_tiny).map(|t| t.per_second);
    let ours = found.throughput.iter().filter(is_tiny).find(|t| t.server.contains("ONNX"))?;
    let best = peers.fold(0.0, f64::max);
    (best > 0.0).then(|| ours.per_second / best)
}

fn idle(text: &mut String, found: &Found) -> Result<()> {
    let window = found.lengths.idle;
    writeln!(
        text,
        "## Idle\n\nConnected to a real mosquitto; not one request. PSS is the median, over {} s after {} s of warm-up, \
         of the sum over agent and workers, every {} s: the method published for Greengrass nucleus lite 2.5 (14.8 MB \
         on x86-64, over 10 minutes after 5, every 10 s), shortened. Processor time is user and system time of the same \
         processes in that window, in steps of 10 ms. Bytes are the window's, scaled to a day: written is what the \
         kernel gave to the disk (`write_bytes`), sent is TCP payload through a counting relay, the first connection \
         not included.\n",
        window.length.as_secs(),
        window.warmup.as_secs(),
        window.every.as_secs(),
    )?;
    writeln!(
        text,
        "| | PSS | of that the agent | processor | written a day | spool and journal, in the window | sent a day | \
         received a day |\n|---|---|---|---|---|---|---|---|"
    )?;
    for Idle { what, cost, told_per_day, grown_bytes } in &found.idle {
        let (sent, received) = match told_per_day {
            Ok((sent, received)) => (mb(*sent), mb(*received)),
            Err(_) => ("not measured".to_owned(), "not measured".to_owned()),
        };
        writeln!(
            text,
            "| {what} | {} | {} | {:.2} % of a core | {} | {grown_bytes:+} B | {sent} | {received} |",
            mb(cost.pss_bytes as f64),
            mb(cost.own_pss_bytes as f64),
            cost.cpu_percent,
            mb(cost.written_per_day),
        )?;
    }
    if let Some(error) = found.idle.iter().find_map(|idle| idle.told_per_day.as_ref().err()) {
        writeln!(text, "\nWhat is sent was not measured: {}", plain(&format!("{error:#}")))?;
    }
    writeln!(text)?;
    Ok(())
}

fn serving(text: &mut String, found: &Found) -> Result<()> {
    writeln!(
        text,
        "## Serving\n\nMemory and processor time of agent and worker while {CONNECTIONS} connections ask without a pause \
         (HTTP, binary tensors), over {} s.\n\n| model, engine | PSS | of that the agent | processor |\n|---|---|---|---|",
        found.lengths.serving.length.as_secs()
    )?;
    for (what, cost) in &found.serving {
        writeln!(
            text,
            "| {what} | {} | {} | {:.0} % of a core |",
            mb(cost.pss_bytes as f64),
            mb(cost.own_pss_bytes as f64),
            cost.cpu_percent
        )?;
    }
    writeln!(text)?;
    Ok(())
}

fn overhead(text: &mut String, found: &Found) -> Result<()> {
    writeln!(
        text,
        "## Overhead\n\nThe same model in the same engine with the same options in the measuring process, and behind the \
         agent: one connection, kept alive, binary tensors, in {} rounds that take turns. The overhead at p50 is the \
         median of the rounds' differences of medians, at p99 the difference of the percentiles over all rounds.\n",
        found.lengths.rounds
    )?;
    writeln!(
        text,
        "| model, engine | in process, p50 / p99 | UNIX socket, p50 / p99 | overhead | HTTP on loopback, p50 / p99 | \
         overhead |\n|---|---|---|---|---|---|"
    )?;
    for measured in &found.overhead {
        let of = |way: &str| pair(&measured.found[way], "p50_us", "p99_us");
        let over = |way: &str| pair(&measured.found[way], "over_p50_us", "over_p99_us");
        writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} |",
            measured.what,
            of("in_process"),
            of("unix"),
            over("unix"),
            of("http"),
            over("http")
        )?;
    }
    writeln!(text)?;
    Ok(())
}

fn pair(of: &Value, first: &str, second: &str) -> String {
    let show =
        |key: &str| of[key].as_f64().map_or("not measured".to_owned(), |us| format!("{us:.1}"));
    format!("{} / {} µs", show(first), show(second))
}

fn throughput(text: &mut String, found: &Found) -> Result<()> {
    writeln!(
        text,
        "## Throughput\n\n{CONNECTIONS} connections, each of which asks as soon as its last answer is there, over HTTP on \
         loopback where nothing else is said; the program that asks shares the machine with what answers. MLServer is \
         PyPI `mlserver` 1.7.1 with ONNX Runtime 1.26.0 on one thread, which infers in its own process (0) or in one \
         beside it (1, its default). It takes no binary tensors over HTTP.\n"
    )?;
    writeln!(
        text,
        "| server | model | tensors | requests a second | p50 | p99 | PSS before |\n|---|---|---|---|---|---|---|"
    )?;
    for t in found.throughput.iter().chain(&found.peer) {
        writeln!(
            text,
            "| {} | {} | {} | {:.0} | {:.2} ms | {:.2} ms | {} |",
            t.server,
            t.model,
            t.encoding,
            t.per_second,
            t.p50_us / 1e3,
            t.p99_us / 1e3,
            t.pss_bytes.map_or(String::new(), |bytes| mb(bytes as f64)),
        )?;
    }
    for error in &found.peer_errors {
        writeln!(text, "\nMLServer was not measured: {}", plain(&format!("{error:#}")))?;
    }
    writeln!(text)?;
    Ok(())
}

fn starts(text: &mut String, found: &Found) -> Result<()> {
    writeln!(
        text,
        "## Start\n\nFrom the start of the process until it tells the service manager that it is ready: it listens, and \
         its model is loaded. The file cache is warm.\n\n| | median | slowest | starts |\n|---|---|---|---|"
    )?;
    for (what, times) in &found.starts {
        let shown = |time: Option<&Duration>| time.map_or("not measured".to_owned(), |t| ms(*t));
        let (median, slowest) = (shown(middle(times).as_ref()), shown(times.last()));
        writeln!(text, "| {what} | {median} | {slowest} | {} |", times.len())?;
    }
    writeln!(text)?;
    Ok(())
}

fn sizes(text: &mut String, found: &Found) -> Result<()> {
    writeln!(
        text,
        "## Size\n\nEngines compiled into the worker: tract, ort.\n\n| program | size |\n|---|---|"
    )?;
    for (name, bytes) in &found.sizes {
        writeln!(text, "| `{name}` | {} |", mb(*bytes as f64))?;
    }
    Ok(())
}

/// The middle one of sorted times.
fn middle(times: &[Duration]) -> Option<Duration> {
    times.get(times.len() / 2).copied()
}

fn mb(bytes: f64) -> String {
    format!("{:.2} MB", bytes / 1e6)
}

fn ms(time: Duration) -> String {
    format!("{:.0} ms", time.as_secs_f64() * 1e3)
}

/// Text that names no folder of this machine and ends no line.
fn plain(text: &str) -> String {
    let words = text.split_whitespace().map(|word| {
        let bare = word.trim_matches(['"', '\'', ',', '`', ':', '(', ')']);
        if bare.starts_with('/') { bare.rsplit('/').next().unwrap_or_default() } else { word }
    });
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::{Cost, QUICK};
    use super::*;

    fn answered(server: &str, per_second: f64) -> Throughput {
        Throughput {
            server: server.to_owned(),
            model: "tiny".to_owned(),
            encoding: "json".to_owned(),
            per_second,
            p50_us: 1.0,
            p99_us: 2.0,
            pss_bytes: None,
        }
    }

    fn found(peer: Vec<Throughput>, pss_bytes: u64) -> Found {
        let cost = Cost { pss_bytes, ..Cost::default() };
        let told_per_day = Err(anyhow::anyhow!("/usr/sbin/mosquitto is not there"));
        Found {
            lengths: QUICK,
            idle: vec![Idle { what: "no model".to_owned(), cost, told_per_day, grown_bytes: 0 }],
            serving: Vec::new(),
            starts: vec![("no model".to_owned(), vec![Duration::from_millis(250)])],
            overhead: Vec::new(),
            throughput: vec![answered("Espalier, ONNX Runtime", 5000.0)],
            peer,
            peer_errors: Vec::new(),
            sizes: vec![("espalier-agent", 1_000_000)],
        }
    }

    #[test]
    fn each_goal_is_said_to_be_met_or_missed_against_the_faster_of_the_peers() {
        let peers = vec![answered("MLServer, 0", 400.0), answered("MLServer, 1", 250.0)];
        let text = document(&found(peers, 7_900_000)).unwrap();
        assert!(text.contains("| idle PSS, no model: at most 8.00 MB | 7.90 MB | met |"), "{text}");
        assert!(text.contains("| 12.5 times | met |"), "{text}");
        assert!(text.contains("within 200 ms | 250 ms | **missed** |"), "{text}");
    }

    #[test]
    fn what_could_not_be_measured_is_named_and_is_no_number() {
        let mut found = found(Vec::new(), 8_100_000);
        found.peer_errors.push(anyhow::anyhow!("no such package"));
        let text = document(&found).unwrap();
        assert!(text.contains("MLServer was not measured: no such package"), "{text}");
        assert!(text.contains("| not measured | **not measured** |"), "{text}");
        assert!(text.contains("What is sent was not measured: mosquitto is not there"), "{text}");
        assert!(text.contains("8.10 MB | **missed**"), "{text}");
    }
}
