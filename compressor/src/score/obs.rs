//! Second-order removal of whole units with compensation: the optimal brain surgeon over structures, greedily.
//!
//! For a consumer that reads x (C channels) with weights W (C by everything else) and H = E[x·xᵀ] + λ·I, removing the
//! channels S of a unit and moving all other weights to where they make up for it best costs, and is done by,
//!
//! ```text
//! loss = tr(W_Sᵀ · (H⁻¹_SS)⁻¹ · W_S)
//! W   ← W   − H⁻¹_:S · (H⁻¹_SS)⁻¹ · W_S
//! H⁻¹ ← H⁻¹ − H⁻¹_:S · (H⁻¹_SS)⁻¹ · H⁻¹_S:
//! ```
//!
//! (Hassibi & Stork 1993; OBC, arXiv 2208.11580; for structures ZipLM, arXiv 2302.04089, section 3). The unit with the
//! least loss goes first, and the next is chosen with the weights as they are then. Since the losses only ask for
//! A = W·Wᵀ, and the update is linear in the rows of W, A is carried along in place of W: a step costs the
//! square of the channels, whatever the outputs and taps. A unit that several consumers read costs the sum of what it
//! costs each, as shares of what each computes.
//!
//! What the updates leave of W once R is removed and K is left is `W_K + (H_KK)⁻¹·H_KR·W_R`, which is what
//! [`crate::gram`] folds into the consumers: score and repair are two halves of one thing.

use std::collections::HashMap;

use graph::{Graph, Group, Op, ValueId};

use super::{Evidence, Score, Scored, Subject};
use crate::gram::{DAMPING, products};
use crate::linalg::{Square, axpy};
use crate::refit;

/// The widest axis whose channels are removed one unit at a time: a round over all of them takes its cube.
pub const MAX_WIDTH: usize = 2048;

/// The order in which second-order removal gives units up: the later, the more important.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Obs;

impl Score for Obs {
    fn rate(&self, subject: &Subject<'_>) -> Result<Scored, String> {
        let mut readers = match readers(subject)? {
            Ok(readers) => readers,
            Err(why) => return Ok(Scored::Blind(why)),
        };
        let steps = remove(&mut readers, subject.group.width, 0);
        let mut units = vec![0.0; subject.group.width];
        for (turn, step) in steps.iter().enumerate() {
            units[step.unit] = turn as f64;
        }
        Ok(Scored::Units(units))
    }
}

/// A unit that was removed, and what that cost when it was its turn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Step {
    pub(crate) unit: usize,
    /// As a share of what the readers compute, summed over them.
    pub(crate) loss: f64,
}

/// Everything that reads the group's units through one activation, while units are removed from it. Of both matrices,
/// which are symmetric, only the upper triangle is kept up to date.
#[derive(Debug, Clone)]
pub(crate) struct Reader {
    /// H⁻¹ of what is left.
    inverse: Square,
    /// W·Wᵀ of what is left, each consumer as a share of what it computes.
    products: Square,
    /// Channels of each unit; none for one that is gone.
    units: Vec<Vec<usize>>,
    /// Channels that are left.
    alive: Vec<bool>,
}

impl Reader {
    /// Of the damped moments `h`, weights as `products` = Σ W·Wᵀ / tr(Wᵀ·H·W) and channels for each unit. None
    /// where H has no inverse.
    pub(crate) fn new(h: &Square, products: Square, units: Vec<Vec<usize>>) -> Option<Self> {
        let alive = vec![true; h.size()];
        Some(Self { inverse: h.inverse()?, products, units, alive })
    }

    fn loss(&self, unit: usize) -> f64 {
        let channels = &self.units[unit];
        if let [only] = channels.as_slice() {
            let pivot = self.inverse.at(*only, *only).max(f64::MIN_POSITIVE);
            return (self.products.at(*only, *only) / pivot).max(0.0);
        }
        let inner = self.inverse.upper_block(channels).inverse();
        let weights = self.products.upper_block(channels);
        inner.map_or(0.0, |inner| inner.trace_with(&weights)).max(0.0)
    }

    /// Takes a unit's channels out of both matrices.
    fn remove(&mut self, unit: usize) {
        let channels = std::mem::take(&mut self.units[unit]);
        if let Some(inner) = self.inverse.upper_block(&channels).inverse() {
            self.move_weights(&channels, &inner);
        }
        for &gone in &channels {
            self.alive[gone] = false;
            for matrix in [&mut self.inverse, &mut self.products] {
                matrix.row_mut(gone).fill(0.0);
                (0..matrix.size()).for_each(|i| matrix.row_mut(i)[gone] = 0.0);
            }
        }
    }

