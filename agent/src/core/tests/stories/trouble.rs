//! Trouble that is the device's, and what the agent makes of it.

use super::*;

#[test]
fn every_way_back_is_told_as_a_rollback() {
    let rollbacks = |world: &World| -> Vec<(String, Option<String>, bool)> {
        let of = |report: &Report| match report {
            Report::Rollback(r) => Some((r.from_digest.clone(), r.to_digest.clone(), r.blocked)),
            _ => None,
        };
        world.reports.iter().filter_map(of).collect()
    };
    let mut world = World::new();
    install(&mut world, 1);
    world.feed(Event::Offer(offer("m", 2, 2)));
    reach_probation(&mut world);
    world.window("m", Shape { errors: 20, ..FAST });
    assert_eq!(rollbacks(&world), [(digest(2), Some(digest(1)), true)]);
    let mut world = World::new();
    install(&mut world, 1);
    install(&mut world, 2);
    world.crash();
    fail_to_activate(&mut world, FailureClass::Attempt);
    assert_eq!(rollbacks(&world), [(digest(2), Some(digest(1)), false)]);
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
