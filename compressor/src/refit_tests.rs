use super::*;

fn model_with_head(op: &str) -> Model {
    use graph::{AttributeValue, Builder, DType, Dim};
    let mut builder = Builder::new(15);
    let x = builder.input("x", DType::F32, vec![Dim::Symbol("N".into()), Dim::Fixed(2)]);
    let w = Tensor::from_f32(vec![2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
    let b = Tensor::from_f32(vec![3], &[0.0, 1.0, 2.0]).unwrap();
    let b = builder.constant("b", b).unwrap();
    let y = if op == "Gemm" {
        let w = Tensor::from_f32(vec![3, 2], &[1.0, 4.0, 2.0, 5.0, 3.0, 6.0]).unwrap();
        let w = builder.constant("w", w).unwrap();
        let float = AttributeValue::Float;
        let turned = ("transB", AttributeValue::Int(1));
        let factors = [("alpha", float(2.0)), ("beta", float(0.5)), turned];
        builder.node("Gemm", &[x, w, b], factors).unwrap()
    } else {
        let w = builder.constant("w", w).unwrap();
        let y = builder.node("MatMul", &[x, w], []).unwrap();
        builder.node("Add", &[y, b], []).unwrap()
    };
    let y = builder.node("Softmax", &[y], []).unwrap();
    builder.finish(&[y]).unwrap()
}

#[test]
fn the_head_is_found_behind_what_follows_it_and_takes_its_bias_along() {
    for op in ["MatMul", "Gemm"] {
        let model = model_with_head(op);
        let heads = heads(&model.graph);
        assert_eq!(heads.len(), 1, "{op}");
        let site = site(&model.graph, heads[0]).unwrap();
        assert!(site.bias.is_some(), "{op}");
        assert_eq!(model.graph.consumers(site.output).len(), 1);
    }
}

/// A correction of the product is divided by alpha, one of the bias by beta, and a transposed weight gets it turned.
#[test]
fn a_correction_lands_in_either_layout_and_respects_the_factors() {
    let fit = Fit { weight: vec![2.0, 0.0, 0.0, 0.0, 0.0, 4.0], bias: Some(vec![1.0, 0.0, 0.0]) };
    let matmul = model_with_head("MatMul");
    let at = site(&matmul.graph, heads(&matmul.graph)[0]).unwrap();
    let (weight, bias) = corrected(&matmul, &at, &fit).unwrap();
    assert_eq!(weight.to_f32_vec().unwrap(), vec![3.0, 2.0, 3.0, 4.0, 5.0, 10.0]);
    assert_eq!(bias.unwrap().to_f32_vec().unwrap(), vec![1.0, 1.0, 2.0]);
    let gemm = model_with_head("Gemm");
    let at = site(&gemm.graph, heads(&gemm.graph)[0]).unwrap();
    let (weight, bias) = corrected(&gemm, &at, &fit).unwrap();
    assert_eq!(weight.to_f32_vec().unwrap(), vec![2.0, 4.0, 2.0, 5.0, 3.0, 8.0]);
    assert_eq!(bias.unwrap().to_f32_vec().unwrap(), vec![2.0, 1.0, 2.0]);
}
