//! Histories worth telling.

use super::*;
use wire::{Cause, InstallOutcome, ModelPhase};

mod attribution;
mod commands;
mod drift;
mod evidence;
mod held;
mod trial;
mod trouble;
mod withheld;

/// Installs bundle `n` of model `m` as sequence `n`, up to its commit.
pub(super) fn install(world: &mut World, n: u64) {
    world.feed(Event::Offer(offer("m", n, n)));
    reach_probation(world);
    (0..4).for_each(|_| world.window("m", FAST));
    assert_eq!(state(world), None);
    assert_eq!(active(world), digest(n));
}

pub(super) fn reach_probation(world: &mut World) {
    for _ in 0..10 {
        world.answer(0, None);
        world.shadow(10, 1.0);
    }
    assert_eq!(state(world), Some(InstallState::Probation));
}

fn state(world: &World) -> Option<InstallState> {
    let durable = world.core.durable();
    durable.models.get("m")?.install.as_ref().map(|i| i.state)
}

fn active(world: &World) -> String {
    let durable = world.core.durable();
    durable.models["m"].active.as_ref().unwrap().digest.clone()
}

fn installs(world: &World) -> Vec<(ModelPhase, InstallOutcome, Option<String>)> {
    let of = |report: &Report| match report {
        Report::Install(event) => Some((event.phase, event.outcome, event.reason.clone())),
        _ => None,
    };
    world.reports.iter().filter_map(of).collect()
}

fn breaches(world: &World) -> Vec<(Cause, bool)> {
    let of = |report: &Report| match report {
        Report::Breach(breach) => Some((breach.cause, breach.recompress)),
        _ => None,
    };
    world.reports.iter().filter_map(of).collect()
}

fn requests(world: &World) -> usize {
    let is = |report: &&Report| matches!(report, Report::Recompress(_));
    world.reports.iter().filter(is).count()
}

fn refusal(world: &World) -> String {
    let (_, outcome, reason) = installs(world).pop().unwrap();
    assert_eq!(outcome, InstallOutcome::Rejected);
    reason.unwrap()
}

#[test]
fn the_first_model_is_installed_without_shadowing_and_told_step_by_step() {
    let mut world = World::new();
    install(&mut world, 1);
    let phases: Vec<ModelPhase> = installs(&world).into_iter().map(|(p, _, _)| p).collect();
    assert_eq!(
        phases,
        [
            ModelPhase::Downloading,
            ModelPhase::Verifying,
            ModelPhase::Loading,
            ModelPhase::SelfTest,
            ModelPhase::Shadow,
            ModelPhase::Probation,
            ModelPhase::Committed,
        ],
        "shadow stands for the switch, too"
    );
    assert!(world.core.ready());
}

#[test]
fn the_loop_closes_breach_request_offer_commit() {
    let mut world = World::new();
    install(&mut world, 1);
    world.now = Millis(100_000);
    world.window("m", SLOW);
    assert_eq!(requests(&world), 0, "one window is no breach");
    world.window("m", SLOW);
    assert_eq!(breaches(&world), [(Cause::Model, true)]);
    assert_eq!(requests(&world), 1);
    let mut answer = offer("m", 2, 2);
    answer.request_id = Some("dev-boot-0".into());
    world.feed(Event::Offer(answer));
    reach_probation(&mut world);
    assert_eq!(world.workers["m"].standby.as_deref(), Some(digest(1).as_str()));
    (0..2).for_each(|_| world.window("m", FAST));
    assert_eq!(active(&world), digest(2));
    assert_eq!(world.workers["m"].standby, None);
    assert!(world.core.durable().models["m"].requests.is_empty());
    let comparison = world.reports.iter().rev().find_map(|report| match report {
        Report::Install(event) => event.comparison.clone(),
        _ => None,
    });
    assert_eq!(comparison.unwrap().shadow_requests, 10);
}

#[test]
fn a_model_that_fails_in_probation_is_taken_back_and_never_taken_again() {
    let mut world = World::new();
    install(&mut world, 1);
    world.feed(Event::Offer(offer("m", 2, 2)));
    reach_probation(&mut world);
    assert_eq!(active(&world), digest(2));
    world.window("m", Shape { errors: 20, ..FAST });
    assert_eq!(active(&world), digest(1));
    world.answer(0, None);
    assert_eq!(world.workers["m"].active.as_deref(), Some(digest(1).as_str()));
    world.feed(Event::Offer(offer("m", 3, 2)));
    assert!(refusal(&world).contains("taken back on this device before"));
    assert_eq!(state(&world), None);
}

