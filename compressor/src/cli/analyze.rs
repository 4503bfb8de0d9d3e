//! `espalier analyze`: what a model is made of and what can be pruned.

use std::path::PathBuf;

use clap::Args as ClapArgs;
use serde_json::json;

use super::common::Reporting;
use crate::pipeline::shop::{Source, macs};
use crate::plan::{GroupChoice, aligned_keep};

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
    let source = Source::load(&args.model)?;
    let params = source.params;
    let work = macs(&source.model, &source.shapes);
    let narrowest = narrowest(&source);
    let smallest = source.pruned(&narrowest)?;
    let share = |before: Option<u64>, after: Option<u64>| match (before, after) {
        (Some(b), Some(a)) if b > 0 => Some(1.0 - a as f64 / b as f64),
        _ => None,
    };
    let prunable_params = share(Some(params), Some(graph::cost::params(&smallest)));
    let after = macs(&smallest, &graph::infer(&smallest));
    let prunable_macs = share(work, after);
    let groups: Vec<serde_json::Value> = source
        .grouping
        .groups
        .iter()
        .enumerate()
        .map(|(index, g)| {
            json!({"group": index, "label": source.group_label(index), "width": g.width,
                "constants": g.slices.len(), "consumers": g.consumers.len()})
        })
        .collect();
    let blocked: Vec<serde_json::Value> = source
        .grouping
        .locked
        .iter()
        .map(|l| {
            json!({"dim": format!("{}[{}] = {}", source.graph_of(&l.scope).value(l.value).name, l.axis, l.width),
                "by": by(&source, l), "why": l.why})
        })
        .collect();
    let recommend = recommend(&source, prunable_macs);
    if args.reporting.json {
        println!(
            "{}",
            json!({"params": params, "macs": work, "prunable_params": prunable_params,
                "prunable_macs": prunable_macs, "groups": groups, "blocked": blocked, "recommend": recommend})
        );
        return Ok(());
    }
    let percent =
        |v: Option<f64>| v.map_or_else(|| "unknown".into(), |v| format!("{:.0} %", v * 100.0));
    println!("parameters {params}, of which {} can be removed", percent(prunable_params));
    match work {
        Some(macs) => println!(
            "multiply-accumulates {macs}, of which {} can be removed",
            percent(prunable_macs)
        ),
        None => println!("multiply-accumulates unknown: some shapes are not known"),
    }
    println!("groups:");
    for (index, group) in source.grouping.groups.iter().enumerate() {
        println!("  {:5} units  {}", group.width, source.group_label(index));
    }
    println!("locked:");
    for line in source.locked() {
        println!("  {line}");
    }
    for line in recommend {
        println!("{line}");
    }
    Ok(())
}

fn narrowest(source: &Source) -> Vec<GroupChoice> {
    source
        .widths()
        .iter()
        .enumerate()
        .filter_map(|(index, width)| {
            let count = aligned_keep(*width, 0.0);
            (count < *width).then(|| source.choice(index, (0..count as u32).collect()))
        })
        .collect()
}

fn by(source: &Source, locked: &graph::Locked) -> String {
    match locked.by {
        graph::LockedBy::Node(node) => crate::refit::label(source.graph_of(&locked.scope), node),
        graph::LockedBy::Limit => "a limit of espalier".into(),
        graph::LockedBy::GraphInput => "model input".into(),
        graph::LockedBy::GraphOutput => "model output".into(),
    }
}

fn recommend(source: &Source, prunable_macs: Option<f64>) -> Vec<String> {
    if source.grouping.groups.is_empty() {
        return vec!["nothing can be pruned; see what is locked and why".into()];
    }
    match prunable_macs {
        Some(share) if share < 0.2 => vec![format!(
            "pruning removes at most {:.0} % of the work; quantization may bring more",
            share * 100.0
        )],
        _ => vec!["espalier compress, with calibration and held-out samples and a budget".into()],
    }
}
