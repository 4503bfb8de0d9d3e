//! Masked equals pruned: on random networks, on real topologies, and on magika.

#![allow(
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    missing_docs,
    dead_code
)]
#![allow(clippy::cast_possible_wrap, clippy::cast_sign_loss, clippy::print_stderr)]

mod common;
#[path = "common/compare.rs"]
mod compare;
#[path = "common/nets.rs"]
mod nets;

use std::collections::HashMap;

use common::{assets, named};
use compare::{difference, outputs};
use exec::Executor;
use graph::{Choice, DType, Grouping, Model, PrunePlan, Tensor, find, infer, mask, prune};
use nets::{
    Block, HOWS, NORMS, Numbers, Recurrent, Start, blocks, build, build_quantized,
    quantized_blocks, recurrent_blocks,
};
use proptest::prelude::*;

/// Keeps a random part of most groups.
fn plan(grouping: &Grouping, numbers: &mut Numbers) -> PrunePlan {
    let choices = grouping.groups.iter().filter_map(|group| {
        if numbers.next() > 0.6 {
            return None;
        }
        let mut keep: Vec<u32> = (0..group.width as u32).filter(|_| numbers.next() > 0.0).collect();
        if keep.is_empty() {
            keep.push(
                ((numbers.next() + 1.0) / 2.0 * group.width as f32) as u32 % group.width as u32,
            );
        }
        Some(Choice { group: group.id, keep })
    });
    PrunePlan { choices: choices.collect() }
}

/// A name that two nodes have, which ONNX Runtime refuses.
fn twice_named(model: &Model) -> Option<String> {
    let mut seen = std::collections::HashSet::new();
    let mut names = model.graph.nodes().map(|(_, node)| &node.name).filter(|name| !name.is_empty());
    names.find(|name| !seen.insert(*name)).cloned()
}

/// Checks one plan; how many units went.
fn check(model: &Model, seed: u64, inputs: &HashMap<String, Tensor>) -> Result<usize, String> {
    let grouping = find(model, &infer(model));
    let plan = plan(&grouping, &mut Numbers::new(seed));
    let masked = mask(model, &grouping, &plan).map_err(|error| error.to_string())?;
    let mut pruned = model.clone();
    prune(&mut pruned, &grouping, &plan).map_err(|error| error.to_string())?;
    assert_eq!(twice_named(&pruned), None);
    let conflicts = infer(&pruned).conflicts().len();
    let off = difference(&outputs(&masked, inputs), &outputs(&pruned, inputs));
    let gone =
        plan.choices.iter().map(|c| grouping.group(c.group).unwrap().width - c.keep.len()).sum();
    match (conflicts, off < 1e-4) {
        (0, true) => Ok(gone),
        _ => Err(format!("{conflicts} shape conflicts, outputs off by {off}, plan {plan:?}")),
    }
}

fn images() -> HashMap<String, Tensor> {
    named("x", Numbers::new(7).tensor(&[2, 4, 4, 4], 1.0, 0.2))
}

/// More by `PROPTEST_CASES`.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(3000)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases()) })]
    #[test]
    fn masked_equals_pruned_on_random_networks(
        blocks in blocks(),
        seed in 1u64..1_000_000,
        opset in prop_oneof![Just(17i64), Just(18), Just(23)],
    ) {
        let model = build(&blocks, seed, opset);
        if let Err(why) = check(&model, seed, &images()) {
            prop_assert!(false, "{}", why);
        }
    }
}

fn coarse_images() -> HashMap<String, Tensor> {
    named("x", Numbers::coarse(7).tensor(&[2, 4, 4, 4], 2.0, 0.2))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases()) })]
    #[test]
    fn masked_equals_pruned_on_random_quantized_networks(
        blocks in quantized_blocks(),
        seed in 1u64..1_000_000,
    ) {
        let model = build_quantized(&blocks, seed);
        if let Err(why) = check(&model, seed, &coarse_images()) {
            prop_assert!(false, "{}", why);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases()) })]
    #[test]
    fn masked_equals_pruned_on_recurrent_networks(blocks in recurrent_blocks(), seed in 1u64..1_000_000) {
        let model = build(&blocks, seed, 17);
        if let Err(why) = check(&model, seed, &images()) {
            prop_assert!(false, "{}", why);
        }
    }
}

