use graph::{Builder, DType, Dim, Model};

use super::*;
use crate::pipeline::testing::{mlp, weight};
use crate::refit::Fit;

/// Two branches of 16 units each, read through one and the same weight.
fn shared() -> Model {
    let mut builder = Builder::new(15);
    let x = builder.input("x", DType::F32, vec![Dim::Symbol("N".into()), Dim::Fixed(4)]);
    let (a, b) = (weight(&mut builder, "a", 4, 16), weight(&mut builder, "b", 4, 16));
    let w = weight(&mut builder, "w", 16, 3);
    let branch = |builder: &mut Builder, first| {
        let h = builder.node("MatMul", &[x, first], []).unwrap();
        let h = builder.node("Relu", &[h], []).unwrap();
        builder.node("MatMul", &[h, w], []).unwrap()
    };
    let (left, right) = (branch(&mut builder, a), branch(&mut builder, b));
    let y = builder.node("Add", &[left, right], []).unwrap();
    builder.finish(&[y]).unwrap()
}

fn source(model: &Model) -> (tempfile::TempDir, Source) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    model.save(&path).unwrap();
    let source = Source::load(&path).unwrap();
    (folder, source)
}

fn target(source: &Source, node: NodeId, columns: usize) -> Target {
    let site = refit::site(&source.model.graph, node).unwrap();
    Target::for_test(site, columns)
}

/// Each reader of a shared weight keeps other units, and so has a weight of its own once narrowed; a re-fit
/// starts from that one.
#[test]
fn a_layer_that_shares_its_weight_is_refitted_from_its_own_slice() {
    let (_folder, source) = source(&shared());
    assert_eq!(source.widths(), [16, 16]);
    let kept: [Vec<u32>; 2] = [(0..8).collect(), (8..16).collect()];
    let choices = [source.choice(0, kept[0].clone()), source.choice(1, kept[1].clone())];
    let model = source.pruned(&choices).unwrap();
    let graph = &source.model.graph;
    let w = graph.value_by_name("w").unwrap();
    let whole = graph.constant(w).unwrap().to_f32_vec().unwrap();
    for (group, kept) in source.grouping.groups.iter().zip(&kept) {
        let node = group.consumers[0].node;
        let site = here(&model, &target(&source, node, 3)).unwrap();
        let nothing = Fit { weight: vec![0.0; 8 * 3], bias: None };
        let (weight, _) = refit::corrected(&model, &site, &nothing).unwrap();
        let rows = kept.iter().flat_map(|unit| &whole[*unit as usize * 3..][..3]);
        assert_eq!(weight.to_f32_vec().unwrap(), rows.copied().collect::<Vec<_>>());
    }
}

#[test]
fn the_columns_that_a_plan_leaves_are_taken_of_the_originals_rows() {
    let (_folder, source) = source(&mlp(&[4, 16, 8, 2]));
    let middle = source.grouping.groups[0].consumers[0].node;
    let target = target(&source, middle, 8);
    let left = |keep: Vec<u32>| Left::of(&source, &[source.choice(1, keep)], &target).unwrap();
    let rows: Vec<f32> = (0..16u8).map(f32::from).collect();
    assert_eq!(left(vec![1, 6]).of_rows(&rows).as_ref(), [1.0, 6.0, 9.0, 14.0]);
    let whole = Left::of(&source, &[source.choice(0, vec![0])], &target).unwrap();
    assert_eq!(whole.of_rows(&rows).as_ref(), rows, "only its inputs were narrowed");
}
