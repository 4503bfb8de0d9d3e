//! Any bytes as an inference request: headers, an empty line, a body.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = fuzz::oip::take(bytes);
});
