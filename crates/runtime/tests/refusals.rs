//! Wrong, missing and hostile models and inputs: both engines refuse them with a typed error that
//! says what is wrong, and go on working.
#![cfg(all(feature = "tract", feature = "ort"))]
#![allow(clippy::unwrap_used)]

#[path = "support/harness.rs"]
mod harness;
#[path = "support/onnx.rs"]
mod onnx;

use std::path::Path;

use harness::{Random, asset, batch, engine, engines};
use onnx::{Dim, model, node, type_number, unary, value_info, with_external_weight};
use runtime::{ElementType, Engine, EngineError, EngineKind, ErrorKind, LoadOptions, Tensor};

const ROWS: [Dim; 2] = [Dim::Named("rows"), Dim::Fixed(2)];

fn load(engine: &dyn Engine, path: &Path) -> EngineError {
    engine
        .load(path, &LoadOptions::default())
        .err()
        .unwrap_or_else(|| panic!("{} loaded {}", engine.kind(), path.display()))
}

fn floats(shape: &[usize]) -> Tensor {
    Random(3).floats(shape)
}

#[test]
fn both_engines_refuse_unfitting_inputs_with_the_same_words_and_go_on() {
    let good = floats(&[3, 2]);
    let wide = floats(&[3, 4]);
    let flat = floats(&[6]);
    let whole = Tensor::from_i32(vec![3, 2], &[0; 6]).unwrap();
    let mut short = good.clone();
    short.data.pop();
    for engine in engines() {
        let bytes = unary("Neg", 1, &ROWS);
        let mut session = engine.load_bytes(&bytes, &LoadOptions::default()).unwrap();
        for (inputs, wanted) in [
            (vec![], "input \"x\" is missing (FP32 [?, 2])"),
            (vec![("y", &good)], "there is no input \"y\"; the model takes \"x\""),
            (vec![("x", &good), ("x", &good)], "input \"x\" is given twice"),
            (vec![("x", &whole)], "input \"x\" wants FP32, got INT32"),
            (vec![("x", &wide)], "input \"x\" wants shape [?, 2], got [3, 4]"),
            (vec![("x", &flat)], "input \"x\" wants shape [?, 2], got [6]"),
            (vec![("x", &short)], "input \"x\": FP32 of shape [3, 2] needs 24 bytes, got 23"),
        ] {
            let error = session.run(&inputs).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Input, "{}", engine.kind());
            assert_eq!(error.to_string(), wanted, "{}", engine.kind());
        }
        assert_eq!(session.run(&[("x", &good)]).unwrap()[0].1.shape, [3, 2]);
    }
}

#[test]
fn a_fixed_batch_is_held_to_and_a_batch_of_nothing_is_refused() {
    let bytes = unary("Neg", 1, &ROWS);
    for engine in engines() {
        let mut session = engine.load_bytes(&bytes, &batch(3)).unwrap();
        assert_eq!(session.inputs()[0].dims, [Some(3), Some(2)]);
        assert_eq!(session.outputs()[0].dims, [Some(3), Some(2)]);
        session.run(&[("x", &floats(&[3, 2]))]).unwrap();
        let error = session.run(&[("x", &floats(&[4, 2]))]).unwrap_err();
        assert_eq!(error.to_string(), "input \"x\" wants shape [3, 2], got [4, 2]");
        let error = engine.load_bytes(&bytes, &batch(0)).err().unwrap();
        assert_eq!(error.to_string(), "a batch of 0 computes nothing");
    }
}

#[test]
fn an_empty_tensor_goes_in_and_comes_out() {
    for engine in engines() {
        let bytes = unary("Neg", 1, &ROWS);
        let mut session = engine.load_bytes(&bytes, &LoadOptions::default()).unwrap();
        let outputs = session.run(&[("x", &floats(&[0, 2]))]).unwrap();
        assert_eq!(outputs[0].1.shape, [0, 2], "{}", engine.kind());
    }
}

