//! Hands files to `tough`, held to our limits, and remembers what went wrong with them.

use std::sync::{Arc, Mutex, PoisonError};

use futures_util::stream;
use tough::{Bytes, Transport, TransportError, TransportErrorKind, TransportStream, async_trait};
use url::Url;

use crate::fetch::{Bound, Fetch, whole};
use crate::limits::Limits;
use crate::{Check, TrustError};

/// Where `tough` believes the repository to be: only names of files are taken from its addresses.
pub(crate) const BASE: &str = "http://repository/";

#[derive(Clone, Debug)]
pub(crate) struct Bounded {
    fetch: Arc<dyn Fetch>,
    limits: Limits,
    failure: Arc<Mutex<Option<TrustError>>>,
    /// Names, in the order in which they were asked for. An update asks for a few more than its limit of roots.
    asked: Arc<Mutex<Vec<String>>>,
}

impl Bounded {
    pub(crate) fn new(fetch: Arc<dyn Fetch>, limits: Limits) -> Self {
        Self { fetch, limits, failure: Arc::default(), asked: Arc::default() }
    }

    /// Whether `tough` has come to a file.
    pub(crate) fn asked_for(&self, name: &str) -> bool {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).iter().any(|own| own == name)
    }

    /// What went wrong with a file, if anything did.
    pub(crate) fn failure(&self) -> Option<TrustError> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn get(&self, name: &str) -> Result<Option<Vec<u8>>, TrustError> {
        let Some(bound) = bound(name, &self.limits) else {
            let reason = format!("{name}: targets are only taken from the targets role itself");
            return Err(TrustError::refused(Check::Delegation, reason));
        };
        let got = whole(self.fetch.as_ref(), name, bound, &self.limits.pace)?;
        if got.is_none() && !name.ends_with(".root.json") {
            let reason = "it is not there".to_owned();
            return Err(TrustError::Fetch { name: name.to_owned(), reason });
        }
        Ok(got)
    }
}

/// The limit of a file, by its name.
fn bound(name: &str, limits: &Limits) -> Option<Bound> {
    let role = match name.split_once('.') {
        Some((number, rest)) if number.bytes().all(|b| b.is_ascii_digit()) => rest,
        _ => name,
    };
    Some(match role {
        "root.json" => Bound { bytes: limits.root_bytes, limit: "max_root_bytes" },
        "timestamp.json" => Bound { bytes: limits.timestamp_bytes, limit: "max_timestamp_bytes" },
        "snapshot.json" => Bound { bytes: limits.snapshot_bytes, limit: "max_snapshot_bytes" },
        "targets.json" => Bound { bytes: limits.targets_bytes, limit: "max_targets_bytes" },
        _ => return None,
    })
}

#[async_trait]
impl Transport for Bounded {
    /// Every failure is one of the stream: of a root that cannot be opened `tough` would take it that there is none,
    /// and whoever cuts the connection could hide a new root.
    async fn fetch(&self, url: Url) -> Result<TransportStream, TransportError> {
        let name = url.path().trim_start_matches('/').to_owned();
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).push(name.clone());
        let item = match self.get(&name) {
            Ok(Some(bytes)) => Ok(Bytes::from(bytes)),
            Ok(None) => Err(TransportError::new(TransportErrorKind::FileNotFound, &name)),
            Err(error) => {
                let told = TransportError::new_with_cause(
                    TransportErrorKind::Other,
                    &name,
                    error.to_string(),
                );
                *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                Err(told)
            }
        };
        Ok(Box::pin(stream::iter([item])))
    }
}
