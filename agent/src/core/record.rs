//! What survives the agent: journal records, and the durable state they add up to.
//!
//! [`Durable::apply`] is the only function that changes durable state. The running core calls it and
//! emits the record; recovery calls it on what the journal holds. The two can therefore not disagree.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use wire::{BudgetKind, Budgets, Offer, RecompressRequest};

use super::ending::End;
use super::event::InstallId;

/// How many digests a device remembers as never to be installed again, per model.
pub(super) const MAX_BLOCKED: usize = 4096;
/// How many models without a bundle are remembered for what they are blocked or budgeted for. The
/// one that was installed longest ago is forgotten first, those with budgets last.
pub(super) const MAX_IDLE_MODELS: usize = 64;

/// Where an install stands. The diagram in `docs/agent.md` shows the ways between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InstallState {
    /// Accepted; nothing done yet.
    Offered,
    /// Files are being fetched.
    Downloading,
    /// Digests and manifest are being checked.
    Verifying,
    /// A worker is loading it.
    Loading,
    /// Golden inputs run through it.
    SelfTest,
    /// Live requests are mirrored to it.
    Shadow,
    /// It is becoming the serving model.
    Switching,
    /// It serves, and is being watched; the model before it stands by.
    Probation,
    /// It stays.
    Committed,
    /// It served and was taken back; its digest is blocked.
    RolledBack,
    /// It never served.
    Rejected,
}

impl InstallState {
    /// Whether the install is over.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Committed | Self::RolledBack | Self::Rejected)
    }
}

/// A bundle in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Installed {
    /// The bundle's digest.
    pub digest: String,
    /// The human version.
    pub version: String,
    /// The order of versions.
    pub sequence: u64,
    /// Bytes of all its files.
    pub size_bytes: u64,
}

/// How the model before the switch did, to hold the new one against.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Baseline {
    /// p95 in the engine over the last windows.
    pub p95_us: Option<u64>,
    /// Share of requests that failed, 0 to 1.
    pub error_rate: f64,
    /// Requests compared while shadowing.
    pub shadow_requests: u64,
    /// Their agreement.
    pub agreement: Option<f64>,
    /// The serving model's p95 while shadowing.
    pub shadow_before_p95_us: Option<u64>,
    /// The candidate's p95 while shadowing.
    pub shadow_after_p95_us: Option<u64>,
}

/// One entry of the journal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Record {
    /// Everything so far, written when the journal is compacted.
    Snapshot {
        /// The state at that point.
        durable: Box<Durable>,
    },
    /// An offer was accepted.
    Offered {
        /// The model.
        model: String,
        /// The new install.
        install: InstallId,
        /// The offer.
        offer: Box<Offer>,
    },
    /// An install moved on.
    Install {
        /// The model.
        model: String,
        /// Which install.
        install: InstallId,
        /// Where it stands now.
        state: InstallState,
        /// Why, where there is a why.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
        /// Whether its digest must never be tried again.
        #[serde(default)]
        block: bool,
        /// The size on disk, once known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        size_bytes: Option<u64>,
        /// The model before it, from `probation` on.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        baseline: Option<Baseline>,
    },
    /// The install starts over from its stored or staged files after the agent stopped.
    Resumed {
        /// The model.
        model: String,
        /// Which install.
        install: InstallId,
        /// Where it starts over.
        state: InstallState,
    },
    /// A committed model was taken back.
    Reverted {
        /// The model.
        model: String,
        /// The bundle taken back.
        from: String,
        /// Why.
        reason: String,
        /// Whether it must never be tried again.
        #[serde(default = "blocked")]
        block: bool,
    },
    /// A re-compression was asked for.
    Requested {
        /// The model.
        model: String,
        /// The broken budget.
        budget: BudgetKind,
        /// Its number on the wire.
        request_id: String,
        /// The bundle it complains about.
        digest: String,
        /// All of it, to be said again after a restart.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        request: Option<Box<RecompressRequest>>,
    },
    /// The request is answered, void or given up.
    RequestClosed {
        /// The model.
        model: String,
        /// The budget.
        budget: BudgetKind,
        /// Why.
        reason: String,
    },
    /// Ends of installs reached the spool. The first one stands before any end of a version that writes it.
    Told {
        /// The number of the last of them.
        through: u64,
    },
    /// A command set a model's budgets.
    BudgetsSet {
        /// The model.
        model: String,
        /// The budgets that hold from now on; those of the configuration where there are none.
        budgets: Option<Budgets>,
    },
}

