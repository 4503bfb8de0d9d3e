//! What a message says: one flat JSON object per payload, numbers with a unit in their name.

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::budget::{BudgetKind, Budgets, Cause, Quality, Runtime, number, vocabulary};
use crate::drift::DriftTest;
use crate::histogram::Histogram;
use crate::topic::{TopicError, check_name};
use crate::trial::Trial;

/// Largest payload that is read or written, bytes.
pub const MAX_PAYLOAD_BYTES: usize = 256 * 1024;

/// What every payload starts with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Header {
    /// Name and version, such as `espalier.birth.v1`.
    pub schema: String,
    /// Unix time, milliseconds; 0 when the sender has no clock.
    pub ts: u64,
    /// Rises by one with every message of a boot.
    pub seq: u64,
    /// Changes with every start of the sender.
    pub boot_id: String,
}

impl Header {
    /// The header of a `P`.
    #[must_use]
    pub fn of<P: Payload>(ts: u64, seq: u64, boot_id: &str) -> Self {
        Self { schema: P::SCHEMA.to_owned(), ts, seq, boot_id: boot_id.to_owned() }
    }
}

/// A type that is sent as a message.
pub trait Payload: Serialize + DeserializeOwned + JsonSchema {
    /// Name and version, such as `espalier.birth.v1`.
    const SCHEMA: &'static str;
    /// The topic below the device, with placeholders, such as `up/model/{name}`.
    const TOPIC: &'static str;
    /// Whether the broker keeps the last one.
    const RETAINED: bool;

    /// The header.
    fn header(&self) -> &Header;

    /// Checks what the JSON types do not say, such as names and shares.
    fn check(&self) -> Result<(), PayloadError> {
        Ok(())
    }
}

/// Why a payload was refused.
#[derive(Debug, thiserror::Error)]
pub enum PayloadError {
    /// Larger than [`MAX_PAYLOAD_BYTES`].
    #[error(
        "payload of {bytes} bytes is over the limit of {MAX_PAYLOAD_BYTES} (MAX_PAYLOAD_BYTES)"
    )]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// Not JSON, or not of the type.
    #[error("payload is no {schema}: {source}")]
    Json {
        /// The schema wanted.
        schema: &'static str,
        /// What and where.
        source: serde_json::Error,
    },
    /// Another schema altogether.
    #[error("payload has schema {got:?}, wanted {wanted}")]
    Schema {
        /// The schema wanted.
        wanted: &'static str,
        /// The schema found, shortened.
        got: String,
    },
    /// The right schema in a version that this program does not speak.
    #[error(
        "payload has schema version {got:?}, this program speaks {wanted}: update the older side"
    )]
    Version {
        /// The schema wanted.
        wanted: &'static str,
        /// The schema found, shortened.
        got: String,
    },
    /// A field's value is not possible.
    #[error("payload field {field}: {why}")]
    Field {
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        why: String,
    },
}

vocabulary! {
    /// Whether a device can be reached.
    DeviceState {
        /// Serving and connected.
        Online = "online",
        /// Gone; also the last will.
        Offline = "offline",
        /// Connected, with something wrong.
        Degraded = "degraded",
    }
}

vocabulary! {
    /// Where a model is in its life on a device.
    ModelPhase {
        /// There is no model.
        None = "none",
        /// A worker is loading it.
        Loading = "loading",
        /// It answers requests.
        Serving = "serving",
        /// A bundle is on its way.
        Downloading = "downloading",
        /// Names, sizes and digests are being checked.
        Verifying = "verifying",
        /// Golden inputs are being run.
        SelfTest = "self_test",
        /// It sees live traffic beside the model in charge.
        Shadow = "shadow",
        /// It is in charge and may still be rolled back.
        Probation = "probation",
        /// It is in charge.
        Committed = "committed",
        /// It was in charge and is not any more.
        RolledBack = "rolled_back",
        /// It never got in charge.
        Rejected = "rejected",
    }
}

vocabulary! {
    /// Why a message was given up before the broker had it.
    DropReason {
        /// The spool was full, and its windows could not be merged any further.
        Full = "full",
        /// It was older than `spool.max_age_s`.
        Age = "age",
        /// It was larger than a message may be.
        TooLarge = "too_large",
        /// The broker refuses its topic or its format.
        Refused = "refused",
        /// The disk gave back something else than what was written.
        Damaged = "damaged",
    }
}

