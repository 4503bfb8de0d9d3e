//! Random histories.

use super::*;

#[derive(Clone, Debug)]
enum Op {
    Offer(usize, u64, u64, bool),
    Answer(usize, u8),
    Window(usize, u64, u64, u8),
    Look(usize, u64, bool),
    Shadow(u64, f64),
    Tick(u64),
    Died(usize),
    Restarted(usize, bool),
    Command(usize, u8, u64),
    Link(bool),
    Withdraw(usize),
    Crash,
    CrashAfter(usize, usize),
}

const MODELS: [&str; 3] = ["m", "n", "o"];

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0..3_usize, 1..6_u64, 0..4_u64, any::<bool>())
            .prop_map(|(m, s, n, fit)| Op::Offer(m, s, n, fit)),
        16 => (any::<usize>(), 0..16_u8).prop_map(|(w, c)| Op::Answer(w, c)),
        8 => (0..2_usize, 50..3000_u64, 0..4_u64, 0..6_u8)
            .prop_map(|(m, us, e, f)| Op::Window(m, us, e, f)),
        8 => (0..2_usize, 0..60_u64, any::<bool>())
            .prop_map(|(m, fives, shifted)| Op::Look(m, 5 * fives, shifted)),
        4 => (0..20_u64, 0.5..1.0).prop_map(|(n, a)| Op::Shadow(n, a)),
        6 => (1..4_000_u64).prop_map(Op::Tick),
        1 => (0..2_usize).prop_map(Op::Died),
        2 => (0..2_usize, any::<bool>()).prop_map(|(m, up)| Op::Restarted(m, up)),
        2 => (0..2_usize, 0..4_u8, any::<u64>()).prop_map(|(m, k, id)| Op::Command(m, k, id)),
        1 => any::<bool>().prop_map(Op::Link),
        1 => (0..3_usize).prop_map(Op::Withdraw),
        1 => Just(Op::Crash),
        2 => (any::<usize>(), 0..8_usize).prop_map(|(w, n)| Op::CrashAfter(w, n)),
    ]
}

fn class(chance: u8) -> Option<FailureClass> {
    match chance {
        0 => Some(FailureClass::Transient),
        1 => Some(FailureClass::Attempt),
        2 => Some(FailureClass::Bundle),
        3 => Some(FailureClass::Damaged),
        4 => Some(FailureClass::Withheld),
        5 => Some(FailureClass::Doubtful),
        _ => None,
    }
}

fn command(model: &str, kind: u8, id: u64) -> Event {
    let kind =
        [CommandKind::Ping, CommandKind::Rollback, CommandKind::SetBudget, CommandKind::Snapshot]
            [usize::from(kind) % 4];
    let command = Command {
        header: header::<Command>(),
        id: id.to_string(),
        kind,
        expires_ms: 0,
        args: serde_json::json!({ "model": model, "latency_p95_us": 500 + id % 1000 }),
    };
    let command = match kind {
        CommandKind::SetBudget => command,
        _ => Command { args: serde_json::json!({ "model": model }), ..command },
    };
    Event::Command { command, unix_ms: None }
}

fn play(world: &mut World, op: Op) {
    match op {
        Op::Offer(m, sequence, variant, fit) => {
            let mut offer = offer(MODELS[m], sequence, sequence * 10 + variant);
            if !fit && variant == 0 {
                offer.device_class = "n100".into();
            }
            offer.request_id = fit.then(|| "r".to_owned());
            world.feed(Event::Offer(offer));
        }
        Op::Answer(which, chance) => world.answer(which, class(chance)),
        Op::Window(m, us, errors, flags) => {
            let shape = Shape { us, requests: 20, errors, throttled: flags == 0, cold: flags == 1 };
            world.window(MODELS[m], shape);
        }
        Op::Look(m, requests, shifted) => world.look(MODELS[m], requests, shifted),
        Op::Shadow(requests, agreement) => world.shadow(requests, agreement),
        Op::Tick(ms) => world.tick(ms),
        Op::Died(m) => {
            world.feed(Event::WorkerDied { model: MODELS[m].into(), reason: "signal 9".into() })
        }
        Op::Restarted(m, true) => world.feed(Event::WorkerRestarted { model: MODELS[m].into() }),
        Op::Restarted(m, false) => world.feed(restart_failed(MODELS[m])),
        Op::Command(m, kind, id) => world.feed(command(MODELS[m], kind, id)),
        Op::Withdraw(m) => world.feed(Event::Withdrawn { model: MODELS[m].into() }),
        Op::Link(true) => world.feed(Event::Connected),
        Op::Link(false) => world.feed(Event::Disconnected { reason: "refused".into() }),
        Op::Crash => world.crash(),
        Op::CrashAfter(which, limit) => {
            if !world.owed.is_empty() {
                let owed = world.owed.remove(which % world.owed.len());
                let event = match owed {
                    Owed::Activate(model, digest) => world.activate(model, digest, None),
                    Owed::Step(model, install, step) => Event::Step {
                        outcome: Ok(world.do_step(&model, install, step)),
                        model,
                        install,
                    },
                };
                world.feed_until(event, limit);
            }
            world.crash();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_history_keeps_the_invariants(ops in prop::collection::vec(op(), 1..160)) {
        let mut world = World::new();
        for op in ops {
            play(&mut world, op);
            world.check();
        }
    }

    #[test]
    fn a_budget_set_by_command_cannot_make_a_request_without_slow_windows(
        ids in prop::collection::vec(any::<u64>(), 1..20),
    ) {
        let mut world = World::new();
        stories::install(&mut world, 1);
        for id in ids {
            world.feed(command("m", 2, id));
            world.window("m", FAST);
        }
        prop_assert!(!world.reports.iter().any(|r| matches!(r, Report::Recompress(_))));
    }

    #[test]
    fn requests_like_the_reference_never_ask_for_a_model(
        windows in prop::collection::vec(0..100_u64, 1..60),
    ) {
        let mut world = World::new();
        stories::install(&mut world, 1);
        windows.into_iter().for_each(|fives| world.look("m", 5 * fives, false));
        prop_assert!(!world.reports.iter().any(|r| matches!(r, Report::Recompress(_))));
    }

    #[test]
    fn every_prefix_of_a_journal_recovers_to_something_servable(
        ops in prop::collection::vec(op(), 1..160),
    ) {
        let mut world = World::new();
        ops.into_iter().for_each(|op| play(&mut world, op));
        let mut served: BTreeSet<String> = BTreeSet::new();
        for end in 0..=world.journal.len() {
            let (core, effects) = Core::recover(settings(), &world.journal[..end], Millis(0));
            let activates = |name: &String| effects.iter().any(
                |e| matches!(e, Effect::Activate { model, .. } if model == name));
            let durable = core.durable();
            served.extend(durable.active().into_iter().map(|entry| entry.model));
            prop_assert!(served.iter().all(activates), "after {end} records");
        }
    }
}
