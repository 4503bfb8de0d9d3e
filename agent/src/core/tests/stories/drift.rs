//! Requests that no longer look like what the model was judged on.

use wire::BudgetKind;

use super::*;

fn drifts(world: &World) -> Vec<bool> {
    let of = |report: &Report| match report {
        Report::Breach(breach) if breach.budget == BudgetKind::Drift => Some(breach.recompress),
        _ => None,
    };
    world.reports.iter().filter_map(of).collect()
}

#[test]
fn drift_that_stands_is_told_and_a_model_that_fits_is_asked_for_once() {
    let mut world = World::new();
    install(&mut world, 1);
    // A pool ends with its second window here.
    (0..4).for_each(|_| world.look("m", 200, true));
    assert_eq!(drifts(&world), [true]);
    let request = world.reports.iter().find_map(|report| match report {
        Report::Recompress(request) => Some(request.clone()),
        _ => None,
    });
    let request = request.unwrap();
    assert_eq!((request.budget, request.cause), (BudgetKind::Drift, Cause::Data));
    let test = request.drift.unwrap();
    assert!(test.drifted && test.psi > 0.2, "{test:?}");
    assert_eq!((test.requests, test.reference, test.watched), (400, 500, 2));
    assert!(test.features[0].drifted && !test.features[1].drifted, "{test:?}");
    (0..40).for_each(|_| world.look("m", 200, true));
    assert_eq!(requests(&world), 1, "it is open");
    assert!(drifts(&world).len() > 1, "told again, once per cooldown");
    let status = world.core.durable().models["m"].requests.keys().cloned().collect::<Vec<_>>();
    assert_eq!(status, ["drift"]);
}

#[test]
fn requests_like_the_reference_bring_neither_breach_nor_request_and_their_test_is_told() {
    let mut world = World::new();
    install(&mut world, 1);
    (0..40).for_each(|_| world.look("m", 200, false));
    assert_eq!((drifts(&world).len(), requests(&world)), (0, 0));
    let tests: Vec<wire::DriftTest> = world.reports.iter().filter_map(told).collect();
    assert_eq!(tests.len(), 20);
    assert!(tests.iter().all(|test| !test.drifted && test.psi == 0.0));
}

fn told(report: &Report) -> Option<wire::DriftTest> {
    match report {
        Report::Infer(window) => window.drift.clone(),
        _ => None,
    }
}

#[test]
fn one_pool_of_many_that_drifted_is_no_breach() {
    let mut world = World::new();
    install(&mut world, 1);
    for round in 0..30 {
        world.look("m", 200, round / 2 % 3 == 0);
    }
    assert_eq!(drifts(&world), Vec::<bool>::new());
}

#[test]
fn few_requests_are_pooled_until_they_are_enough() {
    let mut world = World::new();
    install(&mut world, 1);
    for _ in 0..9 {
        world.look("m", 10, true);
    }
    assert!(world.reports.iter().filter_map(told).next().is_none());
    world.look("m", 10, true);
    assert_eq!(
        world.reports.iter().filter_map(told).map(|t| t.requests).collect::<Vec<_>>(),
        [100]
    );
}

#[test]
fn a_new_bundle_begins_a_new_pool() {
    let mut world = World::new();
    install(&mut world, 1);
    (0..9).for_each(|_| world.look("m", 10, true));
    world.feed(Event::Offer(offer("m", 2, 2)));
    reach_probation(&mut world);
    (0..2).for_each(|_| world.window("m", FAST));
    assert_eq!(active(&world), digest(2));
    world.look("m", 10, false);
    assert!(world.reports.iter().filter_map(told).next().is_none(), "the pool began anew");
}

#[test]
fn a_model_without_a_drift_budget_is_not_tested() {
    let mut world = World::new();
    world.feed(Event::BudgetsConfigured(BTreeMap::new()));
    install(&mut world, 1);
    (0..10).for_each(|_| world.look("m", 200, true));
    assert!(world.reports.iter().filter_map(told).next().is_none());
    assert_eq!(drifts(&world), Vec::<bool>::new());
}

#[test]
fn an_unanswered_request_is_given_up_after_its_own_time() {
    let mut world = World::new();
    install(&mut world, 1);
    (0..4).for_each(|_| world.look("m", 200, true));
    assert_eq!(requests(&world), 1);
    world.tick(settings().breach.request_timeout_ms + 1);
    assert_eq!(world.core.durable().models["m"].requests.len(), 1, "drift waits longer");
    world.tick(settings().drift.request_timeout_ms);
    assert!(world.core.durable().models["m"].requests.is_empty());
}
