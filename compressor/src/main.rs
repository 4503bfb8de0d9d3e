//! The `espalier` command line; see [`espalier::cli`].

fn main() -> std::process::ExitCode {
    espalier::cli::main()
}