vocabulary! {
    /// How an install stands.
    InstallOutcome {
        /// Under way.
        Progress = "progress",
        /// The new model stays.
        Committed = "committed",
        /// The new model never served.
        Rejected = "rejected",
        /// The new model served and was taken back.
        RolledBack = "rolled_back",
    }
}

vocabulary! {
    /// One-shot commands to a device.
    CommandKind {
        /// Measure a bundle off to the side.
        Measure = "measure",
        /// Go back to the previous model.
        Rollback = "rollback",
        /// Change a budget.
        SetBudget = "set_budget",
        /// Send the state of everything.
        Snapshot = "snapshot",
        /// Log more, or less, for a while.
        LogLevel = "log_level",
        /// Answer.
        Ping = "ping",
    }
}

vocabulary! {
    /// What became of a command.
    CommandOutcome {
        /// It was begun; its result follows.
        Accepted = "accepted",
        /// It was done.
        Done = "done",
        /// It was not begun.
        Refused = "refused",
        /// It was begun and came to nothing.
        Failed = "failed",
    }
}

/// Identity and capabilities of a device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Birth {
    /// Schema, time, sequence.
    #[serde(flatten)]
    pub header: Header,
    /// The device.
    pub device: String,
    /// Devices of one class can share a bundle.
    pub device_class: String,
    /// Version of the agent.
    pub agent_version: String,
    /// CPU architecture, as Rust names it.
    pub arch: String,
    /// The engine in use.
    pub runtime: Runtime,
    /// Its version.
    pub engine_version: String,
    /// CPUs the agent may use.
    pub cpus: u32,
    /// Memory of the device.
    pub memory_bytes: u64,
    /// Where power figures came from when the agent started; every figure names its own source.
    pub power_source: String,
    /// Whether they were measured.
    pub power_quality: Quality,
    /// Whether the device is emulated.
    pub emulated: bool,
}

/// Online, offline, degraded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StateReport {
    /// Schema, time, sequence.
    #[serde(flatten)]
    pub header: Header,
    /// The state.
    pub state: DeviceState,
    /// Why, when it is not online.
    #[serde(default)]
    pub reason: Option<String>,
    /// What is logged, while a command has changed it.
    #[serde(default)]
    pub log_level: Option<String>,
}

/// The actual model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ModelState {
    /// Schema, time, sequence.
    #[serde(flatten)]
    pub header: Header,
    /// The model's name.
    pub model: String,
    /// Digest of its bundle, `sha256:<hex>`.
    #[serde(default)]
    pub digest: Option<String>,
    /// Version of its bundle.
    #[serde(default)]
    pub version: Option<String>,
    /// Sequence number of its bundle.
    #[serde(default)]
    pub sequence: Option<u64>,
    /// Where it is in its life.
    pub phase: ModelPhase,
    /// Why, when that is not obvious.
    #[serde(default)]
    pub reason: Option<String>,
    /// Size of its bundle.
    #[serde(default)]
    pub size_bytes: Option<u64>,
}

