//! A siege: everything that programs of one machine can do to their agent, while others read from it.
//!
//! ```text
//! make siege                    # at its stated lengths: about 15 minutes
//! make siege ARGS="--scaled"    # a minute, as in `make test`
//! ```
//!
//! A real daemon keeps two kinds of clients, with tokens that live for an hour and for half a minute; readers take all
//! their tokens without a pause, and judge each answer. Meanwhile: thousands of idle connections, slow ones, headers without
//! end, malformed requests, a crowd that wants one client that nobody has asked for, a table that is gone for ten minutes.
//! In the end the agent, which nobody restarted, has as many descriptors and hardly more memory than before, and drains.
//! One line for programs, and exit code 1 where anything is not as it should be:
//!
//! ```text
//! summary seconds=.. idle=10000 held=10000 slow=200 given_up=200 hostile=.. refused=.. misses=5000 served=5000 upstream=1 ...
//! ```

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it prints what it sees")]
#![allow(clippy::unwrap_used, reason = "a helper that fails ends the siege")]

use std::process::ExitCode;

use clap::Parser;

#[path = "siege/camp.rs"]
mod camp;
#[path = "siege/engines.rs"]
mod engines;
#[path = "siege/readers.rs"]
mod readers;
#[path = "siege/siege.rs"]
mod siege;
#[path = "../tests/support/mod.rs"]
mod support;

/// Besieges the shipped agent.
#[derive(Parser)]
struct Options {
    /// Seconds and hundreds instead of minutes and thousands.
    #[arg(long)]
    scaled: bool,
    /// Another build of the program, for the agent.
    #[arg(long)]
    agent: Option<std::path::PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    let size = if options.scaled { siege::SCALED } else { siege::STATED };
    let seen = siege::lay(&size, options.agent.as_deref(), |scene| eprintln!("{scene}")).await;
    println!("{}", seen.line(options.json));
    for wrong in seen.wrong() {
        eprintln!("not as it should be: {wrong}");
    }
    if seen.wrong().is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
