//! Activations as they stream by: their moments along axes, and how their channels go together.

use std::collections::HashMap;

use graph::ValueId;
use rayon::iter::{IntoParallelIterator, ParallelIterator};
use runtime::{ElementType, Tensor};

use super::observe::{Every, distinct, floats, rows_along, spread_stride};
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
    /// One for each value.
    lookouts: Vec<Lookout>,
    samples: usize,
    /// Of all channel Grams.
    bytes: usize,
}

impl Seen {
    /// Of the moments along `axes`, and the channel Grams of `watches`.
    pub(crate) fn new(axes: &[Key], watches: Vec<Watch>) -> Self {
        let values = axes.iter().chain(watches.iter().map(|w| &w.key)).map(|key| key.0);
        let lookouts = distinct(values).into_iter().map(|value| {
            let own = |key: &Key| key.0 == value;
            Lookout {
                value,
                axes: axes.iter().copied().filter(own).map(|(_, axis)| (axis, None)).collect(),
                grams: watches.iter().copied().filter(|w| own(&w.key)).map(Channels::new).collect(),
            }
        });
        Self { lookouts: lookouts.collect(), ..Self::default() }
    }

    /// The values to observe.
    pub(crate) fn values(&self) -> impl Iterator<Item = ValueId> {
        self.lookouts.iter().map(|lookout| lookout.value)
    }

    /// Takes a batch whose outputs are `values`. What there is room for is settled in order; the values are then
    /// looked at side by side, each by itself, and so what comes out does not depend on how many cores there are.
    pub(crate) fn take(&mut self, values: &[ValueId], batch: &Batch) -> Result<(), CompressError> {
        let outputs: HashMap<ValueId, &Tensor> = values
            .iter()
            .zip(&batch.outputs)
            .filter(|(_, (_, tensor))| tensor.dtype == ElementType::F32)
            .map(|(value, (_, tensor))| (*value, tensor))
            .collect();
        let (taken, samples) = (self.samples, batch.samples.len());
        let mut ready: Vec<(&mut Lookout, &Tensor)> = Vec::new();
        for lookout in &mut self.lookouts {
            let Some(tensor) = outputs.get(&lookout.value) else { continue };
            for channels in &mut lookout.grams {
                channels.admit(tensor, samples, &mut self.bytes);
            }
            ready.push((lookout, *tensor));
        }
        let looked = ready.into_par_iter().map(|(lookout, tensor)| lookout.look(tensor, taken));
        looked.collect::<Result<(), _>>()?;
        self.samples += samples;
        Ok(())
    }

    /// Takes in what another pass gathered.
    pub(crate) fn extend(&mut self, other: Self) {
        self.lookouts.extend(other.lookouts);
        // Which began with the bytes of these.
        self.bytes = other.bytes;
    }

    /// A gatherer for a pass of its own, of what is left of the limit on memory.
    pub(crate) fn another(&self, axes: &[Key], watches: Vec<Watch>) -> Self {
        Self { bytes: self.bytes, ..Self::new(axes, watches) }
    }

    /// What was gathered, the strides that were taken, and the values that showed nothing.
    pub(crate) fn finish(self) -> (Evidence, Vec<Watch>, Vec<ValueId>) {
        let mut evidence = Evidence::default();
        let (mut watches, mut unseen) = (Vec::new(), Vec::new());
        for Lookout { value, axes, grams } in self.lookouts {
            for (axis, moments) in axes {
                match moments {
                    Some(moments) => drop(evidence.moments.insert((value, axis), moments)),
                    None => unseen.push(value),
                }
            }
            for Channels { watch, gram, .. } in grams {
                watches.push(watch);
                match gram {
                    Some(Ok(mut gram)) => {
                        gram.settle();
                        evidence.grams.insert(watch.key, gram);
                    }
                    Some(Err(why)) => drop(evidence.without_gram.insert(watch.key, why)),
                    None => {}
                }
            }
        }
        (evidence, watches, unseen)
    }
}

/// What is gathered of one value.
struct Lookout {
    value: ValueId,
    /// Axes whose moments are wanted, with what was seen.
    axes: Vec<(usize, Option<AxisMoments>)>,
    grams: Vec<Channels>,
}

impl Lookout {
    /// Takes what the value is in a batch, `before` samples in.
    fn look(&mut self, tensor: &Tensor, before: usize) -> Result<(), CompressError> {
        let data = floats(tensor)?;
        for (axis, moments) in &mut self.axes {
            let Some(&width) = tensor.shape.get(*axis) else { continue };
            let moments = moments.get_or_insert_with(|| AxisMoments::new(width));
            moments.push(&tensor.shape, *axis, &data);
        }
        for Channels { watch, gram, passed } in &mut self.grams {
            if let (true, Some(Ok(gram))) = (before < watch.samples, gram) {
                let every = Every::after(*passed, watch.stride);
                gram.push(&rows_along(&data, &tensor.shape, watch.key.1, every));
                *passed += data.len() / gram.width().max(1);
            }
        }
        Ok(())
    }
}

/// How the channels along one axis go together.
struct Channels {
    watch: Watch,
    /// None until the first batch; or why there is none.
    gram: Option<Result<ChannelGram, String>>,
    /// Rows of all batches so far.
    passed: usize,
}

impl Channels {
    fn new(watch: Watch) -> Self {
        Self { watch, gram: None, passed: 0 }
    }

    /// Makes room at the first batch, of so many `samples`, and settles the stride. `bytes` are those of all Grams.
    fn admit(&mut self, tensor: &Tensor, samples: usize, bytes: &mut usize) {
        let width = tensor.shape.get(self.watch.key.1).copied().unwrap_or(0);
        match &mut self.gram {
            Some(Ok(gram)) if gram.width() == width => {}
            Some(gram @ Ok(_)) => {
                *gram = Err("its width changes from sample to sample".into());
            }
            Some(Err(_)) => {}
            None => {
                self.gram = Some(room(width, bytes).map(|()| {
                    if self.watch.stride == 0 {
                        let rows = tensor.shape.iter().product::<usize>() / width / samples.max(1);
                        let wanted = rows_wanted(width);
                        self.watch.stride = spread_stride(rows, self.watch.samples, wanted);
                    }
                    ChannelGram::new(width)
                }));
            }
        }
    }
}

/// Takes room for a Gram from what all of them may have.
fn room(width: usize, bytes: &mut usize) -> Result<(), String> {
    if width == 0 || width > MAX_CHANNELS {
        return Err(format!("its width of {width} is not within MAX_CHANNELS = {MAX_CHANNELS}"));
    }
    let own = 8 * width * width;
    if *bytes + own > MAX_GRAM_BYTES {
        return Err(format!(
            "the Gram matrices of its model take more than MAX_GRAM_BYTES = {MAX_GRAM_BYTES}"
        ));
    }
    *bytes += own;
    Ok(())
}

/// The strides of `watches`, by key.
pub(crate) fn by_key(watches: &[Watch]) -> HashMap<Key, Watch> {
    watches.iter().map(|w| (w.key, *w)).collect()
}