/// One window of a model's requests.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct InferWindow {
    /// Schema, time, sequence.
    #[serde(flatten)]
    pub header: Header,
    /// The model's name.
    pub model: String,
    /// Digest of its bundle.
    pub digest: String,
    /// Length of the window, milliseconds.
    pub window_ms: u64,
    /// How many windows this one was merged from, where a device was away for so long that its spool became coarser; else 1.
    #[serde(default = "one")]
    pub windows: u64,
    /// Requests that were accepted and have ended, with an answer or without.
    pub requests: u64,
    /// Of these, without an answer and by no fault of the client: the model or its worker failed, or the
    /// answer would have come too late.
    pub errors: u64,
    /// Requests turned away because the queue was full; they are not among `requests`.
    pub rejected: u64,
    /// Median compute time.
    #[serde(default)]
    pub p50_us: Option<u64>,
    /// 90th percentile of the compute time.
    #[serde(default)]
    pub p90_us: Option<u64>,
    /// 95th percentile of the compute time.
    #[serde(default)]
    pub p95_us: Option<u64>,
    /// 99th percentile of the compute time.
    #[serde(default)]
    pub p99_us: Option<u64>,
    /// Longest compute time.
    #[serde(default)]
    pub max_us: Option<u64>,
    /// Mean compute time.
    #[serde(default)]
    pub mean_us: Option<f64>,
    /// 95th percentile of the time in the queue; of merged windows the highest, which that of all requests is not above.
    #[serde(default)]
    pub queue_p95_us: Option<u64>,
    /// How long the threads of the model's workers could have run and waited for a CPU, together.
    #[serde(default)]
    pub wait_us: Option<u64>,
    /// Times that its workers waited for a page from the storage.
    #[serde(default)]
    pub major_faults: Option<u64>,
    /// Proportional set size of its workers.
    #[serde(default)]
    pub pss_bytes: Option<u64>,
    /// Memory of the worker's control group, file pages included; this and the following only where it
    /// has a group of its own.
    #[serde(default)]
    pub group_memory_bytes: Option<u64>,
    /// The most that was, since the worker was started.
    #[serde(default)]
    pub group_memory_peak_bytes: Option<u64>,
    /// How often the group was slowed down at its soft bound, since the worker was started.
    #[serde(default)]
    pub group_memory_high_events: Option<u64>,
    /// How often it reached its hard bound, since the worker was started.
    #[serde(default)]
    pub group_memory_max_events: Option<u64>,
    /// Workers of the bundle that the kernel killed for want of memory.
    #[serde(default)]
    pub group_oom_kills: Option<u64>,
    /// All compute times.
    pub compute: Histogram,
    /// All times in the queue.
    #[serde(default)]
    pub queue: Histogram,
    /// How far requests are from what the model was judged on, when a test of that ended in the window; of merged
    /// windows the last test.
    #[serde(default)]
    pub drift: Option<DriftTest>,
}

/// One window of the device's resources. Of merged windows: percentages and load are means by length, memory in use and
/// temperature the highest, memory available and frequency the lowest, pages and bytes written sums.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ResourceWindow {
    /// Schema, time, sequence.
    #[serde(flatten)]
    pub header: Header,
    /// Length of the window, milliseconds.
    pub window_ms: u64,
    /// How many windows this one was merged from, where a device was away for so long that its spool became coarser; else 1.
    #[serde(default = "one")]
    pub windows: u64,
    /// Proportional set size of the agent.
    #[serde(default)]
    pub agent_pss_bytes: Option<u64>,
    /// Proportional set size of all workers.
    #[serde(default)]
    pub workers_pss_bytes: Option<u64>,
    /// Memory of the device.
    pub memory_total_bytes: u64,
    /// Memory that could be had.
    pub memory_available_bytes: u64,
    /// Pages read back from swap in the window.
    #[serde(default)]
    pub swap_in_pages: Option<u64>,
    /// Times that any process waited for a page from the storage, in the window.
    #[serde(default)]
    pub major_faults: Option<u64>,
    /// CPU in use, percent of all CPUs.
    #[serde(default)]
    pub cpu_percent: Option<f64>,
    /// Of that, what neither the agent nor its workers used.
    #[serde(default)]
    pub others_percent: Option<f64>,
    /// CPU time taken by the hypervisor, percent.
    #[serde(default)]
    pub steal_percent: Option<f64>,
    /// Load average over one minute.
    #[serde(default)]
    pub load1: Option<f64>,
    /// Hottest zone, thousandths of a degree Celsius.
    #[serde(default)]
    pub temperature_mc: Option<i64>,
    /// Current frequency of the fastest CPU, kHz.
    #[serde(default)]
    pub freq_khz: Option<u64>,
    /// Whether the CPU was throttled in the window.
    pub throttled: bool,
    /// Share of the window in which something waited for a CPU, percent: pressure stall information, as
    /// all shares that follow; absent where the kernel has none.
    #[serde(default)]
    pub cpu_pressure_percent: Option<f64>,
    /// Something waited for memory.
    #[serde(default)]
    pub memory_pressure_percent: Option<f64>,
    /// Everything that was not idle waited for memory.
    #[serde(default)]
    pub memory_stall_percent: Option<f64>,
    /// Something waited for storage.
    #[serde(default)]
    pub io_pressure_percent: Option<f64>,
    /// Everything that was not idle waited for storage.
    #[serde(default)]
    pub io_stall_percent: Option<f64>,
    /// The agent or a worker waited for a CPU: pressure of the service's control group, as the following.
    #[serde(default)]
    pub group_cpu_pressure_percent: Option<f64>,
    /// The agent or a worker waited for memory.
    #[serde(default)]
    pub group_memory_pressure_percent: Option<f64>,
    /// The agent or a worker waited for storage.
    #[serde(default)]
    pub group_io_pressure_percent: Option<f64>,
    /// Memory of the service's control group: the agent's, its workers' and their file pages.
    #[serde(default)]
    pub group_memory_bytes: Option<u64>,
    /// The most that was.
    #[serde(default)]
    pub group_memory_peak_bytes: Option<u64>,
    /// How often the group was slowed down at its soft bound.
    #[serde(default)]
    pub group_memory_high_events: Option<u64>,
    /// How often it reached its hard bound.
    #[serde(default)]
    pub group_memory_max_events: Option<u64>,
    /// Processes of it that the kernel killed for want of memory.
    #[serde(default)]
    pub group_oom_kills: Option<u64>,
    /// Bytes that the agent gave to the disk in the window, as the kernel counts them (`write_bytes`).
    #[serde(default)]
    pub disk_written_bytes: Option<u64>,
    /// The same in the last 24 hours, or since the agent's start where that is less.
    #[serde(default)]
    pub disk_written_day_bytes: Option<u64>,
}

