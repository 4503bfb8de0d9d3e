//! The command line.

#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use clap::{Args, CommandFactory, Parser, Subcommand};
use serde_json::json;

use crate::demo::{self, DemoError, DemoOptions, Summary};
use crate::live::Binaries;
use crate::process;
use crate::profiles::{self, DataType, Fit, Profile};
use crate::scenario::Scenario;
use crate::worker::{self, Slowdown};

/// Something failed.
const FAILED: u8 = 1;
/// The configuration is wrong.
const CONFIGURATION: u8 = 64;

/// Emulates constrained devices and runs the whole loop on one machine.
#[derive(Debug, Parser)]
#[command(name = "edge-sim", version, about, after_help = EXAMPLES)]
pub struct Cli {
    /// What to do
    #[command(subcommand)]
    pub mode: Mode,
}

const EXAMPLES: &str = "Examples:
  edge-sim profiles
  edge-sim demo --assets assets --device raspberry-pi-zero-2-w
  edge-sim demo --assets assets --runtime ort --broker mosquitto --budget-p95 40 --json
  edge-sim run scenario.toml --assets assets";

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Mode {
    /// Show a device that misses its latency budget, asks for a smaller model and gets it
    Demo(DemoArgs),
    /// Run a scenario file: the demo's parameters, and what goes wrong on the way
    Run(RunArgs),
    /// List the boards, how much slower they are, and how well that is known
    Profiles(ProfilesArgs),
    /// The agent's worker, slowed down to a board's speed (started by the agent)
    #[command(hide = true)]
    Worker(WorkerArgs),
    /// The embedded broker (ends with its standard input)
    #[command(hide = true)]
    Broker(BrokerArgs),
    /// A program that is killed when the process that started it ends
    #[command(hide = true)]
    Tied(TiedArgs),
    /// Write this program's manual pages and shell completions
    #[command(hide = true)]
    Manual(manual::Arguments),
}

/// Where the other programs are, and where output goes.
#[derive(Debug, Args)]
pub struct CommonArgs {
    /// Folder for logs, state and bundles; must be empty [default: a new one in the temporary folder]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// The `espalier` program [default: beside this one]
    #[arg(long, value_name = "PATH")]
    pub espalier: Option<PathBuf>,
    /// The `espalier-agent` program [default: beside this one]
    #[arg(long, value_name = "PATH")]
    pub agent: Option<PathBuf>,
    /// Print one JSON object on standard output
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Folder with magika.onnx, calib.npz and heldout.npz
    #[arg(long, value_name = "DIR")]
    pub assets: PathBuf,
    /// The board to emulate (see `edge-sim profiles`)
    #[arg(long, value_name = "BOARD", default_value = "raspberry-pi-4")]
    pub device: String,
    /// Threads of an inference on the board
    #[arg(long, default_value_t = 1)]
    pub threads: u32,
    /// Speed of this host's core relative to the reference core
    #[arg(long, default_value_t = 1.0)]
    pub host_speed: f64,
    /// The engine: tract or ort
    #[arg(long, default_value = "tract")]
    pub runtime: wire::Runtime,
    /// ONNX Runtime's library [default: `ORT_DYLIB_PATH` or the usual places]
    #[arg(long, value_name = "PATH")]
    pub ort_library: Option<PathBuf>,
    /// The p95 budget in milliseconds [default: 80 % of what the original model takes]
    #[arg(long, value_name = "MS", value_parser = milliseconds)]
    pub budget_p95: Option<f64>,
    /// Lowest agreement with the original model
    #[arg(long, default_value_t = 0.8)]
    pub agreement_min: f64,
    /// embedded, mosquitto or HOST:PORT
    #[arg(long, default_value = "embedded")]
    pub broker: String,
    /// How long the whole run may take, such as 170s
    #[arg(long, value_name = "TIME", default_value = "170s", value_parser = seconds)]
    pub timeout: f64,
    /// Programs and output
    #[command(flatten)]
    pub common: CommonArgs,
}

/// Arguments of `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The scenario
    pub scenario: PathBuf,
    /// Folder with magika.onnx, calib.npz and heldout.npz [default: the scenario's]
    #[arg(long, value_name = "DIR")]
    pub assets: Option<PathBuf>,
    /// Programs and output
    #[command(flatten)]
    pub common: CommonArgs,
}

