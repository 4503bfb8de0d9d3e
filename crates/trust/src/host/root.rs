//! Roots: the next one is edited, signed by its keys on whatever machines they are, and then published.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};

use serde::Serialize;
use tough::schema::{RoleKeys, RoleType, Root, Signature, Signed};

use super::{Host, SPEC_VERSION, Written, to_bytes};
use crate::keys::{self, KeyFile, PublicKey};
use crate::{Limits, Result, Role, TrustError, file};

/// The next root, while signatures for it are gathered.
pub const PENDING: &str = "root.pending.json";
/// Keys of one role, and signatures of one root.
const MAX_KEYS: usize = 64;

/// A change of the next root.
#[derive(Clone, Debug)]
pub enum Edit {
    /// Another key for a role.
    AddKey(Role, PublicKey),
    /// One key less, by its id or the beginning of it.
    RemoveKey(Role, String),
    /// How many of a role's keys must sign.
    Threshold(Role, u64),
    /// One key in the place of another, or of all.
    Rotate(Role, Option<String>, PublicKey),
    /// Nothing but a later expiry.
    Renew,
}

/// How far the next root is signed.
#[derive(Clone, Debug, Serialize)]
pub struct Pending {
    /// Its version.
    pub version: u64,
    /// When it expires.
    pub expires: String,
    /// The keys that have signed.
    pub signed_by: Vec<String>,
    /// How many of its own keys have signed, and how many must.
    pub own: (u64, u64),
    /// How many of the keys of the root before it have signed, and how many must. None for the first root.
    pub before: Option<(u64, u64)>,
}

impl Pending {
    /// Whether it may be published.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.own.0 >= self.own.1 && self.before.is_none_or(|(have, need)| have >= need)
    }
}

/// What signing did.
#[derive(Clone, Debug, Serialize)]
pub struct Signing {
    /// The root's version.
    pub version: u64,
    /// Each key that signed, and whether it is one of that root's own.
    pub keys: BTreeMap<String, bool>,
    /// How many of its own keys have signed, and how many must.
    pub own: (u64, u64),
}

/// Signs a root in a file, on whatever machine, and adds the signatures to those there. The file is replaced as a whole.
///
/// # Errors
/// The file is no root, or cannot be written.
pub fn sign_root(path: &Path, keys: &[KeyFile]) -> Result<Signing> {
    let mut root = read_root(path)?;
    let mut signing =
        Signing { version: root.signed.version.get(), keys: BTreeMap::new(), own: (0, 0) };
    for key in keys {
        let signature = key.sign(&root.signed)?;
        let own = names(&root.signed, &signature.keyid);
        signing.keys.insert(keys::hex(&signature.keyid), own);
        root.signatures.retain(|there| there.keyid != signature.keyid);
        root.signatures.push(signature);
    }
    if root.signatures.len() > MAX_KEYS {
        let what = format!("over {MAX_KEYS} signatures");
        return Err(TrustError::Host(format!("{}: {what}", path.display())));
    }
    file::replace(path, &to_bytes(&root)?)?;
    signing.own = signatures(&root.signed, &root);
    Ok(signing)
}

/// The first root.
pub(super) fn first(
    roles: &BTreeMap<Role, (Vec<PublicKey>, u64)>,
    expires: jiff::Timestamp,
) -> Result<Root> {
    let mut root = Root {
        spec_version: SPEC_VERSION.to_owned(),
        consistent_snapshot: true,
        version: NonZeroU64::MIN,
        expires,
        keys: HashMap::new(),
        roles: HashMap::new(),
        _extra: HashMap::new(),
    };
    for (role, (keys, threshold)) in roles {
        for key in keys {
            add(&mut root, *role, key)?;
        }
        set_threshold(&mut root, *role, *threshold)?;
    }
    check(&root)?;
    Ok(root)
}

impl Host {
    /// Changes the next root, which begins as a copy of the newest. Signatures it had are dropped: they were of
    /// something else.
    ///
    /// # Errors
    /// The change makes no sense: the root would have a role that nobody can sign for.
    pub fn edit_root(&self, edits: &[Edit]) -> Result<Pending> {
        let _lock = self.lock()?;
        let mut root = match self.pending()? {
            Some(pending) => pending.signed,
            None => {
                let (newest, _) = self.newest_root()?.ok_or_else(|| self.without_root())?;
                let mut root = newest.signed;
                root.version = root.version.saturating_add(1);
                root
            }
        };
        root.expires = self.expires(Role::Root)?;
        for edit in edits {
            apply(&mut root, edit)?;
        }
        check(&root)?;
        let pending = Signed { signed: root, signatures: Vec::new() };
        self.write_pending(&pending)?;
        self.describe(&pending)
    }

