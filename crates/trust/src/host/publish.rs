//! Targets, snapshot and timestamp: what the keys at hand sign.

use std::collections::HashMap;
use std::num::NonZeroU64;
use std::path::Path;

use bundle::{Bundle, Digest};
use serde::Serialize;
use tough::TargetName;
use tough::schema::{self, Hashes, Metafile, Root, Signed, Snapshot, Targets, Timestamp};

use super::{Host, Published, SPEC_VERSION, to_bytes};
use crate::client::SIGNED_AT;
use crate::keys::{self, KeyFile, sign_with};
use crate::target::{Facts, TARGET_KEY, target_name};
use crate::{Limits, Result, Role, TrustError, file};

/// Bundles that one repository names.
pub const MAX_TARGETS: usize = 4096;
/// Superseded snapshots and targets that stay, for devices that are just reading.
const KEPT_VERSIONS: u64 = 16;

/// What a change wrote.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Written {
    /// The version of the root.
    pub root: u64,
    /// The version of the targets.
    pub targets: u64,
    /// The version of the snapshot.
    pub snapshot: u64,
    /// The version of the timestamp.
    pub timestamp: u64,
    /// What could not be renewed, for want of a key.
    pub warnings: Vec<String>,
}

impl Host {
    /// Allows a bundle for some classes of device; for those of its manifest if none is given. Allowing what is
    /// allowed changes nothing.
    ///
    /// # Errors
    /// The bundle is damaged, a limit is reached, or a key is missing.
    pub fn add(&self, bundle: &Path, classes: &[String]) -> Result<(String, Written)> {
        let draft = Draft::read(bundle, classes)?;
        let (name, digest) = (draft.name.clone(), draft.digest);
        let _lock = self.lock()?;
        let written = match self.has(&draft.key, &draft.target)? {
            Some(written) => written,
            None => self.commit(None, |targets| draft.enter(targets).map(|()| true))?,
        };
        // Interrupted before this, it counts as taken back where it did before, and the same command finishes.
        self.note_added(digest)?;
        Ok((name, written))
    }

    /// The versions that stand, if they allow a target as it is.
    fn has(&self, name: &TargetName, target: &schema::Target) -> Result<Option<Written>> {
        let published = self.published()?;
        let (Some((targets, _)), Some((snapshot, _)), Some(timestamp)) =
            (&published.targets, &published.snapshot, &published.timestamp)
        else {
            return Ok(None);
        };
        let same = targets.signed.targets.get(name) == Some(target);
        Ok(same.then(|| Written {
            root: published.root.signed.version.get(),
            targets: targets.signed.version.get(),
            snapshot: snapshot.signed.version.get(),
            timestamp: timestamp.signed.version.get(),
            warnings: Vec::new(),
        }))
    }

    /// Allows bundles no more, by their digests, and remembers that they were taken back. Devices go on serving what
    /// they have.
    ///
    /// # Errors
    /// One of them is no target, or a key is missing.
    pub fn remove(&self, digests: &[Digest]) -> Result<Written> {
        let _lock = self.lock()?;
        let written = self.commit(None, |targets| {
            let changed = take_out(targets, digests)?;
            // Before anything is published: interrupted, it is allowed still, and nobody signs it again.
            self.note_removed(digests)?;
            Ok(changed)
        })?;
        Ok(written)
    }

    /// Whether some of targets, snapshot and timestamp has lived more than half of its life, or is not there.
    ///
    /// # Errors
    /// The metadata cannot be read.
    pub fn is_due(&self) -> Result<bool> {
        let published = self.published()?;
        let (Some((targets, _)), Some((snapshot, _)), Some(timestamp)) =
            (&published.targets, &published.snapshot, &published.timestamp)
        else {
            return Ok(true);
        };
        Ok(self.is_old(Role::Targets, targets.signed.expires)?
            || self.is_old(Role::Snapshot, snapshot.signed.expires)?
            || self.is_old(Role::Timestamp, timestamp.signed.expires)?)
    }

    /// Signs a new timestamp, and whatever has lived more than half of its life.
    ///
    /// # Errors
    /// A key is missing.
    pub fn refresh(&self) -> Result<Written> {
        let _lock = self.lock()?;
        self.commit(None, |_| Ok(false))
    }

