//! `espalier quantize`: integer weights where they pay.

use std::path::PathBuf;

use clap::{Args as ClapArgs, ValueEnum};
use serde_json::json;

use super::common::Common;
use super::terminal::Terminal;
use crate::pipeline::single::{self, QuantizeJob};
use crate::plan::QuantFormat;
use crate::search::mebibytes;

/// Formats that can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// The one that is measured fastest, if any is faster than float.
    Auto,
    /// Activations are quantized as they come; products are integer.
    DynamicInt8,
    /// Weights are stored as int8; products stay float.
    Int8,
}

/// Arguments of `quantize`.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Example:
  espalier quantize model.onnx -o int8.onnx --data heldout.npz --format auto --runtime ort")]
pub struct Args {
    /// The model.
    model: PathBuf,
    /// Where the quantized model is written.
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Samples that judge: arrays named after the model's inputs, or a preprocessing file (docs/data.md).
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// The format. One that is named is written even if it measures slower.
    #[arg(long, value_enum, default_value_t = Format::Auto)]
    format: Format,
    #[command(flatten)]
    common: Common,
}

/// Runs `quantize`.
///
/// # Errors
/// See [`crate::CompressError`].
pub fn run(args: &Args) -> anyhow::Result<()> {
    let job = QuantizeJob {
        source: args.model.clone(),
        output: args.output.clone(),
        data: args.data.clone(),
        format: match args.format {
            Format::Auto => None,
            Format::DynamicInt8 => Some(QuantFormat::DynamicInt8),
            Format::Int8 => Some(QuantFormat::Int8),
        },
        engine: args.common.engine(),
        seed: args.common.seed,
    };
    let outcome = {
        let terminal = Terminal::new();
        single::quantize(&job, &terminal)?
    };
    if args.common.json {
        println!(
            "{}",
            json!({
                "format": outcome.format, "audit": outcome.audit,
                "size_before": outcome.size_before, "size_after": outcome.size_after,
                "latency": {"before_us": outcome.before_us, "after_us": outcome.latency.p50_us,
                    "ratio": outcome.latency.ratio, "ratio_low": outcome.latency.ratio_low,
                    "ratio_high": outcome.latency.ratio_high},
                "quality": outcome.quality, "refused": outcome.refused,
            })
        );
        return Ok(());
    }
    println!("{}: {} of {} layers", outcome.format, outcome.audit.integer, outcome.audit.intended);
    println!(
        "size {} → {}, {:.2} times the time of float",
        mebibytes(outcome.size_before as f64),
        mebibytes(outcome.size_after as f64),
        outcome.latency.ratio
    );
    println!("agreement {:.1} %", outcome.quality.agreement.value * 100.0);
    for refusal in &outcome.refused {
        println!("  not done: {}: {}", refusal.what, refusal.why);
    }
    Ok(())
}
