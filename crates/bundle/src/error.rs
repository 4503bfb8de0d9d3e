//! One error per thing that can be wrong with a bundle.

use std::io;
use std::path::{Path, PathBuf};

use crate::digest::Digest;

/// What is wrong with a bundle, or what kept it from being read or written.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// The operating system refused something.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// `manifest.json` is over its limit.
    #[error("manifest.json is over the limit of {limit} bytes (manifest_bytes)")]
    ManifestTooLarge {
        /// The limit.
        limit: u64,
    },
    /// `manifest.json` is not JSON, or not a manifest.
    #[error("manifest.json is no manifest: {0}")]
    ManifestJson(#[source] serde_json::Error),
    /// A manifest of another version.
    #[error(
        "manifest.json has schema version {got}, this program reads version {wanted}: update the older side"
    )]
    ManifestVersion {
        /// The version found.
        got: u64,
        /// The version read here.
        wanted: u32,
    },
    /// A field of the manifest cannot be.
    #[error("manifest.json: {field}: {why}")]
    ManifestField {
        /// The field.
        field: String,
        /// What is wrong with it.
        why: String,
    },
    /// `reference.json` is no reference, or says what cannot be.
    #[error("reference.json: {why}")]
    Reference {
        /// What is wrong with it.
        why: String,
    },
    /// A reference of another version.
    #[error(
        "reference.json has version {got}, this program reads version {wanted}: update the older side"
    )]
    ReferenceVersion {
        /// The version found.
        got: u64,
        /// The version read here.
        wanted: u32,
    },
    /// A file name that a bundle may not hold.
    #[error("file name {name:?} is not allowed in a bundle: {why}")]
    FileName {
        /// The name, shortened.
        name: String,
        /// The rule it breaks.
        why: &'static str,
    },
    /// More files than allowed.
    #[error("{count} files are over the limit of {limit} (file_count)")]
    TooManyFiles {
        /// How many there are; at least, where counting stopped.
        count: usize,
        /// The limit.
        limit: usize,
    },
    /// A file larger than allowed, by its own claim or in fact.
    #[error("{name} of {bytes} bytes is over the limit of {limit} ({limit_name})")]
    TooLarge {
        /// The file.
        name: String,
        /// Its size.
        bytes: u64,
        /// The limit.
        limit: u64,
        /// The limit's name in [`crate::Limits`].
        limit_name: &'static str,
    },
    /// All files together are larger than allowed.
    #[error("{bytes} bytes in all are over the limit of {limit} (total_bytes)")]
    TotalTooLarge {
        /// Their size.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// A file that the manifest lists, or the manifest itself, is not there.
    #[error("{name} is missing")]
    Missing {
        /// The file.
        name: String,
    },
    /// A file that the manifest does not list.
    #[error("{name:?} is not in the manifest")]
    Unexpected {
        /// The file.
        name: String,
    },
    /// A link, a folder, a device where a file should be.
    #[error("{name:?} is {kind}, not a regular file")]
    NotAFile {
        /// Its name.
        name: String,
        /// What it is.
        kind: &'static str,
    },
    /// A file's size is not the manifest's.
    #[error("{name} has {got} bytes, the manifest says {wanted}: it was cut off or replaced")]
    WrongSize {
        /// The file.
        name: String,
        /// The size in the manifest.
        wanted: u64,
        /// The size found.
        got: u64,
    },
    /// A file's digest is not the manifest's.
    #[error("{name} has digest {got}, the manifest says {wanted}: it was changed or damaged")]
    WrongDigest {
        /// The file.
        name: String,
        /// The digest in the manifest.
        wanted: Digest,
        /// The digest found.
        got: Digest,
    },
    /// The destination is already there.
    #[error("{} already exists", .0.display())]
    AlreadyExists(PathBuf),
    /// The self-test cannot be read or written.
    #[error("selftest.safetensors: {0}")]
    SelfTest(String),
    /// The self-test would pass with any model.
    #[error(
        "selftest.safetensors proves nothing: {0}; give it at least one case with golden outputs"
    )]
    VacuousSelfTest(String),
    /// The archive holds a symbolic or hard link.
    #[error("archive entry {name:?} is a {kind} link")]
    ArchiveLink {
        /// The entry, shortened.
        name: String,
        /// `symbolic` or `hard`.
        kind: &'static str,
    },
    /// The archive holds something that is neither file nor link.
    #[error("archive entry {name:?} is {kind}; only plain files are allowed")]
    ArchiveKind {
        /// The entry, shortened.
        name: String,
        /// What it is.
        kind: &'static str,
    },
    /// The archive holds an absolute path.
    #[error("archive entry {name:?} is an absolute path")]
    ArchiveAbsolute {
        /// The entry, shortened.
        name: String,
    },
    /// The archive holds a path with `..`.
    #[error("archive entry {name:?} climbs out of its folder with `..`")]
    ArchiveParent {
        /// The entry, shortened.
        name: String,
    },
    /// The archive holds a name twice.
    #[error("archive entry {name:?} occurs twice")]
    ArchiveDuplicate {
        /// The entry.
        name: String,
    },
    /// The first entry is not the manifest.
    #[error("archive starts with {name:?}; manifest.json must come first")]
    ArchiveOrder {
        /// The first entry, shortened.
        name: String,
    },
    /// The archive ends in the middle.
    #[error("archive ends in the middle of {name:?}")]
    ArchiveTruncated {
        /// The entry, shortened; empty when it is a header that is cut.
        name: String,
    },
    /// The archive is no tar file.
    #[error("not a readable tar archive: {0}")]
    ArchiveGarbage(String),
}

/// Names the path and the action of an IO error.
pub(crate) fn io_at(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BundleError {
    let path = path.to_owned();
    move |source| BundleError::Io { doing, path, source }
}

/// Enough of a hostile string for a log line.
pub(crate) fn shorten(text: &str) -> String {
    text.chars().take(128).collect()
}
