//! Any bytes as a message, or the topic of one.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = fuzz::wire::take(bytes);
});
