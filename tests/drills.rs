//! Every drill of `make drills`, in seconds instead of minutes.
#![allow(dead_code, reason = "the example uses more of its modules")]
#![allow(clippy::unwrap_used, reason = "a helper that fails ends the drill")]
#![allow(clippy::print_stdout, reason = "what happened, for whom a test fails")]

#[path = "../examples/drills/drill.rs"]
mod drill;
#[path = "../examples/drills/identity.rs"]
mod identity;
#[path = "../examples/drills/report.rs"]
mod report;
#[path = "../examples/drills/stage.rs"]
mod stage;
mod support;
#[path = "../examples/chaos/timings.rs"]
mod timings;

use drill::Drill;
use stage::Length;

/// One test, so that the drills run side by side: each of them mostly waits.
#[tokio::test(flavor = "multi_thread")]
async fn every_drill_at_scaled_lengths() {
    let ends = drill::all(&Drill::ALL, Length::Scaled, |end| println!("{}", end.line(false))).await;
    println!("{}", report::summary(&ends, false));
    assert!(!ends.iter().any(report::End::is_failure), "see above");
}
