//! Roots: thresholds, rotation over several versions, keys that are taken away.

use super::*;

fn pending(owner: &Owner) -> PathBuf {
    owner.dir.path().join("repository").join(PENDING)
}

fn sign(owner: &Owner, key: &Path) {
    sign_root(&pending(owner), &[KeyFile::open(key).unwrap()]).unwrap();
}

/// A root that differs in nothing but number and expiry.
pub(super) fn renew(owner: &Owner, now_s: u64) {
    owner.at(now_s).edit_root(&[Edit::Renew]).unwrap();
    sign(owner, &owner.key(Role::Root));
    owner.at(now_s).publish_root(None).unwrap();
}

/// Gives the root another key alone, signed by both.
fn rotate(owner: &Owner, number: u64) -> PathBuf {
    let new = owner.dir.path().join(format!("root-{number}.pem"));
    let old = match number {
        2 => owner.key(Role::Root),
        _ => owner.dir.path().join(format!("root-{}.pem", number - 1)),
    };
    let public = KeyFile::create(&new).unwrap().public();
    owner.at(NOW).edit_root(&[Edit::Rotate(Role::Root, None, public)]).unwrap();
    sign(owner, &old);
    sign(owner, &new);
    owner.at(NOW).publish_root(None).unwrap();
    new
}

#[test]
fn a_device_follows_roots_one_by_one_and_remembers_the_last() {
    let owner = Owner::new();
    let device = owner.device();
    (2..=5).for_each(|number| drop(rotate(&owner, number)));
    let all = owner.copy();
    let gap = all.clone().without("3.root.json");
    assert_eq!(device.refresh(&gap, NOW).unwrap().versions[&Role::Root], 2);
    assert_eq!(device.refresh(&all, NOW).unwrap().versions[&Role::Root], 5);
    // Whoever hides the newer roots, or replaces an old one, takes nothing back.
    let hidden = (2..=5).fold(all.clone(), |all, n| all.without(&format!("{n}.root.json")));
    assert_eq!(device.refresh(&hidden, NOW).unwrap().versions[&Role::Root], 5);
}

#[test]
fn a_root_that_skips_a_number_is_refused() {
    let owner = Owner::new();
    (2..=3).for_each(|number| drop(rotate(&owner, number)));
    let all = owner.copy();
    let skipped = all.clone().and(
        "2.root.json",
        &Between::default().with("2.root.json", all.files["3.root.json"].clone()),
    );
    let (check, reason) = owner.device().refused(&skipped, NOW);
    assert!(matches!(check, Check::Signature | Check::Rollback), "{reason}");
}

#[test]
fn a_new_root_needs_the_keys_of_the_old_one() {
    let (owner, thief) = (Owner::new(), Owner::new());
    rotate(&thief, 2);
    let told = owner.copy().and("2.root.json", &thief.copy());
    let (check, reason) = owner.device().refused(&told, NOW);
    assert_eq!(check, Check::Signature, "{reason}");
    assert!(reason.contains("root"), "{reason}");
}

#[test]
fn more_new_roots_than_the_limit_are_followed_by_the_next_updates() {
    let owner = Owner::new();
    let mut device = owner.device();
    device.limits.root_updates = 2;
    (2..=5).for_each(|_| renew(&owner, NOW));
    let (check, reason) = device.refused(&owner.copy(), NOW);
    assert_eq!(check, Check::RootUpdates, "{reason}");
    assert_eq!(device.refused(&owner.copy(), NOW).0, Check::RootUpdates);
    assert_eq!(device.refresh(&owner.copy(), NOW).unwrap().versions[&Role::Root], 5);
}

