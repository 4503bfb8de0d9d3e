use super::*;
use crate::pipeline::Silent;
use crate::pipeline::testing::{job, mlp};

#[test]
fn every_kind_of_group_gets_the_score_that_lost_least() {
    let folder = tempfile::tempdir().unwrap();
    let job = job(folder.path(), &mlp(&[8, 32, 32, 4]), 8, 96);
    let shop = Shop::open_whole(&job, &Silent).unwrap();
    let found = pick(&shop, KEPT).unwrap();
    let [pick] = found.picks.as_slice() else { panic!("{:?}", found.picks) };
    assert_eq!((pick.kind, pick.groups, pick.samples), (GroupKind::Hidden, 2, 32));
    assert_eq!(pick.tried.len(), CANDIDATES.len());
    let loss = |score| pick.tried.iter().find(|t| t.score == score).and_then(|t| t.loss).unwrap();
    assert!(pick.tried.iter().all(|t| t.loss.is_some_and(|l| l >= loss(pick.score))), "{pick:?}");
    assert_eq!(found.by_group, vec![pick.score; 2]);
    assert!(found.refused.is_empty(), "{:?}", found.refused);
}

#[test]
fn too_few_samples_are_said() {
    let folder = tempfile::tempdir().unwrap();
    let job = job(folder.path(), &mlp(&[8, 32, 4]), 8, 5);
    let shop = Shop::open_whole(&job, &Silent).unwrap();
    let found = pick(&shop, KEPT).unwrap();
    assert_eq!(found.by_group, vec![OTHERWISE]);
    assert!(found.refused[0].why.contains("too few samples"), "{:?}", found.refused);
}

#[test]
fn distributions_are_compared_by_divergence_and_numbers_by_their_size() {
    let answer = |data: &[f32]| Answer { shape: vec![1, data.len()], data: data.to_vec() };
    let (a, b) = (answer(&[0.5, 0.5]), answer(&[0.25, 0.75]));
    let wanted = 0.5 * (0.5f64 / 0.25).ln() + 0.5 * (0.5f64 / 0.75).ln();
    assert!((distance(&a, &b) - wanted).abs() < 1e-6);
    assert!((distance(&answer(&[3.0, 4.0]), &answer(&[3.0, 3.0])) - 1.0 / 25.0).abs() < 1e-9);
    assert!(distance(&a, &answer(&[1.0])).is_infinite());
}
