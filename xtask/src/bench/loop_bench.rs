//! The loop with either engine: seconds from breach to commit, requests failed during the switch, the
//! agent's memory idle and serving, and the sizes of the binaries.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::{assets, build, paths, process};

const ENGINES: [&str; 2] = ["tract", "ort"];
/// PSS samples of the idle agent, one a second after it is ready; the median counts.
const IDLE_SAMPLES: usize = 10;
const READY_DEADLINE: Duration = Duration::from_secs(30);

/// What one engine's loop showed.
struct Row {
    engine: &'static str,
    summary: Value,
    idle_pss_bytes: u64,
}

pub(super) fn run() -> Result<ExitCode> {
    let binaries = build::binaries()?;
    let data = assets::for_demo()?;
    let library = assets::onnxruntime()?;
    let scratch = paths::target()?.join("bench-loop");
    let mut rows = Vec::new();
    for engine in ENGINES {
        eprintln!("the loop with {engine}");
        let idle_pss_bytes = idle_pss(&binaries, engine, &library, &scratch.join(engine))?;
        let summary = closed_loop(&binaries, &data, engine, &library)?;
        rows.push(Row { engine, summary, idle_pss_bytes });
    }
    let table = table(&rows, &stripped_sizes(&binaries, &scratch)?)?;
    println!("{table}");
    let to = paths::root().join("docs/benchmarks/loop.md");
    fs::create_dir_all(to.parent().context("docs/benchmarks")?)?;
    fs::write(&to, &table).with_context(|| format!("cannot write {}", to.display()))?;
    eprintln!("written to {}", to.display());
    Ok(ExitCode::SUCCESS)
}

/// Runs the demonstration and returns its summary.
fn closed_loop(binaries: &Path, data: &Path, engine: &str, library: &Path) -> Result<Value> {
    let text = process::output(
        Command::new(binaries.join("edge-sim"))
            .args(["demo", "--json", "--runtime", engine])
            .arg("--assets")
            .arg(data)
            .arg("--espalier")
            .arg(binaries.join("espalier"))
            .arg("--agent")
            .arg(binaries.join("espalier-agent"))
            .env("ORT_DYLIB_PATH", library),
    )
    .with_context(|| format!("the loop did not close with {engine}"))?;
    serde_json::from_str(&text).context("edge-sim demo --json printed no JSON object")
}

/// Starts an agent with no model and no broker, and returns the median PSS of its process.
fn idle_pss(binaries: &Path, engine: &str, library: &Path, state: &Path) -> Result<u64> {
    fs::remove_dir_all(state).ok();
    fs::create_dir_all(state).with_context(|| format!("cannot create {}", state.display()))?;
    let config = state.join("agent.toml");
    // Port 9 (discard) on loopback: nobody answers, as on a device without a network.
    let text = format!(
        "[device]\nid = \"bench\"\nclass = \"bench\"\n\
         [state]\ndir = {:?}\n\
         [runtime]\nengine = \"{engine}\"\nthreads = 1\nort_library = {:?}\n\
         [serve]\nhttp = \"127.0.0.1:0\"\n\
         [mqtt]\nhost = \"127.0.0.1\"\nport = 9\n",
        state.join("state"),
        library
    );
    fs::write(&config, text)?;
    let child = Command::new(binaries.join("espalier-agent"))
        .args(["run", "--config"])
        .arg(&config)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(state.join("log"))?)
        .spawn()
        .context("cannot start espalier-agent")?;
    let mut agent = Running(child);
    wait_for(&state.join("state/run/endpoints.json"), &mut agent)?;
    let mut samples = Vec::new();
    for _ in 0..IDLE_SAMPLES {
        thread::sleep(Duration::from_secs(1));
        samples.push(pss_bytes(agent.0.id())?);
    }
    samples.sort_unstable();
    Ok(samples[samples.len() / 2])
}

/// A child that does not outlive the measurement.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn wait_for(file: &Path, agent: &mut Running) -> Result<()> {
    let deadline = Instant::now() + READY_DEADLINE;
    while !file.exists() {
        if let Some(status) = agent.0.try_wait()? {
            bail!("espalier-agent ended with {status} before it was ready");
        }
        ensure!(Instant::now() < deadline, "espalier-agent is not ready after {READY_DEADLINE:?}");
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn pss_bytes(pid: u32) -> Result<u64> {
    let file = PathBuf::from(format!("/proc/{pid}/smaps_rollup"));
    let text =
        fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let kib = text
        .lines()
        .find_map(|line| line.strip_prefix("Pss:"))
        .and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse::<u64>().ok())
        .with_context(|| format!("{} holds no Pss", file.display()))?;
    Ok(kib * 1024)
}

