//! Any bytes as a bundle, its self-test or its reference.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = fuzz::bundle::take(bytes);
});
