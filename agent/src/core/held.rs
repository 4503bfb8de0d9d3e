//! Downloads that wait for their time: what is held back, and let go again.

use super::Core;
use super::effect::Effect;
use super::event::Millis;
use super::record::InstallState;
use super::window::{Conditions, Hold};

impl Core {
    /// The world changed, or was looked at again: downloads stop and go on with it.
    pub(super) fn on_conditions(&mut self, now: Millis, conditions: Conditions) {
        self.conditions = Some(conditions);
        self.weigh_measuring(now);
        let downloads = |(name, model): (&String, &super::DurableModel)| {
            let state = model.install.as_ref()?.state;
            let waits = self.live.get(name).is_none_or(|live| live.resume_pending);
            (state <= InstallState::Downloading && !waits).then(|| name.clone())
        };
        let models: Vec<String> = self.durable.models.iter().filter_map(downloads).collect();
        for model in &models {
            self.weigh_download(model);
        }
    }

    /// Whether a download must wait; remembers why.
    pub(super) fn holds_back(&mut self, model: &str) -> bool {
        let hold = self.settings.download.hold(self.conditions);
        self.live(model).install.held = hold;
        hold.is_some()
    }

    fn weigh_download(&mut self, model: &str) {
        let hold = self.settings.download.hold(self.conditions);
        let live = &self.live(model).install;
        let (before, retries) = (live.held, live.retry_at.is_some());
        if before == hold {
            return;
        }
        self.live(model).install.held = hold;
        match (before, hold) {
            // Between two attempts nothing moves, and the next one asks for itself.
            _ if retries => {}
            (None, Some(_)) => self.pause(model),
            (Some(_), None) => self.perform(model),
            _ => {}
        }
        self.report_model(model);
    }

    fn pause(&mut self, model: &str) {
        if let Some(install) = self.install(model).map(|own| own.id) {
            self.emit(Effect::Pause { model: model.to_owned(), install });
        }
    }

    /// Why an install that has begun does not move, if it does not.
    pub(super) fn waiting(&self, model: &str) -> Option<String> {
        let live = &self.live.get(model)?.install;
        let held = live.held.as_ref().map(Hold::to_string);
        held.or_else(|| {
            let failure = live.failure.as_ref().filter(|_| live.retry_at.is_some())?;
            Some(format!("will be tried again: {failure}"))
        })
    }
}
