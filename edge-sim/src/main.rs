//! The command line of `edge-sim`.

#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    edge_sim::cli::main()
}
