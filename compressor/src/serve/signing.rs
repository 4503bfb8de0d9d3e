//! The trust repository: bundles become targets of it before they are offered, and it is kept in date.

use std::path::{Path, PathBuf};
use std::time::Duration;

use ::trust::{Host, TrustError, target_name};
use bundle::{Bundle, Digest};

use super::store;

/// How often it is looked at whether the timestamp is to be signed again.
const LOOK: Duration = Duration::from_secs(3600);

/// Why a bundle is not signed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unsigned {
    /// Its owner took it back.
    #[error("{0}")]
    TakenBack(String),
    /// It could not be.
    #[error("{0}")]
    Failed(String),
}

impl From<Unsigned> for String {
    fn from(why: Unsigned) -> Self {
        why.to_string()
    }
}

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
    pub(super) fn allow(&self, bundle: &Bundle) -> Result<(), Unsigned> {
        let tell =
            |error: String| Unsigned::Failed(format!("the bundle cannot be signed: {error}"));
        let made = self.host.allow_made(&[&bundle.dir]).map_err(|error| tell(error.to_string()))?;
        if let Some(error) = made.unreadable.into_iter().next() {
            return Err(tell(error));
        }
        if let Some(digest) = made.taken_back.first() {
            return Err(Unsigned::TakenBack(format!(
                "the owner took bundle {digest} out of the trust repository (espalier trust remove), so that no device \
                 installs it; espalier trust add allows it again"
            )));
        }
        if let Some(written) = made.written {
            warn(&written.warnings);
            let target = made.targets.first();
            tracing::info!(target, targets = written.targets, "the bundle is signed");
        }
        Ok(())
    }

    /// Brings the repository into line with a store that was filled without it, or was being emptied when the service
    /// was killed: forgets what is in the trash, and signs what stands unsigned and was not taken back.
    pub(super) fn reconcile(&self, bundles: &Path, work: &Path) -> Result<(), TrustError> {
        self.forget(&store::trashed(work).map_err(at(work))?)?;
        let unsigned = self.unsigned(bundles)?;
        let paths: Vec<&Path> = unsigned.iter().map(PathBuf::as_path).collect();
        let made = match self.host.allow_made(&paths) {
            Ok(made) => made,
            Err(error) => {
                tracing::error!(%error, bundles = paths.len(), "bundles made before stay unsigned");
                return Ok(());
            }
        };
        for error in made.unreadable {
            tracing::warn!(error, "a bundle in the store stays unsigned");
        }
        if let Some(written) = made.written {
            warn(&written.warnings);
            let (signed, targets) = (made.targets.len(), written.targets);
            tracing::info!(signed, targets, "bundles made before are signed");
        }
        Ok(())
    }

    /// The folders of bundles that are neither targets nor taken back.
    fn unsigned(&self, bundles: &Path) -> Result<Vec<PathBuf>, TrustError> {
        let (targets, removed) = (self.host.targets()?, self.host.removed()?);
        let mut found = Vec::new();
        for entry in std::fs::read_dir(bundles).map_err(at(bundles))? {
            let entry = entry.map_err(at(bundles))?;
            let digest = entry.file_name().to_str().and_then(|hex| Digest::from_hex(hex).ok());
            if let Some(digest) = digest
                && !targets.contains_key(&target_name(&digest))
                && !removed.contains(&digest)
            {
                found.push(entry.path());
            }
        }
        Ok(found)
    }

    /// Allows bundles no more that the store has forgotten, by the hexadecimal digits of their digests. What was
    /// allowed by hand stays.
    pub(super) fn forget(&self, forgotten: &[String]) -> Result<(), TrustError> {
        let gone: Vec<Digest> =
            forgotten.iter().filter_map(|hex| Digest::from_hex(hex).ok()).collect();
        if let Some(written) = self.host.forget(&gone)? {
            warn(&written.warnings);
        }
        Ok(())
    }

    /// Where a file of the metadata is, `None` where none can be of that name.
    pub(super) fn metadata(&self, name: &str) -> Option<PathBuf> {
        let known = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '.';
        let is_name = name.ends_with(".json") && name.chars().all(known) && !name.starts_with('.');
        is_name.then(|| self.host.metadata().join(name))
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

fn at(path: &Path) -> impl FnOnce(std::io::Error) -> TrustError {
    let path = path.to_owned();
    move |source| TrustError::File { doing: "read", path, source }
}

fn warn(warnings: &[String]) {
    warnings.iter().for_each(|warning| tracing::warn!("trust: {warning}"));
}
