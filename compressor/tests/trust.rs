//! `espalier trust` as its users run it: a repository, a root signed on three machines, a rotation, and what is refused.
#![allow(clippy::unwrap_used, missing_docs)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use bundle::{Case, Draft, NamedTensor, SelfTest, Source, TensorSpec};
use serde_json::Value;

/// A folder that the program runs in.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn run(&self, line: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_espalier"));
        command.current_dir(self.0.path()).arg("trust").args(line.split_whitespace());
        command.output().unwrap()
    }

    fn json(&self, line: &str) -> Value {
        let output = self.run(&format!("{line} --json"));
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{line}: {error}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn refused(&self, line: &str, part: &str) {
        let output = self.run(line);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{line}: {error}");
        assert!(error.contains(part), "{line}: wanted {part:?} in {error}");
        assert!(output.stdout.is_empty(), "{line}");
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Everything that is there, to be compared.
    fn content(&self, name: &str) -> Vec<(PathBuf, Vec<u8>)> {
        let mut found = Vec::new();
        collect(&self.path(name), &mut found);
        found.sort();
        found
    }
}

fn collect(folder: &Path, found: &mut Vec<(PathBuf, Vec<u8>)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, found);
        } else {
            let content = fs::read(&path).unwrap();
            found.push((path, content));
        }
    }
}

fn bundle(dir: &Path) -> String {
    let mut draft = Draft::new("m", "1.0.0", Source::Bytes(vec![7; 100]));
    let spec = |name: &str| TensorSpec { name: name.into(), dtype: "FP32".into(), dims: vec![1] };
    let tensor = |name: &str| NamedTensor {
        name: name.into(),
        dtype: "FP32".into(),
        dims: vec![1],
        data: vec![0; 4],
    };
    draft.sequence = 1;
    draft.inputs = vec![spec("x")];
    draft.outputs = vec![spec("y")];
    draft.selftest = SelfTest {
        cases: vec![Case { inputs: vec![tensor("x")], outputs: vec![tensor("y")] }],
        rtol: 0.0,
        atol: 0.0,
    };
    draft.write(dir).unwrap().digest.to_string()
}

#[test]
fn a_bundle_is_allowed_seen_by_a_device_and_taken_back() {
    let place = Place::new();
    let digest = bundle(&place.path("small"));
    let made = place.json("init repository");
    assert_eq!(made["roles"]["root"]["threshold"], 1);
    let added = place.json("add repository small --class pi4 --class pi5");
    assert_eq!(added["targets"], 2);
    fs::copy(place.path("repository/metadata/root.json"), place.path("root.json")).unwrap();
    let seen = place.json("verify repository --root root.json");
    assert_eq!(seen["targets"][0]["digest"], digest);
    assert_eq!(seen["targets"][0]["facts"]["device_classes"], serde_json::json!(["pi4", "pi5"]));
    assert_eq!(place.json("refresh repository")["timestamp"], 3);
    place.json(&format!("remove repository {digest}"));
    assert_eq!(place.json("verify repository")["targets"], serde_json::json!([]));
    let text = String::from_utf8(place.run("show repository").stdout).unwrap();
    assert!(text.contains("keep them on another machine"), "{text}");
}

#[test]
fn a_root_is_signed_on_three_machines_and_rotated() {
    let place = Place::new();
    for name in ["alice", "bob", "carol", "dave"] {
        place.json(&format!("key {name}.pem"));
    }
    place.json(
        "init repository --root-key alice.pem.pub --root-key bob.pem.pub --root-key carol.pem.pub --root-threshold 2",
    );
    place.refused("refresh repository", "root 1 is not published yet");
    fs::copy(place.path("repository/root.pending.json"), place.path("travels.json")).unwrap();
    assert_eq!(
        place.json("root sign travels.json --key alice.pem")["own"],
        serde_json::json!([1, 2])
    );
    place.refused("root publish repository --from travels.json", "signed by 1 of 2");
    place.json("root sign travels.json --key bob.pem");
    assert_eq!(place.json("root publish repository --from travels.json")["root"], 1);
    let alice =
        place.json("show repository")["roles"]["root"]["keys"][0].as_str().unwrap().to_owned();
    let pending =
        place.json(&format!("root rotate repository root --old {alice} --new dave.pem.pub"));
    assert_eq!((pending["version"].clone(), pending["before"][1].clone()), (2.into(), 2.into()));
    let waiting = "repository/root.pending.json";
    place.json(&format!("root sign {waiting} --key bob.pem --key carol.pem"));
    assert_eq!(place.json("root publish repository")["root"], 2);
    // A device that was given the first root follows.
    assert_eq!(place.json("verify repository")["versions"]["root"], 2);
    let edits =
        ["root add-key repository targets dave.pem.pub", "root threshold repository targets 2"];
    edits.iter().for_each(|edit| drop(place.json(edit)));
    place.json(&format!("root sign {waiting} --key dave.pem --key carol.pem"));
    place.refused(
        "root publish repository",
        "the role targets needs 2 signatures, and 1 of its keys",
    );
    fs::copy(place.path("dave.pem"), place.path("repository/keys/dave.pem")).unwrap();
    assert_eq!(place.json("root publish repository")["root"], 3);
    assert_eq!(place.json("verify repository")["versions"]["targets"], 2);
}

#[test]
fn wrong_missing_huge_and_half_written_input_changes_nothing() {
    let place = Place::new();
    place.refused("show repository", "there is no repository here");
    place.json("init repository");
    bundle(&place.path("small"));
    let (timestamp, half) = (place.path("repository/metadata/timestamp.json"), b"{\"signed\":");
    fs::write(place.path("half.json"), half).unwrap();
    fs::write(place.path("huge.json"), vec![b' '; 5 << 20]).unwrap();
    fs::write(place.path("open.pem"), "-----BEGIN PRIVATE KEY-----\n").unwrap();
    let before = place.content("repository");
    place.refused("init repository", "there is a repository already");
    place.refused("key repository/keys/targets.pem", "never written over");
    place.refused("add repository nowhere", "nowhere");
    place.refused("root add-key repository root half.json", "neither a public key");
    place.refused("root add-key repository root huge.json", "over the limit");
    place.refused("root add-key repository root nowhere.pub", "nowhere.pub");
    place.refused("root sign half.json --key repository/keys/root.pem", "no root metadata");
    place.refused("root sign huge.json --key repository/keys/root.pem", "over the limit");
    place.refused("root sign half.json --key open.pem", "others may use this private key");
    place.refused("root publish repository", "no root is pending");
    place.refused("root threshold repository targets 3", "would need 3 signatures");
    place.refused("verify repository --root half.json", "root metadata cannot be used");
    assert_eq!(place.content("repository"), before);
    fs::write(&timestamp, half).unwrap();
    place.refused("refresh repository", "timestamp.json");
    place.refused("verify repository", "TUF check \"format\" failed");
    place.refused("add repository small", "timestamp.json");
}

#[test]
fn help_has_examples() {
    let place = Place::new();
    for command in [
        "",
        "key",
        "init",
        "show",
        "add",
        "remove",
        "refresh",
        "verify",
        "root",
        "root sign",
        "root rotate",
    ] {
        let output = place.run(&format!("{command} --help"));
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(0), "{command}");
        assert!(text.contains("Example") && text.contains("espalier trust"), "{text}");
    }
}
