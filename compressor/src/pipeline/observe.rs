//! The pass over the calibration samples that shows what the original computes.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use graph::{Op, Role, ValueId};
use runtime::Tensor;

use super::judge::split;
use super::norms::NormsBefore;
use super::passes::Passes;
use super::seen::{Key, Seen, Watch};
use super::shop::{Shop, save};
use crate::calibrate::{BATCH, Batch, observed};
use crate::error::CompressError;
use crate::gram::MAX_CHANNELS;
use crate::plan::{NodeRef, Refusal, Repair};
use crate::quality::Answer;
use crate::refit::{
    self, LEAST_FITTED, LEAST_ROWS, MAX_GRAM_BYTES, MAX_INPUTS, ROWS_PER_INPUT, Site,
};
use crate::rescale::{self, Sum};
use crate::score::{self, Evidence};

/// Samples that suffice for sums, and for rating where it needs passes of its own.
pub(crate) const RATING_SAMPLES: usize = 256;
/// The most consumers re-fitted in one candidate: each costs a pass over the calibration samples.
const MAX_SITES: usize = 8;
/// The most bytes that are kept of what the original computes.
const MAX_TARGET_BYTES: usize = 512 << 20;

/// What the original computes on the calibration samples, as far as rating and repairing need it.
pub(crate) struct Original {
    /// Places that may be re-fitted, in the graph's order.
    pub(crate) targets: Vec<Target>,
    /// Answers of the samples that a screening judges on; empty where they were too large to keep.
    pub(crate) answers: Vec<Vec<Answer>>,
    /// What was seen of the activations that consumers read.
    pub(crate) evidence: Evidence,
    /// How the channel Grams among it were taken.
    pub(crate) watches: Vec<Watch>,
    /// Consumers that are too wide for least squares, and not for a channel Gram.
    pub(crate) wide: Vec<graph::NodeId>,
    /// Samples of the first batch; 0 where there was none.
    pub(crate) batch: usize,
    /// What its batch normalizations read, by how many samples were looked at; filled when it is first asked for.
    pub(crate) norms: RefCell<BTreeMap<usize, Arc<NormsBefore>>>,
    pub(crate) sums: Vec<Sum>,
    /// For each batch of the first samples, what each sum computes.
    pub(crate) sum_values: Vec<Vec<Vec<f32>>>,
}

impl Original {
    /// What it takes in memory, but for statistics by channel.
    pub(crate) fn bytes(&self) -> usize {
        let targets: usize = self.targets.iter().map(|target| target.bytes).sum();
        let answers: usize = self.answers.iter().flatten().map(Answer::bytes).sum();
        let sums = self.sum_values.iter().flatten().map(|values| values.len() * 4).sum::<usize>();
        let grams = self.evidence.grams.values().map(|gram| gram.width().pow(2) * 8).sum::<usize>();
        targets + answers + sums + grams
    }
}

/// What is looked at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Looks {
    /// Places that may be re-fitted; none where nothing is.
    pub(crate) reach: Option<Reach>,
    pub(crate) grams: Grams,
    /// The first so many samples.
    pub(crate) samples: usize,
}

/// Of which activations the channels' Gram matrices are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Grams {
    None,
    /// Of those that consumers read which are too wide for least squares.
    Wide,
    All,
}

/// What a re-fit is fitted to: rows of what a place computes in the original.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    /// The place, in the source.
    pub(crate) site: Site,
    /// Every how-manieth row of each batch is kept; 0 before the first batch.
    pub(crate) stride: usize,
    /// The first so many samples are kept, whole batches.
    pub(crate) samples: usize,
    /// The axis of its outputs in what it computes.
    pub(crate) axis: usize,
    /// Width of that axis.
    pub(crate) columns: usize,
    /// For each batch, its rows.
    pub(crate) rows: Vec<Vec<f32>>,
    /// For each batch, which of its rows is the first of these.
    pub(crate) firsts: Vec<usize>,
    /// Rows of all batches so far, those that were passed over among them.
    passed: usize,
    /// Of the rows.
    bytes: usize,
}

impl Target {
    fn new(site: Site, stride: usize, samples: usize) -> Self {
        let (rows, firsts) = (Vec::new(), Vec::new());
        Self { site, stride, samples, axis: 0, columns: 0, rows, firsts, passed: 0, bytes: 0 }
    }

