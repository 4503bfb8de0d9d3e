//! Compresses ONNX models towards a device's budgets.
//!
//! The stages, in the order in which [`pipeline`] runs them: read the data ([`data`]), observe the
//! model on it ([`calibrate`]), rate units ([`score`]), choose widths ([`allocate`]), write a [`plan`], apply it (cut,
//! repair by [`gram`], [`rescale`] and [`refit`], [`quantize`]), judge ([`quality`], [`latency`], [`memory`]), choose
//! ([`search`]), and write the bundle
//! with its report ([`report`]). Metrics of a task ([`metric`]) and the tests that compare two models by them ([`stats`])
//! know no stage.
//!
//! Invariants:
//! 1. Deciding and doing are apart: a [`plan::Plan`] is data, and one function applies it: for every candidate of a
//!    search, and again for a plan that was written down ([`pipeline::single::replay`]).
//! 2. Nothing is refused silently: a refusal is a value with a reason and reaches the report.
//! 3. Stages do not see each other; only [`pipeline`] knows them all.
//! 4. Every number says whether it was measured or modelled.
//! 5. The library prints nothing; [`cli`] owns the terminal.

#![forbid(unsafe_code)]

pub mod allocate;
pub mod calibrate;
pub mod cli;
pub mod data;
pub mod error;
pub mod gram;
pub mod latency;
mod linalg;
pub mod memory;
pub mod metric;
pub mod pipeline;
pub mod plan;
pub mod quality;
pub mod quantize;
pub mod refit;
pub mod report;
pub mod rescale;
pub mod score;
pub mod search;
pub mod serve;
pub mod stats;

pub use error::CompressError;
