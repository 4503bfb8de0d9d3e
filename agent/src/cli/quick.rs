//! How a service manager starts the agent, without the parser of command lines: what a process has once touched
//! of its program stays in its memory, and that parser is used for a moment of a daemon's life.

use std::ffi::OsString;

use super::ConfigArgs;

/// The arguments of `run` where they are plainly written; `None` for everything else, which is the full parser's
/// to take or to refuse.
pub(super) fn run_args(args: impl IntoIterator<Item = OsString>) -> Option<ConfigArgs> {
    let mut args = args.into_iter().skip(1);
    if args.next()? != "run" {
        return None;
    }
    let mut found = ConfigArgs { config: None, overrides: Vec::new() };
    while let Some(arg) = args.next() {
        let arg = arg.into_string().ok()?;
        let (name, value) = match arg.split_once('=') {
            Some((name, value)) if name.starts_with("--") => (name, value.to_owned()),
            _ => (arg.as_str(), args.next()?.into_string().ok()?),
        };
        if value.is_empty() || value.starts_with('-') {
            return None;
        }
        match name {
            "--config" | "-c" if found.config.is_none() => found.config = Some(value.into()),
            "--set" => found.overrides.push(value),
            _ => return None,
        }
    }
    Some(found)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use clap::Parser;

    use super::super::{Cli, Mode};
    use super::*;

    fn quick(line: &str) -> Option<ConfigArgs> {
        run_args(line.split(' ').map(OsString::from))
    }

    #[test]
    fn what_is_read_quickly_is_what_the_full_parser_reads() {
        for line in [
            "espalier-agent run",
            "espalier-agent run --config /etc/a.toml",
            "espalier-agent run --config=/etc/a.toml --set a.b=1 --set=c.d=e=f",
            "espalier-agent run -c a.toml --set a=b",
        ] {
            let Mode::Run(full) = Cli::try_parse_from(line.split(' ')).unwrap().mode else {
                panic!("{line} is no run");
            };
            let found = quick(line).unwrap();
            assert_eq!((found.config, found.overrides), (full.config, full.overrides), "{line}");
        }
    }

    #[test]
    fn everything_else_is_left_to_the_full_parser() {
        for line in [
            "espalier-agent",
            "espalier-agent --help",
            "espalier-agent check --config a",
            "espalier-agent run --help",
            "espalier-agent run --conf a",
            "espalier-agent run --config",
            "espalier-agent run --config --set",
            "espalier-agent run --config a --config b",
            "espalier-agent run -ca.toml",
            "espalier-agent run --set=",
            "espalier-agent run more",
        ] {
            assert!(quick(line).is_none(), "{line}");
        }
    }
}
