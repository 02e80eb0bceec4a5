//! Everything that decides, as pure functions: no I/O, no log, no clock, no random number.
//!
//! `now`, `moment` and `unit` (a number in `[0, 1)`) are arguments, so that the same code runs in production, in
//! property tests and in a simulated fleet. A decision to write is returned as a [`Change`](crate::item::Change).
//!
//! Reading order: [`lease`] (what the generations mean, what each step writes), [`outcome`] (the two judgements of a
//! refresh), [`in_doubt`] (lost answers), [`schedule`] and [`backoff`] (when), [`registry`] (what operators write),
//! [`breaker`], [`membership`] and [`ownership`] (who does which client), [`condition`] (how a client fares, in a word),
//! [`protection`] (when ECS is asked to stop another task than this).

pub mod backoff;
pub mod breaker;
pub mod condition;
pub mod in_doubt;
pub mod lease;
pub mod membership;
pub mod outcome;
pub mod ownership;
mod policy;
pub mod protection;
pub mod registry;
pub mod schedule;
#[cfg(test)]
pub(crate) mod testing;

pub use policy::{Backoff, BreakerPolicy, LONGEST_LEASE, LeaseTooShort, Lifetimes, Timing};
