//! `prune` under a budget: curves, allocation of widths, and the check that what was written keeps it.

mod choose;
mod report;

use std::path::PathBuf;

use graph::NodeId;

use super::apply::{Applied, apply};
use super::counted::{Counter, What, counted, narrowed};
use super::curves::store::{Host, Key, Store};
use super::curves::{self, Field, Ground, Muted};
use super::finish::TOOL;
use super::hunt::{PAYS, Rating};
use super::repair::Fitting;
use super::shop::{Bench, Shop, Source, constant_bytes, save};
use super::single::{self, PruneJob, PruneOutcome};
use super::{Progress, auto, locked_dims};
use crate::allocate::{Cost as _, Menu, uniform};
use crate::calibrate::WorkDir;
use crate::error::CompressError;
use crate::latency::{HostLatency, Speed};
use crate::plan::{GroupChoice, Plan, Refusal, RepairKind, ScoreKind};
use crate::score::Evidence;
use choose::{Chosen, Counting, Timing};

pub use super::curves::{Curve, CurvePoint, LossOf};
pub use report::{Allocation, Even, Points, Trial};

/// Samples that curves are measured on unless said otherwise.
pub const CURVE_SAMPLES: usize = 64;
/// Whole models made and checked against a budget.
const ATTEMPTS: usize = 3;

/// How much may be left.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Amount {
    /// A share of what the original has, above 0 and at most 1.
    Share(f64),
    /// So much, in the budget's unit.
    Of(f64),
}

/// What a pruned model may cost at most.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Budget {
    /// As many parameters as the same share of units in every group would leave.
    Global(f64),
    /// Parameters.
    Params(Amount),
    /// Multiply-accumulates of one sample.
    Macs(Amount),
    /// Bytes of the model file, external data included.
    Size(Amount),
    /// Median time of one inference in the job's engine with its threads, in microseconds.
    Latency(Amount),
}

/// What `prune` under a budget is asked to do.
#[derive(Debug, Clone)]
pub struct BudgetJob {
    /// Model, samples and rating. Its `ratio` is not looked at: the budget decides.
    pub prune: PruneJob,
    /// What may be left.
    pub budget: Budget,
    /// Where measurements are kept, so that a run that was stopped goes on; without it beside the output. Only with
    /// samples.
    pub curves: Option<PathBuf>,
    /// Samples that curves are measured on.
    pub curve_samples: usize,
}

impl BudgetJob {
    /// The file of measurements: the one named, or the output's name with `.curves.jsonl` behind it.
    pub fn curves_file(&self) -> PathBuf {
        self.curves.clone().unwrap_or_else(|| {
            let mut name = self.prune.output.clone().into_os_string();
            name.push(".curves.jsonl");
            name.into()
        })
    }
}

/// Narrows the groups of a model so that least is lost within a budget.
///
/// With samples, losses are measured, choices of widths are compared by measurement, and everything measured is kept
/// in [`BudgetJob::curves_file`]; a run that was stopped or killed goes on from there. Without, losses are modelled
/// from the ratings of units, and a latency cannot be a budget.
///
/// # Errors
/// See [`CompressError`]; among others the budget is out of reach, and the message names the nearest. Nothing is left
/// at the output on any of them.
pub fn prune_to(job: &BudgetJob, progress: &dyn Progress) -> Result<PruneOutcome, CompressError> {
    check(job)?;
    let Some(data) = &job.prune.data else {
        return from_ratings(job, progress);
    };
    let prune = &job.prune;
    let shell = single::shell(&prune.source, data, &prune.engine, prune.seed);
    let muted = Muted::new(progress);
    let shop = Shop::open_whole(&shell, &muted)?;
    let source = &shop.source;
    something(source)?;
    let kinds = single::repairs(source, prune);
    let seen = single::look(&shop, prune.score, &kinds, !kinds.is_empty(), auto::KEPT)?;
    let original = &seen.original;
    let (units, unrated) = seen.rating(prune.score).all_units(source, prune.seed)?;
    let mut refused: Vec<Refusal> = locked_dims(source).into_iter().chain(unrated).collect();
    refused.extend(seen.refused.iter().cloned());
    if !kinds.is_empty() {
        refused.extend(seen.unrepaired.iter().cloned());
    }
    let store = open_store(job, &kinds, &shop, &units, &muted)?;
    let ground = Ground {
        shop: &shop,
        progress: &muted,
        original,
        units: &units,
        score: prune.score,
        kinds: &kinds,
    };
    let mut field = Field::open(&ground, job.curve_samples, store)?;
    let reused = field.store.len();
    let curves = field.curves()?;
    let mut bench = Bench::open(&shop)?;
    let fitting = Fitting { shop: &shop, original };
    let mend = Some((fitting, kinds.as_slice()));
    let maker = Maker { job, source, work: &shop.work, units: &units, mend };
    let mut made = maker.within(&curves, &mut Means::Measured(&mut field, &mut bench), progress)?;
    let host = match made.took {
        Some(host) => host,
        None => bench.against_reference(&made.path, Some(PAYS))?,
    };
    made.outcome.latency = Some(Speed::of(&prune.engine, &bench.stats, host, PAYS));
    made.outcome.auto.clone_from(&seen.picks);
    refused.append(&mut field.refused);
    let points =
        Points { measured: field.measured, reused, file: field.store.path().to_path_buf() };
    made.finish(job, curves, refused, Some(points))
}

