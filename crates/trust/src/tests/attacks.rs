//! The attacks that the specification names (section 1.5.2), each against the client that the agent uses.

use super::*;

#[test]
fn what_the_owner_signed_is_allowed_and_nothing_else() {
    let (owner, other) = (Owner::new(), tempfile::tempdir().unwrap());
    let digest = owner.add(NOW, 1);
    let trusted = owner.device().refresh(&owner.copy(), NOW).unwrap();
    let target = trusted.allows(&wanted(digest, 1)).unwrap();
    assert_eq!(target.digest, digest);
    let stranger = bundle(&other.path().join("b"), 2).digest;
    let check = |wanted: &Wanted<'_>| trusted.allows(wanted).unwrap_err().check().unwrap();
    assert_eq!(check(&wanted(stranger, 2)), Check::Target, "an arbitrary package");
    assert_eq!(check(&wanted(digest, 2)), Check::Facts, "a sequence it has not");
    assert_eq!(check(&Wanted { model: "n", ..wanted(digest, 1) }), Check::Facts);
    assert_eq!(check(&Wanted { device_class: "pi5", ..wanted(digest, 1) }), Check::DeviceClass);
}

#[test]
fn targets_signed_by_somebody_else_are_refused() {
    let (owner, thief) = (Owner::new(), Owner::new());
    thief.add(NOW, 1);
    let device = owner.device();
    let (check, reason) = device.refused(&thief.copy(), NOW);
    assert_eq!(check, Check::Signature, "{reason}");
    // A thief of the timestamp's and the snapshot's keys alone can name no bundle.
    let all = owner.copy();
    let mixed = all.clone().and("2.targets.json", &thief.copy());
    let snapshot = fs::read(thief.metadata("2.targets.json")).unwrap();
    owner.forge::<tough::schema::Snapshot>("1.snapshot.json", Role::Snapshot, |s| {
        let meta = s.meta.get_mut("targets.json").unwrap();
        meta.version = 2.try_into().unwrap();
        describe(meta, &snapshot);
    });
    let snapshot = fs::read(owner.metadata("1.snapshot.json")).unwrap();
    owner.forge::<tough::schema::Timestamp>("timestamp.json", Role::Timestamp, |t| {
        describe(t.meta.get_mut("snapshot.json").unwrap(), &snapshot);
    });
    let forged = owner.copy();
    let mixed = mixed.and("1.snapshot.json", &forged).and("timestamp.json", &forged);
    let (check, reason) = device.refused(&mixed, NOW);
    assert_eq!(check, Check::Signature, "{reason}");
    assert!(reason.contains("targets"), "{reason}");
}

#[test]
fn a_replayed_timestamp_is_a_freeze_once_it_is_expired() {
    let owner = Owner::new();
    let old = owner.copy();
    let device = owner.device();
    device.refresh(&old, NOW).unwrap();
    device.refresh(&old, NOW + 6 * DAY).unwrap();
    let (check, reason) = device.refused(&old, NOW + 8 * DAY);
    assert_eq!(check, Check::Freeze);
    assert!(reason.contains("timestamp metadata") && reason.contains("expired at"), "{reason}");
    owner.at(NOW + 8 * DAY).refresh().unwrap();
    device.refresh(&owner.copy(), NOW + 8 * DAY).unwrap();
}

#[test]
fn each_role_s_expiry_is_enforced() {
    for (role, days) in
        [(Role::Timestamp, 8), (Role::Snapshot, 61), (Role::Targets, 181), (Role::Root, 731)]
    {
        let owner = Owner::new();
        let late = NOW + days * DAY;
        // Everything but the role itself is kept in date.
        let stale = Days { root: 9999, targets: 9999, snapshot: 9999, timestamp: 9999 };
        let later = |role| expiry(NOW + u64::from(stale.root) * DAY + role as u64);
        if role != Role::Root {
            owner.forge_root(1, |root| root.expires = later(Role::Root));
        }
        owner.forge::<tough::schema::Targets>("1.targets.json", Role::Targets, |t| {
            if role != Role::Targets {
                t.expires = later(Role::Targets);
            }
        });
        let targets = fs::read(owner.metadata("1.targets.json")).unwrap();
        owner.forge::<tough::schema::Snapshot>("1.snapshot.json", Role::Snapshot, |s| {
            if role != Role::Snapshot {
                s.expires = later(Role::Snapshot);
            }
            describe(s.meta.get_mut("targets.json").unwrap(), &targets);
        });
        let snapshot = fs::read(owner.metadata("1.snapshot.json")).unwrap();
        owner.forge::<tough::schema::Timestamp>("timestamp.json", Role::Timestamp, |t| {
            if role != Role::Timestamp {
                t.expires = later(Role::Timestamp);
            }
            describe(t.meta.get_mut("snapshot.json").unwrap(), &snapshot);
        });
        let (check, reason) = owner.device().refused(&owner.copy(), late);
        assert_eq!(check, Check::Freeze, "{role}: {reason}");
        assert!(reason.contains(&format!("{role} metadata")), "{role}: {reason}");
        let trusted = owner.device().lenient().refresh(&owner.copy(), late).unwrap();
        let warned = trusted.warnings.iter().any(|w| w.contains(&format!("{role} metadata")));
        assert!(warned, "{role}: {:?}", trusted.warnings);
    }
}

