//! Clocks that are not set, jump ahead, and come back.

use super::*;

/// 1970, some minutes after a start.
const UNSET: u64 = 300;

#[test]
fn a_device_that_restarts_in_1970_updates_and_still_knows_a_freeze() {
    let owner = Owner::new();
    let old = owner.copy();
    let device = owner.device();
    device.refresh(&old, NOW + DAY).unwrap();
    let digest = owner.add(NOW + 2 * DAY, 1);
    let trusted = device.refresh(&owner.copy(), UNSET).unwrap();
    trusted.allows(&wanted(digest, 1)).unwrap();
    assert_eq!(trusted.now_s, NOW + 2 * DAY, "the new timestamp was signed then");
    let frozen = owner.copy();
    device.refresh(&frozen, NOW + 3 * DAY).unwrap();
    assert_eq!(device.refused(&frozen, NOW + 20 * DAY).0, Check::Freeze);
    assert_eq!(device.refused(&frozen, UNSET).0, Check::Freeze, "the last known time holds");
    owner.at(NOW + 20 * DAY).refresh().unwrap();
    device.refresh(&owner.copy(), UNSET).unwrap();
}

#[test]
fn a_device_whose_clock_was_never_set_learns_the_time_from_what_is_signed() {
    let owner = Owner::new();
    let device = owner.device();
    assert_eq!(device.refresh(&owner.copy(), UNSET).unwrap().now_s, NOW);
    owner.at(NOW + 30 * DAY).refresh().unwrap();
    assert_eq!(device.refresh(&owner.copy(), UNSET).unwrap().now_s, NOW + 30 * DAY);
}

#[test]
fn a_clock_that_jumped_years_ahead_and_was_set_right_does_no_lasting_harm() {
    let owner = Owner::new();
    let device = owner.device();
    device.refresh(&owner.copy(), NOW).unwrap();
    let ahead = NOW + 20 * 365 * DAY;
    assert_eq!(device.refused(&owner.copy(), ahead).0, Check::Freeze);
    assert_eq!(device.refused(&owner.copy(), UNSET).0, Check::Freeze, "nothing better is known");
    device.refresh(&owner.copy(), NOW + DAY).unwrap();
    device.refresh(&owner.copy(), UNSET).unwrap();
}

#[test]
fn a_clock_set_back_behind_what_is_proved_is_not_believed() {
    let owner = Owner::new();
    let frozen = owner.copy();
    let device = owner.device();
    owner.at(NOW + 9 * DAY).refresh().unwrap();
    device.refresh(&owner.copy(), NOW + 9 * DAY).unwrap();
    let trusted = device.refresh(&owner.copy(), NOW - 300 * DAY).unwrap();
    assert_eq!(trusted.now_s, NOW + 9 * DAY);
    assert_eq!(device.refused(&frozen, NOW - 300 * DAY).0, Check::Rollback);
}

#[test]
fn lenient_lets_expired_metadata_pass_and_says_so() {
    let owner = Owner::new();
    let digest = owner.add(NOW, 1);
    let device = owner.device().lenient();
    let trusted = device.refresh(&owner.copy(), NOW + 1000 * DAY).unwrap();
    trusted.allows(&wanted(digest, 1)).unwrap();
    assert_eq!(trusted.warnings.len(), 4, "{:?}", trusted.warnings);
}

#[test]
fn a_time_signed_beyond_its_own_expiry_proves_nothing() {
    let owner = Owner::new();
    owner.forge::<tough::schema::Timestamp>("timestamp.json", Role::Timestamp, |t| {
        t._extra.insert("x-espalier-signed-at".into(), (NOW + 8 * DAY).into());
    });
    assert_eq!(owner.device().refresh(&owner.copy(), UNSET).unwrap().now_s, 0);
}

#[test]
fn a_device_that_was_off_for_a_year_catches_up() {
    let owner = Owner::new();
    let device = owner.device();
    device.refresh(&owner.copy(), NOW).unwrap();
    let mut digest = None;
    for month in 1..=12 {
        digest = Some(owner.add(NOW + month * 30 * DAY, month));
        if month % 4 == 0 {
            super::roots::renew(&owner, NOW + month * 30 * DAY);
        }
    }
    for clock in [UNSET, NOW + 361 * DAY] {
        let trusted = device.refresh(&owner.copy(), clock).unwrap();
        assert_eq!(trusted.versions[&Role::Root], 4);
        trusted.allows(&wanted(digest.unwrap(), 12)).unwrap();
    }
}
