//! Whether the owner's keys allow what is offered: asked before anything of a bundle is fetched.
//!
//! Where the metadata lies is taken from the configuration or from the offer. It need not be trusted: whoever answers
//! there, or stands in between, can withhold what is new until the timestamp expires, and no more.

use std::io::Read;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use bundle::{Digest, MANIFEST_FILE};
use trust::{Check, Client, Fetch, FetchError, Outlook, TrustError, Wanted};
use ureq::http::StatusCode;
use wire::Offer;

use super::download::{self, Access};
use super::state_dir::StateDir;
use crate::config::TrustConfig;
use crate::core::{FailureClass, StepFailure};

/// The folder of metadata beside the folder of bundles.
const BESIDE: &str = "trust";

/// The owner's word on bundles.
#[derive(Debug)]
pub struct Trust {
    client: Mutex<Client>,
    repository: Option<String>,
    access: Access,
    device_class: String,
}

impl Trust {
    /// With what it learned before, which lies in the state directory.
    ///
    /// # Errors
    /// The root is none.
    pub fn open(
        config: &TrustConfig,
        state: &StateDir,
        device_class: &str,
        access: Access,
    ) -> Result<Self, TrustError> {
        let (limits, expiry) = (config.limits.clone(), config.expiry);
        let client = Client::new(&config.root_json, &state.trust(), limits, expiry)?;
        Ok(Self {
            client: Mutex::new(client),
            repository: config.repository.clone(),
            access,
            device_class: device_class.to_owned(),
        })
    }

    /// The length of the offered bundle's manifest, if the owner's keys allow that bundle on this device.
    ///
    /// # Errors
    /// Whether asking again may help is the [`Outlook`]'s; the reason names the check that did not pass.
    pub fn allows(&self, offer: &Offer, digest: Digest) -> Result<u64, StepFailure> {
        let base = self.repository.clone().unwrap_or_else(|| beside(&offer.url));
        download::check_scheme(&base)?;
        let fetch = Http { agent: download::agent(&base, &self.access)?, base: base.clone() };
        let client = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        let trusted = client.refresh(Arc::new(fetch), clock_s());
        let trusted = trusted.map_err(|error| failure(&base, &error))?;
        for warning in &trusted.warnings {
            tracing::warn!(repository = base, "{warning}");
        }
        let wanted = Wanted {
            digest,
            model: &offer.model,
            sequence: offer.sequence,
            device_class: &self.device_class,
        };
        let target = trusted.allows(&wanted).map_err(|error| failure(&base, &error))?;
        tracing::info!(
            model = offer.model,
            digest = offer.digest,
            root = trusted.versions.get(&trust::Role::Root),
            timestamp = trusted.versions.get(&trust::Role::Timestamp),
            "the owner's keys allow the offer"
        );
        Ok(target.length)
    }
}

/// Holds a manifest that was fetched, or is in the store already, against its target's length. Its digest has been
/// held against the offer's, and that against the target's.
pub(super) fn check_length(folder: &Path, length: u64) -> Result<(), StepFailure> {
    let path = folder.join(MANIFEST_FILE);
    let meta = std::fs::metadata(&path);
    let got = meta.map_err(|e| StepFailure::transient(format!("{}: {e}", path.display())))?.len();
    if got == length {
        return Ok(());
    }
    let check = Check::Content;
    let reason = format!("the manifest has {got} bytes, the target {length}");
    Err(StepFailure::attempt(TrustError::Refused { check, reason }))
}

fn failure(base: &str, error: &TrustError) -> StepFailure {
    let reason = format!("{base}: {error}");
    match error.outlook() {
        Outlook::Passing => StepFailure::transient(reason),
        Outlook::Withheld => StepFailure { reason, class: FailureClass::Withheld },
        Outlook::Doubtful => StepFailure { reason, class: FailureClass::Doubtful },
        Outlook::Lasting => StepFailure::attempt(reason),
    }
}

/// Where an offer's repository is: bundles are at `ANYWHERE/bundles/HEX`, metadata at `ANYWHERE/trust`.
fn beside(bundle: &str) -> String {
    let begin = bundle.find("://").map_or(0, |at| at + 3);
    let (scheme, rest) = bundle.split_at(begin);
    let mut parts: Vec<&str> = rest.trim_end_matches('/').split('/').collect();
    parts.truncate(parts.len().saturating_sub(2).max(1));
    format!("{scheme}{}/{BESIDE}", parts.join("/"))
}

/// What the device's clock shows, set or not.
fn clock_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[derive(Debug)]
struct Http {
    agent: ureq::Agent,
    base: String,
}

impl Fetch for Http {
    fn open(&self, name: &str) -> Result<Box<dyn Read>, FetchError> {
        let url = download::address(&self.base, name);
        let answer = self.agent.get(&url).call();
        let answer = answer.map_err(|e| FetchError::Failed(format!("{url}: {e}")))?;
        match answer.status() {
            StatusCode::OK => Ok(Box::new(answer.into_body().into_reader())),
            StatusCode::NOT_FOUND | StatusCode::GONE => Err(FetchError::NotFound),
            status => Err(FetchError::Failed(format!("{url}: the server answered {status}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_lie_beside_the_bundles() {
        for (bundle, wanted) in [
            ("http://h:1/bundles/aa", "http://h:1/trust"),
            ("http://h/sub/bundles/aa/", "http://h/sub/trust"),
            ("http://h/aa", "http://h/trust"),
            ("http://h", "http://h/trust"),
        ] {
            assert_eq!(beside(bundle), wanted);
        }
    }
}