#[test]
fn an_older_timestamp_is_a_rollback() {
    let owner = Owner::new();
    let old = owner.copy();
    owner.at(NOW).refresh().unwrap();
    let device = owner.device();
    device.refresh(&owner.copy(), NOW).unwrap();
    let (check, reason) = device.refused(&old, NOW);
    assert_eq!(check, Check::Rollback, "{reason}");
    // As lenient as it may be about expiry.
    let (check, _) = Device { expiry: Expiry::Lenient, ..device }.refused(&old, NOW);
    assert_eq!(check, Check::Rollback);
}

#[test]
fn older_snapshots_and_targets_are_a_rollback_under_a_newer_timestamp() {
    for role in [Role::Snapshot, Role::Targets] {
        let owner = Owner::new();
        owner.add(NOW, 1);
        let device = owner.device();
        device.refresh(&owner.copy(), NOW).unwrap();
        // Targets 1 are named again, by a snapshot with a higher number than any before.
        let targets = fs::read(owner.metadata("1.targets.json")).unwrap();
        owner.forge::<tough::schema::Snapshot>("2.snapshot.json", Role::Snapshot, |s| {
            let number: u64 = if role == Role::Targets { 3 } else { 1 };
            s.version = number.try_into().unwrap();
            let meta = s.meta.get_mut("targets.json").unwrap();
            meta.version = 1.try_into().unwrap();
            describe(meta, &targets);
        });
        let number = if role == Role::Targets { 3 } else { 1 };
        let path = owner.metadata(&format!("{number}.snapshot.json"));
        fs::rename(owner.metadata("2.snapshot.json"), &path).unwrap();
        let snapshot = fs::read(&path).unwrap();
        owner.forge::<tough::schema::Timestamp>("timestamp.json", Role::Timestamp, |t| {
            t.version = 9.try_into().unwrap();
            let meta = t.meta.get_mut("snapshot.json").unwrap();
            meta.version = number.try_into().unwrap();
            describe(meta, &snapshot);
        });
        let (check, reason) = device.refused(&owner.copy(), NOW);
        assert_eq!(check, Check::Rollback, "{role}: {reason}");
    }
}

#[test]
fn a_fast_forward_is_undone_by_new_keys_for_timestamp_and_snapshot() {
    let owner = Owner::new();
    let device = owner.device();
    // The thief of the online keys shows versions, and a time, far ahead.
    let far = NOW + 5000 * DAY;
    let good = owner.copy();
    owner.forge::<tough::schema::Timestamp>("timestamp.json", Role::Timestamp, |t| {
        t.version = 1_000_000.try_into().unwrap();
        t.expires = expiry(far);
        t._extra.insert("x-espalier-signed-at".into(), (far - 1).into());
    });
    device.refresh(&owner.copy().without("2.root.json"), NOW).unwrap_err();
    let lenient = Device { expiry: Expiry::Lenient, ..device };
    lenient.refresh(&owner.copy(), NOW).unwrap();
    let device = Device { expiry: Expiry::Strict, ..lenient };
    assert_eq!(device.refused(&good, NOW).0, Check::Rollback);
    // The owner puts the good timestamp back and rotates the keys.
    let Answer::Bytes(timestamp) = &good.files["timestamp.json"] else { panic!() };
    fs::write(owner.metadata("timestamp.json"), timestamp).unwrap();
    for role in [Role::Timestamp, Role::Snapshot] {
        fs::remove_file(owner.key(role)).unwrap();
        let new = KeyFile::create(&owner.key(role)).unwrap().public();
        owner.at(NOW).edit_root(&[Edit::Rotate(role, None, new)]).unwrap();
    }
    sign_root(
        &owner.dir.path().join("repository").join(PENDING),
        &[KeyFile::open(&owner.key(Role::Root)).unwrap()],
    )
    .unwrap();
    owner.at(NOW).publish_root(None).unwrap();
    let trusted = device.refresh(&owner.copy(), NOW).unwrap();
    assert_eq!(trusted.versions[&Role::Root], 2);
    assert_eq!(trusted.now_s, NOW, "the time that the thief proved is forgotten too");
}

#[test]
fn files_of_two_states_do_not_mix() {
    let owner = Owner::new();
    owner.add(NOW, 1);
    let first = owner.copy();
    // The same number with another content, signed by the same keys.
    owner.forge::<tough::schema::Targets>("2.targets.json", Role::Targets, |t| {
        t.targets.clear();
    });
    let (check, reason) = owner.device().refused(&owner.copy(), NOW);
    assert_eq!(check, Check::Mismatch, "{reason}");
    let snapshot = fs::read(owner.metadata("1.snapshot.json")).unwrap();
    let mixed = first.with("2.snapshot.json", Answer::Bytes(snapshot));
    let (check, reason) = owner.device().refused(&mixed, NOW);
    assert_eq!(check, Check::Mismatch, "{reason}");
}