    /// Changes the targets and publishes: first files that nothing names yet, then the root, and at the end the timestamp
    /// that names them all. All signatures are made and checked before the first file is written.
    pub(super) fn commit(
        &self,
        root: Option<Signed<Root>>,
        change: impl FnOnce(&mut Targets) -> Result<bool>,
    ) -> Result<Written> {
        let at_hand = keys::folder(&self.keys)?;
        let before = match &root {
            // The first root: there is nothing before it.
            Some(root) if root.signed.version == NonZeroU64::MIN => {
                Published { root: root.clone(), targets: None, snapshot: None, timestamp: None }
            }
            _ => self.published()?,
        };
        let rules = root.as_ref().unwrap_or(&before.root).signed.clone();
        let mut signer =
            Signer { host: self, rules: &rules, at_hand: &at_hand, warnings: Vec::new() };
        let (targets, targets_bytes) = signer.targets(before.targets, change)?;
        let (snapshot, snapshot_bytes) =
            signer.snapshot(before.snapshot, &targets, &targets_bytes)?;
        let timestamp = signer.timestamp(before.timestamp, &snapshot, &snapshot_bytes)?;
        let written = Written {
            root: rules.version.get(),
            targets: targets.signed.version.get(),
            snapshot: snapshot.signed.version.get(),
            timestamp: timestamp.signed.version.get(),
            warnings: signer.warnings,
        };
        let folder = self.metadata();
        file::replace(&folder.join(format!("{}.targets.json", written.targets)), &targets_bytes)?;
        file::replace(
            &folder.join(format!("{}.snapshot.json", written.snapshot)),
            &snapshot_bytes,
        )?;
        if let Some(root) = root {
            let bytes = to_bytes(&root)?;
            file::replace(&folder.join(format!("{}.root.json", written.root)), &bytes)?;
            file::replace(&folder.join("root.json"), &bytes)?;
        }
        file::replace(&folder.join("timestamp.json"), &to_bytes(&timestamp)?)?;
        self.prune(&written);
        Ok(written)
    }

    /// Best effort: what stays is found again.
    fn prune(&self, written: &Written) {
        for (role, version) in
            [(Role::Targets, written.targets), (Role::Snapshot, written.snapshot)]
        {
            let mut old = version.saturating_sub(KEPT_VERSIONS);
            while old > 0 {
                let path = self.metadata().join(format!("{old}.{role}.json"));
                if std::fs::remove_file(path).is_err() {
                    break;
                }
                old -= 1;
            }
        }
    }
}

/// Takes bundles out of the targets.
pub(super) fn take_out(targets: &mut Targets, digests: &[Digest]) -> Result<bool> {
    for digest in digests {
        let name = target_name(digest);
        let key = TargetName::new(&name).map_err(|e| TrustError::Host(e.to_string()))?;
        if targets.remove_target(&key).is_none() {
            return Err(TrustError::Host(format!("{name} is no target")));
        }
    }
    Ok(!digests.is_empty())
}

/// A bundle that is to become a target.
pub(super) struct Draft {
    pub(super) digest: Digest,
    pub(super) name: String,
    key: TargetName,
    target: schema::Target,
}

impl Draft {
    /// A bundle for some classes of device; for those of its manifest if none is given.
    pub(super) fn read(bundle: &Path, classes: &[String]) -> Result<Self> {
        let opened = Bundle::open(bundle, &bundle::Limits::default());
        let opened = opened.map_err(|e| TrustError::Host(e.to_string()))?;
        let path = opened.dir.join(bundle::MANIFEST_FILE);
        let manifest = file::read(&path, bundle::Limits::default().manifest_bytes)?;
        if Digest::of(&manifest) != opened.digest {
            let what = std::io::Error::other("it changes while it is read");
            return Err(TrustError::file("read", &path)(what));
        }
        let mut facts = Facts::of(&opened.manifest);
        if !classes.is_empty() {
            facts.device_classes = classes.to_vec();
        }
        let name = target_name(&opened.digest);
        let target = target(&opened.digest, manifest.len() as u64, &facts)?;
        let key = TargetName::new(&name).map_err(|e| TrustError::Host(e.to_string()))?;
        Ok(Self { digest: opened.digest, name, key, target })
    }

    /// Enters it into the targets.
    pub(super) fn enter(self, targets: &mut Targets) -> Result<()> {
        if targets.targets.len() >= MAX_TARGETS && !targets.targets.contains_key(&self.key) {
            return Err(TrustError::Host(format!(
                "the repository has reached its limit MAX_TARGETS of {MAX_TARGETS}: take some back first"
            )));
        }
        targets.add_target(self.key, self.target);
        Ok(())
    }
}

/// Makes the metadata of one publication.
struct Signer<'a> {
    host: &'a Host,
    /// The root that holds from then on.
    rules: &'a Root,
    at_hand: &'a HashMap<String, KeyFile>,
    warnings: Vec<String>,
}

