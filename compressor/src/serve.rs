//! The compressor service: answers devices' requests for smaller models.
//!
//! ```text
//! broker ──requests──▶ link ─▶ desk ─▶ store (SQLite) ─▶ jobs (one thread) ─▶ bundles/<digest>/
//!        ◀──offers──── link ◀─ desk ◀─ outbox ◀───────────┘                        │
//! devices ◀───────────────────────────────── http (Range) ◀────────────────────────┘
//! ```
//!
//! Invariants:
//! 1. A request is acknowledged to the broker only once it is in the store, and an offer leaves the
//!    outbox only once the broker has acknowledged it: a crash loses neither.
//! 2. Requests for the same compression (source, data, program version, runtime, class, threads,
//!    rounded budgets, current bundle) share one job, and each gets its offer.
//! 3. Jobs run one at a time, in the order they were queued. A job that was running when the service
//!    ended runs again, up to [`MAX_ATTEMPTS`] times.
//! 4. The sequence numbers of a model's bundles rise, and so do those offered to each device.
//! 5. A bundle that a device took back is never offered again for the same request, and neither is
//!    another with the same model, nor the model that the device runs already.
//! 6. Everything the store keeps has a named limit. A bundle that a remembered device runs, goes back
//!    to or was offered last is never collected.
//! 7. With a trust repository, a bundle is one of its targets before the store names it, and so before it
//!    is offered.
//! 8. Nothing a device sends ends the service: it is refused with a reason, counted and logged.

mod config;
mod connections;
mod desk;
mod files;
mod http;
mod jobs;
mod link;
mod offers;
mod plan;
mod service;
mod signing;
mod store;

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::sync::Arc;

pub use config::{ModelFiles, ServeArgs, ServeConfig};
pub use jobs::{Compressor, Pipeline};
pub use service::{ServeError, Service};
pub use store::{
    FAILURE_KEPT, MAX_ATTEMPTS, MAX_BUNDLES, MAX_DEVICES, MAX_FINISHED_JOBS, MAX_OUTBOX,
    MAX_QUEUED_JOBS, MAX_REQUESTS, MAX_RESULTS, MAX_STORE_BYTES, MAX_TAKEN_BACK, MAX_WAITING,
    StoreError,
};

/// Runs the service until it is told to stop by SIGTERM or SIGINT. One JSON line on standard output
/// says when it is ready and where its HTTP server listens.
#[must_use]
#[allow(clippy::print_stderr)]
pub fn run(args: ServeArgs) -> ExitCode {
    // Where the program around has set one up already, that one stays.
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| "info,tract_linalg=warn,tract_core=warn,ort=warn".into());
    let colours = std::io::stderr().is_terminal();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours);
    let _ = log.with_writer(std::io::stderr).try_init();
    let config = match args.into_config() {
        Ok(config) => config,
        Err(errors) => {
            errors.iter().for_each(|error| eprintln!("error: {error}"));
            return ExitCode::from(64);
        }
    };
    match serve(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve(config: ServeConfig) -> anyhow::Result<()> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let mut terminate =
            tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        let service = Service::start(config, Arc::new(Pipeline::default())).await?;
        let ready = serde_json::json!({ "ready": true, "http": service.http_url() });
        let mut stdout = std::io::stdout();
        writeln!(stdout, "{ready}").and_then(|()| stdout.flush())?;
        tokio::select! {
            signal = tokio::signal::ctrl_c() => signal?,
            _ = terminate.recv() => {}
        }
        service.stop().await;
        Ok(())
    })
}
