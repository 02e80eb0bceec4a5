//! This process's memory, out of reach for its neighbours: no core dumps, and `/proc/PID/environ` and `/proc/PID/mem` for
//! root alone.
//!
//! Tokens and keys stand in memory and in the environment of whatever serves. A core dump writes them to a disk, and a
//! process of the same user could read them, or attach a debugger.

use std::io;

use rustix::process::{Resource, Rlimit, setrlimit};

/// Closes it, as early as possible. May be done more than once. Nothing needs to fail where the operating system
/// refuses: the same is served, less secluded.
///
/// On Linux the process is not "dumpable" any more (prctl(2), `PR_SET_DUMPABLE`): its files under `/proc` belong to root,
/// and only who has `CAP_SYS_PTRACE` can attach to it. Elsewhere there are no core dumps, and that is all.
///
/// # Errors
/// What the operating system refused first. The rest is done all the same.
pub fn seclude() -> io::Result<()> {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    let no_cores = setrlimit(Resource::Core, none);
    let closed = not_dumpable();
    no_cores?;
    closed
}

#[cfg(target_os = "linux")]
fn not_dumpable() -> io::Result<()> {
    use rustix::process::{DumpableBehavior, set_dumpable_behavior};
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

#[cfg(not(target_os = "linux"))]
#[expect(clippy::unnecessary_wraps, reason = "as on Linux")]
fn not_dumpable() -> io::Result<()> {
    Ok(())
}
