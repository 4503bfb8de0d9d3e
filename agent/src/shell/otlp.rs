//! Sends the metrics of `/metrics` to an OTLP receiver, over HTTP with JSON; off unless configured.
//!
//! Counters are cumulative, so what cannot be sent is not kept: the next message says all of it. One message is under
//! way at a time, on a thread that blocks, and serving knows nothing of it.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use ureq::Agent;

use super::download::{self, Access};
use super::driver::unix_ms;
use crate::config::{DeviceConfig, OtlpConfig};
use crate::plane::{ModelCounts, Plane};
use message::Point;

mod message;

/// How long one message may take, from the connection to the answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest wait after failures.
const MOST_PATIENCE: Duration = Duration::from_secs(900);
/// The most bytes of a message.
const MAX_MESSAGE_BYTES: usize = 1 << 20;
/// The most bytes of an answer that are read.
const MAX_ANSWER_BYTES: u64 = 64 << 10;

/// Sends until it is dropped.
pub async fn run(config: OtlpConfig, device: DeviceConfig, plane: Plane) {
    let mut exporter = Exporter::new(config, device);
    let mut due = Instant::now() + exporter.config.interval;
    loop {
        sleep_until(due).await;
        exporter.export(unix_ms(), plane.counts()).await;
        due = Instant::now() + exporter.wait();
    }
}

/// What is remembered from one message to the next.
struct Exporter {
    config: OtlpConfig,
    device: DeviceConfig,
    /// When each bundle was first counted, Unix time in milliseconds.
    since: BTreeMap<(String, String), u64>,
    failures: u32,
    told: Option<String>,
}

impl Exporter {
    fn new(config: OtlpConfig, device: DeviceConfig) -> Self {
        Self { config, device, since: BTreeMap::new(), failures: 0, told: None }
    }

    /// The interval, doubled with each failure in a row.
    fn wait(&self) -> Duration {
        let doubled = self.config.interval.saturating_mul(1 << self.failures.min(10));
        doubled.min(MOST_PATIENCE.max(self.config.interval))
    }

    async fn export(&mut self, unix_ms: Option<u64>, counts: Vec<ModelCounts>) {
        let sent = match unix_ms {
            Some(now) => self.send(now, &counts).await,
            None => {
                Err("the device's clock is not set, and every number needs its time".to_owned())
            }
        };
        self.failures = if sent.is_ok() { 0 } else { self.failures.saturating_add(1) };
        match sent {
            Ok(()) if self.told.take().is_some() => {
                tracing::info!(endpoint = self.config.endpoint, "metrics are sent again");
            }
            Ok(()) => {}
            Err(reason) if self.told.as_ref() != Some(&reason) => {
                tracing::warn!(endpoint = self.config.endpoint, reason, "metrics are not sent");
                self.told = Some(reason);
            }
            Err(_) => {}
        }
    }

    async fn send(&mut self, now: u64, counts: &[ModelCounts]) -> Result<(), String> {
        let points = self.points(now, counts);
        let text = message::encode(&self.device, &points).to_string();
        if text.len() > MAX_MESSAGE_BYTES {
            let bytes = text.len();
            return Err(format!("{bytes} bytes are over MAX_MESSAGE_BYTES ({MAX_MESSAGE_BYTES})"));
        }
        let endpoint = self.config.endpoint.clone();
        let posted = tokio::task::spawn_blocking(move || post(&endpoint, &text)).await;
        posted.map_err(|error| format!("the message was ended: {error}"))?
    }

    /// The counts with the time since when they count. What is no longer served is forgotten.
    fn points<'a>(&mut self, now: u64, counts: &'a [ModelCounts]) -> Vec<Point<'a>> {
        let key = |model: &ModelCounts| (model.model.clone(), model.digest.clone());
        let since: BTreeMap<_, _> = counts
            .iter()
            .map(|model| {
                let key = key(model);
                let first = self.since.get(&key).copied().unwrap_or(now);
                (key, first)
            })
            .collect();
        self.since = since;
        let of = |model: &ModelCounts| self.since.get(&key(model)).copied().unwrap_or(now);
        counts.iter().map(|model| Point { counts: model, since: of(model), now }).collect()
    }
}

fn post(endpoint: &str, text: &str) -> Result<(), String> {
    let agent: Agent =
        download::agent(endpoint, &Access::default()).map_err(|failure| failure.reason)?;
    let request = agent.post(endpoint).content_type("application/json");
    let answer = request.config().timeout_global(Some(PATIENCE)).build().send(text);
    let mut answer = answer.map_err(|error| error.to_string())?;
    let status = answer.status();
    let body = answer.body_mut().with_config().limit(MAX_ANSWER_BYTES).read_to_string();
    if status.is_success() {
        return message::rejected(&body.unwrap_or_default());
    }
    Err(format!("the receiver answered {status}"))
}

#[cfg(test)]
mod tests;
