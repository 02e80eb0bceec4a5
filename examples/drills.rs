//! Drills: what goes wrong around a daemon, for as long as it does in real life, and what the daemon makes of it.
//!
//! ```text
//! make drills                    # all at once, at their stated lengths: about 50 minutes
//! make drills ARGS="--scaled"    # a minute or two, as in `make test`
//! make drills ARGS="store_outage writes_throttled"
//! ```
//!
//! Each drill has the shipped program, a provider that rotates, and DynamoDB Local of its own; at its end every client's
//! token is fresh and the provider's live one, nothing was redeemed twice, and the daemon, which nobody restarted, drains
//! and exits with 0. `docs/reliability.md` says what each of them does and what was seen. It ends with one line for
//! programs:
//!
//! ```text
//! summary drills=7 passed=7 failed=0 not_run=0 longest_recovery_s=..
//! ```

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it prints what it sees")]
#![allow(clippy::unwrap_used, reason = "a helper that fails ends the drill")]

use std::process::ExitCode;

use clap::Parser;

#[path = "drills/drill.rs"]
mod drill;
#[path = "drills/identity.rs"]
mod identity;
#[path = "drills/report.rs"]
mod report;
#[path = "drills/stage.rs"]
mod stage;
#[path = "../tests/support/mod.rs"]
mod support;
#[path = "chaos/timings.rs"]
#[allow(dead_code, reason = "chaos uses more of it")]
mod timings;

use drill::Drill;
use stage::Length;

/// Rehearses bad days with the shipped program.
#[derive(Parser)]
struct Options {
    /// Which ones; all of them without a name.
    drills: Vec<Drill>,
    /// Seconds instead of minutes, and the protocol's times scaled down with them.
    #[arg(long)]
    scaled: bool,
    /// Print one JSON object a drill, and one for the summary.
    #[arg(long)]
    json: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    let length = if options.scaled { Length::Scaled } else { Length::Stated };
    let drills = if options.drills.is_empty() { Drill::ALL.to_vec() } else { options.drills };
    let ends = drill::all(&drills, length, |end| println!("{}", end.line(options.json))).await;
    println!("{}", report::summary(&ends, options.json));
    if ends.iter().any(report::End::is_failure) { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
