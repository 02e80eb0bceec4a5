//! Processors that never halt.

use std::process::{Child, Command};

/// Keeps every processor awake while it lives, by loops that run only where nothing else does (`SCHED_IDLE`, sched(7)).
///
/// Without it, whichever server is slower than `wrk` pays for waking it with each answer: of a halted processor that is an
/// interrupt, and in a virtual machine more than the answer costs. That is the load's doing, and not the server's.
pub(crate) struct Awake(Vec<Child>);

impl Awake {
    /// # Panics
    /// Where there is no `chrt`.
    pub(crate) fn all() -> Self {
        // It ends with the bench, however that ends.
        const LOOP: &str = "while kill -0 $PPID 2>/dev/null; do :; done";
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let spin = |_| Command::new("chrt").args(["--idle", "0", "sh", "-c", LOOP]).spawn();
        let spinning = (0..processors).map(spin).collect::<Result<_, _>>();
        Self(spinning.expect("chrt is installed: apt-get install util-linux"))
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
