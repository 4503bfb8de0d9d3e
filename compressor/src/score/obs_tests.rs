use super::*;

fn numbers(seed: u64) -> impl FnMut() -> f64 {
    let mut state = seed | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 53) as f64 - 0.5
    }
}

/// `units` units of `each` inputs over random rows, where input 0 of unit 1 repeats that of unit 0.
fn reader(units: usize, each: usize, outputs: usize, repeat: bool) -> (Reader, Vec<f64>) {
    let (k, mut next) = (units * each, numbers(11));
    let mut rows: Vec<f64> = (0..200 * k).map(|_| next()).collect();
    if repeat {
        for row in rows.chunks_mut(k) {
            for i in 0..each {
                row[each + i] = row[i];
            }
        }
    }
    let mut moments = Square::zero(k);
    moments.add_rows(&rows);
    let weights = (0..k * outputs).map(|_| next()).collect();
    let units = (0..units).map(|u| (u * each..(u + 1) * each).collect()).collect();
    (Reader { moments, weights, outputs, units }, rows)
}

/// ‖X·(A − B)‖² / ‖X·A‖².
fn error(rows: &[f64], a: &[f64], b: &[f64], m: usize) -> f64 {
    let k = a.len() / m;
    let product = |row: &[f64], w: &[f64], j: usize| -> f64 { (0..k).map(|i| row[i] * w[i * m + j]).sum() };
    let (mut off, mut all) = (0.0, 0.0);
    for row in rows.chunks(k) {
        for j in 0..m {
            let (x, y) = (product(row, a, j), product(row, b, j));
            off += (x - y) * (x - y);
            all += x * x;
        }
    }
    off / all
}

#[test]
fn a_unit_that_another_repeats_goes_first_and_costs_next_to_nothing() {
    let (reader, rows) = reader(6, 2, 3, true);
    let (steps, weights) = order(&[reader.clone()], 6, 5).unwrap();
    assert!(steps[0].unit <= 1, "{steps:?}");
    let off = error(&rows, &reader.weights, &weights[0], 3);
    assert!(off < 1e-3, "the other copy takes over: {off}");
}

#[test]
fn removed_rows_are_zero_and_the_loss_is_what_the_compensated_weights_miss() {
    let (reader, rows) = reader(8, 1, 4, false);
    let (steps, weights) = order(&[reader.clone()], 8, 4).unwrap();
    assert_eq!(steps.len(), 4);
    for step in &steps {
        assert!(weights[0][step.unit * 4..(step.unit + 1) * 4].iter().all(|w| *w == 0.0));
    }
    let predicted: f64 = steps.iter().map(|s| s.loss).sum();
    let real = error(&rows, &reader.weights, &weights[0], 4);
    assert!((predicted - real).abs() < 0.05 * predicted.max(real), "{predicted} {real}");
}

#[test]
fn greedy_second_order_beats_cutting_the_smallest_weights() {
    let (mut reader, rows) = reader(8, 1, 2, true);
    // Inputs 0 and 1 are the same: large weights that one of them can carry alone.
    reader.weights[..4].copy_from_slice(&[3.0, 3.0, 3.0, 3.0]);
    let (_, weights) = order(&[reader.clone()], 8, 7).unwrap();
    let mut cut = reader.weights.clone();
    let norm = |i: usize| reader.weights[i * 2].hypot(reader.weights[i * 2 + 1]);
    let smallest = (0..8).min_by(|a, b| norm(*a).total_cmp(&norm(*b))).unwrap();
    cut[smallest * 2..smallest * 2 + 2].fill(0.0);
    let ours = error(&rows, &reader.weights, &weights[0], 2);
    assert!(ours < error(&rows, &reader.weights, &cut, 2));
}

#[test]
fn two_readers_are_weighed_by_what_each_computes() {
    let (first, _) = reader(4, 1, 2, false);
    let mut second = first.clone();
    second.weights.iter_mut().for_each(|w| *w *= 1e6);
    let (alone, _) = order(&[first.clone()], 4, 1).unwrap();
    let (both, _) = order(&[first, second], 4, 1).unwrap();
    let units = |steps: &[Step]| steps.iter().map(|s| s.unit).collect::<Vec<_>>();
    assert_eq!(units(&alone), units(&both));
}

#[test]
fn dead_inputs_go_first_for_free_and_do_not_break_the_inverse() {
    let (mut reader, rows) = reader(4, 1, 2, false);
    let mut dead = rows.clone();
    dead.chunks_mut(4).for_each(|row| row[2] = 0.0);
    reader.moments = Square::zero(4);
    reader.moments.add_rows(&dead);
    let (steps, _) = order(&[reader], 4, 2).unwrap();
    assert_eq!(steps[0].unit, 2);
}

#[test]
fn what_does_not_fit_is_refused() {
    let (mut reader, _) = reader(4, 1, 2, false);
    assert!(order(&[reader.clone()], 5, 2).is_err());
    reader.units[0] = vec![9];
    assert!(order(&[reader], 4, 2).is_err());
}
