//! The text of `docs/benchmarks/prune.md`.

use std::fmt::Write as _;

use anyhow::Result;

use super::fashion::{KEEP, Repairs};
use super::kit::{Cost, ENGINES, Tool};
use super::real::{ANSWERING, EQUAL, Good, Made, Measured, OURS, OURS_CHEAP, OURS_PLAIN, REMOVE};
use crate::bench::loop_bench::host;

const HEAD: &str = "# Structured pruning beside its peers

Written by `cargo xtask bench prune`: one run on one machine, which other work may have shared; trust ratios, not
absolute times. Peers: `onnxsim` 0.8.1, after its own simplification, plain (L2 norm) and calibrated (its Wanda score
and its closed-form fine-tuning, on the samples that Espalier gets too); `torch-pruning` 1.6.1 (group L2 norm) on
Debian's PyTorch through `onnx2torch` 1.5.15, where constants are turned into the layers and parameters that a PyTorch
model would have, and the last layers and those taken apart by a reshape are left alone. Nothing is trained.

Espalier is the `release` build that the tests use (opt-level 2 in our crates, overflow checks, debug assertions).
Every tool is a process of its own; its wall time and peak memory are the whole process's, loading and writing
included. Parameters are the elements of all constants; folding a batch normalization removes some, and counts.
None of the tools times its result; Espalier, which does unless told not to, is told so.

Samples: lines and pages of text are rendered (licence texts in DejaVu faces, several colours, blur and noise), not
photographed; speech is Debian's English telephone prompts, resampled to 16 kHz, with pauses and noise; the rest is
named below. Calibration and held-out samples never share a text, a recording, a package or an image.
";

pub(super) fn document(results: &[Measured], repairs: Option<&Repairs>) -> Result<String> {
    let mut text = format!("{HEAD}\nHost: {}\n\n", host());
    coverage(&mut text, results)?;
    verdict(&mut text, results)?;
    costs(&mut text, results)?;
    for result in results {
        text += &section(result)?;
    }
    if let Some(repairs) = repairs {
        repair_table(&mut text, repairs)?;
    }
    Ok(text)
}

/// What each tool removes when asked for half of the units.
fn coverage(text: &mut String, results: &[Measured]) -> Result<()> {
    writeln!(text, "## Parameters removed when asked for half of the units\n")?;
    writeln!(text, "| model | parameters | can be removed | espalier | {} |", peer_titles())?;
    writeln!(text, "|---|---|---|---|{}", "---|".repeat(Tool::PEERS.len()))?;
    for result in results {
        let removed = |tool| match find(result, tool, REMOVE[0]).map(|made| &made.outcome) {
            Some(Ok(good)) => percent(1.0 - ratio(good.params, result.params)),
            Some(Err(_)) => "failed".into(),
            None => "not run".into(),
        };
        let peers: Vec<_> = Tool::PEERS.into_iter().map(removed).collect();
        writeln!(
            text,
            "| {} | {} | {} | {} | {} |",
            result.subject.title,
            result.params,
            result.analysis["prunable_params"].as_f64().map_or("unknown".into(), percent),
            removed(OURS),
            peers.join(" | ")
        )?;
    }
    writeln!(
        text,
        "\n\"Can be removed\": what `espalier analyze` finds, at the narrowest widths. All shares are of all parameters: \
         embeddings and final classifiers count, though their outer dimension cannot go.\n"
    )?;
    Ok(())
}

fn peer_titles() -> String {
    Tool::PEERS.map(Tool::title).join(" | ")
}

fn find(result: &Measured, tool: Tool, remove: f64) -> Option<&Made> {
    result.made.iter().find(|made| made.tool == tool && (made.remove - remove).abs() < 1e-9)
}

