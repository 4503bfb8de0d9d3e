//! Structured pruning against its peers: what each removes, what is left of the model's answers, and what it costs.
//!
//! Every tool runs as a process of its own on the same model and the same calibration samples. All results are ONNX
//! files, judged and timed by the same code: ONNX Runtime in Python judges, `espalier bench` times.

mod fashion;
mod kit;
mod real;
mod subject;
mod table;

use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;

use crate::paths;
use kit::Kit;
use subject::{Subject, by_name};

#[derive(Args)]
pub(crate) struct PruneArgs {
    /// Only this model (rec, det, cls, silero, magika, fashion), and no file is written; may be repeated
    #[arg(long = "model", value_name = "NAME", value_parser = by_name)]
    models: Vec<&'static Subject>,
    /// Leave the table of every score and repair on the Fashion-MNIST net out
    #[arg(long)]
    no_repairs: bool,
}

pub(super) fn run(args: &PruneArgs) -> Result<ExitCode> {
    let all: Vec<_> = subject::SUBJECTS.iter().collect();
    let subjects = if args.models.is_empty() { all } else { args.models.clone() };
    let kit = Kit::ready(&subjects)?;
    let mut results = Vec::new();
    for subject in &subjects {
        eprintln!("{}", subject.title);
        let result = real::measure(&kit, subject)?;
        // A run that is stopped later has shown this much.
        eprintln!("\n{}", table::section(&result)?);
        results.push(result);
    }
    let with_repairs = !args.no_repairs && subjects.iter().any(|subject| subject.name == "fashion");
    let repairs = if with_repairs { Some(fashion::measure(&kit)?) } else { None };
    let text = table::document(&results, repairs.as_ref())?;
    println!("{text}");
    if args.models.is_empty() && with_repairs {
        let to = paths::root().join("docs/benchmarks/prune.md");
        fs::write(&to, &text).with_context(|| format!("cannot write {}", to.display()))?;
        eprintln!("written to {}", to.display());
    }
    Ok(ExitCode::SUCCESS)
}