/// Without samples.
fn from_ratings(job: &BudgetJob, progress: &dyn Progress) -> Result<PruneOutcome, CompressError> {
    let source = Source::load(&job.prune.source)?;
    something(&source)?;
    let score = match job.prune.score {
        ScoreKind::Auto => ScoreKind::Magnitude,
        kind => kind,
    };
    let rating = Rating { kind: score, by_group: &[], evidence: &Evidence::default() };
    let (units, unrated) = rating.all_units(&source, job.prune.seed)?;
    let refused = locked_dims(&source).into_iter().chain(unrated).collect();
    let curves = curves::of_ratings(&source, &units);
    let work = WorkDir::new(None)?;
    let maker = Maker { job, source: &source, work: &work, units: &units, mend: None };
    let made = maker.within(&curves, &mut Means::Ratings, progress)?;
    made.finish(job, curves, refused, None)
}

fn check(job: &BudgetJob) -> Result<(), CompressError> {
    let wrong = |what: &str| Err(CompressError::Goal(what.to_owned()));
    let amount = match job.budget {
        Budget::Global(share) => Amount::Share(share),
        Budget::Params(amount)
        | Budget::Macs(amount)
        | Budget::Size(amount)
        | Budget::Latency(amount) => amount,
    };
    match amount {
        Amount::Share(share) if !(share > 0.0 && share <= 1.0) => {
            wrong("a share of the original must be above 0 and at most 1")
        }
        Amount::Of(most) if !(most > 0.0 && most.is_finite()) => {
            wrong("a budget must be a number above zero")
        }
        _ if job.prune.data.is_none() && matches!(job.budget, Budget::Latency(_)) => {
            Err(unmeasured())
        }
        _ if job.curve_samples == 0 => wrong("curves need at least one sample"),
        _ => Ok(()),
    }
}

fn unmeasured() -> CompressError {
    CompressError::Goal("a latency is measured on samples; give them with --data".into())
}

fn something(source: &Source) -> Result<(), CompressError> {
    if source.grouping.groups.is_empty() {
        let (path, reasons) = (source.path.clone(), source.locked());
        return Err(CompressError::NothingToPrune { path, reasons });
    }
    Ok(())
}

fn open_store(
    job: &BudgetJob,
    kinds: &[RepairKind],
    shop: &Shop<'_>,
    units: &[Vec<f64>],
    progress: &dyn Progress,
) -> Result<Store, CompressError> {
    let ratings: Vec<u8> = units.iter().flatten().flat_map(|v| v.to_le_bytes()).collect();
    let key = Key {
        model: shop.source.digest.to_string(),
        data: shop.calibration.digest().to_string(),
        score: job.prune.score,
        repairs: curves::cheap(&shop.source, kinds),
        ratings: bundle::Digest::of(&ratings).to_string(),
        engine: shop.runner.describe(),
        seed: job.prune.seed,
        samples: job.curve_samples.min(shop.calibration.len()),
        tool: TOOL.to_owned(),
    };
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let host = Host { name, threads: job.prune.engine.threads };
    Store::open(&job.curves_file(), &key, host, progress)
}