    /// Publishes the next root, with the signatures in `from` where it was signed elsewhere. What it takes keys away
    /// from is signed anew with what is at hand.
    ///
    /// # Errors
    /// Signatures or keys are missing; then nothing is changed but that the signatures in `from` are kept.
    pub fn publish_root(&self, from: Option<&Path>) -> Result<Written> {
        let _lock = self.lock()?;
        let mut pending = match (self.pending()?, from) {
            (Some(pending), None) => pending,
            (None, None) => {
                return Err(TrustError::Host(format!(
                    "{}: no root is pending",
                    self.dir.display()
                )));
            }
            (None, Some(from)) => read_root(from)?,
            (Some(pending), Some(from)) => {
                let before = self.newest_root()?.map(|(root, _)| root.signed);
                let merged = merge(pending, read_root(from)?, before.as_ref(), from)?;
                // What was gathered is kept, whether it is enough or not.
                self.write_pending(&merged)?;
                merged
            }
        };
        let pending_facts = self.describe(&pending)?;
        if !pending_facts.is_complete() {
            let (have, need) = pending_facts.own;
            let before = pending_facts.before.map_or_else(String::new, |(have, need)| {
                format!(", and {have} of {need} by the keys of the root before it")
            });
            return Err(TrustError::Host(format!(
                "root {} is signed by {have} of {need} of its own keys{before}: sign it with `espalier trust root sign`",
                pending_facts.version
            )));
        }
        let newest = self.newest_root()?.map_or(0, |(root, _)| root.signed.version.get());
        if pending_facts.version != newest + 1 {
            let version = pending_facts.version;
            return Err(TrustError::Host(format!("root {version} cannot follow root {newest}")));
        }
        drop_strangers(&mut pending, self.newest_root()?.map(|(root, _)| root.signed).as_ref());
        let written = self.commit(Some(pending), |_| Ok(false))?;
        let path = self.pending_path();
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(TrustError::file("remove", &path)(error))
            }
            _ => Ok(written),
        }
    }

    pub(super) fn pending_path(&self) -> PathBuf {
        self.dir.join(PENDING)
    }

    /// The next root. One that is published already, whose publication was interrupted, is none.
    pub(super) fn pending(&self) -> Result<Option<Signed<Root>>> {
        let path = self.pending_path();
        if file::read_if_there(&path, Limits::default().root_bytes)?.is_none() {
            return Ok(None);
        }
        let pending = read_root(&path)?;
        let newest = self.newest_root()?;
        let published =
            newest.is_some_and(|(root, _)| root.signed.version >= pending.signed.version);
        Ok((!published).then_some(pending))
    }

    pub(super) fn write_pending(&self, root: &Signed<Root>) -> Result<()> {
        file::replace(&self.pending_path(), &to_bytes(root)?)
    }

    pub(super) fn describe(&self, pending: &Signed<Root>) -> Result<Pending> {
        let before = self.newest_root()?.map(|(root, _)| signatures(&root.signed, pending));
        Ok(Pending {
            version: pending.signed.version.get(),
            expires: pending.signed.expires.to_string(),
            signed_by: pending.signatures.iter().map(|s| keys::hex(&s.keyid)).collect(),
            own: signatures(&pending.signed, pending),
            before,
        })
    }

    /// The root with the highest number, found by counting up.
    pub(super) fn newest_root(&self) -> Result<Option<(Signed<Root>, Vec<u8>)>> {
        let mut newest = None;
        for version in 1u64.. {
            match self.metadata_file(&format!("{version}.root.json"))? {
                Some(found) => newest = Some(found),
                None => break,
            }
        }
        Ok(newest)
    }
}

fn read_root(path: &Path) -> Result<Signed<Root>> {
    let bytes = file::read(path, Limits::default().root_bytes)?;
    let root = serde_json::from_slice(&bytes);
    root.map_err(|e| TrustError::Host(format!("{}: no root metadata: {e}", path.display())))
}

fn merge(
    mut pending: Signed<Root>,
    signed: Signed<Root>,
    before: Option<&Root>,
    from: &Path,
) -> Result<Signed<Root>> {
    if pending.signed != signed.signed {
        let what = "what is signed there is not the root that is pending here";
        return Err(TrustError::Host(format!("{}: {what}", from.display())));
    }
    let body = signed.signed;
    let counts = |signature: &Signature| {
        signs(&body, &body, signature) || before.is_some_and(|root| signs(root, &body, signature))
    };
    for signature in signed.signatures.into_iter().filter(|signature| counts(signature)) {
        if !pending.signatures.iter().any(|there| there.keyid == signature.keyid) {
            pending.signatures.push(signature);
        }
    }
    Ok(pending)
}

