//! `espalier analyze`: what a model is made of and what can be pruned.

use std::path::PathBuf;

use clap::Args as ClapArgs;

use super::common::Reporting;
use crate::pipeline::analysis::{Analysis, Shares, analyze};

/// Locks shown; `--json` has all.
const SHOWN: usize = 24;

/// Arguments of `analyze`.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Example:\n  espalier analyze model.onnx --json")]
pub struct Args {
    /// The model.
    model: PathBuf,
    #[command(flatten)]
    reporting: Reporting,
}

/// Runs `analyze`.
///
/// # Errors
/// The model cannot be read.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let analysis = analyze(&args.model)?;
    let recommend = recommend(&analysis);
    if args.reporting.json {
        let mut object = serde_json::to_value(&analysis)?;
        if let Some(object) = object.as_object_mut() {
            object.insert("recommend".into(), recommend.into());
        }
        println!("{object}");
        return Ok(());
    }
    print(&analysis);
    for line in recommend {
        println!("{line}");
    }
    Ok(())
}

fn print(analysis: &Analysis) {
    let outside = analysis.params.saturating_sub(analysis.inner_params);
    println!(
        "parameters {}, of which {outside} in embeddings and final classifiers",
        analysis.params
    );
    if analysis.file_params > analysis.params {
        println!(
            "  the file holds {}; the others are never read, or belong to branches that are never taken",
            analysis.file_params
        );
    }
    match analysis.macs {
        Some(macs) => println!(
            "multiply-accumulates {macs} for one sample, with sizes that the model leaves open taken as 1"
        ),
        None => println!("multiply-accumulates unknown: no product's shapes are known"),
    }
    println!("{}", taken("in groups at all:", analysis.in_groups));
    println!("{}", taken("half of every group takes", analysis.half));
    println!("{}", taken("  at widths that engines like", analysis.half_aligned));
    println!(
        "at most {} of the parameters and {} of the multiply-accumulates can go",
        percent(Some(analysis.prunable_params)),
        percent(analysis.prunable_macs)
    );
    for part in &analysis.excluded {
        println!("  left out as {}: {} ({} parameters)", part.kind, part.constant, part.params);
    }
    println!("groups:");
    for group in &analysis.groups {
        println!("  {:5} units  {}", group.width, group.label);
    }
    print_locks(analysis);
    if !analysis.not_understood.is_empty() {
        println!("not understood, and so kept with all that it touches:");
    }
    for line in &analysis.not_understood {
        println!("  {line}");
    }
}

fn print_locks(analysis: &Analysis) {
    println!("what keeps its width, with the parameters that it holds back:");
    for lock in analysis.blocked.iter().take(SHOWN) {
        println!("  {:9}  {}, locked by {}: {}", lock.holds, lock.dim, lock.locker(), lock.why);
    }
    if let Some(more) = analysis.blocked.len().checked_sub(SHOWN).filter(|more| *more > 0) {
        println!("  and {more} more, none of which holds more; --json has all");
    }
}

/// A line on shares of everything, and of everything but embeddings and classifiers.
fn taken(what: &str, shares: Shares) -> String {
    format!(
        "{what} {} of the parameters ({} without embeddings and final classifiers), {} of the multiply-accumulates",
        percent(Some(shares.params)),
        percent(Some(shares.inner_params)),
        percent(shares.macs)
    )
}

fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| "an unknown share".into(), |share| format!("{:.1} %", share * 100.0))
}

fn recommend(analysis: &Analysis) -> Vec<String> {
    if analysis.groups.is_empty() {
        return vec!["nothing can be pruned; see what is locked and why".into()];
    }
    match analysis.prunable_macs {
        Some(share) if share < 0.2 => vec![format!(
            "pruning removes at most {:.0} % of the work; quantization may bring more",
            share * 100.0
        )],
        _ => vec!["espalier compress, with calibration and held-out samples and a budget".into()],
    }
}