    /// With P = H⁻¹_:S·(H⁻¹_SS)⁻¹ and V = A_S: − ½·A_SS·Pᵀ: H⁻¹ − P·H⁻¹_S: and A − P·V − (P·V)ᵀ.
    fn move_weights(&mut self, channels: &[usize], inner: &Square) {
        let n = self.inverse.size();
        let rows = |of: &Square| channels.iter().map(|s| of.upper_row(*s)).collect::<Vec<_>>();
        let (inverse, mut v) = (rows(&self.inverse), rows(&self.products));
        // Row s of Pᵀ, since both factors are symmetric.
        let mut p = vec![vec![0.0; n]; channels.len()];
        for (s, row) in p.iter_mut().enumerate() {
            for (t, other) in inverse.iter().enumerate() {
                axpy(inner.at(s, t), other, row);
            }
        }
        for (s, row) in v.iter_mut().enumerate() {
            for (t, column) in channels.iter().enumerate() {
                axpy(-0.5 * self.products.upper(channels[s], *column), &p[t], row);
            }
        }
        for i in (0..n).filter(|i| self.alive[*i]) {
            for s in 0..channels.len() {
                axpy(-p[s][i], &inverse[s][i..], &mut self.inverse.row_mut(i)[i..]);
                let products = &mut self.products.row_mut(i)[i..];
                axpy(-p[s][i], &v[s][i..], products);
                axpy(-v[s][i], &p[s][i..], products);
            }
        }
    }
}

/// Removes units until `keep` of `width` are left, cheapest first; the lower index of equals.
pub(crate) fn remove(readers: &mut [Reader], width: usize, keep: usize) -> Vec<Step> {
    let mut left: Vec<usize> = (0..width).collect();
    let mut steps = Vec::with_capacity(width.saturating_sub(keep));
    while left.len() > keep {
        let loss = |unit: &usize| readers.iter().map(|r| r.loss(*unit)).sum::<f64>();
        let losses = left.iter().map(loss).enumerate();
        let Some((at, loss)) = losses.min_by(|a, b| a.1.total_cmp(&b.1)) else { break };
        let unit = left.remove(at);
        readers.iter_mut().for_each(|r| r.remove(unit));
        steps.push(Step { unit, loss });
    }
    steps
}

/// The readers of a group, or the reason why there are none.
fn readers(subject: &Subject<'_>) -> Result<Result<Vec<Reader>, String>, String> {
    let Subject { graph, group, evidence, .. } = subject;
    let mut found: HashMap<Key, (Square, Square)> = HashMap::new();
    let (mut order, mut why) = (Vec::new(), None);
    for consumer in &group.consumers {
        match reader(graph, group, evidence, consumer)? {
            Ok((key, h, products)) => match found.get_mut(&key) {
                Some((_, sum)) => sum.add(1.0, &products),
                None => {
                    order.push(key);
                    found.insert(key, (h, products));
                }
            },
            Err(reason) => why = why.or(Some(reason)),
        }
    }
    let mut readers = Vec::new();
    for key in order {
        let Some((h, products)) = found.remove(&key) else { continue };
        let Some((_, _, map)) = group.values.iter().find(|(v, a, _)| (*v, *a) == (key.0, key.1))
        else {
            continue;
        };
        let units = (0..group.width).map(|u| map.unit(u).iter().map(|i| *i as usize).collect());
        readers.extend(Reader::new(&h, products, units.collect()));
    }
    if readers.is_empty() {
        let nothing = || "no weighted consumer reads its units".to_owned();
        return Ok(Err(why.unwrap_or_else(nothing)));
    }
    Ok(Ok(readers))
}

/// An activation, its axis, and whether H is about the mean.
type Key = (ValueId, usize, bool);

/// One consumer's activation with its damped moments, and W·Wᵀ as a share of what it computes; or why there is
/// nothing to go by.
fn reader(
    graph: &Graph,
    group: &Group,
    evidence: &Evidence,
    consumer: &graph::Consumer,
) -> Result<Result<(Key, Square, Square), String>, String> {
    let Some((slot, axis)) = consumer.weight else {
        return Ok(Err("its consumers have no weights".into()));
    };
    let node = graph.node(consumer.node);
    let (Some(value), Some(weight)) = (node.input(consumer.input_slot), node.input(slot)) else {
        return Ok(Err("a consumer lacks an input".into()));
    };
    if !group.values.iter().any(|(v, a, _)| *v == value && *a == consumer.input_axis) {
        return Ok(Err("what a consumer reads does not carry its units".into()));
    }
    let gram = match evidence.gram(value, consumer.input_axis) {
        Ok(gram) => gram,
        Err(why) => return Ok(Err(why)),
    };
    if gram.width() > MAX_WIDTH {
        return Ok(Err(format!(
            "it is wider than MAX_WIDTH = {MAX_WIDTH} of second-order removal"
        )));
    }
    let centred = refit::site(graph, consumer.node).is_ok_and(|site| site.takes_bias());
    let mut h = match gram.moments(centred) {
        Ok(h) => h,
        Err(why) => return Ok(Err(why)),
    };
    let tensor = graph
        .constant(weight)
        .ok_or_else(|| format!("constant \"{}\" is gone", graph.value(weight).name))?;
    let values = tensor
        .to_f32_vec()
        .map_err(|e| format!("constant \"{}\": {e}", graph.value(weight).name))?;
    let groups = if let Op::Conv(attrs) = &node.op { attrs.group.max(1) } else { 1 };
    let Some(mut products) = products(&values, &tensor.dims, axis, groups, gram.width()) else {
        return Ok(Err("a consumer's weight does not lie along what it reads".into()));
    };
    let energy = h.trace_with(&products);
    if energy.is_nan() || energy <= 0.0 {
        return Ok(Err("what its consumers read never changes what they compute".into()));
    }
    products.scale(1.0 / energy);
    h.add_diagonal(DAMPING * h.mean_diagonal());
    Ok(Ok(((value, consumer.input_axis, centred), h, products)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "obs_tests.rs"]
mod tests;
