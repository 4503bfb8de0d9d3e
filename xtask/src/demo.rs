//! `cargo xtask demo`: the main job, with embedded defaults and no server to install.

use std::ffi::OsString;
use std::process::{Command, ExitCode};

use anyhow::Result;
use clap::Args;

use crate::{assets, build, process};

#[derive(Args)]
pub(crate) struct DemoArgs {
    /// Passed on to `edge-sim demo` (see `edge-sim demo --help`)
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<OsString>,
}

pub(crate) fn run(args: &DemoArgs) -> Result<ExitCode> {
    let binaries = build::binaries()?;
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
    let status = process::status(&mut demo)?;
    Ok(status
        .code()
        .map_or(ExitCode::FAILURE, |code| ExitCode::from(u8::try_from(code).unwrap_or(1))))
}
