//! The trust repository: bundles become targets of it before they are offered, and it is kept in date.

use std::path::Path;
use std::time::Duration;

use ::trust::{Host, Limits, TrustError, target_name};
use bundle::{Bundle, Digest};

/// How often it is looked at whether the timestamp is to be signed again.
const LOOK: Duration = Duration::from_secs(3600);

/// A trust repository whose daily keys are at hand. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Signing {
    host: Host,
}

impl Signing {
    /// Opens it, and renews what is due: what cannot be signed is said now, and not when the first bundle is made.
    pub(super) fn open(dir: &Path) -> Result<Self, TrustError> {
        let host = Host::open(dir, None)?;
        let written = host.refresh()?;
        warn(&written.warnings);
        if let Some(missing) = missing(&host)? {
            return Err(TrustError::Host(missing));
        }
        tracing::info!(
            root = written.root,
            targets = written.targets,
            timestamp = written.timestamp,
            "bundles are signed before they are offered"
        );
        Ok(Self { host })
    }

    /// Allows a bundle, for the class of its manifest.
    pub(super) fn allow(&self, bundle: &Bundle) -> Result<(), String> {
        let tell = |error: TrustError| format!("the bundle cannot be signed: {error}");
        let (target, written) = self.host.add(&bundle.dir, &[]).map_err(tell)?;
        warn(&written.warnings);
        tracing::info!(target, targets = written.targets, "the bundle is signed");
        Ok(())
    }

    /// Allows bundles no more that the store has forgotten, by the hexadecimal digits of their digests. What was
    /// allowed by hand stays.
    pub(super) fn forget(&self, forgotten: &[String]) -> Result<(), TrustError> {
        let targets = self.host.targets()?;
        let digests = forgotten.iter().filter_map(|hex| Digest::from_hex(hex).ok());
        let gone: Vec<Digest> =
            digests.filter(|digest| targets.contains_key(&target_name(digest))).collect();
        if !gone.is_empty() {
            warn(&self.host.remove(&gone)?.warnings);
        }
        Ok(())
    }

    /// A file of the metadata, `None` where there is none of that name.
    pub(super) fn metadata(&self, name: &str) -> Result<Option<Vec<u8>>, String> {
        let known = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '.';
        if !name.ends_with(".json") || !name.chars().all(known) || name.starts_with('.') {
            return Ok(None);
        }
        let path = self.host.metadata().join(name);
        match std::fs::metadata(&path) {
            Ok(meta) if meta.len() > Limits::default().targets_bytes => {
                Err(format!("{} is over max_targets_bytes", path.display()))
            }
            Ok(meta) if !meta.is_file() => Ok(None),
            Ok(_) => std::fs::read(&path).map(Some).map_err(|e| format!("{}: {e}", path.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(format!("{}: {error}", path.display())),
        }
    }

    /// Signs the timestamp again once it has lived half of its life.
    fn renew(&self) -> Result<(), TrustError> {
        if self.host.is_due()? {
            let written = self.host.refresh()?;
            warn(&written.warnings);
            tracing::info!(timestamp = written.timestamp, "the trust repository is refreshed");
        }
        Ok(())
    }
}

/// Which role bundles could not be signed for.
fn missing(host: &Host) -> Result<Option<String>, TrustError> {
    let current = host.current()?;
    let daily = [::trust::Role::Targets, ::trust::Role::Snapshot, ::trust::Role::Timestamp];
    let short = daily.into_iter().find_map(|role| {
        let facts = current.roles.get(&role)?;
        ((facts.at_hand.len() as u64) < facts.threshold).then_some((role, facts))
    });
    Ok(short.map(|(role, facts)| {
        let (need, have) = (facts.threshold, facts.at_hand.len());
        format!("the role {role} needs {need} signatures, and {have} of its keys are at hand")
    }))
}

/// Keeps the repository in date until the service ends.
pub(super) async fn keep_fresh(signing: Option<Signing>) {
    let Some(signing) = signing else {
        return std::future::pending().await;
    };
    let mut look = tokio::time::interval(LOOK);
    loop {
        look.tick().await;
        let own = signing.clone();
        match tokio::task::spawn_blocking(move || own.renew()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "the trust repository is not refreshed"),
            Err(error) => tracing::error!(%error, "the trust repository is not refreshed"),
        }
    }
}

fn warn(warnings: &[String]) {
    warnings.iter().for_each(|warning| tracing::warn!("trust: {warning}"));
}
