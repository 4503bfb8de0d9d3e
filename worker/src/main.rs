//! The `espalier-worker` program: everything it does is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    espalier_worker::cli::main()
}
