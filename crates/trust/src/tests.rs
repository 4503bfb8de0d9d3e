//! An owner with a repository, a device that reads it, and whoever stands between them.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bundle::{Bundle, Case, Digest, Draft, NamedTensor, SelfTest, Source, TensorSpec};
use tough::schema::Signed;

use crate::keys::{KeyFile, folder, sign_with};
use crate::*;

mod attacks;
mod clocks;
mod crashes;
mod hosting;
mod monotone;
mod roots;

const DAY: u64 = 86_400;
/// When these stories begin.
const NOW: u64 = 1_800_000_000;

fn signed_time(seconds: u64) -> i64 {
    i64::try_from(seconds).unwrap()
}

/// An owner's repository in a folder, with all keys at hand.
struct Owner {
    dir: tempfile::TempDir,
    host: Host,
}

impl Owner {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        // `init` signs as of the machine's clock, so its first metadata is made anew as of the story's.
        let host = Host::init(&dir.path().join("repository"), None, &Init::default()).unwrap();
        let owner = Self { dir, host };
        owner.forge_root(1, |root| root.expires = expiry(NOW + 730 * DAY));
        owner.metadata_anew();
        owner
    }

    /// Everything but the root again, signed at the beginning of the story.
    fn metadata_anew(&self) {
        for (name, role) in [("1.targets.json", Role::Targets), ("1.snapshot.json", Role::Snapshot)]
        {
            assert!(self.metadata(name).exists(), "{role}");
        }
        self.forge::<tough::schema::Targets>("1.targets.json", Role::Targets, |t| {
            t.expires = expiry(NOW + 180 * DAY);
        });
        let targets = fs::read(self.metadata("1.targets.json")).unwrap();
        self.forge::<tough::schema::Snapshot>("1.snapshot.json", Role::Snapshot, |s| {
            s.expires = expiry(NOW + 60 * DAY);
            describe(s.meta.get_mut("targets.json").unwrap(), &targets);
        });
        let snapshot = fs::read(self.metadata("1.snapshot.json")).unwrap();
        self.forge::<tough::schema::Timestamp>("timestamp.json", Role::Timestamp, |t| {
            t.expires = expiry(NOW + 7 * DAY);
            t._extra.insert("x-espalier-signed-at".into(), NOW.into());
            describe(t.meta.get_mut("snapshot.json").unwrap(), &snapshot);
        });
    }

    fn at(&self, now_s: u64) -> Host {
        self.host.clone().pretending(signed_time(now_s))
    }

    fn metadata(&self, name: &str) -> PathBuf {
        self.host.metadata().join(name)
    }

    fn bundle(&self, sequence: u64) -> Bundle {
        bundle(&self.dir.path().join(format!("bundle-{sequence}")), sequence)
    }

    /// Allows a new bundle, and says which.
    fn add(&self, now_s: u64, sequence: u64) -> Digest {
        let bundle = self.bundle(sequence);
        self.at(now_s).add(&bundle.dir, &[]).unwrap();
        bundle.digest
    }

    /// Changes a file of metadata, and signs it with the role's keys: what a thief of these could do.
    fn forge<T: tough::schema::Role + serde::de::DeserializeOwned>(
        &self,
        name: &str,
        role: Role,
        change: impl FnOnce(&mut T),
    ) {
        let bytes = fs::read(self.metadata(name)).unwrap();
        let mut signed: Signed<T> = serde_json::from_slice(&bytes).unwrap();
        change(&mut signed.signed);
        self.write_signed(name, role, signed.signed);
    }

    fn forge_root(&self, version: u64, change: impl FnOnce(&mut tough::schema::Root)) {
        self.forge(&format!("{version}.root.json"), Role::Root, change);
    }

    fn write_signed<T: tough::schema::Role>(&self, name: &str, role: Role, what: T) {
        let key = KeyFile::open(&self.key(role)).unwrap();
        let signed = sign_with(what, std::iter::once(&key)).unwrap();
        fs::write(self.metadata(name), serde_json::to_vec(&signed).unwrap()).unwrap();
    }

    fn key(&self, role: Role) -> PathBuf {
        self.dir.path().join("repository/keys").join(format!("{role}.pem"))
    }

    fn root(&self, version: u64) -> Vec<u8> {
        fs::read(self.metadata(&format!("{version}.root.json"))).unwrap()
    }

    /// A copy of the metadata as it is now, for whoever wants to show it again later.
    fn copy(&self) -> Between {
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(self.host.metadata()).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            files.insert(name, Answer::Bytes(fs::read(entry.path()).unwrap()));
        }
        Between { files, ..Between::default() }
    }

    fn device(&self) -> Device {
        Device::new(&self.root(1))
    }
}

