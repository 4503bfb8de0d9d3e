//! Certificates and keys out of PEM files.

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, InconsistentKeys, RootCertStore};

use crate::provider;

/// The largest file read; Debian's bundle of all CAs has about a quarter of a megabyte.
pub const MAX_FILE_BYTES: u64 = 4 << 20;
/// Certificates taken from one file.
pub const MAX_CERTIFICATES: usize = 4096;
/// The system's CAs, where no others are named.
pub const SYSTEM_CAS: &str = "/etc/ssl/certs/ca-certificates.crt";

/// What makes a connection secret, and each side sure of the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// The CAs that may have signed the other side's certificate; the system's if not given.
    pub ca: Option<PathBuf>,
    /// This side's certificate, with the intermediate ones behind it.
    pub certificate: Option<PathBuf>,
    /// Its key.
    pub key: Option<PathBuf>,
    /// The name that the other side's certificate must bear, where that is not the host connected to.
    pub server_name: Option<String>,
    /// What these are called where they were set.
    pub names: Names,
}

/// What the settings are called where they were set, for messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// [`Settings::ca`].
    pub ca: &'static str,
    /// [`Settings::certificate`].
    pub certificate: &'static str,
    /// [`Settings::key`].
    pub key: &'static str,
    /// [`Settings::server_name`].
    pub server_name: &'static str,
}

/// One of the settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The CAs.
    Ca,
    /// The certificate.
    Certificate,
    /// Its key.
    Key,
    /// The expected name.
    ServerName,
}

/// What is wrong with a setting.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name}: {what}")]
pub struct FileError {
    /// Which.
    pub part: Part,
    /// What it is called.
    pub name: &'static str,
    /// What is wrong, with the file, and what to do.
    pub what: String,
}

impl Settings {
    /// What a connection is made with; every file is read.
    ///
    /// # Errors
    /// The first thing that is wrong. [`crate::examine`] tells everything.
    pub fn client(&self) -> Result<ClientConfig, FileError> {
        let builder = ClientConfig::builder_with_provider(provider());
        let builder = builder.with_safe_default_protocol_versions();
        let builder = builder.map_err(|e| self.error(Part::Ca, e.to_string()))?;
        let builder = builder.with_root_certificates(self.roots()?);
        let Some((chain, key)) = self.identity()? else {
            return Ok(builder.with_no_client_auth());
        };
        let made = builder.with_client_auth_cert(chain, key);
        made.map_err(|error| self.unfit(&error))
    }

