//! `manifest.json`: what a bundle is, what is in it and what it should cost.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::Result;
use crate::digest::Digest;
use crate::error::{BundleError, shorten};
use crate::limits::Limits;

/// Version of the manifest that this crate reads and writes.
pub const SCHEMA_VERSION: u32 = 1;
/// The manifest.
pub const MANIFEST_FILE: &str = "manifest.json";
/// The model.
pub const MODEL_FILE: &str = "model.onnx";
/// Golden inputs and outputs.
pub const SELFTEST_FILE: &str = "selftest.safetensors";
/// What inputs and outputs look like on the samples that the model was judged on.
pub const REFERENCE_FILE: &str = "reference.json";
/// The report for people.
pub const REPORT_FILE: &str = "report.html";
/// Runtime or device class of a bundle that fits all.
pub const ANY: &str = "any";
/// Longest file name, bytes (what a tar header holds).
pub const MAX_FILE_NAME_BYTES: usize = 100;

/// What a bundle is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Manifest {
    /// Version of this format, [`SCHEMA_VERSION`].
    pub schema: u32,
    /// The model's name.
    pub name: String,
    /// The bundle's version, for people.
    pub version: String,
    /// Rises with every bundle of this model for this device.
    pub sequence: u64,
    /// The engine it was made for: `tract`, `ort` or `any`.
    pub runtime: String,
    /// The class of device it was made for, or `any`.
    pub device_class: String,
    /// The model's inputs.
    pub inputs: Vec<TensorSpec>,
    /// The model's outputs.
    pub outputs: Vec<TensorSpec>,
    /// Every file but the manifest, by name.
    pub files: BTreeMap<String, FileEntry>,
    /// What it should cost and how good it should be.
    #[serde(default)]
    pub predicted: Predicted,
    /// Where it comes from.
    pub lineage: Lineage,
}

/// One input or output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TensorSpec {
    /// Its name in the model.
    pub name: String,
    /// Its type by the Open Inference Protocol's name: `FP32`, `INT64`, `BYTES`, …
    pub dtype: String,
    /// Its shape; -1 is free.
    pub dims: Vec<i64>,
}

/// One file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FileEntry {
    /// Digest of its content.
    pub sha256: Digest,
    /// Its size.
    pub size_bytes: u64,
}

/// What a model should cost on its device and how good it should be.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Predicted {
    /// 95th percentile of the compute time, microseconds.
    #[serde(default)]
    pub latency_p95_us: Option<Estimate>,
    /// Memory of the worker, bytes.
    #[serde(default)]
    pub memory_bytes: Option<Estimate>,
    /// Energy per inference, millijoules.
    #[serde(default)]
    pub energy_mj: Option<Estimate>,
    /// Share of answers equal to the original model's, 0 to 1.
    #[serde(default)]
    pub agreement: Option<Estimate>,
}

/// A number with its interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Estimate {
    /// The number.
    pub value: f64,
    /// Lower end of the 95 % interval.
    pub low: f64,
    /// Upper end of the 95 % interval.
    pub high: f64,
    /// Where it comes from.
    pub quality: Quality,
}

/// Where an estimate comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Quality {
    /// Measured on the device or on held-out data.
    Measured,
    /// Computed from a model, such as a measurement on the host scaled to the device.
    Modelled,
}

/// Where a bundle comes from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Lineage {
    /// Digest of the original model file.
    #[serde(default)]
    pub source_sha256: Option<Digest>,
    /// What was done to it.
    #[serde(default)]
    pub recipe: Value,
    /// Digest of the data used.
    #[serde(default)]
    pub data_sha256: Option<Digest>,
    /// Digest of the bundle that this one replaces.
    #[serde(default)]
    pub parent: Option<Digest>,
    /// Program and version that made it.
    #[serde(default)]
    pub tool: String,
}

