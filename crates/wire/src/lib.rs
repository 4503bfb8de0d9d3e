//! Messages in flight: topics, payloads, versions, JSON Schema.
//!
//! Everything a device and a compressor say to each other passes through the types of this crate.
//! Invariants:
//! - no IO and no clock: a time stamp is an argument;
//! - what comes from outside is checked before it becomes a type: size first, then the schema's
//!   name and version, then the JSON, then the values;
//! - unknown fields are accepted (a newer peer may say more), another schema version is an error;
//! - no NaN or infinity gets into JSON: they are written as `null`.

#![forbid(unsafe_code)]

pub mod asyncapi;
pub mod budget;
pub mod command;
pub mod drift;
pub mod histogram;
pub mod merge;
pub mod payload;
pub mod schema;
pub mod topic;
pub mod trial;

pub use budget::{BudgetKind, Budgets, Cause, Quality, Runtime, UnknownName, finite};
pub use command::{InputSource, LogLevelArgs, MeasureArgs, MeasureEnd, MeasureProfile, Priority};
pub use drift::{DriftFeature, DriftTest, Feature, MAX_DRIFT_FEATURES, Side, Statistic};
pub use histogram::{Histogram, HistogramError};
pub use merge::Window;
pub use payload::{
    Birth, BudgetBreach, Command, CommandEvent, CommandKind, CommandOutcome, CommandResult,
    Comparison, DeviceState, DropReason, Header, InferWindow, InstallEvent, InstallOutcome,
    MAX_PAYLOAD_BYTES, ModelPhase, ModelState, Offer, Payload, PayloadError, PowerWindow,
    RecompressRequest, ResourceWindow, RollbackEvent, SpoolDrop, StateReport, ThrottleEvent,
    decode, encode, try_encode,
};
pub use topic::{
    DEFAULT_ROOT, EventKind, MAX_NAME_BYTES, MAX_ROOT_BYTES, Stream, Topic, TopicError, Topics,
    check_name, events_filter, everything_filter, parse, requests_filter,
};
pub use trial::{MAX_TRIAL_METRICS, Metric, Reference, Trial, TrialMetric};
