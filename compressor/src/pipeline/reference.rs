//! What the chosen model's inputs and outputs look like on held-out samples: the file that a device
//! holds its requests against.

use std::path::Path;

use bundle::{
    Feature, FeatureReference, MAX_REFERENCE_TENSORS, MAX_TENSOR_NAME_BYTES, REFERENCE_VERSION,
    Reference, Rows, Side, TensorReference,
};
use runtime::features::{self, MAX_ROW_ELEMENTS};
use runtime::{ElementType, Engine, IoSpec, LoadOptions, Tensor};

use super::kinds;
use super::shop::Source;
use crate::data::Dataset;
use crate::error::CompressError;
use crate::quality::{Answer, Comparison, distributions};

/// The most held-out samples that are run; of more, every so many. A device tests a few hundred requests
/// at a time, and what it can see hardly depends on a reference beyond that.
pub(crate) const MAX_SAMPLES: usize = 512;

/// Runs the model at `path` on held-out samples one by one, and counts what goes in and what comes out.
///
/// # Errors
/// The engine refuses the model or a sample.
pub(crate) fn measure(
    engine: &dyn Engine,
    path: &Path,
    source: &Source,
    heldout: &Dataset,
) -> Result<Reference, CompressError> {
    let running = || CompressError::engine("recording what requests look like");
    let free = engine.load(path, &LoadOptions::default()).map_err(running())?;
    let options = LoadOptions { batch: Some(1), ..LoadOptions::default() };
    let mut session = engine.load(path, &options).map_err(running())?;
    let labels = heldout.labels().filter(|_| free.outputs().len() == 1);
    let (mut inputs, mut outputs) = (Vec::new(), Vec::new());
    let step = heldout.len().div_ceil(MAX_SAMPLES).max(1);
    let mut samples = 0;
    for sample in (0..heldout.len()).step_by(step) {
        let given = heldout.batch(&[sample]).map_err(running())?;
        let borrowed: Vec<(&str, &Tensor)> = given.iter().map(|(n, t)| (n.as_str(), t)).collect();
        let answers = session.run(&borrowed).map_err(running())?;
        if samples == 0 {
            inputs = probes(Side::Input, free.inputs(), &given, |_, _| None);
            outputs = probes(Side::Output, free.outputs(), &answers, |name, tensor| {
                rows(source, name, tensor, labels)
            });
        }
        inputs.iter_mut().for_each(|probe| probe.look(&given, samples));
        outputs.iter_mut().for_each(|probe| probe.look(&answers, samples));
        samples += 1;
    }
    let probes = inputs.into_iter().chain(outputs).take(MAX_REFERENCE_TENSORS);
    let tensors = probes.map(Probe::distribution).collect();
    Ok(Reference { version: REFERENCE_VERSION, samples, tensors })
}

/// One tensor and what its features were, sample by sample.
struct Probe {
    tensor: TensorReference,
    values: Vec<(Feature, Vec<f64>)>,
}

impl Probe {
    fn look(&mut self, tensors: &[(String, Tensor)], turn: u64) {
        let Some((_, tensor)) = tensors.iter().find(|(name, _)| *name == self.tensor.name) else {
            return;
        };
        let TensorReference { batched, rows, .. } = self.tensor;
        for (feature, values) in &mut self.values {
            values.extend(feature_of(*feature, tensor, batched, rows, turn));
        }
    }

    fn distribution(self) -> TensorReference {
        let features = self.values.into_iter().map(|(feature, values)| match feature {
            Feature::Class => FeatureReference::classes(&values),
            other => FeatureReference::ordered(other, &values),
        });
        TensorReference { features: features.collect(), ..self.tensor }
    }
}

/// What a sample's tensor gives to a feature; a row without a class gives a class that there is not.
fn feature_of(
    feature: Feature,
    tensor: &Tensor,
    batched: bool,
    rows: Option<Rows>,
    turn: u64,
) -> Option<f64> {
    let summary = || features::summary(tensor, batched, turn);
    let choice = || rows.and_then(|r| features::choice(tensor, r.axis, r.scores, turn));
    match feature {
        Feature::Mean => summary().map(|s| s.mean),
        Feature::Deviation => summary().map(|s| s.deviation),
        Feature::Zeros => summary().map(|s| s.zeros),
        Feature::Nonfinite => summary().map(|s| s.nonfinite),
        Feature::Value => features::value(tensor, batched, turn),
        Feature::Class => choice().map(|c| c.class.map_or(f64::NAN, |class| class as f64)),
        Feature::Confidence => choice().map(|c| c.confidence),
    }
}

fn probes(
    side: Side,
    specs: &[IoSpec],
    first: &[(String, Tensor)],
    rows: impl Fn(&str, &Tensor) -> Option<Rows>,
) -> Vec<Probe> {
    let probe = |spec: &IoSpec| {
        let (_, tensor) = first.iter().find(|(name, _)| *name == spec.name)?;
        let short = spec.name.len() <= MAX_TENSOR_NAME_BYTES;
        if tensor.dtype == ElementType::String || tensor.is_empty() || !short {
            return None;
        }
        let rows = rows(&spec.name, tensor);
        let wanted = wanted(side, tensor.len(), rows);
        Some(Probe {
            tensor: TensorReference {
                side,
                name: spec.name.clone(),
                batched: spec.dims.first() == Some(&None) && tensor.shape.first() == Some(&1),
                rows,
                features: Vec::new(),
            },
            values: wanted.iter().map(|feature| (*feature, Vec::new())).collect(),
        })
    };
    specs.iter().filter_map(probe).collect()
}

fn wanted(side: Side, elements: usize, rows: Option<Rows>) -> &'static [Feature] {
    match (side, elements) {
        (Side::Input, 1) => &[Feature::Nonfinite, Feature::Value],
        (Side::Input, _) => {
            &[Feature::Mean, Feature::Deviation, Feature::Zeros, Feature::Nonfinite, Feature::Value]
        }
        (Side::Output, _) if rows.is_some() => &[Feature::Class, Feature::Confidence],
        (Side::Output, 1) => &[Feature::Value],
        (Side::Output, _) => &[Feature::Mean, Feature::Deviation, Feature::Value],
    }
}

/// Where the rows of an output lie that gives classes.
fn rows(source: &Source, name: &str, tensor: &Tensor, labels: Option<&[i64]>) -> Option<Rows> {
    let data = tensor.to_f32().ok()?;
    let answer = Answer { shape: tensor.shape.clone(), data };
    let compared = kinds::compared(source, name, &answer, labels);
    let axis = compared.axis.filter(|_| compared.by == Comparison::Class)?;
    let width = answer.shape.get(axis).copied().unwrap_or(0);
    (2..=MAX_ROW_ELEMENTS)
        .contains(&width)
        .then(|| Rows { axis, scores: !distributions(&answer, axis) })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_row_that_chooses_nothing_falls_into_the_cell_of_unknown_classes() {
        let rows = Some(Rows { axis: 1, scores: true });
        let broken = Tensor::from_f32(vec![1, 2], &[f32::NAN, 1.0]).unwrap();
        let value = feature_of(Feature::Class, &broken, true, rows, 0).unwrap();
        let feature = FeatureReference::classes(&[0.0, 1.0, 1.0]);
        assert_eq!(feature.cell(value), 2);
        let confidence = feature_of(Feature::Confidence, &broken, true, rows, 0).unwrap();
        assert_eq!(FeatureReference::ordered(Feature::Confidence, &[0.5]).cell(confidence), 2);
    }
}
