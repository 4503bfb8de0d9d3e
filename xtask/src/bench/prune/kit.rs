//! What every measurement needs: the binary, both Python environments, the scripts, the samples.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::Value;

use super::subject::{Place, Subject};
use crate::assets::{self, PeerAssets};
use crate::{build, paths, process};

const SCRIPTS: [(&str, &str); 6] = [
    ("inputs.py", include_str!("../peers/inputs.py")),
    ("judge.py", include_str!("../peers/judge.py")),
    ("measured.py", include_str!("../peers/measured.py")),
    ("onnxsim_peer.py", include_str!("../peers/onnxsim_peer.py")),
    ("simplify.py", include_str!("../peers/simplify.py")),
    ("torch_peer.py", include_str!("../peers/torch_peer.py")),
];

/// Texts that Debian's base system holds, for rendering.
const LICENCES: &str = "/usr/share/common-licenses";
/// Engines that results are timed in.
pub(super) const ENGINES: [&str; 2] = ["ort", "tract"];
/// A tool that takes longer is stopped, and its row says so.
const TOOL_SECONDS: u32 = 600;
/// Timed runs of one model take about so long in a round.
const ROUND_US: f64 = 400e3;

pub(super) struct Kit {
    binaries: PathBuf,
    needs: PeerAssets,
    scratch: PathBuf,
}

/// What one run of a tool cost and made.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Cost {
    pub(super) seconds: f64,
    pub(super) cpu_seconds: f64,
    pub(super) peak_rss_bytes: f64,
    pub(super) why: Option<String>,
}

/// What the judge says of one model.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(super) enum Verdict {
    Judged { params: u64, quality: f64, error: f64 },
    Failed { why: String },
}

/// A tool that prunes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tool {
    /// Espalier with this score and repair.
    Ours {
        score: &'static str,
        repair: &'static str,
    },
    OnnxsimPlain,
    OnnxsimCalibrated,
    TorchPruning,
}

impl Tool {
    pub(super) const PEERS: [Self; 3] =
        [Self::OnnxsimPlain, Self::OnnxsimCalibrated, Self::TorchPruning];

    pub(super) fn title(self) -> String {
        match self {
            Self::Ours { score, repair } => {
                format!("espalier {score}, {}", repair.replace(',', " + "))
            }
            Self::OnnxsimPlain => "onnxsim".into(),
            Self::OnnxsimCalibrated => "onnxsim, calibrated".into(),
            Self::TorchPruning => "torch-pruning".into(),
        }
    }

    /// Where its rows stand in a table.
    pub(super) fn order(self) -> usize {
        Self::PEERS.iter().position(|&peer| peer == self).unwrap_or(Self::PEERS.len())
    }

    fn file(self) -> String {
        self.title().replace([' ', ',', '+'], "-")
    }
}

impl Kit {
    /// Builds, fetches, and makes the samples of the subjects anew.
    pub(super) fn ready(subjects: &[&Subject]) -> Result<Self> {
        let binaries = build::binaries()?;
        let needs = assets::for_prune_bench()?;
        let scratch = paths::target()?.join("bench-prune");
        fs::remove_dir_all(&scratch).ok();
        fs::create_dir_all(&scratch)
            .with_context(|| format!("cannot create {}", scratch.display()))?;
        for (name, text) in SCRIPTS {
            fs::write(scratch.join(name), text)?;
        }
        let kit = Self { binaries, needs, scratch };
        kit.make_inputs(subjects)?;
        Ok(kit)
    }

    fn make_inputs(&self, subjects: &[&Subject]) -> Result<()> {
        eprintln!("making the samples");
        let mut command = Command::new(&self.needs.onnxsim_python);
        command.arg(self.scratch.join("inputs.py")).arg(&self.scratch).arg(&self.needs.folder);
        for name in assets::PEER_DATA {
            command.arg(self.needs.folder.join(name));
        }
        command.arg(LICENCES);
        for subject in subjects {
            let mut named = std::ffi::OsString::from(format!("{}=", subject.name));
            named.push(self.original(subject));
            command.arg(named);
        }
        process::output(&mut command)?;
        for subject in subjects {
            let mut simplify = Command::new(&self.needs.onnxsim_python);
            simplify
                .arg(self.scratch.join("simplify.py"))
                .arg(self.original(subject))
                .arg(self.of(subject, "simplified.onnx"))
                .arg(self.of(subject, "calib.npz"));
            process::output(&mut simplify)?;
        }
        Ok(())
    }

    /// A file of one subject.
    fn of(&self, subject: &Subject, name: &str) -> PathBuf {
        self.scratch.join(subject.name).join(name)
    }

    pub(super) fn original(&self, subject: &Subject) -> PathBuf {
        match subject.place {
            Place::Assets => self.needs.folder.join(subject.file),
            Place::Workspace => paths::root().join(subject.file),
        }
    }

    fn espalier(&self) -> PathBuf {
        self.binaries.join("espalier")
    }

