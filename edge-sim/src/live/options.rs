//! What a loop is started with.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::StackError;
use crate::broker::BrokerKind;
use crate::profiles::{self, Profile};

/// The three programs of the loop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binaries {
    /// `espalier`.
    pub espalier: PathBuf,
    /// `espalier-agent`.
    pub agent: PathBuf,
    /// `edge-sim`, which is also the worker and the embedded broker.
    pub edge_sim: PathBuf,
}

impl Binaries {
    /// All three by their usual names in one folder.
    #[must_use]
    pub fn in_dir(dir: &Path) -> Self {
        Self {
            espalier: dir.join("espalier"),
            agent: dir.join("espalier-agent"),
            edge_sim: dir.join("edge-sim"),
        }
    }

    /// With absolute paths: children run in folders of their own.
    pub(super) fn absolute(self) -> std::io::Result<Self> {
        Ok(Self {
            espalier: std::path::absolute(self.espalier)?,
            agent: std::path::absolute(self.agent)?,
            edge_sim: std::path::absolute(self.edge_sim)?,
        })
    }

    /// Makes sure that all three are there.
    ///
    /// # Errors
    /// [`StackError::Missing`] for the first that is not.
    pub fn check(&self) -> Result<(), StackError> {
        present("the program espalier", &self.espalier)?;
        present("the program espalier-agent", &self.agent)?;
        present("the program edge-sim", &self.edge_sim)
    }
}

/// Model and data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assets {
    /// The original model.
    pub model: PathBuf,
    /// Samples for the compressor.
    pub calibration: PathBuf,
    /// Samples that it may only judge by; clients send these.
    pub heldout: PathBuf,
    /// ONNX Runtime's library, where that is not left to the usual places.
    pub ort_library: Option<PathBuf>,
}

impl Assets {
    /// `magika.onnx`, `calib.npz` and `heldout.npz` in one folder.
    #[must_use]
    pub fn in_dir(dir: &Path) -> Self {
        Self {
            model: dir.join("magika.onnx"),
            calibration: dir.join("calib.npz"),
            heldout: dir.join("heldout.npz"),
            ort_library: None,
        }
    }

    /// With absolute paths.
    pub(super) fn absolute(self) -> std::io::Result<Self> {
        Ok(Self {
            model: std::path::absolute(self.model)?,
            calibration: std::path::absolute(self.calibration)?,
            heldout: std::path::absolute(self.heldout)?,
            ort_library: self.ort_library.map(std::path::absolute).transpose()?,
        })
    }

    /// Makes sure that every file is there.
    ///
    /// # Errors
    /// [`StackError::Missing`] for the first that is not.
    pub fn check(&self) -> Result<(), StackError> {
        present("the model", &self.model)?;
        present("the calibration data", &self.calibration)?;
        present("the held-out data", &self.heldout)?;
        self.ort_library.as_deref().map_or(Ok(()), |file| present("ONNX Runtime's library", file))
    }
}

fn present(what: &'static str, path: &Path) -> Result<(), StackError> {
    if path.is_file() {
        return Ok(());
    }
    Err(StackError::Missing { what, path: path.to_owned() })
}

/// When a budget counts as broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Breach {
    /// Windows over the budget …
    pub windows_over: u32,
    /// … out of so many.
    pub windows_seen: u32,
    /// Time between two reports.
    pub cooldown: Duration,
    /// Requests that a window needs.
    pub min_requests: u64,
}

/// How an install is judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Install {
    /// Live requests to compare.
    pub shadow_requests: u64,
    /// How long to wait for them.
    pub shadow_timeout: Duration,
    /// Windows of probation.
    pub probation_windows: u32,
    /// The largest bundle that the device takes.
    pub max_bundle_bytes: u64,
}

/// How the client behaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientRate {
    /// Time between an answer and the next request.
    pub pause: Duration,
    /// How long an answer may take.
    pub timeout: Duration,
}

/// What a loop is started with. [`StackOptions::new`] fills in what the demonstration uses.
#[derive(Debug, Clone)]
pub struct StackOptions {
    /// The programs.
    pub binaries: Binaries,
    /// Model and data.
    pub assets: Assets,
    /// Everything that is written goes below this folder.
    pub run_dir: PathBuf,
    /// Which broker.
    pub broker: BrokerKind,
    /// Which board.
    pub board: &'static Profile,
    /// Threads of an inference on the board (the host always uses one).
    pub threads: u32,
    /// The host core's speed relative to the reference core.
    pub host_speed: f64,
    /// Which engine.
    pub runtime: wire::Runtime,
    /// The model's name.
    pub model: String,
    /// The device's name.
    pub device: String,
    /// The topic root.
    pub root: String,
    /// Lowest agreement with the original model.
    pub agreement_min: f64,
    /// Length of a telemetry window.
    pub window: Duration,
    /// When a budget counts as broken.
    pub breach: Breach,
    /// How an install is judged.
    pub install: Install,
    /// How the client behaves.
    pub client: ClientRate,
    /// Merged over the agent's configuration file: tables by key, everything else replaced.
    pub agent_overrides: toml::Table,
    /// Appended to the service's command line.
    pub service_args: Vec<String>,
}

impl StackOptions {
    /// With absolute paths.
    pub(super) fn absolute(self) -> std::io::Result<Self> {
        Ok(Self {
            binaries: self.binaries.absolute()?,
            assets: self.assets.absolute()?,
            run_dir: std::path::absolute(self.run_dir)?,
            ..self
        })
    }

    /// A Raspberry Pi 4 with one thread and tract on the embedded broker.
    ///
    /// # Panics
    /// Never: the board's profile is part of the program.
    #[must_use]
    pub fn new(binaries: Binaries, assets: &Path, run_dir: &Path) -> Self {
        Self {
            binaries,
            assets: Assets::in_dir(assets),
            run_dir: run_dir.to_owned(),
            broker: BrokerKind::Embedded,
            board: profiles::find("raspberry-pi-4").expect("an embedded profile"),
            threads: 1,
            host_speed: 1.0,
            runtime: wire::Runtime::Tract,
            model: "magika".to_owned(),
            device: "board-1".to_owned(),
            root: wire::DEFAULT_ROOT.to_owned(),
            agreement_min: 0.8,
            window: Duration::from_millis(2500),
            breach: Breach {
                windows_over: 3,
                windows_seen: 4,
                cooldown: Duration::from_secs(10),
                min_requests: 5,
            },
            install: Install {
                shadow_requests: 20,
                shadow_timeout: Duration::from_secs(60),
                probation_windows: 3,
                max_bundle_bytes: 64 << 20,
            },
            client: ClientRate {
                pause: Duration::from_millis(5),
                timeout: Duration::from_secs(30),
            },
            agent_overrides: toml::Table::new(),
            service_args: Vec::new(),
        }
    }
}
