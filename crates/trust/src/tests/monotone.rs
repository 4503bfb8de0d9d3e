//! What was seen is never unseen: versions only rise, whatever fails and whoever answers, but where the root's keys for
//! timestamp or snapshot were changed.

use proptest::prelude::*;
use tough::schema::{Role as _, RoleType, Root, Snapshot, Timestamp};

use super::*;
use crate::state::{Folder as Memory, Remembered};

impl Device {
    fn remembers(&self) -> Remembered {
        Memory::new(self.dir.path()).recall().unwrap().0
    }
}

fn read<T: serde::de::DeserializeOwned>(text: &str) -> Signed<T> {
    serde_json::from_str(text).unwrap()
}

/// Gives online roles new keys, and publishes the root that says so.
fn rotate(owner: &Owner, roles: &[Role]) {
    for role in roles {
        fs::remove_file(owner.key(*role)).unwrap();
        let new = KeyFile::create(&owner.key(*role)).unwrap().public();
        owner.at(NOW).edit_root(&[Edit::Rotate(*role, None, new)]).unwrap();
    }
    let pending = owner.dir.path().join("repository").join(PENDING);
    sign_root(&pending, &[KeyFile::open(&owner.key(Role::Root)).unwrap()]).unwrap();
    owner.at(NOW).publish_root(None).unwrap();
}

#[test]
fn what_keys_taken_away_have_signed_is_not_remembered_again_when_a_later_root_fails() {
    for role in [Role::Timestamp, Role::Snapshot] {
        let owner = Owner::new();
        let device = owner.device();
        owner.at(NOW).refresh().unwrap();
        device.refresh(&owner.copy(), NOW).unwrap();
        assert!(device.remembers().timestamp.is_some());
        rotate(&owner, &[role]);
        super::roots::renew(&owner, NOW);
        let cut = owner.copy().with("3.root.json", Answer::Refused);
        device.refresh(&cut, NOW).unwrap_err();
        let remembered = device.remembers();
        let root: Signed<Root> = read(&remembered.root.unwrap());
        assert_eq!(root.signed.version.get(), 2);
        assert_eq!((remembered.timestamp, remembered.snapshot), (None, None), "{role}");
        device.refresh(&owner.copy(), NOW).unwrap();
    }
}

#[derive(Clone, Debug)]
enum Move {
    /// The owner signs a new timestamp.
    Refresh,
    /// The owner allows another bundle.
    Add,
    /// The owner publishes a root that changes nothing.
    Renew,
    /// The owner gives timestamp, snapshot or both new keys.
    Rotate(usize),
    /// The device asks; what answers is so many states old, and one of its files fails.
    Ask(usize, Option<usize>, bool),
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let one = prop_oneof![
        2 => Just(Move::Refresh),
        1 => Just(Move::Add),
        1 => Just(Move::Renew),
        2 => (0..3_usize).prop_map(Move::Rotate),
        8 => (0..3_usize, prop::option::of(0..12_usize), any::<bool>())
            .prop_map(|(age, file, junk)| Move::Ask(age, file, junk)),
    ];
    prop::collection::vec(one, 4..20)
}

/// What the device remembers, against what it remembered before.
fn holds(before: &Remembered, after: &Remembered) {
    let Some(root) = after.root.as_deref().map(read::<Root>) else { return };
    let Some(old) = before.root.as_deref().map(read::<Root>) else { return };
    assert!(root.signed.version >= old.signed.version, "an older root");
    let keys =
        |root: &Signed<Root>, role: RoleType| root.signed.keys(role).cloned().collect::<Vec<_>>();
    let same = |role| keys(&old, role) == keys(&root, role);
    if let Some(text) = &after.timestamp {
        let signed = root.signed.verify_role(&read::<Timestamp>(text));
        assert!(signed.is_ok(), "a timestamp of keys that were taken away");
    }
    if !same(RoleType::Timestamp) || !same(RoleType::Snapshot) {
        let stays = before.timestamp.is_some() && before.timestamp == after.timestamp;
        assert!(!stays, "a timestamp from before the keys were changed");
        return;
    }
    assert!(after.known.proved_s >= before.known.proved_s, "an earlier time");
    if let Some(text) = &before.timestamp {
        let now = read::<Timestamp>(after.timestamp.as_ref().expect("forgot its timestamp"));
        assert!(now.signed.version() >= read::<Timestamp>(text).signed.version());
    }
    if let Some(text) = &before.snapshot {
        let now = read::<Snapshot>(after.snapshot.as_ref().expect("forgot its snapshot"));
        assert!(now.signed.version() >= read::<Snapshot>(text).signed.version());
    }
}

/// A state as it is answered with: one of its newer files is cut or replaced.
fn answered(state: &Between, file: Option<usize>, junk: bool) -> Between {
    let fails = |name: &&String| !name.starts_with("1.root") && *name != "root.json";
    let names: Vec<&String> = state.files.keys().filter(fails).collect();
    let answer = if junk { Answer::Bytes(b"<html>".to_vec()) } else { Answer::Refused };
    match file.and_then(|n| names.get(n)) {
        Some(name) => state.clone().with(name, answer),
        None => state.clone(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn versions_only_rise(moves in moves()) {
        let owner = Owner::new();
        let device = owner.device();
        let mut states = vec![owner.copy()];
        let mut sequence = 0;
        for one in moves {
            match one {
                Move::Refresh => drop(owner.at(NOW).refresh().unwrap()),
                Move::Add => {
                    sequence += 1;
                    owner.add(NOW, sequence);
                }
                Move::Renew => super::roots::renew(&owner, NOW),
                Move::Rotate(which) => {
                    let roles = [&[Role::Timestamp][..], &[Role::Snapshot], &[Role::Timestamp, Role::Snapshot]];
                    rotate(&owner, roles[which]);
                }
                Move::Ask(age, file, junk) => {
                    let state = &states[states.len().saturating_sub(1 + age)];
                    let before = device.remembers();
                    let _ = device.refresh(&answered(state, file, junk), NOW);
                    holds(&before, &device.remembers());
                    continue;
                }
            }
            states.push(owner.copy());
        }
    }
}
