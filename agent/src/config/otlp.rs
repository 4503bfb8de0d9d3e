//! `otlp.*`: where metrics are sent to, besides being there to be fetched.

use std::time::Duration;

use super::reader::Reader;

/// Where metrics are sent to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtlpConfig {
    /// The receiver's address for metrics, as `http://collector:4318/v1/metrics`.
    pub endpoint: String,
    /// How often they are sent.
    pub interval: Duration,
}

pub(super) fn read(r: &mut Reader) -> Option<OtlpConfig> {
    let endpoint = r.string("otlp.endpoint").filter(|text| !text.is_empty());
    let interval = r.millis("otlp.interval_ms", 60_000, 1000..=86_400_000);
    let known = |text: &String| text.starts_with("http://") || text.starts_with("https://");
    let endpoint = endpoint.and_then(|text| {
        let wrong = || format!("{text:?} is no http:// or https:// address");
        let checked = known(&text).then(|| text.clone()).ok_or_else(wrong);
        r.check("otlp.endpoint", checked)
    })?;
    Some(OtlpConfig { endpoint, interval })
}
