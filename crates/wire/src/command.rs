//! What commands ask for and bring: the arguments and results that are more than a name.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::budget::{Quality, vocabulary};
use crate::histogram::Histogram;

/// The most timed inferences of one measurement.
pub const MAX_MEASURE_RUNS: u32 = 10_000;
/// The most inferences before them.
pub const MAX_MEASURE_WARMUP: u32 = 1_000;
/// The longest that inferences are timed, seconds; the warm-up may take as long again.
pub const MAX_MEASURE_SECONDS: u32 = 600;
/// The longest address of a bundle, bytes.
pub const MAX_URL_BYTES: usize = 2048;
/// The longest text that says what is logged, bytes.
pub const MAX_LOG_LEVEL_BYTES: usize = 256;
/// The most parts of such a text.
pub const MAX_LOG_LEVEL_PARTS: usize = 16;
/// The longest that a commanded log level holds, milliseconds: a day.
pub const MAX_LOG_LEVEL_MS: u64 = 86_400_000;

/// Arguments of `measure`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MeasureArgs {
    /// The model's name, as the bundle's manifest has it.
    pub model: String,
    /// Digest of the bundle, `sha256:<hex>`.
    pub digest: String,
    /// Folder of the bundle's files; not needed for a bundle that is on the device.
    #[serde(default)]
    pub url: Option<String>,
    /// Size of all its files; needed with `url`.
    #[serde(default)]
    pub size_bytes: Option<u64>,
    /// Its sequence number; needed with `url` on a device that trusts an owner's keys.
    #[serde(default)]
    pub sequence: Option<u64>,
    /// Inferences that are timed.
    #[serde(default = "default_runs")]
    pub runs: u32,
    /// Inferences before them.
    #[serde(default = "default_warmup")]
    pub warmup: u32,
    /// When to stop timing, however many there were.
    #[serde(default = "default_seconds")]
    pub max_seconds: u32,
}

fn default_runs() -> u32 {
    100
}

fn default_warmup() -> u32 {
    10
}

fn default_seconds() -> u32 {
    60
}

impl MeasureArgs {
    /// Reads and checks.
    ///
    /// # Errors
    /// Which argument is missing, unknown or beyond which limit.
    pub fn read(args: &Value) -> Result<Self, String> {
        let read: Self = serde_json::from_value(args.clone()).map_err(|e| format!("args: {e}"))?;
        let between = |name: &str, value: u32, low: u32, high: u32| {
            let ok = (low..=high).contains(&value);
            ok.then_some(())
                .ok_or_else(|| format!("args.{name}: {value} is not between {low} and {high}"))
        };
        between("runs", read.runs, 1, MAX_MEASURE_RUNS)?;
        between("warmup", read.warmup, 0, MAX_MEASURE_WARMUP)?;
        between("max_seconds", read.max_seconds, 1, MAX_MEASURE_SECONDS)?;
        match &read.url {
            Some(url) if url.len() > MAX_URL_BYTES => {
                Err(format!("args.url has {} bytes, at most {MAX_URL_BYTES} are taken", url.len()))
            }
            Some(_) if read.size_bytes.is_none() => {
                Err("args.size_bytes must say how large the bundle at args.url is".to_owned())
            }
            _ => Ok(read),
        }
    }
}

/// Arguments of `log_level`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LogLevelArgs {
    /// `LEVEL`, or a list of `LEVEL` and `TARGET=LEVEL` with commas between them.
    #[serde(default)]
    pub level: Option<String>,
    /// How long it holds, milliseconds.
    #[serde(default = "default_log_ms")]
    pub for_ms: u64,
    /// Back to what the agent was started with.
    #[serde(default)]
    pub reset: bool,
}

fn default_log_ms() -> u64 {
    600_000
}

/// What is logged.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

