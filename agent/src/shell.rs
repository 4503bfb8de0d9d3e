//! Connects the core and the plane to the world: the state directory, downloads, the broker, systemd.
//!
//! One task, the [`driver`], owns the core; everything else only sends it events. What may take long
//! runs beside it and answers with an event.

pub mod download;
pub mod driver;
#[cfg(debug_assertions)]
pub mod hold;
pub mod homeassistant;
pub mod install;
pub mod journal;
pub mod logging;
pub mod measure;
pub mod mqtt;
pub mod notify;
pub mod otlp;
pub mod outbox;
pub mod spool;
pub mod state_dir;
pub mod status;
pub mod store;
pub mod trust;
pub mod worker_program;
