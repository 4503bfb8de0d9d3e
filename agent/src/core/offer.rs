//! Accepting an offer, or saying why not.

use wire::{InstallEvent, InstallOutcome, ModelPhase, Offer};

use super::Core;
use super::effect::Report;
use super::event::Millis;
use super::record::{DurableModel, InstallState, MAX_BLOCKED, MAX_IDLE_MODELS, Record};
use super::report::blank;

/// What to do with an offer.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// Install it.
    Accept,
    /// It is installed or being installed already.
    Have,
    /// After the install that has already switched.
    Later,
    /// No, with the reason.
    Refuse(String),
}

impl Core {
    pub(super) fn on_offer(&mut self, now: Millis, offer: Offer) {
        if self.ending {
            return;
        }
        match self.answer(&offer) {
            Answer::Have => self.ask_sooner(now, &offer),
            Answer::Later => {
                let model = offer.model.clone();
                self.live(&model).next_offer = Some(offer);
            }
            Answer::Refuse(reason) => self.refuse(&offer, &reason),
            Answer::Accept => self.accept(now, offer),
        }
    }

    /// What has not switched yet is given up; what serves goes on.
    pub(super) fn on_withdrawn(&mut self, now: Millis, model: &str) {
        if let Some(live) = self.live.get_mut(model) {
            live.next_offer = None;
        }
        let state = self.install(model).map(|own| own.state);
        if state.is_some_and(|state| state < InstallState::Switching) {
            self.reject(now, model, "the offer was withdrawn", false);
        }
    }

    /// Takes up an offer that had to wait for the end of the install before it.
    pub(super) fn take_next_offer(&mut self, now: Millis, model: &str) {
        if let Some(offer) = self.live(model).next_offer.take() {
            self.on_offer(now, offer);
        }
    }

    fn answer(&self, offer: &Offer) -> Answer {
        if let Some(reason) = self.unfit(offer) {
            return Answer::Refuse(reason);
        }
        let Some(model) = self.durable.models.get(&offer.model) else {
            return Answer::Accept;
        };
        if let Some(install) = &model.install {
            return self.answer_during(offer, install);
        }
        let broken = self.live.get(&offer.model).is_some_and(|live| live.activation.broken);
        match &model.active {
            Some(active) if active.digest == offer.digest && !broken => Answer::Have,
            Some(active) if active.digest == offer.digest => Answer::Accept,
            Some(active) if offer.sequence <= active.sequence => Answer::Refuse(format!(
                "sequence {} is not newer than the active {}",
                offer.sequence, active.sequence
            )),
            _ => Answer::Accept,
        }
    }

    fn answer_during(&self, offer: &Offer, install: &super::record::DurableInstall) -> Answer {
        if offer.digest == install.offer.digest {
            return Answer::Have;
        }
        if offer.sequence <= install.offer.sequence {
            return Answer::Refuse(format!(
                "sequence {} is not newer than {}, which is being installed",
                offer.sequence, install.offer.sequence
            ));
        }
        if install.state < InstallState::Switching { Answer::Accept } else { Answer::Later }
    }

    /// Why this device cannot take the bundle, whatever it runs now.
    fn unfit(&self, offer: &Offer) -> Option<String> {
        let (birth, rules) = (&self.settings.birth, &self.settings.install);
        if offer.runtime != birth.runtime {
            let (theirs, ours) = (offer.runtime, birth.runtime);
            return Some(format!("made for runtime {theirs}, this device runs {ours}"));
        }
        if offer.device_class != "any" && offer.device_class != birth.device_class {
            let (theirs, ours) = (&offer.device_class, &birth.device_class);
            return Some(format!("made for device class {theirs}, this is a {ours}"));
        }
        if offer.size_bytes > rules.max_bundle_bytes {
            return Some(format!(
                "{} bytes are over the limit install.max_bundle_bytes of {}",
                offer.size_bytes, rules.max_bundle_bytes
            ));
        }
        self.unfit_here(offer)
    }

    fn unfit_here(&self, offer: &Offer) -> Option<String> {
        let limit = self.settings.install.max_models;
        let known = self.durable.models.get(&offer.model);
        if known.is_none_or(DurableModel::is_idle) && self.durable.in_use() >= limit {
            return Some(format!("the device has reached its limit install.max_models of {limit}"));
        }
        let model = known?;
        if model.blocked.contains(&offer.digest) {
            return Some("the digest failed or was taken back on this device before".into());
        }
        (model.blocked.len() >= MAX_BLOCKED)
            .then(|| format!("the block list has reached its limit MAX_BLOCKED of {MAX_BLOCKED}"))
    }

    fn accept(&mut self, now: Millis, offer: Offer) {
        let model = offer.model.clone();
        self.supersede(now, &model, offer.sequence);
        let install = self.durable.next_install;
        self.record(Record::Offered { model: model.clone(), install, offer: Box::new(offer) });
        self.forget_strays();
        let live = self.live(&model);
        live.install.since = now;
        live.resume_pending = false;
        self.advance(now, &model, InstallState::Downloading);
        self.perform(&model);
    }

    /// Models that were refused and left no trace in the journal leave none in memory either, once
    /// there are many of them.
    fn forget_strays(&mut self) {
        let known = &self.durable.models;
        let strays = self.live.keys().filter(|name| !known.contains_key(*name)).count();
        if strays > MAX_IDLE_MODELS {
            self.live.retain(|name, _| known.contains_key(name));
        }
    }

    fn supersede(&mut self, now: Millis, model: &str, sequence: u64) {
        if self.install(model).is_some() {
            let reason = format!("superseded by sequence {sequence}");
            self.reject(now, model, &reason, false);
        }
    }

    fn refuse(&mut self, offer: &Offer, reason: &str) {
        if !self.live_if_known(&offer.model, &offer.digest, reason) {
            return;
        }
        self.publish(Report::Install(InstallEvent {
            header: blank::<InstallEvent>(),
            model: offer.model.clone(),
            digest: offer.digest.clone(),
            phase: ModelPhase::Rejected,
            outcome: InstallOutcome::Rejected,
            reason: Some(reason.to_owned()),
            from_digest: None,
            elapsed_ms: 0,
            comparison: None,
            blocked: self.is_blocked(&offer.model, &offer.digest),
        }));
    }

    /// Whether a refusal is to be told: once per digest and reason. Models the device does not know
    /// leave no trace, or any name on the broker would take memory.
    fn live_if_known(&mut self, model: &str, digest: &str, reason: &str) -> bool {
        self.live.get_mut(model).is_none_or(|live| live.refuse(digest, reason))
    }
}