/// Signatures of keys that neither root names are of no use to anybody.
fn drop_strangers(pending: &mut Signed<Root>, before: Option<&Root>) {
    let known = |id: &_| names(&pending.signed, id) || before.is_some_and(|root| names(root, id));
    let signatures = pending.signatures.iter().filter(|s| known(&s.keyid)).cloned().collect();
    pending.signatures = signatures;
}

fn names(root: &Root, id: &KeyId) -> bool {
    root.roles.get(&RoleType::Root).is_some_and(|role| role.keyids.contains(id))
}

type KeyId = tough::schema::decoded::Decoded<tough::schema::decoded::Hex>;

/// How many valid signatures of `root`'s root keys a root carries, and how many it needs.
fn signatures(root: &Root, signed: &Signed<Root>) -> (u64, u64) {
    let threshold = root.roles.get(&RoleType::Root).map_or(1, |role| role.threshold.get());
    let valid = signed.signatures.iter().filter(|one| signs(root, &signed.signed, one));
    (valid.count() as u64, threshold)
}

/// Whether a signature is one of `body` by a root key of `root`.
fn signs(root: &Root, body: &Root, signature: &Signature) -> bool {
    let alone = Signed { signed: body.clone(), signatures: vec![signature.clone()] };
    let mut one = root.clone();
    if let Some(role) = one.roles.get_mut(&RoleType::Root) {
        role.threshold = NonZeroU64::MIN;
    }
    one.verify_role(&alone).is_ok()
}

fn apply(root: &mut Root, edit: &Edit) -> Result<()> {
    match edit {
        Edit::AddKey(role, key) => add(root, *role, key),
        Edit::RemoveKey(role, id) => remove(root, *role, id),
        Edit::Threshold(role, threshold) => set_threshold(root, *role, *threshold),
        Edit::Rotate(role, old, new) => {
            let named = root.roles.get(&role.kind());
            let all = named.map(|r| r.keyids.iter().map(|id| keys::hex(id)).collect());
            let old: Vec<String> = match old {
                Some(old) => vec![old.clone()],
                None => all.unwrap_or_default(),
            };
            add(root, *role, new)?;
            old.iter().try_for_each(|id| remove(root, *role, id))
        }
        Edit::Renew => Ok(()),
    }
}

fn add(root: &mut Root, role: Role, key: &PublicKey) -> Result<()> {
    let id = key.0.key_id().map_err(|e| TrustError::Host(e.to_string()))?;
    let role_keys = root.roles.entry(role.kind()).or_insert_with(|| RoleKeys {
        keyids: Vec::new(),
        threshold: NonZeroU64::MIN,
        _extra: HashMap::new(),
    });
    if role_keys.keyids.contains(&id) {
        let id = keys::hex(&id);
        return Err(TrustError::Host(format!("the role {role} has the key {id} already")));
    }
    if role_keys.keyids.len() >= MAX_KEYS {
        return Err(TrustError::Host(format!("the role {role} has {MAX_KEYS} keys, its limit")));
    }
    role_keys.keyids.push(id.clone());
    root.keys.insert(id, key.0.clone());
    Ok(())
}

/// Keys that no role names any more are dropped.
fn remove(root: &mut Root, role: Role, wanted: &str) -> Result<()> {
    let Some(role_keys) = root.roles.get_mut(&role.kind()) else {
        return Err(TrustError::Host(format!("the root has no role {role}")));
    };
    let matching: Vec<KeyId> =
        role_keys.keyids.iter().filter(|id| keys::hex(id).starts_with(wanted)).cloned().collect();
    let [id] = matching.as_slice() else {
        let found = matching.len();
        return Err(TrustError::Host(format!(
            "{found} keys of the role {role} have an id that begins with {wanted:?}, wanted 1"
        )));
    };
    role_keys.keyids.retain(|there| there != id);
    if !root.roles.values().any(|role| role.keyids.contains(id)) {
        root.keys.remove(id);
    }
    Ok(())
}

fn set_threshold(root: &mut Root, role: Role, threshold: u64) -> Result<()> {
    let wanted = NonZeroU64::new(threshold);
    match (root.roles.get_mut(&role.kind()), wanted) {
        (Some(role_keys), Some(threshold)) => {
            role_keys.threshold = threshold;
            Ok(())
        }
        _ => Err(TrustError::Host(format!("{threshold} is no threshold for the role {role}"))),
    }
}

/// Whether every role can be signed for.
fn check(root: &Root) -> Result<()> {
    for role in Role::ALL {
        let named = root.roles.get(&role.kind());
        let (keys, threshold) =
            named.map_or((0, 1), |r| (r.keyids.len() as u64, r.threshold.get()));
        if keys < threshold {
            return Err(TrustError::Host(format!(
                "the role {role} would need {threshold} signatures and have {keys} keys"
            )));
        }
    }
    Ok(())
}
