//! Certificates that a test makes.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, date_time_ymd,
};

/// A year that was over before this was written.
const PAST: i32 = 2021;
/// A year that no test sees.
const FUTURE: i32 = 4000;

/// A CA, with its certificate in a file.
pub struct Authority {
    folder: PathBuf,
    issuer: Issuer<'static, KeyPair>,
    /// Its certificate.
    pub file: PathBuf,
}

/// A certificate and its key, in files.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Authority {
    /// Makes one, with its files in `folder`.
    ///
    /// # Panics
    /// When they cannot be written.
    #[must_use]
    pub fn new(folder: &Path, name: &str) -> Self {
        let mut params = params(name, &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a CA");
        fs::create_dir_all(folder).expect("a folder");
        let file = folder.join(format!("{name}.crt"));
        fs::write(&file, certificate.pem()).expect("a file");
        Self { folder: folder.to_owned(), issuer: Issuer::new(params, key), file }
    }

    /// A certificate for `name` and `hosts`, in files of that name.
    ///
    /// # Panics
    /// When they cannot be written.
    #[must_use]
    pub fn identity(&self, name: &str, hosts: &[&str]) -> Identity {
        self.issue(name, hosts, FUTURE)
    }

    /// One whose time is over.
    ///
    /// # Panics
    /// When its files cannot be written.
    #[must_use]
    pub fn expired(&self, name: &str, hosts: &[&str]) -> Identity {
        self.issue(name, hosts, PAST)
    }

    fn issue(&self, name: &str, hosts: &[&str], until: i32) -> Identity {
        let mut params = params(name, hosts);
        params.not_after = date_time_ymd(until, 2, 3);
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let at = |ending: &str| self.folder.join(format!("{name}.{ending}"));
        let identity = Identity { certificate: at("crt"), key: at("key") };
        fs::write(&identity.certificate, certificate.pem()).expect("a file");
        fs::write(&identity.key, key.serialize_pem()).expect("a file");
        identity
    }
}

fn params(name: &str, hosts: &[&str]) -> CertificateParams {
    let hosts: Vec<String> = hosts.iter().map(|&host| host.to_owned()).collect();
    let mut params = CertificateParams::new(hosts).expect("names of hosts");
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = date_time_ymd(2020, 1, 2);
    params.not_after = date_time_ymd(FUTURE, 2, 3);
    params
}
