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

/// `y = x · w (+ b)` with the weight in either layout, at an opset.
fn layer_model(op: &str, opset: i64) -> Model {
    use graph::{Builder, Dim};
    let mut builder = Builder::new(opset);
    let x = builder.input("x", DType::F32, vec![Dim::Symbol("N".into()), Dim::Fixed(40)]);
    let values: Vec<f32> = (0..1600).map(|i| ((i * 37 % 101) as f32 - 50.0) / 80.0).collect();
    let weight = Tensor::from_f32(vec![40, 40], &values).unwrap();
    let w = builder.constant("w", weight).unwrap();
    let y = if op == "Gemm" {
        let b = builder.constant("b", Tensor::from_f32(vec![40], &[0.5; 40]).unwrap()).unwrap();
        let transposed = ("transB", AttributeValue::Int(1));
        builder.node("Gemm", &[x, w, b], [transposed]).unwrap()
    } else {
        builder.node("MatMul", &[x, w], []).unwrap()
    };
    builder.finish(&[y]).unwrap()
}

fn op_types(model: &Model) -> Vec<String> {
    model.graph.nodes().map(|(_, n)| n.op_type.clone()).collect()
}

#[test]
fn both_formats_rewrite_both_layers_and_leave_a_valid_model_with_the_same_outputs() {
    for op in ["MatMul", "Gemm"] {
        let model = layer_model(op, 15);
        let shapes = graph::infer(&model);
        for format in [QuantFormat::Int8, QuantFormat::DynamicInt8] {
            let quantized = quantize(&model, &shapes, format).unwrap();
            quantized.model.verify().unwrap();
            let ops = op_types(&quantized.model);
            let marker = match format {
                QuantFormat::Int8 => "DequantizeLinear",
                QuantFormat::DynamicInt8 => "MatMulInteger",
            };
            assert!(ops.iter().any(|o| o == marker), "{op} {format}: {ops:?}");
            assert_eq!(quantized.sites.len(), 1);
            let name = |m: &Model| m.graph.value(m.graph.outputs()[0]).name.clone();
            assert_eq!(name(&quantized.model), name(&model));
        }
    }
}

#[test]
fn an_opset_that_lacks_the_operators_is_refused_by_name_and_never_raised() {
    let model = layer_model("MatMul", 12);
    let shapes = graph::infer(&model);
    let why = quantize(&model, &shapes, QuantFormat::Int8).unwrap_err();
    assert!(why.contains("opset 13") && why.contains("12"), "{why}");
    assert!(quantize(&model, &shapes, QuantFormat::DynamicInt8).is_ok());
}

#[test]
fn a_model_with_nothing_to_convert_says_so() {
    use graph::{Builder, Dim};
    let mut builder = Builder::new(15);
    let x = builder.input("x", DType::F32, vec![Dim::Fixed(2)]);
    let y = builder.node("Relu", &[x], []).unwrap();
    let model = builder.finish(&[y]).unwrap();
    let why = quantize(&model, &graph::infer(&model), QuantFormat::Int8).unwrap_err();
    assert!(why.contains("no MatMul or Gemm"), "{why}");
}
