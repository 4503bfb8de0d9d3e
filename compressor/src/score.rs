//! How much each unit of a group matters.
//!
//! A [`Score`] rates the units of one group from the graph and from [`Evidence`]: what was seen of the original on
//! calibration samples. One file has one idea of importance. A score that finds nothing to go by says so
//! ([`Scored::Blind`]), and the weights alone rate instead; a score may as well bring evidence of its own.

mod activation;
mod combined;
mod kind;
mod magnitude;
mod moments;
mod obs;

use std::collections::HashMap;

use graph::{Graph, Group, ValueId};
use rand::seq::SliceRandom;
use rand::{SeedableRng, rngs::StdRng};

pub use activation::{Seen, Weighted};
pub use combined::{Combined, ranks};
pub use kind::GroupKind;
pub use magnitude::Magnitude;
pub use moments::AxisMoments;
pub use obs::{MAX_WIDTH, Obs};

use crate::gram::ChannelGram;
use crate::plan::ScoreKind;

/// What was seen of the original's activations, by value and axis.
#[derive(Debug, Clone, Default)]
pub struct Evidence {
    /// Moments along the axis.
    pub moments: HashMap<(ValueId, usize), AxisMoments>,
    /// How the channels go together, where that was asked for.
    pub grams: HashMap<(ValueId, usize), ChannelGram>,
    /// Why an activation has no channel Gram although it was asked for.
    pub without_gram: HashMap<(ValueId, usize), String>,
}

impl Evidence {
    /// The channel Gram of `value` along `axis`.
    ///
    /// # Errors
    /// Why there is none.
    pub fn gram(&self, value: ValueId, axis: usize) -> Result<&ChannelGram, String> {
        let key = (value, axis);
        self.grams.get(&key).ok_or_else(|| {
            let why = self.without_gram.get(&key).cloned();
            why.unwrap_or_else(|| "how its channels go together was not observed".into())
        })
    }
}

/// What is to be rated, and what is known of it.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// The graph that the group names nodes and values of.
    pub graph: &'a Graph,
    /// The group.
    pub group: &'a Group,
    /// Of the original.
    pub evidence: &'a Evidence,
    /// Of everything random.
    pub seed: u64,
}

/// What a score makes of a group.
#[derive(Debug, Clone, PartialEq)]
pub enum Scored {
    /// For each unit; higher is more important.
    Units(Vec<f64>),
    /// Why it has nothing to go by.
    Blind(String),
}

/// An idea of what makes a unit important.
pub trait Score {
    /// Rates the units of a group.
    ///
    /// # Errors
    /// A sentence, where a constant cannot be read as numbers.
    fn rate(&self, subject: &Subject<'_>) -> Result<Scored, String>;
}

/// In any order, from the seed: the control.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Random;

impl Score for Random {
    fn rate(&self, subject: &Subject<'_>) -> Result<Scored, String> {
        let mut order: Vec<usize> = (0..subject.group.width).collect();
        let seed = subject.seed ^ u64::from(subject.group.id.0);
        order.shuffle(&mut StdRng::seed_from_u64(seed));
        Ok(Scored::Units(order.into_iter().map(|v| v as f64).collect()))
    }
}

/// The score of that name; [`ScoreKind::Auto`], which is a choice among scores, stands for the weights.
pub fn of(kind: ScoreKind) -> &'static dyn Score {
    match kind {
        ScoreKind::Magnitude | ScoreKind::Auto => &Magnitude::L2,
        ScoreKind::MagnitudeL1 => &Magnitude::L1,
        ScoreKind::Activation => &Weighted::Deviation,
        ScoreKind::Wanda => &Weighted::Size,
        ScoreKind::MeanAbs => &Seen::MeanAbs,
        ScoreKind::Apoz => &Seen::Positive,
        ScoreKind::Obs => &Obs,
        ScoreKind::Combined => &Combined,
        ScoreKind::Random => &Random,
    }
}

/// Which activations, and along which axes, scores want to know of `group`: those that weighted consumers read.
pub fn wanted(graph: &Graph, group: &Group) -> Vec<(ValueId, usize)> {
    let mut wanted: Vec<(ValueId, usize)> = Vec::new();
    for consumer in group.consumers.iter().filter(|c| c.weight.is_some()) {
        let value = graph.node(consumer.node).input(consumer.input_slot);
        let key = value.map(|v| (v, consumer.input_axis));
        wanted.extend(key.filter(|key| !wanted.contains(key)));
    }
    wanted
}

/// A rating of a group's units.
#[derive(Debug, Clone, PartialEq)]
pub struct Rating {
    /// For each unit; higher is more important.
    pub units: Vec<f64>,
    /// Why it is not of the kind that was asked for, if it is not.
    pub fell_back: Option<String>,
}

/// Rates the units of `group` by `kind`, or by their weights alone where that has nothing to go by.
///
/// # Errors
/// A sentence, where a constant cannot be read as numbers.
pub fn rate(
    kind: ScoreKind,
    graph: &Graph,
    group: &Group,
    evidence: &Evidence,
    seed: u64,
) -> Result<Rating, String> {
    let subject = Subject { graph, group, evidence, seed };
    // What stands in a body is not observed, and its ids are not those of the main graph.
    let scored = if kind.needs_data() && !group.scope.is_main() {
        Scored::Blind("activations inside of control flow are not observed".into())
    } else {
        of(kind).rate(&subject)?
    };
    let why = match scored {
        Scored::Units(units) => return Ok(Rating { units, fell_back: None }),
        Scored::Blind(why) => format!("{why}; its weights alone rate its units"),
    };
    match Magnitude::L2.rate(&subject)? {
        Scored::Units(units) => Ok(Rating { units, fell_back: Some(why) }),
        Scored::Blind(why) => Err(why),
    }
}

/// The `count` best rated units, ascending; the lower index of equals.
pub fn best(rating: &[f64], count: usize) -> Vec<u32> {
    let mut order: Vec<usize> = (0..rating.len()).collect();
    order.sort_by(|a, b| rating[*b].total_cmp(&rating[*a]).then(a.cmp(b)));
    let mut keep: Vec<u32> = order.into_iter().take(count).map(|u| u as u32).collect();
    keep.sort_unstable();
    keep
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "score_tests.rs"]
mod tests;
