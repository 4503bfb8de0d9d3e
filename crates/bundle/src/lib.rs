//! Files at rest: manifest, digests, limits.
//!
//! A bundle is a flat folder (or one `.tar` of it): `manifest.json`, `model.onnx` with its external
//! data, `selftest.safetensors` and maybe `reference.json` and `report.html`. `docs/bundle.md` describes the format.
//! Invariants:
//! - the digest of `manifest.json` names the bundle, and the manifest holds the size and digest of
//!   every other file: one digest covers everything;
//! - a folder either is a whole bundle or does not exist: writing goes through a temporary folder
//!   beside it, which is synced and then renamed;
//! - nothing is followed, created or read outside the folder, and every size has a named limit that
//!   is checked before the bytes are read;
//! - no async and no network.

#![forbid(unsafe_code)]

mod archive;
mod digest;
mod durable;
mod error;
mod folder;
mod limits;
mod manifest;
mod reference;
mod selftest;

pub use archive::{pack, unpack};
pub use digest::{Digest, DigestError};
pub use error::BundleError;
pub use folder::{Bundle, Draft, Source, verify_file};
pub use limits::Limits;
pub use manifest::{
    ANY, Estimate, FileEntry, Lineage, MANIFEST_FILE, MAX_FILE_NAME_BYTES, MODEL_FILE, Manifest,
    Predicted, Quality, REFERENCE_FILE, REPORT_FILE, SCHEMA_VERSION, SELFTEST_FILE, TensorSpec,
    check_file_name, manifest_schema,
};
pub use reference::{
    Feature, FeatureReference, MAX_REFERENCE_CELLS, MAX_REFERENCE_SAMPLES, MAX_REFERENCE_TENSORS,
    MAX_TENSOR_NAME_BYTES, QUANTILE_CELLS, REFERENCE_VERSION, Reference, Rows, Side,
    TensorReference,
};
pub use selftest::{Case, NamedTensor, SelfTest};

/// What this crate's functions return.
pub type Result<T, E = BundleError> = std::result::Result<T, E>;
