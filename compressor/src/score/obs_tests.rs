use proptest::prelude::*;

use super::*;
use crate::gram::ChannelGram;

/// Numbers about zero from a seed.
fn numbers(count: usize, seed: u64) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 53) as f64 - 0.5
    };
    (0..count).map(|_| next()).collect()
}

/// Units of `each` channels over random rows mixed so that the channels depend on each other, with weights `w` (C by
/// `m`), and the damped H.
struct Case {
    units: Vec<Vec<usize>>,
    h: Square,
    w: Vec<f64>,
    m: usize,
}

impl Case {
    fn new(units: usize, each: usize, m: usize, seed: u64) -> Self {
        let c = units * each;
        let (mix, raw) = (numbers(c * c, seed + 1), numbers(3 * c * c, seed + 2));
        let mut h = Square::zero(c);
        for row in raw.chunks(c) {
            let mut mixed = row.to_vec();
            for (value, from) in row.iter().zip(mix.chunks(c)) {
                axpy(*value, from, &mut mixed);
            }
            h.add_rows(&mixed);
        }
        h.scale(1.0 / (3 * c) as f64);
        h.add_diagonal(DAMPING * h.mean_diagonal());
        let units = (0..units).map(|u| (u * each..(u + 1) * each).collect()).collect();
        Self { units, h, w: numbers(c * m, seed + 3), m }
    }

    fn reader(&self, scale: f64) -> Reader {
        let mut products = Square::of_products(self.h.size(), &self.w);
        products.scale(scale);
        Reader::new(&self.h, products, self.units.clone()).unwrap()
    }

    /// W_K + (H_KK)⁻¹·H_KR·W_R, zero at R: the least-squares weights without R.
    fn best_without(&self, gone: &[usize]) -> Vec<f64> {
        let keep: Vec<usize> = (0..self.h.size()).filter(|c| !gone.contains(c)).collect();
        let right = self.h.rectangle(&keep, gone);
        let d = self.h.block(&keep).solve(right, gone.len()).unwrap();
        let mut w = self.w.clone();
        for (row, channel) in d.chunks(gone.len()).zip(&keep) {
            for (factor, from) in row.iter().zip(gone) {
                let from = self.w[from * self.m..(from + 1) * self.m].to_vec();
                axpy(*factor, &from, &mut w[channel * self.m..(channel + 1) * self.m]);
            }
        }
        gone.iter().for_each(|c| w[c * self.m..(c + 1) * self.m].fill(0.0));
        w
    }

    /// tr((W − V)ᵀ·H·(W − V)).
    fn error(&self, v: &[f64]) -> f64 {
        let off: Vec<f64> = self.w.iter().zip(v).map(|(w, v)| w - v).collect();
        self.h.trace_with(&Square::of_products(self.h.size(), &off))
    }
}

proptest! {
    /// What the steps say they cost is by how much the best weights without the removed units miss the original.
    #[test]
    fn the_losses_of_the_steps_add_up_to_the_least_squares_loss(
        units in 2usize..7, each in 1usize..4, m in 1usize..5, seed in 0u64..1000,
    ) {
        let case = Case::new(units, each, m, seed);
        let mut readers = [case.reader(1.0)];
        let steps = remove(&mut readers, units, 1);
        let (mut gone, mut sum) = (Vec::new(), 0.0);
        for step in &steps {
            gone.extend_from_slice(&case.units[step.unit]);
            let before = sum;
            sum += step.loss;
            let truth = case.error(&case.best_without(&gone));
            prop_assert!((sum - truth).abs() < 1e-6 * truth.max(1e-3), "{sum} is not {truth}");
            prop_assert!(sum >= before);
        }
    }

    /// The first to go is the one whose removal the best weights make up for best, by brute force.
    #[test]
    fn the_first_step_is_the_cheapest_of_all(units in 2usize..6, each in 1usize..3, seed in 0u64..1000) {
        let case = Case::new(units, each, 3, seed);
        let first = remove(&mut [case.reader(1.0)], units, units - 1)[0];
        let losses: Vec<f64> =
            case.units.iter().map(|gone| case.error(&case.best_without(gone))).collect();
        let least = losses.iter().copied().fold(f64::INFINITY, f64::min);
        prop_assert!((losses[first.unit] - least).abs() < 1e-9 * least.max(1e-6));
    }
}

