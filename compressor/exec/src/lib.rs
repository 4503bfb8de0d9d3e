//! Runs a graph on the host, forward, one function for each operator.
//!
//! This is the reference execution that the compressor's own claims are checked against (masked equals
//! pruned, before equals after a rewrite); speed comes second, and calibration runs in the engines. Only this
//! crate names candle. What it cannot run is refused by [`Executor::new`] with the node and the operator.

#![forbid(unsafe_code)]

mod error;
mod executor;
mod ops;
mod value;

pub use error::ExecError;
pub use executor::Executor;
