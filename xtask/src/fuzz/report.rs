//! What a fuzzer says at its end.

use std::fmt;
use std::path::PathBuf;

use anyhow::{Context, Result};

/// The lines of its log that are shown where it found something.
const TAIL_LINES: usize = 40;
/// What stands before the path of an input that broke something.
const INPUT: &str = "Test unit written to ";

/// What one run came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// Inputs that were tried.
    pub(super) tried: u64,
    /// Edges of our code that were taken.
    pub(super) edges: u64,
    /// Inputs that reached something new.
    pub(super) added: u64,
    /// The input that broke something.
    pub(super) input: Option<PathBuf>,
    /// The end of the log.
    pub(super) tail: String,
}

impl Found {
    /// Reads libFuzzer's log.
    ///
    /// # Errors
    /// A log of a run that ended well and that says nothing of what was done: no fuzzer wrote it.
    pub(super) fn read(log: &str, is_success: bool) -> Result<Self> {
        let lines: Vec<&str> = log.lines().collect();
        let statistic = |name: &str| {
            let line = lines.iter().rev().find_map(|line| line.strip_prefix(name))?;
            line.trim_start_matches(':').trim().parse().ok()
        };
        let edges = lines.iter().rev().find_map(|line| {
            let (_, rest) = line.split_once(" cov: ")?;
            rest.split(' ').next()?.parse().ok()
        });
        let tried = statistic("stat::number_of_executed_units");
        let input = lines.iter().find_map(|line| Some(PathBuf::from(line.split_once(INPUT)?.1)));
        if is_success {
            tried.context("the fuzzer does not say what it tried")?;
            edges.context("the fuzzer saw no code of ours: it was built without counting")?;
        }
        Ok(Self {
            tried: tried.unwrap_or_default(),
            edges: edges.unwrap_or_default(),
            added: statistic("stat::new_units_added").unwrap_or_default(),
            input,
            tail: lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n"),
        })
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tried, edges, added, .. } = self;
        write!(f, "{tried:>9} inputs, {edges:>6} edges reached, {added:>5} inputs new")?;
        match &self.input {
            Some(input) => write!(f, "; BROKEN by {}", input.display()),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const GOOD: &str = "\
INFO: Loaded 1 modules   (12345 inline 8-bit counters): 12345
#2\tINITED cov: 55 ft: 56 corp: 1/1b exec/s: 0 rss: 30Mb
#91833\tDONE   cov: 812 ft: 2001 corp: 90/12Kb lim: 4096 exec/s: 45916 rss: 60Mb
Done 91833 runs in 2 second(s)
stat::number_of_executed_units: 91833
stat::new_units_added:          89
";

    #[test]
    fn a_log_says_what_was_tried_and_reached() {
        let found = Found::read(GOOD, true).unwrap();
        assert_eq!((found.tried, found.edges, found.added), (91_833, 812, 89));
        assert_eq!(found.input, None);
    }

    #[test]
    fn an_input_that_broke_something_is_named() {
        let log =
            format!("{GOOD}artifact_prefix='a/'; Test unit written to a/crash-0b\nBase64: eA==\n");
        let found = Found::read(&log, false).unwrap();
        assert_eq!(found.input.as_deref(), Some("a/crash-0b".as_ref()));
        assert!(found.to_string().contains("BROKEN by a/crash-0b"), "{found}");
    }

    #[test]
    fn a_fuzzer_that_reaches_nothing_is_no_success() {
        let blind: String =
            GOOD.lines().filter(|l| !l.contains("cov:")).map(|l| format!("{l}\n")).collect();
        assert!(Found::read(&blind, true).unwrap_err().to_string().contains("without counting"));
        assert!(Found::read("", true).is_err());
    }
}
