//! Keeping the active bundle served: after a start, after a rollback, after a failure.

use super::Core;
use super::effect::Effect;
use super::event::{FailureClass, Millis, StepFailure};
use super::live::Activation;
use super::record::{InstallState, Record};
use super::retry::backoff;

/// Failures in a row from which the bundle before is tried instead. Whatever failed may have been
/// the device's trouble, and a bundle that has served is not given up for that at once.
const MAX_FAILURES: u32 = 3;

impl Core {
    /// Asks for the active bundle to be served, if it is not.
    pub(super) fn activate(&mut self, model: &str) {
        let Some(digest) = self.active_digest(model) else {
            return;
        };
        let live = self.live(model);
        live.serving = live.serving.take().filter(|serving| *serving == digest);
        live.activation.running = Some(digest.clone());
        live.activation.retry_at = None;
        let model = model.to_owned();
        self.emit(Effect::Activate { model, digest });
    }

    pub(super) fn active_digest(&self, model: &str) -> Option<String> {
        let active = self.durable.models.get(model)?.active.as_ref()?;
        Some(active.digest.clone())
    }

    pub(super) fn on_activated(&mut self, now: Millis, model: &str, digest: &str) {
        if self.active_digest(model).as_deref() != Some(digest) {
            return;
        }
        self.live(model).serves(digest);
        self.report_model(model);
        self.resume_if_pending(now, model);
    }

    pub(super) fn on_activate_failed(
        &mut self,
        now: Millis,
        model: &str,
        digest: &str,
        failure: &StepFailure,
    ) {
        if self.active_digest(model).as_deref() != Some(digest) {
            return;
        }
        let activation = &mut self.live(model).activation;
        activation.running = None;
        activation.failures += 1;
        activation.reason = Some(failure.reason.clone());
        let failures = activation.failures;
        if failures >= MAX_FAILURES {
            if self.fall_back(now, model, digest, failure) {
                return;
            }
            let unfit = matches!(failure.class, FailureClass::Damaged | FailureClass::Bundle);
            self.live(model).activation.broken = unfit;
            self.end_dead_probation(now, model);
        }
        let wait = backoff(failures, &self.settings.birth.device);
        self.live(model).activation.retry_at = Some(now.plus(wait));
        self.report_model(model);
        self.resume_if_pending(now, model);
    }

    /// Goes back to the bundle before, if there is one. Only a bundle that the engine itself refuses
    /// is blocked.
    fn fall_back(&mut self, now: Millis, model: &str, digest: &str, why: &StepFailure) -> bool {
        let durable = self.durable.models.get(model);
        if durable.is_none_or(|m| m.previous.is_none()) {
            return false;
        }
        let block = why.class == FailureClass::Bundle;
        let on_probation =
            self.install(model).is_some_and(|own| own.state == InstallState::Probation);
        if on_probation {
            self.roll_back(now, model, &why.reason, block);
        } else {
            self.revert(model, digest, &why.reason, block);
            self.resume_if_pending(now, model);
        }
        true
    }

    /// The first bundle of a device stays even when it is dead, for there is nothing to go back to;
    /// but it must not keep newer offers waiting for the end of its probation.
    fn end_dead_probation(&mut self, now: Millis, model: &str) {
        if self.install(model).is_some_and(|own| own.state == InstallState::Probation) {
            self.commit(now, model);
        }
    }

    pub(super) fn on_worker_died(&mut self, now: Millis, model: &str, reason: &str) {
        if let Some(live) = self.live.get_mut(model) {
            live.down = Some(reason.to_owned());
        }
        self.count_death(now, model, reason);
    }

    /// A worker that dies is restarted by the plane, which is often enough. One that does not come
    /// back is loaded anew from the store, whose files are verified on the way; if that fails as
    /// well, the bundle before takes over.
    pub(super) fn on_restart_failed(&mut self, model: &str, reason: &str) {
        let Some(live) = self.live.get_mut(model) else {
            return;
        };
        live.down = Some(reason.to_owned());
        live.failed_restarts += 1;
        if live.failed_restarts < MAX_FAILURES || live.serving.is_none() {
            return;
        }
        live.serving = None;
        live.activation.reason = Some(reason.to_owned());
        self.activate(model);
        self.report_model(model);
    }

    pub(super) fn on_worker_restarted(&mut self, model: &str) {
        let Some(live) = self.live.get_mut(model) else {
            return;
        };
        live.down = None;
        live.failed_restarts = 0;
        if live.serving.is_none() && live.activation.retry_at.is_some() {
            self.activate(model);
        }
    }

    /// Takes a committed bundle back and serves the one before it.
    pub(super) fn revert(&mut self, model: &str, from: &str, reason: &str, block: bool) {
        self.record(Record::Reverted {
            model: model.to_owned(),
            from: from.to_owned(),
            reason: reason.to_owned(),
            block,
        });
        self.emit(Effect::WriteActive(self.durable.active()));
        let live = self.live(model);
        live.activation = Activation::default();
        live.outcome = Some((wire::ModelPhase::RolledBack, Some(reason.to_owned())));
        live.gauges.clear();
        live.recent.clear();
        self.activate(model);
        self.tell_end(0, None);
        self.report_model(model);
    }

    pub(super) fn tick_activation(&mut self, now: Millis, model: &str) {
        let retry_at = self.live(model).activation.retry_at;
        if retry_at.is_some_and(|at| now >= at) {
            self.activate(model);
        }
    }

    /// An install waits after a restart until it is settled whether the model before it serves, for
    /// that decides whether there is anything to compare it with.
    fn resume_if_pending(&mut self, now: Millis, model: &str) {
        if std::mem::take(&mut self.live(model).resume_pending) {
            self.resume(now, model);
        }
    }
}
