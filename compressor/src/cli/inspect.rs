//! `espalier inspect`: what a file holds, and why a dimension stays.

use std::path::PathBuf;

use clap::Args as ClapArgs;

use super::common::Reporting;
use crate::pipeline::inspect::{Axis, Place, Summary, Tensor, explain, summarize};

/// Arguments of `inspect`.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  espalier inspect model.onnx
  espalier inspect model.onnx --why Conv_17")]
pub struct Args {
    /// The model.
    model: PathBuf,
    /// A node, or a value: which of its dimensions can be pruned, and what keeps the others.
    #[arg(long, value_name = "NODE")]
    why: Option<String>,
    #[command(flatten)]
    reporting: Reporting,
}

/// Runs `inspect`.
///
/// # Errors
/// The model cannot be read, or has nothing of that name.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let json = args.reporting.json;
    match &args.why {
        None => {
            let summary = summarize(&args.model)?;
            if json {
                println!("{}", serde_json::to_string(&summary)?);
            } else {
                print_summary(&summary);
            }
        }
        Some(name) => {
            let why = explain(&args.model, name)?;
            if json {
                println!("{}", serde_json::to_string(&why)?);
            } else {
                why.places.iter().for_each(print_place);
            }
        }
    }
    Ok(())
}

fn print_summary(summary: &Summary) {
    let opsets: Vec<String> =
        summary.opsets.iter().map(|(domain, version)| format!("{domain} {version}")).collect();
    println!("IR {}, operator sets {}", summary.ir_version, opsets.join(", "));
    print_tensors("input", &summary.inputs);
    print_tensors("output", &summary.outputs);
    println!("{} nodes", summary.nodes);
    for op in &summary.ops {
        println!("  {:5}  {}", op.count, op.op);
    }
    println!("{} parameters, {} constants; the largest:", summary.params, summary.constants);
    print_tensors(" ", &summary.largest);
    for line in &summary.conflicts {
        println!("conflict: {line}");
    }
    for line in &summary.warnings {
        println!("not understood: {line}");
    }
}

fn print_tensors(what: &str, tensors: &[Tensor]) {
    for tensor in tensors {
        let constant = if tensor.constant && what != " " { " (constant)" } else { "" };
        println!("{what} {}: {} {}{constant}", tensor.name, tensor.dtype, tensor.dims);
    }
}

fn print_place(place: &Place) {
    println!("{}: {}, in {}", place.name, place.what, place.graph);
    if place.opaque {
        println!(
            "  the operator is not understood: it is carried along, and locks what it touches"
        );
    }
    print_tensors("  reads", &place.inputs);
    print_tensors("  gives", &place.outputs);
    place.axes.iter().for_each(print_axis);
    if !place.locks.is_empty() {
        println!("  it locks:");
    }
    for lock in &place.locks {
        println!("    {} ({} parameters): {}", lock.dim, lock.holds, lock.why);
    }
}

fn print_axis(axis: &Axis) {
    println!("  {}[{}] = {}", axis.value, axis.axis, axis.size);
    for group in &axis.groups {
        println!(
            "    can go: {} the {} units of group {} ({}); computed by {}; summed by {}",
            group.role,
            group.width,
            group.group,
            group.label,
            list(&group.producers),
            list(&group.consumers)
        );
    }
    for kept in &axis.kept {
        println!("    stays: {} is locked by {}: {}", kept.dim, kept.by, kept.why);
        for hop in &kept.chain {
            println!("      over {hop}");
        }
    }
    if axis.groups.is_empty() && axis.kept.is_empty() {
        println!("    no weight's units: nothing to prune");
    }
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "nothing".into() } else { names.join(", ") }
}
