//! The command line of `edge-sim`.

fn main() -> std::process::ExitCode {
    edge_sim::cli::main()
}
