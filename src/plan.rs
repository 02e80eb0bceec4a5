//! Everything that decides, as pure functions: no I/O, no log, no clock, no random number.

mod policy;

pub use policy::{Backoff, BreakerPolicy, LeaseTooShort, Lifetimes, Timing};
