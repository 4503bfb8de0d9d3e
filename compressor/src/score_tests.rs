use graph::{AttributeValue, Builder, DType, Dim, Model, Tensor};

use super::*;

fn batch(width: usize) -> Vec<Dim> {
    vec![Dim::Symbol("N".into()), Dim::Fixed(width)]
}

fn f32s(builder: &mut Builder, name: &str, dims: &[usize], values: &[f32]) -> ValueId {
    builder.constant(name, Tensor::from_f32(dims.to_vec(), values).unwrap()).unwrap()
}

/// `x[N, 2] · a` of four units, read by `b`; and the activation between them.
fn two_layers(a: &[f32; 8], b: &[f32; 4]) -> (Model, ValueId) {
    let mut builder = Builder::new(15);
    let x = builder.input("x", DType::F32, batch(2));
    let a = f32s(&mut builder, "a", &[2, 4], a);
    let b = f32s(&mut builder, "b", &[4, 1], b);
    let h = builder.node("MatMul", &[x, a], []).unwrap();
    let h = builder.node("Relu", &[h], []).unwrap();
    let y = builder.node("MatMul", &[h, b], []).unwrap();
    (builder.finish(&[y]).unwrap(), h)
}

fn group(model: &Model) -> Group {
    let grouping = graph::find(model, &graph::infer(model));
    assert_eq!(grouping.groups.len(), 1, "{grouping:?}");
    grouping.groups[0].clone()
}

/// Evidence of rows of an activation.
fn seen(value: ValueId, width: usize, rows: &[f32]) -> Evidence {
    let mut evidence = Evidence::default();
    let mut moments = AxisMoments::new(width);
    assert!(moments.push(&[rows.len() / width, width], 1, rows));
    let mut gram = ChannelGram::new(width);
    gram.push(rows);
    gram.settle();
    evidence.moments.insert((value, 1), moments);
    evidence.grams.insert((value, 1), gram);
    evidence
}

fn rated(kind: ScoreKind, model: &Model, evidence: &Evidence) -> Vec<f64> {
    let rating = rate(kind, &model.graph, &group(model), evidence, 0).unwrap();
    assert_eq!(rating.fell_back, None, "{kind}");
    rating.units
}

fn near(found: &[f64], wanted: &[f64]) {
    assert_eq!(found.len(), wanted.len());
    let close = |(a, b): (&f64, &f64)| (a - b).abs() <= 1e-6 * b.abs().max(1.0);
    assert!(found.iter().zip(wanted).all(close), "{found:?} is not {wanted:?}");
}

#[test]
fn magnitudes_are_norms_over_everything_that_goes_with_a_unit() {
    let (model, _) = two_layers(&[3., 0., 1., 0., 0., 0., -1., 2.], &[4., 1., 1., 0.]);
    let nothing = Evidence::default();
    near(&rated(ScoreKind::Magnitude, &model, &nothing), &[5.0, 1.0, 3f64.sqrt(), 2.0]);
    near(&rated(ScoreKind::MagnitudeL1, &model, &nothing), &[7.0, 1.0, 3.0, 2.0]);
}

#[test]
fn what_consumers_read_rates_by_deviation_size_mean_and_sign() {
    let (model, h) = two_layers(&[1.0; 8], &[1., 2., 1., 0.]);
    // Unit 0 is constant, unit 1 is small and varies, unit 2 is on in half, unit 3 is large and unread.
    let evidence = seen(h, 4, &[3., 1., 0., 9., 3., 2., 4., 1.]);
    near(&rated(ScoreKind::Activation, &model, &evidence), &[0.0, 1.0, 2.0, 0.0]);
    let sizes = [3.0, 2.0 * 2.5f64.sqrt(), 8f64.sqrt(), 0.0];
    near(&rated(ScoreKind::Wanda, &model, &evidence), &sizes);
    let mean = (3.0 + 1.5 + 2.0 + 5.0) / 4.0;
    let shares = [3.0 / mean, 1.5 / mean, 2.0 / mean, 5.0 / mean];
    near(&rated(ScoreKind::MeanAbs, &model, &evidence), &shares);
    near(&rated(ScoreKind::Apoz, &model, &evidence), &[1.0, 1.0, 0.5, 1.0]);
}

