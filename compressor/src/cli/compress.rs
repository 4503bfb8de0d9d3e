//! `espalier compress`: the search for the best model under the budgets.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args as ClapArgs;
use serde_json::json;

use super::common::{Common, duration, share, size};
use super::judging::JudgingArgs;
use super::terminal::Terminal;
use crate::pipeline::{self, CompressJob, DeviceBaseline, Goal, Outcome, Progress as _};
use crate::search::{mebibytes, milliseconds};
use crate::stats::Verdict;

/// Arguments of `compress`.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  espalier compress model.onnx -o small --data calib.npz --latency-p95 20ms
  espalier compress model.onnx -o small --data calib.npz --heldout heldout.npz \\
      --runtime ort --threads 2 --size 2MiB --accuracy-drop 2%
  espalier compress model.onnx -o small --data calib.npz --heldout labelled.npz --latency-p95 20ms \\
      --metric accuracy --metric-drop 1%")]
pub struct Args {
    /// The original model.
    model: PathBuf,
    /// Folder to write: a bundle with its report. It must not exist.
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// Calibration samples: arrays named after the model's inputs, or a preprocessing file (docs/data.md).
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Held-out samples that judge; without them every fourth of the calibration samples is kept apart.
    #[arg(long, value_name = "FILE")]
    heldout: Option<PathBuf>,
    /// Budget for the 95th percentile of one inference, such as 20ms: on the device where --device-p95 is given, on
    /// this host elsewhere.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    latency_p95: Option<Duration>,
    /// Budget for the serving process's memory, such as 64MiB.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    memory: Option<u64>,
    /// Budget for the model file, such as 2MiB.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    size: Option<u64>,
    /// Share of held-out answers that may differ from the original's: 0.1, or, with --metric or --evaluator, as many
    /// as these allow.
    #[arg(long, value_name = "SHARE", value_parser = share)]
    accuracy_drop: Option<f64>,
    #[command(flatten)]
    judging: JudgingArgs,
    /// The device's own p95 of the model it runs now; the budget then holds on the device.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    device_p95: Option<Duration>,
    /// The device's own measurement of its serving process's memory (PSS) with the model it runs now.
    #[arg(long, value_name = "SIZE", value_parser = size, requires = "device_p95")]
    device_memory: Option<u64>,
    /// The model that the device runs now, if it is not MODEL.
    #[arg(long, value_name = "FILE", requires = "device_p95")]
    current: Option<PathBuf>,
    /// Name under which devices serve the model; the file's name without it.
    #[arg(long)]
    name: Option<String>,
    /// Device class that the bundle is for. Latency is only predicted for it with --device-p95.
    #[arg(long, value_name = "CLASS", default_value = "any")]
    device: String,
    /// Version for people.
    #[arg(long = "bundle-version", default_value = "1")]
    version: String,
    /// Sequence number of the bundle.
    #[arg(long, default_value_t = 1)]
    sequence: u64,
    #[command(flatten)]
    common: Common,
}

/// Share of answers that may differ where nothing else is measured.
const ACCURACY_DROP: f64 = 0.1;

impl Args {
    fn job(&self) -> anyhow::Result<CompressJob> {
        let judging = self.judging.judging()?;
        let usual = if self.judging.is_agreement() { ACCURACY_DROP } else { 1.0 };
        let micros = |d: Duration| u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
        let stem = || {
            let stem = self.model.file_stem();
            stem.map_or_else(|| "model".into(), |s| s.to_string_lossy().into_owned())
        };
        Ok(CompressJob {
            name: self.name.clone().unwrap_or_else(stem),
            source: self.model.clone(),
            calibration: self.data.clone(),
            heldout: self.heldout.clone().unwrap_or_else(|| self.data.clone()),
            engine: self.common.engine(),
            goal: Goal {
                latency_p95_us: self.latency_p95.map(micros),
                memory_bytes: self.memory,
                size_bytes: self.size,
                agreement_min: 1.0 - self.accuracy_drop.unwrap_or(usual),
            },
            judging,
            baseline: self.device_p95.map(micros).map(|p95_us| DeviceBaseline {
                memory_bytes: self.device_memory,
                ..DeviceBaseline::latency(p95_us, p95_us)
            }),
            current_model: self.current.clone(),
            device_class: self.device.clone(),
            sequence: self.sequence,
            version: self.version.clone(),
            out_dir: self.output.clone(),
            work_dir: None,
            seed: self.common.seed,
        })
    }
}

/// Runs `compress`.
///
/// # Errors
/// See [`crate::CompressError`].
pub fn run(args: &Args) -> anyhow::Result<()> {
    let job = args.job()?;
    let outcome = {
        let terminal = Terminal::new();
        if let Some(warning) = warning(&job) {
            terminal.note(&warning);
        }
        pipeline::compress(&job, &terminal)?
    };
    if args.common.json {
        println!("{}", object(&job, &outcome));
    } else {
        print(&job, &outcome);
    }
    Ok(())
}

/// Said where a latency budget is meant for a device and can only be held against this host.
fn warning(job: &CompressJob) -> Option<String> {
    let budget = job.goal.latency_p95_us.filter(|_| !job.latency_is_of_target())?;
    Some(format!(
        "warning: the latency budget of {} is held against this host, which is not {class}: give {class}'s own p95 of \
         the model with --device-p95; the bundle predicts no latency",
        milliseconds(budget as f64),
        class = job.device_class
    ))
}

/// Whose latency the numbers are.
fn latency_of(job: &CompressJob) -> &'static str {
    if job.baseline.is_some() { "device" } else { "this host" }
}

fn object(job: &CompressJob, outcome: &Outcome) -> serde_json::Value {
    json!({
        "latency_of": latency_of(job),
        "bundle": outcome.bundle_dir, "digest": outcome.digest.to_string(),
        "report": outcome.report, "original": outcome.original, "chosen": outcome.chosen,
        "candidates": outcome.candidates, "refused": outcome.refused,
    })
}

fn print(job: &CompressJob, outcome: &Outcome) {
    let (before, after) = (&outcome.original, &outcome.chosen);
    println!("chosen     {}", after.label);
    println!(
        "p95        {} → {} ({}, of the {})",
        milliseconds(before.latency_p95_us.value),
        milliseconds(after.latency_p95_us.value),
        match after.latency_p95_us.quality {
            bundle::Quality::Measured => "measured",
            bundle::Quality::Modelled => "modelled",
        },
        latency_of(job).trim_start_matches("this ")
    );
    println!(
        "size       {} → {}",
        mebibytes(before.size_bytes as f64),
        mebibytes(after.size_bytes as f64)
    );
    if let Some(q) = &after.quality {
        println!(
            "agreement  {:.1} % (95 % interval {:.1} to {:.1}) on {} held-out samples",
            q.agreement.value * 100.0,
            q.agreement.low * 100.0,
            q.agreement.high * 100.0,
            q.samples
        );
    }
    for test in after.quality.iter().flat_map(|q| &q.tests) {
        println!("verdict    {}", test.sentence());
        if job.judging.confidence.is_none() && test.verdict != Verdict::NonInferior {
            println!("           taken by what was seen, since no confidence was asked for");
        }
    }
    println!("bundle     {}", outcome.bundle_dir.display());
    println!("report     {}", outcome.report.display());
}
