//! Shapes of real models.

use std::path::PathBuf;

use graph::{Dim, Model, infer};

#[path = "support/assets.rs"]
mod assets;

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
    let dims = |name: &str| text(shapes.dims(model.graph.value_by_name(name).unwrap()));
    let batch = text(shapes.dims(model.graph.inputs()[0]));
    for (_, node) in model.graph.nodes() {
        let output = node.output(0).unwrap();
        let found = text(shapes.dims(output));
        println!("{:<18} {:<40} {found}  {:?}", node.op_type, model.graph.value(output).name, shapes.const_sizes(output));
        assert!(!found.contains('?') && found != "unranked", "{}: {found}", node.name);
    }
    println!("{batch} -> {}", dims("target_label"));
    assert!(shapes.conflicts().is_empty());
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
