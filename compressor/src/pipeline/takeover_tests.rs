use graph::{AttributeValue, Builder, DType, Dim, Tensor};

use super::*;
use crate::linalg::Square;
use crate::pipeline::Silent;
use crate::pipeline::apply::{Applied, apply};
use crate::pipeline::hunt;
use crate::pipeline::observe::{Grams, Looks, observe};
use crate::pipeline::shop::Shop;
use crate::pipeline::testing::{job, job_of, mlp, noise};
use crate::plan::{Plan, RepairKind};

const SAMPLES: usize = 200;

/// `model` with the units `keep` of its first group, repaired by channel Grams.
fn repaired(model: &Model, dims: &[usize], keep: &[u32]) -> (Model, Applied) {
    let folder = tempfile::tempdir().unwrap();
    let job = job_of(folder.path(), model, dims, SAMPLES);
    let shop = Shop::open_whole(&job, &Silent).unwrap();
    let looks = Looks { reach: None, grams: Grams::All, samples: SAMPLES };
    let (original, _) = observe(&shop, &[], 0..0, looks).unwrap();
    let groups = vec![shop.source.choice(0, keep.to_vec())];
    let (repair, refused) = original.repair(&shop, SAMPLES, &[RepairKind::Gram], &groups);
    assert!(refused.is_empty() && repair.refit.is_empty(), "{refused:?}");
    let plan = Plan { repair: Some(repair), ..hunt::plan(&shop, 0.5, groups, None) };
    let fitting = Fitting { shop: &shop, original: &original };
    let made = apply(&shop.source, &plan, Some(fitting)).unwrap();
    assert!(made.refused.is_empty(), "{:?}", made.refused);
    (shop.source.model.clone(), made)
}

/// The weight that the last `Gemm`, `MatMul` or `Conv` reads.
fn last_weight(model: &Model) -> Vec<f32> {
    let graph = &model.graph;
    let mut sites = graph.nodes().filter_map(|(id, _)| refit::site(graph, id).ok());
    graph.constant(sites.next_back().unwrap().weight).unwrap().to_f32_vec().unwrap()
}

/// The weights that a plan leaves are W_K + D·W_R with D from the activations themselves, by brute force.
#[test]
fn the_weights_left_are_those_of_a_least_squares_over_the_activations() {
    let model = mlp(&[4, 16, 2]);
    let keep: Vec<u32> = (0..8).collect();
    let (source, made) = repaired(&model, &[4], &keep);
    let w0 = source.graph.constant(source.graph.value_by_name("w0").unwrap()).unwrap();
    let (w0, w1) = (w0.to_f32_vec().unwrap(), last_weight(&source));
    let (mut inner, mut right) = (Square::zero(8), vec![0.0; 64]);
    let mut diagonal = 0.0;
    for x in noise(SAMPLES * 4, 1).chunks(4) {
        let h: Vec<f64> = (0..16)
            .map(|u| (0..4).map(|i| f64::from(x[i] * w0[i * 16 + u])).sum::<f64>().max(0.0))
            .collect();
        inner.add_rows(&h[..8]);
        (0..64).for_each(|at| right[at] += h[at / 8] * h[8 + at % 8]);
        diagonal += h.iter().map(|v| v * v).sum::<f64>() / 16.0;
    }
    inner.add_diagonal(crate::gram::DAMPING * diagonal);
    let d = inner.solve(right, 8).unwrap();
    let found = last_weight(&made.model);
    for unit in 0..8 {
        for output in 0..2 {
            let taken: f64 =
                (0..8).map(|r| d[unit * 8 + r] * f64::from(w1[(8 + r) * 2 + output])).sum();
            let wanted = f64::from(w1[unit * 2 + output]) + taken;
            let found = f64::from(found[unit * 2 + output]);
            assert!((found - wanted).abs() < 1e-4, "{unit} {output}: {found} is not {wanted}");
        }
    }
    let step = &made.grams[0];
    assert!(step.residual_after < step.residual_before, "{step:?}");
}

/// A convolution of eight channels, of which the second two of each half repeat the first two; then one in two
/// groups.
fn grouped() -> Model {
    let mut builder = Builder::new(15);
    let side = Dim::Fixed(6);
    let dims = vec![Dim::Symbol("N".into()), Dim::Fixed(1), side.clone(), side];
    let x = builder.input("x", DType::F32, dims);
    let kernels = noise(4 * 9, 5);
    let first: Vec<f32> =
        [0, 1, 0, 1, 2, 3, 2, 3].iter().flat_map(|k| kernels[k * 9..][..9].to_vec()).collect();
    let w = builder.constant("w", Tensor::from_f32(vec![8, 1, 3, 3], &first).unwrap()).unwrap();
    let h = builder.node("Conv", &[x, w], []).unwrap();
    let h = builder.node("Relu", &[h], []).unwrap();
    let second = Tensor::from_f32(vec![4, 4, 2, 2], &noise(64, 6)).unwrap();
    let w = builder.constant("w2", second).unwrap();
    let group = ("group", AttributeValue::Int(2));
    let y = builder.node("Conv", &[h, w], [group]).unwrap();
    builder.finish(&[y]).unwrap()
}

