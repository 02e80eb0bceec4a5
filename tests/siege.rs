//! `make siege`, with seconds instead of minutes and hundreds instead of thousands.
#![allow(clippy::unwrap_used, reason = "a helper that fails ends the siege")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "what happened, for whom a test fails")]

#[path = "../examples/siege/camp.rs"]
mod camp;
#[path = "../examples/siege/engines.rs"]
mod engines;
#[path = "../examples/siege/readers.rs"]
mod readers;
#[path = "../examples/siege/siege.rs"]
#[allow(dead_code, reason = "the example has another size")]
mod siege;
mod support;

#[tokio::test(flavor = "multi_thread")]
async fn a_besieged_agent_serves_whoever_reads() {
    let seen = siege::lay(&siege::SCALED, None, |scene| println!("{scene}")).await;
    println!("{}", seen.line(false));
    assert_eq!(seen.wrong(), Vec::<&str>::new());
}
