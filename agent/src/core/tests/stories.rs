//! Histories worth telling.

use super::*;
use wire::{Cause, InstallOutcome, ModelPhase};

/// Installs bundle `n` of model `m` as sequence `n`, up to its commit.
pub(super) fn install(world: &mut World, n: u64) {
    world.feed(Event::Offer(offer("m", n, n)));
    reach_probation(world);
    (0..4).for_each(|_| world.window("m", FAST));
    assert_eq!(state(world), None);
    assert_eq!(active(world), digest(n));
}

fn reach_probation(world: &mut World) {
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
fn a_throttled_device_tells_of_heat_and_asks_for_nothing() {
    let mut world = World::new();
    install(&mut world, 1);
    world.now = Millis(100_000);
    let hot = Shape { throttled: true, ..SLOW };
    (0..5).for_each(|_| world.window("m", hot));
    assert_eq!(breaches(&world), [(Cause::Thermal, false)]);
    assert_eq!(requests(&world), 0);
}

#[test]
fn a_request_that_was_written_down_but_not_sent_is_said_after_the_restart() {
    let mut world = World::new();
    install(&mut world, 1);
    world.now = Millis(100_000);
    world.window("m", SLOW);
    // The power goes after the journal's record of the request, ahead of the message.
    *world.slow_windows.entry("m".into()).or_default() += 1;
    let effects = world.core.step(world.now, window("m", &digest(1), SLOW));
    let written = |effect: &Effect| matches!(effect, Effect::Journal(record) if matches!(**record, Record::Requested { .. }));
    let at = effects.iter().position(written).unwrap();
    world.execute(effects, at + 1);
    assert_eq!(requests(&world), 0);
    world.crash();
    assert_eq!(requests(&world), 1, "said by the agent that comes after");
    world.answer(0, None);
    assert_eq!(world.core.durable().models["m"].requests.len(), 1);
    world.crash();
    let ids: BTreeSet<String> = world
        .reports
        .iter()
        .filter_map(|report| match report {
            Report::Recompress(request) => Some(request.request_id.clone()),
            _ => None,
        })
        .collect();
    assert_eq!(ids.len(), 1, "every repetition has the same number");
}

/// A window with readings of the device beside the requests of some models.
fn reading(
    world: &World,
    models: &[(&str, u64)],
    shape: Shape,
    reading: impl FnOnce(&mut WindowFacts),
) -> Event {
    let mut all = Vec::new();
    let mut resources = None;
    for (model, us) in models {
        let digest = match world.core.durable().models.get(*model) {
            Some(known) => known.active.as_ref().unwrap().digest.clone(),
            None => digest(99),
        };
        let Event::Window(facts) = window(model, &digest, Shape { us: *us, ..shape }) else {
            panic!("a window");
        };
        all.extend(facts.models);
        resources = facts.resources;
    }
    let mut facts = WindowFacts { window_ms: 1000, models: all, resources, power: None };
    facts.resources.as_mut().unwrap().cpu_percent = Some(80.0);
    reading(&mut facts);
    Event::Window(facts)
}

fn power(facts: &mut WindowFacts) {
    facts.power = Some(wire::PowerWindow {
        header: header::<wire::PowerWindow>(),
        window_ms: 1000,
        source: "test".into(),
        quality: Quality::Measured,
        power_mw: Some(5000.0),
        energy_per_inference_mj: Some(50.0),
        model: None,
    });
}

fn set_budget(world: &mut World, id: &str, budget: &str, limit: u64) {
    let command = Command {
        header: header::<Command>(),
        id: id.into(),
        kind: CommandKind::SetBudget,
        expires_ms: 0,
        args: serde_json::json!({ "model": "m", "latency_p95_us": null, budget: limit }),
    };
    world.feed(Event::Command { command, unix_ms: None });
    // The world counts slow windows only; these budgets are broken without them.
    world.slow_windows.insert("m".into(), 100);
}

#[test]
fn power_is_held_against_the_model_that_draws_it() {
    let cases: [(&[(&str, u64)], Cause); 3] = [
        // 20 requests of 100 us are nothing beside a processor that is busy at 80 %.
        (&[("m", 100), ("n", 100)], Cause::Steal),
        (&[("m", 100)], Cause::Model),
        // 20 of 100 ms on one of four processors are more than half of it.
        (&[("m", 100_000), ("n", 100)], Cause::Model),
    ];
    for (models, cause) in cases {
        let mut world = World::new();
        install(&mut world, 1);
        world.now = Millis(100_000);
        set_budget(&mut world, "1", "power_mw", 4000);
        for _ in 0..2 {
            let event = reading(&world, models, FAST, power);
            world.feed(event);
        }
        assert_eq!(breaches(&world), [(cause, cause == Cause::Model)], "{models:?}");
        assert_eq!(requests(&world), usize::from(cause == Cause::Model));
    }
}

#[test]
fn energy_on_a_hot_device_is_the_heats_and_memory_is_always_the_models_once_it_is_loaded() {
    let hot = Shape { throttled: true, ..FAST };
    let cold = Shape { cold: true, ..FAST };
    let memory = |facts: &mut WindowFacts| facts.models[0].pss_bytes = Some(5000);
    let cases: [(&str, Shape, fn(&mut WindowFacts), Cause); 4] = [
        ("energy_mj", hot, power, Cause::Thermal),
        ("energy_mj", FAST, power, Cause::Model),
        ("memory_bytes", hot, memory, Cause::Model),
        ("memory_bytes", cold, memory, Cause::ColdStart),
    ];
    for (budget, shape, readings, cause) in cases {
        let mut world = World::new();
        install(&mut world, 1);
        world.now = Millis(100_000);
        set_budget(&mut world, "1", budget, 10);
        for _ in 0..2 {
            let event = reading(&world, &[("m", 100)], shape, readings);
            world.feed(event);
        }
        assert_eq!(breaches(&world), [(cause, cause == Cause::Model)], "{budget}");
    }
}

#[test]
fn an_unanswered_request_is_asked_again_only_after_its_timeout() {
    let mut world = World::new();
    install(&mut world, 1);
    world.now = Millis(100_000);
    for _ in 0..19 {
        world.window("m", SLOW);
        world.tick(1000);
    }
    assert_eq!(requests(&world), 1);
    for _ in 0..10 {
        world.tick(1000);
        world.window("m", SLOW);
    }
    assert_eq!(requests(&world), 2);
}

#[test]
fn a_model_that_fails_in_probation_is_taken_back_and_never_taken_again() {
    let mut world = World::new();
    install(&mut world, 1);
    world.feed(Event::Offer(offer("m", 2, 2)));
    reach_probation(&mut world);
    assert_eq!(active(&world), digest(2));
    world.window("m", Shape { errors: 10, ..FAST });
    assert_eq!(active(&world), digest(1));
    world.answer(0, None);
    assert_eq!(world.workers["m"].active.as_deref(), Some(digest(1).as_str()));
    world.feed(Event::Offer(offer("m", 3, 2)));
    assert!(refusal(&world).contains("taken back on this device before"));
    assert_eq!(state(&world), None);
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

/// The last state that the device reported, and why.
fn device(world: &World) -> (wire::DeviceState, String) {
    let of = |report: &Report| match report {
        Report::State(state) => Some((state.state, state.reason.clone().unwrap_or_default())),
        _ => None,
    };
    world.reports.iter().rev().find_map(of).unwrap()
}

#[test]
fn a_committed_worker_that_cannot_restart_is_told_loaded_anew_and_at_last_replaced() {
    let mut world = World::new();
    install(&mut world, 1);
    install(&mut world, 2);
    world.feed(Event::Connected);
    world.feed(Event::WorkerDied { model: "m".into(), reason: "signal 9".into() });
    (0..2).for_each(|_| world.feed(restart_failed("m")));
    assert!(world.core.ready() && world.owed.is_empty(), "two failures may pass");
    world.feed(restart_failed("m"));
    assert!(!world.core.ready());
    let (state, reason) = device(&world);
    assert_eq!(state, wire::DeviceState::Degraded);
    assert!(reason.contains("no memory"), "{reason}");
    fail_to_activate(&mut world, FailureClass::Attempt);
    assert_eq!(active(&world), digest(1));
    world.answer(0, None);
    assert!(world.core.ready());
    assert_eq!(device(&world).0, wire::DeviceState::Online);
}

#[test]
fn a_worker_that_comes_back_between_two_tries_serves_again() {
    let mut world = World::new();
    install(&mut world, 1);
    (0..3).for_each(|_| world.feed(restart_failed("m")));
    world.answer(0, Some(FailureClass::Attempt));
    assert!(world.owed.is_empty());
    world.feed(Event::WorkerRestarted { model: "m".into() });
    world.answer(0, None);
    assert!(world.core.ready());
}

#[test]
fn silence_from_a_dead_worker_ends_no_probation() {
    let mut world = World::new();
    install(&mut world, 1);
    world.feed(Event::Offer(offer("m", 2, 2)));
    reach_probation(&mut world);
    world.feed(Event::WorkerDied { model: "m".into(), reason: "signal 9".into() });
    let silent = Shape { requests: 0, ..FAST };
    (0..20).for_each(|_| world.window("m", silent));
    assert_eq!(state(&world), Some(InstallState::Probation));
    world.feed(Event::WorkerRestarted { model: "m".into() });
    world.window("m", silent);
    assert_eq!(state(&world), None);
    assert_eq!(active(&world), digest(2));
}

#[test]
fn the_first_model_does_not_hold_up_its_successor_by_dying_in_probation() {
    let mut world = World::new();
    world.feed(Event::Offer(offer("m", 1, 1)));
    reach_probation(&mut world);
    world.feed(Event::Offer(offer("m", 2, 2)));
    (0..3).for_each(|_| world.feed(restart_failed("m")));
    fail_to_activate(&mut world, FailureClass::Attempt);
    assert_eq!(state(&world), Some(InstallState::Downloading), "the next offer is taken up");
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
fn an_active_bundle_that_no_longer_loads_gives_way_to_the_one_before() {
    let mut world = World::new();
    install(&mut world, 1);
    install(&mut world, 2);
    world.crash();
    fail_to_activate(&mut world, FailureClass::Bundle);
    assert_eq!(active(&world), digest(1));
    world.answer(0, None);
    assert!(world.core.ready());
    assert!(world.core.durable().models["m"].blocked.contains(&digest(2)));
}

/// As often as it takes for the bundle to be given up.
fn fail_to_activate(world: &mut World, class: FailureClass) {
    for _ in 0..3 {
        assert_eq!(world.owed.len(), 1, "a try is owed");
        world.answer(0, Some(class));
        if world.owed.is_empty() {
            world.tick(60_000);
        }
    }
}

#[test]
fn a_device_in_trouble_keeps_its_committed_bundle_once_the_trouble_passes() {
    for class in [FailureClass::Transient, FailureClass::Attempt, FailureClass::Bundle] {
        let mut world = World::new();
        install(&mut world, 1);
        install(&mut world, 2);
        world.crash();
        for _ in 0..2 {
            world.answer(0, Some(class));
            assert_eq!(active(&world), digest(2), "given up too soon");
            world.tick(60_000);
        }
        world.answer(0, None);
        assert!(world.core.ready());
        assert_eq!(active(&world), digest(2));
        assert!(world.core.durable().models["m"].blocked.is_empty());
    }
}

#[test]
fn a_bundle_given_up_for_the_devices_trouble_is_not_blocked_and_may_come_back() {
    for class in [FailureClass::Transient, FailureClass::Attempt, FailureClass::Damaged] {
        let mut world = World::new();
        install(&mut world, 1);
        install(&mut world, 2);
        world.crash();
        fail_to_activate(&mut world, class);
        assert_eq!(active(&world), digest(1));
        world.answer(0, None);
        world.feed(Event::Offer(offer("m", 2, 2)));
        reach_probation(&mut world);
        assert_eq!(active(&world), digest(2));
    }
}

#[test]
fn a_load_that_came_to_no_end_rejects_the_attempt_and_not_the_bundle() {
    let mut world = World::new();
    install(&mut world, 1);
    world.feed(Event::Offer(offer("m", 2, 2)));
    (0..2).for_each(|_| world.answer(0, None));
    assert_eq!(state(&world), Some(InstallState::Loading));
    world.answer(0, Some(FailureClass::Attempt));
    assert_eq!(refusal(&world), "by chance");
    world.feed(Event::Offer(offer("m", 2, 2)));
    assert_eq!(state(&world), Some(InstallState::Downloading));
}

#[test]
fn a_damaged_only_bundle_may_be_fetched_anew() {
    let mut world = World::new();
    install(&mut world, 1);
    world.crash();
    fail_to_activate(&mut world, FailureClass::Damaged);
    world.owed.clear();
    assert!(!world.core.ready());
    world.feed(Event::Offer(offer("m", 1, 1)));
    reach_probation(&mut world);
    assert!(world.core.ready());
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
    let measure = send(&mut world, command("5", CommandKind::Measure, 0), None);
    assert!(measure.error.unwrap().contains("not supported yet"));
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
fn a_device_that_the_broker_leaves_deaf_says_so_until_it_hears_again() {
    let mut world = World::new();
    world.feed(Event::Connected);
    assert_eq!(device(&world).0, wire::DeviceState::Online);
    world.feed(Event::Subscribed { refused: Some("NotAuthorized".into()) });
    let (state, reason) = device(&world);
    assert_eq!(state, wire::DeviceState::Degraded);
    assert!(reason.contains("refuses the subscription") && reason.contains("NotAuthorized"));
    world.feed(Event::Subscribed { refused: None });
    assert_eq!(device(&world).0, wire::DeviceState::Online);
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