impl Signer<'_> {
    fn targets(
        &mut self,
        before: Option<(Signed<Targets>, Vec<u8>)>,
        change: impl FnOnce(&mut Targets) -> Result<bool>,
    ) -> Result<(Signed<Targets>, Vec<u8>)> {
        let mut targets = match &before {
            Some((before, _)) => before.signed.clone(),
            None => Targets {
                delegations: None,
                ..Targets::new(SPEC_VERSION.to_owned(), NonZeroU64::MIN, self.host.now()?)
            },
        };
        let changed = change(&mut targets)?;
        let must = changed || !self.holds(before.as_ref());
        if let Some(before) = before {
            if !must && !self.is_due(Role::Targets, before.0.signed.expires)? {
                return Ok(before);
            }
            targets.version = next(targets.version)?;
        }
        targets.expires = self.host.expires(Role::Targets)?;
        let signed = self.sign(targets)?;
        let bytes = to_bytes(&signed)?;
        let limit = Limits::default().targets_bytes;
        if bytes.len() as u64 > limit {
            return Err(TrustError::Host(format!(
                "the targets would take {} bytes, over the limit max_targets_bytes of {limit}: take some back first",
                bytes.len()
            )));
        }
        Ok((signed, bytes))
    }

    fn snapshot(
        &mut self,
        before: Option<(Signed<Snapshot>, Vec<u8>)>,
        targets: &Signed<Targets>,
        targets_bytes: &[u8],
    ) -> Result<(Signed<Snapshot>, Vec<u8>)> {
        let meta = metafile(targets.signed.version, targets_bytes);
        let same = before
            .as_ref()
            .is_some_and(|(before, _)| before.signed.meta.get("targets.json") == Some(&meta));
        let must = !same || !self.holds(before.as_ref());
        let mut version = NonZeroU64::MIN;
        if let Some(before) = before {
            if !must && !self.is_due(Role::Snapshot, before.0.signed.expires)? {
                return Ok(before);
            }
            version = next(before.0.signed.version)?;
        }
        let expires = self.host.expires(Role::Snapshot)?;
        let mut snapshot = Snapshot::new(SPEC_VERSION.to_owned(), version, expires);
        snapshot.meta.insert("targets.json".to_owned(), meta);
        let signed = self.sign(snapshot)?;
        let bytes = to_bytes(&signed)?;
        Ok((signed, bytes))
    }

    fn timestamp(
        &self,
        before: Option<Signed<Timestamp>>,
        snapshot: &Signed<Snapshot>,
        snapshot_bytes: &[u8],
    ) -> Result<Signed<Timestamp>> {
        let version = match before {
            Some(before) => next(before.signed.version)?,
            None => NonZeroU64::MIN,
        };
        let expires = self.host.expires(Role::Timestamp)?;
        let mut timestamp = Timestamp::new(SPEC_VERSION.to_owned(), version, expires);
        let meta = metafile(snapshot.signed.version, snapshot_bytes);
        timestamp.meta.insert("snapshot.json".to_owned(), meta);
        let now = self.host.now()?.as_second();
        timestamp._extra.insert(SIGNED_AT.to_owned(), now.into());
        self.sign(timestamp)
    }

    /// Whether metadata is there and the root's keys have signed it.
    fn holds<T: schema::Role>(&self, before: Option<&(Signed<T>, Vec<u8>)>) -> bool {
        before.is_some_and(|(before, _)| self.rules.verify_role(before).is_ok())
    }

    /// Whether metadata has lived half of its life and can be renewed. One that cannot, for want of a key, stays as
    /// long as it is in date.
    fn is_due(&mut self, role: Role, expires: jiff::Timestamp) -> Result<bool> {
        if !self.host.is_old(role, expires)? {
            return Ok(false);
        }
        match Host::keys_of(self.rules, role.kind(), self.at_hand) {
            Ok(_) => Ok(true),
            Err(error) => {
                self.warnings
                    .push(format!("{role} expires at {expires} and is not renewed: {error}"));
                Ok(false)
            }
        }
    }

    fn sign<T: schema::Role>(&self, role: T) -> Result<Signed<T>> {
        let keys = Host::keys_of(self.rules, T::TYPE, self.at_hand)?;
        let signed = sign_with(role, keys.into_iter())?;
        self.rules.verify_role(&signed).map_err(|e| TrustError::Host(e.to_string()))?;
        Ok(signed)
    }
}

fn target(digest: &Digest, length: u64, facts: &Facts) -> Result<schema::Target> {
    let facts = serde_json::to_value(facts).map_err(|e| TrustError::Host(e.to_string()))?;
    Ok(schema::Target {
        length,
        hashes: Hashes { sha256: digest.0.to_vec().into(), _extra: HashMap::new() },
        custom: HashMap::from([(TARGET_KEY.to_owned(), facts)]),
        _extra: HashMap::new(),
    })
}

fn metafile(version: NonZeroU64, bytes: &[u8]) -> Metafile {
    Metafile {
        length: Some(bytes.len() as u64),
        hashes: Some(Hashes {
            sha256: Digest::of(bytes).0.to_vec().into(),
            _extra: HashMap::new(),
        }),
        version,
        _extra: HashMap::new(),
    }
}

fn next(version: NonZeroU64) -> Result<NonZeroU64> {
    version.checked_add(1).ok_or_else(|| TrustError::Host("there is no higher version".to_owned()))
}
