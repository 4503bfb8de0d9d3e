//! What `espalier prune` is told of budgets, and what it tells of allocations.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args as ClapArgs;

use super::common::{amount, count, duration, share, size};
use crate::pipeline::Progress;
use crate::pipeline::budget::{Allocation, Amount, Budget, BudgetJob, CURVE_SAMPLES, prune_to};
use crate::pipeline::single::{PruneJob, PruneOutcome};
use crate::plan::Plan;
use crate::search::milliseconds;

/// How narrow the model becomes, and what choosing that takes.
#[derive(Debug, ClapArgs)]
#[group(skip)]
pub struct BudgetArgs {
    #[command(flatten)]
    most: Most,
    /// With --ratio: as many parameters as that ratio would leave, but each group narrowed by what that loses.
    #[arg(long, conflicts_with_all = ["params", "macs", "size", "latency"])]
    global: bool,
    /// Samples of --data that losses are measured on.
    #[arg(long, value_name = "N", default_value_t = CURVE_SAMPLES, value_parser = samples)]
    curve_samples: usize,
    /// Where measured losses and times are kept, from which a run that was stopped goes on [default: the output's name
    /// with .curves.jsonl behind it].
    #[arg(long, value_name = "FILE")]
    curves: Option<PathBuf>,
    /// Where the plan is written, for `espalier apply`.
    #[arg(long, value_name = "FILE")]
    pub(super) plan_out: Option<PathBuf>,
}

/// Exactly one of these.
#[derive(Debug, ClapArgs)]
#[group(required = true, multiple = false)]
struct Most {
    /// Share of units to keep in every group, rounded up to what engines like.
    #[arg(long, value_name = "SHARE", value_parser = share)]
    ratio: Option<f64>,
    /// At most so many parameters: 250k, 1.5M, or a share of the original's: 60%. As with all budgets, each group is
    /// narrowed by what that loses.
    #[arg(long, value_name = "COUNT", value_parser = counts)]
    params: Option<Amount>,
    /// At most so many multiply-accumulates of one sample: 20M, or a share: 50%.
    #[arg(long, value_name = "COUNT", value_parser = counts)]
    macs: Option<Amount>,
    /// At most so large a model file: 3MB, 64MiB, or a share: 50%.
    #[arg(long, value_name = "BYTES", value_parser = sizes)]
    size: Option<Amount>,
    /// At most so long a median inference in --runtime with --threads on this host: 5ms, or a share: 70%. Measured.
    #[arg(long, value_name = "TIME", value_parser = times, requires = "data")]
    latency: Option<Amount>,
}

fn counts(text: &str) -> Result<Amount, String> {
    amount(text, |text| count(text).map(|n| n as f64))
}

fn sizes(text: &str) -> Result<Amount, String> {
    amount(text, |text| size(text).map(|n| n as f64))
}

fn times(text: &str) -> Result<Amount, String> {
    amount(text, |text| duration(text).map(|d| d.as_secs_f64() * 1e6))
}

fn samples(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| *n > 0).ok_or_else(|| "samples are at least 1".into())
}

impl BudgetArgs {
    /// Share of units to keep; 1 under a budget, which does not look at it.
    pub(super) fn ratio(&self) -> f64 {
        self.most.ratio.unwrap_or(1.0)
    }

    /// The budget; none where every group keeps the same share.
    pub(super) fn budget(&self) -> Option<Budget> {
        let most = &self.most;
        let global = most.ratio.filter(|_| self.global).map(Budget::Global);
        let params = most.params.map(Budget::Params);
        let macs = most.macs.map(Budget::Macs);
        let size = most.size.map(Budget::Size);
        let latency = most.latency.map(Budget::Latency);
        global.or(params).or(macs).or(size).or(latency)
    }

    /// What was asked for, as a sentence.
    pub(super) fn sentence(&self) -> String {
        let most = |what: &str, amount: &Amount, unit: &str| match amount {
            Amount::Share(share) => {
                format!("Goal: at most {} % of the original's {what}.", share * 100.0)
            }
            Amount::Of(number) => format!("Goal: at most {number}{unit} {what}."),
        };
        match self.budget() {
            None => {
                let ratio = self.ratio() * 100.0;
                format!("Goal: {ratio} % of the units of every group.")
            }
            Some(Budget::Global(ratio)) => format!(
                "Goal: as many parameters as {} % of the units of every group leave.",
                ratio * 100.0
            ),
            Some(Budget::Params(amount)) => most("parameters", &amount, ""),
            Some(Budget::Macs(amount)) => most("multiply-accumulates", &amount, ""),
            Some(Budget::Size(amount)) => most("file size", &amount, " bytes of"),
            Some(Budget::Latency(amount)) => most("median latency", &amount, " µs of"),
        }
    }

    /// Prunes under the budget.
    pub(super) fn prune(
        &self,
        prune: PruneJob,
        budget: Budget,
        progress: &dyn Progress,
    ) -> anyhow::Result<PruneOutcome> {
        let (curves, curve_samples) = (self.curves.clone(), self.curve_samples);
        Ok(prune_to(&BudgetJob { prune, budget, curves, curve_samples }, progress)?)
    }
}

/// Writes a plan so that people can read and edit it.
pub(super) fn write_plan(plan: &Plan, file: &Path) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(plan)?;
    std::fs::write(file, text + "\n")
        .with_context(|| format!("writing the plan {}", file.display()))
}

/// Says what an allocation came to, and whether the model is faster.
pub(super) fn describe(outcome: &PruneOutcome) {
    if let Some(allocation) = &outcome.allocation {
        describe_allocation(allocation);
    }
    let Some(speed) = &outcome.latency else { return };
    let (ratio, host) = (speed.host.ratio, &speed.host);
    let engine = format!("{} with {} thread(s)", speed.engine, speed.threads);
    if speed.faster {
        println!("takes {ratio:.2} of the original's time in {engine}");
    } else {
        println!(
            "NOT measurably faster than the original in {engine}: {ratio:.2} of its time ({:.2} to {:.2}, {} rounds)",
            host.ratio_low, host.ratio_high, host.rounds
        );
    }
}

fn describe_allocation(allocation: &Allocation) {
    let show = |value: f64| match allocation.of {
        "latency_us" => milliseconds(value),
        _ => format!("{value:.0}"),
    };
    println!(
        "{}: budget {}, expected {}, is {} (of {})",
        allocation.of,
        show(allocation.budget),
        show(allocation.predicted),
        show(allocation.real),
        show(allocation.original)
    );
    if let Some(loss) = allocation.loss_measured {
        let even = allocation.even.and_then(|even| Some((even.ratio, even.loss_measured?)));
        let even = even.map_or_else(String::new, |(ratio, loss)| {
            format!("; the same share of every group ({:.0} %) loses {loss:.4}", ratio * 100.0)
        });
        println!("loss before re-fitting {loss:.4}{even}");
    }
    if let Some(points) = &allocation.points {
        let file = points.file.display();
        println!("losses measured {}, found in {file} {}", points.measured, points.reused);
    }
}