    /// Settles how many rows of how many samples are kept, of a site with `inputs` whose first batch has `rows` for each
    /// of its samples.
    fn admit(&mut self, rows: usize, inputs: usize, available: usize) {
        let enough = (inputs * ROWS_PER_INPUT).max(LEAST_ROWS);
        let samples = enough.div_ceil(rows.max(1)).max(LEAST_FITTED).next_multiple_of(BATCH);
        self.samples = samples.min(available);
        self.stride = spread_stride(rows, self.samples, enough);
    }

    #[cfg(test)]
    pub(crate) fn for_test(site: Site, columns: usize) -> Self {
        Self { axis: 1, columns, ..Self::new(site, 1, usize::MAX) }
    }

    /// Keeps every second row, as if the stride had been twice what it was; false where no batch has two.
    fn halve(&mut self) -> bool {
        let before = self.bytes;
        for rows in &mut self.rows {
            *rows = sampled(rows, self.columns, Every { first: 0, stride: 2 });
        }
        self.stride *= 2;
        self.bytes = self.rows.iter().map(|rows| rows.len() * 4).sum();
        self.bytes < before
    }
}

/// Runs the original over the calibration samples and keeps what rates units and what repairs are fitted
/// to, and the answers of the samples in `screened`. Activations beyond the first few are looked at in passes of their
/// own, to bound memory.
pub(crate) fn observe(
    shop: &Shop<'_>,
    outputs: &[String],
    screened: Range<usize>,
    looks: Looks,
) -> Result<(Original, Vec<Refusal>), CompressError> {
    let Sites { sites, wide, mut refused } =
        looks.reach.map_or_else(Sites::default, |reach| sites(shop, reach));
    let targets = sites.into_iter().map(|site| Target::new(site, 0, usize::MAX)).collect();
    let sums = looks.reach.map_or_else(Vec::new, |_| sums(shop));
    let wanted = wanted(shop);
    let watched = match looks.grams {
        Grams::None => Vec::new(),
        Grams::Wide => keys_of(shop, &wide),
        Grams::All => wanted.clone(),
    };
    let watches = |keys: &[Key], samples: usize| -> Vec<Watch> {
        let keys = keys.iter().filter(|key| watched.contains(key));
        keys.map(|key| Watch { key: *key, stride: 0, samples }).collect()
    };
    let passes = Passes::of(shop)?;
    let (first, mut rest) = passes.split(&wanted, |key| key.0);
    let pass = Pass::new(targets, sums, Seen::new(first, watches(first, looks.samples)));
    let mut pass = pass.answering(shop, outputs, screened);
    if !pass.values.is_empty() {
        shop.progress.stage("observing the original", looks.samples as u64);
        run(shop, &pass.values.clone(), looks.samples, &mut |batch| pass.take(shop, &batch))?;
    }
    let Pass { found: mut original, mut seen, refused: more, .. } = pass;
    refused.extend(more);
    let samples = RATING_SAMPLES.min(looks.samples);
    while !rest.is_empty() {
        let (chunk, left) = passes.split(rest, |key| key.0);
        rest = left;
        let mut more = seen.another(chunk, watches(chunk, samples));
        let values = distinct(more.values());
        shop.progress.stage("rating units", samples as u64);
        run(shop, &values, samples, &mut |batch| more.take(&values, &batch))?;
        seen.extend(more);
    }
    let (evidence, watches, unseen) = seen.finish();
    (original.evidence, original.watches, original.wide) = (evidence, watches, wide);
    let graph = &shop.source.model.graph;
    refused.extend(unseen.into_iter().map(|value| {
        let why = "its activation is no f32 tensor with that axis; weights alone rate its units";
        Refusal::new("score", graph.value(value).name.clone(), why)
    }));
    Ok((original, refused))
}

/// What these consumers read, where weighted consumers of groups read it.
fn keys_of(shop: &Shop<'_>, nodes: &[graph::NodeId]) -> Vec<Key> {
    let graph = &shop.source.model.graph;
    let consumers = shop.source.observable().flat_map(|group| &group.consumers);
    let consumers = consumers.filter(|c| c.weight.is_some() && nodes.contains(&c.node));
    consumers
        .filter_map(|c| Some((graph.node(c.node).input(c.input_slot)?, c.input_axis)))
        .collect()
}

