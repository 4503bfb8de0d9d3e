//! The client: what a device runs before it installs anything.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bundle::Digest;
use tough::schema::{RoleType, Root, Signed, Snapshot, Timestamp};
use tough::{ExpirationEnforcement, Repository, RepositoryLoader};
use url::Url;

use crate::fetch::Fetch;
use crate::limits::Limits;
use crate::runtime::block_on;
use crate::state::{Folder, Remembered, Work};
use crate::target::{Target, Wanted, bundles};
use crate::time::{Expiry, Known};
use crate::transport::{BASE, Bounded};
use crate::{Check, Result, Role, TrustError};

/// The member of `timestamp.json` that says when it was signed, Unix seconds.
pub(crate) const SIGNED_AT: &str = "x-espalier-signed-at";
/// The first file that is asked for once there is no newer root.
const TIMESTAMP: &str = "timestamp.json";

/// Says what an owner's keys allow, from one owner's repository at any address.
#[derive(Debug)]
pub struct Client {
    root: Vec<u8>,
    anchor: Digest,
    folder: Folder,
    limits: Limits,
    expiry: Expiry,
}

/// What the owner's keys allow now.
#[derive(Clone, Debug)]
pub struct Trusted {
    /// Bundles that may be installed, by the names of their targets.
    pub targets: BTreeMap<String, Target>,
    /// The versions of the metadata that says so.
    pub versions: BTreeMap<Role, u64>,
    /// When each of them expires, Unix seconds.
    pub expires_s: BTreeMap<Role, i64>,
    /// The best known time that they were held against, Unix seconds.
    pub now_s: u64,
    /// What was let pass and should be looked at.
    pub warnings: Vec<String>,
}

impl Trusted {
    /// The target that allows an offer.
    ///
    /// # Errors
    /// The check that did not pass.
    pub fn allows(&self, wanted: &Wanted<'_>) -> Result<&Target> {
        let version = self.versions.get(&Role::Targets).copied().unwrap_or_default();
        wanted.among(&self.targets, version)
    }
}

/// Checks a root that a device is to be given, and returns its version.
///
/// # Errors
/// What is wrong with it.
pub fn check_root(bytes: &[u8], limits: &Limits) -> Result<u64> {
    let limit = limits.root_bytes;
    if bytes.len() as u64 > limit {
        let reason = format!("it is over the limit max_root_bytes of {limit} bytes");
        return Err(TrustError::Root(reason));
    }
    let root: Signed<Root> =
        serde_json::from_slice(bytes).map_err(|e| TrustError::Root(e.to_string()))?;
    let verified = root.signed.verify_role(&root);
    verified.map_err(|e| TrustError::Root(e.to_string()))?;
    for role in Role::ALL {
        if root.signed.keys(role.kind()).next().is_none() {
            return Err(TrustError::Root(format!("it names no key for the role {role}")));
        }
    }
    Ok(root.signed.version.get())
}

/// What a device that was just given `root`, and has seen nothing yet, would trust.
///
/// # Errors
/// As of [`Client::refresh`].
pub fn look(
    root: &[u8],
    fetch: Arc<dyn Fetch>,
    limits: Limits,
    expiry: Expiry,
    clock_s: u64,
) -> Result<Trusted> {
    let folder = tempfile::tempdir().map_err(TrustError::file("create", &std::env::temp_dir()))?;
    Client::new(root, folder.path(), limits, expiry)?.refresh(fetch, clock_s)
}

impl Client {
    /// A client that was given `root`, and keeps what it learns in `folder`, which nothing else writes to.
    ///
    /// # Errors
    /// The root is none.
    pub fn new(root: &[u8], folder: &Path, limits: Limits, expiry: Expiry) -> Result<Self> {
        check_root(root, &limits)?;
        let anchor = Digest::of(root);
        Ok(Self { root: root.to_owned(), anchor, folder: Folder::new(folder), limits, expiry })
    }