/// One window of power. Of merged windows: means by length.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PowerWindow {
    /// Schema, time, sequence.
    #[serde(flatten)]
    pub header: Header,
    /// Length of the window, milliseconds.
    pub window_ms: u64,
    /// How many windows this one was merged from, where a device was away for so long that its spool became coarser; else 1.
    #[serde(default = "one")]
    pub windows: u64,
    /// Where the figures come from.
    pub source: String,
    /// Whether they are measured.
    pub quality: Quality,
    /// Mean power.
    #[serde(default)]
    pub power_mw: Option<f64>,
    /// Standard error of a modelled power; absent where it is unknown, and for gauges, which do not tell
    /// their tolerance.
    #[serde(default)]
    pub power_error_mw: Option<f64>,
    /// Energy that one more inference costs.
    #[serde(default)]
    pub energy_per_inference_mj: Option<f64>,
    /// Its standard error; absent where it is unknown, and then no budget is held against it.
    #[serde(default)]
    pub energy_error_mj: Option<f64>,
    /// The model it was spent on, when it was only one.
    #[serde(default)]
    pub model: Option<String>,
}

/// A budget was broken.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct BudgetBreach {
    /// Schema, time, sequence.
    #[serde(flatten)]
    pub header: Header,
    /// The model's name.
    pub model: String,
    /// Digest of its bundle.
    pub digest: String,
    /// Which budget.
    pub budget: BudgetKind,
    /// What it is attributed to.
    pub cause: Cause,
    /// The budget, in its unit.
    #[serde(with = "number")]
    #[schemars(with = "Option<f64>")]
    pub limit: f64,
    /// What was observed, in the same unit.
    #[serde(with = "number")]
    #[schemars(with = "Option<f64>")]
    pub observed: f64,
    /// Windows over the budget.
    pub windows_over: u32,
    /// Windows looked at.
    pub windows_seen: u32,
    /// Whether another model was asked for.
    pub recompress: bool,
    /// The last test behind it, for drift.
    #[serde(default)]
    pub drift: Option<DriftTest>,
}

/// An install made progress or ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct InstallEvent {
    /// Schema, time, sequence.
    #[serde(flatten)]
    pub header: Header,
    /// The model's name.
    pub model: String,
    /// Digest of the new bundle.
    pub digest: String,
    /// The phase it reached.
    pub phase: ModelPhase,
    /// How it stands.
    pub outcome: InstallOutcome,
    /// Why.
    #[serde(default)]
    pub reason: Option<String>,
    /// Digest of the bundle it replaces.
    #[serde(default)]
    pub from_digest: Option<String>,
    /// Time since the offer.
    pub elapsed_ms: u64,
    /// Old and new model on the same traffic.
    #[serde(default)]
    pub comparison: Option<Comparison>,
    /// Whether the device will never take this digest again: it failed there or was taken back.
    #[serde(default)]
    pub blocked: bool,
    /// What its probation found, when that is over.
    #[serde(default)]
    pub trial: Option<Trial>,
}

