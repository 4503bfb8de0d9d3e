//! What the core says to the outside. Headers are blank here; the shell stamps them.

use wire::{
    CommandResult, Comparison, DeviceState, Header, InstallEvent, InstallOutcome, ModelPhase,
    ModelState, Payload, ResourceWindow, SpoolDrop, StateReport, ThrottleEvent,
};

use super::effect::{Effect, Report};
use super::event::{Dropped, Millis};
use super::record::{DurableInstall, InstallState};
use super::{Core, DurableModel, judge};

/// A header without time, number and boot.
pub(super) fn blank<P: Payload>() -> Header {
    Header::of::<P>(0, 0, "")
}

impl InstallState {
    /// The state's name on the wire.
    #[must_use]
    pub fn phase(self) -> ModelPhase {
        match self {
            Self::Offered | Self::Downloading => ModelPhase::Downloading,
            Self::Verifying => ModelPhase::Verifying,
            Self::Loading => ModelPhase::Loading,
            Self::SelfTest => ModelPhase::SelfTest,
            Self::Shadow | Self::Switching => ModelPhase::Shadow,
            Self::Probation => ModelPhase::Probation,
            Self::Committed => ModelPhase::Committed,
            Self::RolledBack => ModelPhase::RolledBack,
            Self::Rejected => ModelPhase::Rejected,
        }
    }
}

impl Core {
    pub(super) fn publish(&mut self, report: Report) {
        self.emit(Effect::Publish(Box::new(report)));
    }

    pub(super) fn report_birth(&mut self) {
        self.publish(Report::Birth(self.settings.birth.clone()));
    }

    /// Says online, degraded or offline, when it is not what was said last.
    pub(super) fn report_state(&mut self) {
        let (state, reason) = self.device_state();
        let log_level = self.log_level.as_ref().map(|own| own.level.clone());
        let told = (state, reason.clone(), log_level.clone());
        if self.told_state.as_ref() == Some(&told) || !self.connected {
            return;
        }
        self.told_state = Some(told);
        let header = blank::<StateReport>();
        self.publish(Report::State(StateReport { header, state, reason, log_level }));
    }

    /// Whether all is well, and why not.
    pub(super) fn device_state(&self) -> (DeviceState, Option<String>) {
        if self.ending {
            return (DeviceState::Offline, Some("the service is ending".into()));
        }
        let trouble = |(name, live): (&String, &super::Live)| {
            let reason = live.activation.reason.as_ref()?;
            Some(format!("model {name} does not serve: {reason}"))
        };
        let deaf = self.deaf.iter().map(|reason| {
            format!("the broker refuses the subscription to offers and commands: {reason}")
        });
        let troubles: Vec<String> = self
            .live
            .iter()
            .filter_map(trouble)
            .chain(deaf)
            .chain(self.settings.trouble.clone())
            .collect();
        if troubles.is_empty() {
            (DeviceState::Online, None)
        } else {
            (DeviceState::Degraded, Some(troubles.join("; ")))
        }
    }

    pub(super) fn report_model(&mut self, model: &str) {
        let (phase, reason) = self.model_phase(model);
        let active = self.durable.models.get(model).and_then(|m| m.active.clone());
        self.publish(Report::Model(ModelState {
            header: blank::<ModelState>(),
            model: model.to_owned(),
            digest: active.as_ref().map(|a| a.digest.clone()),
            version: active.as_ref().map(|a| a.version.clone()),
            sequence: active.as_ref().map(|a| a.sequence),
            phase,
            reason,
            size_bytes: active.as_ref().map(|a| a.size_bytes),
        }));
    }

    /// Where a model is in its life, and why.
    pub(super) fn model_phase(&self, model: &str) -> (ModelPhase, Option<String>) {
        let live = self.live.get(model);
        let durable = self.durable.models.get(model);
        if let Some(install) = durable.and_then(|m| m.install.as_ref()) {
            return (install.state.phase(), self.waiting(model));
        }
        if let Some(reason) = live.and_then(|l| l.activation.reason.clone()) {
            return (ModelPhase::None, Some(reason));
        }
        if let Some(outcome) = live.and_then(|l| l.outcome.clone()) {
            return outcome;
        }
        let serving = live.is_some_and(|l| l.serving.is_some());
        match durable.and_then(|m: &DurableModel| m.active.as_ref()) {
            Some(_) if serving => (ModelPhase::Serving, None),
            Some(_) => (ModelPhase::Loading, None),
            None => (ModelPhase::None, None),
        }
    }