#[test]
fn clients_that_want_their_answers_at_once_do_not_turn_a_model_back() {
    let mut world = World::new();
    install(&mut world, 1);
    world.feed(Event::Offer(offer("m", 2, 2)));
    reach_probation(&mut world);
    (0..2).for_each(|_| world.window("m", Shape { errors: 20, late: 20, ..FAST }));
    assert_eq!((active(&world), state(&world)), (digest(2), None), "committed");
}

#[test]
fn a_worker_that_keeps_dying_in_probation_is_taken_back() {
    let mut world = World::new();
    install(&mut world, 1);
    world.feed(Event::Offer(offer("m", 2, 2)));
    reach_probation(&mut world);
    let died = || Event::WorkerDied { model: "m".into(), reason: "signal 9".into() };
    world.feed(died());
    assert_eq!(active(&world), digest(2));
    world.feed(died());
    assert_eq!(active(&world), digest(1));
}

#[test]
fn a_candidate_that_fails_every_mirrored_request_is_never_switched_to() {
    let mut world = World::new();
    install(&mut world, 1);
    world.feed(Event::Offer(offer("m", 2, 2)));
    (0..4).for_each(|_| world.answer(0, None));
    assert_eq!(state(&world), Some(InstallState::Shadow));
    world.shadow_facts(ShadowFacts { failures: 10, ..ShadowFacts::default() });
    assert!(refusal(&world).contains("failed 10 of 10 live requests"), "{}", refusal(&world));
    assert_eq!(active(&world), digest(1));
    world.feed(Event::Offer(offer("m", 3, 2)));
    assert_eq!(state(&world), None, "and its digest is blocked");
}

#[test]
fn a_newer_offer_replaces_the_install_before_the_switch() {
    let mut world = World::new();
    install(&mut world, 1);
    world.feed(Event::Offer(offer("m", 2, 2)));
    world.answer(0, None);
    world.feed(Event::Offer(offer("m", 3, 3)));
    let durable = world.core.durable();
    assert_eq!(durable.models["m"].install.as_ref().unwrap().offer.sequence, 3);
    let superseded = |(_, _, reason): &(_, _, Option<String>)| {
        reason.as_deref() == Some("superseded by sequence 3")
    };
    assert!(installs(&world).iter().any(superseded));
    assert!(!durable.models["m"].blocked.contains(&digest(2)));
}

#[test]
fn an_offer_during_probation_is_installed_after_it() {
    let mut world = World::new();
    install(&mut world, 1);
    world.feed(Event::Offer(offer("m", 2, 2)));
    reach_probation(&mut world);
    world.feed(Event::Offer(offer("m", 3, 3)));
    assert_eq!(state(&world), Some(InstallState::Probation));
    (0..2).for_each(|_| world.window("m", FAST));
    assert_eq!(active(&world), digest(2));
    assert_eq!(state(&world), Some(InstallState::Downloading));
}

#[test]
fn a_withdrawn_offer_is_given_up_before_the_switch_and_may_come_again() {
    let mut world = World::new();
    install(&mut world, 1);
    for steps in 0..5 {
        world.feed(Event::Offer(offer("m", 2, 2)));
        (0..steps).for_each(|_| world.answer(0, None));
        world.feed(Event::Withdrawn { model: "m".into() });
        assert_eq!(refusal(&world), "the offer was withdrawn", "after {steps} steps");
        assert_eq!((state(&world), active(&world)), (None, digest(1)));
        world.check();
    }
    world.feed(Event::Offer(offer("m", 2, 2)));
    reach_probation(&mut world);
    world.feed(Event::Offer(offer("m", 3, 3)));
    world.feed(Event::Withdrawn { model: "m".into() });
    (0..2).for_each(|_| world.window("m", FAST));
    assert_eq!((state(&world), active(&world)), (None, digest(2)), "what waited is given up");
}

