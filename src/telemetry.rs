//! Logs: for people on a terminal, JSON lines for machines, always on standard error. Panics are logged too.
//!
//! Where whoever reads them does not keep up, lines are dropped and counted: a blocked log pipe must not stop refreshes.
//!
//! Invariant: no secret is logged, at any level. Our own code holds that by its types. The libraries below us print
//! whole requests and answers at their finest level (the AWS SDK does, tokens and client secrets included), so that
//! level is never theirs, whatever the filter says.

mod lines;

use std::any::Any;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{self, IsTerminal, Stderr};
use std::panic::{self, PanicHookInfo};

use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::{ParseError, filter_fn};
use tracing_subscriber::fmt::{MakeWriter, fmt};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

pub use self::lines::Lines;
use crate::config::{Log, LogFormat};

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// `log.filter` does not parse.
    #[error("the log filter is not valid")]
    Filter(#[from] ParseError),
    /// Somebody has set up logging in this process before.
    #[error("logging is set up already")]
    AlreadySet(#[from] TryInitError),
    /// The filter cannot be replaced any more.
    #[error("the log filter cannot be replaced")]
    Replace(#[from] reload::Error),
}

/// What is logged, as it can be changed while the process runs.
pub struct Filter(Box<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync>);

impl Filter {
    /// Logs by these directives from now on.
    ///
    /// # Errors
    /// Where they do not parse.
    pub fn replace(&self, directives: &str) -> Result<(), TelemetryError> {
        Ok((self.0)(EnvFilter::try_new(directives)?)?)
    }
}

/// A log that is open.
pub struct Logs {
    /// Counts the lines that nobody read.
    pub lines: Lines<Stderr>,
    /// Says what is logged.
    pub filter: Filter,
}

/// Logs to standard error from now on, panics included.
///
/// # Errors
/// See [`TelemetryError`].
pub fn init(log: &Log) -> Result<Logs, TelemetryError> {
    let terminal = io::stderr().is_terminal();
    let lines = Lines::to(io::stderr());
    let writer = lines.clone();
    let (subscriber, filter) = subscriber(log, terminal, move || writer.clone())?;
    subscriber.try_init()?;
    log_panics();
    Ok(Logs { lines, filter })
}

fn subscriber<W>(
    log: &Log,
    terminal: bool,
    writer: W,
) -> Result<(Box<dyn Subscriber + Send + Sync>, Filter), ParseError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let filter = EnvFilter::try_new(&log.filter)?;
    let common = fmt().with_env_filter(filter).with_writer(writer).with_ansi(terminal);
    let harmless = filter_fn(is_harmless);
    let json = match log.format {
        LogFormat::Auto => !terminal,
        LogFormat::Pretty => false,
        LogFormat::Json => true,
    };
    Ok(if json {
        let common = common.json().flatten_event(true).with_span_list(false).with_filter_reloading();
        let handle = common.reload_handle();
        let filter = Filter(Box::new(move |filter| handle.reload(filter)));
        (Box::new(common.finish().with(harmless)), filter)
    } else {
        let common = common.with_filter_reloading();
        let handle = common.reload_handle();
        let filter = Filter(Box::new(move |filter| handle.reload(filter)));
        (Box::new(common.finish().with(harmless)), filter)
    })
}

fn is_harmless(metadata: &Metadata<'_>) -> bool {
    let ours = metadata.target().split("::").next() == Some("perennial");
    ours || *metadata.level() != Level::TRACE
}

/// Sends panics to the log. Where the log takes no errors, the hook that was there before prints them.
fn log_panics() {
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if tracing::enabled!(Level::ERROR) {
            report(info);
        } else {
            before(info);
        }
    }));
}

/// The backtrace is empty unless `RUST_BACKTRACE` asks for one.
fn report(info: &PanicHookInfo<'_>) {
    let message = message(info.payload());
    let location = info.location().map(ToString::to_string).unwrap_or_default();
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or_default();
    let backtrace = Backtrace::capture();
    let backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string());
    tracing::error!(panic = message, location, thread, backtrace, "panicked");
}

