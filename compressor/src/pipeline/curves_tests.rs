use super::*;

fn answer(data: &[f32]) -> Answer {
    Answer { shape: vec![1, data.len()], data: data.to_vec() }
}

fn by(by: Comparison) -> Compared {
    Compared { output: "y".into(), by, axis: Some(1) }
}

#[test]
fn classes_lose_a_divergence_and_numbers_a_share_of_their_square() {
    let (a, b) = (answer(&[0.5, 0.5]), answer(&[0.25, 0.75]));
    let nats = 0.5 * (0.5f64 / 0.25).ln() + 0.5 * (0.5f64 / 0.75).ln();
    assert!((output_loss(&by(Comparison::Class), &a, &b) - nats).abs() < 1e-9);
    let (a, b) = (answer(&[3.0, 4.0]), answer(&[3.0, 3.0]));
    assert!((output_loss(&by(Comparison::Direction), &a, &b) - 1.0 / 25.0).abs() < 1e-9);
    assert_eq!(output_loss(&by(Comparison::Value), &a, &a), 0.0);
}

#[test]
fn what_is_no_number_or_of_another_shape_loses_most() {
    let a = answer(&[1.0, 2.0]);
    for by in [by(Comparison::Class), by(Comparison::Value)] {
        assert_eq!(output_loss(&by, &a, &answer(&[f32::NAN, 2.0])), MAX_LOSS);
        assert_eq!(output_loss(&by, &a, &answer(&[1.0, 2.0, 3.0])), MAX_LOSS);
    }
    let zero = answer(&[0.0, 0.0]);
    assert_eq!(output_loss(&by(Comparison::Value), &zero, &a), MAX_LOSS);
    assert_eq!(output_loss(&by(Comparison::Value), &zero, &zero), 0.0);
}

#[test]
fn a_sample_loses_the_mean_of_its_outputs() {
    let compared = [by(Comparison::Value), by(Comparison::Value)];
    let original = [answer(&[2.0, 0.0]), answer(&[1.0, 0.0])];
    let other = [answer(&[2.0, 0.0]), answer(&[1.0, 1.0])];
    assert!((sample_loss(&compared, &original, &other) - 0.5).abs() < 1e-12);
}
