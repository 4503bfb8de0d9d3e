//! Any bytes as a model file: import, verifier, shapes, groups, a pruning of all groups, export.
#![no_main]

#[path = "../../compressor/graph/tests/support/taken.rs"]
mod taken;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = taken::take(bytes);
});
