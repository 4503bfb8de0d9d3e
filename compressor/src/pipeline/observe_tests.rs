use super::*;
use crate::pipeline::testing::mlp;

fn target(columns: usize, rows: Vec<Vec<f32>>) -> Target {
    let model = mlp(&[4, columns]);
    let node = model.graph.nodes().next().unwrap().0;
    let site = refit::site(&model.graph, node).unwrap();
    let bytes = rows.iter().map(|r| r.len() * 4).sum();
    let firsts = vec![0; rows.len()];
    Target { axis: 1, columns, rows, firsts, bytes, ..Target::new(site, 3, 8) }
}

/// Rows of one batch, numbered.
fn rows(count: usize, columns: usize) -> Vec<f32> {
    (0..count * columns).map(|i| (i / columns) as f32).collect()
}

#[test]
fn halving_keeps_what_twice_the_stride_would_have_kept() {
    for count in 1..9 {
        let all = rows(count, 2);
        let mut halved = target(2, vec![sampled(&all, 2, Every { first: 0, stride: 3 })]);
        halved.halve();
        assert_eq!(
            (halved.stride, &halved.rows[0]),
            (6, &sampled(&all, 2, Every { first: 0, stride: 6 })),
            "{count}"
        );
    }
}

#[test]
fn over_the_limit_the_largest_target_is_thinned_then_given_up_and_said_so() {
    let many = target(4, vec![rows(8, 4), rows(8, 4)]);
    let one_each = target(2, vec![rows(1, 2), rows(1, 2)]);
    let mut pass = Pass::new(vec![one_each, many], Vec::new(), Seen::default());
    // 16 bytes of the small one, and 256 of the large one, which is halved twice.
    pass.limit = 16 + 64;
    pass.shrink();
    assert_eq!(pass.found.targets.iter().map(|t| t.stride).collect::<Vec<_>>(), [3, 12]);
    assert!(pass.refused.is_empty());
    pass.limit = 16;
    pass.shrink();
    assert_eq!(pass.found.targets.len(), 1, "one row of each batch is as few as there can be");
    assert!(pass.refused[0].why.contains("MAX_TARGET_BYTES"));
    pass.found.answers = vec![vec![Answer { shape: vec![1], data: vec![0.0] }]];
    (pass.answer_bytes, pass.screened, pass.limit) = (4, 0..1, 0);
    pass.shrink();
    assert!(pass.found.targets.is_empty() && pass.found.answers.is_empty());
}

/// Large maps give rows enough in the first samples; where a sample gives one row, all samples are fitted to.
#[test]
fn a_fit_takes_as_many_rows_as_move_it_from_as_many_samples_as_that_takes() {
    let admitted = |rows: usize, inputs: usize, available: usize| {
        let mut target = target(2, Vec::new());
        target.admit(rows, inputs, available);
        (target.samples, target.stride)
    };
    // 300 · 32 of 576 · 256 rows, by a stride that meets every column of a map of 24 by 24.
    assert_eq!(admitted(576, 300, 1000), (256, 17));
    assert_eq!(admitted(1, 300, 1000), (1000, 1));
    assert_eq!(admitted(10, 300, 1000), (960, 1));
    assert_eq!(admitted(576, 9, 20), (20, 5));
}

/// Batches of one sample meet every place of a map, and the same rows as one batch of all.
#[test]
fn rows_are_taken_across_batches_as_within_one() {
    let (samples, channels, places) = (24, 3, 49);
    let shape = |samples| [samples, channels, 7, 7];
    let data: Vec<f32> = (0..samples * channels * places).map(|n| n as f32).collect();
    let stride = spread_stride(places, samples, places * samples / 8);
    assert_eq!(stride, 8);
    let together = rows_along(&data, &shape(samples), 1, Every::after(0, stride));
    let (mut one_by_one, mut seen) = (Vec::new(), std::collections::BTreeSet::new());
    for (sample, data) in data.chunks(channels * places).enumerate() {
        let every = Every::after(sample * places, stride);
        seen.extend((every.first..places).step_by(stride));
        one_by_one.extend(rows_along(data, &shape(1), 1, every));
    }
    assert_eq!(together, one_by_one);
    assert_eq!(seen.len(), places, "only {seen:?}");
    // The last axis is gathered another way.
    let rows: Vec<f32> = (0..40).map(|n| n as f32).collect();
    let parts = rows.chunks(10).enumerate();
    let apart = parts.flat_map(|(n, part)| rows_along(part, &[5, 2], 1, Every::after(5 * n, 3)));
    assert_eq!(apart.collect::<Vec<_>>(), rows_along(&rows, &[20, 2], 1, Every::after(0, 3)));
}