    /// Fetches what is new, checks it, remembers it, and says what may be installed. `clock_s` is what the device's
    /// clock shows, Unix seconds, set or not. Not to be called twice at once on one folder; it blocks.
    ///
    /// # Errors
    /// The check that did not pass, or why a file could not be had; what had passed before that is remembered.
    pub fn refresh(&self, fetch: Arc<dyn Fetch>, clock_s: u64) -> Result<Trusted> {
        let (mut remembered, warning) = self.folder.recall()?;
        if remembered.anchor != Some(self.anchor) {
            // Another root was given: what the keys of the one before have said counts for nothing, be it a version or
            // the time.
            let known = Known { proved_s: 0, ..remembered.known };
            remembered = Remembered { anchor: Some(self.anchor), known, ..Remembered::default() };
        }
        let root = remembered.root.clone().map_or_else(|| self.root.clone(), String::into_bytes);
        let work = self.folder.work(&remembered)?;
        let transport = Bounded::new(fetch, self.limits.clone());
        let loaded = block_on(self.load(&root, &work, transport.clone()))?;
        let mut session = Session {
            expiry: self.expiry,
            clock_s,
            now_s: 0,
            remembered,
            warnings: warning.into_iter().collect(),
        };
        let roots_done = transport.asked_for(TIMESTAMP);
        let outcome = match loaded {
            Ok(repository) => {
                session.accept(&root, &work, roots_done, Some(&repository)).map(|()| repository)
            }
            Err(error) => {
                // What it accepted before the error stays accepted. That is all there is to it: what is expired here
                // may be what was remembered, and is no finding of this update.
                let _ = session.accept(&root, &work, roots_done, None);
                Err(transport.failure().unwrap_or_else(|| TrustError::of(&error)))
            }
        };
        self.folder.remember(&session.remembered)?;
        outcome.map(|repository| session.trusted(&repository))
    }

    async fn load(
        &self,
        root: &[u8],
        work: &Work,
        transport: Bounded,
    ) -> std::result::Result<Repository, tough::error::Error> {
        let base = Url::parse(BASE).expect("a constant address");
        let limits = tough::Limits {
            max_root_size: self.limits.root_bytes,
            max_targets_size: self.limits.targets_bytes,
            max_timestamp_size: self.limits.timestamp_bytes,
            max_snapshot_size: self.limits.snapshot_bytes,
            max_root_updates: self.limits.root_updates,
        };
        // Expiry is judged by `Session`: `tough` reads the machine's clock, and refuses one that was set back.
        RepositoryLoader::new(&root, base.clone(), base)
            .transport(transport)
            .limits(limits)
            .datastore(work.path())
            .expiration_enforcement(ExpirationEnforcement::Unsafe)
            .load()
            .await
    }
}

/// One update, once `tough` is done with it.
struct Session {
    expiry: Expiry,
    clock_s: u64,
    now_s: u64,
    remembered: Remembered,
    warnings: Vec<String>,
}

impl Session {
    /// Takes over what is signed and in date, in the order of the specification, up to the first that is expired.
    /// `repository` is none where `tough` gave up. Where that was before it was done with the roots, timestamp and
    /// snapshot in its folder are still those that it was given: they stay remembered, or forgotten, as the roots have it.
    fn accept(
        &mut self,
        before: &[u8],
        work: &Work,
        roots_done: bool,
        repository: Option<&Repository>,
    ) -> Result<()> {
        let root = self.accept_root(before, work)?;
        let signed = |name| if roots_done { work.text(name) } else { Ok(None) };
        let timestamp = signed(TIMESTAMP)?;
        let (now_s, known) = self.judge(timestamp.as_deref(), &root);
        self.now_s = now_s;
        self.remembered.known = Known { proved_s: self.remembered.known.proved_s, ..known };
        self.in_date(&root)?;
        if let Some(text) = timestamp {
            self.in_date(&parse::<Timestamp>(&text)?.signed)?;
            self.remembered.timestamp = Some(text);
            self.remembered.known.proved_s = known.proved_s;
        }
        if let Some(text) = signed("snapshot.json")? {
            self.in_date(&parse::<Snapshot>(&text)?.signed)?;
            self.remembered.snapshot = Some(text);
        }
        match repository {
            Some(repository) => self.in_date(&repository.targets().signed),
            None => Ok(()),
        }
    }

