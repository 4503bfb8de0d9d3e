use graph::{Builder, DType, Tensor as Constant};

use super::*;
use crate::pipeline::testing::mlp;

fn saved(model: &Model, folder: &Path) -> std::path::PathBuf {
    let path = folder.join("m.onnx");
    model.save(&path).unwrap();
    path
}

#[test]
fn a_summary_counts_what_the_file_holds() {
    let folder = tempfile::tempdir().unwrap();
    let summary = summarize(&saved(&mlp(&[8, 16, 4]), folder.path())).unwrap();
    assert_eq!((summary.nodes, summary.params, summary.constants), (3, 192, 2));
    assert_eq!(summary.ops[0], OpCount { op: "MatMul".into(), count: 2 });
    assert_eq!(summary.largest[0].dims, "[8, 16]");
    assert_eq!((summary.inputs[0].name.as_str(), summary.inputs[0].dims.as_str()), ("x", "[N, 8]"));
    assert_eq!(summary.opsets["ai.onnx"], 15);
}

/// The units between the layers can go, the classes stay, and both say by whom.
#[test]
fn a_weight_is_explained_axis_by_axis() {
    let folder = tempfile::tempdir().unwrap();
    let path = saved(&mlp(&[8, 16, 4]), folder.path());
    let why = explain(&path, "w1").unwrap();
    let [place] = why.places.as_slice() else { panic!("{why:?}") };
    assert_eq!((place.what.as_str(), place.axes.len()), ("constant", 2));
    let group = &place.axes[0].groups[0];
    assert_eq!((group.width, group.role, group.per_unit), (16, "is summed over", 1));
    assert!(place.axes[0].kept.is_empty() && place.axes[1].groups.is_empty());
    let kept = &place.axes[1].kept[0];
    assert_eq!((kept.by.as_str(), kept.why.as_str()), ("model output", "an output of the model"));
    assert_eq!(kept.chain.len(), 1, "over the product to its output: {kept:?}");
}

#[test]
fn a_name_that_is_gone_or_nearly_right_is_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let mut builder = Builder::new(15);
    let dims = vec![Dim::Fixed(1), Dim::Fixed(2)];
    let x = builder.input("input_ids", DType::F32, dims);
    let w = Constant::from_f32(vec![2, 2], &[1.0; 4]).unwrap();
    let w = builder.constant("encoder.weight", w).unwrap();
    let y = builder.node("MatMul", &[x, w], []).unwrap();
    let unread = builder.node("Relu", &[y], []).unwrap();
    builder.rename(unread, "unread").unwrap();
    let path = saved(&builder.finish(&[y]).unwrap(), folder.path());
    let error = |name: &str| explain(&path, name).unwrap_err().to_string();
    assert!(error("unread").contains("is in the file, but nothing of it is left"));
    let text = error("EncoderWeight");
    assert!(text.contains("did you mean \"encoder.weight\"?"), "{text}");
    let text = error("zzz");
    assert!(text.contains("no value \"zzz\"") && text.contains("without --why"), "{text}");
}
