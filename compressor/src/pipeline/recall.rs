//! What one compression of a model learned that the next one of the same model need not learn again.
//!
//! A service compresses the same original once for every class of device, and once more for a device
//! that asks again. What the original computes on the same samples in the same engine is the same each
//! time, and takes a good part of a search to find out.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::observe::Original;
use super::shop::Shop;
use crate::plan::Refusal;
use crate::quality::Answer;

/// The most bytes that are kept for the next compression.
pub(crate) const MAX_RECALLED_BYTES: usize = 128 << 20;

/// Remembers the original of the last compression. Compressions that run at once are each as right as
/// without it, and share nothing.
#[derive(Default)]
pub struct Recall(Mutex<Option<(Key, Known)>>);

impl std::fmt::Debug for Recall {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        f.debug_tuple("Recall").field(&held.as_ref().map(|(key, _)| key)).finish()
    }
}

/// What must be the same for the original to compute the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Key {
    source: bundle::Digest,
    calibration: bundle::Digest,
    heldout: bundle::Digest,
    hold_out_every: Option<usize>,
    /// With its version.
    engine: String,
}

impl Key {
    /// None for a model whose tensors lie in other files, which its digest says nothing of.
    pub(crate) fn of(shop: &Shop<'_>) -> Option<Self> {
        (!shop.source.is_external()).then(|| Self {
            source: shop.source.digest,
            calibration: shop.calibration.digest(),
            heldout: shop.heldout.digest(),
            hold_out_every: shop.hold_out_every,
            engine: shop.runner.describe(),
        })
    }
}

/// What is known of an original.
#[derive(Default)]
pub(crate) struct Known {
    /// Its answers to the first held-out samples.
    pub(crate) answers: Vec<Vec<Answer>>,
    pub(crate) observed: Option<Observed>,
}

/// The original as it was observed, and for which screening.
pub(crate) struct Observed {
    pub(crate) screened: Range<usize>,
    pub(crate) original: Original,
    pub(crate) refused: Vec<Refusal>,
}

impl Known {
    fn bytes(&self) -> usize {
        let answers = self.answers.iter().flatten().map(Answer::bytes).sum::<usize>();
        answers + self.observed.as_ref().map_or(0, |observed| observed.original.bytes())
    }

    /// What was observed for the same screening.
    pub(crate) fn take_observed(&mut self, screened: &Range<usize>) -> Option<Observed> {
        self.observed.take_if(|observed| observed.screened == *screened)
    }
}

impl Recall {
    /// Takes what is known under `key`, which is nothing for any other key.
    pub(crate) fn take(&self, key: &Key) -> Known {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.take_if(|(of, _)| of == key).map_or_else(Known::default, |(_, known)| known)
    }

    /// Keeps what is known under `key` in the place of anything else, unless it is too large.
    pub(crate) fn keep(&self, key: Key, known: Known) {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *held = (known.bytes() <= MAX_RECALLED_BYTES).then_some((key, known));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> Key {
        let digest = bundle::Digest::of(text.as_bytes());
        Key {
            source: digest,
            calibration: digest,
            heldout: digest,
            hold_out_every: None,
            engine: "e 1".into(),
        }
    }

    /// Answers of so many bytes.
    fn known(bytes: usize) -> Known {
        let data = vec![0.0; bytes / size_of::<f32>()];
        Known { answers: vec![vec![Answer { shape: vec![data.len()], data }]], observed: None }
    }

    #[test]
    fn what_is_larger_than_the_limit_is_not_kept_and_takes_the_place_of_nothing() {
        let recall = Recall::default();
        recall.keep(key("a"), known(MAX_RECALLED_BYTES));
        assert_eq!(recall.take(&key("b")).answers.len(), 0, "of another");
        assert_eq!(recall.take(&key("a")).bytes(), MAX_RECALLED_BYTES);
        recall.keep(key("a"), known(8));
        recall.keep(key("a"), known(MAX_RECALLED_BYTES + 4));
        assert_eq!(recall.take(&key("a")).answers.len(), 0, "what is older is not known any more");
    }
}
