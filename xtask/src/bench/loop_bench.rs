//! The loop with either engine.

use std::process::ExitCode;

use anyhow::Result;

pub(super) fn run() -> Result<ExitCode> {
    anyhow::bail!("not measured yet")
}