    /// Tells how far an install has come, or why it does not go on, and the model's state with it.
    pub(super) fn report_progress(
        &mut self,
        now: Millis,
        install: &DurableInstall,
        state: InstallState,
        reason: Option<String>,
    ) {
        let model = install.offer.model.clone();
        let from_digest = self.digest_before(&model, state);
        let elapsed_ms = now.since(self.live(&model).install.since);
        let comparison = self.comparison(install);
        self.publish(Report::Install(InstallEvent {
            header: blank::<InstallEvent>(),
            model: model.clone(),
            digest: install.offer.digest.clone(),
            phase: state.phase(),
            outcome: InstallOutcome::Progress,
            reason,
            from_digest,
            elapsed_ms,
            comparison,
            blocked: self.is_blocked(&model, &install.offer.digest),
            trial: None,
        }));
        self.report_model(&model);
    }

    /// The install's model beside the one before it, as far as they were seen side by side.
    pub(super) fn comparison(&mut self, install: &DurableInstall) -> Option<Comparison> {
        let live = self.live(&install.offer.model);
        // A candidate turned away in its shadow has no baseline yet, and its agreement is the reason.
        let shadowed = judge::baseline(&live.recent, &live.install.shadow);
        judge::comparison(install.baseline.as_ref().or(Some(&shadowed)))
    }

    /// Whether the digest failed or was taken back on this device.
    pub(super) fn is_blocked(&self, model: &str, digest: &str) -> bool {
        self.durable.models.get(model).is_some_and(|model| model.blocked.contains(digest))
    }

    /// Tells when throttling begins and when it ends.
    pub(super) fn report_throttle(&mut self, now: Millis, resources: &ResourceWindow) {
        if resources.throttled == self.throttled_since.is_some() {
            return;
        }
        let since = self.throttled_since.take();
        self.throttled_since = resources.throttled.then_some(now);
        self.publish(Report::Throttle(ThrottleEvent {
            header: blank::<ThrottleEvent>(),
            throttled: resources.throttled,
            lasted_ms: since.map(|since| now.since(since)),
            temperature_mc: resources.temperature_mc,
            freq_khz: resources.freq_khz,
        }));
    }

    fn digest_before(&self, model: &str, state: InstallState) -> Option<String> {
        let durable = self.durable.models.get(model)?;
        let installed = match state {
            InstallState::Probation => durable.previous.as_ref(),
            _ => durable.active.as_ref(),
        };
        installed.map(|installed| installed.digest.clone())
    }

    pub(super) fn report_result(&mut self, id: &str, outcome: Result<serde_json::Value, String>) {
        let (data, error) = match outcome {
            Ok(data) => (data, None),
            Err(error) => (serde_json::Value::Null, Some(error)),
        };
        self.publish(Report::Result(CommandResult {
            header: blank::<CommandResult>(),
            id: id.to_owned(),
            ok: error.is_none(),
            error,
            data,
        }));
    }

    pub(super) fn report_spool_drop(&mut self, dropped: Dropped) {
        self.publish(Report::SpoolDrop(SpoolDrop {
            header: blank::<SpoolDrop>(),
            dropped_records: dropped.records,
            dropped_bytes: dropped.bytes,
            dropped_events: dropped.events,
            reason: dropped.reason,
        }));
    }
}

/// How an install in that state stands.
pub(super) fn outcome(state: InstallState) -> InstallOutcome {
    match state {
        InstallState::Committed => InstallOutcome::Committed,
        InstallState::RolledBack => InstallOutcome::RolledBack,
        InstallState::Rejected => InstallOutcome::Rejected,
        _ => InstallOutcome::Progress,
    }
}