fn expiry(seconds: u64) -> jiff::Timestamp {
    jiff::Timestamp::from_second(signed_time(seconds)).unwrap()
}

fn describe(meta: &mut tough::schema::Metafile, bytes: &[u8]) {
    meta.length = Some(bytes.len() as u64);
    meta.hashes.as_mut().unwrap().sha256 = Digest::of(bytes).0.to_vec().into();
}

fn bundle(dir: &Path, sequence: u64) -> Bundle {
    let mut draft = Draft::new("m", "1.0.0", Source::Bytes(vec![7; 100]));
    let spec = |name: &str| TensorSpec { name: name.into(), dtype: "FP32".into(), dims: vec![1] };
    let tensor = |name: &str| NamedTensor {
        name: name.into(),
        dtype: "FP32".into(),
        dims: vec![1],
        data: vec![0; 4],
    };
    draft.sequence = sequence;
    draft.device_class = "pi4".into();
    draft.inputs = vec![spec("x")];
    draft.outputs = vec![spec("y")];
    draft.selftest = SelfTest {
        cases: vec![Case { inputs: vec![tensor("x")], outputs: vec![tensor("y")] }],
        rtol: 0.0,
        atol: 0.0,
    };
    draft.write(dir).unwrap()
}

/// How a file is answered by whoever stands between.
#[derive(Clone, Debug)]
enum Answer {
    Bytes(Vec<u8>),
    Refused,
    /// The same byte for ever.
    Endless,
    /// One byte a minute, by the clock that the device measures with.
    Drip(Vec<u8>),
}

/// Whoever stands between: answers as told, 404 for the rest.
#[derive(Clone, Debug)]
struct Between {
    files: BTreeMap<String, Answer>,
    began: Instant,
    passed: Arc<Mutex<Duration>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Default for Between {
    fn default() -> Self {
        Self {
            files: BTreeMap::new(),
            began: Instant::now(),
            passed: Arc::default(),
            asked: Arc::default(),
        }
    }
}

impl Between {
    fn with(mut self, name: &str, answer: Answer) -> Self {
        self.files.insert(name.to_owned(), answer);
        self
    }

    fn without(mut self, name: &str) -> Self {
        self.files.remove(name);
        self
    }

    /// With one file of another copy.
    fn and(self, name: &str, other: &Self) -> Self {
        let answer = other.files[name].clone();
        self.with(name, answer)
    }
}

struct Dripping {
    bytes: Cursor<Vec<u8>>,
    passed: Arc<Mutex<Duration>>,
}

impl Read for Dripping {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        *self.passed.lock().unwrap() += Duration::from_secs(60);
        self.bytes.read(&mut buffer[..1])
    }
}

impl Fetch for Between {
    fn open(&self, name: &str) -> Result<Box<dyn Read>, FetchError> {
        self.asked.lock().unwrap().push(name.to_owned());
        match self.files.get(name).cloned() {
            Some(Answer::Bytes(bytes)) => Ok(Box::new(Cursor::new(bytes))),
            Some(Answer::Refused) => Err(FetchError::Failed("connection refused".into())),
            Some(Answer::Endless) => Ok(Box::new(std::io::repeat(b' '))),
            Some(Answer::Drip(bytes)) => {
                let passed = Arc::clone(&self.passed);
                Ok(Box::new(Dripping { bytes: Cursor::new(bytes), passed }))
            }
            None => Err(FetchError::NotFound),
        }
    }

    fn now(&self) -> Instant {
        self.began + *self.passed.lock().unwrap()
    }
}

struct Device {
    dir: tempfile::TempDir,
    root: Vec<u8>,
    expiry: Expiry,
    limits: Limits,
}

impl Device {
    fn new(root: &[u8]) -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            root: root.to_vec(),
            expiry: Expiry::Strict,
            limits: Limits::default(),
        }
    }

    fn lenient(self) -> Self {
        Self { expiry: Expiry::Lenient, ..self }
    }

    fn client(&self) -> Client {
        Client::new(&self.root, self.dir.path(), self.limits.clone(), self.expiry).unwrap()
    }

    fn refresh(&self, fetch: &Between, clock_s: u64) -> Result<Trusted> {
        self.client().refresh(Arc::new(fetch.clone()), clock_s)
    }

    /// The check that an update must not pass.
    fn refused(&self, fetch: &Between, clock_s: u64) -> (Check, String) {
        let error = self.refresh(fetch, clock_s).unwrap_err();
        (error.check().unwrap_or_else(|| panic!("{error}")), error.to_string())
    }
}

fn wanted(digest: Digest, sequence: u64) -> Wanted<'static> {
    Wanted { digest, model: "m", sequence, device_class: "pi4" }
}