/// Runs the original for what `repair` names and nothing else, to apply a plan that was made before.
pub(crate) fn observe_again(shop: &Shop<'_>, repair: &Repair) -> Result<Original, CompressError> {
    let graph = &shop.source.model.graph;
    let wrong = |what: String| CompressError::Graph { stage: "plan", what };
    let mut targets = Vec::new();
    for wanted in &repair.refit {
        let node = graph::NodeId(wanted.at.node);
        let known = graph.get_node(node).ok_or_else(|| "the source has no such node".to_owned());
        let site = known.and_then(|_| refit::site(graph, node));
        let site = site.map_err(|why| wrong(format!("re-fit of {}: {why}", wanted.at.label)))?;
        let samples = wanted.samples.unwrap_or(usize::MAX);
        targets.push(Target::new(site, wanted.stride.max(1), samples));
    }
    let all = sums(shop);
    let sum = |at: &NodeRef| all.iter().find(|s| s.node.0 == at.node).cloned();
    let named: Option<Vec<Sum>> = repair.rescale.iter().map(sum).collect();
    let named =
        named.ok_or_else(|| wrong("it scales a sum that the source does not have".into()))?;
    let mut watches: Vec<Watch> = Vec::new();
    for wanted in &repair.gram {
        let label = &wanted.at.label;
        let node = graph::NodeId(wanted.at.node);
        let known = graph.get_node(node).ok_or_else(|| "the source has no such node".to_owned());
        let site = known.and_then(|_| refit::linear(graph, node));
        let site = site.map_err(|why| wrong(format!("channel Gram of {label}: {why}")))?;
        let (stride, samples) = (wanted.stride.max(1), wanted.samples);
        let watch = Watch { key: (site.input, wanted.axis), stride, samples };
        if watches.iter().any(|other| other.key == watch.key && *other != watch) {
            return Err(wrong(format!(
                "{label} reads what another one reads, with another stride"
            )));
        }
        watches.extend((!watches.contains(&watch)).then_some(watch));
    }
    let mut pass = Pass::new(targets, named, Seen::new(&[], watches));
    if pass.values.is_empty() {
        return Ok(pass.found);
    }
    let samples = shop.calibration.len();
    shop.progress.stage("observing the original", samples as u64);
    run(shop, &pass.values.clone(), samples, &mut |batch| pass.take(shop, &batch))?;
    let Pass { found: mut original, seen, refused, .. } = pass;
    (original.evidence, original.watches, _) = seen.finish();
    match refused.first() {
        Some(refusal) => Err(wrong(format!("{}: {}", refusal.what, refusal.why))),
        None => Ok(original),
    }
}

/// Runs the source with `values` for outputs; not at all where there are none, as in a model whose groups all lie in
/// bodies of control flow.
fn run(
    shop: &Shop<'_>,
    values: &[ValueId],
    samples: usize,
    sink: &mut dyn FnMut(Batch) -> Result<(), CompressError>,
) -> Result<(), CompressError> {
    if values.is_empty() {
        return Ok(());
    }
    let path = shop.work.join("observed.onnx");
    save(&observed(&shop.source.model, values)?, &path)?;
    shop.runner.run(&path, &shop.calibration, 0..samples, shop.progress, &mut |batch| {
        sink(batch).map(ControlFlow::Continue)
    })
}

/// The activations, and their axes, by which units are rated.
fn wanted(shop: &Shop<'_>) -> Vec<Key> {
    let graph = &shop.source.model.graph;
    let groups = shop.source.observable();
    let wanted: BTreeSet<_> = groups.flat_map(|group| score::wanted(graph, group)).collect();
    wanted.into_iter().collect()
}

/// The one pass over all calibration samples.
struct Pass {
    values: Vec<ValueId>,
    seen: Seen,
    found: Original,
    /// Outputs whose answers are kept, and of which samples.
    outputs: Vec<String>,
    screened: Range<usize>,
    samples: usize,
    /// Of the answers and of the sums that are kept.
    answer_bytes: usize,
    sum_bytes: usize,
    limit: usize,
    refused: Vec<Refusal>,
}

