//! Emulates constrained devices and runs the whole loop on one machine.
//!
//! What is emulated is the *board*: how long a computation takes ([`profiles`], [`worker`]), how
//! warm it gets and how much power it draws ([`board`]), and what its `/proc` and `/sys` say
//! ([`fakesys`]). The agent on it, the compressor service and the broker are the real programs,
//! started as child processes ([`live`]). Numbers that come out of the emulation are *modelled* and
//! say so.
//!
//! This crate never calls into the compressor, and calls the agent's library only to be its worker:
//! whatever it shows has crossed MQTT, HTTP and the file system.

#![forbid(unsafe_code)]

pub mod board;
pub mod broker;
pub mod cli;
pub mod client;
pub mod demo;
pub mod fakesys;
pub mod live;
pub mod npz;
pub mod process;
pub mod profiles;
pub mod scenario;
pub mod watcher;
pub mod worker;
