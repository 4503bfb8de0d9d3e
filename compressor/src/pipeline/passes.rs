//! Which activations are looked at together: as many as there is room for, by what they take.

use std::collections::HashMap;

use graph::{Model, TensorType, ValueId};

use super::relay::dtype;
use super::shop::Shop;
use crate::error::CompressError;

/// Bytes of one batch's activations that one pass may observe.
const PASS_BYTES: usize = 64 << 20;
/// What an activation is taken for whose size cannot be inferred.
const UNKNOWN_BYTES: usize = PASS_BYTES / 16;

/// What the activations of one batch take.
#[derive(Debug, Default)]
pub(crate) struct Passes {
    bytes: HashMap<ValueId, usize>,
}

impl Passes {
    /// Of the source, run over the calibration samples.
    pub(crate) fn of(shop: &Shop<'_>) -> Result<Self, CompressError> {
        let batches = shop.runner.batches(&shop.calibration, 0..shop.calibration.len());
        let Some(first) = batches.first() else { return Ok(Self::default()) };
        let file = shop.calibration.file().display();
        let samples = shop.calibration.batch(first);
        let samples = samples.map_err(CompressError::engine(format!("reading {file}")))?;
        let graph = &shop.source.model.graph;
        let inputs = samples.into_iter().filter_map(|(name, tensor)| {
            let dims = tensor.shape.iter().map(|size| graph::Dim::Fixed(*size)).collect();
            let ty = TensorType { dtype: dtype(tensor.dtype)?, dims: Some(dims) };
            Some((graph.value_by_name(&name)?, ty))
        });
        Ok(Self::given(&shop.source.model, &inputs.collect()))
    }

    /// Of `model`, whose `inputs` are so.
    fn given(model: &Model, inputs: &HashMap<ValueId, TensorType>) -> Self {
        let shapes = graph::infer_given(model, inputs);
        let sizes = model.graph.values().filter_map(|(value, _)| {
            let count = shapes.fixed_dims(value)?.into_iter().fold(1, usize::saturating_mul);
            Some((value, count.saturating_mul(shapes.dtype(value)?.size()?)))
        });
        Self { bytes: sizes.collect() }
    }

    /// What the next pass takes of `values`, at least one of them, and the rest.
    pub(crate) fn split<'v, T>(
        &self,
        values: &'v [T],
        id: impl Fn(&T) -> ValueId,
    ) -> (&'v [T], &'v [T]) {
        let mut bytes = 0usize;
        let beyond = values.iter().position(|value| {
            let own = self.bytes.get(&id(value)).copied().unwrap_or(UNKNOWN_BYTES);
            bytes = bytes.saturating_add(own);
            bytes > PASS_BYTES
        });
        values.split_at(beyond.map_or(values.len(), |at| at.max(1)))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use graph::{DType, Dim};

    use super::*;
    use crate::pipeline::testing::mlp;

    #[test]
    fn a_pass_takes_what_there_is_room_for_and_never_nothing() {
        let id = |at: &u32| ValueId(*at);
        let passes = |mib: &[usize]| Passes {
            bytes: mib
                .iter()
                .enumerate()
                .map(|(at, mib)| (ValueId(at as u32), mib << 20))
                .collect(),
        };
        let first = |mib: &[usize], values: &[u32]| passes(mib).split(values, id).0.len();
        assert_eq!(first(&[32, 32, 1], &[0, 1, 2]), 2);
        assert_eq!(first(&[1, 1, 1], &[0, 1, 2]), 3);
        assert_eq!(first(&[500, 1], &[0, 1]), 1, "one that has no room goes alone");
        assert_eq!(first(&[1, 500], &[0, 1]), 1);
        assert_eq!(first(&[], &[0; 40]), 16, "of unknown size");
        assert_eq!(first(&[], &[]), 0);
    }

    #[test]
    fn sizes_follow_from_what_the_samples_are() {
        let model = mlp(&[4, 8, 2]);
        let input = model.graph.inputs()[0];
        let dims = Some(vec![Dim::Fixed(3), Dim::Fixed(4)]);
        let given = HashMap::from([(input, TensorType { dtype: DType::F32, dims })]);
        let sizes = Passes::given(&model, &given);
        assert_eq!(sizes.bytes[&model.graph.outputs()[0]], 3 * 2 * 4);
    }
}
