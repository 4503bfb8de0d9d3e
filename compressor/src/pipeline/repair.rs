//! The repairs that bring a narrowed model back to the original, as passes over the calibration samples.

use std::collections::HashSet;
use std::ops::ControlFlow;

use graph::{Cause, Edit, Graph, Model, NodeId, ValueId};
use runtime::Tensor;

use super::norms;
use super::observe::{Every, Original, Target, floats, rows_along};
use super::relay::Relay;
use super::shop::{Shop, Source, save};
use crate::calibrate::observed;
use crate::error::CompressError;
use crate::plan::{GroupChoice, NodeRef, RefitSite, RefitStep, Refusal, RescaleStep};
use crate::refit::{self, FOLDS, Fit, Gram, Site, Solution, Windows};
use crate::rescale::{self, Moments, Sum};

/// A sum whose relative change is under this is left alone.
const SUM_UNCHANGED: f64 = 1e-5;

/// What repairs are fitted with: the engine and the samples, and what the original computes on them.
#[derive(Clone, Copy)]
pub(crate) struct Fitting<'a> {
    pub(crate) shop: &'a Shop<'a>,
    pub(crate) original: &'a Original,
}

impl Fitting<'_> {
    /// Scales the sums at `nodes` in `model` back to the original's, where they lost units, on the first `samples`
    /// samples.
    pub(crate) fn rescale(
        &self,
        model: &mut Model,
        nodes: &[NodeRef],
        samples: usize,
    ) -> Result<(Vec<RescaleStep>, Vec<Refusal>), CompressError> {
        let known = &self.original.sums;
        let at = |wanted: &NodeRef| known.iter().position(|sum| sum.node.0 == wanted.node);
        let at = nodes.iter().map(|n| at(n).ok_or_else(|| not_observed(&n.label)));
        let at: Vec<usize> = at.collect::<Result<_, _>>()?;
        let sums: Vec<&Sum> = at.iter().map(|at| &known[*at]).collect();
        let left = self.sum_values(model, &sums, samples)?;
        let (mut steps, mut refused) = (Vec::new(), Vec::new());
        for (number, sum) in sums.into_iter().enumerate() {
            let mut moments = Moments::default();
            for (was, is) in self.original.sum_values.iter().zip(&left) {
                moments.push(&was[at[number]], &is[number]);
            }
            if moments.residual(1.0) < SUM_UNCHANGED {
                continue;
            }
            let factor = moments.factor();
            match factor.and_then(|f| rescale::apply(model, sum, f).map(|()| f)) {
                Ok(factor) => steps.push(RescaleStep {
                    node: sum.label.clone(),
                    factor,
                    residual_before: moments.residual(1.0),
                    residual_after: moments.residual(factor),
                }),
                Err(why) => refused.push(Refusal::new("rescale", sum.label.clone(), why)),
            }
        }
        Ok((steps, refused))
    }

    fn sum_values(
        &self,
        model: &Model,
        sums: &[&Sum],
        samples: usize,
    ) -> Result<Vec<Vec<Vec<f32>>>, CompressError> {
        if sums.is_empty() {
            return Ok(Vec::new());
        }
        let shop = self.shop;
        shop.progress.stage("observing sums", samples as u64);
        let values: Vec<ValueId> = sums.iter().map(|s| s.output).collect();
        let path = shop.work.join("sums.onnx");
        save(&observed(model, &values)?, &path)?;
        let mut all = Vec::new();
        shop.runner.run(&path, &shop.calibration, 0..samples, shop.progress, &mut |batch| {
            let outputs = batch.outputs.iter();
            all.push(
                outputs
                    .map(|(_, t)| Ok(floats(t)?.into_owned()))
                    .collect::<Result<_, CompressError>>()?,
            );
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(all)
    }

    /// Re-fits `model`, which `groups` narrowed, at `sites` on the first `samples` samples (whole batches, or
    /// all), one site after the other, each on what the repairs before it left.
    pub(crate) fn refit(
        &self,
        model: &mut Model,
        groups: &[GroupChoice],
        sites: &[RefitSite],
        samples: usize,
    ) -> Result<(Vec<RefitStep>, Vec<Refusal>), CompressError> {
        let (mut steps, mut refused) = (Vec::new(), Vec::new());
        let targets = sites.iter().map(|wanted| self.target(wanted));
        let targets: Vec<&Target> = targets.collect::<Result<_, _>>()?;
        let most = targets.iter().map(|t| t.samples.min(samples)).max().unwrap_or(0);
        let mut relay = Relay::new(self.shop, most, self.original.batch);
        for (wanted, target) in sites.iter().zip(targets) {
            self.shop.check("repair")?;
            let samples = target.samples.min(samples);
            self.shop.progress.stage(&format!("fitting {}", wanted.at.label), samples as u64);
            match self.refit_one(model, groups, target, &mut relay, samples)? {
                Ok(step) => steps.push(step),
                Err(why) => refused.push(refit::refusal(&wanted.at.label, why)),
            }
        }
        Ok((steps, refused))
    }

    fn target(&self, wanted: &RefitSite) -> Result<&Target, CompressError> {
        let node = NodeId(wanted.at.node);
        let mut targets = self.original.targets.iter();
        targets
            .find(|t| {
                let samples = wanted.samples.unwrap_or(usize::MAX);
                t.site.node == node && t.stride == wanted.stride && t.samples == samples
            })
            .ok_or_else(|| not_observed(&wanted.at.label))
    }

    /// One re-fit, or the reason why there is none.
    fn refit_one(
        &self,
        model: &mut Model,
        groups: &[GroupChoice],
        target: &Target,
        relay: &mut Relay<'_>,
        samples: usize,
    ) -> Result<Result<RefitStep, String>, CompressError> {
        let site = match here(model, target) {
            Ok(site) => site,
            Err(why) => return Ok(Err(why)),
        };
        let mut left = match Left::of(&self.shop.source, groups, target) {
            Ok(left) => left,
            Err(why) => return Ok(Err(why)),
        };
        let original = &self.shop.source.model.graph;
        left.moved = norms::moved(original, &model.graph, site.output, &left.columns);
        let folds = match accumulate(model, &site, (target, &left), relay, samples)? {
            Ok(folds) => folds,
            Err(why) => return Ok(Err(why)),
        };
        let mut groups = folds;
        let solved = solve_all(&mut groups, &site);
        Ok(solved.and_then(|solution| {
            write(model, &site, &solution.fit, "refit")?;
            Ok(step(&site, &groups, &solution))
        }))
    }
}

/// The moments of a site's activations on the first `samples` samples, and of what its output lacks.
fn accumulate(
    model: &Model,
    site: &Site,
    (target, left): (&Target, &Left),
    relay: &mut Relay<'_>,
    samples: usize,
) -> Result<Result<Vec<Vec<Gram>>, String>, CompressError> {
    let nodes: Vec<NodeId> =
        [Some(site.node), site.bias.map(|(node, ..)| node)].into_iter().flatten().collect();
    let batches = samples.div_ceil(relay.size());
    let mut moments: Vec<Vec<Gram>> = Vec::new();
    let mut wrong = None;
    relay.run(model, &nodes, &[site.input, site.output], &mut |number, seen| {
        let (Some(x), Some(z)) = (seen.first(), seen.last()) else { return Ok(()) };
        if number >= batches || wrong.is_some() {
            return Ok(());
        }
        let y = left.of_rows(target.rows.get(number).map_or(&[][..], Vec::as_slice));
        let outputs = left.columns.len();
        let first = target.firsts.get(number).copied().unwrap_or(0);
        let every = Every { first, stride: target.stride.max(1) };
        let rows = Rows { site, x, z, y: &y, every, outputs };
        wrong = rows.push(model, &mut moments, number % FOLDS).err();
        Ok(())
    })?;
    Ok(wrong.map_or(Ok(moments), Err))
}

/// One batch of what a site reads (`x`) and computes (`z`) in the narrowed model, and of what it computed in the
/// original (`y`, rows of `outputs`).
struct Rows<'a> {
    site: &'a Site,
    x: &'a Tensor,
    z: &'a Tensor,
    y: &'a [f32],
    every: Every,
    outputs: usize,
}

