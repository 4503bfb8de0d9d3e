//! What the command line has a name for and the program does not do: it says so, with what there is instead.
#![allow(clippy::print_stderr)]

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Args as ClapArgs;

/// Whatever follows a command that is not done.
#[derive(Debug, ClapArgs)]
#[command(disable_help_flag = true)]
pub struct Args {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    _rest: Vec<OsString>,
}

/// Says that `command` is not done; the exit code of wrong usage.
pub fn run(command: &str) -> ExitCode {
    eprintln!("error: espalier {command} is not done yet; `espalier --help` lists what is");
    ExitCode::from(2)
}

/// Parses `text` as one of `done`, and tells a word that is none from one of `later`, which is not done yet.
///
/// # Errors
/// The text is none of `done`.
pub fn word<T: Copy>(text: &str, done: &[(&str, T)], later: &[&str]) -> Result<T, String> {
    if let Some((_, value)) = done.iter().find(|(name, _)| *name == text) {
        return Ok(*value);
    }
    let names: Vec<&str> = done.iter().map(|(name, _)| *name).collect();
    let names = names.join(", ");
    Err(if later.contains(&text) {
        format!("{text} is not done yet; there are {names}")
    } else {
        format!("there are {names}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_known_or_not_done_yet_or_unknown() {
        let parse = |text| word(text, &[("one", 1), ("two", 2)], &["three"]);
        assert_eq!(parse("two"), Ok(2));
        assert_eq!(parse("three"), Err("three is not done yet; there are one, two".into()));
        assert_eq!(parse("four"), Err("there are one, two".into()));
    }
}
