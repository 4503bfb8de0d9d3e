//! What integer weights compute, in both engines, against the float model and the bound that rounding gives.
#![allow(clippy::unwrap_used)]

#[path = "support/nets.rs"]
mod nets;

use std::path::Path;

use espalier::pipeline::{CompressJob, DeviceBaseline, Goal, Silent, compress};
use espalier::plan::QuantFormat;
use espalier::quantize::{int8_weight, quantize};
use graph::{AttributeValue, Builder, DType, Dim, Model, Tensor, ValueId};
use nets::{noise, samples, weight};
use runtime::{EngineKind, EngineOptions, LoadOptions};

const ENGINES: [EngineKind; 2] = [EngineKind::Tract, EngineKind::Ort];
const INPUTS: usize = 48;
const OUTPUTS: usize = 40;
const ROWS: usize = 5;

#[derive(Debug, Clone, Copy)]
enum Layer {
    MatMul,
    GemmWithBias,
    GemmTransposed,
}

/// The weight, inputs by outputs, with columns of very different sizes.
fn weights() -> Vec<f32> {
    let noise = noise(INPUTS * OUTPUTS, 3);
    noise.iter().enumerate().map(|(at, w)| w * (0.01 + (at % OUTPUTS) as f32)).collect()
}

fn model(layer: Layer) -> Model {
    let mut builder = Builder::new(15);
    let dims = vec![Dim::Symbol("N".into()), Dim::Fixed(INPUTS)];
    let x = builder.input("x", DType::F32, dims);
    let values = weights();
    let tensor = match layer {
        Layer::GemmTransposed => {
            let turned = (0..OUTPUTS).flat_map(|o| (0..INPUTS).map(move |i| (i, o)));
            let turned: Vec<f32> = turned.map(|(i, o)| values[i * OUTPUTS + o]).collect();
            Tensor::from_f32(vec![OUTPUTS, INPUTS], &turned).unwrap()
        }
        _ => Tensor::from_f32(vec![INPUTS, OUTPUTS], &values).unwrap(),
    };
    let w = builder.constant("w", tensor).unwrap();
    let b = Tensor::from_f32(vec![OUTPUTS], &noise(OUTPUTS, 4)).unwrap();
    let b = builder.constant("b", b).unwrap();
    let turned = |yes: i64| ("transB", AttributeValue::Int(yes));
    let y = match layer {
        Layer::MatMul => builder.node("MatMul", &[x, w], []),
        Layer::GemmWithBias => builder.node("Gemm", &[x, w, b], [turned(0)]),
        Layer::GemmTransposed => builder.node("Gemm", &[x, w, b], [turned(1)]),
    };
    builder.finish(&[y.unwrap()]).unwrap()
}

fn run(kind: EngineKind, path: &Path, x: &[f32]) -> Vec<f32> {
    let engine = runtime::open(&EngineOptions::new(kind)).unwrap();
    let options = LoadOptions { batch: Some(ROWS), ..LoadOptions::default() };
    let mut session = engine.load(path, &options).unwrap();
    let x = runtime::Tensor::from_f32(vec![ROWS, INPUTS], x).unwrap();
    session.run(&[("x", &x)]).unwrap()[0].1.to_f32().unwrap()
}

/// A column's weights are off by at most half its step `s`, and with dynamic activations these by at most half of
/// theirs, `t`: |Δy| ≤ s/2·Σ|x| + t/2·Σ|w| + k·s·t/4. A little is left for float sums.
fn bound(x: &[f32], column: usize, step: f32, dynamic: bool) -> f64 {
    let weights = weights();
    let all =
        |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v.abs())).sum::<f64>();
    let sum_w = all(&mut (0..INPUTS).map(|i| weights[i * OUTPUTS + column]));
    let sum_x = all(&mut x.iter().copied());
    let s = f64::from(step);
    let rounding = 1e-5 * sum_w.max(1.0) * sum_x.max(1.0);
    s / 2.0 * sum_x + if dynamic { dynamic_part(s, sum_w) } else { 0.0 } + rounding
}

fn dynamic_part(s: f64, sum_w: f64) -> f64 {
    let x = noise(ROWS * INPUTS, 6);
    let (low, high) = x.iter().fold((0.0f32, 0.0f32), |(l, h), v| (l.min(*v), h.max(*v)));
    let t = f64::from(high - low) / 255.0;
    // The zero point is rounded as well, which moves the ends of the range by up to half a step.
    t * sum_w + INPUTS as f64 * s * t / 2.0
}