impl Rows<'_> {
    /// Adds the batch to fold `fold` of every group's moments.
    fn push(&self, model: &Model, moments: &mut Vec<Vec<Gram>>, fold: usize) -> Result<(), String> {
        let weight = model.graph.constant(self.site.weight).ok_or("its weight is gone")?;
        let (k, m) = self.site.size(&weight.dims);
        let groups = self.site.groups();
        let each = m / groups;
        let axis = self.site.axis(self.z.shape.len());
        let z = rows_along(&read(self.z)?, &self.z.shape, axis, self.every);
        let lines_up = m == self.outputs && self.y.len() == z.len() && each * groups == m;
        if !lines_up || m == 0 {
            return Err("its rows in the narrowed model do not line up with the original's".into());
        }
        if moments.is_empty() {
            *moments = vec![vec![Gram::new(k, each); FOLDS]; groups];
        }
        let x = read(self.x)?;
        let source = self.source(&weight.dims, &x)?;
        let mut row = vec![0.0; k];
        for (at, (z, y)) in z.chunks_exact(m).zip(self.y.chunks_exact(m)).enumerate() {
            for (group, folds) in moments.iter_mut().enumerate() {
                source.write(self.every.first + at * self.every.stride, group, &mut row)?;
                let own = group * each..(group + 1) * each;
                folds[fold].push_target(&row, &z[own.clone()], &y[own]);
            }
        }
        Ok(())
    }

    fn source<'x>(&self, weight: &[usize], x: &'x [f32]) -> Result<Inputs<'x>, String> {
        match &self.site.conv {
            Some(attrs) => {
                let windows = Windows::new(attrs, weight, &self.x.shape, &self.z.shape)?;
                let each = self.x.shape.iter().skip(1).product();
                Ok(Inputs::Windows { windows, x, each })
            }
            None => Ok(Inputs::Rows(x)),
        }
    }
}

