//! Shapes of real models.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::path::PathBuf;

use graph::{Dim, Model, infer};

#[path = "support/assets.rs"]
mod assets;

const PREFIX: &str = "jax2tf_get_logits_/pjit_get_logits_/MagikaV2/";

fn text(dims: Option<&[Dim]>) -> String {
    let size = |dim: &Dim| match dim {
        Dim::Fixed(size) => size.to_string(),
        Dim::Symbol(name) => name.clone(),
        Dim::Unknown => "?".to_owned(),
    };
    dims.map_or("unranked".to_owned(), |dims| {
        format!("[{}]", dims.iter().map(size).collect::<Vec<_>>().join(", "))
    })
}

fn load(name: &str) -> Model {
    Model::load(assets::assets().join(name)).unwrap()
}

#[test]
fn every_shape_of_magika_resolves_to_sizes_and_its_batch() {
    let model = load("magika.onnx");
    let shapes = infer(&model);
    let batch = text(shapes.dims(model.graph.inputs()[0])).replace("[", "").replace(", 2048]", "");
    let dims = |name: &str| {
        let value = model.graph.value_by_name(&format!("{PREFIX}{name}")).unwrap();
        text(shapes.dims(value)).replace(&batch, "N")
    };
    for (_, node) in model.graph.nodes() {
        let found = text(shapes.dims(node.output(0).unwrap()));
        assert!(!found.contains('?') && found != "unranked", "{}: {found}", node.name);
    }
    assert_eq!(dims("Dense_0/einsum/Einsum:0"), "[N, 2048, 64]");
    assert_eq!(dims("Reshape:0"), "[N, 512, 256]");
    assert_eq!(dims("LayerNorm_0/BroadcastTo_1:0"), "[N, 1, 256]");
    let output = model.graph.value_by_name("target_label").unwrap();
    assert_eq!(text(shapes.dims(output)).replace(&batch, "N"), "[N, 214]");
    let target = model.graph.value_by_name(&format!("{PREFIX}Reshape__47:0")).unwrap();
    assert_eq!(text(shapes.const_sizes(target).as_deref()).replace(&batch, "N"), "[N, 512, 256]");
}

#[test]
fn no_rule_contradicts_what_a_model_declares() {
    let mut wrong = Vec::new();
    let paths: Vec<PathBuf> = assets::models();
    for path in &paths {
        let model = Model::load(path).unwrap();
        for conflict in infer(&model).conflicts() {
            let value = model.graph.value(conflict.value);
            wrong.push(format!(
                "{}: {} declared {:?} {} inferred {:?} {}",
                path.display(),
                value.name,
                conflict.declared.dtype,
                text(conflict.declared.dims.as_deref()),
                conflict.inferred.dtype,
                text(conflict.inferred.dims.as_deref()),
            ));
        }
    }
    assert!(wrong.is_empty(), "{} conflicts:\n{}", wrong.len(), wrong.join("\n"));
}