impl LogLevelArgs {
    /// Reads and checks. Where there is a level, it says something that every part of the agent understands.
    ///
    /// # Errors
    /// Which argument is missing, unknown or beyond which limit.
    pub fn read(args: &Value) -> Result<Self, String> {
        let read: Self = serde_json::from_value(args.clone()).map_err(|e| format!("args: {e}"))?;
        match (&read.level, read.reset) {
            (None, false) => return Err("args must have level, or reset: true".to_owned()),
            (Some(_), true) => return Err("args has level and reset; say one of them".to_owned()),
            (None, true) => return Ok(read),
            (Some(level), false) => check_level(level)?,
        }
        if !(1..=MAX_LOG_LEVEL_MS).contains(&read.for_ms) {
            let ms = read.for_ms;
            return Err(format!("args.for_ms: {ms} is not between 1 and {MAX_LOG_LEVEL_MS}"));
        }
        Ok(read)
    }
}

fn check_level(text: &str) -> Result<(), String> {
    if text.len() > MAX_LOG_LEVEL_BYTES {
        return Err(format!(
            "args.level has {} bytes, at most {MAX_LOG_LEVEL_BYTES} are taken",
            text.len()
        ));
    }
    let parts: Vec<&str> = text.split(',').collect();
    if parts.len() > MAX_LOG_LEVEL_PARTS {
        return Err(format!(
            "args.level has {} parts, at most {MAX_LOG_LEVEL_PARTS} are taken",
            parts.len()
        ));
    }
    for part in parts {
        let (target, level) = part.split_once('=').unwrap_or(("all", part));
        let named = target.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b':');
        if target.is_empty() || !named || !LEVELS.contains(&level) {
            return Err(format!(
                "args.level: {part:?} is neither a level ({}) nor TARGET=LEVEL, as in espalier_agent::shell=debug",
                LEVELS.join(", ")
            ));
        }
    }
    Ok(())
}

vocabulary! {
    /// What a model was measured on.
    InputSource {
        /// The bundle's golden inputs.
        Example = "example",
        /// Inputs made up from the model's shapes, free dimensions as 1.
        Generated = "generated",
    }
}

vocabulary! {
    /// What ended a measurement.
    MeasureEnd {
        /// As many inferences as were asked for.
        Runs = "runs",
        /// `max_seconds` were over first.
        Time = "time",
    }
}

vocabulary! {
    /// How a measurement stood against the device's other work.
    Priority {
        /// Last in line for the processor.
        Low = "low",
        /// Like everything else: the system refused to lower it.
        Normal = "normal",
    }
}

