//! The install state machine. The diagram is in `docs/agent.md`; the states are [`InstallState`].

use super::effect::{Effect, Step};
use super::event::{
    BundleFacts, FailureClass, InstallId, Millis, ShadowFacts, StepDone, StepFailure,
};
use super::judge::Shadow;
use super::live::LiveInstall;
use super::record::{DurableInstall, InstallState, Record};
use super::retry::{Tries, Verdict};
use super::trial::{CRASHES, Trial};
use super::{Core, judge};
use wire::Offer;

impl Core {
    pub(super) fn install(&self, model: &str) -> Option<&DurableInstall> {
        self.durable.models.get(model)?.install.as_ref()
    }

    /// The install of that number, if it is being worked on: one that waits after a restart has no
    /// worker, and nothing said about it can be true.
    fn working(&self, model: &str, install: InstallId) -> Option<&DurableInstall> {
        let waits = self.live.get(model).is_none_or(|live| live.resume_pending);
        self.install(model).filter(|own| own.id == install && !waits)
    }

    /// Goes on with the install that the agent was stopped in.
    pub(super) fn resume(&mut self, now: Millis, model: &str) {
        let Some(install) = self.install(model).cloned() else {
            return;
        };
        self.live(model).install =
            LiveInstall { since: now, state_since: now, ..LiveInstall::default() };
        if install.state == InstallState::Probation {
            return;
        }
        let limit = self.settings.install.max_restarts;
        if install.restarts >= limit {
            let reason = format!(
                "the agent was stopped {limit} times while installing it (install.max_restarts)"
            );
            // What was never loaded has not been shown to be bad: it may have waited for its hour.
            let block = install.state >= InstallState::Loading;
            self.reject(now, model, &reason, block);
            return;
        }
        let state = if install.state < InstallState::Loading {
            InstallState::Downloading
        } else {
            InstallState::Loading
        };
        self.record(Record::Resumed { model: model.to_owned(), install: install.id, state });
        self.perform(model);
    }

    pub(super) fn on_step(
        &mut self,
        now: Millis,
        model: &str,
        install: InstallId,
        outcome: Result<StepDone, StepFailure>,
    ) {
        let Some(own) = self.working(model, install).cloned() else {
            return;
        };
        match outcome {
            Ok(done) => self.on_step_done(now, &own, done),
            Err(failure) => self.on_step_failed(now, &own, &failure),
        }
    }

    fn on_step_done(&mut self, now: Millis, own: &DurableInstall, done: StepDone) {
        let model = own.offer.model.as_str();
        match (own.state, done) {
            (InstallState::Downloading, StepDone::Downloaded) => {
                self.enter(now, model, InstallState::Verifying);
            }
            (InstallState::Verifying, StepDone::Verified(facts)) => {
                self.on_verified(now, own, &facts);
            }
            (InstallState::Loading, StepDone::Loaded) => {
                self.enter(now, model, InstallState::SelfTest);
            }
            (InstallState::SelfTest, StepDone::SelfTested) => self.after_self_test(now, model),
            (InstallState::Switching, StepDone::Switched) => self.on_switched(now, own),
            // ShadowStarted needs nothing; everything else is a late answer to a step given up.
            _ => {}
        }
    }

    fn on_verified(&mut self, now: Millis, own: &DurableInstall, facts: &BundleFacts) {
        let runtime = self.settings.birth.runtime.as_str();
        let class = self.settings.birth.device_class.as_str();
        let floor = self.budgets(&own.offer.model).agreement_min;
        let fits = judge::manifest(&own.offer, facts, runtime, class)
            .and_then(|()| super::floor::stated(facts.agreement_high, floor));
        if let Err(failure) = fits {
            self.on_step_failed(now, own, &failure);
            return;
        }
        self.advance_with(now, &own.offer.model, InstallState::Loading, |record| {
            if let Record::Install { size_bytes, predicted, .. } = record {
                *size_bytes = Some(facts.size_bytes);
                *predicted = Some(Box::new(facts.predicted.for_class(&facts.device_class)));
            }
        });
        self.perform(&own.offer.model);
    }

    /// A model that nobody serves yet has nothing to be compared with.
    fn after_self_test(&mut self, now: Millis, model: &str) {
        let serving = self.live(model).serving.is_some();
        if serving && self.settings.install.shadow_requests > 0 {
            self.enter(now, model, InstallState::Shadow);
        } else {
            self.switch(now, model);
        }
    }

    pub(super) fn on_shadow(
        &mut self,
        now: Millis,
        model: &str,
        install: InstallId,
        facts: ShadowFacts,
    ) {
        let own = self.working(model, install);
        if own.is_none_or(|own| own.state != InstallState::Shadow) {
            return;
        }
        self.live(model).install.shadow = facts;
        self.judge_shadow(now, model, false);
    }