#[test]
fn keys_below_the_threshold_change_nothing() {
    let owner = Owner::new();
    let second = owner.dir.path().join("second.pem");
    let targets = owner.dir.path().join("repository/keys/targets-2.pem");
    let edits = [
        Edit::AddKey(Role::Root, KeyFile::create(&second).unwrap().public()),
        Edit::Threshold(Role::Root, 2),
        Edit::AddKey(Role::Targets, KeyFile::create(&targets).unwrap().public()),
        Edit::Threshold(Role::Targets, 2),
    ];
    owner.at(NOW).edit_root(&edits).unwrap();
    sign(&owner, &owner.key(Role::Root));
    let error = owner.at(NOW).publish_root(None).unwrap_err().to_string();
    assert!(error.contains("signed by 1 of 2 of its own keys"), "{error}");
    sign(&owner, &second);
    owner.at(NOW).publish_root(None).unwrap();
    let device = owner.device();
    device.refresh(&owner.copy(), NOW).unwrap();
    // One stolen targets key out of two.
    let name = "2.targets.json";
    owner.forge::<tough::schema::Targets>(name, Role::Targets, |t| t.targets.clear());
    let forged = fs::read(owner.metadata(name)).unwrap();
    owner.forge::<tough::schema::Snapshot>("2.snapshot.json", Role::Snapshot, |s| {
        describe(s.meta.get_mut("targets.json").unwrap(), &forged);
    });
    let forged = fs::read(owner.metadata("2.snapshot.json")).unwrap();
    owner.forge::<tough::schema::Timestamp>("timestamp.json", Role::Timestamp, |t| {
        describe(t.meta.get_mut("snapshot.json").unwrap(), &forged);
    });
    let (check, reason) = device.refused(&owner.copy(), NOW);
    assert_eq!(check, Check::Signature, "{reason}");
    // One stolen root key out of two.
    owner.forge_root(2, |root| root.version = 3.try_into().unwrap());
    fs::rename(owner.metadata("2.root.json"), owner.metadata("3.root.json")).unwrap();
    assert_eq!(device.refused(&owner.copy(), NOW).0, Check::Signature);
}

#[test]
fn a_key_that_was_taken_away_signs_nothing_any_more() {
    let owner = Owner::new();
    let device = owner.device();
    device.refresh(&owner.copy(), NOW).unwrap();
    let stolen = owner.dir.path().join("stolen.pem");
    fs::rename(owner.key(Role::Timestamp), &stolen).unwrap();
    let new = KeyFile::create(&owner.key(Role::Timestamp)).unwrap().public();
    owner.at(NOW).edit_root(&[Edit::Rotate(Role::Timestamp, None, new)]).unwrap();
    sign(&owner, &owner.key(Role::Root));
    owner.at(NOW).publish_root(None).unwrap();
    device.refresh(&owner.copy(), NOW).unwrap();
    // The thief signs a newer timestamp, and hides the root that took the key away.
    fs::copy(&stolen, owner.key(Role::Timestamp)).unwrap();
    owner.forge::<tough::schema::Timestamp>("timestamp.json", Role::Timestamp, |t| {
        t.version = 100.try_into().unwrap();
    });
    for told in [owner.copy(), owner.copy().without("2.root.json")] {
        let (check, reason) = device.refused(&told, NOW);
        assert_eq!(check, Check::Signature, "{reason}");
    }
}

#[test]
fn a_device_given_another_root_begins_anew_from_that() {
    let (first, second) = (Owner::new(), Owner::new());
    let mut device = first.device();
    rotate(&first, 2);
    first.at(NOW).refresh().unwrap();
    device.refresh(&first.copy(), NOW).unwrap();
    device.root = second.root(1);
    device.refresh(&second.copy(), NOW).unwrap();
    assert_eq!(device.refused(&first.copy(), NOW).0, Check::Signature);
}

#[test]
fn a_root_that_is_none_is_refused_before_anything_is_fetched() {
    let owner = Owner::new();
    let limits = Limits::default();
    let unsigned = String::from_utf8(owner.root(1)).unwrap().replace("\"sig\":\"", "\"sig\":\"00");
    let huge = vec![b' '; 300 << 10];
    for bytes in [&b""[..], b"{}", b"junk", unsigned.as_bytes(), &huge] {
        let error = check_root(bytes, &limits).unwrap_err();
        assert!(matches!(error, TrustError::Root(_)), "{error}");
        assert!(Client::new(bytes, owner.dir.path(), limits.clone(), Expiry::Strict).is_err());
    }
    assert_eq!(check_root(&owner.root(1), &limits).unwrap(), 1);
}