#[test]
fn a_convolution_in_groups_takes_over_within_each_group() {
    let (source, made) = repaired(&grouped(), &[1, 6, 6], &[0, 1]);
    let (whole, left) = (last_weight(&source), last_weight(&made.model));
    assert_eq!((whole.len(), left.len()), (64, 32));
    // Each kept channel carries its twin's weight as well.
    for (at, found) in left.iter().enumerate() {
        let (output, channel, tap) = (at / 8, at / 4 % 2, at % 4);
        let of = |channel: usize| whole[(output * 4 + channel) * 4 + tap];
        let wanted = of(channel) + of(channel + 2);
        assert!((found - wanted).abs() < 0.1, "{at}: {found} is not {wanted}");
    }
    let step = &made.grams[0];
    assert!(step.residual_after < 0.1 * step.residual_before, "{step:?}");
}

#[test]
fn a_consumer_that_lost_nothing_is_left_and_one_that_was_not_observed_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let job = job(folder.path(), &mlp(&[4, 16, 16, 2]), 4, 64);
    let shop = Shop::open_whole(&job, &Silent).unwrap();
    let looks = Looks { reach: None, grams: Grams::None, samples: 64 };
    let (original, _) = observe(&shop, &[], 0..0, looks).unwrap();
    let groups = vec![shop.source.choice(0, (0..8).collect())];
    let (repair, refused) = original.repair(&shop, 64, &[RepairKind::Gram], &groups);
    assert!(repair.gram.is_empty());
    assert_eq!(refused.len(), 1);
    assert!(refused[0].stage == "gram" && refused[0].why.contains("not observed"), "{refused:?}");
}

/// A dense layer of eight features, of which the second four repeat the first; then an LSTM in both directions of
/// three units.
fn recurrent() -> Model {
    let mut builder = Builder::new(17);
    let x = builder.input("x", DType::F32, vec![Dim::Fixed(1), Dim::Fixed(4)]);
    let columns = noise(16, 5);
    let dense: Vec<f32> = (0..32).map(|at| columns[at / 8 * 4 + at % 4]).collect();
    let constant = |builder: &mut Builder, dims: &[usize], values: &[f32]| {
        builder.constant("c", Tensor::from_f32(dims.to_vec(), values).unwrap()).unwrap()
    };
    let w = constant(&mut builder, &[4, 8], &dense);
    let h = builder.node("MatMul", &[x, w], []).unwrap();
    let h = builder.node("Relu", &[h], []).unwrap();
    let axes = builder.constant("a", Tensor::from_i64(vec![1], &[0]).unwrap()).unwrap();
    let h = builder.node("Unsqueeze", &[h, axes], []).unwrap();
    let w = constant(&mut builder, &[2, 12, 8], &noise(192, 6));
    let r = constant(&mut builder, &[2, 12, 3], &noise(72, 7));
    let b = constant(&mut builder, &[2, 24], &noise(48, 8));
    let attributes = [
        ("hidden_size", AttributeValue::Int(3)),
        ("direction", AttributeValue::String(b"bidirectional".to_vec().into())),
    ];
    let y = builder.node("LSTM", &[h, w, r, b], attributes).unwrap();
    let y = builder.node("Squeeze", &[y, axes], []).unwrap();
    let order = ("perm", AttributeValue::Ints(vec![1, 0, 2]));
    let y = builder.node("Transpose", &[y], [order]).unwrap();
    builder.finish(&[y]).unwrap()
}

#[test]
fn the_gates_of_a_recurrent_layer_take_over_in_both_directions() {
    let (source, made) = repaired(&recurrent(), &[4], &[0, 1, 2, 3]);
    let weight = |model: &Model| {
        let lstm = model.graph.nodes().find(|(_, n)| matches!(n.op, graph::Op::Recurrent(_)));
        let weight = model.graph.constant(lstm.unwrap().1.inputs[1].unwrap()).unwrap();
        (weight.dims.clone(), weight.to_f32_vec().unwrap())
    };
    let ((_, whole), (dims, left)) = (weight(&source), weight(&made.model));
    assert_eq!(dims, [2, 12, 4]);
    // Each kept feature carries its twin's weights as well, but for the ridge.
    let (mut off, mut carried) = (0.0, 0.0);
    for (at, found) in left.iter().enumerate() {
        let of = |channel: usize| whole[at / 4 * 8 + channel];
        off += (found - of(at % 4) - of(at % 4 + 4)).powi(2);
        carried += of(at % 4 + 4).powi(2);
    }
    assert!(off < 0.1 * carried, "{off} of {carried}");
    let step = &made.grams[0];
    assert!(step.residual_after < 0.1 * step.residual_before, "{step:?}");
}
