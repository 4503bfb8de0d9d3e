//! ONNX's own tests, a model and expected outputs per operator, through both engines.
#![cfg(all(feature = "tract", feature = "ort"))]
#![allow(clippy::unwrap_used)]

#[path = "support/harness.rs"]
mod harness;
#[path = "support/onnx.rs"]
mod onnx;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use runtime::{Engine, EngineError, EngineKind, ErrorKind, LoadOptions, Tensor};

/// The cases in which ONNX Runtime's answer is not the stored one, by the start of their names.
const ORT_DIFFERS: [(&str, &str); 8] = [
    ("test_bernoulli", "random"),
    ("test_training_dropout", "random"),
    ("test_cast_FLOAT_to_BFLOAT16", "the stored tensor is UINT16"),
    ("test_cast_FLOAT_to_STRING", "numbers are written otherwise"),
    ("test_castlike_FLOAT_to_STRING", "numbers are written otherwise"),
    ("test_maxunpool_export_with_output_shape", "the stored answer was corrected later"),
    ("test_resize_downsample_scales_cubic_align", "the stored answer was corrected later"),
    ("test_resize_downsample_scales_linear_align", "the stored answer was corrected later"),
];

/// What a case came to.
enum Verdict {
    Right,
    Wrong(String),
    Refused(EngineError),
}

#[derive(Default)]
struct Tally {
    right: usize,
    wrong: BTreeSet<String>,
    refused: Vec<(String, EngineError)>,
}

#[test]
fn tract_is_right_or_refuses_and_never_silently_wrong() {
    let tally = tally(EngineKind::Tract);
    assert_eq!(tally.wrong, BTreeSet::new());
    assert!(tally.right >= 770, "only {} cases are right", tally.right);
    for (case, error) in tally.refused {
        let expected = match error.kind() {
            ErrorKind::Unsupported => true,
            // What it finds out while it runs: training, and a length that depends on a value.
            ErrorKind::Run => {
                case.starts_with("test_training_dropout") || case == "test_slice_default_axes"
            }
            _ => false,
        };
        assert!(expected, "{case}: {} {error}", error.kind());
    }
}

#[test]
fn onnx_runtime_gives_the_stored_answers() {
    let tally = tally(EngineKind::Ort);
    assert!(tally.right >= 960, "only {} cases are right", tally.right);
    for wrong in tally.wrong {
        let known = ORT_DIFFERS.iter().any(|(name, _)| wrong.starts_with(name));
        assert!(known, "{wrong}");
    }
    for (case, error) in tally.refused {
        assert!(!error.to_string().contains("panicked"), "{case}: {error}");
    }
}

fn tally(kind: EngineKind) -> Tally {
    let engine = harness::engine(kind);
    let mut tally = Tally::default();
    for case in cases() {
        let name = case.file_name().unwrap().to_string_lossy().into_owned();
        match judge(&*engine, &case) {
            None => {}
            Some(Verdict::Right) => tally.right += 1,
            Some(Verdict::Wrong(why)) => {
                tally.wrong.insert(format!("{name}: {why}"));
            }
            Some(Verdict::Refused(error)) => tally.refused.push((name, error)),
        }
    }
    tally
}

fn cases() -> Vec<PathBuf> {
    let root = harness::asset("onnx-testdata");
    let mut found = Vec::new();
    for group in ["node", "simple", "pytorch-operator", "pytorch-converted"] {
        for entry in std::fs::read_dir(root.join(group)).unwrap() {
            found.push(entry.unwrap().path());
        }
    }
    found.sort();
    found
}

/// `None` where the case is not about tensors.
fn judge(engine: &dyn Engine, case: &Path) -> Option<Verdict> {
    let path = case.join("model.onnx");
    let model = std::fs::read(&path).unwrap();
    if !onnx::has_only_tensors(&model) {
        return None;
    }
    let inputs = tensors(case, "input")?;
    let wanted = tensors(case, "output")?;
    let mut session = match engine.load(&path, &LoadOptions::default()) {
        Ok(session) => session,
        Err(error) => return Some(Verdict::Refused(error)),
    };
    let names = onnx::input_names(&model);
    let named: Vec<(&str, &Tensor)> = names.iter().map(String::as_str).zip(&inputs).collect();
    let outputs = match session.run(&named) {
        Ok(outputs) => outputs,
        Err(error) => return Some(Verdict::Refused(error)),
    };
    let wrong = outputs.iter().zip(&wanted).find_map(|((name, got), wanted)| {
        Some(format!("{name}: {}", harness::difference(got, wanted, 1e-3)?))
    });
    Some(wrong.map_or(Verdict::Right, Verdict::Wrong))
}

fn tensors(case: &Path, role: &str) -> Option<Vec<Tensor>> {
    (0..)
        .map(|at| case.join(format!("test_data_set_0/{role}_{at}.pb")))
        .take_while(|path| path.exists())
        .map(|path| onnx::read_tensor(&std::fs::read(path).unwrap()))
        .collect()
}