/// Where the rows of a product's inputs come from.
enum Inputs<'x> {
    /// The last axis.
    Rows(&'x [f32]),
    /// The windows of a convolution over samples of `each` elements.
    Windows { windows: Windows, x: &'x [f32], each: usize },
}

impl Inputs<'_> {
    /// Writes row `at` of `group` to `row`.
    fn write(&self, at: usize, group: usize, row: &mut [f32]) -> Result<(), String> {
        let ended = || "it reads fewer rows than it computes".to_owned();
        match self {
            Self::Rows(x) => {
                let from = at * row.len();
                row.copy_from_slice(x.get(from..from + row.len()).ok_or_else(ended)?);
            }
            Self::Windows { windows, x, each } => {
                let (sample, position) = (at / windows.positions(), at % windows.positions());
                let sample = x.get(sample * each..(sample + 1) * each).ok_or_else(ended)?;
                windows.write(sample, group, position, row);
            }
        }
        Ok(())
    }
}

fn read(tensor: &Tensor) -> Result<Vec<f32>, String> {
    tensor.to_f32().map_err(|error| error.to_string())
}

/// The fits of all groups as one; groups that need none, or find none, keep their weights.
fn solve_all(groups: &mut [Vec<Gram>], site: &Site) -> Result<Solution, String> {
    let solved: Vec<Result<Solution, String>> =
        groups.iter_mut().map(|folds| refit::solve(folds, site.takes_bias())).collect();
    let sizes: Vec<(usize, usize)> =
        groups.iter().map(|folds| folds.first().map_or((0, 0), Gram::size)).collect();
    Solution::joined(solved, &sizes)
}

fn not_observed(label: &str) -> CompressError {
    CompressError::Graph {
        stage: "plan",
        what: format!("{label} is to be repaired, but the original was not observed there"),
    }
}

/// The place of `target` in a narrowed model: its constants may be copies there, because two readers of one
/// constant get one each where they keep different units.
fn here(model: &Model, target: &Target) -> Result<Site, String> {
    let graph = &model.graph;
    graph.get_node(target.site.node).ok_or("nothing reads it in the narrowed model")?;
    let site = refit::site(graph, target.site.node)?;
    if site.output != target.site.output {
        return Err("its bias is not where it is in the original".into());
    }
    Ok(site)
}

