//! The official node tests of ONNX: expected outputs of every operator that the executor implements.

#![allow(clippy::unwrap_used, clippy::print_stderr, missing_docs)]

mod common;

use std::collections::HashMap;
use std::path::Path;

use common::{assets, compare, tensor_file};
use exec::{ExecError, Executor};
use graph::{Model, Tensor};

/// Tests of implemented operators that are not passed, and why.
const SKIPS: &[(&str, &str)] = &[
    ("test_cast_BFLOAT16_to_FLOAT", STORED_AS_U16),
    ("test_cast_FLOAT_to_BFLOAT16", STORED_AS_U16),
    ("test_castlike_BFLOAT16_to_FLOAT_expanded", STORED_AS_U16),
    ("test_castlike_FLOAT_to_BFLOAT16_expanded", STORED_AS_U16),
];

const STORED_AS_U16: &str =
    "the data files hold the bits of bfloat16 as uint16, against the model's types";

enum Verdict {
    Passed,
    /// The executor says so itself, naming the operator.
    Unsupported(String),
    Unreadable(String),
    Failed(String),
}

#[test]
fn every_supported_operator_computes_the_official_outputs() {
    let root = assets().join("onnx-testdata/node");
    let mut folders: Vec<_> =
        std::fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    let (mut passed, mut wrong) = (0, Vec::new());
    for folder in &folders {
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let skip = SKIPS.iter().find(|(skipped, _)| *skipped == name);
        match (check(folder), skip) {
            (Verdict::Passed, None) => passed += 1,
            (Verdict::Passed, Some(_)) => {
                wrong.push(format!("{name}: passes now, remove it from SKIPS"))
            }
            (Verdict::Failed(why), None) => wrong.push(format!("{name}: {why}")),
            (Verdict::Failed(_), Some(_)) => {}
            (Verdict::Unsupported(why) | Verdict::Unreadable(why), _) => eprintln!("{name}: {why}"),
        }
    }
    eprintln!("{passed} passed of {}", folders.len());
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert!(passed >= 515, "only {passed} tests ran");
}

fn check(folder: &Path) -> Verdict {
    let model = match Model::load(folder.join("model.onnx")) {
        Ok(model) => model,
        Err(error) => return Verdict::Failed(error.to_string()),
    };
    let executor = match Executor::new(&model) {
        Ok(executor) => executor,
        Err(error) => return Verdict::Unsupported(error.to_string()),
    };
    let data = folder.join("test_data_set_0");
    let (inputs, wanted) = match (files(&data, "input"), files(&data, "output")) {
        (Ok(inputs), Ok(wanted)) => (inputs, wanted),
        (Err(why), _) | (_, Err(why)) => return Verdict::Unreadable(why),
    };
    let names = model.graph.inputs().iter().map(|&value| model.graph.value(value).name.clone());
    let inputs: HashMap<String, Tensor> = names.zip(inputs).collect();
    let outputs = model.graph.outputs();
    match executor.run(inputs, outputs) {
        Ok(found) => {
            for (output, want) in outputs.iter().zip(&wanted) {
                if let Err(why) = compare(&found[output], want, 1e-3, 1e-6) {
                    return Verdict::Failed(why);
                }
            }
            Verdict::Passed
        }
        Err(error @ ExecError::Unsupported { .. }) => Verdict::Unsupported(error.to_string()),
        Err(error) => Verdict::Failed(error.to_string()),
    }
}

fn files(folder: &Path, kind: &str) -> Result<Vec<Tensor>, String> {
    (0..)
        .map(|index| folder.join(format!("{kind}_{index}.pb")))
        .take_while(|path| path.exists())
        .map(|path| {
            tensor_file(&std::fs::read(&path).unwrap()).map_err(|why| format!("{kind}: {why}"))
        })
        .collect()
}