/// What `measure` brings: the bundle as this device runs it, in a worker of its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MeasureProfile {
    /// The model's name.
    pub model: String,
    /// Digest of its bundle.
    pub digest: String,
    /// Version of its bundle.
    pub version: String,
    /// Whether it was fetched for this, and is gone again; otherwise it was on the device.
    pub fetched: bool,
    /// The engine and its version.
    pub engine: String,
    /// Threads of an inference.
    pub threads: u32,
    /// What it was run on.
    pub inputs: InputSource,
    /// Inferences before the timed ones.
    pub warmup: u32,
    /// Timed inferences.
    pub runs: u32,
    /// What ended them.
    pub end: MeasureEnd,
    /// Median time in the engine.
    pub p50_us: u64,
    /// 95th percentile of it.
    pub p95_us: u64,
    /// 99th percentile of it.
    pub p99_us: u64,
    /// The longest.
    pub max_us: u64,
    /// The mean.
    pub mean_us: f64,
    /// All of them.
    pub compute: Histogram,
    /// From the start of the worker to the loaded model, milliseconds.
    pub load_ms: u64,
    /// Proportional set size of the worker once the model was loaded.
    #[serde(default)]
    pub pss_loaded_bytes: Option<u64>,
    /// The same after the last inference.
    #[serde(default)]
    pub pss_steady_bytes: Option<u64>,
    /// The most of it that was seen from then on.
    #[serde(default)]
    pub pss_peak_bytes: Option<u64>,
    /// The most memory that it had resident at any time, shared pages and loading included.
    #[serde(default)]
    pub rss_peak_bytes: Option<u64>,
    /// The limit on its private memory, if it had one.
    #[serde(default)]
    pub memory_limit_bytes: Option<u64>,
    /// Where power figures come from.
    pub power_source: String,
    /// Whether they are measured.
    pub power_quality: Quality,
    /// Mean power of the device meanwhile.
    #[serde(default)]
    pub power_mw: Option<f64>,
    /// What one inference cost above rest; an upper bound where the device did other work too.
    #[serde(default)]
    pub energy_per_inference_mj: Option<f64>,
    /// How it stood against the device's other work.
    pub priority: Priority,
    /// Processor time of the worker over its time in the engine: well below the threads, it had to wait for others.
    #[serde(default)]
    pub cpu_share: Option<f64>,
    /// CPU architecture, as Rust names it.
    pub arch: String,
    /// The processor, as the kernel names it.
    #[serde(default)]
    pub cpu: Option<String>,
    /// CPUs the agent may use.
    pub cpus: u32,
    /// What decides on the processor's clock.
    #[serde(default)]
    pub governor: Option<String>,
    /// The clock of the fastest CPU at the end, kHz.
    #[serde(default)]
    pub freq_khz: Option<u64>,
    /// Hottest zone at the end, thousandths of a degree Celsius.
    #[serde(default)]
    pub temperature_mc: Option<i64>,
    /// Whether the CPU was throttled meanwhile.
    pub throttled: bool,
    /// CPU time taken by the hypervisor meanwhile, percent.
    #[serde(default)]
    pub steal_percent: Option<f64>,
    /// Load average over one minute at the end.
    #[serde(default)]
    pub load1: Option<f64>,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_measurement_without_bounds_gets_the_usual_ones_and_none_gets_beyond_the_greatest() {
        let args = json!({ "model": "m", "digest": "d" });
        let read = MeasureArgs::read(&args).unwrap();
        assert_eq!((read.runs, read.warmup, read.max_seconds), (100, 10, 60));
        for (key, value, what) in [
            ("runs", json!(0), "args.runs: 0 is not between 1 and 10000"),
            ("runs", json!(10_001), "args.runs: 10001"),
            ("warmup", json!(1001), "args.warmup"),
            ("max_seconds", json!(601), "args.max_seconds"),
            ("max_seconds", json!(0), "args.max_seconds"),
            ("runs", json!(-1), "args: "),
            ("url", json!("http://h/b"), "args.size_bytes must say"),
            ("url", json!("h".repeat(3000)), "args.url has 3000 bytes"),
            ("treads", json!(1), "unknown field `treads`"),
            ("model", Value::Null, "args: "),
        ] {
            let mut args = args.clone();
            args[key] = value;
            let error = MeasureArgs::read(&args).unwrap_err();
            assert!(error.contains(what), "{error}");
        }
        assert!(MeasureArgs::read(&Value::Null).unwrap_err().starts_with("args: "));
    }

    #[test]
    fn a_log_level_is_a_level_or_a_list_of_them_and_nothing_else() {
        for level in ["debug", "off", "info,espalier_agent::shell=trace", "a=warn,b=error"] {
            let read = LogLevelArgs::read(&json!({ "level": level })).unwrap();
            assert_eq!((read.level.as_deref(), read.for_ms), (Some(level), 600_000));
        }
        let many = vec!["a=info"; MAX_LOG_LEVEL_PARTS + 1].join(",");
        let long = format!("{}=info", "a".repeat(MAX_LOG_LEVEL_BYTES));
        for level in ["", "loud", "a=", "=info", "info,", "a b=info", "[{x}]=info", &many, &long] {
            assert!(LogLevelArgs::read(&json!({ "level": level })).is_err(), "{level:?}");
        }
        for args in [
            json!({}),
            json!({ "level": "info", "reset": true }),
            json!({ "level": "info", "for_ms": 0 }),
            json!({ "level": "info", "for_ms": MAX_LOG_LEVEL_MS + 1 }),
            json!({ "level": "info", "for": 5 }),
            Value::Null,
        ] {
            assert!(LogLevelArgs::read(&args).is_err(), "{args}");
        }
        assert!(LogLevelArgs::read(&json!({ "reset": true })).unwrap().reset);
    }
}