/// Every way to quantize passes the units through, of images and of sequences.
#[test]
fn quantized_layers_are_pruned_through() {
    for how in 0..HOWS {
        for (before, dense) in [(&[][..], false), (&[Block::ToSequence], true)] {
            let blocks = [before, &[Block::Quantized { how }, Block::Activation(0)]].concat();
            let model = build_quantized(&blocks, 3);
            let grouping = find(&model, &infer(&model));
            let layer = !matches!((how, dense), (0, _) | (3, false));
            let widths: Vec<usize> = grouping.groups.iter().map(|group| group.width).collect();
            assert_eq!(
                widths,
                vec![6; 1 + usize::from(layer)],
                "{blocks:?}: {:#?}",
                grouping.locked
            );
            for seed in 1..4 {
                check(&model, seed, &coarse_images())
                    .unwrap_or_else(|why| panic!("{blocks:?}: {why}"));
            }
        }
    }
}

/// Widths of the groups of a network of these blocks.
fn widths(blocks: &[Block]) -> Vec<usize> {
    let model = build(blocks, 1, 17);
    find(&model, &infer(&model)).groups.iter().map(|group| group.width).collect()
}

#[test]
fn every_block_passes_units_through() {
    let cases: &[(&[Block], &[usize])] = &[
        (&[], &[6]),
        (&[Block::Conv { out: 8, kernel: 3 }], &[6, 8]),
        (&[Block::Depthwise { multiplier: 1 }, Block::Conv { out: 4, kernel: 1 }], &[6, 4]),
        (&[Block::Depthwise { multiplier: 2 }, Block::Conv { out: 4, kernel: 1 }], &[6, 4]),
        (&[Block::Grouped { groups: 2 }, Block::Conv { out: 4, kernel: 1 }], &[2, 3, 4, 4]),
        (
            &[
                Block::Activation(2),
                Block::BatchNorm,
                Block::InstanceNorm,
                Block::Scale,
                Block::Pool { max: true },
            ],
            &[6],
        ),
        (&[Block::Residual, Block::Residual], &[6]),
        (&[Block::Branches { out: 2 }], &[6, 2, 3]),
        // A width of 1 cannot shrink.
        (&[Block::SplitSwap], &[5]),
        (&[Block::SliceHalf], &[3, 3]),
        (&[Block::SqueezeExcite], &[6, 4]),
        (&[Block::Gelu, Block::SumNorm, Block::Gelu], &[6]),
        (&[Block::Shuffle { groups: 2 }], &[2, 3]),
        (&[Block::Flatten { dynamic: true }, Block::Dense { out: 8, transposed: true }], &[6, 8]),
        (&[Block::GlobalPool { max: true }, Block::Dense { out: 8, transposed: false }], &[6, 8]),
        (&[Block::ToSequence, Block::Dense { out: 8, transposed: true }, Block::Merge], &[6, 8]),
        (&[Block::ToSequence, Block::Attention { heads: 4 }], &[6, 4, 3, 3, 6]),
        (&[Block::ToSequence, Block::SharedWeight], &[6, 6, 6]),
        (&[Block::ToSequence, Block::GroupedQuery { groups: 3 }], &[6, 3, 3, 3, 6]),
        (&[Block::ToSequence, Block::FusedAttention { how: 0 }], &[6, 4, 3, 3, 6]),
        (&[Block::ToSequence, Block::FusedAttention { how: 1 }], &[6, 4, 3, 6]),
        (&[Block::ToSequence, Block::FusedAttention { how: 2 }], &[6, 4, 3, 6]),
        (&[Block::ToSequence, Block::Gated { fused: true }], &[6, 4, 6]),
        (&[Block::ToSequence, Block::Gated { fused: false }], &[6, 4, 6]),
        (&[Block::ToSequence, Block::Einsum { how: 0 }, Block::Einsum { how: 1 }], &[6, 6]),
        (&[Block::Einsum { how: 0 }], &[6, 6]),
        (&[Block::Divide], &[6]),
        (&[Block::Cardinal, Block::Conv { out: 4, kernel: 1 }], &[3, 2, 2, 4]),
        (&[Block::Deconv { groups: 1 }, Block::Activation(0)], &[6, 3]),
        (&[Block::Deconv { groups: 2 }, Block::Activation(0)], &[2, 3, 3]),
        (&[Block::Deconv { groups: 99 }, Block::Activation(0)], &[6]),
        (&[Block::GroupNorm { how: 1 }], &[2, 3]),
        (&[Block::GroupNorm { how: 2 }], &[2, 3]),
        (&[Block::Widened], &[6, 3]),
        (&[Block::Centred { sum: true }, Block::Centred { sum: false }], &[6]),
        (&[Block::Resize { how: 0 }, Block::Resize { how: 1 }, Block::Resize { how: 2 }], &[6]),
        (&[Block::ToSequence, Block::Recurrent(Recurrent::plain(0, 8))], &[6, 8]),
        (&[Block::ToSequence, Block::Recurrent(Recurrent::plain(1, 8))], &[6, 8]),
        (
            &[
                Block::ToSequence,
                Block::Recurrent(Recurrent {
                    direction: 2,
                    batch_first: true,
                    last: true,
                    start: Start::Learned,
                    ..Recurrent::plain(2, 8)
                }),
            ],
            &[6, 8],
        ),
        (
            &[
                Block::ToSequence,
                Block::Recurrent(Recurrent {
                    direction: 2,
                    start: Start::Zeros,
                    lengths: true,
                    extra: true,
                    ..Recurrent::plain(0, 8)
                }),
                Block::Recurrent(Recurrent { last: true, ..Recurrent::plain(1, 4) }),
            ],
            &[6, 8, 4],
        ),
    ];
    for (blocks, wanted) in cases {
        let (mut found, mut wanted) = (widths(blocks), wanted.to_vec());
        found.sort_unstable();
        wanted.sort_unstable();
        assert_eq!(found, wanted, "{blocks:?}");
    }
}