/// How often Espalier's answers are better, over all that the peers made.
fn verdict(text: &mut String, results: &[Measured]) -> Result<()> {
    writeln!(text, "## How Espalier compares\n")?;
    writeln!(
        text,
        "Over every model that a peer made ({} % of the units asked for): Espalier's quality is higher / equal / \
         lower.\n",
        REMOVE.map(|remove| format!("{:.0}", remove * 100.0)).join(", ")
    )?;
    writeln!(
        text,
        "| model | at most as many parameters, {} | {} | at most its latency in {} | in {} |\n|---|---|---|---|---|",
        ANSWERING[0].title(),
        ANSWERING[1].title(),
        ENGINES[0],
        ENGINES[1]
    )?;
    for result in results {
        let mut columns = [[0_usize; 3]; 4];
        for (index, peer) in peers(result) {
            let Ok(theirs) = &peer.outcome else { continue };
            if theirs.params >= result.params {
                continue;
            }
            let rivals = [
                result.answer(0, index),
                result.answer(1, index),
                result.as_fast_as(peer, 0),
                result.as_fast_as(peer, 1),
            ];
            for (column, rival) in columns.iter_mut().zip(rivals) {
                if let Some(Ok(ours)) = rival.map(|made| &made.outcome) {
                    column[standing(ours.quality, theirs.quality)] += 1;
                }
            }
        }
        let shown = columns.map(|[more, same, less]| format!("{more} / {same} / {less}"));
        writeln!(text, "| {} | {} |", result.subject.title, shown.join(" | "))?;
    }
    writeln!(
        text,
        "\nNo slower: within {:.0} % of the peer's latency, among all models that Espalier made here. Where a peer \
         removed nothing there is nothing to compare. Latencies are answered by `{}`.\n",
        (EQUAL - 1.0) * 100.0,
        OURS.title()
    )?;
    Ok(())
}

fn standing(ours: f64, theirs: f64) -> usize {
    if ours > theirs + 5e-4 {
        0
    } else if ours < theirs - 5e-4 {
        2
    } else {
        1
    }
}

fn peers(result: &Measured) -> impl Iterator<Item = (usize, &Made)> {
    result.made.iter().enumerate().filter(|(_, made)| Tool::PEERS.contains(&made.tool))
}

fn costs(text: &mut String, results: &[Measured]) -> Result<()> {
    let tools = [
        OURS_PLAIN,
        Tool::OnnxsimPlain,
        Tool::TorchPruning,
        OURS_CHEAP,
        OURS,
        Tool::OnnxsimCalibrated,
    ];
    writeln!(
        text,
        "## Wall time, CPU time (in brackets) and peak memory, asked for half of the units\n"
    )?;
    let titles = tools.map(Tool::title).join(" | ");
    writeln!(
        text,
        "| model | espalier analyze | {titles} |\n|---|---|{}",
        "---|".repeat(tools.len())
    )?;
    for result in results {
        let cells = tools.map(|tool| {
            find(result, tool, REMOVE[0]).map_or("not run".into(), |made| {
                let failed = if made.cost.why.is_some() { " (failed)" } else { "" };
                format!("{}{failed}", cost(&made.cost))
            })
        });
        writeln!(
            text,
            "| {} | {} | {} |",
            result.subject.title,
            cost(&result.analysis_cost),
            cells.join(" | ")
        )?;
    }
    writeln!(
        text,
        "\nThe first three tools after `analyze` look at no samples, the last three do. `analyze` is the fastest of three \
         runs, and so is every tool of which a run takes less than 10 s.\n"
    )?;
    Ok(())
}

fn cost(cost: &Cost) -> String {
    let Cost { seconds, cpu_seconds, peak_rss_bytes, .. } = cost;
    format!("{seconds:.2} s ({cpu_seconds:.2} s), {:.0} MB", peak_rss_bytes / 1e6)
}

/// What was measured on one model.
pub(super) fn section(result: &Measured) -> Result<String> {
    let mut text = String::new();
    let subject = result.subject;
    writeln!(text, "## {}\n", subject.title)?;
    let medians: Vec<_> = ENGINES
        .iter()
        .zip(&result.original_us)
        .map(|(engine, us)| match us {
            Ok(us) => format!("{:.2} ms in {engine}", us / 1e3),
            Err(why) => format!("not timed in {engine} ({})", plain(why)),
        })
        .collect();
    writeln!(
        text,
        "Quality: {}. Samples: {}. The original: {} parameters, quality {:.4}, {}.\n",
        subject.quality,
        subject.samples,
        result.params,
        result.quality,
        medians.join(", ")
    )?;
    writeln!(
        text,
        "| tool | units asked for | parameters left | quality | mean difference | {} | {} | {}: parameters, quality | \
         {} | espalier as fast in {}, in {} |\n|---|---|---|---|---|---|---|---|---|---|",
        ENGINES[0],
        ENGINES[1],
        ANSWERING[0].title(),
        ANSWERING[1].title(),
        ENGINES[0],
        ENGINES[1]
    )?;
    let mut notes = Vec::new();
    for (index, made) in result.made.iter().enumerate() {
        row(&mut text, result, index, made, &mut notes)?;
    }
    for note in notes {
        writeln!(text, "\n{note}")?;
    }
    writeln!(text)?;
    Ok(text)
}

