//! The inputs that are kept: real messages are taken, and what was once a finding is none any more.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use fuzz::{TARGETS, Verdict, root, wire::MESSAGES};

/// What may be committed, all targets together.
const MAX_BYTES: u64 = 200 << 10;

fn files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// The name that a person gave; fuzzers name inputs by their digest.
fn given_name(file: &Path) -> Option<String> {
    let name = file.file_name()?.to_str()?;
    let is_digest = name.len() == 40 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    (!is_digest).then(|| name.to_owned())
}

#[test]
fn every_input_that_is_kept_ends_in_a_verdict_and_every_real_message_is_accepted() {
    for (target, take) in TARGETS {
        let mut named = 0;
        for file in files(&root().join("corpus").join(target)) {
            let verdict = take(&fs::read(&file).unwrap());
            if given_name(&file).is_some() {
                named += 1;
                assert_eq!(verdict, Verdict::Accepted, "{}", file.display());
            }
        }
        assert!(named > 0, "{target} has no real message");
    }
}

#[test]
fn what_was_once_a_finding_is_none_any_more() {
    for (target, take) in TARGETS {
        for file in files(&root().join("regressions").join(target)) {
            println!("{}", file.display());
            take(&fs::read(&file).unwrap());
        }
    }
}

#[test]
fn there_is_a_real_message_of_every_schema() {
    let corpus = files(&root().join("corpus/wire"));
    let mut by_schema = BTreeMap::new();
    for bytes in
        corpus.iter().filter(|file| given_name(file).is_some()).map(|file| fs::read(file).unwrap())
    {
        if let Ok(message) = serde_json::from_slice::<serde_json::Value>(&bytes) {
            by_schema.insert(message["schema"].as_str().unwrap().to_owned(), ());
        }
    }
    for (schema, _) in MESSAGES {
        assert!(by_schema.contains_key(*schema), "{schema} has none");
    }
}

#[test]
fn the_kept_inputs_are_small() {
    let sizes = TARGETS.iter().flat_map(|(target, _)| {
        let folders = ["corpus", "regressions"].map(|kind| root().join(kind).join(target));
        folders.into_iter().flat_map(|folder| files(&folder))
    });
    let bytes: u64 = sizes.map(|file| file.metadata().unwrap().len()).sum();
    assert!(bytes <= MAX_BYTES, "{bytes} bytes are over the limit of {MAX_BYTES}: thin them out");
}

#[test]
fn garbage_is_refused_by_all() {
    for (target, take) in TARGETS {
        for garbage in [&b""[..], b"\0", b"{", b"not a message", &[0xff; 600]] {
            assert_eq!(take(garbage), Verdict::Refused, "{target}: {garbage:?}");
        }
    }
}