/// A group norm as exporters write it, where height and width are only known at run time.
#[test]
fn whole_groups_of_a_group_norm_go_without_knowing_the_image() {
    let mut builder = graph::Builder::new(17);
    let mut numbers = Numbers::new(5);
    let sizes = ["N", "H", "W"].map(|name| graph::Dim::Symbol(name.into()));
    let [n, h, w] = sizes;
    let x = builder.input("x", DType::F32, vec![n, graph::Dim::Fixed(4), h, w]);
    let mut weight = |builder: &mut graph::Builder, dims: &[usize]| {
        builder.constant("w", numbers.tensor(dims, 0.6, 0.2)).unwrap()
    };
    let first = weight(&mut builder, &[6, 4, 1, 1]);
    let y = builder.node("Conv", &[x, first], []).unwrap();
    let target = builder.constant("t", Tensor::from_i64(vec![3], &[0, 3, -1]).unwrap()).unwrap();
    let grouped = builder.node("Reshape", &[y, target], []).unwrap();
    let (scale, bias) = (weight(&mut builder, &[3]), weight(&mut builder, &[3]));
    let normed = builder.node("InstanceNormalization", &[grouped, scale, bias], []).unwrap();
    let shape = builder.node("Shape", &[y], []).unwrap();
    let back = builder.node("Reshape", &[normed, shape], []).unwrap();
    let scale = weight(&mut builder, &[1, 6, 1, 1]);
    let scaled = builder.node("Mul", &[back, scale], []).unwrap();
    let last = weight(&mut builder, &[2, 6, 1, 1]);
    let out = builder.node("Conv", &[scaled, last], []).unwrap();
    let model = builder.finish(&[out]).unwrap();
    let grouping = find(&model, &infer(&model));
    let widths: Vec<usize> = grouping.groups.iter().map(|group| group.width).collect();
    assert_eq!(widths, [3], "{:#?}", grouping.locked);
    let inputs = named("x", Numbers::new(9).tensor(&[2, 4, 3, 5], 1.0, 0.1));
    for seed in 1..5 {
        check(&model, seed, &inputs).unwrap();
    }
}

