//! `download.*`: from whom, how fast and when bundles are fetched.

use std::num::NonZeroU64;

use super::reader::Reader;
use super::secure;
use crate::core::{DownloadRules, Window};

/// From whom, how fast and when bundles are fetched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DownloadConfig {
    /// The CAs that may have signed the certificate of a server; the system's if not given.
    pub ca_file: Option<std::path::PathBuf>,
    /// The most bytes in a second, of all downloads together.
    pub max_bytes_per_s: Option<NonZeroU64>,
    /// When they may move.
    pub rules: DownloadRules,
}

pub(super) fn read(r: &mut Reader) -> DownloadConfig {
    let ca_file = secure::credential(r, "download.ca_file");
    let rate = r.optional_integer("download.max_bytes_per_s", 1024..=1 << 40);
    let window = r.string("download.window").filter(|text| !text.is_empty());
    DownloadConfig {
        ca_file,
        max_bytes_per_s: rate.and_then(NonZeroU64::new),
        rules: DownloadRules {
            window: window.and_then(|text| r.check("download.window", text.parse::<Window>())),
            pause_on_battery: r.flag("download.pause_on_battery", false),
        },
    }
}