impl Manifest {
    /// Reads and checks a manifest: size, JSON, version, then every field and claim against the
    /// limits. The files themselves are not looked at.
    pub fn from_bytes(bytes: &[u8], limits: &Limits) -> Result<Self> {
        if bytes.len() as u64 > limits.manifest_bytes {
            return Err(BundleError::ManifestTooLarge { limit: limits.manifest_bytes });
        }
        let peek: Peek = serde_json::from_slice(bytes).map_err(BundleError::ManifestJson)?;
        if peek.schema != u64::from(SCHEMA_VERSION) {
            return Err(BundleError::ManifestVersion { got: peek.schema, wanted: SCHEMA_VERSION });
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(BundleError::ManifestJson)?;
        manifest.check(limits)?;
        Ok(manifest)
    }

    /// The bytes whose digest names the bundle.
    pub fn to_bytes(&self, limits: &Limits) -> Result<Vec<u8>> {
        self.check(limits)?;
        let mut bytes = serde_json::to_vec_pretty(self).map_err(BundleError::ManifestJson)?;
        bytes.push(b'\n');
        if bytes.len() as u64 > limits.manifest_bytes {
            return Err(BundleError::ManifestTooLarge { limit: limits.manifest_bytes });
        }
        Ok(bytes)
    }

    /// Size of all files but the manifest.
    #[must_use]
    pub fn files_bytes(&self) -> u64 {
        self.files.values().fold(0, |sum, file| sum.saturating_add(file.size_bytes))
    }

    /// Whether the bundle was made for this runtime (or for any).
    #[must_use]
    pub fn fits_runtime(&self, runtime: &str) -> bool {
        self.runtime == ANY || self.runtime == runtime
    }

    /// Whether the bundle was made for this class of device (or for any).
    #[must_use]
    pub fn fits_class(&self, class: &str) -> bool {
        self.device_class == ANY || self.device_class == class
    }

    fn check(&self, limits: &Limits) -> Result<()> {
        check_text("name", &self.name)?;
        check_text("version", &self.version)?;
        check_text("device_class", &self.device_class)?;
        if !["tract", "ort", ANY].contains(&self.runtime.as_str()) {
            return Err(field(
                "runtime",
                format!("{:?} is not tract, ort or any", shorten(&self.runtime)),
            ));
        }
        self.check_tensors()?;
        self.predicted.check()?;
        self.check_files(limits)
    }

    fn check_tensors(&self) -> Result<()> {
        for (what, specs) in [("inputs", &self.inputs), ("outputs", &self.outputs)] {
            for spec in specs {
                if spec.dims.iter().any(|dim| *dim < -1) {
                    return Err(field(
                        what,
                        format!("{:?} has a negative dimension", shorten(&spec.name)),
                    ));
                }
            }
        }
        Ok(())
    }

    fn check_files(&self, limits: &Limits) -> Result<()> {
        let count = self.files.len().saturating_add(1);
        if count > limits.file_count {
            return Err(BundleError::TooManyFiles { count, limit: limits.file_count });
        }
        for (name, entry) in &self.files {
            check_file_name(name)?;
            if name == MANIFEST_FILE {
                return Err(field("files", "the manifest lists itself".to_owned()));
            }
            check_size(name, entry.size_bytes, limits)?;
        }
        for name in [MODEL_FILE, SELFTEST_FILE] {
            if !self.files.contains_key(name) {
                return Err(field("files", format!("{name} is not listed")));
            }
        }
        match self.files_bytes() {
            bytes if bytes > limits.total_bytes => {
                Err(BundleError::TotalTooLarge { bytes, limit: limits.total_bytes })
            }
            _ => Ok(()),
        }
    }
}

impl Predicted {
    fn check(&self) -> Result<()> {
        let fields = [
            ("predicted.latency_p95_us", self.latency_p95_us),
            ("predicted.memory_bytes", self.memory_bytes),
            ("predicted.energy_mj", self.energy_mj),
            ("predicted.agreement", self.agreement),
        ];
        for (name, estimate) in fields {
            let Some(estimate) = estimate else { continue };
            let finite =
                [estimate.value, estimate.low, estimate.high].iter().all(|v| v.is_finite());
            if !finite || estimate.low > estimate.value || estimate.value > estimate.high {
                return Err(field(
                    name,
                    "value is not a finite number between low and high".to_owned(),
                ));
            }
        }
        Ok(())
    }
}

/// Whether a bundle may hold a file of this name: letters, digits, `.`, `_` and `-` of ASCII, not
/// starting with a dot, at most [`MAX_FILE_NAME_BYTES`] long.
pub fn check_file_name(name: &str) -> Result<()> {
    let why = if name.is_empty() {
        "it is empty"
    } else if name.len() > MAX_FILE_NAME_BYTES {
        "it is longer than 100 bytes"
    } else if name.starts_with('.') {
        "it starts with a dot"
    } else if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)) {
        "it has characters other than letters, digits, . _ and -"
    } else {
        return Ok(());
    };
    Err(BundleError::FileName { name: shorten(name), why })
}

/// The JSON Schema (2020-12) of the manifest.
#[must_use]
pub fn manifest_schema() -> Value {
    schemars::schema_for!(Manifest).to_value()
}

/// Checks a file's size against the limit of its name.
pub(crate) fn check_size(name: &str, bytes: u64, limits: &Limits) -> Result<()> {
    let (limit, limit_name) = match name {
        MANIFEST_FILE => (limits.manifest_bytes, "manifest_bytes"),
        SELFTEST_FILE => (limits.selftest_bytes, "selftest_bytes"),
        REFERENCE_FILE => (limits.reference_bytes, "reference_bytes"),
        REPORT_FILE => (limits.report_bytes, "report_bytes"),
        _ => (limits.model_bytes, "model_bytes"),
    };
    if bytes > limit {
        return Err(BundleError::TooLarge { name: shorten(name), bytes, limit, limit_name });
    }
    Ok(())
}

#[derive(Deserialize)]
struct Peek {
    schema: u64,
}

fn field(field: &str, why: String) -> BundleError {
    BundleError::ManifestField { field: field.to_owned(), why }
}

/// Names and versions end up in paths, topics and pages.
fn check_text(name: &str, text: &str) -> Result<()> {
    let path = text.contains(['/', '\\']) || text == "." || text == "..";
    if text.is_empty() || text.len() > 128 || path || text.chars().any(char::is_control) {
        let why =
            "wanted 1 to 128 bytes without slashes or control characters, and no path".to_owned();
        return Err(field(name, why));
    }
    Ok(())
}
