//! The core's state as data, for the status page and the snapshot command.

use serde::Serialize;
use wire::{Budgets, DeviceState, ModelPhase};

use super::event::Millis;
use super::record::{InstallState, Installed};
use super::{Core, DurableModel};

/// Everything the core knows, for people and scripts.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// The device.
    pub device: String,
    /// Online also when there is no broker; degraded when a model does not serve, or when the broker
    /// refuses to pass offers and commands on.
    pub state: DeviceState,
    /// Why it is not online.
    pub reason: Option<String>,
    /// Whether the broker is connected.
    pub connected: bool,
    /// Why not.
    pub offline_reason: Option<String>,
    /// The measurement under way.
    pub measuring: Option<MeasureStatus>,
    /// What is logged, while a command has changed it.
    pub log_level: Option<LogStatus>,
    /// Every known model.
    pub models: Vec<ModelStatus>,
}

/// A measurement under way.
#[derive(Clone, Debug, Serialize)]
pub struct MeasureStatus {
    /// The command.
    pub id: String,
    /// The model.
    pub model: String,
    /// The bundle.
    pub digest: String,
    /// For how long it has been under way.
    pub elapsed_ms: u64,
}

/// A commanded log level.
#[derive(Clone, Debug, Serialize)]
pub struct LogStatus {
    /// What is logged.
    pub level: String,
    /// For how much longer.
    pub left_ms: u64,
}

/// What the core knows of one model.
#[derive(Clone, Debug, Serialize)]
pub struct ModelStatus {
    /// Its name.
    pub name: String,
    /// Where it is in its life.
    pub phase: ModelPhase,
    /// Why.
    pub reason: Option<String>,
    /// The bundle that must serve.
    pub active: Option<Installed>,
    /// Whether it does.
    pub serving: bool,
    /// The bundle to go back to.
    pub previous: Option<Installed>,
    /// The install under way.
    pub install: Option<InstallStatus>,
    /// The budgets that hold.
    pub budgets: Budgets,
    /// Budgets that are broken now, and by whom.
    pub broken: Vec<String>,
    /// Open re-compression requests.
    pub requests: Vec<String>,
    /// How many digests are never to be installed again.
    pub blocked: usize,
}

/// An install under way.
#[derive(Clone, Debug, Serialize)]
pub struct InstallStatus {
    /// The bundle.
    pub digest: String,
    /// Its sequence.
    pub sequence: u64,
    /// Where it stands.
    pub state: InstallState,
    /// Why it does not move, if it does not.
    pub waiting: Option<String>,
    /// For how long it has been under way.
    pub elapsed_ms: u64,
    /// Requests compared while shadowing.
    pub shadow_requests: u64,
}

impl Core {
    /// The state as data.
    #[must_use]
    pub fn status(&self, now: Millis) -> Status {
        let (state, reason) = self.device_state();
        Status {
            device: self.settings.birth.device.clone(),
            state,
            reason,
            connected: self.connected,
            offline_reason: self.offline_reason.clone(),
            measuring: self.measuring_status(now),
            log_level: self.log_level.as_ref().map(|own| own.status(now)),
            models: self
                .durable
                .models
                .iter()
                .map(|(name, model)| self.model_status(now, name, model))
                .collect(),
        }
    }

    fn model_status(&self, now: Millis, name: &str, model: &DurableModel) -> ModelStatus {
        let (phase, reason) = self.model_phase(name);
        let live = self.live.get(name);
        let gauges = live.into_iter().flat_map(|live| &live.gauges);
        let broken = gauges.filter_map(|(budget, gauge)| {
            let cause = gauge.standing()?;
            Some(format!("{budget} ({cause})"))
        });
        ModelStatus {
            name: name.to_owned(),
            phase,
            reason,
            active: model.active.clone(),
            serving: live.is_some_and(|live| live.serving.is_some()),
            previous: model.previous.clone(),
            install: model.install.as_ref().map(|install| InstallStatus {
                digest: install.offer.digest.clone(),
                sequence: install.offer.sequence,
                state: install.state,
                waiting: self.waiting(name),
                elapsed_ms: live.map_or(0, |live| now.since(live.install.since)),
                shadow_requests: live.map_or(0, |live| live.install.shadow.requests),
            }),
            budgets: self.budgets(name),
            broken: broken.collect(),
            requests: model.requests.values().map(|r| r.request_id.clone()).collect(),
            blocked: model.blocked.len(),
        }
    }
}
