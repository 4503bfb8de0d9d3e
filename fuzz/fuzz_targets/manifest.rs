//! Any bytes as a bundle's manifest.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = fuzz::manifest::take(bytes);
});
