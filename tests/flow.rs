//! The flow of a refresh and the schedule of many, on simulated time.
//!
//! The real refresher, scheduler and fleet run over the table in memory and a scripted provider. Each test is one
//! story, and its name says what must hold. Nothing here waits for real time, and a run is reproduced by its seed.
#![expect(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]
#![expect(clippy::cast_precision_loss, reason = "counts of a simulation are small")]

#[path = "flow/acquire.rs"]
mod acquire;
#[path = "flow/chaos.rs"]
mod chaos;
#[path = "flow/clocks.rs"]
mod clocks;
#[path = "flow/commit.rs"]
mod commit;
#[path = "flow/doubt.rs"]
mod doubt;
#[path = "flow/endpoint.rs"]
mod endpoint;
#[path = "flow/fleet.rs"]
mod fleet;
#[path = "flow/hours.rs"]
mod hours;
#[path = "flow/membership.rs"]
mod membership;
#[path = "flow/once.rs"]
mod once;
#[path = "flow/replies.rs"]
mod replies;
#[path = "flow/schedule.rs"]
mod schedule;
#[path = "flow/secrets.rs"]
mod secrets;
#[path = "flow/sequences.rs"]
mod sequences;
#[path = "flow/spill.rs"]
mod spill;
#[path = "flow/takeover.rs"]
mod takeover;
#[path = "flow/tuning.rs"]
mod tuning;
#[path = "flow/world.rs"]
mod world;