#[test]
fn not_a_number_and_infinity_pass_through() {
    let values = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0];
    let input = Tensor::from_f32(vec![2, 2], &values).unwrap();
    for engine in engines() {
        let bytes = unary("Neg", 1, &ROWS);
        let mut session = engine.load_bytes(&bytes, &LoadOptions::default()).unwrap();
        let output = session.run(&[("x", &input)]).unwrap()[0].1.to_f32().unwrap();
        assert!(output[0].is_nan(), "{}", engine.kind());
        assert_eq!(output[1..], [f32::NEG_INFINITY, f32::INFINITY, 0.0]);
    }
}

#[test]
fn every_element_type_goes_through_unchanged_or_is_refused_by_name() {
    for engine in engines() {
        for dtype in ElementType::ALL {
            let bytes = unary("Identity", type_number(dtype), &ROWS);
            let session = engine.load_bytes(&bytes, &LoadOptions::default());
            let tract = engine.kind() == EngineKind::Tract;
            if tract && matches!(dtype, ElementType::Bf16 | ElementType::String) {
                let error = session.err().unwrap();
                assert_eq!(error.kind(), ErrorKind::Unsupported);
                assert!(error.to_string().contains(dtype.oip_name()), "{error}");
                continue;
            }
            let input = match dtype.size() {
                None => {
                    let words = ["", "a", "ü", "two words"].map(String::from);
                    Tensor::from_strings(vec![2, 2], words.to_vec()).unwrap()
                }
                Some(size) => {
                    let data = (0..4 * size).map(|n| u8::from(n % 3 == 0)).collect();
                    Tensor::new(dtype, vec![2, 2], data).unwrap()
                }
            };
            let mut session = session.unwrap();
            assert_eq!(session.inputs()[0].dtype, dtype);
            let outputs = session.run(&[("x", &input)]).unwrap();
            assert_eq!(outputs[0].1, input, "{} {dtype}", engine.kind());
        }
    }
}

#[test]
fn a_string_that_c_cannot_hold_is_refused() {
    let bytes = unary("Identity", type_number(ElementType::String), &[Dim::Fixed(1)]);
    let mut session = engine(EngineKind::Ort).load_bytes(&bytes, &LoadOptions::default()).unwrap();
    let input = Tensor::from_strings(vec![1], vec!["a\0b".into()]).unwrap();
    let error = session.run(&[("x", &input)]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Input, "{error}");
}

