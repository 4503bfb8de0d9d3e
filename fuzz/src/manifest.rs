//! Manifests of bundles.

use bundle::{BundleError, Limits, MODEL_FILE, Manifest, SELFTEST_FILE, check_file_name};

use crate::Verdict;

/// Reads bytes as a manifest.
///
/// # Panics
/// When one was accepted that a reader would refuse, or that is not read back as the same.
pub fn take(bytes: &[u8]) -> Verdict {
    let limits = Limits::default();
    let Ok(manifest) = Manifest::from_bytes(bytes, &limits) else { return Verdict::Refused };
    assert!(manifest.files.len() < limits.file_count, "the manifest is a file as well");
    assert!(manifest.files_bytes() <= limits.total_bytes);
    assert!([MODEL_FILE, SELFTEST_FILE].iter().all(|name| manifest.files.contains_key(*name)));
    for name in manifest.files.keys() {
        check_file_name(name).expect("names were checked");
    }
    match manifest.to_bytes(&limits) {
        Ok(written) => {
            let again = Manifest::from_bytes(&written, &limits).expect("it was written by us");
            assert_eq!(again.to_bytes(&limits).expect("it was read"), written);
        }
        // Written with spaces, it may be longer than it came.
        Err(BundleError::ManifestTooLarge { .. }) => {}
        Err(error) => panic!("what was accepted cannot be written: {error}"),
    }
    Verdict::Accepted
}
