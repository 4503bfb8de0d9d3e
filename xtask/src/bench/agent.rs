//! The agent: what it takes of a device while nothing is asked of it and while it serves, what it adds to an
//! inference, and how many requests it answers, beside MLServer with the same model and the same load.

mod child;
mod cost;
mod others;
mod relay;
mod rig;
mod serving;
mod table;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;

use crate::assets::{self, AgentBenchAssets};
use crate::{build, paths, process};
use cost::{Cost, Window};
use rig::{Agent, Places, Wanted};
use serving::{Overhead, Throughput};

/// Both engines, as the agent's configuration names them.
const ENGINES: [&str; 2] = ["tract", "ort"];
/// The broker's part, or MLServer's, failed; what is left of the table was measured.
const EXIT_BROKER: u8 = 3;
const EXIT_PEER: u8 = 4;

#[derive(Args)]
pub(crate) struct AgentArgs {
    /// Short windows, to see that everything works; no file is written
    #[arg(long)]
    quick: bool,
}

/// How long everything is measured.
#[derive(Debug, Clone, Copy)]
struct Lengths {
    idle: Window,
    serving: Window,
    rounds: usize,
    runs: usize,
    load_seconds: f64,
    starts: usize,
}

const fn window(warmup_s: u64, length_s: u64, every_s: u64) -> Window {
    let seconds = Duration::from_secs;
    Window { warmup: seconds(warmup_s), length: seconds(length_s), every: seconds(every_s) }
}

const FULL: Lengths = Lengths {
    idle: window(20, 60, 2),
    serving: window(2, 10, 1),
    rounds: 40,
    runs: 250,
    load_seconds: 5.0,
    starts: 10,
};

const QUICK: Lengths = Lengths {
    idle: window(2, 6, 1),
    serving: window(1, 3, 1),
    rounds: 4,
    runs: 100,
    load_seconds: 1.0,
    starts: 3,
};

/// One engine's idle agent.
struct Idle {
    what: String,
    cost: Cost,
    /// Bytes sent and received a day, headers of TCP and IP not among them; why not where there is no broker.
    told_per_day: Result<(f64, f64)>,
    /// What spool and journal grew by in the window.
    grown_bytes: i64,
}