    /// Goes on from a shadow that has seen enough, or has no more time.
    fn judge_shadow(&mut self, now: Millis, model: &str, timed_out: bool) {
        let facts = self.live(model).install.shadow;
        let floor = self.budgets(model).agreement_min;
        let restarts = self.install(model).map_or(0, |own| own.restarts);
        match judge::shadow(&facts, floor, restarts, &self.settings) {
            Shadow::Refuse(reason) => self.reject(now, model, &reason, true),
            Shadow::Watch if !timed_out => {}
            Shadow::Watch | Shadow::Pass => self.switch(now, model),
        }
    }

    fn switch(&mut self, now: Millis, model: &str) {
        let live = self.live(model);
        let baseline = judge::baseline(&live.recent, &live.install.shadow);
        self.advance_with(now, model, InstallState::Switching, |record| {
            if let Record::Install { baseline: slot, .. } = record {
                *slot = Some(baseline);
            }
        });
        self.perform(model);
    }

    fn on_switched(&mut self, now: Millis, own: &DurableInstall) {
        let model = own.offer.model.as_str();
        let live = self.live(model);
        live.serves(&own.offer.digest);
        live.gauges.values_mut().for_each(super::gauge::Gauge::reset);
        live.recent.clear();
        live.pending = super::live::Evidence::default();
        live.install.windows = 0;
        let trial = self.begin_trial(own);
        self.advance_with(now, model, InstallState::Probation, |record| {
            if let Record::Install { trial: slot, .. } = record {
                *slot = Some(Box::new(trial));
            }
        });
        self.emit(Effect::WriteActive(self.durable.active()));
    }

    /// What a model is held against on probation: as things are when it is switched to.
    pub(super) fn begin_trial(&self, own: &DurableInstall) -> Trial {
        let before = own.baseline.unwrap_or_default();
        let budgets = self.budgets(&own.offer.model);
        let rules = &self.settings;
        Trial::begin(&before, &own.predicted, &budgets, &rules.probation, &rules.install)
    }

    /// Moves on, tells so, and performs the new state's step.
    fn enter(&mut self, now: Millis, model: &str, state: InstallState) {
        self.advance(now, model, state);
        self.perform(model);
    }

    /// Moves on and tells so.
    pub(super) fn advance(&mut self, now: Millis, model: &str, state: InstallState) {
        self.advance_with(now, model, state, |_| {});
    }

    fn advance_with(
        &mut self,
        now: Millis,
        model: &str,
        state: InstallState,
        complete: impl FnOnce(&mut Record),
    ) {
        let Some(own) = self.install(model) else {
            return;
        };
        let mut record = moved(own, state, None, false);
        complete(&mut record);
        self.record(record);
        let live = &mut self.live(model).install;
        live.state_since = now;
        live.tries = Tries::default();
        live.retry_at = None;
        live.failure = None;
        live.held = None;
        if let Some(own) = self.install(model).cloned() {
            self.report_progress(now, &own, state, None);
        }
    }

    /// Asks the shell for the step that belongs to the install's present state. A download may have to
    /// wait for its time.
    pub(super) fn perform(&mut self, model: &str) {
        let downloads =
            self.install(model).is_some_and(|own| own.state <= InstallState::Downloading);
        if downloads && self.holds_back(model) {
            return self.report_model(model);
        }
        let Some(own) = self.install(model) else {
            return;
        };
        let digest = own.offer.digest.clone();
        let step = match own.state {
            InstallState::Offered | InstallState::Downloading => {
                Step::Download(Box::new(own.offer.clone()))
            }
            InstallState::Verifying => Step::Verify { digest },
            InstallState::Loading => Step::Load { digest },
            InstallState::SelfTest => Step::SelfTest { digest },
            InstallState::Shadow => Step::Shadow,
            InstallState::Switching => Step::Switch,
            InstallState::Probation
            | InstallState::Committed
            | InstallState::RolledBack
            | InstallState::Rejected => return,
        };
        let install = own.id;
        let model = model.to_owned();
        self.emit(Effect::Step { model, install, step });
    }

    fn on_step_failed(&mut self, now: Millis, own: &DurableInstall, failure: &StepFailure) {
        let model = own.offer.model.as_str();
        if own.state >= InstallState::Probation {
            return;
        }
        let limit = self.settings.install.max_attempts;
        let salt = format!("{}{}", own.offer.digest, self.settings.birth.device);
        let live = &mut self.live(model).install;
        live.failure = Some(failure.reason.clone());
        let verdict = live.tries.after(failure.class, limit, &salt);
        match verdict {
            Verdict::Again { wait_ms, tell } => {
                live.retry_at = Some(now.plus(wait_ms));
                if tell {
                    let reason = format!("will be tried again: {}", failure.reason);
                    self.report_progress(now, own, own.state, Some(reason));
                }
            }
            Verdict::Over { why } => {
                let why = why.map(|why| format!(" ({why})")).unwrap_or_default();
                let block = failure.class == FailureClass::Bundle;
                self.reject(now, model, &format!("{}{why}", failure.reason), block);
            }
        }
    }