/// Old and new model on the same traffic.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Comparison {
    /// Requests that both answered.
    pub shadow_requests: u64,
    /// Share of equal answers, 0 to 1.
    #[serde(with = "number")]
    #[schemars(with = "Option<f64>")]
    pub agreement: f64,
    /// 95th percentile of the old model's compute time.
    #[serde(default)]
    pub before_p95_us: Option<u64>,
    /// 95th percentile of the new model's compute time.
    #[serde(default)]
    pub after_p95_us: Option<u64>,
}

/// A model that served was taken back, on probation or later.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RollbackEvent {
    /// Schema, time, sequence.
    #[serde(flatten)]
    pub header: Header,
    /// The model's name.
    pub model: String,
    /// Digest of the bundle that was taken back.
    pub from_digest: String,
    /// Digest of the bundle that takes its place.
    #[serde(default)]
    pub to_digest: Option<String>,
    /// Why.
    pub reason: String,
    /// Whether the digest is never installed on this device again.
    pub blocked: bool,
}

/// The CPU began to be throttled, or ceased to be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ThrottleEvent {
    /// Schema, time, sequence.
    #[serde(flatten)]
    pub header: Header,
    /// Whether it is throttled from now on.
    pub throttled: bool,
    /// How long that lasted, milliseconds; known at its end.
    #[serde(default)]
    pub lasted_ms: Option<u64>,
    /// Hottest zone, thousandths of a degree Celsius.
    #[serde(default)]
    pub temperature_mc: Option<i64>,
    /// Current frequency of the fastest CPU, kHz.
    #[serde(default)]
    pub freq_khz: Option<u64>,
}

/// Messages were given up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SpoolDrop {
    /// Schema, time, sequence.
    #[serde(flatten)]
    pub header: Header,
    /// Records dropped since the last report.
    pub dropped_records: u64,
    /// Their size; where the disk was damaged, that of the damage.
    pub dropped_bytes: u64,
    /// How many of them were events rather than telemetry.
    #[serde(default)]
    pub dropped_events: u64,
    /// Why.
    #[serde(default = "full")]
    pub reason: DropReason,
}

fn one() -> u64 {
    1
}

fn full() -> DropReason {
    DropReason::Full
}

/// Somebody commanded something: who, what, when, and what became of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CommandEvent {
    /// Schema, time, sequence.
    #[serde(flatten)]
    pub header: Header,
    /// The command; its result is under the same name.
    pub id: String,
    /// What it asks for.
    pub kind: CommandKind,
    /// What became of it.
    pub outcome: CommandOutcome,
    /// Why, where it was not done.
    #[serde(default)]
    pub reason: Option<String>,
    /// Where it came in, below the device: who may write there is the broker's to say.
    pub topic: String,
    /// The boot of its sender, as that says.
    pub sender: String,
    /// When it was sent, as its sender says, Unix time in milliseconds.
    pub sent_ts: u64,
    /// Unix time after which it must not be done any more, milliseconds; 0 for no end.
    pub expires_ms: u64,
    /// Its arguments as JSON, at most the first 1024 bytes.
    pub args_text: String,
    /// From its arrival to this outcome.
    pub elapsed_ms: u64,
}

/// A device asks for a smaller model, or for one that fits what it is asked now, with its evidence.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RecompressRequest {
    /// Schema, time, sequence.
    #[serde(flatten)]
    pub header: Header,
    /// Names the request; the offer repeats it.
    pub request_id: String,
    /// The device.
    pub device: String,
    /// The model's name.
    pub model: String,
    /// Digest of the bundle that the device runs.
    pub digest: String,
    /// Its sequence number.
    pub sequence: u64,
    /// Devices of one class can share a bundle.
    pub device_class: String,
    /// The engine that will run the model.
    pub runtime: Runtime,
    /// CPU architecture, as Rust names it.
    pub arch: String,
    /// Threads of an inference.
    pub threads: u32,
    /// All budgets of the model.
    pub budgets: Budgets,
    /// The one that broke.
    pub budget: BudgetKind,
    /// What that is attributed to.
    pub cause: Cause,
    /// Median compute time over the windows.
    pub p50_us: u64,
    /// 95th percentile of the compute time over the windows.
    pub p95_us: u64,
    /// Windows over the budget.
    pub windows_over: u32,
    /// Windows looked at.
    pub windows_seen: u32,
    /// Proportional set size of the worker that serves the model, and of no other.
    #[serde(default)]
    pub workers_pss_bytes: Option<u64>,
    /// Whether the device is emulated.
    pub emulated: bool,
    /// The last test behind it, for drift.
    #[serde(default)]
    pub drift: Option<DriftTest>,
}

