//! How much each unit of a group matters.

use std::collections::HashMap;

use graph::{Graph, Group, Role, Slice, ValueId};
use rand::seq::SliceRandom;
use rand::{SeedableRng, rngs::StdRng};

use crate::plan::ScoreKind;

/// First and second moments of an activation along one axis, over everything else.
#[derive(Debug, Clone, PartialEq)]
pub struct AxisMoments {
    count: u64,
    sum: Vec<f64>,
    squares: Vec<f64>,
}

impl AxisMoments {
    /// Of an axis of `width`, with nothing seen.
    pub fn new(width: usize) -> Self {
        Self { count: 0, sum: vec![0.0; width], squares: vec![0.0; width] }
    }

    /// Adds a tensor of `shape`; false where `axis` does not have the width expected.
    pub fn push(&mut self, shape: &[usize], axis: usize, data: &[f32]) -> bool {
        if shape.get(axis) != Some(&self.sum.len()) {
            return false;
        }
        let inner: usize = shape[axis + 1..].iter().product();
        let width = self.sum.len();
        if inner == 0 || width == 0 {
            return true;
        }
        for (block, values) in data.chunks(inner).enumerate() {
            let at = block % width;
            for v in values {
                let v = f64::from(*v);
                self.sum[at] += v;
                self.squares[at] += v * v;
            }
        }
        self.count += (data.len() / width) as u64;
        true
    }

    /// Standard deviation of each index.
    pub fn deviations(&self) -> Vec<f64> {
        let n = self.count.max(1) as f64;
        self.sum
            .iter()
            .zip(&self.squares)
            .map(|(s, q)| (q / n - (s / n).powi(2)).max(0.0).sqrt())
            .collect()
    }
}

/// Deviations of activations, by value and axis.
pub type Deviations = HashMap<(ValueId, usize), Vec<f64>>;

/// Which activations, and along which axes, the activation score wants to know of `group`.
pub fn wanted(graph: &Graph, group: &Group) -> Vec<(ValueId, usize)> {
    group
        .consumers
        .iter()
        .filter(|c| c.weight.is_some())
        .filter_map(|c| {
            let value = *graph.node(c.node).inputs.get(c.input_slot)?;
            value.map(|v| (v, c.input_axis))
        })
        .collect()
}

/// A rating of a group's units.
#[derive(Debug, Clone, PartialEq)]
pub struct Rating {
    /// For each unit; higher is more important.
    pub units: Vec<f64>,
    /// Why it is not of the kind that was asked for, if it is not.
    pub fell_back: Option<String>,
}

/// Rates the units of `group`.
///
/// # Errors
/// A sentence, where a constant cannot be read as numbers.
pub fn rate(
    kind: ScoreKind,
    graph: &Graph,
    group: &Group,
    deviations: &Deviations,
    seed: u64,
) -> Result<Rating, String> {
    let as_asked = |units| Rating { units, fell_back: None };
    match kind {
        ScoreKind::Magnitude => magnitude(graph, group).map(as_asked),
        // What stands in a body is not observed, and its ids are not those of the main graph.
        ScoreKind::Activation if !group.scope.is_main() => Ok(Rating {
            units: magnitude(graph, group)?,
            fell_back: Some(
                "activations inside of control flow are not observed; its weights alone rate its units"
                    .into(),
            ),
        }),
        ScoreKind::Activation => match activation(graph, group, deviations)? {
            Some(units) => Ok(as_asked(units)),
            None => Ok(Rating {
                units: magnitude(graph, group)?,
                fell_back: Some(
                    "no activation that its consumers weigh was observed; its weights alone rate its units"
                        .into(),
                ),
            }),
        },
        ScoreKind::Random => {
            let mut order: Vec<usize> = (0..group.width).collect();
            order.shuffle(&mut StdRng::seed_from_u64(seed ^ u64::from(group.id.0)));
            Ok(as_asked(order.into_iter().map(|v| v as f64).collect()))
        }
    }
}

/// L2 norm of all slices of each unit.
fn magnitude(graph: &Graph, group: &Group) -> Result<Vec<f64>, String> {
    let mut total = vec![0.0; group.width];
    for slice in group.slices.iter().filter(|s| s.role != Role::Divisor) {
        for (sum, square) in total.iter_mut().zip(unit_squares(graph, slice)?) {
            *sum += square;
        }
    }
    Ok(total.into_iter().map(f64::sqrt).collect())
}

