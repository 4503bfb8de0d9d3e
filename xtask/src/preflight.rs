//! What has to be on the machine before a long run begins, all of it told at once.

use std::fmt::Write as _;

use anyhow::{Result, bail};

use crate::{assets, build, process};

/// Something that is not there, and how it gets there.
struct Missing {
    what: &'static str,
    remedy: String,
}

/// A program that is asked for its version.
struct Tool {
    what: &'static str,
    cargo: &'static str,
    remedy: &'static str,
}

const NEXTEST: Tool = Tool {
    what: "cargo-nextest",
    cargo: "nextest",
    remedy: "cargo install --locked cargo-nextest",
};
/// Needed by the checks, not by the tests.
const CHECKERS: &[Tool] = &[
    Tool {
        what: "rustfmt",
        cargo: "fmt",
        remedy: "rustup component add rustfmt, or your distribution's package",
    },
    Tool {
        what: "clippy",
        cargo: "clippy",
        remedy: "rustup component add clippy, or your distribution's package",
    },
];

/// Refuses to begin while something is missing.
///
/// # Errors
/// Names everything that is missing.
pub(crate) fn check(tests_only: bool) -> Result<()> {
    let mut missing = Vec::new();
    missing.extend(without(&NEXTEST)?);
    if !tests_only {
        for tool in CHECKERS {
            missing.extend(without(tool)?);
        }
        missing.extend(not_found("git", "git", "tidy reads the list of files from it"));
    }
    missing.extend(not_found("cc", "a C compiler", "Debian: gcc and libc6-dev"));
    let python = assets::python_problem();
    missing.extend(python.map(|remedy| Missing { what: "python3", remedy }));
    report(&missing)
}

fn without(tool: &Tool) -> Result<Option<Missing>> {
    let answers = process::output(build::cargo()?.args([tool.cargo, "--version"])).is_ok();
    Ok((!answers).then(|| Missing { what: tool.what, remedy: tool.remedy.to_owned() }))
}

fn not_found(program: &str, what: &'static str, remedy: &str) -> Option<Missing> {
    let is_there = process::find(program).is_some();
    (!is_there).then(|| Missing { what, remedy: format!("no `{program}` on PATH; {remedy}") })
}

fn report(missing: &[Missing]) -> Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    let mut text = String::new();
    for Missing { what, remedy } in missing {
        write!(text, "\n  {what}: {remedy}")?;
    }
    bail!("not everything that the run needs is on this machine:{text}")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_is_missing_is_told_at_once() {
        report(&[]).unwrap();
        let absent = Tool { what: "a tool", cargo: "no-such-subcommand", remedy: "make one" };
        let missing = [
            without(&absent).unwrap().unwrap(),
            not_found("no-such-program", "a program", "write it").unwrap(),
        ];
        let text = report(&missing).unwrap_err().to_string();
        assert!(text.contains("a tool: make one"), "{text}");
        assert!(text.contains("a program: no `no-such-program` on PATH; write it"), "{text}");
    }
}