#[test]
fn of_ends_that_are_never_told_the_oldest_are_forgotten_first() {
    let mut durable = Durable::default();
    for n in 1..=20 {
        let offer = Box::new(offer("m", n, n));
        durable.apply(&Record::Offered { model: "m".into(), install: n, offer });
        durable.apply(&Record::Install {
            model: "m".into(),
            install: n,
            state: InstallState::Rejected,
            reason: None,
            block: false,
            size_bytes: None,
            baseline: None,
            predicted: None,
            trial: None,
        });
    }
    let numbers =
        |durable: &Durable| durable.untold.iter().map(|end| end.number).collect::<Vec<_>>();
    assert_eq!(numbers(&durable), (5..=20).collect::<Vec<_>>());
    durable.apply(&Record::Told { through: 18 });
    assert_eq!(numbers(&durable), [19, 20]);
}

/// What an agent wrote that did not record which ends it had told.
fn old_journal(ends: u64) -> Vec<Record> {
    let installs = (1..=ends).flat_map(|n| {
        let moved = |state: &str, block: bool| {
            serde_json::json!({
                "kind": "install", "model": "m", "install": n, "state": state, "block": block,
            })
        };
        let offer = offer("m", n, n);
        let offered =
            serde_json::json!({ "kind": "offered", "model": "m", "install": n, "offer": offer });
        [offered, moved("downloading", false), moved("rejected", true)]
    });
    installs.map(|record| serde_json::from_value(record).unwrap()).collect()
}

#[test]
fn ends_in_the_journal_of_an_agent_that_did_not_record_what_it_told_are_not_told_again() {
    let snapshot =
        r#"{"kind":"snapshot","durable":{"models":{},"next_install":1,"next_request":0}}"#;
    for first in [None, Some(serde_json::from_str::<Record>(snapshot).unwrap())] {
        let mut world = World::new();
        world.journal = first.into_iter().chain(old_journal(20)).collect();
        world.crash();
        assert_eq!(installs(&world), []);
        assert!(
            world.core.durable().models["m"].blocked.contains(&digest(20)),
            "read, not dropped"
        );
        // From now on none is lost: an end whose telling was cut off is told at the next start, and once.
        world.feed(Event::Offer(offer("m", 21, 21)));
        let event = |world: &World| {
            let Owed::Step(model, install, _) = &world.owed[0] else { panic!() };
            let failed = StepFailure::attempt("by hand");
            Event::Step { model: model.clone(), install: *install, outcome: Err(failed) }
        };
        let event = event(&world);
        world.feed_until(event, 1);
        assert!(
            matches!(world.journal.last(), Some(Record::Install { state, .. }) if state.is_terminal())
        );
        let told = installs(&world).len();
        world.crash();
        assert_eq!(refusal(&world), "by hand");
        assert_eq!(installs(&world).len(), told + 1);
        world.crash();
        assert_eq!(installs(&world).len(), told + 1, "told again");
    }
}

#[test]
fn a_clock_that_jumps_decides_over_commands_with_an_expiry_and_nothing_else() {
    let mut world = World::new();
    install(&mut world, 1);
    let year = 365 * 86_400_000;
    let noon = 1_800_000_000_000;
    world.feed(Event::Offer(offer("m", 2, 2)));
    reach_probation(&mut world);
    let clocks = [Some(noon), Some(noon + 10 * year), None, Some(noon - 5 * year), Some(noon)];
    for (id, unix_ms) in clocks.into_iter().enumerate() {
        let command = Command {
            header: header::<Command>(),
            id: id.to_string(),
            kind: CommandKind::SetBudget,
            expires_ms: noon + 1000,
            args: serde_json::json!({ "model": "m", "latency_p95_us": 2000 }),
        };
        world.feed(Event::Command { command, unix_ms });
        assert_eq!(state(&world), Some(InstallState::Probation), "at {unix_ms:?}");
    }
    let done = |report: &Report| match report {
        Report::Result(result) => Some(result.ok),
        _ => None,
    };
    let done: Vec<bool> = world.reports.iter().filter_map(done).collect();
    assert_eq!(done, [true, false, false, true, true], "late, and without a clock, refused");
    (0..2).for_each(|_| world.window("m", FAST));
    assert_eq!(active(&world), digest(2));
}