/// Masks and prunes every group of networks of one norm each, behind a convolution and behind a dense layer.
#[test]
fn every_norm_over_the_width_shrinks() {
    for opset in [17, 23] {
        for how in 0..NORMS {
            for before in [&[][..], &[Block::ToSequence, Block::Dense { out: 8, transposed: true }]]
            {
                let blocks = [before, &[Block::Norm { how }, Block::Activation(0)]].concat();
                let model = build(&blocks, 3, opset);
                let grouping = find(&model, &infer(&model));
                let groups = grouping.groups.len();
                assert_eq!(groups, 1 + before.len() / 2, "{blocks:?}: {:#?}", grouping.locked);
                for seed in 1..4 {
                    if let Err(why) = check(&model, seed, &images()) {
                        panic!("{blocks:?} at {opset}: {why}");
                    }
                }
            }
        }
    }
}

#[test]
fn masked_equals_pruned_on_magika() {
    let model = Model::load(assets().join("magika.onnx")).unwrap();
    let mut numbers = Numbers::new(3);
    let bytes: Vec<i32> = (0..2 * 2048).map(|_| ((numbers.next() + 1.0) * 128.0) as i32).collect();
    let inputs = named("bytes", Tensor::from_i32(vec![2, 2048], &bytes).unwrap());
    let gone = check(&model, 11, &inputs).unwrap();
    assert!(gone > 100, "only {gone} units were removed");
}

#[test]
fn masked_equals_pruned_on_real_topologies() {
    for (name, input) in [
        ("light_resnet50", "gpu_0/data_0"),
        ("light_densenet121", "data_0"),
        ("light_shufflenet", "gpu_0/data_0"),
        ("light_inception_v2", "data_0"),
        ("light_squeezenet", "data_0"),
    ] {
        let mut model = Model::load(assets().join(format!("light/{name}.onnx"))).unwrap();
        let weights = materialise(&mut model);
        assert!(weights > 20, "{name} has {weights} weights");
        let value = model.graph.inputs()[0];
        assert_eq!(model.graph.value(value).name, input);
        let inputs = named(input, Numbers::new(5).tensor(&[1, 3, 224, 224], 1.0, 0.0));
        let gone = check(&model, 5, &inputs)
            .unwrap_or_else(|why| panic!("{name}: {}", &why[..why.len().min(300)]));
        eprintln!("{name}: {gone} units");
        assert!(gone > 100, "{name}: only {gone} units were removed");
    }
}

#[test]
fn masked_equals_pruned_on_a_transformer() {
    let model = Model::load(assets().join("models/minilm.onnx")).unwrap();
    let ids: Vec<i64> = (0..2 * 9).map(|i| (i * 977) % 30_000 + 5).collect();
    let graph = &model.graph;
    let inputs = graph.inputs().iter().map(|&value| {
        let name = graph.value(value).name.clone();
        let values = match name.as_str() {
            "input_ids" => ids.clone(),
            "attention_mask" => (0..18).map(|i| i64::from(i != 17)).collect(),
            _ => vec![0; 18],
        };
        (name, Tensor::from_i64(vec![2, 9], &values).unwrap())
    });
    let gone = check(&model, 2, &inputs.collect())
        .unwrap_or_else(|why| panic!("{}", &why[..why.len().min(300)]));
    assert!(gone > 100, "only {gone} units were removed");
}

/// The light models compute their weights by `ConstantOfShape`; gives them random ones.
fn materialise(model: &mut Model) -> usize {
    use graph::{Cause, Edit, Op, apply};
    let cause = Cause::new("test", "random weights");
    let nodes: Vec<_> = model
        .graph
        .nodes()
        .filter(|(_, node)| node.op == Op::ConstantOfShape)
        .map(|(_, node)| (node.input(0).unwrap(), node.output(0).unwrap()))
        .collect();
    let mut numbers = Numbers::new(9);
    for &(shape, old) in &nodes {
        let dims: Vec<usize> =
            model.graph.constant_ints(shape).unwrap().iter().map(|&v| v as usize).collect();
        let fan_in: usize = dims.iter().skip(1).product();
        // Vectors are scales, shifts and variances, which must be positive.
        let (scale, shift) =
            if dims.len() == 1 { (0.2, 0.5) } else { (1.7 / (fan_in as f32).sqrt(), 0.0) };
        let tensor = numbers.tensor(&dims, scale, shift);
        let new = apply(&mut model.graph, Edit::AddConstant { name: "w".into(), tensor }, &cause)
            .unwrap()
            .value();
        for (node, slot) in model.graph.consumers(old) {
            apply(&mut model.graph, Edit::ReplaceInput { node, slot, value: new }, &cause).unwrap();
        }
    }
    nodes.len()
}