/// The model that a device should run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Offer {
    /// Schema, time, sequence.
    #[serde(flatten)]
    pub header: Header,
    /// The model's name.
    pub model: String,
    /// Version of the bundle, for people.
    pub version: String,
    /// Rises with every offer of this model to this device.
    pub sequence: u64,
    /// Digest of the bundle, `sha256:<hex>`.
    pub digest: String,
    /// Folder of the bundle's files.
    pub url: String,
    /// Size of all its files.
    pub size_bytes: u64,
    /// The engine it was made for.
    pub runtime: Runtime,
    /// The class it was made for, or `any`.
    pub device_class: String,
    /// The request it answers.
    #[serde(default)]
    pub request_id: Option<String>,
}

/// A one-shot command.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Command {
    /// Schema, time, sequence.
    #[serde(flatten)]
    pub header: Header,
    /// Names the command; the result repeats it.
    pub id: String,
    /// What to do.
    pub kind: CommandKind,
    /// Unix time after which it must not be done any more, milliseconds; 0 for no end.
    pub expires_ms: u64,
    /// Arguments, by kind.
    #[serde(default)]
    pub args: Value,
}

/// The result of a command.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CommandResult {
    /// Schema, time, sequence.
    #[serde(flatten)]
    pub header: Header,
    /// The command.
    pub id: String,
    /// Whether it was done.
    pub ok: bool,
    /// Why not.
    #[serde(default)]
    pub error: Option<String>,
    /// What it brought.
    #[serde(default)]
    pub data: Value,
}

/// Reads a payload: size, schema, JSON, values, in this order.
pub fn decode<P: Payload>(bytes: &[u8]) -> Result<P, PayloadError> {
    if bytes.len() > MAX_PAYLOAD_BYTES {
        return Err(PayloadError::TooLarge { bytes: bytes.len() });
    }
    let json = |source| PayloadError::Json { schema: P::SCHEMA, source };
    let peek: Peek = serde_json::from_slice(bytes).map_err(json)?;
    check_schema(P::SCHEMA, &peek.schema)?;
    let payload: P = serde_json::from_slice(bytes).map_err(json)?;
    payload.check()?;
    Ok(payload)
}

/// Writes a payload. NaN and infinities become `null`.
///
/// # Panics
/// Never: every payload is made of strings, numbers, lists and objects with string keys.
#[must_use]
pub fn encode<P: Payload>(payload: &P) -> Vec<u8> {
    serde_json::to_vec(payload).expect("a payload has only string keys and infallible serializers")
}

/// Writes a payload, unless a receiver would refuse it.
pub fn try_encode<P: Payload>(payload: &P) -> Result<Vec<u8>, PayloadError> {
    check_schema(P::SCHEMA, &payload.header().schema)?;
    payload.check()?;
    let bytes = encode(payload);
    if bytes.len() > MAX_PAYLOAD_BYTES {
        return Err(PayloadError::TooLarge { bytes: bytes.len() });
    }
    Ok(bytes)
}

#[derive(Deserialize)]
struct Peek {
    schema: String,
}

/// Accepts the wanted schema and its minor versions (`espalier.birth.v1.2` for `espalier.birth.v1`).
fn check_schema(wanted: &'static str, got: &str) -> Result<(), PayloadError> {
    let minor = |rest: &str| {
        rest.strip_prefix('.')
            .is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    };
    if got.strip_prefix(wanted).is_some_and(|rest| rest.is_empty() || minor(rest)) {
        return Ok(());
    }
    let got: String = got.chars().take(128).collect();
    let name = |schema: &str| schema.rsplit_once(".v").map(|(name, _)| name.to_owned());
    let major = |schema: &str| {
        schema.strip_prefix(&format!("{}.v", name(wanted).unwrap_or_default())).map(str::to_owned)
    };
    match major(&got) {
        Some(_) => Err(PayloadError::Version { wanted, got }),
        None => Err(PayloadError::Schema { wanted, got }),
    }
}

fn name(field: &'static str, value: &str) -> Result<(), PayloadError> {
    check_name(field, value)
        .map_err(|error: TopicError| PayloadError::Field { field, why: error.to_string() })
}

