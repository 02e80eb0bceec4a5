//! Child processes that cannot outlive the test.
//!
//! A shell stands between the test and the program and waits for the end of its standard input, whose other end the
//! test holds. So the program ends when the fixture is dropped, and also when the test process is killed, where no
//! destructor runs. A parent-death signal would need unsafe code, and follows the spawning thread, not the process.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use tempfile::NamedTempFile;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::Instant;

/// Starts the program, whose first line is its process id, kills it at the end of the input, and ends with its status. The id comes from an
/// inner shell that then becomes the program: printed by the outer one it could come after the program's own words.
const WATCHDOG: &str = r#"
    sh -c 'echo $$; exec "$@"' program "$@" </dev/null &
    exec >/dev/null
    cat
    kill -KILL $! 2>/dev/null
    wait $!
"#;

/// A program that runs until this is dropped.
pub(crate) struct Process {
    name: String,
    watchdog: Child,
    lifeline: Option<ChildStdin>,
    pid: String,
    output: UnboundedReceiver<String>,
    errors: NamedTempFile,
}

impl Process {
    /// Starts a program. `prepare` sets its folder and its environment.
    ///
    /// # Panics
    /// When there is no shell. A program that cannot be started is noticed by [`Process::line`].
    pub(crate) async fn start<A: AsRef<OsStr>>(
        program: impl AsRef<OsStr>,
        arguments: impl IntoIterator<Item = A>,
        prepare: impl FnOnce(&mut Command),
    ) -> Self {
        let errors = NamedTempFile::new().expect("the system's folder for temporary files is writable");
        let name = program.as_ref().to_string_lossy().into_owned();
        let mut command = Command::new("sh");
        command.args(["-c", WATCHDOG, "watchdog"]).arg(program).args(arguments);
        // A group of its own: Ctrl-C would otherwise end the shell and leave the program.
        command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped());
        command.stderr(errors.reopen().expect("a file just made can be opened"));
        prepare(&mut command);

        let mut watchdog = command.spawn().expect("tests need `sh`");
        let lifeline = watchdog.stdin.take();
        let output = lines(watchdog.stdout.take().expect("the output is piped"));
        let mut process = Self { name, watchdog, lifeline, pid: String::new(), output, errors };
        process.pid = process.line(Duration::from_secs(10)).await;
        process
    }

    /// Processor time of its threads that are alive, by the scheduler's own count (proc_pid_schedstat(5)).
    pub(crate) fn cpu_time(&self) -> Duration {
        let threads = fs::read_dir(format!("/proc/{}/task", self.pid)).expect("it runs").flatten();
        let spent = threads.filter_map(|thread| fs::read_to_string(thread.path().join("schedstat")).ok());
        spent.filter_map(|text| text.split(' ').next()?.parse().ok()).map(Duration::from_nanos).sum()
    }

    /// Resident memory, in MiB (proc_pid_status(5)).
    pub(crate) fn rss_mb(&self) -> f64 {
        self.megabytes("VmRSS")
    }

    /// The most that it had, in MiB.
    pub(crate) fn peak_rss_mb(&self) -> f64 {
        self.megabytes("VmHWM")
    }

    fn megabytes(&self, name: &str) -> f64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("Linux tells it");
        line.trim_matches([':', '\t', ' ', 'k', 'B']).parse::<f64>().expect("a number") / 1024.0
    }

    /// The next line of the program's standard output.
    ///
    /// # Panics
    /// When none comes within `bound`, or the program has ended. The message holds what it wrote to standard error.
    pub(crate) async fn line(&mut self, bound: Duration) -> String {
        match tokio::time::timeout(bound, self.output.recv()).await {
            Ok(Some(line)) => line,
            Ok(None) => panic!("{} ended early:\n{}", self.name, self.errors()),
            Err(_) => panic!("{} printed nothing for {bound:?}:\n{}", self.name, self.errors()),
        }
    }

    /// The lines that come until then; none where the program has ended.
    pub(crate) async fn lines_until(&mut self, end: Instant) -> Vec<String> {
        let mut lines = Vec::new();
        let reading = async {
            while let Some(line) = self.output.recv().await {
                lines.push(line);
            }
            std::future::pending::<()>().await;
        };
        tokio::time::timeout_at(end, reading).await.ok();
        lines
    }

    /// The address from the line `READY http://...`.
    ///
    /// # Panics
    /// As [`Process::line`], and when the line is another one.
    pub(crate) async fn ready(&mut self, bound: Duration) -> String {
        let line = self.line(bound).await;
        let url = line.strip_prefix("READY ").and_then(|rest| rest.split_whitespace().next());
        url.unwrap_or_else(|| panic!("{} printed {line:?} and not READY", self.name)).to_owned()
    }

    /// All further lines, once the program has ended.
    ///
    /// # Panics
    /// When it has not ended within `bound`.
    pub(crate) async fn last_lines(&mut self, bound: Duration) -> Vec<String> {
        let mut lines = Vec::new();
        let ended = tokio::time::timeout(bound, async {
            while let Some(line) = self.output.recv().await {
                lines.push(line);
            }
        });
        assert!(ended.await.is_ok(), "{} has not ended in {bound:?}:\n{}", self.name, self.errors());
        lines
    }

    /// Whether the program has closed its standard output, as it does when it ends.
    pub(crate) fn has_ended(&mut self) -> bool {
        loop {
            match self.output.try_recv() {
                Ok(_) => {}
                Err(tokio::sync::mpsc::error::TryRecvError::Empty) => return false,
                Err(tokio::sync::mpsc::error::TryRecvError::Disconnected) => return true,
            }
        }
    }

    /// Waits for the program to end by itself, and returns its exit code: 128 and the signal's number where a signal
    /// ended it.
    ///
    /// # Panics
    /// When it has not ended within `bound`, with what it wrote to standard error.
    pub(crate) async fn exit_code(&mut self, bound: Duration) -> i32 {
        let ended = tokio::time::timeout(bound, async { while self.output.recv().await.is_some() {} });
        assert!(ended.await.is_ok(), "{} has not ended in {bound:?}:\n{}", self.name, self.errors());
        drop(self.lifeline.take());
        let status = self.watchdog.wait().expect("the shell is a child of this process");
        status.code().expect("the shell ends by itself")
    }

    /// What the program has written to standard error.
    pub(crate) fn errors(&self) -> String {
        fs::read_to_string(self.errors.path()).unwrap_or_default()
    }

    /// The file that standard error goes to.
    pub(crate) fn log(&self) -> &Path {
        self.errors.path()
    }

    /// The program's process id, for signals and `/proc`.
    pub(crate) fn pid(&self) -> &str {
        &self.pid
    }

    /// Sends the program a signal by its name: `TERM`, `STOP`, `CONT`, `KILL`.
    ///
    /// # Panics
    /// When the signal cannot be sent.
    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.pid]).status();
        assert!(sent.is_ok_and(|status| status.success()), "{} did not take SIG{name}", self.name);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.lifeline.take());
        self.watchdog.wait().ok();
    }
}

/// Reads on a thread of its own: a program that is not listened to blocks when the pipe is full.
fn lines(output: impl std::io::Read + Send + 'static) -> UnboundedReceiver<String> {
    let (sender, receiver) = unbounded_channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            // The fixture may be gone: the reading goes on, so that the program never blocks.
            sender.send(line).ok();
        }
    });
    receiver
}
