//! From signals to cancellation: the first asks for a drain, the second for an exit at once.
//!
//! Nothing here ends the process: whoever runs it selects on the two tokens and returns, so that destructors run. As
//! process 1 of a container the kernel ignores signals that have no handler; [`Shutdown::listen`] installs them.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// What has been asked for. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    /// Cancelled by the first signal: begin nothing new, finish what is begun.
    pub drain: CancellationToken,
    /// Cancelled by the second signal: leave. Never before `drain`.
    pub now: CancellationToken,
}

impl Shutdown {
    /// A shutdown that only [`Shutdown::request`] asks for.
    pub fn new() -> Self {
        Self::default()
    }

    /// One that SIGTERM and SIGINT ask for, from now on.
    ///
    /// # Errors
    /// Where the operating system refuses a signal handler.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn listen() -> io::Result<Self> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let shutdown = Self::new();
        let asked = shutdown.clone();
        tokio::spawn(async move {
            while !asked.now.is_cancelled() {
                let name = tokio::select! {
                    _ = terminate.recv() => "SIGTERM",
                    _ = interrupt.recv() => "SIGINT",
                };
                tracing::info!(signal = name, at_once = asked.drain.is_cancelled(), "asked to stop");
                asked.request();
            }
        });
        Ok(shutdown)
    }

    /// Asks for a drain; asked again, for an exit at once.
    pub fn request(&self) {
        if self.drain.is_cancelled() {
            self.now.cancel();
        } else {
            self.drain.cancel();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_first_request_drains_and_the_second_leaves() {
        let shutdown = Shutdown::new();
        let seen = |shutdown: &Shutdown| (shutdown.drain.is_cancelled(), shutdown.now.is_cancelled());
        assert_eq!(seen(&shutdown), (false, false));
        let clone = shutdown.clone();
        shutdown.request();
        assert_eq!(seen(&clone), (true, false));
        shutdown.request();
        assert_eq!(seen(&shutdown), (true, true));
        shutdown.request();
        assert_eq!(seen(&shutdown), (true, true));
    }

    #[tokio::test]
    async fn signals_reach_the_tokens() {
        let shutdown = Shutdown::listen().expect("handlers");
        let soon =
            |token: CancellationToken| tokio::time::timeout(Duration::from_secs(10), token.cancelled_owned());
        kill("-TERM");
        soon(shutdown.drain.clone()).await.expect("a drain");
        assert!(!shutdown.now.is_cancelled());
        kill("-INT");
        soon(shutdown.now.clone()).await.expect("an exit");
    }

    fn kill(signal: &str) {
        let status = Command::new("kill").args([signal, &std::process::id().to_string()]).status();
        assert!(status.expect("kill").success());
    }
}
