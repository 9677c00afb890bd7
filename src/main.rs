//! Arguments in, exit code out.

use std::process::ExitCode;

use wasmferry::config::Environment;

fn main() -> ExitCode {
    wasmferry::cli::main(std::env::args_os(), &Environment::of_process())
}
