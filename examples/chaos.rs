//! Daemons as they are shipped, over DynamoDB Local and a strict provider, killed, stopped, cut off and set back, and
//! a judge over all of it.
//!
//! Everything that is done to them is drawn from the seed. Processes take their own time, so a seed tells what is done
//! and not what comes of it. `--trace` prints it as it happens.
//!
//! ```text
//! make chaos ARGS="--for 120s --daemons 3 --seed 7"
//! ```
//!
//! It ends with one line for programs, and with another exit code than zero where it is not clean:
//!
//! ```text
//! summary redemptions=.. double_redemptions=0 replays=.. crash_window_injected=.. crash_window_lost=..
//!     reply_lost_injected=.. reply_lost=.. lost_otherwise=0 expired_token_seconds=.. conflicts=.. takeovers=..
//!     takeover_p99_s=..
//! ```

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it prints what happens")]
#![allow(dead_code, reason = "the directed tests use more of these modules")]
#![allow(clippy::unwrap_used, reason = "a helper that fails ends the run")]
#![allow(clippy::cast_precision_loss, reason = "counts are small")]

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

#[path = "chaos/checker.rs"]
mod checker;
#[path = "chaos/end.rs"]
mod end;
#[path = "chaos/fleet.rs"]
mod fleet;
#[path = "chaos/harvest.rs"]
mod harvest;
#[path = "chaos/journal.rs"]
mod journal;
#[path = "chaos/meaning.rs"]
mod meaning;
#[path = "chaos/network.rs"]
mod network;
#[path = "chaos/provider.rs"]
mod provider;
#[path = "chaos/storm.rs"]
mod storm;
#[path = "../tests/support/mod.rs"]
mod support;
#[path = "chaos/timings.rs"]
mod timings;
#[path = "chaos/trap.rs"]
mod trap;
#[path = "chaos/wire.rs"]
mod wire;

use checker::Verdict;
use fleet::Setup;
use provider::Kind;
use timings::{Scale, Timings};

/// Lets a fleet of real daemons live through trouble, and judges what came of it.
#[derive(Parser)]
struct Options {
    /// How long the trouble lasts.
    #[arg(long = "for", default_value = "10m", value_parser = humantime::parse_duration)]
    length: Duration,
    /// How many daemons.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=16))]
    daemons: u8,
    /// How many clients; unset, 60, or 400 at the default timings.
    #[arg(long)]
    clients: Option<usize>,
    /// What everything is drawn from; unset, it is drawn itself and printed.
    #[arg(long)]
    seed: Option<u64>,
    /// Which provider.
    #[arg(long, value_enum, default_value_t = Kind::Strict)]
    provider: Kind,
    /// The protocol's times.
    #[arg(long, value_enum, default_value_t = Scale::Scaled)]
    timings: Scale,
    /// Print what is done to the fleet as it happens, on standard error.
    #[arg(long)]
    trace: bool,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    let seed = options.seed.unwrap_or_else(|| rand::random_range(1..1_000_000));
    let clients = options.clients.unwrap_or(if options.timings == Scale::Default { 400 } else { 60 });
    let setup = Setup {
        provider: options.provider,
        spill: StdRng::seed_from_u64(seed).random_bool(0.5),
        aloud: options.trace,
        progress: !options.trace && std::io::stderr().is_terminal(),
        ..Setup::of(Timings::of(options.timings), clients)
    };
    let skew = if support::faketime::library().is_some() { "libfaketime" } else { "none" };
    println!(
        "seed={seed} daemons={} clients={clients} provider={:?} timings={:?} spill={} skew={skew}",
        options.daemons, options.provider, options.timings, setup.spill
    );
    let (_, verdict) = storm::run(&setup, options.daemons.into(), options.length, seed).await;
    report(&verdict, options.json);
    if verdict.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn report(verdict: &Verdict, json: bool) {
    for complaint in verdict.complaints.iter().take(50) {
        println!("complaint: {complaint}");
    }
    if let Some((wait, who)) = verdict.slowest_takeover.as_ref().filter(|_| !json) {
        println!("the slowest take-over took {:.1} s: {who}", wait.as_secs_f64());
    }
    if !json {
        return println!("{}", verdict.summary());
    }
    let line = verdict.summary();
    let fields = line.split_whitespace().filter_map(|field| field.split_once('='));
    let numbers = fields.filter_map(|(name, value)| {
        Some((name.to_owned(), serde_json::from_str::<serde_json::Value>(value).ok()?))
    });
    println!("{}", serde_json::Value::Object(numbers.collect()));
}