    /// The newest root. Where it has other keys for timestamp or snapshot, what the old ones said is forgotten
    /// (specification, 5.3.11): that is how a device recovers once an attacker with a stolen key has shown it
    /// version numbers, or times, far ahead.
    fn accept_root(&mut self, before: &[u8], work: &Work) -> Result<Root> {
        let text = match work.text("root.json")? {
            Some(text) => text,
            None => String::from_utf8_lossy(before).into_owned(),
        };
        let root = parse::<Root>(&text)?.signed;
        let before: Signed<Root> =
            serde_json::from_slice(before).map_err(|e| TrustError::Root(e.to_string()))?;
        let keys = |root: &Root, role| root.keys(role).cloned().collect::<Vec<_>>();
        let changed = |role| keys(&before.signed, role) != keys(&root, role);
        if changed(RoleType::Timestamp) || changed(RoleType::Snapshot) {
            self.remembered.timestamp = None;
            self.remembered.snapshot = None;
        }
        if changed(RoleType::Timestamp) {
            self.remembered.known.proved_s = 0;
        }
        self.remembered.root = Some(text);
        Ok(root)
    }

    /// The best known time, with what a timestamp proves if the root's keys have signed it.
    fn judge(&self, timestamp: Option<&str>, root: &Root) -> (u64, Known) {
        let mut known = self.remembered.known;
        let timestamp = timestamp.and_then(|text| parse::<Timestamp>(text).ok());
        let signed = timestamp.filter(|timestamp| root.verify_role(timestamp).is_ok());
        if let Some(timestamp) = signed.map(|signed| signed.signed)
            && let Some(at) = timestamp._extra.get(SIGNED_AT).and_then(serde_json::Value::as_u64)
            && i64::try_from(at).is_ok_and(|at| at <= timestamp.expires.as_second())
        {
            known.proved_s = known.proved_s.max(at);
        }
        known.judge(self.clock_s)
    }

    fn in_date<R: tough::schema::Role>(&mut self, role: &R) -> Result<()> {
        let (expires, kind) = (role.expires(), R::TYPE);
        if i64::try_from(self.now_s).is_ok_and(|now| now < expires.as_second()) {
            return Ok(());
        }
        let now = jiff::Timestamp::from_second(i64::try_from(self.now_s).unwrap_or(i64::MAX));
        let now = now.map_or_else(|_| self.now_s.to_string(), |now| now.to_string());
        let (version, told) = (role.version(), format!("{kind} metadata"));
        let reason = format!("{told} {version} expired at {expires}, the best known time is {now}");
        match self.expiry {
            Expiry::Strict => Err(TrustError::refused(Check::Freeze, reason)),
            Expiry::Lenient => {
                self.warnings
                    .push(format!("{reason}; it is let pass (trust.expiry = \"lenient\")"));
                Ok(())
            }
        }
    }

    fn trusted(self, repository: &Repository) -> Trusted {
        let (root, targets) = (&repository.root().signed, &repository.targets().signed);
        let (timestamp, snapshot) = (&repository.timestamp().signed, &repository.snapshot().signed);
        Trusted {
            targets: bundles(targets),
            versions: BTreeMap::from([
                (Role::Root, root.version.get()),
                (Role::Targets, targets.version.get()),
                (Role::Snapshot, snapshot.version.get()),
                (Role::Timestamp, timestamp.version.get()),
            ]),
            expires_s: BTreeMap::from([
                (Role::Root, root.expires.as_second()),
                (Role::Targets, targets.expires.as_second()),
                (Role::Snapshot, snapshot.expires.as_second()),
                (Role::Timestamp, timestamp.expires.as_second()),
            ]),
            now_s: self.now_s,
            warnings: self.warnings,
        }
    }
}

fn parse<T: serde::de::DeserializeOwned>(text: &str) -> Result<Signed<T>> {
    serde_json::from_str(text).map_err(|e| TrustError::refused(Check::Format, e.to_string()))
}
