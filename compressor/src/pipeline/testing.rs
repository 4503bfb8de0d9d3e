//! Jobs on small models for this folder's tests.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use graph::Model;
use runtime::{EngineKind, EngineOptions};

use super::{CompressJob, Goal, Judging};

#[path = "../../tests/support/nets.rs"]
mod nets;

pub(crate) use nets::{mlp, noise, samples, weight};

/// A job on `model` in `folder`, in tract, with `calibration` samples and a quarter as many to judge by.
pub(crate) fn job(folder: &Path, model: &Model, width: usize, calibration: usize) -> CompressJob {
    job_of(folder, model, &[width], calibration)
}

/// As [`job`], with samples of shape `dims`.
pub(crate) fn job_of(
    folder: &Path,
    model: &Model,
    dims: &[usize],
    calibration: usize,
) -> CompressJob {
    let source = folder.join("model.onnx");
    model.save(&source).unwrap();
    let (fit, judge) = (folder.join("fit.npz"), folder.join("judge.npz"));
    samples(&fit, calibration, dims, 1);
    samples(&judge, calibration / 4, dims, 2);
    CompressJob {
        name: "m".into(),
        source,
        calibration: fit,
        heldout: judge,
        engine: EngineOptions::new(EngineKind::Tract),
        goal: Goal {
            latency_p95_us: None,
            memory_bytes: None,
            size_bytes: Some(1 << 30),
            agreement_min: 0.0,
        },
        judging: Judging::default(),
        baseline: None,
        current_model: None,
        device_class: bundle::ANY.into(),
        sequence: 1,
        version: "1".into(),
        out_dir: folder.join("bundle"),
        work_dir: Some(PathBuf::from(folder)),
        seed: 3,
    }
}