/// What there is to choose by.
enum Means<'a, 'f> {
    /// Ratings alone.
    Ratings,
    /// Samples, and an engine to time in.
    Measured(&'a mut Field<'f>, &'a mut Bench),
}

/// Makes models of widths.
struct Maker<'a> {
    job: &'a BudgetJob,
    source: &'a Source,
    work: &'a WorkDir,
    units: &'a [Vec<f64>],
    /// What repairs a model, and how.
    mend: Option<(Fitting<'a>, &'a [RepairKind])>,
}

/// A finished model within the budget, not yet at the output.
struct Made {
    path: PathBuf,
    /// Where its time is the budget.
    took: Option<HostLatency>,
    model: graph::Model,
    outcome: PruneOutcome,
    allocation: Allocation,
}

/// A budget in numbers.
struct Limit {
    name: &'static str,
    /// What the original has.
    original: f64,
    most: f64,
}

impl Maker<'_> {
    /// Chooses widths, makes the model, and narrows it further where its repair took it over the budget.
    fn within(
        &self,
        curves: &[Curve],
        means: &mut Means<'_, '_>,
        progress: &dyn Progress,
    ) -> Result<Made, CompressError> {
        let menu = |curve: &Curve| {
            let points: Vec<_> = curve.points.iter().map(|p| (p.width, p.loss)).collect();
            Menu::of(curve.width, &points)
        };
        let menus: Vec<Menu> = curves.iter().map(menu).collect();
        let what = self.what()?;
        let refitted = self.refitted();
        let mut counter = Counter::new(self.source, self.units, &menus, what, refitted, progress);
        let limit = self.limit(&menus, &mut counter, means)?;
        let (mut most, mut nearest) = (limit.most, f64::INFINITY);
        for _ in 0..ATTEMPTS {
            let chosen = self.choose(&menus, &mut counter, means, &limit, most, progress)?;
            let widths = narrowed(&menus, &chosen.choice);
            let (plan, made) = self.make(curves::choices(self.source, self.units, &widths))?;
            let path = self.work.join("finished.onnx");
            let size = save(&made.model, &path)?;
            let took = match (self.job.budget, &mut *means) {
                (Budget::Latency(_), Means::Measured(_, bench)) => {
                    Some(bench.against_reference(&path, Some(limit.most / limit.original))?)
                }
                _ => None,
            };
            let real = match (self.job.budget, took) {
                (_, Some(host)) => host.ratio * limit.original,
                (Budget::Size(_), _) => size as f64,
                _ => counted(&made.model, what, &[]),
            };
            nearest = nearest.min(real);
            if real <= limit.most {
                let allocation = chosen.report(&limit, real);
                let model = made.model.clone();
                let outcome = single::outcome(self.source, plan, made, Vec::new());
                return Ok(Made { path, took, model, outcome, allocation });
            }
            progress.note(&format!(
                "the finished model has {}, more than the budget's {}; narrowing further",
                limit.show(real),
                limit.show(limit.most)
            ));
            most -= (real - limit.most) * 1.05;
        }
        Err(limit.missed(nearest))
    }

    fn choose(
        &self,
        menus: &[Menu],
        counter: &mut Counter<'_>,
        means: &mut Means<'_, '_>,
        limit: &Limit,
        most: f64,
        progress: &dyn Progress,
    ) -> Result<Chosen, CompressError> {
        let (source, units, work) = (self.source, self.units, self.work);
        match (self.job.budget, means) {
            (Budget::Latency(_), Means::Measured(field, bench)) => {
                let timing = Timing { source, units, work, field, bench };
                timing.choose(menus, counter, limit, most, progress)
            }
            (Budget::Latency(_), Means::Ratings) => Err(unmeasured()),
            (_, means) => {
                let counting = Counting { field: means.field() };
                counting.choose(menus, counter, limit, most, progress)
            }
        }
    }

    fn what(&self) -> Result<What, CompressError> {
        Ok(match self.job.budget {
            Budget::Global(_) | Budget::Params(_) => What::Params,
            // What a latency's savings are weighed by.
            Budget::Macs(_) | Budget::Latency(_) => What::Macs,
            Budget::Size(_) => {
                let whole = save(&self.source.model, &self.work.join("whole.onnx"))?;
                let constants = constant_bytes(&self.source.model);
                What::Size { overhead: whole as i64 - constants as i64 }
            }
        })
    }

    /// Layers that the repair re-fits.
    fn refitted(&self) -> Vec<NodeId> {
        let fits = self.mend.filter(|(_, kinds)| kinds.contains(&RepairKind::Ls));
        let targets = fits.iter().flat_map(|(fitting, _)| &fitting.original.targets);
        targets.map(|target| target.site.node).collect()
    }

    fn limit(
        &self,
        menus: &[Menu],
        counter: &mut Counter<'_>,
        means: &mut Means<'_, '_>,
    ) -> Result<Limit, CompressError> {
        let model = &self.source.model;
        let (name, original, amount) = match (self.job.budget, means) {
            (Budget::Global(ratio), _) => {
                let original = counted(model, What::Params, &[]);
                // The width that every group has at this ratio, counted as every choice is.
                let even: Vec<usize> = menus
                    .iter()
                    .map(|m| m.at_least(crate::plan::aligned_keep(m.step(0).width, ratio)))
                    .collect();
                ("params", original, Amount::Of(counter.of(&even)?))
            }
            (Budget::Params(amount), _) => ("params", counted(model, What::Params, &[]), amount),
            (Budget::Macs(amount), _) => ("macs", counted(model, What::Macs, &[]), amount),
            (Budget::Size(amount), _) => ("size_bytes", self.source.size_bytes as f64, amount),
            (Budget::Latency(amount), Means::Measured(_, bench)) => {
                ("latency_us", bench.stats.p50_us, amount)
            }
            (Budget::Latency(_), Means::Ratings) => return Err(unmeasured()),
        };
        if original <= 0.0 {
            let what = format!("the {name} of the model cannot be counted; give another budget");
            return Err(CompressError::Goal(what));
        }
        let most = match amount {
            Amount::Share(share) => original * share,
            Amount::Of(most) => most,
        };
        Ok(Limit { name, original, most })
    }

    fn make(&self, groups: Vec<GroupChoice>) -> Result<(Plan, Applied), CompressError> {
        let widths = self.source.widths();
        let all: usize = widths.iter().sum();
        let gone: usize = groups.iter().map(|g| g.width - g.keep.len()).sum();
        let repair = self.mend.filter(|(_, kinds)| !kinds.is_empty()).map(|(fitting, kinds)| {
            let samples = fitting.shop.calibration.len();
            fitting.original.repair(fitting.shop, samples, kinds, &groups)
        });
        let (repair, left_out) = repair.unzip();
        let plan = Plan {
            source_sha256: self.source.digest.to_string(),
            keep_ratio: (all - gone) as f64 / all.max(1) as f64,
            score: self.job.prune.score,
            seed: self.job.prune.seed,
            groups,
            repair,
            quantize: None,
        };
        let mut made = apply(self.source, &plan, self.mend.map(|(fitting, _)| fitting))?;
        made.refused.extend(left_out.into_iter().flatten());
        Ok((plan, made))
    }
}

