//! TLS from files: certificates and keys in PEM, what is wrong with them, and what a failed handshake means.
//!
//! This is the one place that chooses a provider of cryptography (aws-lc-rs, `docs/adr/0012-tls.md`); it is
//! passed on explicitly and never installed for the process. Files are read anew for each connection, so
//! that a renewed certificate needs no restart.
//!
//! The agent and the compressor both use it. It knows no MQTT: a [`Relay`] carries any client's bytes.
//! It writes no files, makes no certificates, and never logs a key.

#![forbid(unsafe_code)]

pub mod calendar;
mod examine;
mod explain;
mod files;
mod relay;
mod x509;

use std::net::IpAddr;
use std::sync::Arc;

use rustls::crypto::CryptoProvider;

pub use examine::{Finding, Weight, examine};
pub use explain::{Parties, explain};
pub use files::{
    FileError, MAX_CERTIFICATES, MAX_FILE_BYTES, Names, Part, SYSTEM_CAS, Settings, certificates,
};
pub use relay::{Relay, Target};
pub use rustls::ClientConfig;
pub use rustls::pki_types::{CertificateDer, ServerName};

/// The cryptography of every connection.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// Whether a host is this machine, as its name or address says it. No name is resolved.
#[must_use]
pub fn is_loopback(host: &str) -> bool {
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    bare.eq_ignore_ascii_case("localhost")
        || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_this_machine_by_its_name_or_its_address() {
        for host in ["localhost", "LOCALHOST", "127.0.0.1", "127.8.8.8", "::1", "[::1]"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["localhost.example", "broker", "10.0.0.1", "0.0.0.0", "::", ""] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