/// Sizes of the release binaries without symbols.
fn stripped_sizes(binaries: &Path, scratch: &Path) -> Result<Vec<(&'static str, u64)>> {
    let strip = process::find("strip").context("strip (binutils) is not installed")?;
    let mut sizes = Vec::new();
    for name in ["espalier-agent", "espalier-worker", "espalier", "edge-sim"] {
        let to = scratch.join(name);
        process::output(Command::new(&strip).arg("-o").arg(&to).arg(binaries.join(name)))?;
        sizes.push((name, to.metadata()?.len()));
    }
    Ok(sizes)
}

fn table(rows: &[Row], sizes: &[(&str, u64)]) -> Result<String> {
    let mut text = String::from(
        "# The loop, end to end\n\n\
         Written by `cargo xtask bench loop`: one run on one machine. Latency is that of the emulated board \
         (modelled slowdown of measured compute); memory is measured on the host as proportional set size.\n\n",
    );
    writeln!(text, "Host: {}\n", host())?;
    writeln!(text, "| engine | tract | ONNX Runtime |\n|---|---|---|")?;
    let line = |text: &mut String, name: &str, show: &dyn Fn(&Row) -> String| {
        let cells: Vec<_> = rows.iter().map(show).collect();
        writeln!(text, "| {name} | {} |", cells.join(" | "))
    };
    let at = |row: &Row, pointer: &str| row.summary.pointer(pointer).cloned().unwrap_or_default();
    let ms = |row: &Row, pointer: &str| number(&at(row, pointer), 1e3, " ms");
    let mb = |row: &Row, pointer: &str| number(&at(row, pointer), 1e6, " MB");
    line(&mut text, "breach to committed", &|row| {
        number(&at(row, "/breach_to_committed_ms"), 1e3, " s")
    })?;
    line(&mut text, "offer to committed", &|row| number(&at(row, "/install_ms"), 1e3, " s"))?;
    line(&mut text, "requests sent / failed", &|row| {
        format!("{} / {}", at(row, "/requests"), at(row, "/requests_failed"))
    })?;
    line(&mut text, "p95 before → after (budget)", &|row| {
        format!(
            "{} → {} ({})",
            ms(row, "/before/p95_us"),
            ms(row, "/after/p95_us"),
            ms(row, "/budget_p95_us")
        )
    })?;
    line(&mut text, "bundle before → after", &|row| {
        format!("{} → {}", mb(row, "/before/model_bytes"), mb(row, "/after/model_bytes"))
    })?;
    line(&mut text, "agreement with the original, live requests", &|row| {
        number(&at(row, "/agreement"), 1.0, "")
    })?;
    line(&mut text, "agent PSS, idle (no model, no broker)", &|row| {
        number(&Value::from(row.idle_pss_bytes), 1e6, " MB")
    })?;
    line(&mut text, "agent PSS, serving", &|row| mb(row, "/after/agent_pss_bytes"))?;
    line(&mut text, "worker PSS, serving, before → after", &|row| {
        format!(
            "{} → {}",
            mb(row, "/before/workers_pss_bytes"),
            mb(row, "/after/workers_pss_bytes")
        )
    })?;
    let engines: Vec<_> = rows.iter().map(|row| row.engine).collect();
    writeln!(
        text,
        "\nBinaries of the `release` profile, which tests and demo use (opt-level 2 in our crates, overflow checks, \
         debug assertions, no link-time optimisation), stripped; not of the `dist` profile that is packaged. \
         Engines compiled in: {}.\n",
        engines.join(", ")
    )?;
    writeln!(text, "| binary | size |\n|---|---|")?;
    for (name, bytes) in sizes {
        writeln!(text, "| `{name}` | {} |", number(&Value::from(*bytes), 1e6, " MB"))?;
    }
    Ok(text)
}

fn number(value: &Value, divisor: f64, unit: &str) -> String {
    value
        .as_f64()
        .map_or_else(|| "not measured".to_owned(), |n| format!("{:.2}{unit}", n / divisor))
}

pub(super) fn host() -> String {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or(": unknown");
    let cores = thread::available_parallelism().map_or(1, usize::from);
    format!("{}, {cores} cores", name.trim_start_matches([' ', '\t', ':']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_measured_is_not_a_zero() {
        assert_eq!(number(&Value::Null, 1e3, " ms"), "not measured");
        assert_eq!(number(&Value::from(1500), 1e3, " ms"), "1.50 ms");
    }
}
