//! Slowness that is somebody else's.

use super::*;

/// What a window shows beside its requests, and whom that is held against.
type Case = (fn(&mut WindowFacts), Cause);

/// Two windows that are slow and show this.
fn slow_windows(show: fn(&mut WindowFacts)) -> World {
    let mut world = World::new();
    install(&mut world, 1);
    world.now = Millis(100_000);
    for _ in 0..2 {
        // 20 requests of 5 ms: 100 ms in the engine of a second on four processors.
        let Event::Window(mut facts) = window("m", &digest(1), SLOW) else { panic!("a window") };
        show(&mut facts);
        world.feed(Event::Window(facts));
    }
    world
}

fn of(facts: &mut WindowFacts) -> (&mut ModelFacts, &mut ResourceWindow) {
    (&mut facts.models[0], facts.resources.as_mut().unwrap())
}

fn held_against(cases: &[Case]) {
    for (n, (show, cause)) in cases.iter().enumerate() {
        let world = slow_windows(*show);
        assert_eq!(breaches(&world), [(*cause, *cause == Cause::Model)], "case {n}");
        assert_eq!(requests(&world), usize::from(*cause == Cause::Model), "case {n}");
    }
}

/// How long the worker waited, in thousandths of a second, and what others used, in percent.
fn waits(facts: &mut WindowFacts, wait_ms: u64, others: f64) {
    let (model, resources) = of(facts);
    model.wait_us = Some(wait_ms * 1000);
    resources.others_percent = Some(others);
}

#[test]
fn a_neighbour_that_takes_the_processor_is_told_as_such_and_no_model_is_asked_for() {
    held_against(&[
        // A package manager on one of four processors, and the worker waits for a third of its time.
        (|facts| waits(facts, 33, 25.0), Cause::Steal),
        // It is busy too, but on another processor.
        (|facts| waits(facts, 2, 25.0), Cause::Model),
        // The worker waits, but for the agent's other models: nobody else used the processor.
        (|facts| waits(facts, 33, 0.1), Cause::Model),
        // A thousandth of a second is what waking up for twenty requests may cost.
        (|facts| waits(facts, 1, 90.0), Cause::Model),
        (
            |facts| {
                waits(facts, 33, 25.0);
                of(facts).0.wait_us = None;
            },
            Cause::Model,
        ),
        (
            |facts| {
                waits(facts, 33, 25.0);
                of(facts).0.wait_us = None;
                // Without run delays the control group's pressure tells: 5 % of a second.
                of(facts).1.group_cpu_pressure_percent = Some(5.0);
            },
            Cause::Steal,
        ),
    ]);
}

#[test]
fn memory_that_is_short_is_told_as_such_also_without_swap() {
    held_against(&[
        (|facts| of(facts).1.swap_in_pages = Some(64), Cause::Swap),
        // Its model's file was evicted and is read again.
        (|facts| of(facts).0.major_faults = Some(64), Cause::Swap),
        (|facts| of(facts).0.major_faults = Some(63), Cause::Model),
        (|facts| of(facts).1.memory_pressure_percent = Some(10.0), Cause::Swap),
        (|facts| of(facts).1.group_memory_pressure_percent = Some(10.0), Cause::Swap),
        (|facts| of(facts).1.memory_pressure_percent = Some(9.9), Cause::Model),
        // Storage that is slow slows whoever reads; a worker that read nothing was not slowed.
        (|facts| of(facts).1.io_stall_percent = Some(90.0), Cause::Model),
        (
            |facts| {
                of(facts).1.io_stall_percent = Some(90.0);
                of(facts).0.major_faults = Some(1);
            },
            Cause::Swap,
        ),
        // A model that was just loaded is read from the storage.
        (
            |facts| {
                of(facts).0.major_faults = Some(900);
                of(facts).0.cold = true;
            },
            Cause::ColdStart,
        ),
    ]);
}

#[test]
fn a_long_queue_before_a_fast_engine_stays_overload_whatever_neighbours_do() {
    let mut world = World::new();
    install(&mut world, 1);
    world.now = Millis(100_000);
    for _ in 0..2 {
        let Event::Window(mut facts) = window("m", &digest(1), FAST) else { panic!("a window") };
        waits(&mut facts, 33, 25.0);
        (0..20).for_each(|_| facts.models[0].queue.record(9000));
        world.feed(Event::Window(facts));
    }
    assert_eq!(breaches(&world), [(Cause::Overload, false)]);
}