/// What a record means that does not say whether it blocks.
fn blocked() -> bool {
    true
}

/// Everything the journal adds up to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Durable {
    /// One entry per model with something to remember.
    pub models: BTreeMap<String, DurableModel>,
    /// The number of the next install.
    pub next_install: InstallId,
    /// The number of the next request.
    pub next_request: u64,
    /// Ends that may not have been told yet, the oldest first.
    #[serde(default)]
    pub untold: Vec<End>,
    /// The number of the last end.
    #[serde(default)]
    pub last_end: u64,
    /// Whether it is recorded which ends were told. Agents of earlier versions did not, and told each as it came.
    #[serde(default)]
    pub tells: bool,
}

/// The durable part of one model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DurableModel {
    /// The bundle that serves, or must serve after a restart.
    pub active: Option<Installed>,
    /// The one before it, kept in the store to go back to.
    pub previous: Option<Installed>,
    /// The install under way.
    pub install: Option<DurableInstall>,
    /// Digests never to be tried again.
    pub blocked: BTreeSet<String>,
    /// Open requests by budget.
    pub requests: BTreeMap<String, OpenRequest>,
    /// Budgets set by command; they win over the configuration.
    pub budgets: Option<Budgets>,
    /// The number of the last install.
    #[serde(default)]
    pub last_install: InstallId,
}

/// The durable part of one install.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DurableInstall {
    /// Its number.
    pub id: InstallId,
    /// What was offered.
    pub offer: Offer,
    /// Where it stands.
    pub state: InstallState,
    /// How often the agent started over with it.
    pub restarts: u32,
    /// Bytes on disk, once known.
    pub size_bytes: u64,
    /// The model before it, from `probation` on.
    pub baseline: Option<Baseline>,
}

/// A request nobody has answered yet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OpenRequest {
    /// Its number on the wire.
    pub request_id: String,
    /// The bundle it complains about.
    pub digest: String,
    /// All of it; journals of earlier versions do not have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<Box<RecompressRequest>>,
}

impl Durable {
    /// Adds one record. A record about an install that is not under way changes nothing.
    pub fn apply(&mut self, record: &Record) {
        self.note_end(record);
        match record {
            Record::Snapshot { durable } => {
                *self = (**durable).clone();
                // Numbers of ends came together with the record of those that were told.
                self.tells |= self.last_end > 0;
            }
            Record::Told { through } => {
                self.tells = true;
                self.untold.retain(|end| end.number > *through);
            }
            Record::Offered { model, install, offer } => self.apply_offered(model, *install, offer),
            Record::Install { model, .. }
            | Record::Resumed { model, .. }
            | Record::Reverted { model, .. }
            | Record::RequestClosed { model, .. } => {
                if let Some(entry) = self.models.get_mut(model) {
                    entry.apply(record);
                    if entry.is_blank() {
                        self.models.remove(model);
                    }
                }
            }
            Record::Requested { model, .. } => {
                self.next_request += 1;
                self.models.entry(model.clone()).or_default().apply(record);
            }
            Record::BudgetsSet { model, .. } => {
                self.models.entry(model.clone()).or_default().apply(record);
            }
        }
        self.forget_idle();
    }

    /// How many models have a bundle here, or one on its way in.
    #[must_use]
    pub fn in_use(&self) -> usize {
        self.models.values().filter(|model| !model.is_idle()).count()
    }

    fn forget_idle(&mut self) {
        let idle = || self.models.iter().filter(|(_, model)| model.is_idle());
        if idle().count() <= MAX_IDLE_MODELS {
            return;
        }
        let oldest = idle().min_by_key(|(_, model)| (model.budgets.is_some(), model.last_install));
        if let Some(name) = oldest.map(|(name, _)| name.clone()) {
            self.models.remove(&name);
        }
    }

