use super::*;
use crate::pipeline::testing::mlp;

fn target(columns: usize, rows: Vec<Vec<f32>>) -> Target {
    let model = mlp(&[4, columns]);
    let node = model.graph.nodes().next().unwrap().0;
    let site = refit::site(&model.graph, node).unwrap();
    let bytes = rows.iter().map(|r| r.len() * 4).sum();
    Target { site, stride: 3, samples: 8, axis: 1, columns, rows, bytes }
}

/// Rows of one batch, numbered.
fn rows(count: usize, columns: usize) -> Vec<f32> {
    (0..count * columns).map(|i| (i / columns) as f32).collect()
}

#[test]
fn halving_keeps_what_twice_the_stride_would_have_kept() {
    for count in 1..9 {
        let all = rows(count, 2);
        let mut halved = target(2, vec![sampled(&all, 2, 3)]);
        halved.halve();
        assert_eq!((halved.stride, &halved.rows[0]), (6, &sampled(&all, 2, 6)), "{count}");
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
