//! The owner's side: a repository in a folder, and the keys that sign it.
//!
//! ```text
//! metadata/N.root.json      every root, for ever: devices follow them one by one
//! metadata/root.json        a copy of the newest, to give to devices
//! metadata/N.targets.json   what may be installed
//! metadata/N.snapshot.json  which version of the targets holds
//! metadata/timestamp.json   which version of the snapshot holds; short-lived
//! keys/ROLE.pem             keys at hand: those of targets, snapshot and timestamp, and for a trial the root's
//! root.pending.json         the next root, while signatures for it are gathered
//! removed.json              what the owner took back: nobody signs it again unasked
//! trust.json                how long metadata lasts
//! lock                      held while the repository changes
//! ```
//! Only `metadata/` is for others.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tough::schema::{self, RoleType, Root, Signed, Snapshot, Timestamp};

use crate::keys::{self, KeyFile, PublicKey};
use crate::target::{Target, bundles};
use crate::{Limits, Result, Role, TrustError, file};

mod made;
mod publish;
mod root;

pub use made::{MAX_REMOVED, Made};
pub use publish::{MAX_TARGETS, Written};
pub use root::{Edit, PENDING, Pending, Signing, sign_root};

const SETTINGS: &str = "trust.json";
const MAX_SETTINGS_BYTES: u64 = 64 << 10;
/// The version of the specification that metadata names.
const SPEC_VERSION: &str = "1.0.0";

/// How long metadata lasts, days.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Days {
    /// Root.
    pub root: u32,
    /// Targets.
    pub targets: u32,
    /// Snapshot.
    pub snapshot: u32,
    /// Timestamp: how long a device can be shown an old state.
    pub timestamp: u32,
}

impl Default for Days {
    fn default() -> Self {
        Self { root: 730, targets: 180, snapshot: 60, timestamp: 7 }
    }
}

impl Days {
    fn of(&self, role: Role) -> u32 {
        match role {
            Role::Root => self.root,
            Role::Targets => self.targets,
            Role::Snapshot => self.snapshot,
            Role::Timestamp => self.timestamp,
        }
    }
}

/// How a repository begins.
#[derive(Clone, Debug, Default)]
pub struct Init {
    /// The root's public keys; with none, a key is made in the folder of keys.
    pub root_keys: Vec<PublicKey>,
    /// How many of them must sign; at least 1.
    pub root_threshold: u64,
    /// How long metadata lasts.
    pub days: Days,
}

/// A repository.
#[derive(Clone, Debug)]
pub struct Host {
    dir: PathBuf,
    keys: PathBuf,
    days: Days,
    now_s: Option<i64>,
}

/// What a repository says now.
#[derive(Clone, Debug, Serialize)]
pub struct Current {
    /// Each role's version, expiry and keys. Only the root before the first publication.
    pub roles: BTreeMap<Role, RoleFacts>,
    /// Bundles that may be installed.
    pub targets: Vec<String>,
    /// The next root, while signatures for it are gathered.
    pub pending: Option<Pending>,
}

/// What is known of a role.
#[derive(Clone, Debug, Serialize)]
pub struct RoleFacts {
    /// The version of its metadata; 0 before the first.
    pub version: u64,
    /// When that expires.
    pub expires: String,
    /// Seconds until then, negative after it.
    pub expires_in_s: i64,
    /// How many keys must sign.
    pub threshold: u64,
    /// The ids of its keys.
    pub keys: Vec<String>,
    /// Those whose private halves are at hand.
    pub at_hand: Vec<String>,
}

/// The metadata that is published.
struct Published {
    root: Signed<Root>,
    targets: Option<(Signed<schema::Targets>, Vec<u8>)>,
    snapshot: Option<(Signed<Snapshot>, Vec<u8>)>,
    timestamp: Option<Signed<Timestamp>>,
}

impl Host {
    /// Makes a repository in `dir`, which must not hold one, with keys in `keys` (`dir/keys` if not given). With a
    /// root key of its own it publishes at once; otherwise root 1 is pending, for its keys to sign.
    ///
    /// # Errors
    /// There is one already, or a file cannot be written.
    pub fn init(dir: &Path, keys: Option<&Path>, init: &Init) -> Result<Self> {
        let host = Self::at(dir, keys, init.days);
        let published = fs::read_dir(host.metadata()).is_ok_and(|mut found| found.next().is_some());
        if dir.join(SETTINGS).exists() || published {
            let what = "there is a repository already; nothing of it is changed";
            return Err(TrustError::Host(format!("{}: {what}", dir.display())));
        }
        for folder in [dir, &host.keys] {
            fs::create_dir_all(folder).map_err(TrustError::file("create", folder))?;
        }
        let lock = host.lock()?;
        let mut root_keys = init.root_keys.clone();
        let own_root = root_keys.is_empty();
        if own_root {
            root_keys.push(host.key_for(Role::Root)?);
        }
        let mut roles = BTreeMap::from([(Role::Root, (root_keys, init.root_threshold.max(1)))]);
        for role in [Role::Targets, Role::Snapshot, Role::Timestamp] {
            roles.insert(role, (vec![host.key_for(role)?], 1));
        }
        let root = root::first(&roles, host.expires(Role::Root)?)?;
        let days = serde_json::to_vec_pretty(&init.days).map_err(|e| host.wrong(&e))?;
        fs::create_dir_all(host.metadata()).map_err(TrustError::file("create", dir))?;
        host.write_pending(&Signed { signed: root, signatures: Vec::new() })?;
        // What makes it a repository comes last: an interrupted `init` is repeated, and takes up the keys it made.
        file::replace(&dir.join(SETTINGS), &days)?;
        drop(lock);
        if own_root {
            sign_root(&host.pending_path(), &[KeyFile::open(&host.key_path(Role::Root))?])?;
            host.publish_root(None)?;
        }
        Ok(host)
    }

