//! The agent killed in every state of an install and started again: the old model or the new one
//! serves, never neither, and the install ends in a reported state.

use std::fs;
use std::time::{Duration, Instant};

use e2e::files::{Damage, FileServer};
use e2e::offers::{deployed, offer, variant};
use e2e::quick_stack;
use edge_sim::live::Stack;
use edge_sim::watcher::Message;
use wire::InstallOutcome;

const PATIENCE: Duration = Duration::from_secs(60);
/// A state can be over before the kill arrives; then the kill hit the next one and another bundle is tried.
const ATTEMPTS: u64 = 8;

/// The last install state in the journal, with its digest's offer if it is of the wanted sequence.
fn states_of(stack: &Stack, sequence: u64) -> Vec<String> {
    let text =
        String::from_utf8_lossy(&fs::read(stack.journal_path()).unwrap_or_default()).into_owned();
    let mut install = None;
    let mut states = Vec::new();
    for record in text.lines().filter_map(journal_record) {
        match record["kind"].as_str() {
            Some("offered") if record["offer"]["sequence"] == sequence => {
                install = Some(record["install"].clone());
                states.push("offered".to_owned());
            }
            Some("install" | "resumed") if Some(&record["install"]) == install.as_ref() => {
                states.extend(record["state"].as_str().map(str::to_owned));
            }
            _ => {}
        }
    }
    states
}

/// A line is an object with a checksum and an entry; a torn one is not a record.
fn journal_record(line: &str) -> Option<serde_json::Value> {
    let line: serde_json::Value = serde_json::from_str(line).ok()?;
    line.pointer("/entry/record").cloned()
}

/// Waits, without sleeping, until the journal shows the state (or a later one).
fn wait_for_state(stack: &Stack, sequence: u64, state: &str) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let states = states_of(stack, sequence);
        let over = ["committed", "rejected", "rolled_back"];
        if states.iter().any(|s| s == state || over.contains(&s.as_str())) {
            return;
        }
        assert!(Instant::now() < deadline, "the install never came to {state}: {states:?}");
        std::thread::yield_now();
    }
}

struct Scene {
    stack: Stack,
    server: FileServer,
    folder: tempfile::TempDir,
    sequence: u64,
}

impl Scene {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut stack = Stack::start(quick_stack(&folder.path().join("run"))).unwrap();
        stack.deploy().unwrap();
        stack.wait_committed(PATIENCE).unwrap();
        fs::create_dir_all(folder.path().join("bundles")).unwrap();
        let server = FileServer::start(&folder.path().join("bundles"));
        Self { stack, server, folder, sequence: 1000 }
    }

    /// Offers a new bundle, kills the agent once it is in `state`, starts it again, and returns the state
    /// that was really hit.
    fn kill_in(&mut self, state: &str, power_cut: bool) -> String {
        self.sequence += 1;
        let like = deployed(&self.stack, &self.first_digest());
        let bundle = variant(&like, &self.folder.path().join("bundles"), self.sequence, |_| {});
        if state == "downloading" {
            self.server.set_damage(Damage::Stall);
        }
        offer(&self.stack, &self.server, &bundle, |_| {});
        if state == "downloading" {
            self.server.wait_stalled();
        }
        wait_for_state(&self.stack, self.sequence, state);
        if power_cut {
            self.stack.agent_power_cut();
        } else {
            self.stack.agent_kill9();
        }
        let hit = states_of(&self.stack, self.sequence).pop().unwrap();
        self.server.release();
        self.stack.agent_start().unwrap();
        hit
    }

    fn first_digest(&self) -> String {
        let records = self.stack.watcher().records(0);
        let digest = records.iter().find_map(|record| match &record.message {
            Message::Install(event) => Some(event.digest.clone()),
            _ => None,
        });
        digest.unwrap()
    }

    /// Requests are answered again, and the install ends.
    fn assert_serves_and_ends(&mut self, state: &str) {
        let client = self.stack.client(state).unwrap();
        let sequence = self.sequence;
        let answered =
            client.wait(Instant::now() + PATIENCE, |stats| stats.requests() - stats.failed() >= 3);
        assert!(answered, "no model serves after a kill in {state}: {:?}", client.stats());
        let deadline = Instant::now() + PATIENCE;
        while !states_of(&self.stack, sequence)
            .iter()
            .any(|s| ["committed", "rejected", "rolled_back"].contains(&s.as_str()))
        {
            assert!(
                Instant::now() < deadline,
                "an install killed in {state} does not end: {:?}",
                states_of(&self.stack, sequence)
            );
            // New requests feed the shadow and the probation.
            let seen = client.stats().requests();
            client.wait(deadline, |stats| stats.requests() > seen);
        }
        client.stop();
    }
}

fn kill_in_every_state(power_cut: bool) {
    let mut scene = Scene::new();
    for state in [
        "offered",
        "downloading",
        "verifying",
        "loading",
        "self_test",
        "shadow",
        "switching",
        "probation",
    ] {
        let mut hits = Vec::new();
        for _ in 0..ATTEMPTS {
            // Shadow and probation last only while there are requests; before them none are needed.
            let client = ["switching", "probation"]
                .contains(&state)
                .then(|| scene.stack.client("load").unwrap());
            hits.push(scene.kill_in(state, power_cut));
            drop(client);
            scene.assert_serves_and_ends(state);
            if hits.last().is_some_and(|hit| hit == state) {
                break;
            }
        }
        assert!(hits.iter().any(|hit| hit == state), "never hit {state}, only {hits:?}");
    }
    let unreported = scene.stack.watcher().records(0).iter().filter(|record| {
        matches!(&record.message, Message::Install(event) if event.outcome != InstallOutcome::Progress)
    }).count();
    assert!(unreported >= 8, "each install's end is reported, {unreported} were");
}

#[test]
fn a_kill_of_the_agent_in_any_state_leaves_a_servable_model() {
    kill_in_every_state(false);
}

#[test]
fn a_power_cut_in_any_state_leaves_a_servable_model() {
    kill_in_every_state(true);
}
