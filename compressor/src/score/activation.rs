//! Scores from what the consumers of a unit read of it.

use graph::Group;

use super::magnitude::unit_squares;
use super::{AxisMoments, Score, Scored, Subject};

const UNSEEN: &str = "no activation that its consumers weigh was observed";

/// Per unit `√Σ m²ᵢ·‖wᵢ‖²` over the consumers' inputs i that belong to the unit, with m a moment of the activation: how
/// much of what the consumers compute is there because of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weighted {
    /// m = σ, the deviation: a constant goes into a bias for free.
    Deviation,
    /// m = √E(x²), the size (Wanda, arXiv 2306.11695, summed over a structure).
    Size,
}

impl Score for Weighted {
    fn rate(&self, subject: &Subject<'_>) -> Result<Scored, String> {
        let Subject { graph, group, evidence, .. } = subject;
        let mut total = vec![0.0; group.width];
        let mut seen = false;
        for consumer in &group.consumers {
            let Some((slot, axis)) = consumer.weight else { continue };
            let Some(value) = graph.node(consumer.node).input(consumer.input_slot) else {
                continue;
            };
            let Some(moments) = evidence.moments.get(&(value, consumer.input_axis)) else {
                continue;
            };
            let on_activation =
                group.values.iter().find(|(v, a, _)| *v == value && *a == consumer.input_axis);
            let on_weight = group
                .slices
                .iter()
                .find(|s| s.node == consumer.node && s.slot == slot && s.axis == axis);
            let (Some((_, _, map)), Some(slice)) = (on_activation, on_weight) else {
                continue;
            };
            let (squares, weights) = (self.squares(moments), unit_squares(graph, slice)?);
            for (unit, sum) in total.iter_mut().enumerate() {
                let own = map.unit(unit).iter().filter_map(|i| squares.get(*i as usize));
                // Σ m²ᵢ·‖wᵢ‖² with one weight norm for the whole unit, split evenly over its indices.
                *sum += own.sum::<f64>() * weights[unit] / map.per_unit() as f64;
            }
            seen = true;
        }
        if !seen {
            return Ok(Scored::Blind(UNSEEN.into()));
        }
        Ok(Scored::Units(total.into_iter().map(f64::sqrt).collect()))
    }
}

impl Weighted {
    fn squares(self, moments: &AxisMoments) -> Vec<f64> {
        match self {
            Self::Deviation => moments.deviations().into_iter().map(|s| s * s).collect(),
            Self::Size => moments.mean_squares(),
        }
    }
}

/// Per unit a mean over the activations that weighted consumers read of it, whatever their weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// Mean absolute value, each activation as a share of its mean over all units, so that none outweighs the others.
    MeanAbs,
    /// Share of elements above zero: one less the average percentage of zeros (APoZ, arXiv 1607.03250).
    Positive,
}

impl Score for Seen {
    fn rate(&self, subject: &Subject<'_>) -> Result<Scored, String> {
        let Subject { group, evidence, .. } = subject;
        let mut total = vec![0.0; group.width];
        let mut count = 0;
        for key in super::wanted(subject.graph, group) {
            let Some(moments) = evidence.moments.get(&key) else { continue };
            let Some(units) = self.units(group, key, moments) else { continue };
            total.iter_mut().zip(units).for_each(|(sum, v)| *sum += v);
            count += 1;
        }
        if count == 0 {
            return Ok(Scored::Blind(UNSEEN.into()));
        }
        Ok(Scored::Units(total.into_iter().map(|v| v / f64::from(count)).collect()))
    }
}

impl Seen {
    fn units(
        self,
        group: &Group,
        (value, axis): (graph::ValueId, usize),
        moments: &AxisMoments,
    ) -> Option<Vec<f64>> {
        let (_, _, map) = group.values.iter().find(|(v, a, _)| *v == value && *a == axis)?;
        let by_index = match self {
            Self::MeanAbs => moments.mean_absolutes(),
            Self::Positive => moments.positive_shares(),
        };
        let mean = |unit: usize| {
            let own = map.unit(unit).iter().filter_map(|i| by_index.get(*i as usize));
            own.sum::<f64>() / map.per_unit() as f64
        };
        let units: Vec<f64> = (0..group.width).map(mean).collect();
        let all = units.iter().sum::<f64>() / units.len().max(1) as f64;
        match self {
            Self::MeanAbs if all > 0.0 => Some(units.into_iter().map(|v| v / all).collect()),
            Self::MeanAbs | Self::Positive => Some(units),
        }
    }
}
