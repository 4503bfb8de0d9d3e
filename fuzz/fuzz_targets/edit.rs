//! Any bytes as edits of a small graph: each leaves a valid model, or what was there.
#![no_main]

#[path = "../../compressor/graph/tests/support/edited.rs"]
mod edited;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    edited::edit_all(bytes);
});