/// Per unit √Σ (σᵢ·‖wᵢ‖)² over the consumers' inputs i that belong to the unit: how much of what the
/// consumers compute varies because of it. `None` where no consumer's activation was observed.
fn activation(
    graph: &Graph,
    group: &Group,
    deviations: &Deviations,
) -> Result<Option<Vec<f64>>, String> {
    let mut total = vec![0.0; group.width];
    let mut seen = false;
    for consumer in &group.consumers {
        let Some((slot, axis)) = consumer.weight else {
            continue;
        };
        let value = graph.node(consumer.node).inputs.get(consumer.input_slot);
        let Some(value) = value.copied().flatten() else {
            continue;
        };
        let Some(spread) = deviations.get(&(value, consumer.input_axis)) else {
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
        let weights = unit_squares(graph, slice)?;
        for (unit, sum) in total.iter_mut().enumerate() {
            let variance: f64 =
                map.unit(unit).iter().filter_map(|i| spread.get(*i as usize)).map(|s| s * s).sum();
            // Σ σᵢ²·‖wᵢ‖² with one weight norm for the whole unit, split evenly over its indices.
            *sum += variance * weights[unit] / map.per_unit() as f64;
        }
        seen = true;
    }
    Ok(seen.then(|| total.into_iter().map(f64::sqrt).collect()))
}

/// Sum of squares of what `slice` takes of its constant, per unit.
fn unit_squares(graph: &Graph, slice: &Slice) -> Result<Vec<f64>, String> {
    let name = &graph.value(slice.value).name;
    let tensor =
        graph.constant(slice.value).ok_or_else(|| format!("constant \"{name}\" is gone"))?;
    let values = tensor.to_f32_vec().map_err(|e| format!("constant \"{name}\": {e}"))?;
    let width = tensor.dims.get(slice.axis).copied().unwrap_or(1);
    let inner: usize = tensor.dims.iter().skip(slice.axis + 1).product();
    let mut by_index = vec![0.0; width];
    for (block, chunk) in values.chunks(inner.max(1)).enumerate() {
        by_index[block % width.max(1)] += chunk.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
    }
    Ok((0..slice.map.units())
        .map(|unit| slice.map.unit(unit).iter().filter_map(|i| by_index.get(*i as usize)).sum())
        .collect())
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
mod tests {
    use super::*;

    #[test]
    fn deviations_are_taken_along_the_axis_and_over_everything_else() {
        let mut moments = AxisMoments::new(2);
        // Shape [2, 2, 2]: index 0 of axis 1 sees 1,1,3,3; index 1 sees 5,5,5,5.
        assert!(moments.push(&[2, 2, 2], 1, &[1., 1., 5., 5., 3., 3., 5., 5.]));
        let deviations = moments.deviations();
        assert!((deviations[0] - 1.0).abs() < 1e-12 && deviations[1].abs() < 1e-12);
        assert!(!moments.push(&[1, 3], 1, &[0.0; 3]));
    }

    #[test]
    fn two_batches_give_what_one_gives() {
        let data: Vec<f32> = (0..24).map(|i| (i * i % 7) as f32).collect();
        let mut whole = AxisMoments::new(3);
        whole.push(&[8, 3], 1, &data);
        let mut parts = AxisMoments::new(3);
        parts.push(&[5, 3], 1, &data[..15]);
        parts.push(&[3, 3], 1, &data[15..]);
        assert_eq!(whole, parts);
    }

    #[test]
    fn a_rating_that_falls_back_to_the_weights_says_so() {
        use graph::{Builder, DType, Dim, Tensor};
        let mut builder = Builder::new(15);
        let x = builder.input("x", DType::F32, vec![Dim::Symbol("N".into()), Dim::Fixed(2)]);
        let a = Tensor::from_f32(vec![2, 4], &[1., 2., 3., 4., 1., 2., 3., 4.]).unwrap();
        let a = builder.constant("a", a).unwrap();
        let b = builder.constant("b", Tensor::from_f32(vec![4, 1], &[1.0; 4]).unwrap()).unwrap();
        let h = builder.node("MatMul", &[x, a], []).unwrap();
        let y = builder.node("MatMul", &[h, b], []).unwrap();
        let model = builder.finish(&[y]).unwrap();
        let grouping = graph::find(&model, &graph::infer(&model));
        let group = &grouping.groups[0];
        let rate = |kind, seen: &Deviations| rate(kind, &model.graph, group, seen, 0).unwrap();
        let blind = rate(ScoreKind::Activation, &Deviations::new());
        assert!(blind.fell_back.unwrap().contains("weights alone"));
        assert_eq!(blind.units, rate(ScoreKind::Magnitude, &Deviations::new()).units);
        let seen = Deviations::from([((h, 1), vec![4.0, 3.0, 2.0, 1.0])]);
        let rating = rate(ScoreKind::Activation, &seen);
        assert_eq!((rating.units, rating.fell_back), (vec![4.0, 3.0, 2.0, 1.0], None));
    }

    #[test]
    fn the_best_units_come_ascending_and_ties_go_to_the_lower_index() {
        assert_eq!(best(&[1.0, 3.0, 1.0, 2.0], 3), vec![0, 1, 3]);
        assert_eq!(best(&[f64::NAN, 1.0], 1).len(), 1);
    }
}
