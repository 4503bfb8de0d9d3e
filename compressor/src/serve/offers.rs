//! Offers: the messages that tell a device which bundle to run.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// What an offer says about its bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct OfferFacts {
    /// The model's name.
    pub(super) model: String,
    /// The bundle's version, for people.
    pub(super) version: String,
    /// The bundle's sequence number.
    pub(super) sequence: u64,
    /// The bundle's digest.
    pub(super) digest: String,
    /// Digest over its model's files: equal for bundles that hold the same model.
    pub(super) content: String,
    /// Size of all its files.
    pub(super) size_bytes: u64,
    /// The engine it was made for.
    pub(super) runtime: wire::Runtime,
    /// The class it was made for, or `any`.
    pub(super) device_class: String,
}

impl OfferFacts {
    /// The facts of a bundle made for `runtime`.
    pub(super) fn of(bundle: &bundle::Bundle, runtime: wire::Runtime) -> Self {
        Self {
            model: bundle.manifest.name.clone(),
            version: bundle.manifest.version.clone(),
            sequence: bundle.manifest.sequence,
            digest: bundle.digest.to_string(),
            content: content(&bundle.manifest),
            size_bytes: bundle.size_bytes(),
            runtime,
            device_class: bundle.manifest.device_class.clone(),
        }
    }

    /// The folder of the bundle in the store, and the last part of its address.
    pub(super) fn hex(&self) -> &str {
        self.digest.strip_prefix("sha256:").unwrap_or(&self.digest)
    }
}

/// Digest over the names and digests of a bundle's model files: the model and its external data,
/// without self-test and report.
pub(super) fn content(manifest: &bundle::Manifest) -> String {
    let beside = [bundle::SELFTEST_FILE, bundle::REPORT_FILE];
    let files = manifest.files.iter().filter(|(name, _)| !beside.contains(&name.as_str()));
    let lines: Vec<String> =
        files.map(|(name, entry)| format!("{name}\n{}\n", entry.sha256)).collect();
    bundle::Digest::of(lines.concat().as_bytes()).to_string()
}

/// Writes offers.
#[derive(Debug)]
pub(super) struct Offers {
    root: String,
    http_url: String,
    boot_id: String,
    seq: AtomicU64,
}

impl Offers {
    pub(super) fn new(root: &str, http_url: &str) -> Self {
        let boot_id = format!("{:016x}", entropy());
        Self {
            root: root.to_owned(),
            http_url: http_url.to_owned(),
            boot_id,
            seq: AtomicU64::new(0),
        }
    }

    /// Where the bundle's files are served.
    pub(super) fn url(&self, facts: &OfferFacts) -> String {
        format!("{}/bundles/{}", self.http_url, facts.hex())
    }

    /// Topic and payload of an offer.
    pub(super) fn message(
        &self,
        device: &str,
        facts: &OfferFacts,
        request_id: Option<&str>,
    ) -> Result<(String, Vec<u8>), String> {
        let topics = wire::Topics::new(&self.root, device).map_err(|error| error.to_string())?;
        let topic = topics.offer(&facts.model).map_err(|error| error.to_string())?;
        let seq = self.seq.fetch_add(1, Ordering::Relaxed);
        let offer = wire::Offer {
            header: wire::Header::of::<wire::Offer>(now_ms(), seq, &self.boot_id),
            model: facts.model.clone(),
            version: facts.version.clone(),
            sequence: facts.sequence,
            digest: facts.digest.clone(),
            url: self.url(facts),
            size_bytes: facts.size_bytes,
            runtime: facts.runtime,
            device_class: facts.device_class.clone(),
            request_id: request_id.map(str::to_owned),
        };
        let payload = wire::try_encode(&offer).map_err(|error| error.to_string())?;
        Ok((topic, payload))
    }
}

/// Unix time in milliseconds; 0 where the clock stands before 1970.
pub(super) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// 64 bits that differ from call to call and from process to process; nothing secret depends on them.
pub(super) fn entropy() -> u64 {
    RandomState::new().hash_one(now_ms())
}
