//! Broken model files give an error or a model, never a panic, and never a model that breaks later.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, clippy::cast_sign_loss)]

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

#[path = "support/assets.rs"]
mod assets;
#[path = "support/mangle.rs"]
mod mangle;
#[path = "support/taken.rs"]
mod taken;

use mangle::{Dice, mangled};
use taken::{Came, take};

/// Files above this size cost more to break than they teach.
const MAX_BYTES: u64 = 40_000;
/// Broken copies of each file; more by `ESPALIER_MANGLED`.
const COPIES: u64 = 8;

fn seeds() -> Vec<PathBuf> {
    let mut files = assets::models();
    files.retain(|path| fs::metadata(path).unwrap().len() <= MAX_BYTES);
    files
}

fn copies() -> u64 {
    std::env::var("ESPALIER_MANGLED").ok().and_then(|n| n.parse().ok()).unwrap_or(COPIES)
}

#[test]
fn a_broken_file_is_an_error_or_a_model() {
    let (mut files, mut valid, mut failed) = (0, 0, Vec::new());
    for (number, path) in seeds().iter().enumerate() {
        let whole = fs::read(path).unwrap();
        for copy in 0..copies() {
            let broken = mangled(&whole, &mut Dice::new((number as u64) << 32 | copy));
            let came = catch_unwind(AssertUnwindSafe(|| take(&broken)));
            files += 1;
            match came {
                Ok(Came::Valid) => valid += 1,
                Ok(_) => {}
                Err(_) => failed.push((path.clone(), copy)),
            }
        }
    }
    assert!(failed.is_empty(), "{} of {files}: {:?}", failed.len(), &failed[..failed.len().min(9)]);
    // If nothing got through, the passes behind the import would not be tried at all.
    assert!(valid * 10 > files, "{valid} of {files} broken files are valid models");
}

#[test]
fn whole_files_are_taken() {
    let refused =
        seeds().into_iter().filter(|path| take(&fs::read(path).unwrap()) == Came::Refused);
    assert_eq!(refused.collect::<Vec<_>>(), Vec::<PathBuf>::new());
}
