//! Offers that what allows them is not there for, or not yet.

use super::*;

const DAY_MS: u64 = 86_400_000;

/// Fails the download that is asked for.
fn fail(world: &mut World, class: FailureClass) {
    assert_eq!(world.owed.len(), 1, "nothing is asked for");
    world.answer(0, Some(class));
    assert!(world.owed.is_empty());
}

/// Lets time pass until the download is asked for again, and says how long that took, in ms.
fn wait(world: &mut World, at_most: u64) -> Option<u64> {
    let began = world.now;
    while world.owed.is_empty() && world.now.since(began) < at_most {
        world.tick(1000);
    }
    (!world.owed.is_empty()).then(|| world.now.since(began))
}

/// The reasons that installs were told with, and how they stood.
fn told(world: &World) -> Vec<(InstallOutcome, String)> {
    let reasons = installs(world).into_iter();
    reasons.filter_map(|(_, outcome, reason)| Some((outcome, reason?))).collect()
}

#[test]
fn a_bundle_that_cannot_be_seen_to_be_allowed_for_a_month_is_installed_then_and_told_of_once() {
    let mut world = World::new();
    install(&mut world, 1);
    world.feed(Event::Offer(offer("m", 2, 2)));
    let begin = world.now;
    let mut asked = 0_u64;
    while world.now.since(begin) < 30 * DAY_MS {
        fail(&mut world, FailureClass::Withheld);
        asked += 1;
        wait(&mut world, 900_000).expect("asked again within the longest wait");
    }
    assert!((30 * 96..30 * 96 * 3).contains(&asked), "asked {asked} times");
    let reasons = told(&world);
    assert_eq!(reasons, [(InstallOutcome::Progress, "will be tried again: by chance".to_owned())]);
    assert_eq!(active(&world), digest(1));
    reach_probation(&mut world);
    assert_eq!(active(&world), digest(2));
}

#[test]
fn a_network_that_fails_while_waiting_does_not_count_the_waits() {
    let mut world = World::new();
    world.feed(Event::Offer(offer("m", 1, 1)));
    for _ in 0..10 {
        fail(&mut world, FailureClass::Withheld);
        wait(&mut world, 900_000).unwrap();
        fail(&mut world, FailureClass::Transient);
        wait(&mut world, 900_000).unwrap();
    }
    reach_probation(&mut world);
}

#[test]
fn the_moment_of_a_publication_passes_and_a_lasting_no_ends_the_offer() {
    let mut world = World::new();
    world.feed(Event::Offer(offer("m", 1, 1)));
    fail(&mut world, FailureClass::Doubtful);
    wait(&mut world, 900_000).unwrap();
    assert_eq!(told(&world), [], "a moment is not worth telling");
    reach_probation(&mut world);
    let mut world = World::new();
    world.feed(Event::Offer(offer("m", 1, 1)));
    while state(&world).is_some() {
        fail(&mut world, FailureClass::Doubtful);
        wait(&mut world, 100_000);
    }
    assert!(refusal(&world).contains("by chance (5 times in a row, the limit MAX_DOUBTS)"));
    assert_eq!(told(&world).len(), 1);
    world.feed(Event::Offer(offer("m", 1, 1)));
    assert_eq!(state(&world), Some(InstallState::Downloading), "not blocked");
}

#[test]
fn the_same_offer_again_is_looked_at_soon() {
    let mut world = World::new();
    world.feed(Event::Offer(offer("m", 1, 1)));
    for _ in 0..30 {
        fail(&mut world, FailureClass::Withheld);
        wait(&mut world, 900_000).unwrap();
    }
    // Some waits are short by chance.
    let mut longest = 0;
    for _ in 0..10 {
        fail(&mut world, FailureClass::Withheld);
        world.feed(Event::Offer(offer("m", 1, 1)));
        longest = longest.max(wait(&mut world, 900_000).unwrap());
    }
    assert!(longest <= 2_000, "{longest} ms after a new connection");
}

#[test]
fn an_offer_that_waits_gives_way_to_its_withdrawal_and_to_a_newer_one() {
    let mut world = World::new();
    world.feed(Event::Offer(offer("m", 1, 1)));
    fail(&mut world, FailureClass::Withheld);
    world.feed(Event::Withdrawn { model: "m".into() });
    assert_eq!(refusal(&world), "the offer was withdrawn");
    assert_eq!(wait(&mut world, 2_000_000), None);
    world.feed(Event::Offer(offer("m", 1, 1)));
    fail(&mut world, FailureClass::Withheld);
    world.feed(Event::Offer(offer("m", 2, 2)));
    reach_probation(&mut world);
    assert_eq!(active(&world), digest(2));
}
