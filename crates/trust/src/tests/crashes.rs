//! A device that is killed, or loses power, between any two writes.

use super::*;

/// Copies the device's folder before every file that it is asked for: between all that `tough` writes.
#[derive(Debug)]
struct Watching {
    inner: Between,
    folder: PathBuf,
    copies: Mutex<Vec<tempfile::TempDir>>,
}

impl Fetch for Watching {
    fn open(&self, name: &str) -> Result<Box<dyn Read>, FetchError> {
        let copy = tempfile::tempdir().unwrap();
        clone_folder(&self.folder, copy.path());
        self.copies.lock().unwrap().push(copy);
        self.inner.open(name)
    }
}

fn clone_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            clone_folder(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

/// The device goes on, and knows what it knew.
fn survives(owner: &Owner, folder: &Path, older: &Between, what: &str) {
    let client = |fetch: &Between| {
        let root = owner.root(1);
        let client = Client::new(&root, folder, Limits::default(), Expiry::Strict).unwrap();
        client.refresh(Arc::new(fetch.clone()), NOW)
    };
    let check = client(older).unwrap_err().check();
    assert_eq!(check, Some(Check::Rollback), "{what}: it has seen newer");
    client(&owner.copy()).unwrap_or_else(|error| panic!("{what}: {error}"));
}

#[test]
fn a_crash_between_any_two_writes_forgets_nothing_and_bricks_nothing() {
    let owner = Owner::new();
    let older = owner.copy();
    owner.add(NOW, 1);
    let device = owner.device();
    device.refresh(&owner.copy(), NOW).unwrap();
    owner.add(NOW, 2);
    super::roots::renew(&owner, NOW);
    let watching = Arc::new(Watching {
        inner: owner.copy(),
        folder: device.dir.path().to_owned(),
        copies: Mutex::default(),
    });
    device.client().refresh(watching.clone(), NOW).unwrap();
    let mut copies = std::mem::take(&mut *watching.copies.lock().unwrap());
    assert!(copies.len() >= 5, "{} files were asked for", copies.len());
    // What the replacement of the state leaves before its rename.
    for length in [0, 50, usize::MAX] {
        let copy = tempfile::tempdir().unwrap();
        clone_folder(copies[0].path(), copy.path());
        let new = fs::read(device.dir.path().join("trusted.json")).unwrap();
        fs::write(copy.path().join("trusted.json.tmp"), &new[..length.min(new.len())]).unwrap();
        copies.push(copy);
    }
    for (number, copy) in copies.iter().enumerate() {
        for half in files(copy.path()) {
            if half.ends_with("trusted.json") {
                continue;
            }
            for length in [0, 2] {
                let torn = tempfile::tempdir().unwrap();
                clone_folder(copy.path(), torn.path());
                let name = half.strip_prefix(copy.path()).unwrap();
                let content = fs::read(&half).unwrap();
                fs::write(torn.path().join(name), &content[..content.len() * length / 4]).unwrap();
                survives(&owner, torn.path(), &older, &format!("{number}: {}", name.display()));
            }
        }
        survives(&owner, copy.path(), &older, &format!("{number}"));
    }
}

#[test]
fn a_damaged_state_is_set_aside_and_said() {
    let owner = Owner::new();
    let device = owner.device();
    device.refresh(&owner.copy(), NOW).unwrap();
    let path = device.dir.path().join("trusted.json");
    for damage in [&b""[..], b"{\"anchor\":3}", &[0; 500]] {
        fs::write(&path, damage).unwrap();
        let trusted = device.refresh(&owner.copy(), NOW).unwrap();
        assert!(trusted.warnings[0].contains("set aside"), "{:?}", trusted.warnings);
        assert!(device.refresh(&owner.copy(), NOW).unwrap().warnings.is_empty());
    }
}

#[test]
fn a_bit_that_flips_anywhere_in_the_state_is_noticed_and_said() {
    let owner = Owner::new();
    let device = owner.device();
    device.refresh(&owner.copy(), NOW).unwrap();
    let path = device.dir.path().join("trusted.json");
    let whole = fs::read(&path).unwrap();
    for at in (0..whole.len()).step_by(whole.len() / 40) {
        let mut bent = whole.clone();
        bent[at] ^= 1;
        fs::write(&path, bent).unwrap();
        let trusted = device.refresh(&owner.copy(), NOW).unwrap();
        assert!(trusted.warnings[0].contains("set aside"), "at {at}: {:?}", trusted.warnings);
    }
}

#[test]
fn what_was_accepted_before_an_update_failed_stays_accepted() {
    let owner = Owner::new();
    let older = owner.copy();
    owner.at(NOW).refresh().unwrap();
    let device = owner.device();
    let cut = owner.copy().with("1.targets.json", Answer::Refused);
    device.refresh(&cut, NOW).unwrap_err();
    assert_eq!(device.refused(&older, NOW).0, Check::Rollback);
}
