//! Ends of installs that the outside may not have heard of.
//!
//! An end is journalled first and told afterwards. So that a crash between the two loses no event,
//! the record of an end puts it among the untold ones, and only [`Record::Told`], which follows its
//! events into the journal, takes it out again. What is left there after a start is told again:
//! an end may be told twice, and is told at least once.

use serde::{Deserialize, Serialize};
use wire::{Comparison, InstallEvent, InstallOutcome, RollbackEvent};

use super::effect::Report;
use super::record::{Baseline, Durable, DurableModel, InstallState, Record};
use super::report::blank;
use super::{Core, judge};

/// How many untold ends are kept; the oldest is forgotten first. Each is told within the step that
/// brings it about, so that more than a few mean a device that crashed as often in a row.
const MAX_UNTOLD: usize = 16;

/// How an install ended, or a committed bundle was taken back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct End {
    /// Its number, rising.
    pub number: u64,
    /// The model.
    pub model: String,
    /// The bundle that was installed or taken back.
    pub digest: String,
    /// `committed`, `rolled_back` or `rejected`.
    pub state: InstallState,
    /// Why, where there is a why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The bundle before it; after a rollback the one that serves again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
    /// Whether the digest is never installed again.
    #[serde(default)]
    pub blocked: bool,
    /// The model before it, where it was held against one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baseline: Option<Baseline>,
}

impl End {
    /// The end that a record brings about in a model that is still as it was before.
    fn of(record: &Record, model: &DurableModel) -> Option<Self> {
        let digest_of = |installed: &Option<super::Installed>| {
            installed.as_ref().map(|installed| installed.digest.clone())
        };
        let (active, previous) = (digest_of(&model.active), digest_of(&model.previous));
        let end = |name: &str, digest: &str, state, reason: &Option<String>, block: bool| Self {
            number: 0,
            model: name.to_owned(),
            digest: digest.to_owned(),
            state,
            reason: reason.clone(),
            before: None,
            blocked: block || model.blocked.contains(digest),
            baseline: None,
        };
        match record {
            Record::Install { model: name, install, state, reason, block, .. } => {
                let own = model.install.as_ref().filter(|own| own.id == *install)?;
                let before = match state {
                    InstallState::Committed => previous,
                    InstallState::RolledBack => previous.or(active),
                    InstallState::Rejected => active,
                    _ => return None,
                };
                let end = end(name, &own.offer.digest, *state, reason, *block);
                Some(Self { before, baseline: own.baseline, ..end })
            }
            Record::Reverted { model: name, from, reason, block } => {
                let taken_back = active.as_ref() == Some(from);
                let before = if taken_back { previous } else { active };
                let reason = Some(reason.clone());
                Some(Self { before, ..end(name, from, InstallState::RolledBack, &reason, *block) })
            }
            _ => None,
        }
    }

    fn outcome(&self) -> InstallOutcome {
        super::report::outcome(self.state)
    }
}

impl Durable {
    /// Puts the end that `record` brings about, if it is one, among the untold ones. Called before
    /// the record changes anything else.
    pub(super) fn note_end(&mut self, record: &Record) {
        let (Record::Install { model, .. } | Record::Reverted { model, .. }) = record else {
            return;
        };
        let Some(end) = self.models.get(model).and_then(|model| End::of(record, model)) else {
            return;
        };
        self.last_end += 1;
        self.untold.push(End { number: self.last_end, ..end });
        if self.untold.len() > MAX_UNTOLD {
            self.untold.remove(0);
        }
    }
}

impl Core {
    /// Tells the end that was recorded last, and records that it was told.
    pub(super) fn tell_end(&mut self, elapsed_ms: u64, comparison: Option<Comparison>) {
        let Some(end) = self.durable.untold.last().cloned() else {
            return;
        };
        self.publish_end(&end, elapsed_ms, comparison);
        self.record(Record::Told { through: end.number });
    }

    /// At the first start of a version that records what was told: the ends in the journal of one before count as told.
    pub(super) fn begin_telling(&mut self) {
        if !self.durable.tells {
            self.record(Record::Told { through: self.durable.last_end });
        }
    }

    /// After a start: tells what may not have been told before it. How long the installs took is no
    /// longer known.
    pub(super) fn tell_ends_again(&mut self) {
        for end in self.durable.untold.clone() {
            let comparison = judge::comparison(end.baseline.as_ref());
            self.publish_end(&end, 0, comparison);
            self.record(Record::Told { through: end.number });
        }
    }

    /// The event of an end, and ahead of it, where a bundle that served was taken back, that in an
    /// event of its own.
    fn publish_end(&mut self, end: &End, elapsed_ms: u64, comparison: Option<Comparison>) {
        if end.state == InstallState::RolledBack {
            self.publish(Report::Rollback(RollbackEvent {
                header: blank::<RollbackEvent>(),
                model: end.model.clone(),
                from_digest: end.digest.clone(),
                to_digest: end.before.clone(),
                reason: end.reason.clone().unwrap_or_default(),
                blocked: end.blocked,
            }));
        }
        self.publish(Report::Install(InstallEvent {
            header: blank::<InstallEvent>(),
            model: end.model.clone(),
            digest: end.digest.clone(),
            phase: end.state.phase(),
            outcome: end.outcome(),
            reason: end.reason.clone(),
            from_digest: end.before.clone(),
            elapsed_ms,
            comparison,
            blocked: end.blocked,
        }));
    }
}
