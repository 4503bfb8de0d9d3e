//! Shapes of real models.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::{
    path::{Path, PathBuf},
    process::Command,
};

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

#[test]
fn real_models_are_understood_but_for_axes_that_a_body_captures() {
    for path in assets::models() {
        if path.to_string_lossy().contains("onnx-testdata") {
            continue;
        }
        let model = Model::load(&path).unwrap();
        let others = model.warnings.iter().filter(|warning| {
            !(warning.place.contains("branch") && warning.reason.contains("axes are computed"))
        });
        assert_eq!(others.count(), 0, "{}: {:?}", path.display(), model.warnings);
    }
}

/// Values of the real models by how our inference compares with ONNX's own.
#[derive(Debug, Default)]
struct Tally {
    same: usize,
    better: usize,
    worse: Vec<String>,
    wrong: Vec<String>,
}

#[test]
fn real_models_are_inferred_at_least_as_well_as_by_onnx_itself() {
    let paths: Vec<PathBuf> = assets::models()
        .into_iter()
        .filter(|path| !path.to_string_lossy().contains("onnx-testdata"))
        .collect();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/python/onnx_shapes.py");
    let output = Command::new(assets::python()).arg(script).args(&paths).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let mut tally = Tally::default();
    for part in text.split("# ").filter(|part| !part.is_empty()) {
        let (path, lines) = part.split_once('\n').unwrap();
        let model = Model::load(path).unwrap();
        let shapes = infer(&model);
        for line in lines.lines() {
            let [name, dtype, sizes] = line.split('\t').collect::<Vec<_>>()[..] else {
                panic!("{line}")
            };
            let Some(value) = model.graph.value_by_name(name) else { continue };
            let ours = shapes.ty(value);
            let ours = ours.map_or_else(String::new, |ty| {
                format!("{} {}", ty.dtype.to_onnx(), sizes_of(ty.dims.as_deref()))
            });
            judge(&mut tally, &format!("{path} {name}"), &format!("{dtype} {sizes}"), &ours);
        }
    }
    println!("{} same, {} better, {} worse", tally.same, tally.better, tally.worse.len());
    assert!(tally.wrong.is_empty(), "{} wrong:\n{}", tally.wrong.len(), tally.wrong.join("\n"));
    assert!(tally.worse.is_empty(), "{} worse:\n{}", tally.worse.len(), tally.worse.join("\n"));
    assert!(tally.same > 1000);
}

fn sizes_of(dims: Option<&[Dim]>) -> String {
    let size = |dim: &Dim| dim.fixed().map_or("?".to_owned(), |size| size.to_string());
    dims.map_or("unranked".to_owned(), |dims| dims.iter().map(size).collect::<Vec<_>>().join(","))
}

fn judge(tally: &mut Tally, place: &str, theirs: &str, ours: &str) {
    let split = |text: &str| text.split([' ', ',']).map(str::to_owned).collect::<Vec<_>>();
    let (left, right) = (split(theirs), split(ours));
    let report = format!("{place}: onnx {theirs}, ours {ours}");
    if left == right {
        tally.same += 1;
    } else if left.len() != right.len() {
        tally.worse.push(report);
    } else if left.iter().zip(&right).any(|(a, b)| a != b && a != "?" && b != "?") {
        tally.wrong.push(report);
    } else if left.iter().zip(&right).any(|(a, b)| a != "?" && b == "?") {
        tally.worse.push(report);
    } else {
        tally.better += 1;
    }
}
