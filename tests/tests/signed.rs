//! The loop under an owner's keys: the real service signs what it makes, and the real agent installs that and nothing
//! else.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::Duration;

use e2e::{configure, quick_stack};
use edge_sim::live::{Stack, StackOptions};
use edge_sim::watcher::Message;
use trust::{Host, Init};
use wire::InstallOutcome;

/// A no is doubted for up to half a minute.
const PATIENCE: Duration = Duration::from_secs(180);

/// A repository and the root that it begins with.
fn owner(folder: &Path) -> Host {
    let host = Host::init(&folder.join("owner"), None, &Init::default()).unwrap();
    std::fs::write(folder.join("root.json"), host.root_json().unwrap()).unwrap();
    host
}

/// A stack whose service signs with one owner's keys, and whose device was given another's root, or the same.
fn signed(run: &Path, signs: &Path, given: &Path) -> StackOptions {
    let mut options = quick_stack(run);
    let repository = signs.join("owner").display().to_string();
    options.service_args = vec!["--trust".to_owned(), repository];
    configure(&mut options, &format!("[trust]\nroot = \"{}\"", given.join("root.json").display()));
    options
}

#[test]
fn what_the_owner_s_service_makes_is_installed() {
    let (run, keys) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let owner = owner(keys.path());
    let mut stack = Stack::start(signed(run.path(), keys.path(), keys.path())).unwrap();
    stack.deploy().unwrap();
    stack.wait_committed(PATIENCE).unwrap();
    assert_eq!(owner.targets().unwrap().len(), 1);
    let seen = std::fs::read_to_string(stack.state_dir().join("trust/trusted.json")).unwrap();
    assert!(seen.contains("timestamp"), "{seen}");
}

#[test]
fn what_somebody_else_signed_is_rejected_by_name() {
    let run = tempfile::tempdir().unwrap();
    let (keys, others) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    owner(keys.path());
    owner(others.path());
    let mut stack = Stack::start(signed(run.path(), keys.path(), others.path())).unwrap();
    let mut mark = stack.mark();
    stack.deploy().unwrap();
    let reason = stack
        .wait_from(&mut mark, "the rejection", PATIENCE, |record| match &record.message {
            Message::Install(event) if event.outcome == InstallOutcome::Rejected => {
                event.reason.clone()
            }
            _ => None,
        })
        .unwrap();
    assert!(reason.contains("TUF check \"signature\" failed"), "{reason}");
}