    /// The name that the other side's certificate must bear.
    ///
    /// # Errors
    /// It is neither a host's name nor an address.
    pub fn name(&self, host: &str) -> Result<ServerName<'static>, FileError> {
        let name = self.server_name.as_deref().unwrap_or(host);
        let bare = name.strip_prefix('[').and_then(|n| n.strip_suffix(']')).unwrap_or(name);
        ServerName::try_from(bare.to_owned()).map_err(|_| {
            let what = format!("{name:?} is neither a host's name nor an address");
            self.error(Part::ServerName, what)
        })
    }

    /// The CA file in use.
    #[must_use]
    pub fn ca_file(&self) -> &Path {
        self.ca.as_deref().unwrap_or(Path::new(SYSTEM_CAS))
    }

    pub(crate) fn roots(&self) -> Result<RootCertStore, FileError> {
        let path = self.ca_file();
        let found = self.read_certificates(Part::Ca, path)?;
        let mut store = RootCertStore::empty();
        let (taken, _) = store.add_parsable_certificates(found);
        if taken == 0 {
            let what = format!("{} has no certificate that can be used", path.display());
            return Err(self.error(Part::Ca, what));
        }
        Ok(store)
    }

    /// Certificate and key, if they are given.
    pub(crate) fn identity(
        &self,
    ) -> Result<Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>, FileError> {
        match (&self.certificate, &self.key) {
            (None, None) => Ok(None),
            (Some(certificate), Some(key)) => {
                let chain = self.read_certificates(Part::Certificate, certificate)?;
                Ok(Some((chain, self.read_key(key)?)))
            }
            (Some(_), None) => Err(self.alone(Part::Key, Part::Certificate)),
            (None, Some(_)) => Err(self.alone(Part::Certificate, Part::Key)),
        }
    }

    pub(crate) fn read_certificates(
        &self,
        part: Part,
        path: &Path,
    ) -> Result<Vec<CertificateDer<'static>>, FileError> {
        certificates(path).map_err(|what| self.error(part, what))
    }

    pub(crate) fn read_key(&self, path: &Path) -> Result<PrivateKeyDer<'static>, FileError> {
        let text = read(path).map_err(|what| self.error(Part::Key, what))?;
        PrivateKeyDer::from_pem_slice(&text).map_err(|_| {
            let at = path.display();
            let what = if contains(&text, b"ENCRYPTED PRIVATE KEY") || contains(&text, b"ENCRYPTED\n") {
                format!(
                    "{at} is encrypted, and there is nobody to ask for the passphrase; write it in the clear \
                     (openssl pkey -in {at} -out NEW) and guard the file"
                )
            } else {
                format!("{at} holds no private key in PEM (BEGIN PRIVATE KEY)")
            };
            self.error(Part::Key, what)
        })
    }

    /// Certificate and key do not go together, or the key cannot be used.
    pub(crate) fn unfit(&self, error: &rustls::Error) -> FileError {
        let show = |path: &Option<PathBuf>| match path {
            Some(path) => path.display().to_string(),
            None => "nothing".to_owned(),
        };
        let (key, certificate) = (show(&self.key), show(&self.certificate));
        let what = match error {
            rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                let name = self.names.certificate;
                format!("{key} is not the key of the certificate in {certificate} ({name})")
            }
            rustls::Error::InvalidCertificate(why) => {
                let what = format!("{certificate} cannot be used: {why}");
                return self.error(Part::Certificate, what);
            }
            other => format!("{key} cannot be used: {other}"),
        };
        self.error(Part::Key, what)
    }

    fn alone(&self, missing: Part, given: Part) -> FileError {
        self.error(missing, format!("is missing; {} needs it", self.called(given)))
    }

    pub(crate) fn error(&self, part: Part, what: String) -> FileError {
        FileError { part, name: self.called(part), what }
    }

    /// What a setting is called.
    #[must_use]
    pub fn called(&self, part: Part) -> &'static str {
        match part {
            Part::Ca => self.names.ca,
            Part::Certificate => self.names.certificate,
            Part::Key => self.names.key,
            Part::ServerName => self.names.server_name,
        }
    }
}

/// The certificates of a PEM file, in its order.
///
/// # Errors
/// It cannot be read, has none, or is over a limit; the text names it.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let text = read(path)?;
    let mut found = Vec::new();
    for one in CertificateDer::pem_slice_iter(&text) {
        let broken = |e: &dyn fmt::Debug| format!("{} is broken: {e:?}", path.display());
        found.push(one.map_err(|e| broken(&e))?);
        if found.len() > MAX_CERTIFICATES {
            let at = path.display();
            return Err(format!("{at} has more than MAX_CERTIFICATES = {MAX_CERTIFICATES} in it"));
        }
    }
    if found.is_empty() {
        let at = path.display();
        return Err(format!("{at} holds no certificate in PEM (BEGIN CERTIFICATE)"));
    }
    Ok(found)
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let cannot = |e: std::io::Error| {
        let hint = match (e.kind(), path.is_relative()) {
            (std::io::ErrorKind::NotFound, true) => {
                " (a relative name is looked for in $CREDENTIALS_DIRECTORY, which systemd passes for \
                 LoadCredential=, and else in the working directory)"
            }
            (std::io::ErrorKind::PermissionDenied, _) => " (whom does the file belong to?)",
            _ => "",
        };
        format!("cannot read {}: {e}{hint}", path.display())
    };
    let file = std::fs::File::open(path).map_err(cannot)?;
    let mut text = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut text).map_err(cannot)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        let at = path.display();
        return Err(format!("{at} is over the limit MAX_FILE_BYTES of {MAX_FILE_BYTES}"));
    }
    Ok(text)
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}