    /// What `active.json` holds: one entry per model that has a bundle to serve.
    #[must_use]
    pub fn active(&self) -> Vec<super::effect::ActiveEntry> {
        let entry = |(model, durable): (&String, &DurableModel)| {
            let installed = durable.active.clone()?;
            let model = model.clone();
            Some(super::effect::ActiveEntry { model, installed })
        };
        self.models.iter().filter_map(entry).collect()
    }

    /// The digests whose files must stay: serving, to go back to, and on the way in.
    #[must_use]
    pub fn referenced(&self) -> BTreeSet<String> {
        let of = |model: &DurableModel| {
            let installed = [&model.active, &model.previous];
            let mut digests: Vec<String> =
                installed.into_iter().flatten().map(|i| i.digest.clone()).collect();
            digests.extend(model.install.as_ref().map(|i| i.offer.digest.clone()));
            digests
        };
        self.models.values().flat_map(of).collect()
    }

    fn apply_offered(&mut self, model: &str, install: InstallId, offer: &Offer) {
        self.next_install = self.next_install.max(install.saturating_add(1));
        let entry = self.models.entry(model.to_owned()).or_default();
        entry.last_install = install;
        entry.install = Some(DurableInstall {
            id: install,
            offer: offer.clone(),
            state: InstallState::Offered,
            restarts: 0,
            size_bytes: offer.size_bytes,
            baseline: None,
        });
    }
}

impl DurableModel {
    /// Whether it has no bundle here, nor one on its way in.
    pub(super) fn is_idle(&self) -> bool {
        self.active.is_none() && self.previous.is_none() && self.install.is_none()
    }

    /// Whether there is nothing to remember of it.
    fn is_blank(&self) -> bool {
        let told = self.blocked.is_empty() && self.requests.is_empty() && self.budgets.is_none();
        self.is_idle() && told
    }

    fn apply(&mut self, record: &Record) {
        match record {
            Record::Install { .. } => self.apply_install(record),
            Record::Resumed { install, state, .. } => {
                if let Some(own) = self.install.as_mut().filter(|own| own.id == *install) {
                    own.state = *state;
                    own.restarts = own.restarts.saturating_add(1);
                }
            }
            Record::Reverted { from, block, .. } => {
                if *block {
                    self.blocked.insert(from.clone());
                }
                if self.active.as_ref().is_some_and(|a| a.digest == *from) {
                    self.active = self.previous.take();
                }
            }
            Record::Requested { budget, request_id, digest, request, .. } => {
                let open = OpenRequest {
                    request_id: request_id.clone(),
                    digest: digest.clone(),
                    request: request.clone(),
                };
                self.requests.insert(budget.to_string(), open);
            }
            Record::RequestClosed { budget, .. } => {
                self.requests.remove(budget.as_str());
            }
            Record::BudgetsSet { budgets, .. } => self.budgets.clone_from(budgets),
            Record::Snapshot { .. } | Record::Offered { .. } | Record::Told { .. } => {}
        }
    }

    fn apply_install(&mut self, record: &Record) {
        let Record::Install { install, state, block, size_bytes, baseline, .. } = record else {
            return;
        };
        let Some(own) = self.install.as_mut().filter(|own| own.id == *install) else {
            return;
        };
        own.state = *state;
        own.size_bytes = size_bytes.unwrap_or(own.size_bytes);
        own.baseline = baseline.or(own.baseline);
        if *block {
            self.blocked.insert(own.offer.digest.clone());
        }
        match state {
            InstallState::Probation => self.put_in_charge(),
            InstallState::RolledBack => {
                self.active = self.previous.take().or(self.active.take());
                self.install = None;
            }
            InstallState::Committed | InstallState::Rejected => self.install = None,
            _ => {}
        }
    }

    /// The installing bundle becomes the active one, and what it replaces the one to go back to.
    fn put_in_charge(&mut self) {
        let Some(own) = &self.install else { return };
        let new = Installed {
            digest: own.offer.digest.clone(),
            version: own.offer.version.clone(),
            sequence: own.offer.sequence,
            size_bytes: own.size_bytes,
        };
        let old = self.active.replace(new);
        if old.as_ref().is_some_and(|old| old.digest != own.offer.digest) {
            self.previous = old;
        }
    }
}