impl<'f> Means<'_, 'f> {
    fn field(&mut self) -> Option<&mut Field<'f>> {
        match self {
            Self::Ratings => None,
            Self::Measured(field, _) => Some(field),
        }
    }
}

impl Limit {
    /// A number in the budget's unit, for people.
    fn show(&self, value: f64) -> String {
        match self.name {
            "latency_us" => crate::search::milliseconds(value),
            "size_bytes" => format!("{value:.0} bytes"),
            "macs" => format!("{value:.0} multiply-accumulates"),
            _ => format!("{value:.0} parameters"),
        }
    }

    fn missed(&self, nearest: f64) -> CompressError {
        CompressError::Goal(format!(
            "a budget of {} is out of reach: the nearest is {} (the original has {}); nothing was written",
            self.show(self.most),
            self.show(nearest),
            self.show(self.original)
        ))
    }
}

impl Made {
    /// Writes the model to the output, and completes the outcome.
    fn finish(
        self,
        job: &BudgetJob,
        curves: Vec<Curve>,
        refused: Vec<Refusal>,
        points: Option<Points>,
    ) -> Result<PruneOutcome, CompressError> {
        save(&self.model, &job.prune.output)?;
        let mut outcome = self.outcome;
        outcome.refused.splice(0..0, refused);
        outcome.curves = curves;
        outcome.allocation = Some(Allocation { points, ..self.allocation });
        Ok(outcome)
    }
}
