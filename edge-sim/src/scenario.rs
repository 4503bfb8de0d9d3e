//! A run described in a file: the demonstration's parameters, and what goes wrong on the way.
//!
//! ```toml
//! assets = "../assets"          # relative to this file; `--assets` wins
//! board = "raspberry-pi-4"
//! runtime = "tract"
//! broker = "mosquitto"
//! budget_p95_ms = 150.0
//!
//! [[faults]]
//! at = "shadow"
//! do = "agent_kill9"
//! down_ms = 1000
//! ```

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::broker::{BrokerError, BrokerKind};
use crate::demo::{DEFAULT_TIMEOUT, DemoOptions, Fault};
use crate::live::{Binaries, StackOptions};
use crate::profiles::{self, ProfileError};

/// A run, as a file or a command line describes it. What is absent keeps the default.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// Folder with `magika.onnx`, `calib.npz` and `heldout.npz`.
    pub assets: Option<PathBuf>,
    /// Slug of the board's profile.
    pub board: Option<String>,
    /// Threads on the board.
    pub threads: Option<u32>,
    /// The host core's speed relative to the reference core.
    pub host_speed: Option<f64>,
    /// The engine.
    pub runtime: Option<wire::Runtime>,
    /// ONNX Runtime's library.
    pub ort_library: Option<PathBuf>,
    /// `embedded`, `mosquitto` or `HOST:PORT`.
    pub broker: Option<String>,
    /// The p95 budget in milliseconds.
    pub budget_p95_ms: Option<f64>,
    /// Lowest agreement with the original model.
    pub agreement_min: Option<f64>,
    /// How long the run may take, seconds.
    pub timeout_s: Option<f64>,
    /// What goes wrong.
    #[serde(default)]
    pub faults: Vec<Fault>,
}

/// What is wrong with a scenario.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    /// The file cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is no scenario.
    #[error("{}: {source}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// Nobody said where model and data are.
    #[error("where are the model and its data? Say --assets DIR, or `assets` in the scenario")]
    NoAssets,
    /// No such board, or no figures for its thread count.
    #[error(transparent)]
    Board(#[from] ProfileError),
    /// No such broker.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// A number out of its range.
    #[error("{key} must be {range}, not {got}")]
    Range {
        /// The key.
        key: &'static str,
        /// What it may be.
        range: &'static str,
        /// What it is.
        got: f64,
    },
    /// The folder for the run's files holds something already.
    #[error("{} is not empty: choose another folder for the run", .0.display())]
    NotEmpty(PathBuf),
}

impl Scenario {
    /// Reads a scenario; paths in it are relative to the file.
    ///
    /// # Errors
    /// The file cannot be read, or says something that is not understood, with its place.
    pub fn read(path: &Path) -> Result<Self, ScenarioError> {
        let fail = |source| ScenarioError::Read { path: path.to_owned(), source };
        let text = std::fs::read_to_string(path).map_err(fail)?;
        let mut scenario: Self = toml::from_str(&text).map_err(|source| ScenarioError::Parse {
            path: path.to_owned(),
            source: Box::new(source),
        })?;
        let beside = path.parent().unwrap_or(Path::new("."));
        scenario.assets = scenario.assets.map(|assets| beside.join(assets));
        scenario.ort_library = scenario.ort_library.map(|library| beside.join(library));
        Ok(scenario)
    }

    /// The run that the scenario describes, with its files in `run_dir`.
    ///
    /// # Errors
    /// A name or a number is not possible, or `run_dir` holds something already.
    pub fn options(self, binaries: Binaries, run_dir: &Path) -> Result<DemoOptions, ScenarioError> {
        if std::fs::read_dir(run_dir).is_ok_and(|mut entries| entries.next().is_some()) {
            return Err(ScenarioError::NotEmpty(run_dir.to_owned()));
        }
        let assets = self.assets.as_deref().ok_or(ScenarioError::NoAssets)?;
        let mut stack = StackOptions::new(binaries, assets, run_dir);
        if let Some(slug) = &self.board {
            stack.board = profiles::find(slug)?;
        }
        stack.threads = self.threads.unwrap_or(stack.threads);
        stack.host_speed = self.host_speed.unwrap_or(stack.host_speed);
        stack.board.slowdown(stack.threads, profiles::DataType::Fp32, stack.host_speed)?;
        stack.runtime = self.runtime.unwrap_or(stack.runtime);
        stack.assets.ort_library = self.ort_library;
        if let Some(broker) = &self.broker {
            stack.broker = broker.parse::<BrokerKind>()?;
        }
        if let Some(floor) = self.agreement_min {
            stack.agreement_min = within("agreement_min", floor, 0.0, 1.0, "a share from 0 to 1")?;
        }
        let budget = self.budget_p95_ms.map(|budget| {
            within("budget_p95_ms", budget, 0.001, 1e6, "from 0.001 to 1000000 milliseconds")
        });
        let timeout = self
            .timeout_s
            .map(|timeout| within("timeout_s", timeout, 1.0, 86_400.0, "from 1 to 86400 seconds"));
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let budget_p95_us = budget.transpose()?.map(|ms| (ms * 1000.0).round() as u64);
        let timeout = timeout.transpose()?.map_or(DEFAULT_TIMEOUT, Duration::from_secs_f64);
        Ok(DemoOptions { stack, budget_p95_us, timeout, faults: self.faults, judge_speed: true })
    }
}

