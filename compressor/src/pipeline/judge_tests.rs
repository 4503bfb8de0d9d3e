use super::*;
use crate::pipeline::Silent;
use crate::pipeline::testing::{job, mlp};
use crate::quality::Comparison;

/// With room for a few answers at a time the original runs again, and the verdict is the same.
#[test]
fn answers_that_do_not_fit_are_run_again_and_judged_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let job = job(folder.path(), &mlp(&[8, 16, 4]), 8, 80);
    let shop = Shop::open(&job, &Silent).unwrap();
    let (outputs, others) = outputs(&shop).unwrap();
    assert!(others.is_empty());
    let other = folder.path().join("other.onnx");
    mlp(&[8, 12, 4]).save(&other).unwrap();
    let compared = [Compared { output: outputs[0].clone(), by: Comparison::Class, axis: Some(1) }];
    let judged = |limit: usize, floor: Option<f64>| {
        let mut answers = Answers::limited(&shop.heldout, &outputs, limit);
        judge(&shop, &other, &mut answers, &compared, 0..20, floor).unwrap()
    };
    let (whole, parts) = (judged(MAX_ANSWER_BYTES, None), judged(3 * 16, None));
    assert_eq!(whole, parts);
    assert_eq!(whole.samples, 20);
    assert!(whole.agreement.value < 1.0, "two models never agree everywhere: {whole:?}");
}

#[test]
fn only_as_many_answers_are_held_as_the_limit_allows() {
    let folder = tempfile::tempdir().unwrap();
    let job = job(folder.path(), &mlp(&[8, 16, 4]), 8, 80);
    let shop = Shop::open(&job, &Silent).unwrap();
    let (outputs, _) = outputs(&shop).unwrap();
    let mut answers = Answers::limited(&shop.heldout, &outputs, 3 * 16);
    answers.hold(&shop, 0, 20).unwrap();
    assert_eq!(answers.held, 0..3);
    answers.hold(&shop, 2, 20).unwrap();
    assert_eq!(answers.held, 0..3, "what is held is not run again");
    answers.hold(&shop, 18, 20).unwrap();
    assert_eq!(answers.held, 18..20);
}
