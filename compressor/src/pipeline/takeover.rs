//! The channel-Gram repair: consumers of a narrowed model take over what removed channels gave them, from what was
//! seen of the original. No pass over the narrowed model.

use std::collections::BTreeSet;

use graph::{Model, NodeId, ValueId};

use super::repair::{Fitting, write};
use super::shop::Source;
use crate::gram::{ChannelGram, StandIn, products};
use crate::linalg::axpy;
use crate::plan::{GramSite, GroupChoice, RefitStep, Refusal};
use crate::refit::{self, Fit, Site};

impl Fitting<'_> {
    /// Lets the consumers at `sites` of `model`, which `groups` narrowed, take over what removed channels gave.
    pub(crate) fn take_over(
        &self,
        model: &mut Model,
        groups: &[GroupChoice],
        sites: &[GramSite],
    ) -> (Vec<RefitStep>, Vec<Refusal>) {
        let (mut steps, mut refused) = (Vec::new(), Vec::new());
        for wanted in sites {
            match self.take_over_one(model, groups, wanted) {
                Ok(step) => steps.extend(step),
                Err(why) => refused.push(Refusal::new("gram", wanted.at.label.clone(), why)),
            }
        }
        (steps, refused)
    }

    /// One consumer; none where it lost nothing.
    fn take_over_one(
        &self,
        model: &mut Model,
        groups: &[GroupChoice],
        wanted: &GramSite,
    ) -> Result<Option<RefitStep>, String> {
        let (source, node) = (&self.shop.source, NodeId(wanted.at.node));
        model.graph.get_node(node).ok_or("nothing reads it in the narrowed model")?;
        let now = refit::linear(&model.graph, node)?;
        let before = Before::of(source, groups, node, wanted.axis)?;
        if before.gone.is_empty() {
            return Ok(None);
        }
        let gram = self.original.evidence.gram(before.site.input, wanted.axis)?;
        let (fit, step) = before.taken_over(gram)?;
        let weight = model.graph.constant(now.weight).ok_or("its weight is gone")?;
        let fits = now.size(&weight.dims) == before.left_size()
            && now.takes_bias() == before.site.takes_bias();
        if !fits {
            return Err("its weight in the narrowed model is not a part of the original's".into());
        }
        write(model, &now, &fit, "gram")?;
        Ok(Some(step))
    }
}

/// A consumer as it is in the source, and what a plan takes from it.
struct Before {
    site: Site,
    values: Vec<f32>,
    dims: Vec<usize>,
    /// Channels in all, and groups of a convolution.
    channels: usize,
    groups: usize,
    /// Channels that go, and outputs that stay.
    gone: BTreeSet<usize>,
    outputs: Vec<usize>,
}

impl Before {
    fn of(
        source: &Source,
        groups: &[GroupChoice],
        node: NodeId,
        axis: usize,
    ) -> Result<Self, String> {
        let graph = &source.model.graph;
        graph.get_node(node).ok_or("the source has no such node")?;
        let site = refit::linear(graph, node)?;
        let weight = graph.constant(site.weight).ok_or("its weight is gone")?;
        let (inputs, outputs) = site.size(&weight.dims);
        let axis_out = usize::from(site.recurrent || !site.transposed);
        let mut cut = removed_of_constant(source, groups, (node, 1), axis_out)?;
        let mut dims = weight.dims.clone();
        if site.recurrent {
            // The rows of the directions stand one behind the other, and go alike.
            let rows = outputs / dims.first().copied().unwrap_or(1).max(1);
            cut = (0..outputs).filter(|at| cut.contains(&(at % rows.max(1)))).collect();
            dims = vec![outputs, inputs];
        }
        let channels = match site.conv {
            Some(_) => weight.dims.get(1).copied().unwrap_or(0) * site.groups(),
            None => inputs,
        };
        Ok(Self {
            values: weight.to_f32_vec().map_err(|e| e.to_string())?,
            dims,
            channels,
            groups: site.groups(),
            gone: removed(source, groups, site.input, axis)?,
            outputs: (0..outputs).filter(|o| !cut.contains(o)).collect(),
            site,
        })
    }

