//! The agent killed in every state of an install and started again: the old model or the new one
//! serves, never neither, and the install ends in a reported state.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use e2e::files::{Damage, FileServer};
use e2e::hold::Hold;
use e2e::journal::states_of;
use e2e::offers::{deployed, end_of, offer, serving_digests, variant};
use e2e::{quick_stack, until};
use edge_sim::client::LoadClient;
use edge_sim::live::Stack;
use wire::InstallOutcome;

const PATIENCE: Duration = Duration::from_secs(60);
/// Answers that show that a model serves.
const ANSWERS: usize = 3;
/// Every state that an install can be stopped in, in order.
const STATES: [&str; 8] = [
    "offered",
    "downloading",
    "verifying",
    "loading",
    "self_test",
    "shadow",
    "switching",
    "probation",
];

/// A bundle, as the device and the answers name it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Version {
    digest: String,
    version: String,
}

#[derive(Clone, Copy)]
enum Kill {
    /// The agent alone; its workers are left to notice.
    Agent,
    /// The agent and its workers at once.
    Power,
}

struct Scene {
    // Fields are dropped in this order.
    client: LoadClient,
    stack: Stack,
    server: FileServer,
    hold: Hold,
    folder: tempfile::TempDir,
    first: String,
    serving: Version,
    sequence: u64,
}

impl Scene {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut options = quick_stack(&folder.path().join("run"));
        let hold = Hold::configure(&mut options, &folder.path().join("holds"));
        let mut stack = Stack::start(options).unwrap();
        stack.deploy().unwrap();
        let first = stack.wait_committed(PATIENCE).unwrap().digest;
        let version = deployed(&stack, &first).manifest.version;
        let serving = Version { digest: first.clone(), version };
        fs::create_dir_all(folder.path().join("bundles")).unwrap();
        let server = FileServer::start(&folder.path().join("bundles"));
        let client = stack.client("before").unwrap();
        Self { client, stack, server, hold, folder, first, serving, sequence: 1000 }
    }

    /// Offers a new bundle, kills the agent in `state`, starts it again and follows the install to its end.
    fn survive(&mut self, state: &str, kill: Kill) {
        self.sequence += 1;
        let like = deployed(&self.stack, &self.first);
        let bundle = variant(&like, &self.folder.path().join("bundles"), self.sequence, |_| {});
        let (digest, version) = (bundle.digest.to_string(), bundle.manifest.version.clone());
        let new = Version { digest, version };
        let mark = self.stack.mark();
        self.stop_in(state, &new, &bundle);
        match kill {
            Kill::Agent => self.stack.agent_kill9(),
            Kill::Power => self.stack.agent_power_cut(),
        }
        let states = states_of(&self.stack, self.sequence);
        assert_eq!(states.last().map(String::as_str), Some(state), "{states:?}");
        self.go_on_from(state);

        let either = [self.serving.version.clone(), new.version.clone()];
        let answered = self.answers(&format!("after the kill in {state}"));
        assert!(
            answered.iter().all(|version| either.contains(version)),
            "{answered:?}: {either:?}"
        );
        let end = end_of(&mut self.stack, &new.digest, PATIENCE);
        assert_eq!(end.outcome, InstallOutcome::Committed, "killed in {state}: {end:?}");
        self.assert_serves(&new, mark, state);
        self.serving = new;
    }

    /// Returns once the agent is in `state` and stays there.
    fn stop_in(&self, state: &str, new: &Version, bundle: &bundle::Bundle) {
        if state == "downloading" {
            // In the middle of a file rather than before the first.
            self.server.set_damage(Damage::Stall);
        } else {
            self.hold.arm(state);
        }
        let offered = offer(&self.stack, &self.server, bundle, |_| {});
        assert_eq!(offered.digest, new.digest);
        if state == "downloading" {
            self.server.wait_stalled(PATIENCE);
        } else {
            self.hold.wait(state, PATIENCE);
        }
    }

    fn go_on_from(&mut self, state: &str) {
        if state == "downloading" {
            self.server.release();
        } else {
            self.hold.disarm(state);
        }
        self.stack.agent_start().unwrap();
    }

    /// The versions that answer requests from now on.
    fn answers(&self, phase: &str) -> BTreeSet<String> {
        self.client.set_phase(phase);
        let enough = self.client.wait(Instant::now() + PATIENCE, |stats| {
            stats.phases.get(phase).is_some_and(|seen| seen.answers.len() >= ANSWERS)
        });
        let stats = self.client.stats();
        assert!(enough, "no model serves {phase}: {:?}", stats.phases.get(phase));
        let answers = stats.phases[phase].answers.values();
        answers.map(|answer| answer.version.clone().expect("the device names it")).collect()
    }

    /// Requests are answered by `new` and the device says so; meanwhile it never said anything but the
    /// model before and the new one.
    fn assert_serves(&self, new: &Version, mark: usize, state: &str) {
        let answered = self.answers(&format!("after the end of the install killed in {state}"));
        assert_eq!(answered, BTreeSet::from([new.version.clone()]));
        let last = Some(new.digest.clone());
        until(&format!("the device to say that {} serves", new.digest), PATIENCE, || {
            (serving_digests(&self.stack, mark).last() == Some(&last)).then_some(())
        });
        let either = [Some(self.serving.digest.clone()), last];
        let said = serving_digests(&self.stack, mark);
        assert!(said.iter().all(|digest| either.contains(digest)), "{said:?}: {either:?}");
    }
}

fn kill_in_every_state(kill: Kill) {
    let mut scene = Scene::new();
    for state in STATES {
        scene.survive(state, kill);
    }
}

#[test]
fn a_kill_of_the_agent_in_any_state_leaves_a_servable_model() {
    kill_in_every_state(Kill::Agent);
}

#[test]
fn a_power_cut_in_any_state_leaves_a_servable_model() {
    kill_in_every_state(Kill::Power);
}