    /// Lets a tool remove the share `remove` of the units; returns where the model lies and what that cost.
    pub(super) fn prune(
        &self,
        subject: &Subject,
        tool: Tool,
        remove: f64,
    ) -> Result<(PathBuf, Cost)> {
        let out = self.of(subject, &format!("{}-{remove:.4}.onnx", tool.file()));
        let (source, samples) = (self.original(subject), self.of(subject, "calib.npz"));
        let share = format!("{remove:.6}");
        let mut command = self.timed();
        match tool {
            Tool::Ours { score, repair } => {
                self.ours(&mut command, score, repair, remove).arg(&source).arg("-o").arg(&out);
                if !matches!((score, repair), ("magnitude" | "magnitude-l1" | "random", "none")) {
                    command.arg("--no-timing").arg("--data").arg(&samples);
                }
            }
            Tool::OnnxsimPlain | Tool::OnnxsimCalibrated => {
                let mode = if tool == Tool::OnnxsimPlain { "plain" } else { "calibrated" };
                command.arg(&self.needs.onnxsim_python).arg(self.scratch.join("onnxsim_peer.py"));
                command.arg(mode).args([&source, &out]).arg(share).arg(samples);
            }
            Tool::TorchPruning => {
                command.arg(&self.needs.torch_python).arg(self.scratch.join("torch_peer.py"));
                command.args([&source, &self.of(subject, "simplified.onnx"), &out]);
                command.arg(share).arg(samples);
            }
        }
        Ok((out, cost_of(&mut command)?))
    }

    fn ours<'a>(
        &self,
        command: &'a mut Command,
        score: &str,
        repair: &str,
        remove: f64,
    ) -> &'a mut Command {
        command
            .arg(self.espalier())
            .args(["prune", "--runtime", "ort", "--score", score, "--repair", repair, "--ratio"])
            .arg(format!("{:.6}", 1.0 - remove))
            .arg("--ort-library")
            .arg(&self.needs.onnxruntime)
    }

    /// Parameters that are left when every group keeps `1 - remove` of its units.
    pub(super) fn params_left(&self, subject: &Subject, remove: f64) -> Result<u64> {
        let mut command = Command::new("env");
        self.ours(&mut command, "magnitude", "none", remove)
            .arg("--json")
            .arg(self.original(subject))
            .arg("-o")
            .arg(self.of(subject, &format!("trial-{remove:.6}.onnx")));
        let said: Value = serde_json::from_str(&process::output(&mut command)?)?;
        said["params_after"].as_u64().context("espalier prune --json names no params_after")
    }

    /// What `espalier analyze` says, and the least that it cost in three runs.
    pub(super) fn analyze(&self, subject: &Subject) -> Result<(Value, Cost)> {
        let call = |mut command: Command| {
            command.args([OsStr::new("analyze"), self.original(subject).as_os_str()]);
            command.arg("--json");
            command
        };
        let said = process::output(&mut call(Command::new(self.espalier())))?;
        let mut costs = Vec::new();
        for _ in 0..3 {
            let mut timed = self.timed();
            timed.arg(self.espalier());
            costs.push(cost_of(&mut call(timed))?);
        }
        costs.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
        let least = costs.into_iter().next().context("analyze was not run")?;
        Ok((serde_json::from_str(&said)?, least))
    }

    /// A command to which a program is still to be added, and that says what it cost.
    fn timed(&self) -> Command {
        let mut command = Command::new(&self.needs.onnxsim_python);
        command
            .args(["-I".as_ref(), self.scratch.join("measured.py").as_os_str()])
            .arg(TOOL_SECONDS.to_string());
        command
    }

    /// Judges the candidates; the first verdict is the original's.
    pub(super) fn judge(&self, subject: &Subject, candidates: &[PathBuf]) -> Result<Vec<Verdict>> {
        let mut command = Command::new(&self.needs.onnxsim_python);
        command
            .arg(self.scratch.join("judge.py"))
            .arg(subject.name)
            .arg(self.original(subject))
            .arg(self.of(subject, "heldout.npz"))
            .args(candidates);
        let text = process::output(&mut command)?;
        serde_json::from_str(&text).context("the judge printed no verdicts")
    }

    /// Median latency of one run of a model on one sample, in microseconds, over about [`ROUND_US`].
    pub(super) fn latency(
        &self,
        subject: &Subject,
        model: &Path,
        engine: &str,
        last_us: Option<f64>,
    ) -> Result<f64> {
        let runs = last_us.map_or(5.0, |us| (ROUND_US / us).clamp(5.0, 400.0)).round();
        let text = process::output(
            Command::new(self.espalier())
                .args(["bench", "--json", "--warmup", "2", "--runtime", engine, "--runs"])
                .arg(format!("{runs}"))
                .arg("--ort-library")
                .arg(&self.needs.onnxruntime)
                .arg("--data")
                .arg(self.of(subject, "sample.npz"))
                .arg(model),
        )?;
        let said: Value = serde_json::from_str(&text)?;
        said["p50_us"].as_f64().context("espalier bench --json names no p50_us")
    }
}

fn cost_of(command: &mut Command) -> Result<Cost> {
    let text = process::output(command)?;
    serde_json::from_str(&text).context("no cost was printed")
}

/// Does `work` on every item, two at a time where nothing is timed; the results in the order of the items.
pub(super) fn in_pairs<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let take = || {
        let mut done = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(at) else { return done };
            done.push((at, work(item)));
        }
    };
    let mut all = thread::scope(|scope| {
        let other = scope.spawn(take);
        let mut mine = take();
        mine.extend(other.join().into_iter().flatten());
        mine
    });
    all.sort_by_key(|(at, _)| *at);
    all.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn results_come_in_the_order_of_the_items() {
        let items: Vec<usize> = (0..50).collect();
        assert_eq!(
            super::in_pairs(&items, |item| item * 2),
            items.iter().map(|i| i * 2).collect::<Vec<_>>()
        );
    }
}