fn message(payload: &(dyn Any + Send)) -> &str {
    let literal = payload.downcast_ref::<&'static str>().copied();
    literal.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("(no message)")
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(filter: &str, format: LogFormat, terminal: bool, events: impl FnOnce()) -> String {
        let buffer = Buffer::default();
        let log = Log { filter: filter.to_owned(), format };
        let writer = buffer.clone();
        let (subscriber, _filter) = subscriber(&log, terminal, move || writer.clone()).expect("a filter");
        tracing::subscriber::with_default(subscriber, events);
        String::from_utf8(buffer.0.lock().unwrap().clone()).expect("text")
    }

    fn say() {
        tracing::info!(client = "acme", "refreshed");
        tracing::debug!("unseen");
    }

    #[test]
    fn json_without_a_terminal_and_lines_for_people_on_one() {
        let json = logged("info", LogFormat::Auto, false, say);
        let line: serde_json::Value = serde_json::from_str(&json).expect("one JSON object");
        assert_eq!(
            (&line["message"], &line["client"], &line["level"]),
            (&"refreshed".into(), &"acme".into(), &"INFO".into())
        );

        let pretty = logged("info", LogFormat::Auto, true, say);
        assert!(pretty.contains("refreshed") && pretty.contains("\u{1b}["), "{pretty}");
    }

    #[test]
    fn a_format_that_was_asked_for_wins_over_the_terminal() {
        assert!(logged("info", LogFormat::Json, true, say).starts_with('{'));
        let pretty = logged("info", LogFormat::Pretty, false, say);
        assert!(pretty.contains("refreshed") && !pretty.contains(['{', '\u{1b}']), "{pretty}");
    }

    #[test]
    fn the_filter_holds() {
        assert_eq!(logged("warn", LogFormat::Json, false, say), "");
        assert!(logged("perennial=debug", LogFormat::Json, false, say).contains("unseen"));
    }

    #[test]
    fn the_filter_can_be_replaced_and_a_broken_one_is_not_taken() {
        for format in [LogFormat::Json, LogFormat::Pretty] {
            let (buffer, log) = (Buffer::default(), Log { filter: "warn".to_owned(), format });
            let writer = buffer.clone();
            let (subscriber, filter) = subscriber(&log, false, move || writer.clone()).expect("a filter");
            tracing::subscriber::with_default(subscriber, || {
                say();
                filter.replace("perennial=debug").expect("it parses");
                assert!(filter.replace("perennial=loud").is_err());
                say();
            });
            let text = String::from_utf8(buffer.0.lock().unwrap().clone()).expect("text");
            assert_eq!((text.matches("unseen").count(), text.matches("refreshed").count()), (1, 1), "{text}");
        }
    }

    #[test]
    fn traces_of_libraries_show_whole_requests_and_are_never_logged() {
        let events = || {
            tracing::trace!(target: "aws_smithy_runtime::client", "request");
            tracing::debug!(target: "aws_smithy_runtime::client", "phase");
            tracing::trace!("ours");
        };
        for filter in ["trace", "aws_smithy_runtime::client=trace,perennial=trace"] {
            let text = logged(filter, LogFormat::Json, false, events);
            assert!(!text.contains("request"), "{text}");
            assert!(text.contains("phase") && text.contains("ours"), "{text}");
        }
    }

    /// One test, because hooks and the global subscriber belong to the whole process.
    #[test]
    fn panics_are_logged_and_a_second_set_up_is_an_error() {
        let log = Log { filter: "off".to_owned(), format: LogFormat::Json };
        let _lines = init(&log).expect("the first set-up in this process");
        assert!(matches!(init(&log), Err(TelemetryError::AlreadySet(_))));

        let text = logged("error", LogFormat::Json, false, || {
            let panicked = panic::catch_unwind(|| panic!("no {}", "luck"));
            assert!(panicked.is_err());
        });
        let line: serde_json::Value = serde_json::from_str(&text).expect("one JSON object");
        assert_eq!((&line["message"], &line["panic"]), (&"panicked".into(), &"no luck".into()));
        assert!(line["location"].as_str().expect("a location").contains("telemetry.rs"), "{line}");
    }
}
