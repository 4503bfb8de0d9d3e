//! The same models through both engines, which must agree; real networks and ONNX's own tests.
#![cfg(all(feature = "tract", feature = "ort"))]
#![allow(clippy::unwrap_used)]

#[path = "support/harness.rs"]
mod harness;

use harness::{Random, assert_agree, asset, batch, engine, engines, load_both};
use runtime::{EngineKind, EngineOptions, ErrorKind, LoadOptions, Session, Tensor, open};

#[test]
fn both_engines_are_available_and_tell_their_versions() {
    harness::variable("ORT_DYLIB_PATH");
    for (kind, version) in runtime::available() {
        let version = version.unwrap();
        assert_eq!(version.split('.').count(), 3, "{kind} {version}");
    }
}

#[test]
fn magika_agrees_at_a_fixed_batch() {
    let mut random = Random(7);
    for rows in [1, 3] {
        let mut sessions = load_both("magika.onnx", &batch(rows));
        for session in &sessions {
            assert_eq!(session.inputs()[0].name, "bytes");
            assert_eq!(session.inputs()[0].dims, vec![Some(rows), Some(2048)]);
            assert_eq!(session.outputs()[0].dims[1], Some(214));
        }
        for _ in 0..3 {
            assert_agree(&mut sessions, &[("bytes", &random.magika(rows))], 1e-4);
        }
    }
}

#[test]
fn magika_agrees_with_its_batch_left_free() {
    let mut random = Random(11);
    let mut sessions = load_both("magika.onnx", &LoadOptions::default());
    for session in &sessions {
        assert_eq!(session.inputs()[0].dims, vec![None, Some(2048)]);
    }
    for rows in [1, 3, 2] {
        assert_agree(&mut sessions, &[("bytes", &random.magika(rows))], 1e-4);
    }
}

#[test]
fn a_batch_is_computed_row_by_row() {
    let mut random = Random(13);
    let three = random.magika(3);
    let values = three.to_i32().unwrap();
    for engine in engines() {
        let mut many = engine.load(&asset("magika.onnx"), &batch(3)).unwrap();
        let mut one = engine.load(&asset("magika.onnx"), &batch(1)).unwrap();
        let whole = many.run(&[("bytes", &three)]).unwrap()[0].1.to_f32().unwrap();
        for (row, bytes) in values.chunks(2048).enumerate() {
            let bytes = Tensor::from_i32(vec![1, 2048], bytes).unwrap();
            let single = &one.run(&[("bytes", &bytes)]).unwrap()[0].1;
            let part = Tensor::from_f32(vec![1, 214], &whole[row * 214..][..214]).unwrap();
            assert_eq!(harness::difference(single, &part, 1e-4), None, "row {row}");
        }
    }
}

#[test]
fn a_model_in_memory_is_the_model_in_the_file() {
    let bytes = std::fs::read(asset("magika.onnx")).unwrap();
    let input = Random(17).magika(1);
    for engine in engines() {
        let mut file = engine.load(&asset("magika.onnx"), &batch(1)).unwrap();
        let mut memory = engine.load_bytes(&bytes, &batch(1)).unwrap();
        assert_eq!(
            file.run(&[("bytes", &input)]).unwrap(),
            memory.run(&[("bytes", &input)]).unwrap(),
            "{}",
            engine.kind()
        );
    }
}

#[test]
fn text_recognition_models_agree() {
    for (name, shape) in [
        ("models/ppocr_cls.onnx", [1, 3, 48, 192]),
        ("models/ppocr_det.onnx", [1, 3, 64, 96]),
        ("models/ppocr_rec.onnx", [1, 3, 48, 160]),
    ] {
        let mut sessions = load_both(name, &batch(1));
        let image = Random(19).floats(&shape);
        assert_agree(&mut sessions, &[("x", &image)], 1e-3);
    }
}

#[test]
fn the_sentence_encoder_agrees() {
    let mut sessions = load_both("models/minilm.onnx", &batch(2));
    let mut random = Random(23);
    let tokens: Vec<i64> = (0..32).map(|_| (random.next() % 30_000) as i64).collect();
    let mask: Vec<i64> = (0..32).map(|at| i64::from(at % 16 < 12)).collect();
    let tokens = Tensor::from_i64(vec![2, 16], &tokens).unwrap();
    let mask = Tensor::from_i64(vec![2, 16], &mask).unwrap();
    assert_agree(&mut sessions, &[("attention_mask", &mask), ("input_ids", &tokens)], 1e-3);
}

/// What a voice detector takes: a sound, its own state, and some the sample rate.
fn voice_inputs(session: &dyn Session) -> Vec<(String, Tensor)> {
    let mut random = Random(29);
    session
        .inputs()
        .iter()
        .map(|spec| {
            let tensor = match spec.name.as_str() {
                "sr" => Tensor::from_i64(vec![], &[16_000]).unwrap(),
                "input" => random.floats(&[1, 576]),
                _ => random.floats(&spec.shape_with(1)),
            };
            (spec.name.clone(), tensor)
        })
        .collect()
}

fn named(inputs: &[(String, Tensor)]) -> Vec<(&str, &Tensor)> {
    inputs.iter().map(|(n, t)| (n.as_str(), t)).collect()
}

