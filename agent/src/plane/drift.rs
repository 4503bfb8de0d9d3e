//! Counts what a model's live requests look like, in the cells of its bundle's reference.
//!
//! One request in [`Lens::every`] is looked at, and of one that brings several samples one. What is read of
//! its tensors is bounded (`engine::features`), the table is made when the model is loaded, and a request
//! only adds to it. What the counts mean is for the core to say.
//!
//! A request does not wait for that: its tensors are handed over before its answer is, and looked at
//! afterwards. None is lost: once [`MAX_WAITING`] wait, the next one to come looks at them first.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bundle::{Feature, FeatureReference, Reference, Rows, Side, TensorReference};
use engine::{IoSpec, Tensor, features};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::process::Interface;
use super::protocol::NamedTensors;
use crate::core::{DriftFacts, FeatureFacts};

/// Requests that may wait to be looked at, with all their tensors.
const MAX_WAITING: usize = 4;

/// The reference of one instance, and what its requests looked like since the last window.
#[derive(Debug)]
pub(super) struct Lens {
    tensors: Vec<TensorReference>,
    /// The least time between two requests that are looked at.
    every: Duration,
    queue: Mutex<Queue>,
    /// Told of each request that waits.
    handed_over: Notify,
    table: Mutex<Table>,
}

/// What is to be looked at. Nothing else is locked while this is.
#[derive(Debug, Default)]
struct Queue {
    /// When the last one was taken.
    taken: Option<Instant>,
    waiting: VecDeque<Answered>,
}

#[derive(Debug)]
struct Answered {
    inputs: Arc<NamedTensors>,
    outputs: Arc<NamedTensors>,
}

#[derive(Debug)]
struct Table {
    /// Requests looked at, ever.
    turn: u64,
    /// One per feature, in the reference's order.
    counts: Vec<Counts>,
}

#[derive(Debug, Clone)]
struct Counts {
    seen: Vec<u64>,
    /// The cell of the request before.
    last: Option<usize>,
    pairs: u64,
    product: u64,
}

impl Lens {
    /// For a model with this interface.
    ///
    /// # Errors
    /// The reference names a tensor that the model does not have.
    pub(super) fn new(
        reference: Reference,
        interface: &Interface,
        every: Duration,
    ) -> Result<Self, String> {
        for tensor in &reference.tensors {
            let (side, ports): (_, &[IoSpec]) = match tensor.side {
                Side::Input => ("input", &interface.inputs),
                Side::Output => ("output", &interface.outputs),
            };
            if ports.iter().all(|port| port.name != tensor.name) {
                return Err(format!(
                    "reference.json names {side} `{}`, which it has not",
                    tensor.name
                ));
            }
        }
        let features = reference.tensors.iter().flat_map(|tensor| &tensor.features);
        let table = Table { turn: 0, counts: features.map(Counts::of).collect() };
        Ok(Self {
            tensors: reference.tensors,
            every,
            queue: Mutex::default(),
            handed_over: Notify::new(),
            table: Mutex::new(table),
        })
    }

    /// Takes an answered request to be counted soon.
    pub(super) fn hand_over(
        &self,
        inputs: &Arc<NamedTensors>,
        outputs: &Arc<NamedTensors>,
        now: Instant,
    ) {
        let mut queue = self.queue();
        if queue.taken.is_some_and(|before| now.duration_since(before) < self.every) {
            return;
        }
        queue.taken = Some(now);
        let (inputs, outputs) = (inputs.clone(), outputs.clone());
        queue.waiting.push_back(Answered { inputs, outputs });
        let full = queue.waiting.len() >= MAX_WAITING;
        drop(queue);
        if full {
            self.catch_up();
        } else {
            self.handed_over.notify_one();
        }
    }

    /// Counts what is handed over, for ever.
    pub(super) async fn keep_up(&self) {
        loop {
            self.handed_over.notified().await;
            self.catch_up();
        }
    }

    /// Counts what waits, in the order in which it came.
    fn catch_up(&self) {
        let mut table = self.lock();
        loop {
            let next = self.queue().waiting.pop_front();
            let Some(Answered { inputs, outputs }) = next else { break };
            self.look(&mut table, &inputs, &outputs);
        }
    }

