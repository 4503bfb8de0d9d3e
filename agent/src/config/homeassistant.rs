//! `homeassistant.*`: whether and where the device tells Home Assistant of itself.

use super::reader::Reader;

/// Where Home Assistant looks for devices, unless it is told otherwise.
const DEFAULT_PREFIX: &str = "homeassistant";

/// Whether and where the device tells Home Assistant of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HomeAssistantConfig {
    /// Whether it does.
    pub enabled: bool,
    /// What the topics begin with.
    pub prefix: String,
}

pub(super) fn read(r: &mut Reader) -> HomeAssistantConfig {
    let enabled = r.flag("homeassistant.enabled", false);
    let prefix = r.string("homeassistant.prefix").unwrap_or_else(|| DEFAULT_PREFIX.to_owned());
    r.check("homeassistant.prefix", wire::requests_filter(&prefix));
    HomeAssistantConfig { enabled, prefix }
}