/// Everything that was measured.
struct Found {
    lengths: Lengths,
    idle: Vec<Idle>,
    serving: Vec<(String, Cost)>,
    starts: Vec<(String, Vec<Duration>)>,
    overhead: Vec<Overhead>,
    throughput: Vec<Throughput>,
    peer: Vec<Throughput>,
    /// What kept MLServer from being measured, or from being measured in one of its ways.
    peer_errors: Vec<anyhow::Error>,
    sizes: Vec<(&'static str, u64)>,
}

pub(super) fn run(args: &AgentArgs) -> Result<ExitCode> {
    let lengths = if args.quick { QUICK } else { FULL };
    let needs = assets::for_agent_bench()?;
    let built = build::binaries()?;
    let (places, sizes) = places(&built, &needs)?;
    let found = measure(&places, &needs, lengths, sizes)?;
    let text = table::document(&found)?;
    println!("{text}");
    if !args.quick {
        let to = paths::root().join("docs/benchmarks/agent.md");
        fs::write(&to, &text).with_context(|| format!("cannot write {}", to.display()))?;
        eprintln!("written to {}", to.display());
    }
    Ok(exit_code(&found))
}

fn exit_code(found: &Found) -> ExitCode {
    if let Some(error) = found.idle.iter().find_map(|idle| idle.told_per_day.as_ref().err()) {
        eprintln!("error: what the agent sends was not measured: {error:#}");
        return ExitCode::from(EXIT_BROKER);
    }
    if !found.peer_errors.is_empty() {
        for error in &found.peer_errors {
            eprintln!("error: MLServer was not measured: {error:#}");
        }
        return ExitCode::from(EXIT_PEER);
    }
    ExitCode::SUCCESS
}

/// Copies the programs without their symbols, as they are packaged, and weighs them.
fn places(built: &Path, needs: &AgentBenchAssets) -> Result<(Places, Vec<(&'static str, u64)>)> {
    let scratch = paths::target()?.join("bench-agent");
    let bin = scratch.join("bin");
    fs::create_dir_all(&bin).with_context(|| format!("cannot create {}", bin.display()))?;
    cost::ensure_real_disk(&scratch)?;
    let strip = process::find("strip").context("strip (binutils) is not installed")?;
    let mut sizes = Vec::new();
    for name in ["espalier-agent", "espalier-worker"] {
        let to = bin.join(name);
        process::output(Command::new(&strip).arg("-o").arg(&to).arg(built.join(name)))?;
        sizes.push((name, to.metadata()?.len()));
    }
    let middle: PathBuf = needs.folder.join("models/ppocr_cls.onnx");
    let places = Places {
        bin,
        load: built.join("agent-load"),
        onnxruntime: needs.onnxruntime.clone(),
        scratch,
        tiny: "tiny".to_owned(),
        middle: middle.display().to_string(),
    };
    Ok((places, sizes))
}

fn measure(
    places: &Places,
    needs: &AgentBenchAssets,
    lengths: Lengths,
    sizes: Vec<(&'static str, u64)>,
) -> Result<Found> {
    let mut found = Found {
        lengths,
        idle: Vec::new(),
        serving: Vec::new(),
        starts: Vec::new(),
        overhead: Vec::new(),
        throughput: Vec::new(),
        peer: Vec::new(),
        peer_errors: Vec::new(),
        sizes,
    };
    starts(places, &mut found)?;
    let tiny = Some(places.tiny.as_str());
    for (engine, model) in [("tract", None), ("tract", tiny), ("ort", tiny)] {
        found.idle.push(idle(places, needs, engine, model, lengths.idle)?);
    }
    for engine in ENGINES {
        for model in [&places.tiny, &places.middle] {
            let wanted = Wanted { engine, model: Some(model), broker: None };
            let agent = Agent::start(places, wanted)?;
            eprintln!("serving {} with {engine}", serving::title(places, model));
            serving::measure(places, &agent, engine, model, &mut found)?;
            agent.running.end()?;
        }
    }
    peer(places, needs, &mut found);
    Ok(found)
}

/// Starts the agent again and again, without a model and with one.
fn starts(places: &Places, found: &mut Found) -> Result<()> {
    for (what, engine, model) in [
        ("no model", "tract", None),
        ("the tiny model in tract", "tract", Some(places.tiny.as_str())),
        ("the tiny model in ONNX Runtime", "ort", Some(places.tiny.as_str())),
    ] {
        eprintln!("starting with {what}");
        let mut times = Vec::new();
        for _ in 0..found.lengths.starts {
            let agent = Agent::start(places, Wanted { engine, model, broker: None })?;
            times.push(agent.ready_after);
            agent.running.end()?;
        }
        times.sort_unstable();
        found.starts.push((what.to_owned(), times));
    }
    Ok(())
}

fn idle(
    places: &Places,
    needs: &AgentBenchAssets,
    engine: &str,
    model: Option<&str>,
    window: Window,
) -> Result<Idle> {
    let what = match model {
        None => "no model".to_owned(),
        Some(_) => format!("the tiny model in {}", serving::engine_title(engine)),
    };
    eprintln!("idle with {what}");
    let broker = match &needs.mosquitto {
        Ok(program) => others::broker(program, &places.scratch),
        Err(error) => Err(anyhow::anyhow!("{error:#}")),
    };
    let relay = broker.and_then(|(running, address)| {
        let (port, counted) = relay::start(address)?;
        Ok((running, port, counted))
    });
    let port = relay.as_ref().ok().map(|(_, port, _)| *port);
    let agent = Agent::start(places, Wanted { engine, model, broker: port })?;
    std::thread::sleep(window.warmup);
    let counts = || {
        let counted = relay.as_ref().ok().map(|(_, _, counted)| counted.as_ref());
        let load = |of: fn(&relay::Counted) -> u64| counted.map_or(0, of);
        let sent = load(|counted| counted.sent.load(Ordering::Relaxed));
        (sent, load(|counted| counted.received.load(Ordering::Relaxed)))
    };
    let (before, disk_before) = (counts(), kept_bytes(&agent.state)?);
    let cost = cost::over(agent.running.pid(), Window { warmup: Duration::ZERO, ..window })?;
    let (after, disk_after) = (counts(), kept_bytes(&agent.state)?);
    agent.running.end()?;
    let a_day = |bytes: u64| bytes as f64 / cost.seconds * 86_400.0;
    let told_per_day = match relay {
        Ok(_) if after.0 == 0 => Err(anyhow::anyhow!("the agent did not connect to the broker")),
        Ok(_) => Ok((a_day(after.0 - before.0), a_day(after.1 - before.1))),
        Err(error) => Err(error),
    };
    Ok(Idle { what, cost, told_per_day, grown_bytes: disk_after - disk_before })
}

/// What lies in the spool and the journal.
fn kept_bytes(state: &Path) -> Result<i64> {
    let journal = state.join("journal").metadata().map_or(0, |meta| meta.len());
    let spool = state.join("spool");
    let spool = if spool.is_dir() { cost::folder_bytes(&spool)? } else { 0 };
    Ok(i64::try_from(journal + spool)?)
}

/// Measures MLServer both ways; what fails is kept, and the rest goes on.
fn peer(places: &Places, needs: &AgentBenchAssets, found: &mut Found) {
    let python = match &needs.mlserver {
        Ok(python) => python,
        Err(error) => return found.peer_errors.push(anyhow::anyhow!("{error:#}")),
    };
    for workers in [0, 1] {
        let server = format!("MLServer, parallel_workers = {workers}");
        eprintln!("{server}");
        let measured = measure_peer(places, python, workers, &server, found.lengths.load_seconds);
        match measured {
            Ok(measured) => found.peer.extend(measured),
            Err(error) => found.peer_errors.push(error.context(server)),
        }
    }
}

fn measure_peer(
    places: &Places,
    python: &Path,
    workers: usize,
    server: &str,
    seconds: f64,
) -> Result<Vec<Throughput>> {
    let (running, address) = others::mlserver(python, places, workers)?;
    let members = cost::family(running.pid())?.into_iter();
    let pss = members.map(cost::pss_bytes).sum::<Result<u64>>()?;
    let at = format!("http:{address}");
    let mut found = Vec::new();
    for model in [&places.tiny, &places.middle] {
        let measured = serving::throughput(places, server, &at, model, "json", seconds)?;
        found.push(Throughput { pss_bytes: Some(pss), ..measured });
    }
    running.end()?;
    Ok(found)
}
