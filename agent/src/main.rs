//! The `espalier-agent` program: everything it does is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    espalier_agent::cli::main()
}
