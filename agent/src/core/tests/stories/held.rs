//! Downloads that wait for their time.

use super::*;

const MIDNIGHT: Conditions = Conditions { minute: Some(0), on_battery: false };
const NOON: Conditions = Conditions { minute: Some(720), on_battery: false };
const MIDNIGHT_ON_BATTERY: Conditions = Conditions { on_battery: true, ..MIDNIGHT };

/// A device that downloads at night and from the mains, and has been told what the world is like.
fn strict(conditions: Conditions) -> World {
    let mut world = World::new();
    let window = Some("22:00-06:00".parse().unwrap());
    world.core.settings.download = DownloadRules { window, pause_on_battery: true };
    world.feed(Event::Conditions(conditions));
    world
}

fn waiting(world: &World) -> Option<String> {
    let status = world.core.status(world.now);
    status.models.into_iter().find(|m| m.name == "m")?.install?.waiting
}

/// The reason in the last report of the model.
fn told(world: &World) -> Option<String> {
    let of = |report: &Report| match report {
        Report::Model(state) => Some(state.reason.clone()),
        _ => None,
    };
    world.reports.iter().rev().find_map(of).flatten()
}

#[test]
fn a_download_waits_for_its_time_pauses_and_goes_on_with_the_reason_told() {
    let mut world = strict(NOON);
    world.feed(Event::Offer(offer("m", 1, 1)));
    assert!(world.owed.is_empty());
    assert_eq!(state(&world), Some(InstallState::Downloading));
    assert!(waiting(&world).unwrap().contains("download.window = 22:00-06:00 UTC"));
    assert_eq!(told(&world), waiting(&world));
    world.feed(Event::Conditions(MIDNIGHT));
    assert_eq!((world.owed.len(), waiting(&world), told(&world)), (1, None, None));
    world.feed(Event::Conditions(MIDNIGHT_ON_BATTERY));
    assert!(world.owed.is_empty(), "paused");
    assert!(told(&world).unwrap().contains("download.pause_on_battery"));
    world.feed(Event::Conditions(MIDNIGHT));
    world.feed(Event::Conditions(MIDNIGHT));
    assert_eq!(world.owed.len(), 1, "asked for once");
    reach_probation(&mut world);
}

#[test]
fn a_newer_offer_replaces_one_that_waits_and_waits_itself() {
    let mut world = strict(NOON);
    world.feed(Event::Offer(offer("m", 1, 1)));
    world.feed(Event::Offer(offer("m", 2, 2)));
    assert!(world.owed.is_empty() && waiting(&world).is_some());
    world.feed(Event::Conditions(MIDNIGHT));
    assert!(matches!(&world.owed[..], [Owed::Step(_, _, Step::Download(o))] if o.sequence == 2));
}

#[test]
fn a_window_without_a_clock_and_a_world_not_seen_yet_are_waited_for() {
    let mut world = strict(Conditions { minute: None, on_battery: false });
    world.feed(Event::Offer(offer("m", 1, 1)));
    assert!(waiting(&world).unwrap().contains("the clock to be set"));
    world.core.conditions = None;
    world.feed(Event::Offer(offer("m", 2, 2)));
    assert!(waiting(&world).unwrap().contains("waits to see"));
}

#[test]
fn a_download_that_ended_as_it_was_paused_goes_on_and_one_that_failed_waits_twice() {
    let mut world = strict(MIDNIGHT);
    world.feed(Event::Offer(offer("m", 1, 1)));
    world.answer(0, Some(FailureClass::Transient));
    assert!(waiting(&world).unwrap().contains("will be tried again: by chance"));
    world.feed(Event::Conditions(NOON));
    world.now = world.now.plus(600_000);
    world.feed(Event::Tick);
    assert!(world.owed.is_empty());
    world.feed(Event::Conditions(MIDNIGHT));
    let download = world.owed.remove(0);
    world.feed(Event::Conditions(NOON));
    let Owed::Step(model, install, _) = download else { panic!("not a step") };
    world.feed(Event::Step { model, install, outcome: Ok(StepDone::Downloaded) });
    assert_eq!((state(&world), waiting(&world)), (Some(InstallState::Verifying), None));
}

#[test]
fn nothing_but_the_download_waits() {
    let mut world = strict(MIDNIGHT);
    world.feed(Event::Offer(offer("m", 1, 1)));
    world.answer(0, None);
    world.feed(Event::Conditions(NOON));
    reach_probation(&mut world);
}