impl Pass {
    fn new(targets: Vec<Target>, sums: Vec<Sum>, seen: Seen) -> Self {
        let values = targets
            .iter()
            .map(|t| t.site.output)
            .chain(sums.iter().map(|s| s.output))
            .chain(seen.values());
        Self {
            values: distinct(values),
            seen,
            outputs: Vec::new(),
            screened: 0..0,
            samples: 0,
            answer_bytes: 0,
            sum_bytes: 0,
            limit: MAX_TARGET_BYTES,
            refused: Vec::new(),
            found: Original {
                targets,
                answers: Vec::new(),
                evidence: Evidence::default(),
                watches: Vec::new(),
                wide: Vec::new(),
                batch: 0,
                norms: RefCell::default(),
                sums,
                sum_values: Vec::new(),
            },
        }
    }

    /// Keeps the answers of `screened` as well.
    fn answering(mut self, shop: &Shop<'_>, outputs: &[String], screened: Range<usize>) -> Self {
        let graph = &shop.source.model.graph;
        let seen = outputs.iter().filter_map(|name| graph.value_by_name(name));
        self.values = distinct(self.values.iter().copied().chain(seen));
        self.outputs = outputs.to_vec();
        self.screened = screened;
        self
    }

    fn tensor<'b>(&self, batch: &'b Batch, value: ValueId) -> Result<&'b Tensor, CompressError> {
        let at = self.values.iter().position(|v| *v == value);
        output_of(batch, at.unwrap_or(usize::MAX))
    }

    fn take(&mut self, shop: &Shop<'_>, batch: &Batch) -> Result<(), CompressError> {
        if self.found.batch == 0 {
            self.found.batch = batch.samples.len();
        }
        self.seen.take(&self.values, batch)?;
        for at in 0..self.found.targets.len() {
            self.take_target(shop, batch, at)?;
        }
        if batch.samples.iter().any(|sample| self.screened.contains(sample)) {
            let answers = batch.samples.iter().zip(split(batch, &self.outputs)?);
            for (_, answer) in answers.filter(|(sample, _)| self.screened.contains(sample)) {
                self.answer_bytes += answer.iter().map(|a| a.data.len() * 4).sum::<usize>();
                self.found.answers.push(answer);
            }
        }
        if self.samples < RATING_SAMPLES {
            let sums = self.found.sums.iter();
            let values = sums.map(|sum| Ok(floats(self.tensor(batch, sum.output)?)?.into_owned()));
            let values = values.collect::<Result<Vec<Vec<f32>>, CompressError>>()?;
            self.sum_bytes += values.iter().map(|v| v.len() * 4).sum::<usize>();
            self.found.sum_values.push(values);
        }
        self.samples += batch.samples.len();
        self.shrink();
        Ok(())
    }

    /// Gives up what is kept until it is within the limit: rows of what takes most, then that place; then the
    /// answers, which can be had again; then the sums.
    fn shrink(&mut self) {
        while self.bytes() > self.limit {
            let targets = self.found.targets.iter().map(|t| t.bytes).enumerate();
            let largest = targets.max_by_key(|(at, bytes)| (*bytes, std::cmp::Reverse(*at)));
            if let Some((at, _)) = largest {
                if !self.found.targets[at].halve() {
                    let gone = self.found.targets.remove(at);
                    self.refused.push(refit::refusal(&gone.site.label, too_large()));
                }
            } else if self.answer_bytes > 0 {
                self.found.answers.clear();
                (self.answer_bytes, self.screened) = (0, 0..0);
            } else {
                for sum in self.found.sums.drain(..) {
                    self.refused.push(Refusal::new("rescale", sum.label, too_large()));
                }
                self.found.sum_values.clear();
                self.sum_bytes = 0;
            }
        }
    }

    fn bytes(&self) -> usize {
        let targets = self.found.targets.iter().map(|t| t.bytes).sum::<usize>();
        targets + self.answer_bytes + self.sum_bytes
    }

    fn take_target(
        &mut self,
        shop: &Shop<'_>,
        batch: &Batch,
        at: usize,
    ) -> Result<(), CompressError> {
        if self.samples >= self.found.targets[at].samples {
            return Ok(());
        }
        let tensor = self.tensor(batch, self.found.targets[at].site.output)?;
        let data = floats(tensor)?;
        let target = &mut self.found.targets[at];
        target.axis = target.site.axis(tensor.shape.len());
        target.columns = tensor.shape.get(target.axis).copied().unwrap_or(1).max(1);
        if target.stride == 0 {
            let rows = data.len() / target.columns / batch.samples.len().max(1);
            let (inputs, _) = size(shop, &target.site);
            target.admit(rows, inputs, shop.calibration.len());
        }
        let every = Every::after(target.passed, target.stride);
        let rows = rows_along(&data, &tensor.shape, target.axis, every);
        target.passed += data.len() / target.columns;
        target.firsts.push(every.first);
        target.bytes += rows.len() * 4;
        target.rows.push(rows);
        Ok(())
    }
}

