//! Processors that never halt.

use std::process::{Child, Command};

/// Keeps every processor awake while it lives, by loops that run only where nothing else does (`SCHED_IDLE`, sched(7)).
///
/// Without it, whichever server is slower than `wrk` pays for waking it with each answer: of a halted processor that is an
/// interrupt, and in a virtual machine more than the answer costs. That is the load's doing, and not the server's.
pub(crate) struct Awake(Vec<Child>);

impl Awake {
    /// # Panics
    /// Where there is no `chrt` or `setpriv`.
    pub(crate) fn all() -> Self {
        // They end with the bench, however that ends (PR_SET_PDEATHSIG, prctl(2)).
        const LOOP: [&str; 8] =
            ["--idle", "0", "setpriv", "--pdeathsig", "KILL", "sh", "-c", "while :; do :; done"];
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let spin = |_| Command::new("chrt").args(LOOP).spawn();
        let spinning = (0..processors).map(spin).collect::<Result<_, _>>();
        Self(spinning.expect("chrt and setpriv are installed: apt-get install util-linux"))
    }

    /// Whether none of them has ended.
    pub(crate) fn still(&mut self) -> bool {
        self.0.iter_mut().all(|child| matches!(child.try_wait(), Ok(None)))
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // It may have ended.
            drop(child.kill());
            drop(child.wait());
        }
    }
}
