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
    raw(format!("{}\n", harmless(&text.to_string())).as_bytes())
}

/// A text that a terminal shows and does not obey: whatever comes from the table may have been written by another tool.
/// Control characters and those that turn the direction of writing are spelt out, as `\u{1b}`.
fn harmless(text: &str) -> String {
    let mut spelt = String::with_capacity(text.len());
    for char in text.chars() {
        let turns =
            matches!(char, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if turns || (char.is_control() && !matches!(char, '\n' | '\t')) {
            spelt.extend(char.escape_unicode());
        } else {
            spelt.push(char);
        }
    }
    spelt
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
    raw(format!("{}\n", serde_json::to_string(value)?).as_bytes())
}

/// Prints a message.
pub(super) fn note(text: impl Display) {
    // Without a stderr there is nobody to tell.
    drop(writeln!(io::stderr().lock(), "{}", harmless(&text.to_string())));
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

#[cfg(test)]
mod tests {
    use super::harmless;

    #[test]
    fn a_terminal_is_told_nothing_by_the_table() {
        assert_eq!(harmless("\u{1b}]0;owned\u{7} and \u{9b}2J"), "\\u{1b}]0;owned\\u{7} and \\u{9b}2J");
        assert_eq!(harmless("\u{202e}gpj.exe"), "\\u{202e}gpj.exe");
        assert_eq!(harmless("two\tcells\nand an é"), "two\tcells\nand an é");
    }
}
