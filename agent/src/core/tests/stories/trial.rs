//! Probations: what takes a model back, what does not, and what is told of it.

use super::*;
use crate::core::{Prediction, Predictions};
use wire::{Metric, Reference, Trial, TrialMetric};

const MIB: u64 = 1 << 20;

/// A device whose first model has taken `us` for each request, with so much memory, and whose second is
/// on probation. There is no latency budget.
fn on_probation(us: u64, bytes: u64) -> World {
    let mut world = World::new();
    install(&mut world, 1);
    unlimited(&mut world);
    for _ in 0..3 {
        read(&mut world, Shape { us, ..FAST }, |facts| facts.models[0].pss_bytes = Some(bytes));
    }
    world.feed(Event::Offer(offer("m", 2, 2)));
    reach_probation(&mut world);
    world
}

fn unlimited(world: &mut World) {
    let command = Command {
        header: header::<Command>(),
        id: "unlimited".into(),
        kind: CommandKind::SetBudget,
        expires_ms: 0,
        args: serde_json::json!({ "model": "m", "latency_p95_us": null }),
    };
    world.feed(Event::Command { command, unix_ms: None });
}

/// A window of the active model with readings beside it.
fn read(world: &mut World, shape: Shape, reading: impl FnOnce(&mut WindowFacts)) {
    let Event::Window(mut facts) = window("m", &active(world), shape) else { return };
    reading(&mut facts);
    world.feed(Event::Window(facts));
}

fn energy(quality: Quality, mj: f64) -> impl FnOnce(&mut WindowFacts) {
    move |facts| {
        facts.power = Some(wire::PowerWindow {
            header: header::<wire::PowerWindow>(),
            window_ms: 1000,
            windows: 1,
            source: "test".into(),
            quality,
            power_mw: Some(5000.0),
            power_error_mw: None,
            energy_per_inference_mj: Some(mj),
            energy_error_mj: Some(0.0),
            model: None,
        });
    }
}

/// What was told of the last probation.
fn told(world: &World) -> Trial {
    let of = |report: &Report| match report {
        Report::Install(event) => event.trial.clone(),
        _ => None,
    };
    world.reports.iter().rev().find_map(of).unwrap()
}

fn metric(world: &World, metric: Metric) -> TrialMetric {
    told(world).metric(metric).unwrap().clone()
}

#[test]
fn a_slower_model_is_taken_back_in_its_first_window_with_the_evidence_and_the_way_is_free_for_another()
 {
    let mut world = on_probation(20_000, MIB);
    read(&mut world, Shape { us: 40_000, ..FAST }, |_| {});
    let (phase, outcome, reason) = installs(&world).pop().unwrap();
    assert_eq!((phase, outcome), (ModelPhase::RolledBack, InstallOutcome::RolledBack));
    let reason = reason.unwrap();
    assert!(reason.contains("latency_p95") && reason.contains("false_rollback_rate"), "{reason}");
    let latency = metric(&world, Metric::LatencyP95);
    assert_eq!(latency.reference, Some(Reference::Previous));
    assert!(latency.e_value >= latency.e_needed && latency.observations >= 20.0, "{latency:?}");
    let near = |value: Option<f64>, wanted: f64| (value.unwrap() / wanted - 1.0).abs() < 0.02;
    assert!(near(latency.measured, 40_000.0) && near(latency.before, 20_000.0), "{latency:?}");
    // What is told is what serves, and the next offer is taken.
    let Some(Report::Model(model)) =
        world.reports.iter().rev().find(|report| matches!(report, Report::Model(_)))
    else {
        panic!("no state of the model");
    };
    assert_eq!((model.digest.clone(), model.phase), (Some(digest(1)), ModelPhase::RolledBack));
    world.answer(0, None);
    world.feed(Event::Offer(offer("m", 3, 3)));
    reach_probation(&mut world);
    (0..2).for_each(|_| world.window("m", FAST));
    assert_eq!(active(&world), digest(3));
    world.feed(Event::Offer(offer("m", 4, 2)));
    assert!(refusal(&world).contains("taken back on this device before"));
}

#[test]
fn microseconds_and_the_width_of_a_bucket_take_no_model_back() {
    // 64 us and 66 us, or 1000 us and 1031 us, are neighbours in the histogram.
    for (before, after) in [(6, 8), (1, 900), (64, 66), (1000, 1031), (20_000, 24_900)] {
        let mut world = on_probation(before, MIB);
        (0..2).for_each(|_| read(&mut world, Shape { us: after, ..FAST }, |_| {}));
        assert_eq!((active(&world), state(&world)), (digest(2), None), "{before} to {after}");
    }
}

