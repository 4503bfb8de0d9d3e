//! What the core asks the world to do.
//!
//! The shell performs effects in the order they are given. Where an [`Effect::Journal`] fails, it
//! stops there, drops this core and recovers a new one from what the journal really holds, just as
//! after a crash: a core whose memory is ahead of its journal must not go on.

use wire::{
    Birth, BudgetBreach, CommandEvent, CommandResult, InferWindow, InstallEvent, InstallOutcome,
    ModelState, Offer, PowerWindow, RecompressRequest, ResourceWindow, RollbackEvent, SpoolDrop,
    StateReport, ThrottleEvent,
};

use super::event::InstallId;
use super::measure::MeasureOrder;
use super::record::{Installed, Record};

/// One thing to do.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Append to the journal and sync it, before anything that follows in the same list.
    Journal(Box<Record>),
    /// Replace `active.json`.
    WriteActive(Vec<ActiveEntry>),
    /// Make an installed bundle the serving one: switch to the standby worker if it holds that
    /// bundle, load it from the store otherwise, also when the worker that serves it is down. Answered
    /// by `Activated` or `ActivateFailed`.
    Activate {
        /// The model.
        model: String,
        /// The bundle in the store.
        digest: String,
    },
    /// Perform a step of an install. Answered by one `Step` event.
    Step {
        /// The model.
        model: String,
        /// Which install.
        install: InstallId,
        /// What to do.
        step: Step,
    },
    /// Stop the download of the install and keep what is there; another `Download` step goes on with it.
    Pause {
        /// The model.
        model: String,
        /// Which install.
        install: InstallId,
    },
    /// Stop whatever the install is doing and free its worker. Its staging files stay until
    /// `Collect`.
    Abandon {
        /// The model.
        model: String,
        /// Which install.
        install: InstallId,
    },
    /// Stop the worker of the model before the last switch.
    RetireStandby {
        /// The model.
        model: String,
    },
    /// Delete every stored and staged bundle but these.
    Collect {
        /// Digests to keep.
        keep: Vec<String>,
    },
    /// Measure a bundle off to the side. Answered by one `Measured` event.
    Measure(Box<MeasureOrder>),
    /// Stop measuring, and leave nothing of it. Not answered.
    CancelMeasure,
    /// Log as this says, or as the agent was started to where it says nothing.
    SetLogLevel(Option<String>),
    /// Tell the outside.
    Publish(Box<Report>),
    /// Finish the requests at hand and end.
    Drain,
}

/// A step of an install.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Fetch the bundle's files into the staging folder, resuming what is there.
    Download(Box<Offer>),
    /// Check the staged files against the digest and move them into the store.
    Verify {
        /// The bundle.
        digest: String,
    },
    /// Start a worker with the stored bundle.
    Load {
        /// The bundle.
        digest: String,
    },
    /// Run the bundle's golden inputs through the worker.
    SelfTest {
        /// The bundle.
        digest: String,
    },
    /// Mirror live requests to the worker.
    Shadow,
    /// Make it the serving worker, and keep the one before it standing by.
    Switch,
}

/// One line of `active.json`.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ActiveEntry {
    /// The model's name.
    pub model: String,
    /// The bundle that serves it.
    #[serde(flatten)]
    pub installed: Installed,
}

/// Something to tell the outside. Headers are blank: the shell stamps time, number and boot.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum Report {
    Birth(Birth),
    State(StateReport),
    Model(ModelState),
    Infer(InferWindow),
    Resources(ResourceWindow),
    Power(PowerWindow),
    Breach(BudgetBreach),
    Install(InstallEvent),
    Rollback(RollbackEvent),
    Throttle(ThrottleEvent),
    SpoolDrop(SpoolDrop),
    Command(CommandEvent),
    Recompress(RecompressRequest),
    Result(CommandResult),
}

impl Report {
    /// Whether it tells something that happened once, rather than how things stand or stood for a while.
    #[must_use]
    pub fn happened_once(&self) -> bool {
        match self {
            Self::Birth(_) | Self::State(_) | Self::Model(_) => false,
            Self::Infer(_) | Self::Resources(_) | Self::Power(_) => false,
            Self::Breach(_) | Self::Install(_) | Self::Rollback(_) | Self::Throttle(_) => true,
            Self::SpoolDrop(_) | Self::Recompress(_) | Self::Result(_) => true,
            Self::Command(_) => true,
        }
    }

    /// Whether it is kept when other events have to go: what an operator or a compressor acts on.
    #[must_use]
    pub fn is_urgent(&self) -> bool {
        match self {
            Self::Breach(_) | Self::Rollback(_) | Self::Recompress(_) | Self::Result(_) => true,
            Self::Install(_) => self.is_vouched_for(),
            Self::Birth(_) | Self::State(_) | Self::Model(_) => false,
            Self::Infer(_) | Self::Resources(_) | Self::Power(_) => false,
            Self::Throttle(_) | Self::SpoolDrop(_) | Self::Command(_) => false,
        }
    }

    /// Whether the journal says, once this is kept, that it was told.
    #[must_use]
    pub fn is_vouched_for(&self) -> bool {
        match self {
            Self::Install(event) => event.outcome != InstallOutcome::Progress,
            Self::Rollback(_) => true,
            _ => false,
        }
    }
}