#[test]
fn what_is_no_model_file_is_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let missing = folder.path().join("missing.onnx");
    for engine in engines() {
        for (path, wanted) in [
            (missing.clone(), "No such file"),
            (folder.path().to_path_buf(), "is a directory"),
            (Path::new("/dev/null").to_path_buf(), "not a regular file"),
            (write("empty.onnx", b""), "is empty"),
            (write("text.onnx", b"this is no model\n"), "text.onnx"),
            (write("image.onnx", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"), "image.onnx"),
            (write("zeros.onnx", &[0; 4096]), "zeros.onnx"),
        ] {
            let error = load(&*engine, &path);
            assert_eq!(error.kind(), ErrorKind::Load, "{error}");
            let text = error.to_string();
            assert!(text.contains(wanted), "{}: {text}", engine.kind());
            assert!(text.contains(path.to_str().unwrap()), "{text}");
        }
        let error = engine.load_bytes(b"", &LoadOptions::default()).err().unwrap();
        assert_eq!(error.to_string(), "the model is empty");
    }
}

#[test]
fn a_truncated_model_is_refused_wherever_it_was_cut() {
    let whole = std::fs::read(asset("magika.onnx")).unwrap();
    let cuts = [1, 2, 10, 100, 5000, whole.len() / 2, whole.len() - 1];
    for engine in engines() {
        for cut in cuts {
            let error = engine
                .load_bytes(&whole[..cut], &batch(1))
                .err()
                .unwrap_or_else(|| panic!("{} took {cut} bytes", engine.kind()));
            assert_eq!(error.kind(), ErrorKind::Load, "{cut} bytes: {error}");
        }
    }
}

#[test]
fn flipped_bits_are_an_error_or_a_model_but_never_a_crash() {
    let path = asset("onnx-testdata/node/test_conv_with_strides_padding/model.onnx");
    let whole = std::fs::read(path).unwrap();
    let mut random = Random(61);
    let mut refused = 0;
    for engine in engines() {
        for _ in 0..300 {
            let mut bytes = whole.clone();
            let at = random.next() as usize % bytes.len();
            bytes[at] ^= 1 << (random.next() % 8);
            match engine.load_bytes(&bytes, &LoadOptions::default()) {
                Ok(_) => {}
                Err(error) => {
                    refused += 1;
                    assert!(error.to_string().len() < 4000, "{error}");
                }
            }
        }
    }
    assert!(refused > 50, "only {refused} of 600 were refused");
}

#[test]
fn an_unknown_operator_is_unsupported_and_named() {
    for engine in engines() {
        let bytes = unary("Frobnicate", 1, &ROWS);
        for options in [batch(1), LoadOptions::default()] {
            let error = engine.load_bytes(&bytes, &options).err().unwrap();
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
            assert!(error.to_string().contains("Frobnicate"), "{error}");
        }
    }
}

#[test]
fn a_graph_whose_ends_lead_nowhere_is_refused() {
    let x = || [value_info("x", 1, &ROWS)];
    let y = || [value_info("y", 1, &ROWS)];
    let dangling_output = model(&[node("Neg", &["x"], &["z"])], &[], &x(), &y());
    let dangling_input = model(&[node("Neg", &["nowhere"], &["y"])], &[], &x(), &y());
    let cycle = model(
        &[node("Neg", &["b"], &["a"]), node("Neg", &["a"], &["b"]), node("Neg", &["a"], &["y"])],
        &[],
        &x(),
        &y(),
    );
    for engine in engines() {
        for bytes in [&dangling_output, &dangling_input, &cycle] {
            let error = engine.load_bytes(bytes, &batch(1)).err().unwrap();
            assert!(
                matches!(error.kind(), ErrorKind::Load | ErrorKind::Unsupported),
                "{}: {error}",
                engine.kind()
            );
        }
    }
}

#[test]
fn what_is_no_tensor_is_unsupported() {
    let bytes = model(
        &[node("SequenceLength", &["x"], &["y"])],
        &[],
        &[onnx::sequence_info("x", 1)],
        &[value_info("y", 7, &[])],
    );
    for engine in engines() {
        let error = engine.load_bytes(&bytes, &batch(1)).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(error.to_string().contains("only tensors"), "{error}");
    }
}

#[test]
fn external_data_is_read_beside_the_model_and_nowhere_else() {
    let folder = tempfile::tempdir().unwrap();
    let inside = folder.path().join("inside");
    std::fs::create_dir(&inside).unwrap();
    let weight: Vec<u8> = [1.0_f32, 2.0].iter().flat_map(|v| v.to_le_bytes()).collect();
    std::fs::write(folder.path().join("outside.bin"), &weight).unwrap();
    std::fs::write(inside.join("w.bin"), &weight).unwrap();
    std::fs::write(inside.join("short.bin"), &weight[..5]).unwrap();
    let absolute = folder.path().join("outside.bin");
    let path = inside.join("model.onnx");
    let input = Tensor::from_f32(vec![2], &[10.0, 20.0]).unwrap();
    for engine in engines() {
        std::fs::write(&path, with_external_weight("w.bin", 2)).unwrap();
        let mut session = engine.load(&path, &LoadOptions::default()).unwrap();
        let outputs = session.run(&[("x", &input)]).unwrap();
        assert_eq!(outputs[0].1.to_f32().unwrap(), [11.0, 22.0]);
        for location in ["../outside.bin", absolute.to_str().unwrap(), "missing.bin", "short.bin"] {
            std::fs::write(&path, with_external_weight(location, 2)).unwrap();
            let error = load(&*engine, &path);
            assert!(
                matches!(error.kind(), ErrorKind::Load | ErrorKind::Unsupported),
                "{} {location}: {error}",
                engine.kind()
            );
        }
    }
}

#[test]
fn an_optimized_model_that_cannot_be_written_is_a_load_error() {
    let options = LoadOptions {
        optimized_model_path: Some("/nonexistent/folder/optimized.onnx".into()),
        ..LoadOptions::default()
    };
    let error =
        engine(EngineKind::Ort).load_bytes(&unary("Neg", 1, &ROWS), &options).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Load, "{error}");
}