#[test]
fn second_order_gives_up_first_what_another_unit_can_stand_in_for() {
    // Unit 0 repeats unit 1, although both are large; unit 3 is small but alone.
    let (model, h) = two_layers(&[1.0; 8], &[2., 2., 1., 0.5]);
    let rows = [1., 1., 0., 0., 2., 2., 1., 0., 0., 0., 2., 1., 1., 1., 0., 3.];
    let evidence = seen(h, 4, &rows);
    let units = rated(ScoreKind::Obs, &model, &evidence);
    assert!(units[0] == 0.0 || units[1] == 0.0, "{units:?}");
    assert!(units[0].max(units[1]) == 3.0, "its twin then carries both: {units:?}");
    assert_eq!(best(&rated(ScoreKind::Wanda, &model, &evidence), 2), vec![0, 1]);
    let combined = rated(ScoreKind::Combined, &model, &evidence);
    assert!(combined.iter().all(|r| (0.0..=3.0).contains(r)), "{combined:?}");
}

#[test]
fn a_rating_that_falls_back_to_the_weights_says_so() {
    let (model, h) = two_layers(&[1., 2., 3., 4., 1., 2., 3., 4.], &[1.0; 4]);
    let group = group(&model);
    let rate = |kind, seen: &Evidence| rate(kind, &model.graph, &group, seen, 0).unwrap();
    let weights = rate(ScoreKind::Magnitude, &Evidence::default()).units;
    for kind in ScoreKind::ALL.into_iter().filter(|kind| kind.needs_data()) {
        let blind = rate(kind, &Evidence::default());
        assert!(blind.fell_back.unwrap().contains("weights alone"), "{kind}");
        assert_eq!(blind.units, weights, "{kind}");
    }
    let mut evidence = seen(h, 4, &[1.0; 8]);
    evidence.grams.clear();
    evidence.without_gram.insert((h, 1), "it is too wide".into());
    assert!(rate(ScoreKind::Obs, &evidence).fell_back.unwrap().contains("too wide"));
}

#[test]
fn random_is_the_seeds_and_every_units_place_once() {
    let (model, _) = two_layers(&[1.0; 8], &[1.0; 4]);
    let group = group(&model);
    let rate = |seed| {
        rate(ScoreKind::Random, &model.graph, &group, &Evidence::default(), seed).unwrap().units
    };
    assert_eq!(rate(5), rate(5));
    let mut sorted = rate(5);
    sorted.sort_by(f64::total_cmp);
    assert_eq!(sorted, vec![0.0, 1.0, 2.0, 3.0]);
}

/// A pointwise convolution of two channels, normalized, rectified, and read by another one; `folded` with the norm
/// written into the first one's weight and bias.
fn normalized(folded: bool) -> Model {
    let mut builder = Builder::new(15);
    let side = Dim::Fixed(2);
    let dims = vec![Dim::Symbol("N".into()), Dim::Fixed(1), side.clone(), side];
    let x = builder.input("x", DType::F32, dims);
    let (weight, gamma, beta) = ([1f32, 10.0], [8f32, 0.1], [0.5f32, -0.5]);
    let (mean, variance, epsilon) = ([1f32, 2.0], [4f32, 1.0], 0.0f32);
    let scale: Vec<f32> = (0..2).map(|i| gamma[i] / (variance[i] + epsilon).sqrt()).collect();
    let mut h = if folded {
        let weight: Vec<f32> = (0..2).map(|i| weight[i] * scale[i]).collect();
        let bias: Vec<f32> = (0..2).map(|i| beta[i] - mean[i] * scale[i]).collect();
        let w = f32s(&mut builder, "w", &[2, 1, 1, 1], &weight);
        let b = f32s(&mut builder, "b", &[2], &bias);
        builder.node("Conv", &[x, w, b], []).unwrap()
    } else {
        let w = f32s(&mut builder, "w", &[2, 1, 1, 1], &weight);
        let h = builder.node("Conv", &[x, w], []).unwrap();
        let norm: Vec<ValueId> = [("g", gamma), ("b", beta), ("m", mean), ("v", variance)]
            .into_iter()
            .map(|(name, values)| f32s(&mut builder, name, &[2], &values))
            .collect();
        let attribute = ("epsilon", AttributeValue::Float(epsilon));
        let inputs = [h, norm[0], norm[1], norm[2], norm[3]];
        builder.node("BatchNormalization", &inputs, [attribute]).unwrap()
    };
    h = builder.node("Relu", &[h], []).unwrap();
    // The reader is normalized too, by a product of one half.
    let half = if folded { 0.5 } else { 1.0 };
    let w = f32s(&mut builder, "w2", &[1, 2, 1, 1], &[half, 2.0 * half]);
    let mut y = builder.node("Conv", &[h, w], []).unwrap();
    if !folded {
        let norm: Vec<ValueId> = [("g2", 1.0), ("b2", 0.0), ("m2", 0.0), ("v2", 4.0)]
            .into_iter()
            .map(|(name, value)| f32s(&mut builder, name, &[1], &[value]))
            .collect();
        let attribute = ("epsilon", AttributeValue::Float(epsilon));
        let inputs = [y, norm[0], norm[1], norm[2], norm[3]];
        y = builder.node("BatchNormalization", &inputs, [attribute]).unwrap();
    }
    builder.finish(&[y]).unwrap()
}

