//! The `perennial` binary: parse, runtime, exit code.

use std::process::ExitCode;

use clap::Parser as _;
use perennial::cli::{self, Cli};

/// What a storm of connections took goes back to the machine when they have gone, and what one thread frees is another's to use.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let cli = Cli::parse_from(cli::arguments(std::env::args_os()));
    match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => {
            let code = runtime.block_on(cli::run(cli));
            // A file system that hangs must not keep the process.
            runtime.shutdown_background();
            code
        }
        Err(error) => cli::fail(&anyhow::Error::new(error).context("starting the runtime")),
    }
}