#[test]
fn voice_detectors_agree_where_tract_takes_them() {
    for name in ["silero_vad_op18_ifless", "silero_vad_openvino_16k", "silero_vad_16k_sequence"] {
        let mut sessions = load_both(&format!("models/{name}.onnx"), &batch(1));
        let inputs = voice_inputs(&*sessions[1]);
        assert_agree(&mut sessions, &named(&inputs), 1e-3);
    }
}

#[test]
fn tract_refuses_voice_detectors_with_branches_and_says_so() {
    for name in ["silero_vad", "silero_vad_16k_op15", "silero_vad_half"] {
        let path = asset(&format!("models/{name}.onnx"));
        let [tract, ort] = engines();
        let mut reference = ort.load(&path, &batch(1)).unwrap();
        let inputs = voice_inputs(&*reference);
        reference.run(&named(&inputs)).unwrap();
        let error = tract
            .load(&path, &batch(1))
            .and_then(|mut session| session.run(&named(&inputs)))
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(error.to_string().contains("tract cannot run"), "{error}");
        assert!(error.to_string().len() < 2500, "{error}");
    }
}

#[test]
fn classic_image_networks_agree() {
    for name in ["resnet50", "squeezenet", "shufflenet", "inception_v1", "densenet121"] {
        let mut sessions = load_both(&format!("light/light_{name}.onnx"), &batch(1));
        let input = sessions[0].inputs()[0].name.clone();
        let image = Random(31).floats(&[1, 3, 224, 224]);
        assert_agree(&mut sessions, &[(&input, &image)], 1e-3);
    }
}

#[test]
fn ort_writes_the_graph_it_runs_and_can_run_it_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("optimized.onnx");
    let optimized_model_path = Some(path.clone());
    let options = LoadOptions { batch: Some(1), optimized_model_path, ..LoadOptions::default() };
    let ort = engine(EngineKind::Ort);
    let mut first = ort.load(&asset("magika.onnx"), &options).unwrap();
    let mut again = ort.load(&path, &batch(1)).unwrap();
    let input = Random(37).magika(1);
    assert_eq!(first.run(&[("bytes", &input)]).unwrap(), again.run(&[("bytes", &input)]).unwrap());

    let refused = engine(EngineKind::Tract).load(&asset("magika.onnx"), &options).err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
}

#[test]
fn sessions_of_one_engine_run_on_several_threads_at_once() {
    for engine in engines() {
        let input = Random(41).magika(1);
        let run = || {
            let mut session = engine.load(&asset("magika.onnx"), &batch(1)).unwrap();
            session.run(&[("bytes", &input)]).unwrap()
        };
        let results = std::thread::scope(|scope| {
            let threads = [scope.spawn(run), scope.spawn(run)];
            threads.map(|t| t.join().unwrap())
        });
        assert_eq!(results[0], results[1]);
    }
}

#[test]
fn a_session_with_free_axes_goes_back_and_forth_between_many_shapes() {
    let mut sessions = load_both("models/ppocr_det.onnx", &batch(1));
    assert_eq!(sessions[0].inputs()[0].dims, vec![Some(1), Some(3), None, None]);
    let mut random = Random(43);
    let images: Vec<Tensor> = (1..=6).map(|n| random.floats(&[1, 3, 32, 32 * n])).collect();
    for image in images.iter().chain(&images[..2]) {
        assert_agree(&mut sessions, &[("x", image)], 1e-3);
    }
}

#[test]
fn threads_change_nothing_but_the_time_and_tract_says_that_it_has_one() {
    let input = Random(47).magika(1);
    let several = |kind| EngineOptions { threads: 2, ..EngineOptions::new(kind) };
    let ort = open(&several(EngineKind::Ort)).unwrap();
    assert_eq!(ort.threads(), 2);
    let run = |engine: &dyn runtime::Engine| {
        let mut session = engine.load(&asset("magika.onnx"), &batch(1)).unwrap();
        session.run(&[("bytes", &input)]).unwrap().remove(0).1
    };
    let single = engine(EngineKind::Ort);
    assert_eq!(single.threads(), 1);
    assert_eq!(harness::difference(&run(&*ort), &run(&*single), 1e-5), None);
    assert_eq!(open(&several(EngineKind::Tract)).unwrap().threads(), 1);

    let greedy = EngineOptions { threads: 100_000, ..EngineOptions::new(EngineKind::Ort) };
    assert_eq!(open(&greedy).err().unwrap().kind(), ErrorKind::Limit);
}

#[test]
fn measured_rounds_tell_the_engines_apart_without_changing_their_answers() {
    let [mut tract, mut ort] = load_both("magika.onnx", &batch(1));
    let input = Random(53).magika(1);
    let layout = runtime::measure::Rounds { rounds: 3, runs: 4, warmup: 2 };
    let results =
        runtime::measure::interleaved(&mut [&mut *tract, &mut *ort], &[("bytes", &input)], layout)
            .unwrap();
    for result in &results {
        assert_eq!(result.stats.runs, 12);
        assert!(result.stats.min_us > 10.0, "magika takes longer than that");
        assert!(result.stats.p50_us <= result.stats.p95_us);
    }
    assert!(results[0].ratio_to(&results[1]) * results[1].ratio_to(&results[0]) > 0.3);
}
