//! The command line: a match from what is asked to an exit code.

#![allow(clippy::print_stderr)]

use std::fmt::Display;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};
use serde_json::json;

use crate::config::{Checked, Config, ConfigError, Problem, Sources, TrustConfig};
use crate::core::{ActiveEntry, Durable};
use crate::shell::state_dir::status_socket;
use crate::shell::{driver, journal, logging, status};

mod bench;
mod quick;

/// The configuration is wrong.
const EXIT_CONFIGURATION: u8 = 64;

/// Serves models on a device inside its budgets
#[derive(Debug, Parser)]
#[command(
    name = "espalier-agent",
    version,
    after_help = "Examples:
  espalier-agent check --config /etc/espalier/agent.toml
  espalier-agent run --config /etc/espalier/agent.toml --set telemetry.window_ms=2000
  espalier-agent status --json

Exit codes: 0 done, 1 failed, 2 wrong usage, 64 wrong configuration."
)]
struct Cli {
    #[command(subcommand)]
    mode: Mode,
}

#[derive(Debug, Subcommand)]
enum Mode {
    /// Serve until asked to end (SIGTERM); SIGHUP reads the budgets again
    Run(ConfigArgs),
    /// Ask the running agent how it is
    Status(AskArgs),
    /// Validate the configuration and tell everything that is wrong with it
    Check(AskArgs),
    /// List what is installed
    Models(AskArgs),
    /// Measure an installed model, on its self-test's input, in a process of its own
    Bench(BenchArgs),
    /// Write this program's manual pages and shell completions
    #[command(hide = true)]
    Manual(manual::Arguments),
}

/// Where the configuration comes from
#[derive(Debug, Args)]
struct ConfigArgs {
    /// The configuration file [default: /etc/espalier/agent.toml]
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Set one key over file and environment
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
}

#[derive(Debug, Args)]
struct AskArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// One JSON object on standard output
    #[arg(long)]
    json: bool,
    /// The state directory, instead of the configuration's
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct BenchArgs {
    #[command(flatten)]
    ask: AskArgs,
    /// The model; needed only when there are several
    model: Option<String>,
    /// Runs that count
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    runs: u32,
    /// Runs before them
    #[arg(long, default_value_t = 10)]
    warmup: u32,
}

/// Why a command did not do what it should.
enum Failure {
    Configuration(ConfigError),
    Other(String),
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::Configuration(error)
    }
}

fn failed(error: impl Display) -> Failure {
    Failure::Other(error.to_string())
}

/// Runs the program.
#[must_use]
pub fn main() -> ExitCode {
    let mode = quick::run_args(std::env::args_os()).map(Mode::Run);
    let outcome = match mode.unwrap_or_else(|| Cli::parse().mode) {
        Mode::Run(args) => run(args),
        Mode::Status(args) => show_status(&args),
        Mode::Check(args) => check(&args),
        Mode::Models(args) => models(&args),
        Mode::Bench(args) => bench::run(&args),
        Mode::Manual(args) => {
            manual::write(Cli::command(), manual::Section::System, &args).map_err(failed)
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Configuration(error)) => {
            error.0.iter().for_each(|problem| eprintln!("{problem}"));
            ExitCode::from(EXIT_CONFIGURATION)
        }
        Err(Failure::Other(reason)) => {
            eprintln!("espalier-agent: {reason}");
            ExitCode::FAILURE
        }
    }
}

/// A line on standard output. A reader that has heard enough, as `head` has, is no error.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

fn run(args: ConfigArgs) -> Result<(), Failure> {
    let sources = args.sources();
    let config = Config::load(&sources)?;
    logging::start();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(config.serve.threads)
        .enable_all()
        .build()
        .map_err(failed)?;
    let outcome = runtime.block_on(driver::run(config, sources)).map_err(failed);
    // A worker's last words are not waited for.
    runtime.shutdown_background();
    outcome
}

fn show_status(args: &AskArgs) -> Result<(), Failure> {
    let answer = status::ask(&status_socket(&args.state_dir()?)).map_err(failed)?;
    if args.json {
        say(&answer.to_string());
    } else {
        say(&status::render(&answer));
    }
    Ok(())
}

fn check(args: &AskArgs) -> Result<(), Failure> {
    let now = driver::unix_ms().and_then(|ms| i64::try_from(ms / 1000).ok());
    let Checked { config: checked, warnings } = Config::check(&args.config.sources(), now);
    if args.json {
        let problems = checked.as_ref().err().map(|error| &error.0);
        let tell = |p: &Problem| json!({ "origin": p.origin, "key": p.key, "what": p.what });
        let told: Vec<_> = problems.into_iter().flatten().map(tell).collect();
        let warnings: Vec<_> = warnings.iter().map(tell).collect();
        let trust = checked.as_ref().ok().and_then(|config| config.trust.as_ref());
        let trust = trust.map(|t| json!({ "root": t.root, "version": t.root_version }));
        let ok = told.is_empty();
        let answer = json!({ "ok": ok, "problems": told, "warnings": warnings, "trust": trust });
        say(&answer.to_string());
    } else {
        warnings.iter().for_each(|warning| eprintln!("warning: {warning}"));
    }
    let config = checked?;
    if !args.json {
        let broker = match &config.mqtt {
            Some(mqtt) => {
                let how = if mqtt.tls.is_some() { " over TLS" } else { "" };
                format!("broker {}:{}{how}", mqtt.host, mqtt.port)
            }
            None => "no broker".to_owned(),
        };
        let (id, state) = (&config.device.id, config.state_dir.display());
        say(&format!("the configuration of {id} is valid: state in {state}, {broker}"));
        say(&TrustConfig::describe(config.trust.as_ref()));
    }
    Ok(())
}

fn models(args: &AskArgs) -> Result<(), Failure> {
    let dir = args.state_dir()?;
    let mut durable = Durable::default();
    let records = journal::peek(&dir.join("journal")).map_err(failed)?;
    records.iter().for_each(|record| durable.apply(record));
    if args.json {
        let models: Vec<_> = durable
            .models
            .iter()
            .map(|(name, m)| {
                json!({
                    "model": name,
                    "active": m.active,
                    "previous": m.previous,
                    "blocked": m.blocked,
                    "installing": m.install.as_ref().map(|i| json!({
                        "digest": i.offer.digest, "state": i.state,
                    })),
                })
            })
            .collect();
        say(&json!({ "models": models }).to_string());
        return Ok(());
    }
    if durable.models.is_empty() {
        say("no models");
    }
    for ActiveEntry { model, installed } in durable.active() {
        let (version, sequence, digest) = (installed.version, installed.sequence, installed.digest);
        say(&format!(
            "{model} {version} (sequence {sequence}, {} bytes) {digest}",
            installed.size_bytes
        ));
    }
    Ok(())
}

impl ConfigArgs {
    fn sources(&self) -> Sources {
        Sources::with_environment(self.config.clone(), self.overrides.clone())
    }
}

impl AskArgs {
    fn state_dir(&self) -> Result<PathBuf, Failure> {
        match &self.state {
            Some(dir) => Ok(dir.clone()),
            None => Ok(Config::load(&self.config.sources())?.state_dir),
        }
    }

    fn active(&self, dir: &Path) -> Result<Vec<ActiveEntry>, Failure> {
        let path = dir.join("active.json");
        let fail = |e: &dyn Display| failed(format!("{}: {e}", path.display()));
        let text = std::fs::read(&path).map_err(|e| fail(&e))?;
        serde_json::from_slice(&text).map_err(|e| fail(&e))
    }
}
