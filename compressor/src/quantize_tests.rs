use super::*;
use proptest::prelude::*;

proptest! {
    /// Symmetric rounding is off by at most half a step, and the largest weight of a column by rounding alone.
    #[test]
    fn a_quantized_weight_is_off_by_at_most_half_a_step(
        inputs in 1usize..8,
        outputs in 1usize..6,
        seed in prop::collection::vec(-4.0f32..4.0, 48),
    ) {
        let weights: Vec<f32> = (0..inputs * outputs).map(|i| seed[i % seed.len()] * (1.0 + (i / 7) as f32)).collect();
        let int8 = int8_weight(&weights, inputs, outputs).unwrap();
        for (at, (w, q)) in weights.iter().zip(&int8.values).enumerate() {
            let step = int8.scales[at % outputs];
            prop_assert!((w - f32::from(*q) * step).abs() <= step * 0.5001 + 1e-12);
            prop_assert!(*q >= -127);
        }
    }

    #[test]
    fn a_transposed_transpose_is_the_matrix(rows in 1usize..6, columns in 1usize..6) {
        let values: Vec<usize> = (0..rows * columns).collect();
        prop_assert_eq!(transpose(&transpose(&values, rows, columns), columns, rows), values);
    }
}

#[test]
fn a_column_of_zeros_has_a_finite_scale() {
    let int8 = int8_weight(&[0.0, 1.0, 0.0, -1.0], 2, 2).unwrap();
    assert!(int8.scales.iter().all(|s| *s > 0.0 && s.is_finite()));
    assert_eq!(int8.values, vec![0, 127, 0, -127]);
}

#[test]
fn weights_that_are_not_finite_are_refused() {
    assert!(int8_weight(&[f32::NAN], 1, 1).unwrap_err().contains("not finite"));
    assert!(int8_weight(&[1.0], 2, 1).is_err());
}
