//! The one source of randomness: jitter, attempt nonces, incarnation names.
//!
//! Pure code takes a number in `[0, 1)` as an argument; whoever calls it draws that number here. A simulation
//! seeds one [`Entropy`] a task and gets the same run again.

use std::sync::{Mutex, PoisonError};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// A seedable generator that tasks share.
#[derive(Debug)]
pub struct Entropy(Mutex<StdRng>);

impl Entropy {
    /// Seeded by the operating system.
    pub fn from_system() -> Self {
        Self(Mutex::new(rand::make_rng()))
    }

    /// The same seed gives the same draws.
    pub fn from_seed(seed: u64) -> Self {
        Self(Mutex::new(StdRng::seed_from_u64(seed)))
    }

    /// Uniform in `[0, 1)`.
    pub fn unit(&self) -> f64 {
        self.with(|rng| rng.random::<f64>())
    }

    /// 64 random bits in hexadecimal: names an attempt, or a process's incarnation.
    pub fn nonce(&self) -> String {
        format!("{:016x}", self.with(|rng| rng.random::<u64>()))
    }

    fn with<T>(&self, draw: impl FnOnce(&mut StdRng) -> T) -> T {
        // A generator has no state that a panic elsewhere could leave half-changed.
        draw(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_reproduces_its_draws_and_another_does_not() {
        let draw = |seed| {
            let entropy = Entropy::from_seed(seed);
            (entropy.unit(), entropy.nonce())
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        assert!((0.0..1.0).contains(&draw(7).0));
    }
}
