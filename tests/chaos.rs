//! Chaos with the shipped program: crashes at every step of a refresh, a deployment under load, minutes of trouble drawn
//! from a seed, and proof that the judge sees what goes wrong.
//!
//! `PERENNIAL_TEST_SEED` runs a seed's trouble again, `make chaos` runs more of it.
#![allow(dead_code, reason = "the example uses more of its modules")]
#![allow(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "what happened, for whom a test fails")]

#[path = "../examples/chaos/checker.rs"]
mod checker;
#[path = "chaos/deployment.rs"]
mod deployment;
#[path = "../examples/chaos/end.rs"]
mod end;
#[path = "chaos/failpoints.rs"]
mod failpoints;
#[path = "../examples/chaos/fleet.rs"]
mod fleet;
#[path = "../examples/chaos/harvest.rs"]
mod harvest;
#[path = "../examples/chaos/journal.rs"]
mod journal;
#[path = "chaos/judge.rs"]
mod judge;
#[path = "../examples/chaos/meaning.rs"]
mod meaning;
#[path = "../examples/chaos/network.rs"]
mod network;
#[path = "../examples/chaos/provider.rs"]
mod provider;
#[path = "../examples/chaos/storm.rs"]
mod storm;
mod support;
#[path = "../examples/chaos/timings.rs"]
mod timings;
#[path = "../examples/chaos/trap.rs"]
mod trap;
#[path = "../examples/chaos/wire.rs"]
mod wire;

use std::time::Duration;

use fleet::Setup;
use provider::Kind;
use timings::Timings;

fn seed() -> u64 {
    #[expect(clippy::disallowed_methods, reason = "how a failing run is run again")]
    let given = std::env::var("PERENNIAL_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = given.unwrap_or_else(|| rand::random_range(1..1_000_000));
    println!("PERENNIAL_TEST_SEED={seed}");
    seed
}

async fn live_through(provider: Kind, spill: bool, length: Duration) {
    let setup = Setup { provider, spill, ..Setup::of(Timings::scaled(), 60) };
    let (evidence, verdict) = storm::run(&setup, 4, length, seed()).await;
    for (at, fault) in &evidence.seen.faults {
        println!("{:>8.2}s {fault}", at.as_secs_f64());
    }
    println!("{:?}\n{}", verdict.slowest_takeover, verdict.summary());
    assert!(verdict.is_clean(), "{:#?}", verdict.complaints);
    assert!(verdict.redemptions > 100, "a storm that kept everybody from working has tested nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn three_minutes_of_trouble_lose_nothing_but_what_was_taken() {
    live_through(Kind::Strict, true, Duration::from_secs(180)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_minute_of_trouble_at_the_certified_server_loses_nothing_either() {
    live_through(Kind::Oidc, false, Duration::from_secs(60)).await;
}
