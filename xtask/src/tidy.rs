//! `cargo xtask tidy`: the boundaries between crates, and the rules of style that can be executed.

mod boundaries;
mod links;
mod providers;
mod sources;

use std::process::ExitCode;

use anyhow::Result;

/// Prints every violation; succeeds only without any.
pub(crate) fn run() -> Result<ExitCode> {
    let mut violations = boundaries::check()?;
    violations.extend(sources::check()?);
    violations.extend(providers::check()?);
    for violation in &violations {
        eprintln!("tidy: {violation}");
    }
    if violations.is_empty() {
        eprintln!("tidy: nothing to say");
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("tidy: {} violations", violations.len());
    Ok(ExitCode::FAILURE)
}
