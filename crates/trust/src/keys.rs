//! Keys: a private one in a file for its owner alone, a public one beside it.

use std::collections::HashMap;
use std::fmt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::Ed25519KeyPair;
use serde::{Deserialize, Serialize};
use tough::schema::key::Key;
use tough::schema::{Signature, Signed};
use tough::sign::{Sign, parse_keypair};

use crate::runtime::block_on;
use crate::{Result, TrustError, file};

/// The largest key file, bytes.
const MAX_KEY_BYTES: u64 = 64 << 10;
const TAG: &str = "PRIVATE KEY";
/// What a public key's file is named, after its private key's.
const PUBLIC: &str = "pub";

/// A public key, as root metadata holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PublicKey(pub(crate) Key);

impl PublicKey {
    /// Its id: the hexadecimal SHA-256 digest of its canonical form.
    #[must_use]
    pub fn id(&self) -> String {
        self.0.key_id().map(|id| hex(&id)).unwrap_or_default()
    }

    /// Reads a public key, or that of a private one.
    ///
    /// # Errors
    /// The file is neither.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = file::read(path, MAX_KEY_BYTES)?;
        if bytes.starts_with(b"-----BEGIN") {
            return Ok(KeyFile::open(path)?.public());
        }
        serde_json::from_slice(&bytes).map_err(|e| TrustError::Key {
            path: path.to_owned(),
            reason: format!("neither a public key in TUF's JSON nor a private one in PEM: {e}"),
        })
    }
}

/// A private key.
pub struct KeyFile {
    path: PathBuf,
    sign: Box<dyn Sign>,
}

impl fmt::Debug for KeyFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyFile").field("path", &self.path).finish_non_exhaustive()
    }
}

impl KeyFile {
    /// Makes an Ed25519 key: the private one (PEM, PKCS#8) in `path`, which must be free, and the public one in
    /// `path.pub`.
    ///
    /// # Errors
    /// The file is there already, or cannot be written.
    pub fn create(path: &Path) -> Result<Self> {
        let wrong =
            |reason: &str| TrustError::Key { path: path.to_owned(), reason: reason.to_owned() };
        if path.symlink_metadata().is_ok() {
            return Err(wrong("there is a file already, and a key is never written over"));
        }
        let made = Ed25519KeyPair::generate_pkcs8v1(&SystemRandom::new());
        let der = made.map_err(|_| wrong("no key could be made"))?;
        let text = pem::encode_config(
            &pem::Pem::new(TAG, der.as_ref()),
            pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF),
        );
        file::create_secret(path, text.as_bytes())?;
        let key = Self::open(path)?;
        let public = serde_json::to_vec(&key.public()).map_err(|e| wrong(&e.to_string()))?;
        file::replace(&public_path(path), &public)?;
        Ok(key)
    }

    /// Reads a private key: Ed25519, ECDSA on P-256 or RSA, in PEM.
    ///
    /// # Errors
    /// The file is none, or others may read it.
    pub fn open(path: &Path) -> Result<Self> {
        let wrong = |reason: String| TrustError::Key { path: path.to_owned(), reason };
        let meta = path.metadata().map_err(TrustError::file("open", path))?;
        let mode = meta.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(wrong(format!(
                "others may use this private key (mode {mode:04o}): chmod 600 it, and think about who has read it"
            )));
        }
        let text = file::read(path, MAX_KEY_BYTES)?;
        let parsed = pem::parse(&text).map_err(|e| wrong(format!("no private key in PEM: {e}")))?;
        let sign: Box<dyn Sign> = match parse_keypair(parsed.contents()) {
            Ok(pair) => Box::new(pair),
            Err(_) => Box::new(parse_keypair(&text).map_err(|_| {
                wrong(
                    "no key that can sign here: wanted Ed25519, ECDSA P-256 or RSA, PKCS#8".into(),
                )
            })?),
        };
        Ok(Self { path: path.to_owned(), sign })
    }

    /// Where it lies.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its public half.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey(self.sign.tuf_key())
    }

    /// A signature of a role's canonical form.
    pub(crate) fn sign<T: tough::schema::Role>(&self, role: &T) -> Result<Signature> {
        let wrong = |reason: String| TrustError::Key { path: self.path.clone(), reason };
        let form = role.canonical_form().map_err(|e| wrong(e.to_string()))?;
        let keyid = self.sign.tuf_key().key_id().map_err(|e| wrong(e.to_string()))?;
        let random = SystemRandom::new();
        let made = block_on(self.sign.sign(&form, &random))?;
        let sig = made.map_err(|e| wrong(format!("cannot sign: {e}")))?.into();
        Ok(Signature { keyid, sig })
    }
}

/// Signs with every key given.
pub(crate) fn sign_with<'k, T: tough::schema::Role>(
    signed: T,
    keys: impl Iterator<Item = &'k KeyFile>,
) -> Result<Signed<T>> {
    let signatures = keys.map(|key| key.sign(&signed)).collect::<Result<_>>()?;
    Ok(Signed { signed, signatures })
}

/// Where the public half of a private key's file lies.
pub(crate) fn public_path(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(PUBLIC);
    path.with_file_name(name)
}

/// All private keys of a folder, by their ids.
pub(crate) fn folder(path: &Path) -> Result<HashMap<String, KeyFile>> {
    let mut keys = HashMap::new();
    let entries = match std::fs::read_dir(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(keys),
        entries => entries.map_err(TrustError::file("list", path))?,
    };
    for entry in entries {
        let path = entry.map_err(TrustError::file("list", path))?.path();
        if path.extension().is_some_and(|ending| ending == "pem") {
            let key = KeyFile::open(&path)?;
            keys.insert(key.public().id(), key);
        }
    }
    Ok(keys)
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
