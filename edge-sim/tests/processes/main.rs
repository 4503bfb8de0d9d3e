//! The program and its parts as real processes.
#![allow(clippy::unwrap_used)]

mod brokers;
mod command_line;
mod demo;
mod orphans;
mod puppet;
mod stack;
mod support;
