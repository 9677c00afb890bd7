//! Arguments in, exit code out.

use std::process::ExitCode;

use wasmferry::config::Environment;

/// See `.cargo/config.toml` for how it is set up.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    wasmferry::secret::keep_out_of_dumps();
    wasmferry::cli::main(std::env::args_os(), &Environment::of_process())
}