fn is_within_the_bound(layer: Layer, format: QuantFormat) {
    let folder = tempfile::tempdir().unwrap();
    let model = model(layer);
    let (float, integer) = (folder.path().join("float.onnx"), folder.path().join("int.onnx"));
    model.save(&float).unwrap();
    let quantized = quantize(&model, &graph::infer(&model), format).unwrap();
    assert_eq!(quantized.sites.len(), 1, "{layer:?}");
    quantized.model.save(&integer).unwrap();
    let steps = int8_weight(&weights(), INPUTS, OUTPUTS).unwrap().scales;
    let x = noise(ROWS * INPUTS, 6);
    for kind in ENGINES {
        let (a, b) = (run(kind, &float, &x), run(kind, &integer, &x));
        assert_eq!((a.len(), b.len()), (ROWS * OUTPUTS, ROWS * OUTPUTS));
        let mut off = 0.0f64;
        for (at, (a, b)) in a.iter().zip(&b).enumerate() {
            let (row, column) = (at / OUTPUTS, at % OUTPUTS);
            let x = &x[row * INPUTS..(row + 1) * INPUTS];
            let most = bound(x, column, steps[column], format == QuantFormat::DynamicInt8);
            let delta = (f64::from(*a) - f64::from(*b)).abs();
            assert!(delta <= most, "{layer:?} {format} {kind} [{row}, {column}]: {delta} > {most}");
            off = off.max(delta);
        }
        assert!(off > 0.0, "{layer:?} {format} {kind}: nothing was rounded");
    }
}

#[test]
fn stored_weights_are_off_by_no_more_than_rounding_in_every_layer_and_engine() {
    for layer in [Layer::MatMul, Layer::GemmWithBias, Layer::GemmTransposed] {
        is_within_the_bound(layer, QuantFormat::Int8);
    }
}

#[test]
fn integer_products_are_off_by_no_more_than_rounding_in_every_layer_and_engine() {
    for layer in [Layer::MatMul, Layer::GemmWithBias, Layer::GemmTransposed] {
        is_within_the_bound(layer, QuantFormat::DynamicInt8);
    }
}

const WIDE: usize = 2048;

/// Three wide residual layers and a head: the input carries the residual stream, so that no width can shrink, and
/// one row through weights of 50 MB takes as long as these take to be read.
fn wide() -> Model {
    let mut builder = Builder::new(15);
    let dims = vec![Dim::Symbol("N".into()), Dim::Fixed(WIDE)];
    let mut x = builder.input("x", DType::F32, dims);
    for at in 0..3 {
        let w = weight(&mut builder, &format!("w{at}"), WIDE, WIDE);
        let y: ValueId = builder.node("MatMul", &[x, w], []).unwrap();
        let y = builder.node("Relu", &[y], []).unwrap();
        x = builder.node("Add", &[x, y], []).unwrap();
    }
    let head = weight(&mut builder, "head", WIDE, 10);
    let y = builder.node("MatMul", &[x, head], []).unwrap();
    builder.finish(&[y]).unwrap()
}

/// The budget is out of reach for float at any width, so that the search has to come by an integer format.
#[test]
fn a_model_whose_widths_are_locked_becomes_integer_where_that_is_faster() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("wide.onnx");
    wide().save(&source).unwrap();
    let (fit, judge) = (folder.path().join("fit.npz"), folder.path().join("judge.npz"));
    samples(&fit, 64, &[WIDE], 1);
    samples(&judge, 64, &[WIDE], 2);
    let job = CompressJob {
        name: "wide".into(),
        source,
        calibration: fit,
        heldout: judge,
        engine: EngineOptions::new(EngineKind::Ort),
        goal: Goal {
            latency_p95_us: Some(80_000),
            memory_bytes: None,
            size_bytes: None,
            agreement_min: 0.8,
        },
        judging: espalier::pipeline::Judging::default(),
        baseline: Some(DeviceBaseline::latency(90_000, 100_000)),
        current_model: None,
        device_class: bundle::ANY.into(),
        sequence: 1,
        version: "1".into(),
        out_dir: folder.path().join("bundle"),
        work_dir: None,
        seed: 0,
    };
    let outcome = compress(&job, &Silent).unwrap();
    let chosen = &outcome.chosen;
    assert!(chosen.plan.quantize.is_some() && chosen.plan.groups.is_empty(), "{chosen:?}");
    assert!(chosen.host.ratio_high < 0.98, "{:?}", chosen.host);
    assert!(chosen.size_bytes * 3 < outcome.original.size_bytes);
    assert!(chosen.quality.as_ref().unwrap().agreement.value >= 0.8);
}
