//! The owner's side: what is written, in which order, and what is refused.

use std::os::unix::fs::PermissionsExt;

use super::*;

fn refused<T: std::fmt::Debug>(outcome: Result<T>, what: &str) {
    let error = outcome.unwrap_err().to_string();
    assert!(error.contains(what), "wanted {what:?} in {error:?}");
}

#[test]
fn a_new_repository_is_one_that_a_device_trusts() {
    let dir = tempfile::tempdir().unwrap();
    let repository = dir.path().join("r");
    let host = Host::init(&repository, None, &Init::default()).unwrap();
    let bundle = bundle(&dir.path().join("b"), 1);
    let (name, _) = host.add(&bundle.dir, &["a".into(), "b".into()]).unwrap();
    let (_, again) = host.add(&bundle.dir, &["a".into(), "b".into()]).unwrap();
    assert_eq!((again.targets, again.timestamp), (2, 2), "what is allowed already changes nothing");
    let now = u64::try_from(jiff::Timestamp::now().as_second()).unwrap();
    let root = host.root_json().unwrap();
    let fetch = Arc::new(Folder(host.metadata()));
    let trusted = look(&root, fetch.clone(), Limits::default(), Expiry::Strict, now).unwrap();
    assert_eq!(trusted.targets[&name].facts.device_classes, ["a", "b"]);
    host.remove(&[bundle.digest]).unwrap();
    let trusted = look(&root, fetch, Limits::default(), Expiry::Strict, now).unwrap();
    assert!(trusted.targets.is_empty());
    refused(host.remove(&[bundle.digest]), "is no target");
    assert!(host.removed().unwrap().contains(&bundle.digest));
    // Whoever makes bundles does not sign again what was taken back; its owner may.
    let made = host.allow_made(&[&bundle.dir, dir.path()]).unwrap();
    assert_eq!((made.taken_back, made.written), (vec![bundle.digest], None));
    assert_eq!(made.unreadable.len(), 1, "{:?}", made.unreadable);
    host.add(&bundle.dir, &["a".into()]).unwrap();
    assert!(host.removed().unwrap().is_empty());
    let made = host.allow_made(&[&bundle.dir]).unwrap();
    assert_eq!((made.targets, made.written), (vec![name.clone()], None), "it stands as it is");
    host.forget(&[bundle.digest]).unwrap().unwrap();
    assert_eq!(host.forget(&[bundle.digest]).unwrap(), None);
    let made = host.allow_made(&[&bundle.dir]).unwrap();
    assert!(
        made.written.is_some() && made.taken_back.is_empty(),
        "what was forgotten may come again"
    );
    host.forget(&[bundle.digest]).unwrap();
    refused(Host::init(&repository, None, &Init::default()), "there is a repository already");
    refused(Host::open(dir.path(), None), "there is no repository here");
}

#[test]
fn keys_are_for_their_owner_alone_and_never_written_over() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("k.pem");
    let key = KeyFile::create(&path).unwrap();
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o600);
    assert_eq!(PublicKey::read(&dir.path().join("k.pem.pub")).unwrap(), key.public());
    assert_eq!(PublicKey::read(&path).unwrap(), key.public());
    let before = fs::read(&path).unwrap();
    refused(KeyFile::create(&path), "never written over");
    assert_eq!(fs::read(&path).unwrap(), before);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "nothing else is left");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    refused(KeyFile::open(&path), "mode 0640");
    for junk in
        [&b""[..], b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", &[0; 70_000]]
    {
        let path = dir.path().join("junk.pem");
        fs::write(&path, junk).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(KeyFile::open(&path).is_err() && PublicKey::read(&path).is_err());
    }
}

#[test]
fn a_root_is_signed_on_other_machines_until_its_threshold_is_met() {
    let dir = tempfile::tempdir().unwrap();
    let keys: Vec<KeyFile> = (0..3)
        .map(|n| KeyFile::create(&dir.path().join(format!("root-{n}.pem"))).unwrap())
        .collect();
    let init = Init {
        root_keys: keys.iter().map(KeyFile::public).collect(),
        root_threshold: 2,
        ..Init::default()
    };
    let repository = dir.path().join("r");
    let host = Host::init(&repository, None, &init).unwrap();
    refused(host.refresh(), "root 1 is not published yet");
    refused(host.publish_root(None), "signed by 0 of 2");
    // Each signer has a copy of its own.
    let copies: Vec<PathBuf> = (0..2)
        .map(|n| {
            let copy = dir.path().join(format!("copy-{n}.json"));
            fs::copy(repository.join(PENDING), &copy).unwrap();
            let signing = sign_root(&copy, std::slice::from_ref(&keys[n])).unwrap();
            assert_eq!(signing.own, (1, 2));
            copy
        })
        .collect();
    refused(host.publish_root(Some(&copies[0])), "signed by 1 of 2");
    // Signatures are gathered in a file, where the second signs what the first has signed, and from several.
    let third = dir.path().join("third.json");
    fs::copy(&copies[0], &third).unwrap();
    assert_eq!(sign_root(&third, std::slice::from_ref(&keys[2])).unwrap().own, (2, 2));
    host.publish_root(Some(&copies[1])).unwrap();
    assert_eq!(host.current().unwrap().roles[&Role::Root].threshold, 2);
    refused(host.publish_root(None), "no root is pending");
    // A root that was changed on the way is another one.
    host.edit_root(&[Edit::Renew]).unwrap();
    refused(host.publish_root(Some(&copies[1])), "is not the root that is pending here");
    fs::write(&copies[1], &b"{\"signed\":"[..]).unwrap();
    refused(host.publish_root(Some(&copies[1])), "no root metadata");
    refused(sign_root(&copies[1], &keys), "no root metadata");
    assert_eq!(host.current().unwrap().roles[&Role::Root].version, 1);
}