    /// The offer that is being waited for was made again, or a new connection brought it: it is asked soon whether it
    /// is allowed now, and not when the long wait is over.
    pub(super) fn ask_sooner(&mut self, now: Millis, offer: &Offer) {
        let salt = format!("{}{}", offer.digest, self.settings.birth.device);
        let Some(live) = self.live.get_mut(&offer.model) else { return };
        if let Some(at) = live.install.retry_at
            && let Some(wait_ms) = live.install.tries.start_over(&salt)
        {
            live.install.retry_at = Some(at.min(now.plus(wait_ms)));
        }
    }

    /// Ends an install that never served.
    pub(super) fn reject(&mut self, now: Millis, model: &str, reason: &str, block: bool) {
        let Some(own) = self.install(model).cloned() else {
            return;
        };
        self.record(moved(&own, InstallState::Rejected, Some(reason.to_owned()), block));
        self.emit(Effect::Abandon { model: model.to_owned(), install: own.id });
        self.finish(now, &own, InstallState::Rejected, Some(reason.to_owned()));
    }

    /// The new model stays.
    pub(super) fn commit(&mut self, now: Millis, model: &str) {
        let Some(own) = self.install(model).cloned() else {
            return;
        };
        self.record(moved(&own, InstallState::Committed, None, false));
        self.emit(Effect::RetireStandby { model: model.to_owned() });
        self.close_requests(now, model, "a new model was committed");
        self.finish(now, &own, InstallState::Committed, None);
    }

    /// Takes the new model back. Where there is none to go back to it stays, for a bad model that
    /// answers serves its users better than none.
    pub(super) fn roll_back(&mut self, now: Millis, model: &str, reason: &str, block: bool) {
        let Some(own) = self.install(model).cloned() else {
            return;
        };
        let previous = self.durable.models.get(model).and_then(|m| m.previous.as_ref());
        if previous.is_none() {
            return;
        }
        let told = Some(reason.to_owned());
        self.record(moved(&own, InstallState::RolledBack, told.clone(), block));
        self.emit(Effect::WriteActive(self.durable.active()));
        self.live(model).activation = super::live::Activation::default();
        self.activate(model);
        self.finish(now, &own, InstallState::RolledBack, told);
    }

    fn finish(
        &mut self,
        now: Millis,
        own: &DurableInstall,
        state: InstallState,
        reason: Option<String>,
    ) {
        let model = own.offer.model.as_str();
        if state != InstallState::Committed && own.offer.request_id.is_some() {
            self.close_requests(now, model, "the bundle offered for it was not taken");
        }
        self.live(model).outcome = Some((state.phase(), reason));
        let since = self.live(model).install.since;
        let comparison = self.comparison(own);
        self.tell_end(now.since(since), comparison);
        self.report_model(model);
        self.live(model).install = LiveInstall { since, ..LiveInstall::default() };
        self.collect();
        self.take_next_offer(now, model);
    }

    pub(super) fn tick_install(&mut self, now: Millis, model: &str) {
        let waits = self.live(model).resume_pending;
        let Some(own) = self.install(model).filter(|_| !waits).cloned() else {
            return;
        };
        let live = &self.live(model).install;
        let in_state = now.since(live.state_since);
        let (retry_at, shadow) = (live.retry_at, own.state == InstallState::Shadow);
        let rules = &self.settings.install;
        if let Some(at) = retry_at {
            if now >= at {
                let live = &mut self.live(model).install;
                live.retry_at = None;
                live.state_since = now;
                self.perform(model);
            }
        } else if shadow && in_state >= rules.shadow_timeout_ms {
            self.judge_shadow(now, model, true);
        } else if has_deadline(own.state) && in_state >= rules.step_timeout_ms {
            let limit = rules.step_timeout_ms;
            let step = own.state.phase();
            let reason = format!("{step} took over {limit} ms (install.step_timeout_ms)");
            self.on_step_failed(now, &own, &StepFailure::attempt(reason));
        }
    }

    /// A death of the worker is held against a bundle on probation.
    pub(super) fn count_death(&mut self, now: Millis, model: &str, reason: &str) {
        let Some((install, mut trial)) = self.trial(model) else {
            return;
        };
        trial.count_death();
        let again = trial.deaths() >= CRASHES;
        self.watched(model, install, trial);
        if again {
            let reason = format!("its worker died again during probation: {reason}");
            self.roll_back(now, model, &reason, true);
        }
    }
}

/// Downloads may take as long as the network does; shadowing and probation have rules of their own.
fn has_deadline(state: InstallState) -> bool {
    matches!(
        state,
        InstallState::Verifying
            | InstallState::Loading
            | InstallState::SelfTest
            | InstallState::Switching
    )
}

fn moved(own: &DurableInstall, state: InstallState, reason: Option<String>, block: bool) -> Record {
    Record::Install {
        model: own.offer.model.clone(),
        install: own.id,
        state,
        reason,
        block,
        size_bytes: None,
        baseline: None,
        predicted: None,
        trial: None,
    }
}
