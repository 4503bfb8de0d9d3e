//! Bundles and offers that a test makes itself, from one that the service made.

use std::path::Path;
use std::time::Duration;

use bundle::{Bundle, Draft, Limits, SelfTest, Source};
use edge_sim::live::Stack;
use edge_sim::watcher::Message;
use wire::{Header, InstallEvent, InstallOutcome, ModelPhase, Offer};

use crate::files::FileServer;

/// A bundle like `like`, of another version, in `store`.
///
/// # Panics
/// When it cannot be written.
#[must_use]
pub fn variant(
    like: &Bundle,
    store: &Path,
    sequence: u64,
    change: impl FnOnce(&mut Draft),
) -> Bundle {
    let manifest = &like.manifest;
    let mut draft =
        Draft::new(&manifest.name, &format!("test-{sequence}"), Source::Path(like.model_path()));
    draft.sequence = sequence;
    draft.runtime.clone_from(&manifest.runtime);
    draft.device_class.clone_from(&manifest.device_class);
    draft.inputs.clone_from(&manifest.inputs);
    draft.outputs.clone_from(&manifest.outputs);
    draft.selftest = like.selftest().expect("the service's bundles have a self-test");
    change(&mut draft);
    draft.write_into(store).expect("a bundle can be written")
}

/// Every golden output moved far from what the model answers.
pub fn falsify(test: &mut SelfTest) {
    for tensor in test.cases.iter_mut().flat_map(|case| &mut case.outputs) {
        assert_eq!(tensor.dtype, "FP32", "the classifier answers with floats");
        for value in tensor.data.chunks_exact_mut(4) {
            let number = f32::from_le_bytes([value[0], value[1], value[2], value[3]]);
            value.copy_from_slice(&(1.0 - number).to_le_bytes());
        }
    }
}

/// Publishes an offer of `bundle`, served by `server`, after `change`.
///
/// # Panics
/// When there is no connection to the broker.
pub fn offer(
    stack: &Stack,
    server: &FileServer,
    bundle: &Bundle,
    change: impl FnOnce(&mut Offer),
) -> Offer {
    let options = stack.options();
    let manifest = &bundle.manifest;
    let mut offer = Offer {
        header: Header::of::<Offer>(1, manifest.sequence, "test"),
        model: manifest.name.clone(),
        version: manifest.version.clone(),
        sequence: manifest.sequence,
        digest: bundle.digest.to_string(),
        url: server.url(&bundle.digest.hex()),
        size_bytes: bundle.size_bytes(),
        runtime: options.runtime,
        device_class: options.board.slug.to_owned(),
        request_id: None,
    };
    change(&mut offer);
    let topics = wire::Topics::new(&options.root, &options.device).expect("valid names");
    let topic = topics.offer(&offer.model).expect("a valid name");
    stack.publish(&topic, true, wire::encode(&offer)).expect("the broker takes it");
    offer
}

/// The bundle that the service deployed, opened.
///
/// # Panics
/// When the service's store does not hold it.
#[must_use]
pub fn deployed(stack: &Stack, digest: &str) -> Bundle {
    Bundle::open(&stack.bundle_dir(digest), &Limits::default()).expect("the deployed bundle")
}

/// The end of the install of `digest`: waits for the device to tell it.
///
/// # Panics
/// When it does not within `patience`.
#[must_use]
pub fn end_of(stack: &mut Stack, digest: &str, patience: Duration) -> InstallEvent {
    let what = format!("the end of {digest}");
    let mut mark = 0;
    let found = stack.wait_from(&mut mark, &what, patience, |record| match &record.message {
        Message::Install(event)
            if event.digest == digest && event.outcome != InstallOutcome::Progress =>
        {
            Some(event.clone())
        }
        _ => None,
    });
    found.unwrap_or_else(|error| panic!("{error}"))
}

/// The last step that the device told of the install of `digest` before its end; none when it was
/// turned away without one.
#[must_use]
pub fn last_phase(stack: &Stack, digest: &str) -> Option<ModelPhase> {
    let records = stack.watcher().records(0);
    let steps = records.iter().filter_map(|record| match &record.message {
        Message::Install(event) if event.digest == digest => Some(event),
        _ => None,
    });
    let before = steps.take_while(|event| event.outcome == InstallOutcome::Progress);
    before.last().map(|event| event.phase)
}

/// Every digest that the device has said since `mark` that it runs, in order.
#[must_use]
pub fn serving_digests(stack: &Stack, mark: usize) -> Vec<Option<String>> {
    let records = stack.watcher().records(mark);
    let states = records.iter().filter_map(|record| match &record.message {
        Message::Model(state) => Some(state.digest.clone()),
        _ => None,
    });
    states.collect()
}