#[test]
fn a_root_that_nobody_could_sign_for_is_refused() {
    let owner = Owner::new();
    let host = owner.at(NOW);
    let key = PublicKey::read(&owner.key(Role::Targets)).unwrap();
    refused(host.edit_root(&[Edit::Threshold(Role::Targets, 2)]), "need 2 signatures and have 1");
    refused(host.edit_root(&[Edit::Threshold(Role::Targets, 0)]), "no threshold");
    refused(host.edit_root(&[Edit::AddKey(Role::Targets, key.clone())]), "already");
    refused(host.edit_root(&[Edit::RemoveKey(Role::Root, key.id())]), "0 keys of the role root");
    refused(host.edit_root(&[Edit::RemoveKey(Role::Targets, key.id())]), "have 0 keys");
    assert!(host.current().unwrap().pending.is_none(), "nothing is left of what was refused");
}

#[test]
fn an_interrupted_publication_leaves_a_repository_that_devices_trust() {
    let owner = Owner::new();
    let device = owner.device();
    let before = owner.copy();
    owner.add(NOW, 1);
    let after = owner.copy();
    let written = ["2.targets.json", "2.snapshot.json", "timestamp.json"];
    for interrupted in 0..written.len() {
        let told =
            written[..interrupted].iter().fold(before.clone(), |told, name| told.and(name, &after));
        let trusted = device.refresh(&told, NOW).unwrap();
        assert_eq!(trusted.versions[&Role::Targets], 1, "{interrupted}");
    }
    assert_eq!(device.refresh(&after, NOW).unwrap().versions[&Role::Targets], 2);
    // Half a file beside the old one, and files of a version that nothing names, are no hindrance.
    fs::write(owner.metadata("timestamp.json.tmp"), "{\"sig").unwrap();
    fs::write(owner.metadata("3.targets.json"), "{\"sig").unwrap();
    owner.add(NOW, 2);
    assert_eq!(device.refresh(&owner.copy(), NOW).unwrap().versions[&Role::Targets], 3);
}

#[test]
fn a_refresh_renews_what_is_half_over_and_says_what_it_cannot() {
    let owner = Owner::new();
    let later = NOW + 31 * DAY;
    let written = owner.at(later).refresh().unwrap();
    assert_eq!((written.targets, written.snapshot, written.timestamp), (1, 2, 2));
    fs::remove_file(owner.key(Role::Targets)).unwrap();
    let later = NOW + 100 * DAY;
    let written = owner.at(later).refresh().unwrap();
    assert_eq!((written.targets, written.snapshot), (1, 3));
    assert!(written.warnings[0].contains("0 of its keys are at hand"), "{:?}", written.warnings);
    owner.device().refresh(&owner.copy(), later).unwrap();
    let bundle = owner.bundle(7);
    refused(owner.at(later).add(&bundle.dir, &[]), "the role targets needs 1 signatures");
    fs::remove_file(owner.key(Role::Timestamp)).unwrap();
    let before = owner.copy();
    refused(owner.at(later).refresh(), "the role timestamp needs 1");
    assert_eq!(format!("{:?}", owner.copy().files), format!("{:?}", before.files));
}

#[test]
fn a_damaged_bundle_or_repository_is_refused_and_nothing_is_written() {
    let owner = Owner::new();
    let bundle = owner.bundle(1);
    fs::write(bundle.dir.join("model.onnx"), "x").unwrap();
    refused(owner.at(NOW).add(&bundle.dir, &[]), "model.onnx");
    refused(owner.at(NOW).add(Path::new("/nowhere"), &[]), "/nowhere");
    assert!(!owner.metadata("2.targets.json").exists());
    for (name, content) in [("timestamp.json", "{\"sig"), ("1.root.json", "[]")] {
        let whole = fs::read(owner.metadata(name)).unwrap();
        fs::write(owner.metadata(name), content).unwrap();
        refused(owner.at(NOW).refresh(), name);
        fs::write(owner.metadata(name), whole).unwrap();
    }
    fs::write(owner.metadata("timestamp.json"), vec![b' '; 5 << 20]).unwrap();
    refused(owner.at(NOW).refresh(), "over the limit");
}

#[test]
fn superseded_versions_are_kept_for_a_while() {
    let owner = Owner::new();
    for sequence in 1..=20 {
        owner.add(NOW, sequence);
    }
    assert!(
        !owner.metadata("4.targets.json").exists() && owner.metadata("6.targets.json").exists()
    );
    assert!(owner.metadata("1.root.json").exists());
    assert!(folder(&owner.dir.path().join("repository/keys")).unwrap().len() == 4);
}