#[test]
fn a_norm_counts_as_if_it_had_been_folded_into_the_layer_in_front() {
    let nothing = Evidence::default();
    for kind in [ScoreKind::Magnitude, ScoreKind::MagnitudeL1] {
        let live = rated(kind, &normalized(false), &nothing);
        near(&live, &rated(kind, &normalized(true), &nothing));
        assert!(live[0] > live[1], "the raw weights say the opposite: {live:?}");
    }
}

#[test]
fn the_best_units_come_ascending_and_ties_go_to_the_lower_index() {
    assert_eq!(best(&[1.0, 3.0, 1.0, 2.0], 3), vec![0, 1, 3]);
    assert_eq!(best(&[f64::NAN, 1.0], 1).len(), 1);
}

/// The kinds of the groups of `model`, each once, in order.
fn kinds(model: &Model) -> Vec<GroupKind> {
    let grouping = graph::find(model, &graph::infer(model));
    let mut kinds: Vec<GroupKind> =
        grouping.groups.iter().map(|group| GroupKind::of(&model.graph, group)).collect();
    kinds.sort();
    kinds.dedup();
    kinds
}

#[test]
fn kinds_are_told_by_what_makes_reads_and_adds_the_units() {
    assert_eq!(kinds(&two_layers(&[1.0; 8], &[1.0; 4]).0), vec![GroupKind::Hidden]);
    assert_eq!(kinds(&normalized(false)), vec![GroupKind::Channels]);
    let mut builder = Builder::new(15);
    let dims = vec![Dim::Symbol("N".into()), Dim::Fixed(3), Dim::Fixed(4)];
    let x = builder.input("x", DType::F32, dims);
    let project = |builder: &mut Builder, name: &str| {
        let w = f32s(builder, name, &[4, 8], &[0.5; 32]);
        builder.node("MatMul", &[x, w], []).unwrap()
    };
    let (q, k, v) =
        (project(&mut builder, "q"), project(&mut builder, "k"), project(&mut builder, "v"));
    let perm = ("perm", AttributeValue::Ints(vec![0, 2, 1]));
    let k = builder.node("Transpose", &[k], [perm]).unwrap();
    let scores = builder.node("MatMul", &[q, k], []).unwrap();
    let scores = builder.node("Softmax", &[scores], []).unwrap();
    let y = builder.node("MatMul", &[scores, v], []).unwrap();
    let w = f32s(&mut builder, "out", &[8, 2], &[0.5; 16]);
    let y = builder.node("MatMul", &[y, w], []).unwrap();
    assert_eq!(kinds(&builder.finish(&[y]).unwrap()), vec![GroupKind::Attention]);
}

#[test]
fn hidden_units_of_a_recurrent_layer_and_of_a_sum_are_kinds_of_their_own() {
    let mut builder = Builder::new(15);
    let dims = vec![Dim::Fixed(3), Dim::Symbol("N".into()), Dim::Fixed(4)];
    let x = builder.input("x", DType::F32, dims);
    let w = f32s(&mut builder, "w", &[1, 8, 4], &[0.5; 32]);
    let r = f32s(&mut builder, "r", &[1, 8, 8], &[0.1; 64]);
    let size = ("hidden_size", AttributeValue::Int(8));
    let y = builder.node("RNN", &[x, w, r], [size]).unwrap();
    let w = f32s(&mut builder, "out", &[8, 2], &[0.5; 16]);
    let y = builder.node("MatMul", &[y, w], []).unwrap();
    assert_eq!(kinds(&builder.finish(&[y]).unwrap()), vec![GroupKind::Recurrent]);
    let mut builder = Builder::new(15);
    let x = builder.input("x", DType::F32, batch(2));
    let weights = ["a", "b"].map(|name| f32s(&mut builder, name, &[2, 4], &[1.0; 8]));
    let [a, b] = weights.map(|w| builder.node("MatMul", &[x, w], []).unwrap());
    let h = builder.node("Add", &[a, b], []).unwrap();
    let w = f32s(&mut builder, "out", &[4, 1], &[1.0; 4]);
    let y = builder.node("MatMul", &[h, w], []).unwrap();
    assert_eq!(kinds(&builder.finish(&[y]).unwrap()), vec![GroupKind::Residual]);
}
