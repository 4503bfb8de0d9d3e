//! Budgets, whom a breach is attributed to, and what is asked for because of it.

use super::*;

/// What a window shows beyond latency.
type Readings = fn(&mut WindowFacts);

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
    let slow = window("m", &digest(1), SLOW);
    if let Event::Window(facts) = &slow {
        world.oracle.see(&world.core, facts);
    }
    let effects = world.core.step(world.now, slow);
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
    Event::Window(Box::new(facts))
}

fn power_window(facts: &mut WindowFacts) {
    facts.power = Some(wire::PowerWindow {
        header: header::<wire::PowerWindow>(),
        window_ms: 1000,
        windows: 1,
        source: "test".into(),
        quality: Quality::Measured,
        power_mw: Some(5000.0),
        power_error_mw: None,
        energy_per_inference_mj: Some(50.0),
        energy_error_mj: Some(2.0),
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
            let event = reading(&world, models, FAST, power_window);
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
    let cases: [(&str, Shape, Readings, Cause); 4] = [
        ("energy_mj", hot, power_window, Cause::Thermal),
        ("energy_mj", FAST, power_window, Cause::Model),
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
fn a_figure_breaks_a_budget_only_where_its_error_leaves_no_doubt() {
    let with = |power: f64, error: Option<f64>, quality: Quality, energy: Option<f64>| {
        move |facts: &mut WindowFacts| {
            power_window(facts);
            let window = facts.power.as_mut().unwrap();
            (window.power_mw, window.power_error_mw) = (Some(power), error);
            (window.quality, window.energy_error_mj) = (quality, energy);
        }
    };
    let (measured, modelled) = (Quality::Measured, Quality::Modelled);
    // A budget of 40: power 41 in mW, energy always 50 mJ.
    let cases = [
        ("power_mw", with(41.0, None, measured, None), true),
        ("power_mw", with(41.0, None, modelled, None), false),
        ("power_mw", with(41.0, Some(2.0), modelled, None), false),
        ("power_mw", with(45.0, Some(2.0), modelled, None), true),
        ("energy_mj", with(1.0, None, measured, None), false),
        ("energy_mj", with(1.0, None, measured, Some(7.0)), false),
        ("energy_mj", with(1.0, None, measured, Some(5.0)), true),
    ];
    for (n, (budget, readings, broken)) in cases.into_iter().enumerate() {
        let mut world = World::new();
        install(&mut world, 1);
        world.now = Millis(100_000);
        set_budget(&mut world, "1", budget, 40);
        for _ in 0..3 {
            let event = reading(&world, &[("m", 100)], FAST, readings);
            world.feed(event);
        }
        assert_eq!(requests(&world), usize::from(broken), "case {n}");
    }
}

#[test]
fn throttling_is_told_when_it_begins_and_when_it_ends() {
    let mut world = World::new();
    install(&mut world, 1);
    let hot = Shape { throttled: true, ..FAST };
    for (ms, shape) in [(1, FAST), (10, hot), (10, hot), (10, FAST), (10, FAST)] {
        world.now = world.now.plus(ms);
        world.window("m", shape);
    }
    let of = |report: &Report| match report {
        Report::Throttle(event) => Some((event.throttled, event.lasted_ms)),
        _ => None,
    };
    let told: Vec<_> = world.reports.iter().filter_map(of).collect();
    assert_eq!(told, [(true, None), (false, Some(20))]);
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
fn a_first_model_that_states_an_agreement_under_the_floor_is_refused_and_may_be_offered_again() {
    let mut settings = settings();
    settings.budgets.get_mut("m").unwrap().agreement_min = Some(0.9);
    let mut world = World::with(settings);
    world.stated_agreement = Some(0.85);
    world.feed(Event::Offer(offer("m", 1, 1)));
    (0..3).for_each(|_| world.answer(0, None));
    let reason = refusal(&world);
    assert!(reason.contains("0.8500") && reason.contains("agreement_min 0.9"), "{reason}");
    let model = world.core.durable().models.get("m");
    assert!(model.is_none_or(|model| model.blocked.is_empty()));
    world.stated_agreement = Some(0.91);
    install(&mut world, 2);
}
