//! `espalier quantize`: integer weights where they pay.

use std::path::PathBuf;

use clap::Args as ClapArgs;
use serde_json::json;

use super::common::Common;
use super::later::word;
use super::terminal::Terminal;
use crate::pipeline::single::{self, QuantizeJob};
use crate::plan::QuantFormat;
use crate::search::mebibytes;

/// The formats that can be asked for; `auto` is the one that is measured fastest, if any is faster than float.
fn format(text: &str) -> Result<Option<QuantFormat>, String> {
    let done = [
        ("auto", None),
        ("dynamic-int8", Some(QuantFormat::DynamicInt8)),
        ("int8", Some(QuantFormat::Int8)),
    ];
    word(text, &done, &["static-int8", "int4", "fp16"])
}

// A bare Option would make the argument one that may be left out.
type Choice = std::option::Option<QuantFormat>;

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
    /// Samples that judge (`.npz`, arrays named after the model's inputs).
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// auto (what is measured fastest), dynamic-int8 (activations are quantized as they come) or int8 (weights
    /// are stored so, products stay float). One that is named is written even if it measures slower.
    #[arg(long, value_parser = format, default_value = "auto")]
    format: Choice,
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
        format: args.format,
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
