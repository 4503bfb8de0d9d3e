//! Every score with every repair on the Fashion-MNIST net, without training: true accuracy.

use anyhow::{Context, Result};

use super::kit::{Kit, Tool, Verdict};
use super::subject::by_name;

/// Shares of units kept.
pub(super) const KEEP: [f64; 3] = [0.75, 0.5, 0.25];
const SCORES: [&str; 9] = [
    "random",
    "magnitude",
    "magnitude-l1",
    "activation",
    "apoz",
    "wanda",
    "obs",
    "combined",
    "auto",
];
const REPAIRS: [&str; 4] = ["none", "bn", "gram", "ls"];

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
    let mut lines = Vec::new();
    let mut paths = Vec::new();
    for tool in tools {
        eprintln!("  {}", tool.title());
        let mut cells = Vec::new();
        for keep in KEEP {
            let (path, cost) = kit.prune(subject, tool, 1.0 - keep)?;
            cells.push(match cost.why {
                Some(why) => Err(why),
                None => {
                    paths.push(path);
                    Ok(Cell { accuracy: 0.0, params: 0 })
                }
            });
        }
        lines.push(Line { tool, cells });
    }
    let mut verdicts = kit.judge(subject, &paths)?.into_iter().map(cell);
    let original = verdicts.next().context("the judge gave no verdict")?;
    let good = lines.iter_mut().flat_map(|line| &mut line.cells).filter(|cell| cell.is_ok());
    for (made, judged) in good.zip(verdicts) {
        *made = judged;
    }
    Ok(Repairs { original: original.map_err(anyhow::Error::msg)?, lines })
}

fn cell(verdict: Verdict) -> Result<Cell, String> {
    match verdict {
        Verdict::Judged { params, quality, .. } => Ok(Cell { accuracy: quality, params }),
        Verdict::Failed { why } => Err(why),
    }
}