    /// Channels of one group of the convolution.
    fn each(&self) -> usize {
        self.channels / self.groups.max(1)
    }

    fn taps(&self) -> usize {
        self.dims.iter().skip(2).product()
    }

    /// Channels of a group that stay, and that go, counted within the group.
    fn parted(&self, group: usize) -> (Vec<usize>, Vec<usize>) {
        let first = group * self.each();
        (0..self.each()).partition(|c| !self.gone.contains(&(first + c)))
    }

    /// Inputs of one product and outputs of all, as they are in the narrowed model.
    fn left_size(&self) -> (usize, usize) {
        let kept = (0..self.groups).map(|group| self.parted(group).0.len()).max().unwrap_or(0);
        (kept * self.taps(), self.outputs.len())
    }

    /// Weight of a channel, counted within its group, at one tap for one output.
    fn weight(&self, channel: usize, tap: usize, output: usize) -> f64 {
        let at = match (&self.site.conv, self.site.transposed) {
            (Some(_), _) => (output * self.each() + channel) * self.taps() + tap,
            (None, true) => output * self.each() + channel,
            (None, false) => channel * self.dims.get(1).copied().unwrap_or(0) + output,
        };
        f64::from(self.values[at])
    }

    /// What is added to the weights that stay, and what that comes to.
    fn taken_over(&self, gram: &ChannelGram) -> Result<(Fit, RefitStep), String> {
        if gram.width() != self.channels {
            return Err(format!("{} channels were observed of {}", gram.width(), self.channels));
        }
        let (inputs, m) = self.left_size();
        let biased = self.site.takes_bias();
        let mut fit = Fit { weight: vec![0.0; inputs * m], bias: biased.then(|| vec![0.0; m]) };
        let mut come = Come::default();
        let per_group = self.dims[usize::from(!self.site.transposed)] / self.groups;
        for group in 0..self.groups {
            let (keep, gone) = self.parted(group);
            let own = self.outputs.iter().enumerate().filter(|(_, o)| **o / per_group == group);
            let own: Vec<(usize, usize)> = own.map(|(at, o)| (at, *o)).collect();
            if gone.is_empty() || own.is_empty() {
                continue;
            }
            if keep.len() * self.taps() != inputs {
                return Err("its groups lose different numbers of channels".into());
            }
            let all = |channels: &[usize]| -> Vec<usize> {
                channels.iter().map(|c| group * self.each() + c).collect()
            };
            let stand_in = gram.stand_in(&all(&keep), &all(&gone), biased)?;
            self.add(&stand_in, &gone, &own, &mut fit);
            come.take(self, &stand_in, &all(&gone))?;
        }
        Ok((fit, come.step(&self.site)))
    }

    /// Adds D·W_R to the weights that stay, and the constants of what went to the bias, for the outputs `own`: their
    /// places in the narrowed weight, and in the original.
    fn add(&self, stand_in: &StandIn, gone: &[usize], own: &[(usize, usize)], fit: &mut Fit) {
        let (taps, m, alpha) = (self.taps(), self.outputs.len(), self.site.alpha);
        let mut row = vec![0.0; own.len()];
        for tap in 0..taps {
            let removed: Vec<Vec<f64>> = gone
                .iter()
                .map(|c| own.iter().map(|(_, o)| alpha * self.weight(*c, tap, *o)).collect())
                .collect();
            for (kept, factors) in stand_in.factors.chunks_exact(gone.len()).enumerate() {
                row.fill(0.0);
                factors.iter().zip(&removed).for_each(|(d, w)| axpy(*d, w, &mut row));
                for ((at, _), value) in own.iter().zip(&row) {
                    fit.weight[(kept * taps + tap) * m + at] += value;
                }
            }
            if let (Some(bias), Some(constants)) = (&mut fit.bias, &stand_in.constants) {
                for (constant, weights) in constants.iter().zip(&removed) {
                    own.iter().zip(weights).for_each(|((at, _), w)| bias[*at] += constant * w);
                }
            }
        }
    }
}

