//! Whose keys say what may be installed.

use std::path::{Path, PathBuf};
use std::time::Duration;

use trust::{Expiry, Limits, Pace};

use super::reader::Reader;

/// The name of the root among the credentials that systemd passes.
const CREDENTIAL: &str = "root.json";
/// Where systemd says that these are.
const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";

/// The owner's root, and how its word is held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustConfig {
    /// Where the root came from.
    pub root: PathBuf,
    /// What stood there.
    pub root_json: Vec<u8>,
    /// Its version.
    pub root_version: u64,
    /// Where metadata is; beside the offered bundle if not given.
    pub repository: Option<String>,
    /// What expired metadata is worth.
    pub expiry: Expiry,
    /// What an update may take.
    pub limits: Limits,
}

impl TrustConfig {
    /// What is said of it.
    #[must_use]
    pub fn describe(trust: Option<&Self>) -> String {
        match trust {
            Some(own) => format!(
                "offers need the signatures that root {} in {} asks for",
                own.root_version,
                own.root.display()
            ),
            None => "offers are trusted by digest alone (no trust.root)".to_owned(),
        }
    }
}

pub(super) fn read(r: &mut Reader, environment: &[(String, String)]) -> Option<TrustConfig> {
    let named = r.path("trust.root");
    let expiry = r.string("trust.expiry");
    let repository = r.string("trust.repository").filter(|text| !text.is_empty());
    let limits = limits(r);
    let given = expiry.is_some() || repository.is_some();
    let expiry = match &expiry {
        Some(text) => r.check("trust.expiry", text.parse::<Expiry>())?,
        None => Expiry::default(),
    };
    let root = named.or_else(|| credential(environment));
    let Some(root) = root else {
        if given {
            let what = "is required where anything else of trust is set: nothing would be checked";
            r.check::<(), _>("trust.root", Err(what));
        }
        return None;
    };
    let read = read_root(&root, &limits).map_err(|what| format!("{}: {what}", root.display()));
    let (root_json, root_version) = r.check("trust.root", read)?;
    Some(TrustConfig { root, root_json, root_version, repository, expiry, limits })
}

/// The root that systemd passes, if it passes one.
fn credential(environment: &[(String, String)]) -> Option<PathBuf> {
    let folder = environment.iter().find(|(key, _)| key == CREDENTIALS)?;
    let path = Path::new(&folder.1).join(CREDENTIAL);
    path.exists().then_some(path)
}

fn read_root(path: &Path, limits: &Limits) -> Result<(Vec<u8>, u64), String> {
    let size = std::fs::metadata(path).map_err(|e| e.to_string())?.len();
    if size > limits.root_bytes {
        return Err(format!("{size} bytes are over trust.max_root_bytes of {}", limits.root_bytes));
    }
    let bytes = std::fs::read(path).map_err(|e| e.to_string())?;
    let version = trust::check_root(&bytes, limits).map_err(|e| e.to_string())?;
    Ok((bytes, version))
}

fn limits(r: &mut Reader) -> Limits {
    let d = Limits::default();
    let size = 1024..=64 << 20;
    let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    Limits {
        root_bytes: r.integer("trust.max_root_bytes", d.root_bytes, size.clone()),
        timestamp_bytes: r.integer("trust.max_timestamp_bytes", d.timestamp_bytes, size.clone()),
        snapshot_bytes: r.integer("trust.max_snapshot_bytes", d.snapshot_bytes, size.clone()),
        targets_bytes: r.integer("trust.max_targets_bytes", d.targets_bytes, size),
        root_updates: r.integer("trust.max_root_updates", d.root_updates, 1..=1 << 16),
        pace: Pace {
            deadline: r.millis("trust.deadline_ms", ms(d.pace.deadline), 1000..=3_600_000),
            min_bytes_per_s: r.integer(
                "trust.min_bytes_per_s",
                d.pace.min_bytes_per_s,
                0..=1 << 30,
            ),
            grace: d.pace.grace,
        },
    }
}
