//! Writes the bundle: model, predictions with their intervals, lineage, self-test, reference and report.

use std::path::{Path, PathBuf};

use bundle::{
    Bundle, Case, Draft, Estimate, Lineage, NamedTensor, Predicted, SelfTest, TensorSpec,
};
use runtime::{Engine, IoSpec, LoadOptions, Tensor};

use super::shop::Source;
use super::{OriginalJob, reference};
use crate::data::Dataset;
use crate::error::CompressError;

/// Held-out samples that become golden cases.
pub(crate) const SELFTEST_CASES: usize = 4;
/// Relative tolerance of a golden output: the same engine on another processor rounds otherwise.
pub(crate) const RTOL: f32 = 1e-2;
/// Absolute tolerance of a golden output.
pub(crate) const ATOL: f32 = 1e-3;
/// What wrote the bundle.
pub(crate) const TOOL: &str = concat!("espalier ", env!("CARGO_PKG_VERSION"));

/// What a bundle says beside its model.
pub(crate) struct Label {
    pub(crate) predicted: Predicted,
    pub(crate) lineage: Lineage,
    pub(crate) report_html: Option<String>,
}

/// Runs the golden cases in `engine`, records what requests look like, and writes the bundle to the job's folder.
pub(crate) fn write(
    job: &OriginalJob,
    file: &ModelFile,
    engine: &dyn Engine,
    source: &Source,
    heldout: &Dataset,
    label: Label,
) -> Result<Bundle, CompressError> {
    let model = file.path.as_path();
    let loading = || CompressError::engine(format!("loading {}", model.display()));
    let free = engine.load(model, &LoadOptions::default()).map_err(loading())?;
    let (inputs, outputs) = (tensors(free.inputs()), tensors(free.outputs()));
    drop(free);
    let selftest = selftest(engine, model, heldout)?;
    let reference = reference::measure(engine, model, source, heldout)?;
    let wrong = |what: String| CompressError::Bundle { path: job.out_dir.clone(), what };
    let draft = Draft {
        sequence: job.sequence,
        runtime: job.engine.kind.name().to_owned(),
        device_class: job.device_class.clone(),
        inputs,
        outputs,
        predicted: label.predicted,
        lineage: label.lineage,
        external: file.external(),
        selftest,
        reference: Some(reference),
        report_html: label.report_html,
        ..Draft::new(&job.name, &job.version, bundle::Source::Path(model.to_path_buf()))
    };
    draft.write(&job.out_dir).map_err(|e| wrong(e.to_string()))
}

/// A model to put into a bundle, with its second file if it has one.
pub(crate) struct ModelFile {
    pub(crate) path: PathBuf,
    pub(crate) external: Option<PathBuf>,
}

impl ModelFile {
    fn external(&self) -> Vec<(String, bundle::Source)> {
        let named = |path: &PathBuf| {
            let name = path.file_name()?.to_string_lossy().into_owned();
            Some((name, bundle::Source::Path(path.clone())))
        };
        self.external.iter().filter_map(named).collect()
    }
}

fn tensors(specs: &[IoSpec]) -> Vec<TensorSpec> {
    specs
        .iter()
        .map(|s| TensorSpec {
            name: s.name.clone(),
            dtype: s.dtype.oip_name().to_owned(),
            dims: s
                .dims
                .iter()
                .map(|d| d.and_then(|d| i64::try_from(d).ok()).unwrap_or(-1))
                .collect(),
        })
        .collect()
}

fn selftest(
    engine: &dyn Engine,
    model: &Path,
    heldout: &Dataset,
) -> Result<SelfTest, CompressError> {
    let options = LoadOptions { batch: Some(1), ..LoadOptions::default() };
    let recording = || CompressError::engine("recording the self-test");
    let mut session = engine.load(model, &options).map_err(recording())?;
    let mut cases = Vec::new();
    for sample in 0..SELFTEST_CASES.min(heldout.len()) {
        let inputs = heldout.batch(&[sample]).map_err(recording())?;
        let borrowed: Vec<(&str, &Tensor)> = inputs.iter().map(|(n, t)| (n.as_str(), t)).collect();
        let outputs = session.run(&borrowed).map_err(recording())?;
        cases.push(Case {
            inputs: inputs.into_iter().map(named).collect(),
            outputs: outputs.into_iter().map(named).collect(),
        });
    }
    Ok(SelfTest { cases, rtol: RTOL, atol: ATOL })
}

fn named((name, tensor): (String, Tensor)) -> NamedTensor {
    let data = if tensor.strings.is_empty() {
        tensor.data
    } else {
        let lengths = |s: &String| (s.len() as u32).to_le_bytes().to_vec();
        tensor.strings.iter().flat_map(|s| [lengths(s), s.clone().into_bytes()].concat()).collect()
    };
    NamedTensor { name, dtype: tensor.dtype.oip_name().to_owned(), dims: tensor.shape, data }
}

/// A share as an estimate that was measured.
pub(crate) fn measured(share: crate::quality::Share) -> Estimate {
    Estimate {
        value: share.value,
        low: share.low,
        high: share.high,
        quality: bundle::Quality::Measured,
    }
}