/// Arguments of `profiles`.
#[derive(Debug, Args)]
pub struct ProfilesArgs {
    /// Speed of this host's core relative to the reference core
    #[arg(long, default_value_t = 1.0)]
    pub host_speed: f64,
    /// Print one JSON object on standard output
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `worker`.
#[derive(Debug, Args)]
pub struct WorkerArgs {
    /// How many times slower than this host the board computes fp32
    #[arg(long, value_name = "FACTOR")]
    pub slowdown: f64,
    /// The same for int8 [default: as fp32]
    #[arg(long, value_name = "FACTOR")]
    pub slowdown_int8: Option<f64>,
    /// Folder of the board's files: its clock, and where to report busy time
    #[arg(long, value_name = "DIR")]
    pub board: Option<PathBuf>,
}

/// Arguments of `broker`.
#[derive(Debug, Args)]
pub struct BrokerArgs {
    /// Where to listen
    #[arg(long, value_name = "ADDRESS")]
    pub listen: SocketAddr,
}

/// Arguments of `tied`.
#[derive(Debug, Args)]
pub struct TiedArgs {
    /// The process that started this one
    #[arg(long, value_name = "PID")]
    pub owner: u32,
    /// The program to become
    pub program: OsString,
    /// Its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub arguments: Vec<OsString>,
}

/// Runs the program.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    log_to_stderr();
    match cli.mode {
        Mode::Demo(args) => {
            let scenario = scenario_of(&args);
            run_scenario(scenario, &args.common)
        }
        Mode::Run(args) => match Scenario::read(&args.scenario) {
            Ok(scenario) => {
                let assets = args.assets.or(scenario.assets);
                run_scenario(Scenario { assets, ..scenario }, &args.common)
            }
            Err(error) => misconfigured(&error),
        },
        Mode::Profiles(args) => show_profiles(&args),
        Mode::Worker(args) => {
            let int8 = args.slowdown_int8.unwrap_or(args.slowdown);
            let code = worker::main(Slowdown { fp32: args.slowdown, int8 }, args.board.as_deref());
            ExitCode::from(u8::try_from(code).unwrap_or(FAILED))
        }
        Mode::Broker(args) => match crate::broker::run_embedded(args.listen) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => failed(&error),
        },
        Mode::Manual(args) => match manual::write(Cli::command(), manual::Section::User, &args) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => failed(&error),
        },
        Mode::Tied(args) => {
            let error = process::become_tied(args.owner, &args.program, &args.arguments);
            eprintln!("error: cannot run {}: {error}", args.program.display());
            ExitCode::from(FAILED)
        }
    }
}

fn log_to_stderr() {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_env("EDGE_SIM_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A second initialisation, in a test for example, changes nothing.
    let _ = subscriber.try_init();
}

fn scenario_of(args: &DemoArgs) -> Scenario {
    Scenario {
        assets: Some(args.assets.clone()),
        board: Some(args.device.clone()),
        threads: Some(args.threads),
        host_speed: Some(args.host_speed),
        runtime: Some(args.runtime),
        ort_library: args.ort_library.clone(),
        broker: Some(args.broker.clone()),
        budget_p95_ms: args.budget_p95,
        agreement_min: Some(args.agreement_min),
        timeout_s: Some(args.timeout),
        faults: Vec::new(),
    }
}

fn run_scenario(scenario: Scenario, common: &CommonArgs) -> ExitCode {
    let options = binaries(common).and_then(|binaries| {
        let out = common.out.clone().unwrap_or_else(demo::default_run_dir);
        Ok(scenario.options(binaries, &out)?)
    });
    match options {
        Ok(options) => report(demonstrate(options), common.json),
        Err(error) => misconfigured(&error),
    }
}

fn binaries(common: &CommonArgs) -> anyhow::Result<Binaries> {
    let own = std::env::current_exe().context("finding this program's own path")?;
    let beside = Binaries::in_dir(own.parent().unwrap_or(Path::new(".")));
    Ok(Binaries {
        espalier: common.espalier.clone().unwrap_or(beside.espalier),
        agent: common.agent.clone().unwrap_or(beside.agent),
        edge_sim: own,
    })
}

fn demonstrate(options: DemoOptions) -> Result<Summary, DemoError> {
    let cancel = Arc::new(AtomicBool::new(false));
    cancel_on_signal(cancel.clone());
    let mut display = demo::for_terminal();
    demo::run(options, display.as_mut(), cancel)
}

/// Lets Ctrl-C and SIGTERM end the run in good order: everything that was started is ended too.
fn cancel_on_signal(cancel: Arc<AtomicBool>) {
    let wait = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            use tokio::signal::unix::{SignalKind, signal};
            let mut terminate = signal(SignalKind::terminate())?;
            tokio::select! {
                result = tokio::signal::ctrl_c() => result,
                _ = terminate.recv() => Ok(()),
            }
        })?;
        cancel.store(true, Ordering::Relaxed);
        std::io::Result::Ok(())
    };
    std::thread::spawn(move || {
        if let Err(error) = wait() {
            tracing::warn!(%error, "Ctrl-C cannot be waited for");
        }
    });
}

fn report(result: Result<Summary, DemoError>, json: bool) -> ExitCode {
    match result {
        Ok(summary) if json => println!("{}", json!(summary)),
        Ok(summary) => {
            println!("\nThe loop closed: the device meets its budget.\n\n{}", summary.table());
        }
        Err(error) => {
            if json {
                let (step, title) = error.step.title();
                let why = error.why.to_string();
                println!("{}", json!({"ok": false, "step": step, "title": title, "why": why}));
            }
            return failed(&error);
        }
    }
    ExitCode::SUCCESS
}