fn share(field: &'static str, value: Option<f64>) -> Result<(), PayloadError> {
    match value {
        Some(value) if !(0.0..=1.0).contains(&value) => {
            Err(PayloadError::Field { field, why: format!("{value} is not between 0 and 1") })
        }
        _ => Ok(()),
    }
}

fn digest(field: &'static str, value: &str) -> Result<(), PayloadError> {
    let hex = value.strip_prefix("sha256:").unwrap_or_default();
    if hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return Ok(());
    }
    let why = "not sha256: and 64 lower-case hexadecimal digits".to_owned();
    Err(PayloadError::Field { field, why })
}

fn drift(test: Option<&DriftTest>) -> Result<(), PayloadError> {
    test.map_or(Ok(()), |test| {
        test.check().map_err(|why| PayloadError::Field { field: "drift", why })
    })
}

fn trial(trial: Option<&Trial>) -> Result<(), PayloadError> {
    trial.map_or(Ok(()), |trial| {
        trial.check().map_err(|why| PayloadError::Field { field: "trial", why })
    })
}

macro_rules! payload {
    ($type:ident, $schema:literal, $topic:literal, $retained:literal $(, |$self:ident| $check:block)?) => {
        impl Payload for $type {
            const SCHEMA: &'static str = $schema;
            const TOPIC: &'static str = $topic;
            const RETAINED: bool = $retained;

            fn header(&self) -> &Header {
                &self.header
            }

            $(fn check(&self) -> Result<(), PayloadError> {
                let $self = self;
                $check
            })?
        }
    };
}

payload!(Birth, "espalier.birth.v1", "up/birth", true, |it| {
    name("device", &it.device)?;
    name("device_class", &it.device_class)
});
payload!(StateReport, "espalier.state.v1", "up/state", true);
payload!(ModelState, "espalier.model.v1", "up/model/{name}", true, |it| {
    name("model", &it.model)?;
    it.digest.as_deref().map_or(Ok(()), |value| digest("digest", value))
});
payload!(InferWindow, "espalier.infer.v1", "up/m/infer/{name}", false, |it| {
    name("model", &it.model)?;
    drift(it.drift.as_ref())
});
payload!(ResourceWindow, "espalier.res.v1", "up/m/res", false);
payload!(PowerWindow, "espalier.power.v1", "up/m/power", false);
payload!(BudgetBreach, "espalier.budget_breach.v1", "up/e/budget_breach", false, |it| {
    name("model", &it.model)?;
    drift(it.drift.as_ref())
});
payload!(InstallEvent, "espalier.install.v1", "up/e/install", false, |it| {
    name("model", &it.model)?;
    digest("digest", &it.digest)?;
    trial(it.trial.as_ref())?;
    it.from_digest.as_deref().map_or(Ok(()), |value| digest("from_digest", value))
});
payload!(RollbackEvent, "espalier.rollback.v1", "up/e/rollback", false, |it| {
    name("model", &it.model)?;
    digest("from_digest", &it.from_digest)?;
    it.to_digest.as_deref().map_or(Ok(()), |value| digest("to_digest", value))
});
payload!(ThrottleEvent, "espalier.throttle.v1", "up/e/throttle", false);
payload!(SpoolDrop, "espalier.spool_drop.v1", "up/e/spool_drop", false);
payload!(CommandEvent, "espalier.command_event.v1", "up/e/command", false, |it| {
    name("id", &it.id)
});
payload!(RecompressRequest, "espalier.recompress.v1", "up/rq/recompress", false, |it| {
    name("request_id", &it.request_id)?;
    name("device", &it.device)?;
    name("model", &it.model)?;
    name("device_class", &it.device_class)?;
    digest("digest", &it.digest)?;
    share("budgets.agreement_min", it.budgets.agreement_min)?;
    drift(it.drift.as_ref())
});
payload!(Offer, "espalier.offer.v1", "dn/offer/{name}", true, |it| {
    name("model", &it.model)?;
    name("device_class", &it.device_class)?;
    digest("digest", &it.digest)
});
payload!(Command, "espalier.command.v1", "dn/cmd/{kind}/{id}", false, |it| { name("id", &it.id) });
payload!(CommandResult, "espalier.result.v1", "up/rs/{id}", false, |it| { name("id", &it.id) });
