//! How large a bundle may be.

/// Limits on a bundle, checked before bytes are read or written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// `manifest.json`.
    pub manifest_bytes: u64,
    /// `model.onnx`, and each file of external data.
    pub model_bytes: u64,
    /// `selftest.safetensors`.
    pub selftest_bytes: u64,
    /// `reference.json`.
    pub reference_bytes: u64,
    /// `report.html`.
    pub report_bytes: u64,
    /// All files together.
    pub total_bytes: u64,
    /// Number of files, the manifest included.
    pub file_count: usize,
}

impl Default for Limits {
    fn default() -> Self {
        const MIB: u64 = 1024 * 1024;
        Self {
            manifest_bytes: MIB,
            model_bytes: 2048 * MIB,
            selftest_bytes: 64 * MIB,
            reference_bytes: MIB,
            report_bytes: 32 * MIB,
            total_bytes: 4096 * MIB,
            file_count: 64,
        }
    }
}
