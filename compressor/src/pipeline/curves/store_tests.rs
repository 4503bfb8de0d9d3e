use std::sync::Mutex;

use super::*;

fn key() -> Key {
    Key {
        model: "sha256:m".into(),
        data: "sha256:d".into(),
        score: ScoreKind::Activation,
        repairs: vec![RepairKind::Gram],
        ratings: "sha256:r".into(),
        engine: "tract 1".into(),
        seed: 7,
        samples: 64,
        tool: "espalier 1".into(),
    }
}

fn host(threads: usize) -> Host {
    Host { name: "here".into(), threads }
}

fn took(ratio: f64) -> HostLatency {
    HostLatency::of(&[100.0 * ratio; 8], &[100.0; 8])
}

#[derive(Default)]
struct Notes(Mutex<Vec<String>>);

impl Progress for Notes {
    fn note(&self, text: &str) {
        self.0.lock().unwrap().push(text.to_owned());
    }
}

fn open(path: &Path, key: &Key, threads: usize) -> (Result<Store, CompressError>, String) {
    let notes = Notes::default();
    let store = Store::open(path, key, host(threads), &notes);
    let notes = notes.0.into_inner().unwrap().join("\n");
    (store, notes)
}

/// A file with two losses and a time.
fn filled(path: &Path) {
    let mut store = open(path, &key(), 1).0.unwrap();
    store.keep_loss(&vec![(0, 16)], 0.1 + 0.2).unwrap();
    store.keep_loss(&vec![(0, 8), (3, 4)], 1e-300).unwrap();
    store.keep_latency(&vec![(0, 16)], took(0.7)).unwrap();
}

#[test]
fn what_was_kept_is_there_again_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.jsonl");
    filled(&path);
    let (store, notes) = open(&path, &key(), 1);
    let store = store.unwrap();
    assert_eq!((store.len(), notes), (3, String::new()));
    assert_eq!(store.loss(&vec![(0, 16)]), Some(0.1 + 0.2));
    assert_eq!(store.loss(&vec![(0, 8), (3, 4)]), Some(1e-300));
    assert_eq!(store.latency(&vec![(0, 16)]), Some(took(0.7)));
    assert_eq!(store.latency(&vec![(0, 8)]), None);
}

#[test]
fn timings_of_other_threads_are_kept_and_not_used() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.jsonl");
    filled(&path);
    let store = open(&path, &key(), 4).0.unwrap();
    assert_eq!((store.len(), store.latency(&vec![(0, 16)])), (2, None));
    drop(store);
    assert_eq!(open(&path, &key(), 1).0.unwrap().len(), 3);
}

/// Cut at every byte: all lines that are whole are read, the next one is written behind them.
#[test]
fn a_file_that_ends_anywhere_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.jsonl");
    filled(&path);
    let whole = std::fs::read(&path).unwrap();
    for end in 0..whole.len() {
        std::fs::write(&path, &whole[..end]).unwrap();
        let lines = whole[..end].iter().filter(|b| **b == b'\n').count();
        let (store, notes) = open(&path, &key(), 1);
        let mut store = store.unwrap();
        assert_eq!(store.len(), lines.saturating_sub(1), "cut at {end}");
        assert_eq!(notes, "", "cut at {end}");
        store.keep_loss(&vec![(9, 9)], 9.0).unwrap();
        drop(store);
        let store = open(&path, &key(), 1).0.unwrap();
        assert_eq!(store.len(), lines.max(1), "cut at {end}");
        assert_eq!(store.loss(&vec![(9, 9)]), Some(9.0));
    }
}

#[test]
fn a_broken_line_is_said_and_what_follows_is_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.jsonl");
    filled(&path);
    let text = std::fs::read_to_string(&path).unwrap();
    let mut lines: Vec<&str> = text.lines().collect();
    lines[2] = "{\"loss\":{\"widths\":[[0,8]],\"loss\":nul}}";
    std::fs::write(&path, lines.join("\n") + "\n").unwrap();
    let (store, notes) = open(&path, &key(), 1);
    assert_eq!(store.unwrap().len(), 1);
    assert!(notes.contains("line 3 cannot be read"), "{notes}");
    std::fs::write(&path, [text.as_bytes(), &[0xff, 0xfe, b'\n']].concat()).unwrap();
    let (store, notes) = open(&path, &key(), 1);
    assert_eq!(store.unwrap().len(), 3);
    assert!(notes.contains("line 5 cannot be read"), "{notes}");
}

#[test]
fn a_file_of_another_model_or_setting_is_begun_anew_and_says_what_differs() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.jsonl");
    for (other, what) in [
        (Key { model: "sha256:n".into(), ..key() }, "another model;"),
        (Key { samples: 65, seed: 8, ..key() }, "another samples, seed;"),
        (Key { score: ScoreKind::Random, ..key() }, "another score;"),
    ] {
        filled(&path);
        let (store, notes) = open(&path, &other, 1);
        assert_eq!(store.unwrap().len(), 0);
        assert!(notes.contains("a.jsonl") && notes.contains(what), "{notes}");
        assert_eq!(open(&path, &other, 1).1, "");
    }
}

#[test]
fn a_file_that_is_none_of_ours_is_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.jsonl");
    for text in ["{\"a\":1}\n", "no curves", "\n", "{\"espalier\":1}\n"] {
        std::fs::write(&path, text).unwrap();
        let error = open(&path, &key(), 1).0.unwrap_err().to_string();
        assert!(error.contains("a.jsonl") && error.contains("--curves"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    }
}

#[test]
fn two_runs_do_not_write_to_one_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.jsonl");
    let first = open(&path, &key(), 1).0.unwrap();
    let error = open(&path, &key(), 1).0.unwrap_err().to_string();
    assert!(error.contains("in use by another run"), "{error}");
    drop(first);
    open(&path, &key(), 1).0.unwrap();
}

#[test]
fn a_file_over_the_limit_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.jsonl");
    File::create(&path).unwrap().set_len(MAX_CURVES_BYTES + 1).unwrap();
    let error = open(&path, &key(), 1).0.unwrap_err().to_string();
    assert!(error.contains("MAX_CURVES_BYTES"), "{error}");
}
