//! stdout for results, stderr for messages.
//!
//! The reader of a pipe may leave at any time: that is a quiet end and no panic, which `println!` would make of it.

use std::fmt::Display;
use std::io::{self, BufRead, ErrorKind, IsTerminal, Write};

use serde::Serialize;

/// Nobody reads our output any more.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[error("the output was closed")]
pub(super) struct Closed;

/// Prints a line of the result.
pub(super) fn line(text: impl Display) -> anyhow::Result<()> {
    raw(format!("{text}\n").as_bytes())
}

/// Prints a part of the result as it is.
pub(super) fn raw(text: &[u8]) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(Closed.into()),
        written => Ok(written?),
    }
}

/// Prints what was written to the table. That nobody reads it is no reason to stop between two writes.
pub(super) fn told(text: impl Display) {
    match line(text) {
        Err(error) if !error.is::<Closed>() => {
            note(format_args!("note: the result cannot be printed: {error}"))
        }
        _ => {}
    }
}

/// Prints a line of the result as JSON.
pub(super) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    line(serde_json::to_string(value)?)
}

/// Prints a message.
pub(super) fn note(text: impl Display) {
    // Without a stderr there is nobody to tell.
    drop(writeln!(io::stderr().lock(), "{text}"));
}

/// Asks on the terminal; none where there is none.
pub(super) fn ask(question: &str) -> io::Result<Option<String>> {
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        return Ok(None);
    }
    let mut stderr = io::stderr().lock();
    write!(stderr, "{question}")?;
    stderr.flush()?;
    let mut answer = String::new();
    stdin.lock().read_line(&mut answer)?;
    Ok(Some(answer))
}
