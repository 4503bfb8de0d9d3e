//! Serves models on a device inside its budgets.
//!
//! Three layers, each knowing only the ones before it:
//!
//! 1. [`core`] decides. It is a pure function from (time, event) to effects: no IO, no clock.
//! 2. [`plane`] and [`sys`] act. The plane owns worker processes and the inference endpoints; `sys`
//!    reads what the machine says about itself.
//! 3. [`shell`] connects the two to the world: MQTT, the state directory, downloads, systemd.
//!
//! [`config`] turns files, environment and flags into validated values; [`cli`] is the command line.

#![forbid(unsafe_code)]

pub mod cli;
pub mod config;
pub mod core;
pub mod plane;
pub mod shell;
pub mod sys;