/// The sums over the units of every group.
fn sums(shop: &Shop<'_>) -> Vec<Sum> {
    let graph = &shop.source.model.graph;
    let mut sums: Vec<Sum> = Vec::new();
    for group in shop.source.observable() {
        for sum in rescale::sums(graph, &shop.source.shapes, group) {
            if !sums.contains(&sum) {
                sums.push(sum);
            }
        }
    }
    sums
}

/// Which places are re-fitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// All of them.
    All,
    /// The last few products, for a search that tries many candidates.
    LastProducts,
}

/// Places that may be re-fitted, those too wide for it that a channel Gram can repair, and the rest with the reason.
#[derive(Default)]
struct Sites {
    sites: Vec<Site>,
    wide: Vec<graph::NodeId>,
    refused: Vec<Refusal>,
}

/// Places that may be re-fitted in any candidate: consumers of any group, depthwise convolutions that its units pass
/// through, and the heads, in the graph's order; and those that cannot, with the reason.
fn sites(shop: &Shop<'_>, reach: Reach) -> Sites {
    let graph = &shop.source.model.graph;
    let mut wanted: HashSet<graph::NodeId> = refit::heads(graph).into_iter().collect();
    for group in shop.source.observable() {
        wanted.extend(group.consumers.iter().map(|c| c.node));
        let passed = group.slices.iter().filter(|s| s.role == Role::Elementwise).map(|s| s.node);
        wanted.extend(passed.filter(|node| matches!(graph.node(*node).op, Op::Conv(_))));
    }
    let mut found = Sites::default();
    for (node, _) in graph.nodes().filter(|(id, _)| wanted.contains(id)) {
        match refit::site(graph, node) {
            Ok(site) if reach == Reach::LastProducts && site.conv.is_some() => {
                found.refused.push(refit::refusal(
                    &site.label,
                    "a search re-fits no convolutions; `espalier prune` does",
                ))
            }
            Ok(site) => found.take(shop, reach, site),
            Err(why) => found.refused.push(refit::refusal(&refit::label(graph, node), why)),
        }
    }
    // The last ones see the sum of all that was lost before them.
    let most = if reach == Reach::All { usize::MAX } else { MAX_SITES };
    for extra in found.sites.drain(..found.sites.len().saturating_sub(most)) {
        found.refused.push(refit::refusal(
            &extra.label,
            format!("only the last MAX_SITES = {MAX_SITES} consumers are re-fitted"),
        ));
    }
    found
}

impl Sites {
    /// Takes a site, unless its moments are too large.
    fn take(&mut self, shop: &Shop<'_>, reach: Reach, site: Site) {
        let mut why = if size(shop, &site).0 > MAX_INPUTS {
            format!("it has more than MAX_INPUTS = {MAX_INPUTS} inputs")
        } else if gram_bytes(shop, &site) > MAX_GRAM_BYTES {
            format!("its moments take more than MAX_GRAM_BYTES = {MAX_GRAM_BYTES}")
        } else {
            self.sites.push(site);
            return;
        };
        if reach == Reach::All && channels(shop, &site) <= MAX_CHANNELS {
            why.push_str("; the Gram matrix of its channels repairs it instead");
            self.wide.push(site.node);
        }
        self.refused.push(refit::refusal(&site.label, why));
    }
}

/// Channels that a site reads.
fn channels(shop: &Shop<'_>, site: &Site) -> usize {
    let weight = shop.source.model.graph.constant(site.weight);
    let Some(weight) = weight else { return usize::MAX };
    match site.conv {
        Some(_) => weight.dims.get(1).map_or(usize::MAX, |each| each * site.groups()),
        None => site.size(&weight.dims).0,
    }
}

