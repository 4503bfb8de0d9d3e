//! The parts together, with real servers: what the tests of this package share.

#![forbid(unsafe_code)]

pub mod certificates;
pub mod container;
pub mod files;
pub mod guarded;
pub mod hold;
pub mod homeassistant;
pub mod journal;
pub mod load;
pub mod offers;
pub mod packages;
pub mod subscriber;
pub mod telegraf;

use std::env;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use edge_sim::live::{Binaries, Stack, StackOptions};

/// How often a wait looks again.
const POLL: Duration = Duration::from_millis(10);

/// The workspace's root.
#[must_use]
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A path that `cargo xtask test` hands to the tests.
///
/// # Panics
/// When the variable is unset: the tests need real servers, models and data.
#[must_use]
pub fn provided(variable: &str) -> PathBuf {
    env::var_os(variable).map_or_else(
        || panic!("{variable} is not set: run the tests through `cargo xtask test`"),
        PathBuf::from,
    )
}

/// A binary of this workspace, built in release mode.
///
/// # Panics
/// When it was not built.
#[must_use]
pub fn binary(name: &str) -> PathBuf {
    let path = provided("ESPALIER_BIN").join(name);
    assert!(path.is_file(), "{} was not built", path.display());
    path
}

/// A fetched model or data file.
///
/// # Panics
/// When it was not fetched.
#[must_use]
pub fn asset(name: &str) -> PathBuf {
    let path = provided("ESPALIER_ASSETS").join(name);
    assert!(path.exists(), "{} was not fetched", path.display());
    path
}

/// Waits until `met` gives something.
///
/// # Panics
/// When it does not within `patience`.
pub fn until<T>(what: &str, patience: Duration, mut met: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = met() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {patience:?} in vain for {what}");
        std::thread::sleep(POLL);
    }
}

/// Unix time in milliseconds, as in the headers of messages.
///
/// # Panics
/// When the clock is before 1970.
#[must_use]
pub fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970");
    u64::try_from(since.as_millis()).expect("a clock before the year 500 million")
}

/// What the running agent says of itself, which needs no broker.
#[must_use]
pub fn agent_status(stack: &Stack) -> Option<serde_json::Value> {
    use espalier_agent::shell::{state_dir, status};
    status::ask(&state_dir::status_socket(&stack.state_dir())).ok()
}

/// Options for a stack that is faster than any real board, so that a test of behaviour is not a test of
/// patience: mosquitto, one thread, short windows.
#[must_use]
pub fn quick_stack(run: &std::path::Path) -> StackOptions {
    let binaries = Binaries::in_dir(&provided("ESPALIER_BIN"));
    let mut options = StackOptions::new(binaries, &provided("ESPALIER_ASSETS"), run);
    options.broker = edge_sim::broker::BrokerKind::Mosquitto;
    options.board = edge_sim::profiles::find("raspberry-pi-5").expect("an embedded profile");
    options.window = std::time::Duration::from_millis(500);
    options.install.shadow_requests = 3;
    options.install.probation_windows = 2;
    options.breach.min_requests = 2;
    // A few windows on a host with other work say nothing about a model's speed.
    configure(&mut options, "[install]\nregress_ratio = 100.0");
    options
}

/// Adds keys to the agent's configuration, in TOML.
///
/// # Panics
/// When `text` is no TOML.
pub fn configure(options: &mut StackOptions, text: &str) {
    use toml::{Table, Value};
    for (name, keys) in text.parse::<Table>().expect("TOML") {
        match (options.agent_overrides.get_mut(&name), keys) {
            (Some(Value::Table(there)), Value::Table(keys)) => there.extend(keys),
            (_, keys) => {
                options.agent_overrides.insert(name, keys);
            }
        }
    }
}
