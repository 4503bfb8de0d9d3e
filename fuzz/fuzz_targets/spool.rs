//! Any bytes as what a spool's segment may have become.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = fuzz::spool::take(bytes);
});