#[test]
fn each_unfit_offer_is_refused_once_with_its_reason() {
    let mut world = World::new();
    install(&mut world, 5);
    let cases: [(Offer, &str); 4] = [
        (offer("m", 4, 4), "sequence 4 is not newer than the active 5"),
        (
            Offer { runtime: Runtime::Ort, ..offer("m", 6, 6) },
            "made for runtime ort, this device runs tract",
        ),
        (
            Offer { device_class: "n100".into(), ..offer("m", 6, 7) },
            "made for device class n100, this is a pi4",
        ),
        (
            Offer { size_bytes: u64::MAX, ..offer("m", 6, 8) },
            "over the limit install.max_bundle_bytes",
        ),
    ];
    for (offer, reason) in cases {
        world.feed(Event::Offer(offer.clone()));
        assert!(refusal(&world).contains(reason), "{}", refusal(&world));
        let told = world.reports.len();
        world.feed(Event::Offer(offer));
        assert_eq!(world.reports.len(), told, "told twice");
    }
    assert_eq!(state(&world), None);
}

#[test]
fn models_that_were_only_ever_refused_do_not_take_the_places_of_others() {
    let mut world = World::new();
    for (n, model) in (1..).zip(["bad-1", "bad-2", "bad-3"]) {
        world.feed(Event::Offer(offer(model, n, n)));
        (0..2).for_each(|_| world.answer(0, None));
        world.answer(0, Some(FailureClass::Bundle));
        assert!(world.core.durable().models[model].blocked.contains(&digest(n)));
    }
    install(&mut world, 9);
    world.feed(Event::Offer(offer("n", 10, 10)));
    world.feed(Event::Offer(offer("o", 11, 11)));
    assert!(refusal(&world).contains("install.max_models of 2"));
    world.feed(Event::Offer(offer("bad-1", 12, 12)));
    assert!(refusal(&world).contains("install.max_models of 2"), "known, but not installed");
}

#[test]
fn what_is_remembered_of_models_that_are_not_there_is_bounded_and_the_oldest_goes_first() {
    let mut world = World::new();
    let name = |n: u64| format!("bad-{n}");
    for n in 1..=70 {
        world.feed(Event::Offer(offer(&name(n), n, n)));
        (0..2).for_each(|_| world.answer(0, None));
        world.answer(0, Some(FailureClass::Bundle));
    }
    let models = &world.core.durable().models;
    assert_eq!(models.len(), 64);
    assert!(!models.contains_key(&name(6)) && models.contains_key(&name(7)));
    world.check();
}

#[test]
fn the_offer_of_what_already_serves_changes_nothing() {
    let mut world = World::new();
    install(&mut world, 1);
    let (told, written) = (world.reports.len(), world.journal.len());
    world.feed(Event::Offer(offer("m", 1, 1)));
    assert_eq!((world.reports.len(), world.journal.len()), (told, written));
}

#[test]
fn a_manifest_for_another_class_blocks_the_digest() {
    let mut world = World::new();
    world.feed(Event::Offer(offer("m", 1, 1)));
    world.answer(0, None);
    let install = world.core.durable().models["m"].install.as_ref().unwrap().id;
    world.feed(Event::Step {
        model: "m".into(),
        install,
        outcome: Ok(StepDone::Verified(BundleFacts {
            name: "m".into(),
            sequence: 1,
            runtime: "tract".into(),
            device_class: "n100".into(),
            ..BundleFacts::default()
        })),
    });
    assert!(refusal(&world).contains("device class n100"));
    world.feed(Event::Offer(offer("m", 1, 1)));
    assert_eq!(state(&world), None);
}

#[test]
fn a_failing_download_is_tried_again_later_and_given_up_at_its_limit() {
    let mut world = World::new();
    world.feed(Event::Offer(offer("m", 1, 1)));
    for _ in 0..2 {
        world.answer(0, Some(FailureClass::Transient));
        assert!(world.owed.is_empty());
        world.tick(300_000);
        assert_eq!(world.owed.len(), 1, "tried again");
    }
    world.answer(0, Some(FailureClass::Transient));
    assert!(refusal(&world).contains("install.max_attempts"));
    world.feed(Event::Offer(offer("m", 1, 1)));
    assert_eq!(state(&world), Some(InstallState::Downloading), "may be offered again");
}