#[test]
fn a_plan_that_does_not_fit_is_refused_and_changes_nothing() {
    let mut model = build(&[], 1, 17);
    let grouping = find(&model, &infer(&model));
    let before = model.to_bytes().unwrap();
    let id = grouping.groups[0].id;
    for (keep, wanted) in [
        (vec![], "keeps no unit"),
        (vec![0, 6], "below 6"),
        (vec![1, 0], "ascending"),
        (vec![1, 1], "ascending"),
    ] {
        let plan = PrunePlan { choices: vec![Choice { group: id, keep }] };
        let error = prune(&mut model, &grouping, &plan).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
    }
    let twice = vec![Choice { group: id, keep: vec![0] }, Choice { group: id, keep: vec![1] }];
    assert!(
        prune(&mut model, &grouping, &PrunePlan { choices: twice })
            .unwrap_err()
            .to_string()
            .contains("twice")
    );
    let unknown = PrunePlan { choices: vec![Choice { group: graph::GroupId(9), keep: vec![0] }] };
    assert!(prune(&mut model, &grouping, &unknown).is_err());
    assert_eq!(model.to_bytes().unwrap(), before);
}

#[test]
fn groups_of_another_model_are_refused() {
    let first = build(&[Block::Conv { out: 8, kernel: 3 }], 1, 17);
    let grouping = find(&first, &infer(&first));
    let mut other = build(
        &[Block::Flatten { dynamic: false }, Block::Dense { out: 4, transposed: false }],
        2,
        17,
    );
    let plan = PrunePlan { choices: vec![Choice { group: grouping.groups[1].id, keep: vec![0] }] };
    assert!(prune(&mut other, &grouping, &plan).is_err());
}

#[test]
fn an_operator_without_a_kernel_is_named() {
    let mut builder = graph::Builder::new(17);
    let x = builder.input("x", DType::F32, vec![graph::Dim::Fixed(2)]);
    let y = builder.node("Hardmax", &[x], []).unwrap();
    let model = builder.finish(&[y]).unwrap();
    let error = Executor::new(&model).unwrap_err().to_string();
    assert!(error.contains("Hardmax"), "{error}");
}

#[test]
fn operands_that_do_not_fit_are_shown_with_their_shapes() {
    let mut builder = graph::Builder::new(17);
    let dims = || vec![graph::Dim::Symbol("N".into()), graph::Dim::Symbol("M".into())];
    let (a, b) = (builder.input("a", DType::F32, dims()), builder.input("b", DType::F32, dims()));
    let y = builder.node("MatMul", &[a, b], []).unwrap();
    let model = builder.finish(&[y]).unwrap();
    let executor = Executor::new(&model).unwrap();
    let tensor = || Tensor::from_f32(vec![2, 3], &[0.0; 6]).unwrap();
    let both = HashMap::from([("a".to_owned(), tensor()), ("b".to_owned(), tensor())]);
    let error = executor.run(both, &[y]).unwrap_err().to_string();
    assert!(error.contains("MatMul") && error.contains("[2, 3]"), "{error}");
    let error = executor.run(named("a", tensor()), &[y]).unwrap_err().to_string();
    assert!(error.contains("`b`") && error.contains("missing"), "{error}");
    let wrong = HashMap::from([
        ("a".to_owned(), tensor()),
        ("b".to_owned(), Tensor::from_i64(vec![2, 3], &[0; 6]).unwrap()),
    ]);
    let error = executor.run(wrong, &[y]).unwrap_err().to_string();
    assert!(error.contains("I64"), "{error}");
}