    /// Opens a repository.
    ///
    /// # Errors
    /// There is none.
    pub fn open(dir: &Path, keys: Option<&Path>) -> Result<Self> {
        let path = dir.join(SETTINGS);
        let Some(text) = file::read_if_there(&path, MAX_SETTINGS_BYTES)? else {
            let what = "there is no repository here; `espalier trust init` makes one";
            return Err(TrustError::Host(format!("{}: {what}", dir.display())));
        };
        let days = serde_json::from_slice(&text)
            .map_err(|e| TrustError::Host(format!("{}: {e}", path.display())))?;
        Ok(Self::at(dir, keys, days))
    }

    fn at(dir: &Path, keys: Option<&Path>, days: Days) -> Self {
        let keys = keys.map_or_else(|| dir.join("keys"), Path::to_owned);
        Self { dir: dir.to_owned(), keys, days, now_s: None }
    }

    /// The same, as if it were that time, Unix seconds.
    #[must_use]
    pub fn pretending(self, now_s: i64) -> Self {
        Self { now_s: Some(now_s), ..self }
    }

    /// The folder of its metadata, for others to read.
    #[must_use]
    pub fn metadata(&self) -> PathBuf {
        self.dir.join("metadata")
    }

    /// The newest root, to be given to devices.
    ///
    /// # Errors
    /// There is none yet.
    pub fn root_json(&self) -> Result<Vec<u8>> {
        let (_, bytes) = self.newest_root()?.ok_or_else(|| self.without_root())?;
        Ok(bytes)
    }

    /// The bundles that may be installed, by the names of their targets.
    ///
    /// # Errors
    /// The metadata cannot be read.
    pub fn targets(&self) -> Result<BTreeMap<String, Target>> {
        let published = self.published()?;
        Ok(published.targets.map(|(targets, _)| bundles(&targets.signed)).unwrap_or_default())
    }

    /// What it says now.
    ///
    /// # Errors
    /// The metadata or the keys cannot be read.
    pub fn current(&self) -> Result<Current> {
        let pending = match self.pending()? {
            Some(pending) => Some(self.describe(&pending)?),
            None => None,
        };
        let mut current = Current { roles: BTreeMap::new(), targets: Vec::new(), pending };
        if self.newest_root()?.is_none() {
            return Ok(current);
        }
        let published = self.published()?;
        let at_hand = keys::folder(&self.keys)?;
        let timed = |v: std::num::NonZeroU64, expires: jiff::Timestamp| (v.get(), expires);
        for role in Role::ALL {
            let stand = match role {
                Role::Root => {
                    Some(timed(published.root.signed.version, published.root.signed.expires))
                }
                Role::Targets => published
                    .targets
                    .as_ref()
                    .map(|(t, _)| timed(t.signed.version, t.signed.expires)),
                Role::Snapshot => published
                    .snapshot
                    .as_ref()
                    .map(|(s, _)| timed(s.signed.version, s.signed.expires)),
                Role::Timestamp => {
                    published.timestamp.as_ref().map(|t| timed(t.signed.version, t.signed.expires))
                }
            };
            let facts = self.role_facts(&published.root.signed, role, stand, &at_hand)?;
            current.roles.insert(role, facts);
        }
        current.targets = self.targets()?.into_keys().collect();
        Ok(current)
    }

    fn role_facts(
        &self,
        root: &Root,
        role: Role,
        stand: Option<(u64, jiff::Timestamp)>,
        at_hand: &HashMap<String, KeyFile>,
    ) -> Result<RoleFacts> {
        let named = root.roles.get(&role.kind());
        let ids: Vec<String> =
            named.map(|r| r.keyids.iter().map(|id| keys::hex(id)).collect()).unwrap_or_default();
        Ok(RoleFacts {
            version: stand.map_or(0, |(version, _)| version),
            expires: stand.map(|(_, expires)| expires.to_string()).unwrap_or_default(),
            expires_in_s: match stand {
                Some((_, expires)) => expires.as_second() - self.now()?.as_second(),
                None => 0,
            },
            threshold: named.map_or(0, |r| r.threshold.get()),
            at_hand: ids.iter().filter(|id| at_hand.contains_key(*id)).cloned().collect(),
            keys: ids,
        })
    }