/// The compensation that the updates carry along is the channel-Gram repair: A of what is left is W'·W'ᵀ.
#[test]
fn what_the_updates_leave_is_what_the_channel_gram_repair_writes() {
    let case = Case::new(6, 2, 4, 5);
    let mut readers = [case.reader(1.0)];
    let steps = remove(&mut readers, 6, 3);
    let gone: Vec<usize> = steps.iter().flat_map(|s| case.units[s.unit].clone()).collect();
    let wanted = Square::of_products(12, &case.best_without(&gone));
    for i in 0..12 {
        for j in 0..12 {
            let (found, wanted) = (readers[0].products.upper(i, j), wanted.at(i, j));
            assert!((found - wanted).abs() < 1e-9, "{i} {j}: {found} is not {wanted}");
        }
    }
}

/// The factors that `gram` gives are those of a least squares over the rows themselves, with the ridge as rows of
/// their own.
#[test]
fn standing_in_is_least_squares_with_the_same_damping() {
    let rows: Vec<f32> = numbers(60 * 5, 8).iter().map(|v| *v as f32).collect();
    let mut gram = ChannelGram::new(5);
    gram.push(&rows);
    gram.settle();
    let (keep, gone) = ([0, 2, 3], [1, 4]);
    let found = gram.stand_in(&keep, &gone, false).unwrap();
    let ridge = (60.0 * DAMPING * found.moments.mean_diagonal()).sqrt();
    // Normal equations of [X_K; √λ·I]·D = [X_R; 0].
    let mut left = Square::zero(3);
    let mut right = vec![0.0; 6];
    for row in rows.chunks(5) {
        let x: Vec<f64> = keep.iter().map(|c| f64::from(row[*c])).collect();
        left.add_rows(&x);
        for (i, x) in x.iter().enumerate() {
            (0..2).for_each(|j| right[i * 2 + j] += x * f64::from(row[gone[j]]));
        }
    }
    for i in 0..3 {
        let mut row = [0.0; 3];
        row[i] = ridge;
        left.add_rows(&row);
    }
    let wanted = left.solve(right, 2).unwrap();
    for (found, wanted) in found.factors.iter().zip(&wanted) {
        // The Gram sums blocks of rows in f32.
        assert!((found - wanted).abs() < 1e-5, "{found} is not {wanted}");
    }
}

#[test]
fn two_readers_are_weighed_by_what_each_computes() {
    let case = Case::new(5, 1, 2, 11);
    let energy = |c: &Case| c.h.trace_with(&Square::of_products(c.h.size(), &c.w));
    let alone = remove(&mut [case.reader(1.0 / energy(&case))], 5, 1);
    let mut loud = Case::new(5, 1, 2, 11);
    loud.w.iter_mut().for_each(|w| *w *= 1e6);
    let mut both = [case.reader(1.0 / energy(&case)), loud.reader(1.0 / energy(&loud))];
    let both = remove(&mut both, 5, 1);
    let units = |steps: &[Step]| steps.iter().map(|s| s.unit).collect::<Vec<_>>();
    assert_eq!(units(&alone), units(&both));
    assert!((both[0].loss - 2.0 * alone[0].loss).abs() < 1e-9);
}

#[test]
fn dead_channels_go_first_for_free_and_do_not_break_the_inverse() {
    let mut case = Case::new(4, 1, 2, 3);
    case.h.row_mut(2).fill(0.0);
    (0..4).for_each(|i| case.h.row_mut(i)[2] = 0.0);
    case.h.row_mut(2)[2] = 1e-12;
    let steps = remove(&mut [case.reader(1.0)], 4, 1);
    assert_eq!(steps[0].unit, 2);
    assert!(steps[0].loss < 1e-9 && steps[1].loss > 1e-6, "{steps:?}");
}