#[test]
fn a_wrong_hash_or_length_of_metadata_is_refused() {
    let owner = Owner::new();
    let good = owner.copy();
    let Answer::Bytes(targets) = good.files["1.targets.json"].clone() else { panic!() };
    let mut flipped = targets.clone();
    flipped[20] ^= 1;
    let (check, _) =
        owner.device().refused(&good.clone().with("1.targets.json", Answer::Bytes(flipped)), NOW);
    assert_eq!(check, Check::Mismatch);
    let mut longer = targets.clone();
    longer.push(b'\n');
    let (check, reason) =
        owner.device().refused(&good.clone().with("1.targets.json", Answer::Bytes(longer)), NOW);
    assert_eq!(check, Check::EndlessData, "{reason}");
    let shorter = targets[..targets.len() / 2].to_vec();
    let (check, _) =
        owner.device().refused(&good.with("1.targets.json", Answer::Bytes(shorter)), NOW);
    assert_eq!(check, Check::Mismatch);
}

#[test]
fn endless_data_end_at_the_limit_of_each_file() {
    let owner = Owner::new();
    for (name, limit) in [
        ("2.root.json", "max_root_bytes"),
        ("timestamp.json", "max_timestamp_bytes"),
        ("1.snapshot.json", "max_snapshot_bytes"),
        ("1.targets.json", "max_targets_bytes"),
    ] {
        let (check, reason) =
            owner.device().refused(&owner.copy().with(name, Answer::Endless), NOW);
        assert_eq!(check, Check::EndlessData, "{name}");
        assert!(reason.contains(limit), "{name}: {reason}");
    }
}

#[test]
fn slow_retrieval_ends_by_rate_and_by_deadline_and_may_be_tried_again() {
    let owner = Owner::new();
    let Answer::Bytes(timestamp) = owner.copy().files["timestamp.json"].clone() else { panic!() };
    let drip = owner.copy().with("timestamp.json", Answer::Drip(timestamp));
    let error = owner.device().refresh(&drip, NOW).unwrap_err();
    assert_eq!(error.check(), Some(Check::SlowRetrieval));
    assert!(
        error.outlook() == Outlook::Passing && error.to_string().contains("min_bytes_per_s"),
        "{error}"
    );
    let mut device = owner.device();
    device.limits.pace.min_bytes_per_s = 0;
    let (check, reason) = device.refused(&drip, NOW);
    assert_eq!(check, Check::SlowRetrieval);
    assert!(reason.contains("deadline"), "{reason}");
}

#[test]
fn a_connection_that_fails_is_no_attack_and_hides_no_new_root() {
    let owner = Owner::new();
    for name in ["2.root.json", "timestamp.json", "1.snapshot.json", "1.targets.json"] {
        let cut = owner.copy().with(name, Answer::Refused);
        let error = owner.device().refresh(&cut, NOW).unwrap_err();
        assert!(error.outlook() == Outlook::Passing && error.check().is_none(), "{name}: {error}");
        assert!(error.to_string().contains(name), "{name}: {error}");
    }
    let error = owner.device().refresh(&owner.copy().without("timestamp.json"), NOW).unwrap_err();
    assert!(error.outlook() == Outlook::Passing, "{error}");
}

#[test]
fn no_metadata_at_all_is_refused_by_name() {
    let owner = Owner::new();
    for junk in
        [&b"<html>"[..], b"", b"{}", b"[1]", &[0xff, 0xfe], b"{\"signed\":{},\"signatures\":[]}"]
    {
        for name in ["2.root.json", "timestamp.json"] {
            let told = owner.copy().with(name, Answer::Bytes(junk.to_vec()));
            let (check, reason) = owner.device().refused(&told, NOW);
            assert_eq!(check, Check::Format, "{name}: {reason}");
        }
    }
}

#[test]
fn delegated_targets_are_not_followed() {
    let owner = Owner::new();
    let delegation = serde_json::json!({
        "keys": {},
        "roles": [{"name": "elsewhere", "keyids": [], "threshold": 1, "paths": ["*"], "terminating": false}],
    });
    owner.forge::<tough::schema::Targets>("1.targets.json", Role::Targets, |t| {
        t.delegations = Some(serde_json::from_value(delegation).unwrap());
    });
    let targets = fs::read(owner.metadata("1.targets.json")).unwrap();
    owner.forge::<tough::schema::Snapshot>("1.snapshot.json", Role::Snapshot, |s| {
        describe(s.meta.get_mut("targets.json").unwrap(), &targets);
        let meta = s.meta["targets.json"].clone();
        s.meta.insert("elsewhere.json".into(), meta);
    });
    let snapshot = fs::read(owner.metadata("1.snapshot.json")).unwrap();
    owner.forge::<tough::schema::Timestamp>("timestamp.json", Role::Timestamp, |t| {
        describe(t.meta.get_mut("snapshot.json").unwrap(), &snapshot);
    });
    let told = owner.copy().with("1.elsewhere.json", Answer::Bytes(b"{}".to_vec()));
    let (check, reason) = owner.device().refused(&told, NOW);
    assert_eq!(check, Check::Delegation, "{reason}");
}
