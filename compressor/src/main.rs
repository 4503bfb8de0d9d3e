//! The `espalier` command line; see [`espalier::cli`].

#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    espalier::cli::main()
}