    fn look(&self, table: &mut Table, inputs: &NamedTensors, outputs: &NamedTensors) {
        let turn = table.turn;
        table.turn = turn.wrapping_add(1);
        let mut counts = table.counts.iter_mut();
        for reference in &self.tensors {
            let tensors = match reference.side {
                Side::Input => inputs,
                Side::Output => outputs,
            };
            let tensor = tensors.iter().find(|(name, _)| *name == reference.name).map(|(_, t)| t);
            let values = tensor.map(|tensor| Values::of(tensor, reference, turn));
            for (feature, counts) in reference.features.iter().zip(counts.by_ref()) {
                if let Some(value) = values.as_ref().and_then(|v| v.get(feature.feature)) {
                    counts.count(feature, value);
                }
            }
        }
    }

    /// What was counted since the last call.
    pub(super) fn take(&self) -> DriftFacts {
        self.catch_up();
        let mut table = self.lock();
        let mut counts = table.counts.iter_mut();
        let mut facts = Vec::with_capacity(counts.len());
        for tensor in &self.tensors {
            let pairs = tensor.features.iter().zip(counts.by_ref());
            facts.extend(pairs.map(|(feature, counts)| counts.take(tensor, feature)));
        }
        DriftFacts { features: facts }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counts {
    fn of(feature: &FeatureReference) -> Self {
        Self { seen: vec![0; feature.counts.len()], last: None, pairs: 0, product: 0 }
    }

    fn count(&mut self, feature: &FeatureReference, value: f64) {
        let cell = feature.cell(value);
        self.seen[cell] += 1;
        if let Some(before) = self.last.replace(cell) {
            let together = match feature.feature {
                Feature::Class => u64::from(before == cell),
                _ => before as u64 * cell as u64,
            };
            self.pairs += 1;
            self.product += together;
        }
    }

    fn take(&mut self, tensor: &TensorReference, feature: &FeatureReference) -> FeatureFacts {
        let empty = Self { last: self.last, ..Self::of(feature) };
        let Self { seen, pairs, product, .. } = std::mem::replace(self, empty);
        FeatureFacts {
            side: match tensor.side {
                Side::Input => wire::Side::Input,
                Side::Output => wire::Side::Output,
            },
            tensor: tensor.name.clone(),
            feature: named(feature.feature),
            reference: feature.counts.clone(),
            seen,
            pairs,
            product,
        }
    }
}

/// The numbers that one request's tensor gives.
struct Values {
    summary: Option<features::Summary>,
    value: Option<f64>,
    choice: Option<features::Choice>,
}

impl Values {
    fn of(tensor: &Tensor, reference: &TensorReference, turn: u64) -> Self {
        let choice = |rows: Rows| features::choice(tensor, rows.axis, rows.scores, turn);
        Self {
            summary: features::summary(tensor, reference.batched, turn),
            value: features::value(tensor, reference.batched, turn),
            choice: reference.rows.and_then(choice),
        }
    }

    /// A row that chooses no class has one that the reference does not know.
    #[allow(clippy::cast_precision_loss)]
    fn get(&self, feature: Feature) -> Option<f64> {
        match feature {
            Feature::Mean => self.summary.map(|s| s.mean),
            Feature::Deviation => self.summary.map(|s| s.deviation),
            Feature::Zeros => self.summary.map(|s| s.zeros),
            Feature::Nonfinite => self.summary.map(|s| s.nonfinite),
            Feature::Value => self.value,
            Feature::Class => self.choice.map(|c| c.class.map_or(f64::NAN, |class| class as f64)),
            Feature::Confidence => self.choice.map(|c| c.confidence),
        }
    }
}

fn named(feature: Feature) -> wire::Feature {
    match feature {
        Feature::Mean => wire::Feature::Mean,
        Feature::Deviation => wire::Feature::Deviation,
        Feature::Zeros => wire::Feature::Zeros,
        Feature::Nonfinite => wire::Feature::Nonfinite,
        Feature::Value => wire::Feature::Value,
        Feature::Class => wire::Feature::Class,
        Feature::Confidence => wire::Feature::Confidence,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn reference() -> Reference {
        let values: Vec<f64> = (0..100).map(f64::from).collect();
        let tensor = |side, name: &str, rows, features| TensorReference {
            side,
            name: name.into(),
            batched: true,
            rows,
            features,
        };
        let ordered = |feature| FeatureReference::ordered(feature, &values);
        Reference {
            version: bundle::REFERENCE_VERSION,
            samples: 100,
            tensors: vec![
                tensor(Side::Input, "x", None, vec![ordered(Feature::Mean)]),
                tensor(
                    Side::Output,
                    "y",
                    Some(Rows { axis: 1, scores: true }),
                    vec![FeatureReference::classes(&[0.0, 1.0, 1.0]), ordered(Feature::Confidence)],
                ),
            ],
        }
    }

    fn interface() -> Interface {
        let port = |name: &str| IoSpec {
            name: name.into(),
            dtype: engine::ElementType::F32,
            dims: vec![None, Some(2)],
        };
        Interface {
            engine_version: "fake".into(),
            inputs: vec![port("x")],
            outputs: vec![port("y")],
        }
    }

    fn one(name: &str, values: [f32; 2]) -> Arc<NamedTensors> {
        Arc::new(vec![(name.to_owned(), Tensor::from_f32(vec![1, 2], &values).unwrap())])
    }

    fn lens(every: Duration) -> Lens {
        Lens::new(reference(), &interface(), every).unwrap()
    }

    #[test]
    fn requests_are_counted_in_the_references_cells_and_a_window_takes_them() {
        let lens = lens(Duration::ZERO);
        let now = Instant::now();
        for mean in [-50.0, 1.0, 500.0] {
            lens.hand_over(&one("x", [mean, mean]), &one("y", [0.0, 9.0]), now);
        }
        let facts = lens.take();
        let mean = &facts.features[0];
        assert_eq!((mean.seen[0], mean.seen[1], mean.seen[11]), (1, 1, 1));
        // Cells 0, 1, 11 in a row.
        assert_eq!((mean.pairs, mean.product), (2, 11));
        let class = &facts.features[1];
        assert_eq!((class.seen.as_slice(), class.product), ([0, 3, 0].as_slice(), 2));
        assert_eq!(lens.take().features[1].seen, [0, 0, 0]);
        // The first of a window has the last of the one before it for a neighbour.
        lens.hand_over(&one("x", [1.0, 1.0]), &one("y", [0.0, 9.0]), now);
        assert_eq!(lens.take().features[1].pairs, 1);
    }

    #[test]
    fn of_requests_that_come_too_soon_none_is_counted() {
        let lens = lens(Duration::from_millis(100));
        let start = Instant::now();
        for ms in [0, 50, 99, 100, 150, 250] {
            let now = start + Duration::from_millis(ms);
            lens.hand_over(&one("x", [1.0, 1.0]), &one("y", [0.0, 9.0]), now);
        }
        assert_eq!(lens.take().features[0].seen.iter().sum::<u64>(), 3);
    }

    #[test]
    fn few_wait_to_be_looked_at_and_none_is_lost() {
        let lens = lens(Duration::ZERO);
        for _ in 0..10 * MAX_WAITING + 1 {
            lens.hand_over(&one("x", [1.0, 1.0]), &one("y", [0.0, 9.0]), Instant::now());
            assert!(lens.queue().waiting.len() < MAX_WAITING);
        }
        let seen: u64 = lens.take().features[0].seen.iter().sum();
        assert_eq!(seen, 10 * MAX_WAITING as u64 + 1);
        assert!(lens.queue().waiting.is_empty());
    }

    #[tokio::test]
    async fn what_is_handed_over_is_counted_when_nobody_asks_for_it() {
        let lens = lens(Duration::ZERO);
        lens.hand_over(&one("x", [1.0, 1.0]), &one("y", [0.0, 9.0]), Instant::now());
        tokio::select! {
            biased;
            () = lens.keep_up() => unreachable!("it keeps up for ever"),
            () = tokio::task::yield_now() => {}
        }
        assert!(lens.queue().waiting.is_empty());
        assert_eq!(lens.lock().turn, 1);
    }

    #[test]
    fn an_answer_that_chooses_nothing_is_of_no_known_class_and_beyond_all_confidence() {
        let lens = lens(Duration::ZERO);
        lens.hand_over(&one("x", [1.0, 1.0]), &one("y", [f32::NAN, 0.0]), Instant::now());
        let facts = lens.take();
        assert_eq!(facts.features[1].seen, [0, 0, 1]);
        assert_eq!(facts.features[2].seen.last(), Some(&1));
    }

    #[test]
    fn a_reference_of_another_model_is_refused() {
        let mut other = reference();
        other.tensors[1].name = "z".into();
        let error = Lens::new(other, &interface(), Duration::ZERO).unwrap_err();
        assert_eq!(error, "reference.json names output `z`, which it has not");
    }
}