#[test]
fn killed_in_any_state_the_agent_ends_with_the_new_model_and_serves_the_old_until_then() {
    for kill_at in 0..7 {
        let mut world = World::new();
        install(&mut world, 1);
        world.feed(Event::Offer(offer("m", 2, 2)));
        for step in 0..12 {
            if step == kill_at {
                world.crash();
                world.check();
                world.answer(0, None);
                assert!(world.workers["m"].active.is_some());
            }
            world.answer(0, None);
            world.shadow(10, 1.0);
            world.check();
        }
        (0..4).for_each(|_| world.window("m", FAST));
        assert_eq!(active(&world), digest(2), "killed at step {kill_at}");
    }
}

#[test]
fn an_install_that_stops_the_agent_over_and_over_is_given_up() {
    let mut world = World::new();
    install(&mut world, 1);
    world.feed(Event::Offer(offer("m", 2, 2)));
    world.answer(0, None);
    world.answer(0, None);
    for _ in 0..5 {
        world.crash();
        world.answer(0, None);
    }
    assert!(refusal(&world).contains("install.max_restarts"));
    assert_eq!(active(&world), digest(1));
}

#[test]
fn commands_are_done_once_and_refused_when_late() {
    let mut world = World::new();
    install(&mut world, 1);
    install(&mut world, 2);
    let command = |id: &str, kind, expires_ms| Command {
        header: header::<Command>(),
        id: id.into(),
        kind,
        expires_ms,
        args: serde_json::json!({ "model": "m" }),
    };
    let send = |world: &mut World, command, unix_ms| {
        world.feed(Event::Command { command, unix_ms });
        match world.reports.iter().rev().find(|r| matches!(r, Report::Result(_))) {
            Some(Report::Result(result)) => result.clone(),
            _ => panic!("no result"),
        }
    };
    let late = send(&mut world, command("1", CommandKind::Rollback, 50), Some(80));
    assert_eq!(late.error.as_deref(), Some("expired 30 ms before it arrived"));
    let blind = send(&mut world, command("2", CommandKind::Rollback, 50), None);
    assert!(blind.error.unwrap().contains("clock is not set"));
    assert_eq!(active(&world), digest(2));
    let done = send(&mut world, command("3", CommandKind::Rollback, 50), Some(50));
    assert!(done.ok);
    assert_eq!(active(&world), digest(1));
    let reports = world.reports.len();
    send(&mut world, command("3", CommandKind::Rollback, 50), Some(50));
    assert_eq!(world.reports.len(), reports, "done twice");
    let none = send(&mut world, command("4", CommandKind::Rollback, 0), None);
    assert!(none.error.unwrap().contains("no earlier bundle"));
}

#[test]
fn set_budget_refuses_what_is_no_budget_and_outlives_a_restart() {
    let mut world = World::new();
    install(&mut world, 1);
    let mut set = |id: &str, args| {
        world.feed(Event::Command {
            command: Command {
                header: header::<Command>(),
                id: id.into(),
                kind: CommandKind::SetBudget,
                expires_ms: 0,
                args,
            },
            unix_ms: None,
        });
        let Some(Report::Result(result)) = world.reports.last().cloned() else {
            panic!("no result");
        };
        (result.error, world.core.budgets("m").latency_p95_us)
    };
    let typo = serde_json::json!({ "model": "m", "latency_us": 5 });
    assert_eq!(set("1", typo).0.unwrap(), "args.latency_us is no budget");
    let zero = serde_json::json!({ "model": "m", "latency_p95_us": 0 });
    assert!(set("2", zero).0.unwrap().contains("must be over 0"));
    let good = serde_json::json!({ "model": "m", "latency_p95_us": 777 });
    assert_eq!(set("3", good), (None, Some(777)));
    world.crash();
    assert_eq!(world.core.budgets("m").latency_p95_us, Some(777));
}

#[test]
fn on_every_connection_the_retained_reports_are_told_again() {
    let mut world = World::new();
    install(&mut world, 1);
    world.reports.clear();
    world.feed(Event::Connected);
    assert!(matches!(world.reports[0], Report::Birth(_)));
    assert!(matches!(&world.reports[1], Report::Model(state) if state.digest == Some(digest(1))));
    assert!(matches!(&world.reports[2], Report::State(_)));
    world.reports.clear();
    world.feed(Event::Shutdown);
    assert!(matches!(&world.reports[0], Report::State(s) if s.state == wire::DeviceState::Offline));
    assert!(world.drained);
}