/// Which columns of a site's output a plan leaves.
struct Left {
    of: usize,
    columns: Vec<usize>,
    /// Factor and summand for each column left, where the norm behind it changed.
    moved: Option<Vec<(f64, f64)>>,
}

impl Left {
    fn of(source: &Source, groups: &[GroupChoice], target: &Target) -> Result<Self, String> {
        let mut gone: HashSet<usize> = HashSet::new();
        for choice in groups {
            let group = source.grouping.groups.get(choice.group as usize);
            let group = group.ok_or_else(|| format!("there is no group {}", choice.group))?;
            // Sites are of the main graph.
            let values = group.values.iter().filter(|_| group.scope.is_main());
            let here = values.filter(|(value, ..)| *value == target.site.output);
            for (_, axis, map) in here {
                let units =
                    (0..map.units() as u32).filter(|u| choice.keep.binary_search(u).is_err());
                let removed = units.flat_map(|unit| map.unit(unit as usize));
                if *axis == target.axis {
                    gone.extend(removed.map(|index| *index as usize));
                } else if removed.count() > 0 {
                    return Err("its rows are narrowed, not only its columns".into());
                }
            }
        }
        let columns = (0..target.columns).filter(|column| !gone.contains(column)).collect();
        Ok(Self { of: target.columns, columns, moved: None })
    }

    /// These columns of `rows`, as the norm behind them needs them.
    fn of_rows<'a>(&self, rows: &'a [f32]) -> std::borrow::Cow<'a, [f32]> {
        let Some(moved) = &self.moved else { return self.columns_of(rows) };
        let columns = self.columns_of(rows).into_owned();
        let by_column = moved.iter().cycle();
        let moved = columns.into_iter().zip(by_column);
        moved.map(|(v, (factor, summand))| (f64::from(v) * factor + summand) as f32).collect()
    }

    fn columns_of<'a>(&self, rows: &'a [f32]) -> std::borrow::Cow<'a, [f32]> {
        if self.columns.len() == self.of {
            return rows.into();
        }
        let rows = rows.chunks_exact(self.of.max(1));
        rows.flat_map(|row| self.columns.iter().map(|column| row[*column])).collect()
    }
}

fn step(site: &Site, groups: &[Vec<Gram>], solution: &Solution) -> RefitStep {
    let energy: f64 = groups.iter().map(|folds| refit::target_energy(folds)).sum();
    let scale = energy.max(f64::MIN_POSITIVE);
    RefitStep {
        node: site.label.clone(),
        ridge: solution.ridge,
        residual_before: (solution.before / scale).sqrt(),
        residual_after: (solution.cross_validated.unwrap_or(solution.after) / scale).sqrt(),
        rows: solution.rows,
        note: solution.note.clone(),
    }
}

/// Adds `fit` to the weight and bias of `site`, as constants of their own; `stage` names them.
pub(crate) fn write(model: &mut Model, site: &Site, fit: &Fit, stage: &str) -> Result<(), String> {
    let (weight, bias) = refit::corrected(model, site, fit)?;
    let cause = Cause::new(stage, site.label.clone());
    let graph = &mut model.graph;
    let name = format!("{}_{stage}", site.label);
    replace(graph, site.node, 1, name.clone(), weight, &cause)?;
    let Some(bias) = bias else { return Ok(()) };
    let (node, slot) =
        site.bias.map_or((site.node, refit::CONV_BIAS), |(node, slot, _)| (node, slot));
    replace(graph, node, slot, format!("{name}_bias"), bias, &cause)
}

/// Lets `node` read a new constant at `slot`.
pub(crate) fn replace(
    graph: &mut Graph,
    node: NodeId,
    slot: usize,
    name: String,
    tensor: graph::Tensor,
    cause: &Cause,
) -> Result<(), String> {
    let added = graph::apply(graph, Edit::AddConstant { name, tensor }, cause)
        .map_err(|e| e.to_string())?;
    let value = added.value().ok_or("the constant was not added")?;
    graph::apply(graph, Edit::ReplaceInput { node, slot, value: Some(value) }, cause)
        .map(drop)
        .map_err(|e| e.to_string())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "repair_tests.rs"]
mod tests;