/// What a repair comes to over the groups of a convolution.
#[derive(Default)]
struct Come {
    ridge: f64,
    rows: u64,
    energy: f64,
    before: f64,
    after: f64,
    note: Option<String>,
}

impl Come {
    fn take(&mut self, of: &Before, stand_in: &StandIn, gone: &[usize]) -> Result<(), String> {
        let axis = match of.site.conv {
            Some(_) => 1,
            None => usize::from(of.site.transposed),
        };
        let all = products(&of.values, &of.dims, axis, of.groups, of.channels)
            .ok_or("its weight does not lie along what it reads")?;
        let lost = all.block(gone);
        self.energy = all.trace_with(&stand_in.moments);
        self.before += lost.trace_with(&stand_in.moments.block(gone));
        self.after += lost.trace_with(&stand_in.left);
        self.ridge = self.ridge.max(stand_in.ridge);
        self.rows = stand_in.rows;
        self.note = self.note.take().or_else(|| stand_in.note.clone());
        Ok(())
    }

    fn step(self, site: &Site) -> RefitStep {
        let share = |v: f64| (v.max(0.0) / self.energy.max(f64::MIN_POSITIVE)).sqrt();
        RefitStep {
            node: site.label.clone(),
            ridge: self.ridge,
            residual_before: share(self.before),
            residual_after: share(self.after),
            rows: self.rows,
            note: self.note,
        }
    }
}

/// Indices of `value` along `axis` that a plan takes away.
fn removed(
    source: &Source,
    groups: &[GroupChoice],
    value: ValueId,
    axis: usize,
) -> Result<BTreeSet<usize>, String> {
    let mut gone = BTreeSet::new();
    for (choice, group) in chosen(source, groups)? {
        let here = group.values.iter().filter(|(v, a, _)| *v == value && *a == axis);
        gone.extend(here.flat_map(|(_, _, map)| without(map, &choice.keep)));
    }
    Ok(gone)
}

/// Indices along `axis` of the constant that a node reads at a slot which a plan takes away.
pub(crate) fn removed_of_constant(
    source: &Source,
    groups: &[GroupChoice],
    (node, slot): (NodeId, usize),
    axis: usize,
) -> Result<BTreeSet<usize>, String> {
    let mut gone = BTreeSet::new();
    for (choice, group) in chosen(source, groups)? {
        let here = group.slices.iter().filter(|s| s.node == node && s.slot == slot);
        let here = here.filter(|s| s.axis == axis);
        gone.extend(here.flat_map(|s| without(&s.map, &choice.keep)));
    }
    Ok(gone)
}

/// The groups of the main graph that are narrowed.
fn chosen<'a>(
    source: &'a Source,
    groups: &'a [GroupChoice],
) -> Result<Vec<(&'a GroupChoice, &'a graph::Group)>, String> {
    let mut chosen = Vec::new();
    for choice in groups {
        let group = source.grouping.groups.get(choice.group as usize);
        let group = group.ok_or_else(|| format!("there is no group {}", choice.group))?;
        chosen.extend(group.scope.is_main().then_some((choice, group)));
    }
    Ok(chosen)
}

/// Indices of the units that are not kept.
fn without(map: &graph::IndexMap, keep: &[u32]) -> Vec<usize> {
    let units = (0..map.units() as u32).filter(|unit| keep.binary_search(unit).is_err());
    units.flat_map(|unit| map.unit(unit as usize)).map(|i| *i as usize).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "takeover_tests.rs"]
mod tests;
