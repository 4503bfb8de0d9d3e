//! Logs: to the journal when systemd started the agent, to standard error otherwise.

use std::io::IsTerminal;
use std::sync::OnceLock;

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, reload};

/// Changes what is logged, once [`start`] was called.
static CONTROL: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// Begins to log. `RUST_LOG` chooses what; `info` if it is not set.
pub fn start() {
    let (filter, handle) = reload::Layer::new(usual());
    let _ = CONTROL.set(handle);
    let registry = tracing_subscriber::registry().with(filter);
    // systemd sets JOURNAL_STREAM when standard error goes to the journal.
    if std::env::var_os("JOURNAL_STREAM").is_some()
        && let Ok(journald) = tracing_journald::layer()
    {
        let _ = registry.with(journald).try_init();
        return;
    }
    let colours = std::io::stderr().is_terminal();
    let stderr = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(colours);
    let _ = registry.with(stderr).try_init();
}

/// Logs what `directives` say from now on; what was chosen at the start without them.
///
/// # Errors
/// Nothing is logged at all, or the directives are none.
pub fn set(directives: Option<&str>) -> Result<(), String> {
    let filter = match directives {
        Some(text) => EnvFilter::try_new(text).map_err(|error| format!("{text:?}: {error}"))?,
        None => usual(),
    };
    let Some(control) = CONTROL.get() else {
        // Nothing to go back from.
        return if directives.is_none() { Ok(()) } else { Err("the log was not begun".to_owned()) };
    };
    control.reload(filter).map_err(|error| error.to_string())
}

fn usual() -> EnvFilter {
    EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"))
}