    fn published(&self) -> Result<Published> {
        let (root, _) = self.newest_root()?.ok_or_else(|| self.without_root())?;
        let timestamp: Option<(Signed<Timestamp>, _)> = self.metadata_file("timestamp.json")?;
        let Some((timestamp, _)) = timestamp else {
            return Ok(Published { root, targets: None, snapshot: None, timestamp: None });
        };
        let missing = |name: &str| {
            TrustError::Host(format!("{name} is missing from {}", self.metadata().display()))
        };
        let name = |version: u64, role: Role| format!("{version}.{role}.json");
        let meta = timestamp.signed.meta.get("snapshot.json").ok_or_else(|| missing("snapshot"))?;
        let at = name(meta.version.get(), Role::Snapshot);
        let snapshot: (Signed<Snapshot>, _) =
            self.metadata_file(&at)?.ok_or_else(|| missing(&at))?;
        let meta = snapshot.0.signed.meta.get("targets.json").ok_or_else(|| missing("targets"))?;
        let at = name(meta.version.get(), Role::Targets);
        let targets = self.metadata_file(&at)?.ok_or_else(|| missing(&at))?;
        Ok(Published {
            root,
            targets: Some(targets),
            snapshot: Some(snapshot),
            timestamp: Some(timestamp),
        })
    }

    fn metadata_file<T: serde::de::DeserializeOwned>(
        &self,
        name: &str,
    ) -> Result<Option<(Signed<T>, Vec<u8>)>> {
        let path = self.metadata().join(name);
        let Some(bytes) = file::read_if_there(&path, Limits::default().targets_bytes)? else {
            return Ok(None);
        };
        match serde_json::from_slice(&bytes) {
            Ok(signed) => Ok(Some((signed, bytes))),
            Err(e) => Err(TrustError::Host(format!("{}: {e}", path.display()))),
        }
    }

    fn without_root(&self) -> TrustError {
        TrustError::Host(format!(
            "{}: root 1 is not published yet: sign {PENDING} with its keys (`espalier trust root sign`), then `espalier \
             trust root publish`",
            self.dir.display()
        ))
    }

    /// The keys at hand that the root names for a role, and an error where they do not reach its threshold.
    fn keys_of<'k>(
        root: &Root,
        role: RoleType,
        at_hand: &'k HashMap<String, KeyFile>,
    ) -> Result<Vec<&'k KeyFile>> {
        let named = root.roles.get(&role);
        let ids = named.map(|r| r.keyids.as_slice()).unwrap_or_default();
        let found: Vec<&KeyFile> =
            ids.iter().filter_map(|id| at_hand.get(&keys::hex(id))).collect();
        let threshold = named.map_or(1, |r| r.threshold.get());
        if (found.len() as u64) < threshold {
            return Err(TrustError::Host(format!(
                "the role {role} needs {threshold} signatures, and {} of its keys are at hand (--keys)",
                found.len()
            )));
        }
        Ok(found)
    }

    fn key_path(&self, role: Role) -> PathBuf {
        self.keys.join(format!("{role}.pem"))
    }

    /// The key of a role in the folder of keys, made if it is not there.
    fn key_for(&self, role: Role) -> Result<PublicKey> {
        let path = self.key_path(role);
        let key = if path.exists() { KeyFile::open(&path)? } else { KeyFile::create(&path)? };
        Ok(key.public())
    }

    fn lock(&self) -> Result<File> {
        let path = self.dir.join("lock");
        let options = fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = options.map_err(TrustError::file("open", &path))?;
        file.lock().map_err(TrustError::file("lock", &path))?;
        Ok(file)
    }

    fn now(&self) -> Result<jiff::Timestamp> {
        match self.now_s {
            Some(now_s) => jiff::Timestamp::from_second(now_s).map_err(|e| self.wrong(&e)),
            None => {
                let now = jiff::Timestamp::now();
                jiff::Timestamp::from_second(now.as_second()).map_err(|e| self.wrong(&e))
            }
        }
    }

    /// When metadata expires that is signed now.
    fn expires(&self, role: Role) -> Result<jiff::Timestamp> {
        let lasting = jiff::SignedDuration::from_hours(24 * i64::from(self.days.of(role)));
        self.now()?.checked_add(lasting).map_err(|e| self.wrong(&e))
    }

    /// Whether more than half of its life is over.
    fn is_old(&self, role: Role, expires: jiff::Timestamp) -> Result<bool> {
        let half = i64::from(self.days.of(role)) * 86_400 / 2;
        Ok(expires.as_second() - self.now()?.as_second() < half)
    }

    fn wrong(&self, error: &dyn std::fmt::Display) -> TrustError {
        TrustError::Host(format!("{}: {error}", self.dir.display()))
    }
}

fn to_bytes<T: schema::Role>(signed: &Signed<T>) -> Result<Vec<u8>> {
    serde_json::to_vec(signed).map_err(|e| TrustError::Host(e.to_string()))
}
