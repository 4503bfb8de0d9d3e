//! Activations as they stream by: their moments along axes, and how their channels go together.

use std::collections::HashMap;

use graph::ValueId;
use runtime::{ElementType, Tensor};

use super::observe::{floats, rows_along, spread_stride};
use crate::calibrate::Batch;
use crate::error::CompressError;
use crate::gram::{ChannelGram, MAX_CHANNELS, rows_wanted};
use crate::refit::MAX_GRAM_BYTES;
use crate::score::{AxisMoments, Evidence};

/// A value and one of its axes.
pub(crate) type Key = (ValueId, usize);

/// An activation whose channel Gram is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Watch {
    pub(crate) key: Key,
    /// Every how-manieth row of a batch is taken; 0 until the first batch says what is affordable.
    pub(crate) stride: usize,
    /// The first so many samples are taken.
    pub(crate) samples: usize,
}

/// What is gathered of some activations along some axes.
#[derive(Default)]
pub(crate) struct Seen {
    /// Axes whose moments are wanted.
    axes: Vec<Key>,
    watches: Vec<Watch>,
    evidence: Evidence,
    samples: usize,
    /// Of all channel Grams.
    bytes: usize,
}

impl Seen {
    pub(crate) fn new(axes: &[Key], watches: Vec<Watch>) -> Self {
        Self { axes: axes.to_vec(), watches, ..Self::default() }
    }

    /// The values to observe.
    pub(crate) fn values(&self) -> impl Iterator<Item = ValueId> {
        self.axes.iter().map(|(v, _)| *v).chain(self.watches.iter().map(|w| w.key.0))
    }

    /// Takes a batch whose outputs are `values`.
    pub(crate) fn take(&mut self, values: &[ValueId], batch: &Batch) -> Result<(), CompressError> {
        for (value, (_, tensor)) in values.iter().zip(&batch.outputs) {
            let mut keys = self.axes.iter().chain(self.watches.iter().map(|watch| &watch.key));
            if tensor.dtype == ElementType::F32 && keys.any(|key| key.0 == *value) {
                self.take_one(*value, tensor, &floats(tensor)?, batch);
            }
        }
        self.samples += batch.samples.len();
        Ok(())
    }

    /// Takes what one value is, as a tensor and as numbers.
    fn take_one(&mut self, value: ValueId, tensor: &Tensor, data: &[f32], batch: &Batch) {
        for key in self.axes.iter().filter(|key| key.0 == value) {
            let Some(&width) = tensor.shape.get(key.1) else { continue };
            let moments = self.evidence.moments.entry(*key);
            let moments = moments.or_insert_with(|| AxisMoments::new(width));
            moments.push(&tensor.shape, key.1, data);
        }
        for watch in self.watches.iter_mut().filter(|watch| watch.key.0 == value) {
            if self.samples >= watch.samples {
                continue;
            }
            if let Err(why) = admit(&mut self.evidence, &mut self.bytes, watch, tensor, batch) {
                self.evidence.grams.remove(&watch.key);
                self.evidence.without_gram.insert(watch.key, why);
            } else if let Some(gram) = self.evidence.grams.get_mut(&watch.key) {
                gram.push(&rows_along(data, &tensor.shape, watch.key.1, watch.stride));
            }
        }
    }

    /// Takes in what another pass gathered.
    pub(crate) fn extend(&mut self, other: Self) {
        self.axes.extend(other.axes);
        self.watches.extend(other.watches);
        // Which began with the bytes of these.
        self.bytes = other.bytes;
        self.evidence.moments.extend(other.evidence.moments);
        self.evidence.grams.extend(other.evidence.grams);
        self.evidence.without_gram.extend(other.evidence.without_gram);
    }

    /// A gatherer for a pass of its own, of what is left of the limit on memory.
    pub(crate) fn another(&self, axes: &[Key], watches: Vec<Watch>) -> Self {
        Self { bytes: self.bytes, ..Self::new(axes, watches) }
    }

    /// What was gathered, the strides that were taken, and the values that showed nothing.
    pub(crate) fn finish(mut self) -> (Evidence, Vec<Watch>, Vec<ValueId>) {
        self.evidence.grams.values_mut().for_each(ChannelGram::settle);
        let moments = &self.evidence.moments;
        let unseen = self.axes.iter().filter(|key| !moments.contains_key(key));
        let unseen = unseen.map(|(value, _)| *value).collect();
        (self.evidence, self.watches, unseen)
    }
}

/// Makes room for a Gram at its first batch, and settles its stride.
fn admit(
    evidence: &mut Evidence,
    bytes: &mut usize,
    watch: &mut Watch,
    tensor: &Tensor,
    batch: &Batch,
) -> Result<(), String> {
    if let Some(why) = evidence.without_gram.get(&watch.key) {
        return Err(why.clone());
    }
    let width = tensor.shape.get(watch.key.1).copied().unwrap_or(0);
    if let Some(gram) = evidence.grams.get(&watch.key) {
        if gram.width() != width {
            return Err("its width changes from sample to sample".into());
        }
        return Ok(());
    }
    if width == 0 || width > MAX_CHANNELS {
        return Err(format!("its width of {width} is not within MAX_CHANNELS = {MAX_CHANNELS}"));
    }
    let own = 8 * width * width;
    if *bytes + own > MAX_GRAM_BYTES {
        return Err(format!(
            "the Gram matrices of its model take more than MAX_GRAM_BYTES = {MAX_GRAM_BYTES}"
        ));
    }
    if watch.stride == 0 {
        let rows = tensor.shape.iter().product::<usize>() / width / batch.samples.len().max(1);
        watch.stride = spread_stride(rows, watch.samples, rows_wanted(width));
    }
    *bytes += own;
    evidence.grams.insert(watch.key, ChannelGram::new(width));
    Ok(())
}

/// The strides of `watches`, by key.
pub(crate) fn by_key(watches: &[Watch]) -> HashMap<Key, Watch> {
    watches.iter().map(|w| (w.key, *w)).collect()
}
