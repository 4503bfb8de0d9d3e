//! `cargo xtask demo`: the main job, with embedded defaults and no server to install.

use std::ffi::OsString;
use std::process::{Command, ExitCode};

use anyhow::Result;
use clap::Args;

use crate::{assets, build, process};

/// `--help` is among what is passed on.
#[derive(Args)]
#[command(disable_help_flag = true)]
pub(crate) struct DemoArgs {
    /// Passed on to `edge-sim demo` (see `edge-sim demo --help`)
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<OsString>,
}

pub(crate) fn run(args: &DemoArgs) -> Result<ExitCode> {
    let binaries = build::binaries()?;
    if args.asks_for_help() {
        eprintln!(
            "`cargo xtask demo` gives --assets, --espalier and --agent itself; the rest is yours:\n"
        );
        return ended(Command::new(binaries.join("edge-sim")).args(["demo", "--help"]));
    }
    let assets = assets::for_demo()?;
    let mut demo = Command::new(binaries.join("edge-sim"));
    demo.arg("demo")
        .arg("--assets")
        .arg(&assets)
        .arg("--espalier")
        .arg(binaries.join("espalier"))
        .arg("--agent")
        .arg(binaries.join("espalier-agent"))
        .args(&args.rest);
    ended(&mut demo)
}

impl DemoArgs {
    fn asks_for_help(&self) -> bool {
        self.rest.iter().any(|arg| arg == "--help" || arg == "-h")
    }
}

/// Runs the command and passes its exit code on.
fn ended(command: &mut Command) -> Result<ExitCode> {
    let status = process::status(command)?;
    Ok(status
        .code()
        .map_or(ExitCode::FAILURE, |code| ExitCode::from(u8::try_from(code).unwrap_or(1))))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        demo: DemoArgs,
    }

    #[test]
    fn help_and_options_are_passed_on_and_not_taken() {
        let parsed = |args: &[&str]| Line::try_parse_from(args).map(|line| line.demo).unwrap();
        assert!(parsed(&["demo", "--help"]).asks_for_help());
        assert!(parsed(&["demo", "--device", "raspberry-pi-5", "-h"]).asks_for_help());
        let plain = parsed(&["demo", "--device", "raspberry-pi-5"]);
        assert!(!plain.asks_for_help());
        assert_eq!(plain.rest, ["--device", "raspberry-pi-5"]);
    }
}