fn failed(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("error: {error}");
    ExitCode::from(FAILED)
}

fn misconfigured(error: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("error: {error}");
    ExitCode::from(CONFIGURATION)
}

fn show_profiles(args: &ProfilesArgs) -> ExitCode {
    if !(0.05..=20.0).contains(&args.host_speed) {
        return misconfigured(&profiles::ProfileError::HostSpeed(args.host_speed));
    }
    if args.json {
        let boards: Vec<_> =
            profiles::all().iter().map(|p| board_json(p, args.host_speed)).collect();
        println!(
            "{}",
            json!({
                "reference": profiles::reference_title(),
                "host_speed": args.host_speed,
                "quality": "modelled",
                "boards": boards,
            })
        );
    } else {
        print!("{}", profiles_text(args.host_speed));
    }
    ExitCode::SUCCESS
}

fn board_json(profile: &Profile, host_speed: f64) -> serde_json::Value {
    let factors: Vec<_> = profile
        .fits()
        .into_iter()
        .map(|fit| {
            let slowdown = fit.factor * host_speed;
            json!({ "slowdown": slowdown, "fit": fit })
        })
        .collect();
    json!({ "profile": profile, "factors": factors })
}

fn profiles_text(host_speed: f64) -> String {
    use std::fmt::Write as _;
    let mut text = format!(
        "How many times slower than this host's core a board computes. Every factor is modelled: the\n\
         geometric mean of published figures relative to those of {}.\n\
         This host's core is taken to be {host_speed} times as fast as that one; correct it with\n\
         --host-speed. In brackets the largest error for a net that was left out of the fit.\n\n",
        profiles::reference_title()
    );
    let _ = writeln!(
        text,
        "{:<23}{:<18}{:>8}{:>9}  {:<9}{:>14}{:>14}   power idle / load",
        "board", "cpu", "MiB", "MHz", "threads", "fp32", "int8"
    );
    for profile in profiles::all() {
        for (index, row) in profile.figures.iter().enumerate() {
            let cell = |data_type| {
                profile
                    .fit(row.threads, data_type)
                    .map_or(String::new(), |fit| factor(&fit, host_speed))
            };
            let (fp32, int8) = (cell(DataType::Fp32), cell(DataType::Int8));
            let first = index == 0;
            let _ = writeln!(
                text,
                "{:<23}{:<18}{:>8}{:>9}  {:<9}{fp32:>14}{int8:>14}   {}",
                if first { profile.slug.as_str() } else { "" },
                if first { profile.cpu.as_str() } else { "" },
                if first { profile.memory_mib.to_string() } else { String::new() },
                if first { (profile.max_khz / 1000).to_string() } else { String::new() },
                row.threads,
                if first { power(profile) } else { String::new() },
            );
        }
    }
    text
}

fn factor(fit: &Fit, host_speed: f64) -> String {
    format!("x{:.1} ({:.0}%)", fit.factor * host_speed, fit.held_out_worst * 100.0)
}

fn power(profile: &Profile) -> String {
    let power = &profile.power;
    format!("{:.1} / {:.1} W, {}", power.idle_mw / 1000.0, power.load_mw / 1000.0, power.quality)
}

fn milliseconds(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix("ms").unwrap_or(text).trim();
    number.parse().map_err(|_| format!("{text:?} is no number of milliseconds"))
}

fn seconds(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('s').unwrap_or(text).trim();
    number.parse().map_err(|_| format!("{text:?} is no number of seconds"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn times_may_carry_their_unit() {
        assert_eq!(milliseconds("20ms").unwrap(), 20.0);
        assert_eq!(milliseconds("12.5").unwrap(), 12.5);
        assert_eq!(seconds("170s").unwrap(), 170.0);
        assert!(milliseconds("20 us").is_err());
        assert!(seconds("").is_err());
    }

    #[test]
    fn the_demo_s_defaults_are_a_possible_scenario() {
        let cli = Cli::try_parse_from(["edge-sim", "demo", "--assets", "a"]).unwrap();
        let Mode::Demo(args) = cli.mode else { panic!("not the demo") };
        let dir = tempfile::tempdir().unwrap();
        let binaries = Binaries::in_dir(Path::new("/bin"));
        let options = scenario_of(&args).options(binaries, dir.path()).unwrap();
        assert_eq!(options.stack.board.slug, "raspberry-pi-4");
        assert_eq!(options.timeout, demo::DEFAULT_TIMEOUT);
        assert_eq!(options.budget_p95_us, None);
    }

    #[test]
    fn the_table_of_profiles_names_every_board_its_error_and_the_assumption() {
        let text = profiles_text(1.0);
        for profile in profiles::all() {
            assert!(text.contains(&profile.slug), "{}", profile.slug);
        }
        assert!(
            text.contains("modelled") && text.contains("--host-speed") && text.contains("x14.1 (")
        );
    }
}
