//! The `espalier-worker` program: everything it does is in the library.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    espalier_worker::cli::main()
}