fn within(
    key: &'static str,
    got: f64,
    low: f64,
    high: f64,
    range: &'static str,
) -> Result<f64, ScenarioError> {
    if (low..=high).contains(&got) {
        Ok(got)
    } else {
        Err(ScenarioError::Range { key, range, got })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::demo::{Act, Point};

    fn read(text: &str) -> Result<Scenario, ScenarioError> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("scenario.toml");
        std::fs::write(&file, text).unwrap();
        Scenario::read(&file)
    }

    fn options(text: &str) -> Result<DemoOptions, ScenarioError> {
        let dir = tempfile::tempdir().unwrap();
        read(text)?.options(Binaries::in_dir(Path::new("/bin")), dir.path())
    }

    #[test]
    fn a_scenario_sets_what_it_names_and_keeps_the_rest() {
        let options = options(
            "assets = 'a'\nboard = 'jetson-nano'\nthreads = 4\nbroker = 'mosquitto'\n\
             budget_p95_ms = 12.5\n[[faults]]\nat = 'shadow'\ndo = 'agent_kill9'\ndown_ms = 7",
        )
        .unwrap();
        assert_eq!(options.stack.board.slug, "jetson-nano");
        assert_eq!(options.stack.broker, BrokerKind::Mosquitto);
        assert_eq!(options.budget_p95_us, Some(12_500));
        assert_eq!(options.timeout, DEFAULT_TIMEOUT);
        assert_eq!(options.stack.runtime, wire::Runtime::Tract);
        let [fault] = options.faults.as_slice() else { panic!("{:?}", options.faults) };
        assert_eq!((fault.at, fault.act), (Point::Shadow, Act::AgentKill9));
        assert_eq!(fault.down(), Duration::from_millis(7));
    }

    #[test]
    fn assets_are_relative_to_the_file() {
        let assets = read("assets = 'data'").unwrap().assets.unwrap();
        assert!(assets.is_absolute() && assets.ends_with("data"));
    }

    #[test]
    fn without_assets_there_is_no_run() {
        assert!(matches!(options("threads = 4").unwrap_err(), ScenarioError::NoAssets));
    }

    #[test]
    fn the_scenarios_that_come_with_the_program_are_possible() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
        let mut seen = 0;
        for file in std::fs::read_dir(folder).unwrap() {
            let dir = tempfile::tempdir().unwrap();
            let mut scenario = Scenario::read(&file.unwrap().path()).unwrap();
            scenario.assets = Some(PathBuf::from("assets"));
            scenario.options(Binaries::in_dir(Path::new("/bin")), dir.path()).unwrap();
            seen += 1;
        }
        assert!(seen >= 3);
    }

    #[test]
    fn an_unknown_key_or_fault_is_an_error_that_names_it() {
        assert!(read("assets = 'a'\nbugdet = 1").unwrap_err().to_string().contains("bugdet"));
        let text = "assets = 'a'\n[[faults]]\nat = 'lunch'\ndo = 'agent_kill9'";
        assert!(read(text).unwrap_err().to_string().contains("lunch"));
    }

    #[test]
    fn impossible_numbers_and_names_are_refused() {
        for (line, part) in [
            ("agreement_min = 1.5", "agreement_min"),
            ("budget_p95_ms = -1.0", "budget_p95_ms"),
            ("timeout_s = 0.0", "timeout_s"),
            ("board = 'toaster'", "toaster"),
            ("threads = 3", "3 thread"),
            ("host_speed = 0.0", "speed"),
            ("broker = 'nats'", "nats"),
        ] {
            let error = options(&format!("assets = 'a'\n{line}")).unwrap_err().to_string();
            assert!(error.contains(part), "{line}: {error}");
        }
    }

    #[test]
    fn a_folder_that_holds_something_is_not_run_in() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("precious"), "").unwrap();
        let binaries = Binaries::in_dir(Path::new("/bin"));
        let error = Scenario::default().options(binaries, dir.path()).unwrap_err();
        assert!(matches!(error, ScenarioError::NotEmpty(_)));
    }
}