#[test]
fn what_the_bundle_predicts_excuses_a_slower_model_and_its_error_is_told() {
    let mut world = World::new();
    install(&mut world, 1);
    unlimited(&mut world);
    (0..3).for_each(|_| world.window("m", Shape { us: 20_000, ..FAST }));
    let predicted = Prediction { value: 40_000.0, high: 42_000.0, quality: Quality::Measured };
    world.predicted = Predictions { latency_p95_us: Some(predicted), ..Predictions::default() };
    world.feed(Event::Offer(offer("m", 2, 2)));
    reach_probation(&mut world);
    (0..2).for_each(|_| world.window("m", Shape { us: 44_000, ..FAST }));
    assert_eq!((active(&world), state(&world)), (digest(2), None));
    let latency = metric(&world, Metric::LatencyP95);
    assert_eq!(
        (latency.reference, latency.predicted),
        (Some(Reference::Predicted), Some(40_000.0))
    );
    let error = latency.prediction_error.unwrap();
    assert!((error - 0.1).abs() < 0.02, "{error}");
}

#[test]
fn more_memory_than_allowed_takes_a_model_back_and_a_little_more_does_not() {
    for (mib, taken_back) in [(60, false), (80, true)] {
        let mut world = on_probation(20_000, 50 * MIB);
        for _ in 0..2 {
            read(&mut world, Shape { us: 20_000, ..FAST }, |facts| {
                facts.models[0].pss_bytes = Some(mib * MIB);
            });
        }
        assert_eq!(active(&world), digest(if taken_back { 1 } else { 2 }), "{mib} MiB");
        assert_eq!(metric(&world, Metric::Memory).measured, Some((mib * MIB) as f64));
    }
}

#[test]
fn energy_takes_a_model_back_only_where_it_was_measured() {
    for (quality, taken_back) in [(Quality::Measured, true), (Quality::Modelled, false)] {
        let mut world = World::new();
        install(&mut world, 1);
        (0..3).for_each(|_| read(&mut world, FAST, energy(quality, 50.0)));
        world.feed(Event::Offer(offer("m", 2, 2)));
        reach_probation(&mut world);
        let windows = (1..=3).take_while(|_| {
            let runs = state(&world).is_some();
            read(&mut world, FAST, energy(quality, 100.0));
            runs
        });
        assert_eq!(windows.count(), if taken_back { 3 } else { 2 }, "{quality}");
        assert_eq!(active(&world), digest(if taken_back { 1 } else { 2 }), "{quality}");
        assert_eq!(metric(&world, Metric::Energy).measured.is_some(), taken_back);
    }
}

#[test]
fn a_restart_of_the_agent_neither_forgets_nor_repeats_what_a_probation_has_seen() {
    let few = Shape { us: 40_000, requests: 1, ..FAST };
    let trial = |world: &World| {
        world.core.durable().models["m"].install.as_ref().and_then(|own| own.trial.clone())
    };
    let mut whole = on_probation(20_000, MIB);
    let mut broken = on_probation(20_000, MIB);
    for _ in 0..3 {
        whole.window("m", few);
        broken.window("m", few);
        broken.crash();
        broken.answer(0, None);
    }
    assert!(trial(&whole).is_some());
    assert_eq!(trial(&whole), trial(&broken));
    assert_eq!(state(&broken), Some(InstallState::Probation), "three requests are not enough");
    for world in [&mut whole, &mut broken] {
        world.window("m", few);
        assert_eq!(active(world), digest(1));
        world.check();
    }
    assert_eq!(told(&whole), told(&broken));
}

#[test]
fn deaths_of_the_worker_are_counted_over_restarts_of_the_agent() {
    let mut world = on_probation(20_000, MIB);
    world.feed(Event::WorkerDied { model: "m".into(), reason: "signal 9".into() });
    world.crash();
    world.answer(0, None);
    assert_eq!(active(&world), digest(2));
    world.feed(Event::WorkerDied { model: "m".into(), reason: "signal 9".into() });
    assert_eq!(active(&world), digest(1));
    let crashes = metric(&world, Metric::Crashes);
    assert_eq!((crashes.measured, crashes.e_value), (Some(2.0), crashes.e_needed));
}

#[test]
fn a_suspicion_makes_a_probation_longer_but_not_without_end() {
    // One reading is over, and there is no other: too much for a good model, too little to be sure.
    let mut world = on_probation(20_000, 50 * MIB);
    let mut windows = 0;
    while state(&world) == Some(InstallState::Probation) {
        read(&mut world, Shape { us: 20_000, ..FAST }, |facts| {
            facts.models[0].pss_bytes = (windows == 0).then_some(80 * MIB);
        });
        windows += 1;
    }
    assert_eq!((windows, active(&world)), (8, digest(2)), "four times the two that are wanted");
}
