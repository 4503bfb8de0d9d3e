//! Every score with every repair on the Fashion-MNIST net, without training: true accuracy.

use anyhow::{Context, Result};

use super::kit::{Kit, Tool, Verdict, in_pairs};
use super::subject::by_name;

/// Shares of units kept.
pub(super) const KEEP: [f64; 3] = [0.75, 0.5, 0.25];
const SCORES: [&str; 10] = [
    "random",
    "magnitude",
    "magnitude-l1",
    "activation",
    "mean-abs",
    "apoz",
    "wanda",
    "obs",
    "combined",
    "auto",
];
const REPAIRS: [&str; 5] = ["none", "bn", "gram", "gram,bn", "ls"];

/// One tool at each of [`KEEP`].
pub(super) struct Line {
    pub(super) tool: Tool,
    pub(super) cells: Vec<Result<Cell, String>>,
}

pub(super) struct Cell {
    pub(super) accuracy: f64,
    pub(super) params: u64,
}

/// The table's lines, and the original's accuracy and parameters.
pub(super) struct Repairs {
    pub(super) original: Cell,
    pub(super) lines: Vec<Line>,
}

pub(super) fn measure(kit: &Kit) -> Result<Repairs> {
    let subject = by_name("fashion").map_err(anyhow::Error::msg)?;
    let ours =
        SCORES.into_iter().flat_map(|score| REPAIRS.map(|repair| Tool::Ours { score, repair }));
    let tools: Vec<_> = Tool::PEERS.into_iter().chain(ours).collect();
    let asked: Vec<_> =
        tools.iter().flat_map(|&tool| KEEP.map(|keep| (tool, 1.0 - keep))).collect();
    eprintln!("  {} scores, repairs and shares", asked.len());
    let runs = in_pairs(&asked, |&(tool, remove)| kit.prune(subject, tool, remove));
    let mut cells = Vec::new();
    let mut paths = Vec::new();
    for run in runs {
        let (path, cost) = run?;
        cells.push(match cost.why {
            Some(why) => Err(why),
            None => {
                paths.push(path);
                Ok(Cell { accuracy: 0.0, params: 0 })
            }
        });
    }
    let halves: Vec<_> = paths.chunks(paths.len().div_ceil(2).max(1)).collect();
    let mut original = None;
    let mut verdicts = Vec::new();
    for judged in in_pairs(&halves, |half| kit.judge(subject, half)) {
        let mut judged = judged?.into_iter().map(cell);
        original = judged.next();
        verdicts.extend(judged);
    }
    let original = original.context("the judge gave no verdict")?;
    for (made, judged) in cells.iter_mut().filter(|cell| cell.is_ok()).zip(verdicts) {
        *made = judged;
    }
    let mut cells = cells.into_iter();
    let lines = tools
        .into_iter()
        .map(|tool| Line { tool, cells: cells.by_ref().take(KEEP.len()).collect() })
        .collect();
    Ok(Repairs { original: original.map_err(anyhow::Error::msg)?, lines })
}

fn cell(verdict: Verdict) -> Result<Cell, String> {
    match verdict {
        Verdict::Judged { params, quality, .. } => Ok(Cell { accuracy: quality, params }),
        Verdict::Failed { why } => Err(why),
    }
}
