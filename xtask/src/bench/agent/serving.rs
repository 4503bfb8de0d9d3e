//! Load on a running server: what the way adds to an inference, and how many are answered.

use anyhow::{Context, Result};
use serde_json::Value;

use super::cost::{self, Cost};
use super::rig::{Agent, Places};
use super::{Found, Lengths};

/// Connections that ask at once.
pub(super) const CONNECTIONS: usize = 4;

/// A model in an engine, in the measuring process and behind the agent's two doors.
pub(super) struct Overhead {
    pub(super) what: String,
    /// As `agent-load overhead` printed it.
    pub(super) found: Value,
}

/// Requests answered in a second.
pub(super) struct Throughput {
    pub(super) server: String,
    pub(super) model: String,
    pub(super) encoding: String,
    pub(super) per_second: f64,
    pub(super) p50_us: f64,
    pub(super) p99_us: f64,
    /// Of all its processes before the load, where it was measured.
    pub(super) pss_bytes: Option<u64>,
}

pub(super) fn engine_title(engine: &str) -> &'static str {
    if engine == "ort" { "ONNX Runtime" } else { "tract" }
}

pub(super) fn title(places: &Places, model: &str) -> &'static str {
    if model == places.tiny { "tiny" } else { "PP-OCRv4 cls" }
}

pub(super) fn measure(
    places: &Places,
    agent: &Agent,
    engine: &str,
    model: &str,
    found: &mut Found,
) -> Result<()> {
    let Lengths { rounds, runs, load_seconds, .. } = found.lengths;
    let [http, unix] = agent.doors()?;
    let what = format!("{}, {}", title(places, model), engine_title(engine));
    // A round of a model that takes milliseconds need not be as long.
    let runs = if model == places.tiny { runs } else { runs / 10 };
    let overhead = places.ask_load(|load| {
        load.args(["overhead", "--model", model, "--engine", engine, "--ort-library"]);
        load.arg(&places.onnxruntime);
        load.args(["--rounds", &rounds.to_string(), "--runs", &runs.to_string()]);
        load.args([&unix, &http]);
    })?;
    found.overhead.push(Overhead { what: what.clone(), found: overhead });
    let server = format!("Espalier, {}", engine_title(engine));
    for (at, encoding) in [(&http, "json"), (&http, "binary"), (&unix, "binary")] {
        let way = if at == &unix { ", UNIX socket" } else { "" };
        let server = format!("{server}{way}");
        let measured = throughput(places, &server, at, model, encoding, load_seconds)?;
        found.throughput.push(measured);
    }
    found.serving.push((what, under_load(places, agent, model, &http, found.lengths)?));
    Ok(())
}

/// What the agent takes while it is asked over all connections.
fn under_load(
    places: &Places,
    agent: &Agent,
    model: &str,
    at: &str,
    lengths: Lengths,
) -> Result<Cost> {
    let window = lengths.serving;
    let seconds = (window.warmup + window.length).as_secs_f64() + 1.0;
    std::thread::scope(|scope| {
        let load = scope.spawn(|| throughput(places, "", at, model, "binary", seconds));
        let cost = cost::over(agent.running.pid(), window);
        load.join().map_err(|_| anyhow::anyhow!("the thread that makes load panicked"))??;
        cost
    })
}

pub(super) fn throughput(
    places: &Places,
    server: &str,
    at: &str,
    model: &str,
    encoding: &str,
    seconds: f64,
) -> Result<Throughput> {
    let found = places.ask_load(|load| {
        load.args(["throughput", "--model", model, "--encoding", encoding]);
        load.args(["--connections", &CONNECTIONS.to_string()]);
        load.args(["--seconds", &seconds.to_string(), at]);
    })?;
    let number =
        |key: &str| found[key].as_f64().with_context(|| format!("agent-load printed no {key}"));
    Ok(Throughput {
        server: server.to_owned(),
        model: title(places, model).to_owned(),
        encoding: encoding.to_owned(),
        per_second: number("per_second")?,
        p50_us: number("p50_us")?,
        p99_us: number("p99_us")?,
        pss_bytes: None,
    })
}