/// Inputs of one product of a site, and outputs of all, in the source.
fn size(shop: &Shop<'_>, site: &Site) -> (usize, usize) {
    let weight = shop.source.model.graph.constant(site.weight);
    weight.map_or((0, 0), |w| site.size(&w.dims))
}

/// What the moments of a site take, all folds and groups together.
fn gram_bytes(shop: &Shop<'_>, site: &Site) -> usize {
    let (inputs, outputs) = size(shop, site);
    let squares = site.groups().saturating_mul(inputs.saturating_mul(inputs));
    refit::FOLDS * 8 * squares.saturating_add(inputs.saturating_mul(outputs))
}

fn too_large() -> String {
    format!(
        "what the original computes takes more than MAX_TARGET_BYTES = {MAX_TARGET_BYTES}; fewer calibration samples take less"
    )
}

/// Every how-manieth row is used, so that about `enough` are. A stride that shares a factor with the positions of a map
/// would see some of its columns only.
pub(crate) fn spread_stride(rows_per_sample: usize, samples: usize, enough: usize) -> usize {
    let wanted = (rows_per_sample * samples).div_ceil(enough.max(1)).max(1);
    (wanted..).find(|s| coprime(*s, rows_per_sample)).unwrap_or(wanted)
}

/// Rows that are gathered side by side: neighbours lie in one line of the cache.
const ROWS_AT_ONCE: usize = 16;

/// Which rows of a batch are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Every {
    /// The first that is.
    pub(crate) first: usize,
    /// And every how-manieth from there; at least 1.
    pub(crate) stride: usize,
}

impl Every {
    /// Goes on where the batches before, of so many rows, have left off. Begun anew with each batch, batches of one sample
    /// would show the same places of each map and no others: of 7 by 7, every eighth is the diagonal.
    pub(crate) fn after(rows: usize, stride: usize) -> Self {
        let stride = stride.max(1);
        Self { first: (stride - rows % stride) % stride, stride }
    }
}

/// Some rows of a tensor: its elements along `axis` at one place of all others, in row-major order.
pub(crate) fn rows_along(data: &[f32], shape: &[usize], axis: usize, every: Every) -> Vec<f32> {
    let columns = shape.get(axis).copied().unwrap_or(1).max(1);
    let inner: usize = shape.iter().skip(axis + 1).product();
    if inner <= 1 {
        return sampled(data, columns, every);
    }
    let rows = (every.first..data.len() / columns).step_by(every.stride);
    let firsts: Vec<usize> =
        rows.map(|row| (row / inner) * columns * inner + row % inner).collect();
    let mut taken = vec![0.0; firsts.len() * columns];
    let blocks = firsts.chunks(ROWS_AT_ONCE).zip(taken.chunks_mut(ROWS_AT_ONCE * columns));
    for (firsts, taken) in blocks {
        for column in 0..columns {
            for (row, first) in firsts.iter().enumerate() {
                taken[row * columns + column] = data[first + column * inner];
            }
        }
    }
    taken
}

fn coprime(mut a: usize, mut b: usize) -> bool {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a <= 1
}

pub(crate) fn sampled(data: &[f32], columns: usize, every: Every) -> Vec<f32> {
    data.chunks_exact(columns).skip(every.first).step_by(every.stride).flatten().copied().collect()
}

pub(crate) fn output_of(batch: &Batch, at: usize) -> Result<&Tensor, CompressError> {
    batch.outputs.get(at).map(|(_, tensor)| tensor).ok_or_else(|| CompressError::Graph {
        stage: "observe",
        what: format!("the engine gave {} outputs, no number {at}", batch.outputs.len()),
    })
}

/// The numbers of a tensor that must be f32.
pub(crate) fn floats(tensor: &Tensor) -> Result<Cow<'_, [f32]>, CompressError> {
    tensor.as_f32().map_err(CompressError::engine("reading an activation"))
}

pub(crate) fn distinct(values: impl IntoIterator<Item = ValueId>) -> Vec<ValueId> {
    let mut seen = HashSet::new();
    values.into_iter().filter(|v| seen.insert(*v)).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "observe_tests.rs"]
mod tests;