fn row(
    text: &mut String,
    result: &Measured,
    index: usize,
    made: &Made,
    notes: &mut Vec<String>,
) -> Result<()> {
    let (tool, asked) = (made.tool.title(), percent(made.remove));
    let good = match &made.outcome {
        Ok(good) => good,
        Err(why) => {
            notes.push(format!("{tool}, {asked}: {}", plain(why)));
            writeln!(text, "| {tool} | {asked} | failed | | | | | | | |")?;
            return Ok(());
        }
    };
    let equal = [0, 1].map(|by| equal(result, good, result.answer(by, index))).join(" | ");
    let has_removed = good.params < result.params;
    let fast = if Tool::PEERS.contains(&made.tool) && has_removed {
        [0, 1].map(|engine| as_fast(result, made, engine)).join(", ")
    } else {
        String::new()
    };
    writeln!(
        text,
        "| {tool} | {asked} | {} | {:.4} | {:.2e} | {} | {} | {equal} | {fast} |",
        percent(ratio(good.params, result.params)),
        good.quality,
        good.error,
        times(good, 0),
        times(good, 1),
    )?;
    Ok(())
}

/// What Espalier answered to `peer` with at most as many parameters.
fn equal(result: &Measured, peer: &Good, answer: Option<&Made>) -> String {
    answer.map_or(String::new(), |made| match &made.outcome {
        Ok(ours) => {
            let left = percent(ratio(ours.params, result.params));
            let over = if ours.params > peer.params { " (more than the peer)" } else { "" };
            format!("{left}, {:.4}{over}", ours.quality)
        }
        Err(_) => "failed".into(),
    })
}

fn as_fast(result: &Measured, peer: &Made, engine: usize) -> String {
    match result.as_fast_as(peer, engine).map(|made| &made.outcome) {
        Some(Ok(ours)) => format!("{:.4}", ours.quality),
        _ => "none".into(),
    }
}

fn times(good: &Good, engine: usize) -> String {
    good.latency[engine].as_ref().map_or("not timed".into(), |share| format!("{share:.2}x"))
}

fn repair_table(text: &mut String, repairs: &Repairs) -> Result<()> {
    writeln!(text, "## Fashion-MNIST: every score and repair, without training\n")?;
    writeln!(
        text,
        "True accuracy on the 10 000 test images, and in brackets the share of the parameters that is left, where every \
         group keeps the given share of its units (Espalier rounds it up to what engines like). Repairs have 512 \
         training images without labels. The net as it is: {:.2} %, {} parameters.\n",
        repairs.original.accuracy * 100.0,
        repairs.original.params
    )?;
    let kept = KEEP.map(|keep| format!("{:.0} % kept", keep * 100.0)).join(" | ");
    writeln!(text, "| tool, score, repair | {kept} |\n|---|---|---|---|")?;
    let mut notes = Vec::new();
    for line in &repairs.lines {
        let title = line.tool.title();
        let cells: Vec<_> = line
            .cells
            .iter()
            .map(|cell| match cell {
                Ok(cell) => format!(
                    "{:.2} % ({})",
                    cell.accuracy * 100.0,
                    percent(ratio(cell.params, repairs.original.params))
                ),
                Err(why) => {
                    let note = format!("{title}: {}", plain(why));
                    if !notes.contains(&note) {
                        notes.push(note);
                    }
                    "failed".into()
                }
            })
            .collect();
        writeln!(text, "| {title} | {} |", cells.join(" | "))?;
    }
    for note in notes {
        writeln!(text, "\n{note}")?;
    }
    Ok(())
}

fn ratio(a: u64, b: u64) -> f64 {
    a as f64 / b.max(1) as f64
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

/// Text that may stand in a table and names no folder of this machine.
fn plain(text: &str) -> String {
    let words = text.split_whitespace().map(|word| {
        let bare = word.trim_matches(['"', '\'', ',', '`', ':']);
        if bare.starts_with('/') { bare.rsplit('/').next().unwrap_or_default() } else { word }
    });
    words.collect::<Vec<_>>().join(" ").replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_in_the_table_names_no_folder() {
        assert_eq!(plain("cannot read \"/a/b/model.onnx\": a|b"), "cannot read model.onnx a\\|b");
    }

    #[test]
    fn qualities_that_round_alike_are_equal() {
        assert_eq!([standing(0.9, 0.8), standing(0.8, 0.8004), standing(0.7, 0.8)], [0, 1, 2]);
    }
}
